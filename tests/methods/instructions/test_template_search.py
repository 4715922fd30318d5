"""python -m pytest tests/methods/instructions/test_template_search.py"""

import random

import pytest
import torch
from transformers import AutoModelForMaskedLM

from foreword.core.template import Template
from foreword.errors import ConfigError
from foreword.methods.instructions.infill import ANSWER, Blank, Filling, Infiller, shapes
from foreword.methods.registry import train
from foreword.models.hf.loading import EMBEDDED
from foreword.models.load import load
from foreword.models.tiny import tiny
from foreword.training.answer_log import AnswerLog
from tests.instructed import instruct_lm
from tests.planted import FILLER, NOUNS, planted_task
from tests.seeds import new_seed


def drawn(seed: int) -> list[tuple[dict[str, str], str]]:
    rng = random.Random(seed)
    return [({"text": " ".join(rng.choices(NOUNS + FILLER, k=6))}, rng.choice(["good", "bad"])) for _ in range(3)]


def test_the_best_word_is_that_of_the_summed_log_probabilities():
    """One gap of one piece against a plain loop over examples, and two gaps never above one piece's best sum."""
    seed = new_seed()
    lm, examples = load("foreword-mini"), drawn(seed)
    plain = AutoModelForMaskedLM.from_pretrained(EMBEDDED, attn_implementation="eager").float().eval()
    best = Infiller(lm, examples, 3, AnswerLog(), "x").fill(("text", Blank(1), ANSWER))
    total = torch.zeros(lm.dims.vocab)
    for fields, answer in examples:
        ids = torch.tensor([lm.tokenizer(f"{fields['text']} {lm.tokenizer.mask_token} {answer}")["input_ids"]])
        with torch.no_grad():
            logits = plain(ids).logits[0, (ids[0] == lm.tokenizer.mask_token_id).nonzero()[0, 0]]
        logits[lm.tokenizer.all_special_ids] = -torch.inf
        total += logits.log_softmax(-1)
    wanted = total.topk(3)
    assert [f.logprob for f in best] == pytest.approx(wanted.values.tolist(), abs=1e-3), seed
    assert [f.words[0] for f in best] == [lm.tokenizer.decode([i]).strip() for i in wanted.indices.tolist()], seed
    two = Infiller(lm, examples, 3, AnswerLog(), "x").fill(("text", Blank(1), ANSWER, Blank(1)))
    assert two == sorted(two, key=lambda f: -f.logprob)


def test_a_causal_model_reads_what_stands_before_the_gap_only():
    lm = tiny("causal", dtype="float64")
    examples = drawn(1)
    others = [(fields, "else") for fields, _ in examples]
    shape = ("text", Blank(2), ANSWER)
    one, other = (Infiller(lm, some, 2, AnswerLog(), "x").fill(shape) for some in (examples, others))
    assert [f.words for f in one] == [f.words for f in other]
    masked = tiny("masked", dtype="float64")
    one, other = (Infiller(masked, some, 2, AnswerLog(), "x").fill(shape) for some in (examples, others))
    assert [f.logprob for f in one] != [f.logprob for f in other]


@pytest.mark.parametrize(
    ("fields", "kind", "words", "source"),
    [
        (("text",), "masked", ("It was", "!"), "{text|shorten} It was {mask}!"),
        (("text",), "causal", ("It {was}",), "{text|shorten} It {{was}} {answer}"),
        (("a", "b"), "masked", (".", ", so"), "{a|shorten}. {mask}, so {b}"),
        (("a", "b"), "causal", (" and".strip(), "?"), "{a|shorten} and {b}? {answer}"),
    ],
)
def test_fillings_are_templates(fields, kind, words, source):
    found = next(s for s in shapes(fields, kind, 3) if sum(isinstance(p, Blank) for p in s) == len(words))
    template = Filling(found, words, 0.0).template(kind)
    assert template.source == source
    assert Template.parse(source) == template


@pytest.mark.parametrize("name", ["foreword-tiny", "foreword-tiny-causal"])
def test_what_is_chosen_is_not_below_the_template_as_written(name):
    """On the rows of the choice, where every cell was read; a masked proposer serves a causal model too."""
    seed = new_seed()
    lm, task = load(name), planted_task(seed, train=24, validation=0, test=8)
    options = {"candidates": 8, "beam": 3, "longest": 2, "examples": 4, "budget": 9 * 24, "exhaustive": True}
    for proposer in ("self", "foreword-tiny"):
        artefact = train(lm, task, "template-search", seed=seed, proposer=proposer, **options).artefact
        found, whole = artefact.metrics["search"], artefact.metrics["exhaustive"]
        assert found["evaluations"] == found["candidates"] * found["selection_rows"]
        assert whole["choice_rank"] == 1 and whole["regret"] == 0.0 and whole["further_evaluations"] == 0
        assert whole["spearman"] == pytest.approx(1.0, abs=0.01)
        assert artefact.any_model and artefact.format.template.fields == ("text",)
        if lm.kind == "causal":
            assert artefact.format.template.parts[-1] == artefact.format.template.answer


def test_slots_are_refused():
    lm, task = load("foreword-tiny-causal"), planted_task(1, train=12, validation=0)
    form = task.format("causal", "{soft:3} {text} {answer}")
    with pytest.raises(ConfigError, match=r"without \{soft"):
        train(lm, task, "template-search", form=form)


@pytest.mark.parametrize("proposer", ["self", "foreword-tiny", "foreword-tiny-causal"])
def test_a_chat_is_filled_in_the_user_s_turn_by_any_proposer(proposer):
    lm, task = instruct_lm("chatml"), planted_task(1, train=12, validation=0, test=4)
    source = [{"role": "system", "content": "Be {{brief}}."}, {"role": "user", "content": "{text} Which?"}]
    options = {"candidates": 6, "beam": 3, "longest": 2, "examples": 3, "budget": 60, "proposer": proposer}
    artefact = train(lm, task, "template-search", form=task.format("causal", source), **options).artefact
    texts = [one["text"] for one in artefact.metrics["candidates"] if one["text"]]
    assert texts and len(texts) == len(set(texts)) and all(text.startswith("{text") for text in texts)
    assert not any("answer}" in text or "brief" in text for text in texts)
    system, user = artefact.format.template.source
    assert system == source[0] and user["role"] == "user" and user["content"] in [*texts, source[1]["content"]]


@pytest.mark.parametrize("kind", ["masked", "causal"])
@pytest.mark.parametrize("fields", [("answer",), ("x", "answer"), ("answer", "mask")])
def test_a_field_may_be_called_answer(kind, fields):
    """The shapes, their words and their log-probabilities are those of fields of other names."""
    lm = tiny(kind, dtype="float64")
    plain = [f"field{n}" for n in range(len(fields))]
    texts = [[" ".join(random.Random(n).choices(NOUNS, k=3)) for _ in fields] for n in range(3)]

    def filled(names):
        examples = [(dict(zip(names, some, strict=True)), "good") for some in texts]
        infiller = Infiller(lm, examples, 2, AnswerLog(), "x")
        return [filling for shape in shapes(names, kind, 1) for filling in infiller.fill(shape)]

    found, wanted = filled(fields), filled(plain)
    assert [(f.words, f.logprob) for f in found] == [(f.words, f.logprob) for f in wanted] and len(found) > 1
    for filling in found:
        template = Template.parse(filling.template(kind).source)
        assert sorted(template.fields) == sorted(fields) and template.answer is not None
