"""Texts of mixed batches are those of each row alone, token for token.

Run: python -m pytest tests/inference/test_generation.py
"""

import random
from dataclasses import replace

import pytest
import torch

from foreword.core.artefact import Artefact
from foreword.core.format import Decoding, Format
from foreword.core.prompts import HardPrompt, PrefixPrompt, Prompt, SoftPrompt
from foreword.core.template import Template
from foreword.errors import ConfigError, DataError, ModelError
from foreword.inference.generation import ALL, encode_to_write, write_rows, write_samples
from foreword.models.base import FrozenLM
from foreword.models.generate import GeneratedText
from foreword.models.hf.lm import HFLM
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import load, wrap
from foreword.models.shared_prefix import shared_columns
from foreword.models.tiny import tiny
from foreword.tasks.rows import Row
from tests.models.zoo import CAUSAL, build

NOTHING = HardPrompt.empty()
WORDS = "ab cd efgh ij klm n opq rst uv w xyz".split()


def model(family: str, dtype: torch.dtype = torch.float64) -> FrozenLM:
    return wrap(build(family, dtype), byte_tokenizer("causal"), kind="causal")


def artefact(lm: FrozenLM, value: Prompt, template: str, decoding: Decoding) -> Artefact:
    form = Format(Template.parse(template), decoding=decoding, max_length=60)
    return Artefact(value, form, "manual", {}, 0, {"name": lm.name, "kind": "causal"}, {}, ("text",))


