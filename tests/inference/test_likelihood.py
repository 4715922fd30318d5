"""python -m pytest tests/inference/test_likelihood.py

The likelihood of a text against one forward pass of the plain model for every piece, teacher-forced.
"""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from foreword.core.format import Format
from foreword.core.prompts import HardPrompt, SoftPrompt
from foreword.core.template import Template
from foreword.errors import DataError
from foreword.inference.likelihood import LikelihoodRequest, text_likelihoods
from foreword.models.hf.loading import EMBEDDED
from foreword.models.load import load
from foreword.tasks.rows import Row
from tests.planted import FILLER, NOUNS
from tests.seeds import new_seed

NONE = HardPrompt.empty()


def drawn(seed: int, count: int) -> tuple[list[Row], list[str]]:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(NOUNS + FILLER, k=rng.randrange(1, 9))) for _ in range(2 * count)]
    rows = [Row({"text": text}, None, (), f"row {n}") for n, text in enumerate(texts[:count])]
    answers = [text if n % 3 else text.split()[0] for n, text in enumerate(texts[count:])]  # some are one word
    answers[1] = "x"
    return rows, answers


@pytest.fixture(scope="module")
def seed():
    return new_seed()


def test_causal_is_the_teacher_forced_chain_rule(seed):
    lm = load("foreword-mini-causal")
    plain = AutoModelForCausalLM.from_pretrained(EMBEDDED, is_decoder=True, attn_implementation="eager").float().eval()
    rows, answers = drawn(seed, 12)
    sources = ["Say it again.\nIn: {text}\nOut: {answer}", "{text} and then"]
    asked = [LikelihoodRequest(NONE, Format(Template.parse(s)), rows, answers) for s in sources]
    for source, got in zip(sources, text_likelihoods(lm, asked), strict=True):
        for n, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            before = source.replace("{text}", row.fields["text"]).replace(" {answer}", "")
            head = lm.tokenizer(before, add_special_tokens=False)["input_ids"]
            whole = lm.tokenizer(f"{before} {answer}", add_special_tokens=False)["input_ids"]
            assert whole[: len(head)] == head
            start = [i for i in lm.tokenizer("a")["input_ids"][:1] if i in lm.tokenizer.all_special_ids]
            total = 0.0
            for at in range(len(head), len(whole)):  # one pass a piece
                ids = torch.tensor([start + whole[:at]])
                with torch.no_grad():
                    total += float(plain(ids).logits[0, -1].log_softmax(-1)[whole[at]])
            assert float(got.logprob_N[n]) == pytest.approx(total, abs=1e-4 * max(1, abs(total))), (seed, n)
            assert int(got.pieces_N[n]) == len(whole) - len(head)
            assert float(got.mean_N[n]) == pytest.approx(total / (len(whole) - len(head)), rel=1e-4)


def test_masked_is_the_sum_over_its_masks(seed):
    lm = load("foreword-mini")
    plain = AutoModelForMaskedLM.from_pretrained(EMBEDDED, attn_implementation="eager").float().eval()
    rows, answers = drawn(seed, 8)
    [got] = text_likelihoods(
        lm, [LikelihoodRequest(NONE, Format(Template.parse("{text} means {mask}.")), rows, answers)]
    )
    mask = lm.tokenizer.mask_token
    for n, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        alone = lm.tokenizer(f"a {answer}", add_special_tokens=False)["input_ids"][1:]
        text = row.fields["text"] + " means" + f" {mask}" * len(alone) + "."
        ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            logp = plain(ids).logits[0].log_softmax(-1)
        places = (ids[0] == lm.tokenizer.mask_token_id).nonzero()[:, 0]
        total = sum(float(logp[p, i]) for p, i in zip(places, alone, strict=True))
        assert float(got.logprob_N[n]) == pytest.approx(total, abs=1e-4 * max(1, abs(total))), (seed, n)


@pytest.mark.parametrize("name", ["foreword-tiny", "foreword-tiny-causal"])
def test_one_by_one_in_any_batch_and_with_a_prompt_it_is_the_same(name, seed):
    lm = load(name, dtype="float64")
    rows, answers = drawn(seed, 9)
    mark = "{mask}" if lm.kind == "masked" else "{answer}"
    form = Format(Template.parse("{soft:3} Repeat: {text} = " + mark), labels=("a", "b"), words=(("a",), ("b",)))
    prompts = [SoftPrompt(torch.randn(3, 32, dtype=torch.float64)) for _ in range(2)]
    asked = [LikelihoodRequest(p, form, rows, answers) for p in prompts]
    together = text_likelihoods(lm, asked, tokens_per_batch=300)
    for one, prompt in zip(together, prompts, strict=True):
        for n in range(len(rows)):
            [alone] = text_likelihoods(lm, [LikelihoodRequest(prompt, form, rows[n : n + 1], answers[n : n + 1])])
            torch.testing.assert_close(alone.logprob_N[0], one.logprob_N[n], atol=1e-5, rtol=1e-6)
    assert (together[0].logprob_N - together[1].logprob_N).abs().max() > 1e-3, "the prompt is read"
    assert text_likelihoods(lm, [LikelihoodRequest(prompts[0], form, [], [])])[0].logprob_N.shape == (0,)


def test_an_empty_text_is_told_with_its_row():
    lm = load("foreword-tiny-causal")
    rows, answers = drawn(0, 4)
    answers[2] = "  "
    with pytest.raises(DataError, match="row 2: The text '' has no pieces"):
        text_likelihoods(lm, [LikelihoodRequest(NONE, Format(Template.parse("{text}:")), rows, answers)])
