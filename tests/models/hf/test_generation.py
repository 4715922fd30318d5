"""Generation with prefixes and soft prompts gives, token for token, what the words give.

python -m pytest tests/models/hf/test_generation.py
"""

import pytest
import torch

from foreword.core.inject import inject_prefix
from foreword.core.prompts import SoftPrompt, stack
from foreword.errors import ConfigError, ModelError
from foreword.models.hf.lm import HFLM
from tests.models.zoo import CAUSAL, batch, build, frozen, sentences

NEW = 12
PAD = {"pad_token_id": 1, "max_new_tokens": NEW}
BEAMS = {"num_beams": 3, "num_return_sequences": 2}


def library(family: str, rows: list[list[int]], **options: object) -> list[list[int]]:
    """The library's own generation, one unpadded row of words at a time."""
    model = build(family)
    out = []
    for row in rows:
        ids = torch.tensor([row])
        new = model.generate(ids, attention_mask=torch.ones_like(ids), **PAD, **options)
        out += new[:, len(row) :].tolist()
    return [[*ids, *[1] * (NEW - len(ids))] for ids in out]


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("options", [{"do_sample": False}, BEAMS], ids=["greedy", "beams"])
def test_mixed_prefixes_generate_what_their_words_generate(family: str, options: dict[str, object]) -> None:
    lm = frozen(family)
    words = sentences(3, seed=11, shortest=2, longest=8)
    rows = sentences(6, seed=12)
    bank = stack([lm.prefix_from_words(torch.tensor(w)) for w in words], lm.embed)
    expected = library(family, [words[b % 3] + row for b, row in enumerate(rows)], **options)
    for side in ("left", "right"):
        inputs, _ = batch(lm, rows, side, extra=1)
        new = lm.generate(inputs, inject_prefix(bank, torch.arange(6) % 3, lm.dtype), **PAD, **options)
        padded = torch.full((new.shape[0], NEW), 1)
        padded[:, : new.shape[1]] = new
        assert padded.tolist() == expected
    other = lm.generate(inputs, inject_prefix(bank, (torch.arange(6) + 1) % 3, lm.dtype), **PAD, **options)
    assert other.tolist() != new.tolist()


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma3"])
def test_a_static_cache_changes_nothing(family: str) -> None:
    lm = frozen(family)
    rows = sentences(3, seed=14)
    bank = stack([lm.prefix_from_words(torch.tensor([5, 6, 7]))], lm.embed)
    inputs, _ = batch(lm, rows, "left")
    prefix = inject_prefix(bank, torch.zeros(3, dtype=torch.long), lm.dtype)
    plain = lm.generate(inputs, prefix, **PAD, do_sample=False)
    static = lm.generate(inputs, prefix, **PAD, do_sample=False, cache_implementation="static")
    assert plain.tolist() == static.tolist()
    assert isinstance(lm, HFLM)
    assert plain.tolist() == lm.with_kernel("sdpa").generate(inputs, prefix, **PAD, do_sample=False).tolist()


def test_soft_prompts_generate_what_their_words_generate() -> None:
    lm = frozen("llama")
    rows = sentences(3, seed=13, shortest=5)
    bank = stack([SoftPrompt(lm.embed(torch.tensor([row[:3]]))[0]) for row in rows], lm.embed)
    slots = [[0, 1, 2] + [-1] * (len(row) - 3) for row in rows]
    inputs, _ = batch(lm, [[9, 9, 9, *row[3:]] for row in rows], "right", bank=bank, slots=slots)
    new = lm.generate(inputs, **PAD, do_sample=False)
    assert new.tolist() == [row[: new.shape[1]] for row in library("llama", rows, do_sample=False)]


def test_refusals_name_the_model_and_the_way_out() -> None:
    masked = frozen("bert")
    inputs, _ = batch(masked, [[4, 5, 6]])
    with pytest.raises(ModelError, match="masked model, which cannot generate"):
        masked.generate(inputs)
    causal = frozen("gpt2")
    inputs, _ = batch(causal, [[4, 5, 6]])
    with pytest.raises(ConfigError, match="use greedy decoding, sampling"):
        causal.generate(inputs, max_new_tokens=2, prompt_lookup_num_tokens=2)
