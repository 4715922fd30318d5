"""Probes and what they could learn anyway. python -m pytest tests/evaluation/test_selectivity.py"""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from foreword.errors import DataError
from foreword.evaluation.selectivity import Selectivity, control_task, selectivity
from foreword.methods.triggers.explanation import prompt_attention, with_prompt
from foreword.models.encoding.encoder import collate, prepare
from foreword.tasks.task import Task
from tests.methods.triggers.trigger_setups import field_of, word_lm, word_task
from tests.planted import planted_task
from tests.seeds import new_seed

SEED = new_seed()


def first_word_task(words: int = 12) -> Task:
    """Rows whose label is a rule of the last word, and whose first words come again in every split."""
    rng = random.Random(SEED)

    def rows(count: int) -> list[dict[str, str]]:
        found = []
        for _ in range(count):
            last = rng.randrange(words)
            found.append({"text": f"w{rng.randrange(words)} w{last}", "label": "yes" if last < words // 2 else "no"})
        return found

    template = {"masked": "{text} so {mask} .", "causal": "{text} so {answer}"}
    return Task(train=rows(400), validation=rows(30), test=rows(100), name="first", template=template)


def test_control_labels_follow_from_the_first_word_alone_and_keep_their_shares():
    task = first_word_task()
    control = control_task(task, 1)
    by_word: dict[str, set[int]] = {}
    for split in ("train", "validation", "test"):
        for row, before in zip(control.rows(split), task.rows(split), strict=True):
            assert row.fields == before.fields
            by_word.setdefault(row.fields["text"].split()[0], set()).add(row.label or 0)
    assert all(len(labels) == 1 for labels in by_word.values())
    other = control_task(task, 2)
    assert [r.label for r in other.train] != [r.label for r in control.train]
    with pytest.raises(DataError, match="one set of labels"):
        control_task(task.with_(labels=()))


def test_selectivity_is_the_difference_of_the_two_accuracies():
    lm, _ = word_lm("causal", 12, seed=SEED, width=48)
    found = selectivity(lm, first_word_task(), pool="mean")
    assert isinstance(found, Selectivity) and found.selectivity == found.task - found.control
    assert found.task > 0.8 and found.control > 0.6  # a mean of embeddings tells words apart, so it memorises as well


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_attention_weights_are_the_library_s(kind):
    lm, model = word_lm(kind, 20, seed=SEED)
    field = field_of(lm, word_task(20, SEED), length=2)
    prompt = tuple(field.allowed_A[:2].tolist())
    rows = [with_prompt(e, prompt, ()) for e in field.encoded]
    inputs, _ = prepare(lm, collate(rows), None, torch.zeros(len(rows), dtype=torch.long))
    weights_NBHS = lm.attention(inputs)
    model.set_attn_implementation("eager")
    for b, row in enumerate(rows):
        with torch.no_grad():
            out = model(input_ids=torch.from_numpy(row.ids_S)[None], output_attentions=True).attentions
        wanted = torch.stack([layer[0, :, row.answer].float() for layer in out])
        assert torch.allclose(weights_NBHS[:, b, :, : len(row.ids_S)], wanted, atol=1e-6)
        assert np.allclose(weights_NBHS[:, b].sum(-1), 1, atol=1e-6)
    told = prompt_attention(field, prompt)
    assert [t["token"] for t in told] == field.words(prompt) and all(0 < t["all_layers"] < 1 for t in told)


def test_rows_without_labels_have_no_control():
    task = planted_task(1, train=8, validation=4, test=4)
    bare = task.with_(train=tuple(replace(row, label=None) for row in task.train))
    with pytest.raises(DataError, match="has no training row with a label"):
        control_task(bare)
