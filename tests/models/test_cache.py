"""Rows that go on in a cache give, at every step, the logits of the whole row read by the library.

python -m pytest tests/models/test_cache.py
"""

import random

import pytest
import torch

from foreword.core import kv_cache as cache_of_rows
from foreword.core.kv_cache import RowCache
from foreword.core.prompts import PrefixPrompt, SoftPrompt
from foreword.errors import ModelError
from foreword.models.base import Inputs
from foreword.models.hf.lm import HFLM
from tests.models.zoo import CAUSAL, VOCAB, build, frozen, gap, logits, sentences


def inputs_of(lm: HFLM, parts: list[list[int]]) -> Inputs:
    """Rows of new pieces, padded on the right; the last real column of each is read."""
    longest = max(map(len, parts))
    ids_BS = torch.tensor([part + [9] * (longest - len(part)) for part in parts])
    length_B = torch.tensor([len(part) for part in parts])
    column_S = torch.arange(longest)
    return Inputs(
        embed_BSD=lm.embed(ids_BS),
        attend_BS=column_S < length_B[:, None],
        position_BS=column_S.expand(len(parts), -1),
        read_BR=(length_B - 1)[:, None],
    )


@torch.no_grad()
def extend(lm: HFLM, cache: RowCache, first: int, parts: list[list[int]]) -> list[torch.Tensor]:
    cached = cache.next(first, [len(part) for part in parts])
    hidden_BRD = lm.hidden_at(inputs_of(lm, parts), cached=cached)
    return [*lm.vocabulary_logits(hidden_BRD[:, 0])]


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
def test_rows_come_go_on_and_leave_at_random(family, kernel, dtype, shared, monkeypatch):
    """Prefixes of any length or none, rows added and dropped while others go on; every step against whole rows. Where
    prefixes are shared, a few of them are each kept once for all its rows."""
    monkeypatch.setattr(cache_of_rows, "SHARED", 2)
    if kernel == "sdpa" and family == "gemma2":
        pytest.skip("soft caps are eager's alone")
    lm = frozen(family, dtype)
    assert isinstance(lm, HFLM)
    lm = lm.with_kernel(kernel)
    model = build(family, dtype)
    rng = random.Random(family)
    draw = iter(sentences(400, seed=rng.randrange(1000), shortest=1, longest=7))
    cache, rows = lm.cache(5), []
    common = [next(draw) + next(draw) for _ in range(2)]
    heads: list[list[int] | None] = []  # of each row, the prefix that it shares
    ours, whole, sizes, together = [], [], set(), 0
    for step in range(12):
        # Rows leave anywhere; the last takes the place.
        while rows and (rng.random() < 0.3 or max(map(len, rows)) > 45):
            gone = rng.randrange(len(rows))
            cache.drop(gone)
            for told in (rows, heads):
                told[gone] = told[-1]
                told.pop()
        first = len(rows)
        added = []
        while len(rows) < 5 and (rng.random() < 0.4 or (shared and len(rows) < 3)):
            words = rng.choice([[], next(draw), *common * 2 * shared])
            prefix = lm.prefix_from_words(torch.tensor(words)) if words else None
            cache.add(prefix, shared=tuple(words) if shared else None)
            heads.append(words if shared and len(words) >= 2 else None)
            text = next(draw)
            rows.append(words + text)
            added.append(text)
        if added:
            ours += extend(lm, cache, first, added)
            whole += [logits(model, row)[-1] for row in rows[first:]]
        if rows:
            new = [[rng.randrange(4, VOCAB)] for _ in rows]
            if step == 7:  # several columns at once, not as many in each row
                new = [next(draw) for _ in rows]
            rows = [row + more for row, more in zip(rows, new, strict=True)]
            ours += extend(lm, cache, 0, new)
            whole += [logits(model, row)[-1] for row in rows]
            sizes.add(len(rows))
        kept = [head for head in heads if head is not None]
        assert cache.lengths == [len(row) - len(head or []) for row, head in zip(rows, heads, strict=True)]
        assert {*cache.trunks} == {tuple(head) for head in kept}
        together += len(kept) > len(cache.trunks)
    assert len(sizes) > 1
    assert bool(together) == shared
    # Families that cast to fp32 inside reach no more in fp64 (Decisions, exactness).
    assert gap(ours, whole) < (2e-6 if dtype == torch.float64 else 1e-5)
    assert gap(ours[1:], whole[:-1]) > 1e-2  # of another step


def test_a_soft_prompt_compiled_goes_on_as_its_vectors():
    lm = frozen("llama", torch.float64)
    assert isinstance(lm, HFLM)
    soft = SoftPrompt(torch.randn(3, lm.dims.width, dtype=torch.float64))
    cache = lm.cache(1)
    cache.add(lm.prefix_from_embeddings(soft.embed_PD))
    text, more = [5, 6, 7], [8]
    extend(lm, cache, 0, [text])
    [ours] = extend(lm, cache, 0, [more])
    embed_BSD = torch.cat([soft.embed_PD, lm.embed(torch.tensor([text + more]))[0]])[None]
    positions = torch.arange(7)[None]
    with torch.no_grad():
        hidden = lm.hidden_at(Inputs(embed_BSD, positions >= 0, positions, positions[:, -1:]))
        [whole] = lm.vocabulary_logits(hidden[:, 0])
    assert float((ours - whole).abs().max()) < 1e-10
    with torch.no_grad():
        every = lm.piece_logits(hidden[:, 0], torch.arange(VOCAB))[0]
    assert torch.equal(whole, every)


def test_room_grows_and_is_bounded():
    cache = RowCache(layers=2, rows=3)
    prefix = PrefixPrompt({"self": (torch.randn(2, 5, 4, 8), torch.randn(2, 5, 4, 8))}, 5)
    for _ in range(3):
        cache.add(prefix)
    small = cache.bytes
    assert small == 2 * 2 * 3 * 4 * 64 * 8 * 4
    cache.next(0, [100, 1, 1])
    assert cache.bytes == 2 * small
    assert cache.lengths == [105, 6, 6]
    keys = cache._keys[1]
    assert keys is not None
    assert torch.equal(keys[2, :, :5], prefix.sites["self"][0][1].transpose(0, 1))
    with pytest.raises(AssertionError, match="room"):
        cache.add(prefix)


def test_families_without_the_seam_say_so():
    lm = frozen("albert")
    with pytest.raises(ModelError, match="prefix"):
        lm.cache(1)
