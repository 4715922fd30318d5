"""Encoder-decoder models give what the library gives, and prompts and prefixes give what words give.

python -m pytest tests/models/test_seq2seq.py

The references are plain loops over explicit words through the unmodified model, one unpadded row at a time; every
comparison has a control that must differ.
"""

from typing import Any

import pytest
import torch

from foreword.core.prompts import PrefixPrompt, SoftPrompt, stack
from foreword.errors import ModelError
from foreword.models.base import FrozenLM
from foreword.models.hf import families
from tests.models.seq2seq_zoo import CONFIGS, FAMILIES, START, T5, build, frozen, inputs_of, logits, of_config, read
from tests.models.zoo import gap, sentences

FP32, FP64, MOVED = 1e-5, 1e-10, 1e-3
ONE = torch.tensor([0])


def targets_of(count: int, seed: int) -> list[list[int]]:
    return [[START, *row] for row in sentences(count, seed=seed, shortest=1, longest=6)]


def blind(words: int, text: int) -> torch.Tensor:
    """An additive 4-D mask in which words in front do not see the text, as the library's eager attention takes it."""
    seen = torch.ones(words + text, words + text, dtype=torch.bool)
    seen[:words, words:] = False
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows_equal_the_library_row_by_row(family: str) -> None:
    model, lm = build(family), frozen(family)
    sources, targets = sentences(6), targets_of(6, 2)
    theirs = [logits(model, s, t) for s, t in zip(sources, targets, strict=True)]
    inputs, _ = inputs_of(lm, sources, targets, extra=3)
    assert gap(read(lm, inputs), theirs) < FP32
    swapped, _ = inputs_of(lm, sources[::-1], targets)
    assert gap(read(lm, swapped), theirs) > MOVED


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["encoder", "decoder", "both"])
def test_soft_prompts_of_word_embeddings_equal_the_words(family: str, where: str) -> None:
    model, lm = build(family), frozen(family)
    sources, targets = sentences(4, shortest=6), [[START, *row] for row in sentences(4, seed=3, shortest=4, longest=7)]
    theirs = [logits(model, s, t) for s, t in zip(sources, targets, strict=True)]
    prompts, slots = [], ([], [])
    noisy: tuple[list[list[int]], list[list[int]]] = ([], [])
    for source, target in zip(sources, targets, strict=True):
        taken = []
        for part, row, on in ((0, source, where != "decoder"), (1, target, where != "encoder")):
            own = row[1:4] if on else []
            first = len(taken)
            slots[part].append([-1, *range(first, first + len(own)), *[-1] * (len(row) - 1 - len(own))])
            noisy[part].append([row[0], *[9] * len(own), *row[1 + len(own) :]])
            taken += own
        prompts.append(SoftPrompt(lm.embed(torch.tensor([taken]))[0]))
    inputs, _ = inputs_of(lm, *noisy, bank=stack(prompts, lm.embed), slots=slots, extra=1)
    assert gap(read(lm, inputs), theirs) < FP32
    moved = [SoftPrompt(p.embed_PD.roll(1, 0)) for p in prompts]
    inputs, _ = inputs_of(lm, *noisy, bank=stack(moved, lm.embed), slots=slots)
    assert gap(read(lm, inputs), theirs) > MOVED


def kept(prompt: PrefixPrompt, *sites: str) -> PrefixPrompt:
    return PrefixPrompt({site: prompt.sites[site] for site in sites}, prompt.start)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [1, 5, 9])
