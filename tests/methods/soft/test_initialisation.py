"""python -m pytest tests/methods/soft/test_initialisation.py

Where each method starts, and what is left of it once it is folded.
"""

from dataclasses import replace

import pytest
import torch

from foreword.core.prompts import PrefixPrompt, SoftPrompt, stack
from foreword.errors import ConfigError
from foreword.inference.batched import stacked_scores
from foreword.inference.scoring import encode_rows, score_rows
from foreword.methods import METHODS
from foreword.methods.registry import make_job, train
from foreword.models.load import load
from foreword.models.score import score
from foreword.tasks.task import Task
from tests.planted import planted_task

MINI = load("foreword-mini")
TASK = planted_task(5, train=16, validation=8, test=12)


def started(lm, method: str, template: str | None = None, seed: int = 0, **options):
    form = TASK.format(lm.kind, template=template) if template else None
    return METHODS[method].start(lm, make_job(lm, TASK, method, options=options, seed=seed, form=form))


def table_rows(embed_PD: torch.Tensor) -> list[int | None]:
    """Which row of the embedding table each position is, bit for bit."""
    table = MINI.named_weights()["bert.embeddings.word_embeddings.weight"]
    found = [(table == row).all(1).nonzero().flatten() for row in embed_PD]
    return [int(hits[0]) if len(hits) else None for hits in found]


def test_a_vocabulary_start_is_distinct_ordinary_rows_of_the_table():
    learner = started(MINI, "prompt-tuning", length=12, init="vocabulary", seed=4)
    ids = table_rows(learner.leaves["embed"].detach())
    assert None not in ids
    assert len(set(ids)) == 12
    pieces = MINI.tokenizer.convert_ids_to_tokens(ids)
    assert not any(p.startswith("[") for p in pieces)
    assert set(table_rows(started(MINI, "prompt-tuning", length=12, init="vocabulary", seed=5).leaves["embed"])) != set(
        ids
    )


def test_a_label_start_is_the_mean_of_each_labels_pieces():
    task = Task(train=[{"text": "x", "label": "a"}, {"text": "y", "label": "b"}], test=[{"text": "z", "label": "a"}])
    form = task.format("masked", template="{text} {mask}", label_words={"a": ["hypnotically", "good"], "b": ["bad"]})
    job = make_job(MINI, task, "prompt-tuning", options={"length": 3, "init": "labels"}, form=form)
    embed = METHODS["prompt-tuning"].start(MINI, job).leaves["embed"].detach()
    table = MINI.named_weights()["bert.embeddings.word_embeddings.weight"]
    pieces = MINI.tokenizer("hypnotically good", add_special_tokens=False)["input_ids"]
    assert len(pieces) > 2
    assert torch.allclose(embed[0], table[pieces].mean(0))
    assert torch.equal(embed[1], table[MINI.tokenizer.convert_tokens_to_ids("bad")])
    assert table_rows(embed[2:]) != [None]


def test_a_text_start_is_its_words_and_a_template_may_write_them():
    wanted = MINI.tokenizer("is this good", add_special_tokens=False)["input_ids"]
    option = started(MINI, "prompt-tuning", length=5, init="text", init_text="is this good")
    assert table_rows(option.leaves["embed"].detach()) == [*wanted, *wanted[:2]]
    written = started(MINI, "prompt-tuning", template="{text} {soft:'is this good'} {mask}", init="uniform")
    assert table_rows(written.leaves["embed"].detach()) == wanted
    with pytest.raises(ConfigError, match="init_text"):
        started(MINI, "prompt-tuning", init="text")


def test_a_uniform_start_fills_its_range():
    embed = started(MINI, "prompt-tuning", length=50, init="uniform").leaves["embed"].detach()
    assert embed.abs().max() <= 0.5
    assert float(embed.std()) == pytest.approx(1 / 12**0.5, rel=0.02)