def rows(count: int, seed: int, longest: int = 9) -> list[Row]:
    rng = random.Random(seed)
    return [Row({"text": " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))[:20]}, None) for _ in range(count)]


def several(lm: FrozenLM, **decoding: object) -> list[tuple[Artefact, list[Row]]]:
    """Artefacts of every form, templates that lead and that do not, and different decodings."""
    torch.manual_seed(3)
    plain = Decoding(7, **decoding)  # type: ignore[arg-type]
    soft = SoftPrompt(torch.randn(4, lm.dims.width, dtype=lm.dtype))
    keys = torch.randn(2, lm.dims.layers, 3, lm.dims.heads, lm.dims.head_size, dtype=lm.dtype)
    return [
        (artefact(lm, NOTHING, "Say: {text}{answer}", plain), rows(5, 1)),
        (artefact(lm, NOTHING, "{text}?{answer}", replace(plain, max_new_tokens=11)), rows(3, 2)),
        (artefact(lm, soft, "{soft:4} {text}:{answer}", plain), rows(4, 3)),
        (artefact(lm, soft, "{text} {soft:2} - {soft:2}{answer}", plain), rows(2, 4)),
        (artefact(lm, PrefixPrompt({"self": (keys[0], keys[1])}, 3), "{text}{answer}", plain), rows(3, 5)),
        (artefact(lm, soft, "go {soft:2} on {text} {soft:2}{answer}", replace(plain, max_new_tokens=3)), rows(1, 6)),
    ]


DRAWN, BEAMS = {"do_sample": True, "seed": 5}, {"num_beams": 3}
EACH = [(family, {}) for family in CAUSAL] + [(f, d) for d in (DRAWN, BEAMS) for f in ("gpt2", "llama", "gemma2")]


@pytest.mark.parametrize(("family", "decoding"), EACH)
def test_a_mixed_batch_writes_what_each_row_writes_alone(family, decoding):
    lm = model(family)
    pairs = several(lm, **decoding)
    together = write_rows(lm, pairs)
    alone = [[write_rows(lm, [(made, [row])])[0][0] for row in some] for made, some in pairs]
    assert together == alone
    assert len({text for some in together for text in some}) > 5  # they differ from each other


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_prefix_is_written_after_whatever_dtype_it_was_learnt_in(dtype):
    lm = model("llama", dtype)
    keys = torch.randn(2, lm.dims.layers, 3, lm.dims.heads, lm.dims.head_size)
    own = keys.to(dtype)
    learnt, cast = (PrefixPrompt({"self": (pair[0], pair[1])}, 3) for pair in (keys, own))
    for decoding in (Decoding(6), Decoding(6, num_beams=2)):
        made = artefact(lm, learnt, "{text}{answer}", decoding)
        words = write_rows(lm, [(made, rows(4, 21))])
        assert words == write_rows(lm, [(replace(made, value=cast), rows(4, 21))])


def by_hand(lm: FrozenLM, made: Artefact, row: Row, steps: int) -> str:
    """Greedy words by whole passes over a growing row, with no cache, no lead and no batch."""
    assert isinstance(lm, HFLM)
    [encoded] = encode_to_write(lm, made.format, [row])
    ids = [int(i) for i in encoded.ids_S]
    start = len(ids)
    with torch.no_grad():
        for _ in range(steps):
            new = int(lm._model(torch.tensor([ids])).logits[0, -1].argmax())
            if new in lm.stops:
                break
            ids.append(new)
    return lm.tokenizer.decode(ids[start:])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_greedy_texts_are_those_of_whole_passes(family):
    lm = model(family)
    made = artefact(lm, NOTHING, "Say: {text}{answer}", Decoding(9))
    some = rows(6, 9)
    assert write_rows(lm, [(made, some)])[0] == [by_hand(lm, made, row, 9) for row in some]


def test_samples_differ_by_number_and_seed_and_not_by_company():
    lm = model("llama")
    made = artefact(lm, NOTHING, "Say: {text}{answer}", Decoding(6, do_sample=True, num_return_sequences=5))
    some = rows(4, 8)

    def drawn(pairs, of: int) -> dict[tuple[int, int], str]:
        found = {}

        def keep(artefact: int, row: int, sample: int, written: GeneratedText) -> int:
            if artefact == of:
                assert (row, sample) not in found
                found[row, sample] = written.text
            return ALL

        write_samples(lm, pairs, keep)
        return found

    mixed = drawn([*several(lm), (made, some)], 6)
    assert len(mixed) == 20 and len(set(mixed.values())) > 15
    assert mixed == drawn([(made, some)], 0)
    assert [mixed[2, s] for s in range(5)] == [drawn([(made, some[2:3])], 0)[0, s] for s in range(5)]
    other = replace(made, format=replace(made.format, decoding=replace(made.format.decoding, seed=1)))
    assert drawn([(other, some)], 0) != mixed


def test_a_lead_is_read_once_and_a_row_once_for_all_its_samples(monkeypatch):
    lm = tiny("causal", dtype="float64")
    made = artefact(
        lm, NOTHING, "A rather long instruction. {text}{answer}", Decoding(5, do_sample=True, num_return_sequences=6)
    )
    some = rows(7, 2)
    columns: list[int] = []
    embed = type(lm).embed

    def counted(self, ids_BS):
        columns.append(ids_BS.numel())
        return embed(self, ids_BS)

    monkeypatch.setattr(type(lm), "embed", counted)
    pieces = []
    write_samples(lm, [(made, some)], lambda a, r, s, written: pieces.append(written.pieces) or ALL)
    whole = encode_to_write(lm, made.format, some)
    lead = shared_columns(whole)
    own = [len(e.ids_S) - lead for e in whole]
    assert len(pieces) == 42
    first_pieces = 42
    steps = sum(pieces) - first_pieces  # the first comes with the row, the last is never read
    assert lead > 20
    assert sum(columns) <= lead + len(own) * max(own) + steps  # rows are padded to the longest
    assert sum(columns) > lead + sum(own)


def ending(lm: FrozenLM, made: Artefact, some: list[Row]) -> list[GeneratedText]:
    found: list[GeneratedText] = []
    write_samples(lm, [(made, some)], lambda a, r, s, written: found.append(written) or 0)
    return found


def test_stop_strings_and_nothing_at_all():
    lm = model("llama")
    made = artefact(lm, NOTHING, "Say: {text}{answer}", Decoding(12))
    some = rows(5, 4)
    plain = write_rows(lm, [(made, some)])[0]
    stop = plain[0][3:5]
    cut = artefact(lm, NOTHING, "Say: {text}{answer}", Decoding(12, stop_strings=(stop,)))
    assert write_rows(lm, [(cut, some)])[0] == [text.partition(stop)[0] for text in plain]
    first = artefact(lm, NOTHING, "Say: {text}{answer}", Decoding(12, stop_strings=(plain[0][:1],)))
    [sample] = ending(lm, first, some[:1])
    assert sample.text == "" and sample.ended and sample.pieces < 5
    [whole] = ending(lm, made, some[:1])
    assert whole.pieces == 12 and not whole.ended


def test_a_text_that_ends_at_once_is_empty():
    network = build("llama", torch.float64)
    with torch.no_grad():
        network.lm_head.weight.zero_()  # all alike: the first id is the likeliest
    network.generation_config.eos_token_id = 0
    lm = wrap(network, byte_tokenizer("causal"), kind="causal")
    made = artefact(lm, NOTHING, "Say: {text}{answer}", Decoding(12))
    [sample] = ending(lm, made, rows(1, 1))
    assert (sample.text, sample.ended) == ("", True)
    assert write_rows(lm, [(made, rows(3, 1))]) == [["", "", ""]]


def test_a_source_longer_than_the_context_is_cut_where_it_may_be():
    lm = model("llama")
    long = [Row({"text": "ab cd " * 40}, None, (), "row 7")]
    made = artefact(lm, NOTHING, "Say: {text|shorten} so{answer}", Decoding(20))
    [encoded] = encode_to_write(lm, made.format, long)
    assert len(encoded.ids_S) == 40 and encoded.cut
    assert len(write_rows(lm, [(made, long)])[0][0]) > 0
    strict = replace(made, format=replace(made.format, truncate="error"))
    with pytest.raises(DataError, match=r"row 7: the row takes .* and there is room for 40"):
        write_rows(lm, [(strict, long)])
    with pytest.raises(ConfigError, match="max_new_tokens 55 leaves no room"):
        write_rows(lm, [(artefact(lm, NOTHING, "Say: {text}{answer}", Decoding(55)), long)])


def test_refusals_say_what_to_do():
    causal = model("llama")
    made = artefact(causal, NOTHING, "Say: {text}{answer}", Decoding(5))
    masked = load("foreword-tiny")
    with pytest.raises(ModelError, match="masked model, which cannot write; load it with kind causal"):
        write_rows(masked, [(made, rows(1, 1))])
    with pytest.raises(ConfigError, match="no decoding"):
        write_rows(causal, [(replace(made, format=replace(made.format, decoding=None)), rows(1, 1))])
    assert write_rows(causal, []) == []
    assert write_rows(causal, [(made, [])]) == [[]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_return_sequences": 3}, "without do_sample are one text"),
        ({"do_sample": True, "num_beams": 2}, "choose one"),
        ({"temperature": 0.0}, "do_sample=False is greedy"), ({"max_new_tokens": 0}, "1 or more"),
        ({"stop_strings": ("",)}, "not empty"), ({"top_p": 0.0}, "above 0"),
    ],
)  # fmt: skip
def test_decoding_that_makes_no_sense_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Decoding(**given)