def test_encoder_and_cross_prefixes_of_words_equal_the_words(family: str, length: int) -> None:
    """The library reads [words; text] with a mask in which the words do not see the text; the decoder sees all."""
    model, lm = build(family), frozen(family)
    words = sentences(1, seed=5, shortest=length, longest=length)[0]
    sources, targets = sentences(4, seed=6), targets_of(4, 7)
    theirs = [logits(model, words + s, t, blind(length, len(s))) for s, t in zip(sources, targets, strict=True)]
    prompt = kept(lm.prefix_from_words(torch.tensor(words)), "encoder", "cross")
    inputs, prefix = inputs_of(lm, sources, targets, bank=stack([prompt], lm.embed), task_B=ONE.expand(4), extra=2)
    assert gap(read(lm, inputs, prefix), theirs) < FP32
    for site in ("encoder", "cross"):  # either alone is something else
        half = stack([kept(prompt, site)], lm.embed)
        inputs, prefix = inputs_of(lm, sources, targets, bank=half, task_B=ONE.expand(4))
        assert gap(read(lm, inputs, prefix), theirs) > MOVED
    early = stack([PrefixPrompt(prompt.sites, 0)], lm.embed)
    inputs, prefix = inputs_of(lm, sources, targets, bank=early, task_B=ONE.expand(4))
    assert gap(read(lm, inputs, prefix), theirs) > MOVED


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [1, 5, 9])
def test_decoder_prefix_of_words_equals_the_words(family: str, length: int) -> None:
    """The library's decoder reads [words; text]; what it reads of the encoder are the same words, as in the capture."""
    model, lm = build(family), frozen(family)
    words = sentences(1, seed=8, shortest=length, longest=length)[0]
    targets = targets_of(4, 9)
    theirs = [logits(model, words, words + t)[length:] for t in targets]
    prompt = kept(lm.prefix_from_words(torch.tensor(words)), "self")
    bank = stack([prompt], lm.embed)
    inputs, prefix = inputs_of(lm, [words] * 4, targets, bank=bank, task_B=ONE.expand(4), extra=2)
    assert gap(read(lm, inputs, prefix), theirs) < FP32
    assert gap(read(lm, inputs), theirs) > MOVED
    other = stack([kept(lm.prefix_from_words(torch.tensor([i + 1 for i in words])), "self")], lm.embed)
    inputs, prefix = inputs_of(lm, [words] * 4, targets, bank=other, task_B=ONE.expand(4))
    assert gap(read(lm, inputs, prefix), theirs) > MOVED


def random_prefix(lm: FrozenLM, length: int, draw: torch.Generator, *sites: str) -> PrefixPrompt:
    made = {}
    for site in sites or tuple(lm.sites):
        own = lm.sites[site]
        shape = (2, own.layers, length, own.heads, own.head_size)
        made[site] = tuple(torch.randn(shape, generator=draw, dtype=lm.dtype))
    return PrefixPrompt(made, length)


def mixed_prompts(lm: FrozenLM, draw: torch.Generator) -> list[Any]:
    """Prompts of every form, some at some sites alone, and none at all."""
    soft = SoftPrompt(torch.randn(5, lm.dims.width, generator=draw, dtype=lm.dtype))
    return [
        random_prefix(lm, 8, draw),
        random_prefix(lm, 1, draw, "encoder"),
        soft,
        random_prefix(lm, 5, draw, "self"),
        random_prefix(lm, 0, draw),
        random_prefix(lm, 3, draw, "cross", "self"),
    ]


