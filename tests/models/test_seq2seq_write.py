"""Encoder-decoder models write what the library writes from explicit words, in any batch, by any loop.

python -m pytest tests/models/test_seq2seq_write.py
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache

from foreword.core.format import Decoding
from foreword.core.inject import inject_prefix
from foreword.core.prompts import PrefixPrompt, stack
from foreword.models.decoding import Chooser, IncrementalText, Sampling, choose
from foreword.models.encoding.batch import Encoded, SourceRow, collate, prepare
from foreword.models.generate import Ask, GeneratedText, write
from tests.compiled import graphs_of, lines_of
from tests.models.seq2seq_zoo import END, FAMILIES, PAD, START, build, frozen, inputs_of, logits
from tests.models.test_seq2seq import FP64, ONE, blind, kept, mixed_prompts, random_prefix
from tests.models.zoo import gap, sentences

NEW = 10
PLAIN = {"max_new_tokens": NEW}
BEAMS = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.7, "early_stopping": True}


def library(model: Any, source: list[int], opening: list[int], mask: Any = None, **options: Any) -> list[list[int]]:
    """The library's own generation from one row of words, padded to `NEW` after its end.

    Its cache is given: the one that it makes for T5 has as many layers as the encoder.
    """
    model.generation_config = type(model.generation_config)(
        pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=opening[0]
    )
    with torch.no_grad():
        encoded = model.get_encoder()(input_ids=torch.tensor([source]), attention_mask=mask)
    new = model.generate(
        encoder_outputs=encoded, attention_mask=torch.ones(1, len(source), dtype=torch.long),
        decoder_input_ids=torch.tensor([opening]), past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
        **PLAIN, **options,
    )[:, len(opening) :].tolist()  # fmt: skip
    ended = [ids[: ids.index(END) + 1] if END in ids else ids for ids in new]  # its beams repeat the end as padding
    return [[*ids, *[PAD] * (NEW - len(ids))] for ids in ended]


def padded(ids_XL: torch.Tensor) -> list[list[int]]:
    return [[*row, *[PAD] * (NEW - len(row))] for row in ids_XL.tolist()]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{"do_sample": False}, BEAMS], ids=["greedy", "beams"])
def test_prefixes_of_words_write_what_the_words_write(family: str, options: dict[str, Any]) -> None:
    """Encoder and cross prefixes of other lengths in each row, and openings of other lengths."""
    lm, model = frozen(family), build(family)
    words = sentences(3, seed=31, shortest=2, longest=8)
    sources = sentences(6, seed=32)
    openings = [[START, *row] for row in sentences(6, seed=33, shortest=1, longest=4)]
    expected = []
    for b, (source, opening) in enumerate(zip(sources, openings, strict=True)):
        own = words[b % 3]
        expected += library(model, own + source, opening, blind(len(own), len(source)), **options)
    made = [kept(lm.prefix_from_words(torch.tensor(w)), "encoder", "cross") for w in words]
    bank, task_B = stack(made, lm.embed), torch.arange(6) % 3
    inputs, prefix = inputs_of(lm, sources, openings, bank=bank, task_B=task_B, extra=1)
    assert padded(lm.generate(inputs, prefix, **PLAIN, **options)) == expected
    wrong = inject_prefix(bank, (task_B + 1) % 3, lm.dtype)
    assert padded(lm.generate(inputs, wrong, **PLAIN, **options)) != expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{"do_sample": False}, BEAMS], ids=["greedy", "beams"])
def test_decoder_prefixes_write_what_the_words_write(family: str, options: dict[str, Any]) -> None:
    """The decoder's own words in front, of several lengths, against sources that are those words."""
    lm, model = frozen(family), build(family)
    words = sentences(4, seed=34, shortest=1, longest=7)
    openings = [[START, *row] for row in sentences(4, seed=35, shortest=1, longest=4)]
    expected = [
        ids
        for own, opening in zip(words, openings, strict=True)
        for ids in library(model, own, own + opening, **options)
    ]
    bank = stack([kept(lm.prefix_from_words(torch.tensor(w)), "self") for w in words], lm.embed)
    inputs, prefix = inputs_of(lm, words, openings, bank=bank)
    assert padded(lm.generate(inputs, prefix, **PLAIN, **options)) == expected
    assert padded(lm.generate(inputs, **PLAIN, **options)) != expected