@pytest.mark.parametrize("name", ["foreword-mini", "foreword-mini-causal"])
def test_a_prefix_starts_as_the_activations_of_its_words(name):
    lm = load(name)
    learner = started(lm, "prefix-tuning", length=4, init="text", init_text="this is a nice film")
    ids = torch.tensor(lm.tokenizer("this is a nice", add_special_tokens=False)["input_ids"])
    keys, values = lm.prefix_from_words(ids).sites["self"]
    pair = learner.leaves["pair"].detach()
    assert torch.equal(pair[0], keys)
    assert torch.equal(pair[1], values)
    random = started(lm, "prefix-tuning", length=4, init="random").leaves["pair"].detach()
    assert not torch.allclose(random, pair)
    assert float(random[0, 0].std()) == pytest.approx(float(pair[0, 0].std()), rel=0.5)


def test_the_network_of_a_prefix_starts_at_the_activations_and_folds_away_exactly(tmp_path):
    """The stored prefix scores bit for bit as the one the network makes, and holds 2*N*P*H*K numbers."""
    lm = load("foreword-tiny")
    job = make_job(lm, TASK, "prefix-tuning", options={"length": 3, "reparametrise": True, "hidden": 8})
    learner = METHODS["prefix-tuning"].start(lm, job)
    direct = METHODS["prefix-tuning"].start(lm, replace(job, config=replace(job.config, reparametrise=False)))
    made = learner.build(learner.leaves)
    assert torch.equal(made.sites["self"][0].detach(), direct.leaves["pair"][0].detach())
    artefact = train(lm, TASK, "prefix-tuning", length=3, reparametrise=True, hidden=8, steps=3).artefact
    dims = lm.dims
    assert artefact.bytes_stored == 4 * 2 * dims.layers * 3 * dims.heads * dims.head_size
    assert artefact.numbers_trained > artefact.bytes_stored // 4
    again = type(artefact).load(artefact.save(tmp_path / "x"))
    rows = TASK.test
    assert torch.equal(score_rows(lm, [(artefact, rows)])[0], score_rows(lm, [(again, rows)])[0])
    assert not torch.equal(artefact.value.sites["self"][0], made.sites["self"][0].detach())


def test_prefix_tuning_says_where_the_text_starts():
    lm = load("foreword-tiny")
    after, zero = (
        train(lm, TASK, "prefix-tuning", length=3, steps=1, start=s).artefact.value for s in ("after", "zero")
    )
    assert isinstance(after, PrefixPrompt) and isinstance(zero, PrefixPrompt)
    assert (after.start, zero.start) == (3, 0)
    with pytest.raises(ConfigError, match="encoders"):
        started(load("foreword-tiny-causal"), "prefix-tuning", start="zero")


@pytest.mark.parametrize("name", ["foreword-tiny", "foreword-tiny-causal"])
def test_lora_folded_scores_as_pefts_own_model(name):
    """The artefact's merged weights against the forward pass of the model that PEFT changed."""
    lm = load(name, dtype=torch.float64)
    job = make_job(lm, TASK, "lora", options={"rank": 2, "alpha": 3.0})
    learner = METHODS["lora"].start(lm, job)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for leaf in learner.leaves.values():
            leaf.copy_(torch.randn(leaf.shape, generator=generator) * 0.3)
    encoded = encode_rows(lm, job.format, TASK.test)
    zeros = torch.zeros(len(encoded), dtype=torch.long)
    through_peft = score(learner.lm.with_weights(learner.build(learner.leaves).by_name), encoded, None, zeros)
    merged = stacked_scores(lm, [learner.saved(learner.leaves)], [encoded], 10_000)[0]
    plain = score(lm, encoded, stack([SoftPrompt(torch.zeros(0, lm.dims.width))], lm.embed), zeros)
    assert torch.allclose(merged, through_peft, atol=1e-6)
    assert not torch.allclose(merged, plain, atol=1e-3)
    names = set(lm.named_weights())
    assert set(learner.saved(learner.leaves).factors) <= names


def test_manual_refuses_slots_and_prefix_refuses_them_too():
    for method in ("manual", "prefix-tuning"):
        form = TASK.format("masked", template="{text} {soft:3} {mask}")
        with pytest.raises(ConfigError, match="soft"):
            train(MINI, TASK, method, form=form)