def slots_of(rows: list[list[int]], first: int, count: int) -> list[list[int]]:
    """Slots in the third row of every six, after its first position."""
    return [
        [-1, *range(first, first + count), *[-1] * (len(row) - 1 - count)] if b % 6 == 2 else [-1] * len(row)
        for b, row in enumerate(rows)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_batch_equals_each_row_alone(family: str) -> None:
    lm = frozen(family, torch.float64)
    draw = torch.Generator().manual_seed(8)
    sources = sentences(32, seed=7, shortest=5, longest=20)
    targets = [[START, *row] for row in sentences(32, seed=10, shortest=3, longest=8)]
    prompts = mixed_prompts(lm, draw)
    slots = slots_of(sources, 0, 3), slots_of(targets, 3, 2)
    bank, task_B = stack(prompts, lm.embed), torch.arange(32) % 6
    inputs, prefix = inputs_of(lm, sources, targets, bank=bank, task_B=task_B, slots=slots, extra=1)
    together = read(lm, inputs, prefix)
    alone = []
    for b in range(32):
        own = stack([prompts[b % 6]], lm.embed)
        one, its = inputs_of(lm, [sources[b]], [targets[b]], bank=own, task_B=ONE, slots=([slots[0][b]], [slots[1][b]]))
        alone += read(lm, one, its)
    assert gap(together, alone) < FP64
    wrong, prefix = inputs_of(lm, sources, targets, bank=bank, task_B=task_B.roll(1))
    assert gap(read(lm, wrong, prefix), alone) > MOVED


@pytest.mark.parametrize("layers", [(3, 3), (4, 4), (6, 6), (2, 4), (4, 2)])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_every_site_gets_a_gradient_in_every_layer(family: str, layers: tuple[int, int]) -> None:
    config = CONFIGS[family]()
    if family == "t5":
        config.num_layers, config.num_decoder_layers = layers
    else:
        config.encoder_layers, config.decoder_layers = layers
    from foreword.models.hf.tiny_checkpoints import byte_tokenizer
    from foreword.models.load import wrap

    lm = wrap(of_config(config), byte_tokenizer("seq2seq"))
    assert [lm.sites[site].layers for site in ("encoder", "self", "cross")] == [layers[0], layers[1], layers[1]]
    draw = torch.Generator().manual_seed(11)
    prompt = random_prefix(lm, 3, draw)
    leaves = {site: [t.clone().requires_grad_() for t in pair] for site, pair in prompt.sites.items()}
    own = PrefixPrompt({site: (pair[0], pair[1]) for site, pair in leaves.items()}, 3)
    bank = stack([own], lm.embed)
    inputs, prefix = inputs_of(lm, sentences(2), targets_of(2, 12), bank=bank, task_B=ONE.expand(2))
    sum(row.logsumexp(-1).sum() for row in read(lm, inputs, prefix)).backward()
    for pair in leaves.values():
        for leaf in pair:
            assert leaf.grad is not None
            assert bool((leaf.grad.abs().amax(dim=(1, 2, 3)) > 1e-8).all())
            # and at every position, head and number: no part of it is dead
            assert float((leaf.grad != 0).double().mean()) == 1.0


def test_a_prefix_as_far_as_a_bias_reaches_has_its_buckets() -> None:
    """T5's table ends at a distance: a long prefix, whose columns fall into the last bucket, still equals the words."""
    lm, model = frozen("t5"), build("t5")
    words = sentences(1, seed=13, shortest=30, longest=30)[0]
    source, target = sentences(1, seed=14, shortest=20, longest=20)[0], [START, 9, 8]
    prompt = kept(lm.prefix_from_words(torch.tensor(words)), "encoder", "cross")
    inputs, prefix = inputs_of(lm, [source], [target], bank=stack([prompt], lm.embed), task_B=ONE)
    assert gap(read(lm, inputs, prefix), [logits(model, words + source, target, blind(30, 20))]) < FP32
    assert T5["relative_attention_max_distance"] < 30


@pytest.mark.parametrize("family", ["t5-gated", "bart"])
def test_kernels_agree(family: str) -> None:
    lm: Any = frozen(family, torch.float64)
    prompts = mixed_prompts(lm, torch.Generator().manual_seed(15))
    bank = stack(prompts, lm.embed)
    sources, targets = sentences(6, seed=16), targets_of(6, 17)
    for given in (bank, None):
        inputs, prefix = inputs_of(lm, sources, targets, bank=given)
        eager, fused = (read(lm.with_kernel(kernel), inputs, prefix) for kernel in ("eager", "sdpa"))
        assert gap(eager, fused) < FP64


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_layers_change_no_gradient(family: str) -> None:
    lm = frozen(family, torch.float64)
    sources, targets = sentences(3, seed=18), targets_of(3, 19)
    found = []
    for model in (lm, lm.checkpointing(True)):
        draw = torch.Generator().manual_seed(20)
        prompt = random_prefix(lm, 2, draw)
        leaves = [t.requires_grad_() for pair in prompt.sites.values() for t in pair]
        inputs, prefix = inputs_of(model, sources, targets, bank=stack([prompt], lm.embed), task_B=ONE.expand(3))
        sum(row.logsumexp(-1).sum() for row in read(model, inputs, prefix)).backward()
        found.append([leaf.grad for leaf in leaves])
    assert gap(found[0], found[1]) < FP64


def test_a_version_whose_attention_cannot_be_replaced_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families.transformers, "__version__", "5.14.1")
    for family in ("t5", "mt5"):
        with pytest.raises(ModelError, match=r"since transformers 5\.15\.0, and 5\.14\.1 is installed"):
            families.family_of(family, "seq2seq", "x")
    assert families.family_of("bart", "seq2seq", "x").kind == "seq2seq"