STATIC = ("t5", "bart")


def static_and_plain(family: str, **options: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Rows with prefixes of other lengths, written with a static cache and without."""
    lm = frozen(family)
    prompts = [random_prefix(lm, n, torch.Generator().manual_seed(36)) for n in (2, 5)]
    inputs, prefix = inputs_of(lm, sentences(2, seed=37), [[START], [START, 9]], bank=stack(prompts, lm.embed), extra=1)
    static = lm.generate(inputs, prefix, **PLAIN, do_sample=False, cache_implementation="static", **options)
    return static.tolist(), lm.generate(inputs, prefix, **PLAIN, do_sample=False).tolist()


@pytest.mark.parametrize("family", STATIC)
def test_a_static_cache_changes_nothing(family: str) -> None:
    static, plain = static_and_plain(family)
    assert static == plain


@pytest.mark.slow
def test_compiled_decoding_changes_nothing() -> None:
    told = lines_of(__file__)
    assert told[-len(STATIC) :] == [f"{family} compiled, the same: True" for family in STATIC]


def asks_of(lm: Any, count: int, decoding: Decoding, seed: int) -> tuple[list[Ask], list[Any]]:
    """Rows of mixed prompts, as the writer has them: every sixth has slots in its source and in its decoder."""
    draw = torch.Generator().manual_seed(seed)
    prompts = mixed_prompts(lm, draw)
    sources = sentences(count, seed=seed + 1, shortest=5, longest=20)
    openings = [[START, *row] for row in sentences(count, seed=seed + 2, shortest=3, longest=5)]
    asks = []
    for b, (source, opening) in enumerate(zip(sources, openings, strict=True)):
        slots = [np.full(len(row), -1) for row in (source, opening)]
        if b % 6 == 2:
            slots[0][1:4], slots[1][1:3] = [0, 1, 2], [3, 4]
        own = prompts[b % 6]
        encoded = Encoded(
            np.array(opening), slots[1], len(opening) - 1, None, source=SourceRow(np.array(source), slots[0])
        )
        prefix = own if isinstance(own, PrefixPrompt) else None
        seeds = tuple(range(100 * b, 100 * b + decoding.num_return_sequences))
        asks.append(Ask(encoded, prefix, b % 6, decoding, seeds, len(seeds)))
    return asks, prompts


def written(lm: Any, asks: list[Ask], prompts: list[Any]) -> dict[tuple[int, int], GeneratedText]:
    found: dict[tuple[int, int], GeneratedText] = {}

    def hear(row: int, sample: int, text: GeneratedText) -> int:
        found[row, sample] = text
        return 1 << 30

    write(lm, asks, stack(prompts, lm.embed), hear)
    return found


def recomputed(lm: Any, ask: Ask, prompts: list[Any], seed: int) -> str:
    """The same text by a plain loop that reads everything again at each step, through the training path."""
    chooser = Chooser.of(Sampling.of(ask.decoding, seed))
    bank, ids = stack([prompts[ask.task]], lm.embed), []
    for _ in range(ask.decoding.max_new_tokens):
        row = replace(
            ask.encoded,
            ids_S=np.array([*ask.encoded.ids_S, *ids]),
            slot_S=np.array([*ask.encoded.slot_S, *[-1] * len(ids)]),
            answer=ask.encoded.answer + len(ids),
        )
        inputs, prefix = prepare(lm, collate([row]), bank, ONE)
        logits_BV = lm.vocabulary_logits(lm.hidden_at(inputs, prefix)[:, 0])
        ids.append(int(choose(logits_BV, [chooser])[0]))
        if ids[-1] in lm.stops:
            break
    writer = IncrementalText(lm.tokenizer, ask.encoded.text_ids)  # bytes that are no character go by what stands before
    for id in ids:
        if id not in lm.stops:
            writer.add(id)
    writer.end()
    return writer.text


def same(one: GeneratedText, other: GeneratedText) -> bool:
    """The same text, token for token; the likelihood's last digits depend on the batch."""
    close = abs(one.mean_logprob - other.mean_logprob) < FP64
    return close and replace(one, mean_logprob=0.0) == replace(other, mean_logprob=0.0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampling"])
def test_the_writer_s_batches_write_what_each_row_writes_alone(family: str, sampled: bool) -> None:
    """Token for token, and as a loop without any cache writes it: prompts of six forms and lengths, 32 rows."""
    lm = frozen(family, torch.float64)
    decoding = Decoding(NEW, do_sample=sampled, temperature=1.5, top_p=0.95, num_return_sequences=2 if sampled else 1)
    asks, prompts = asks_of(lm, 32, decoding, 41)
    together = written(lm, asks, prompts)
    for b in range(0, 32, 5):  # every form of prompt
        alone = written(lm, [asks[b]], prompts)
        for sample, seed in enumerate(asks[b].seeds):
            assert same(together[b, sample], alone[0, sample])
            assert together[b, sample].text == recomputed(lm, asks[b], prompts, seed)
    backwards = written(lm, asks[::-1], prompts)
    assert all(same(text, together[31 - row, sample]) for (row, sample), text in backwards.items())
    swapped = written(lm, [replace(a, task=(a.task + 1) % 6, prefix=None) for a in asks[3:6]], prompts)
    assert [swapped[i, 0].text for i in range(3)] != [together[i, 0].text for i in range(3, 6)]


@pytest.mark.parametrize("family", FAMILIES)
def test_training_and_generation_give_the_same_logits(family: str) -> None:
    """Every step of the library's loop, with its cache, against one pass over the text that it wrote."""
    lm: Any = frozen(family, torch.float64)
    draw = torch.Generator().manual_seed(51)
    prompts = [random_prefix(lm, 4, draw), random_prefix(lm, 1, draw, "self"), random_prefix(lm, 2, draw, "encoder")]
    sources, openings = sentences(3, seed=52), [[START, 9, 10], [START], [START, 11]]
    bank = stack(prompts, lm.embed)
    inputs, prefix = inputs_of(lm, sources, openings, bank=bank)
    raw: list[torch.Tensor] = []

    def hear(ids_BS: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        raw.append(scores_BV.clone())
        return scores_BV

    new = lm.generate(inputs, prefix, **PLAIN, eos_token_id=None, do_sample=False, logits_processor=[hear])
    whole = [[*opening, *ids] for opening, ids in zip(openings, new.tolist(), strict=True)]
    again, prefix = inputs_of(lm, sources, whole, bank=bank)
    hidden_BRD = lm.hidden_at(again, prefix)
    for b, opening in enumerate(openings):
        ours = lm.vocabulary_logits(hidden_BRD[b, len(opening) - 1 : len(opening) - 1 + NEW])
        # transformers' loop hands on logits in fp32
        assert gap([ours.float()], [torch.stack([step[b] for step in raw]).float()]) < 1e-6
    assert logits(build(family), sources[0], whole[0]).shape[0] == len(whole[0])


if __name__ == "__main__":
    before = 0
    for family in STATIC:
        (static, plain), graphs = graphs_of(lambda how, family=family: static_and_plain(family, compile_config=how))
        done = "compiled" if graphs > before else "not compiled"
        print(f"{family} {done}, the same: {static == plain}")
        before = graphs
