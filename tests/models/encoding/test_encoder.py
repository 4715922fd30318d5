"""Rows to pieces, against what the tokenizer itself makes of the same text.

Run: python -m pytest tests/models/encoding/test_encoder.py
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.core.format import Format
from foreword.core.template import Template
from foreword.errors import ConfigError, DataError, ModelError
from foreword.models.encoding.encoder import Encoder, PlainRow, collate, count_cut
from tests.models.trained import CAUSAL, CORPUS, MASKED, WORDS, TextLM

TOKENIZERS = {name: make() for name, make in {**MASKED, **CAUSAL}.items()}
LABELS = {"labels": ("0", "1"), "words": (("good", "great film"), ("terrible",))}
NASTY = [
    "{",
    "{{text}}",
    "{mask}",
    "[MASK]",
    "<mask>",
    "</s>",
    "<s>",
    "<|endoftext|>",
    "[SEP]",
    "a\x00b",
    "א\u202e",
    "🙂",
]


@cache
def encoder(name: str, kind: str, source: str, context: int = 500, extra: int = 0, **options) -> Encoder:
    return Encoder.build(TextLM(TOKENIZERS[name], kind, context), Format(Template.parse(source), **options), extra)


def library(name: str, text: str, kind: str) -> list[int]:
    ids = TOKENIZERS[name](text)["input_ids"]
    end = TOKENIZERS[name].eos_token_id if name == "unigram" else TOKENIZERS[name].sep_token_id
    return ids[:-1] if kind == "causal" and end is not None and ids[-1] == end else ids


texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)
quick = settings(max_examples=40, deadline=None, database=None)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("source", ["{text} It was {mask}.", "{mask} news: {text}", "{text}? {mask}, {text}"])
@quick
@given(text=texts)
def test_masked_row_is_the_librarys(name, source, text):
    found = encoder(name, "masked", source).encode({"text": text})
    mask = TOKENIZERS[name].mask_token
    assert found.ids_S.tolist() == library(name, source.format(text=text, mask=mask), "masked")
    assert found.ids_S.tolist().count(TOKENIZERS[name].mask_token_id) == 1
    assert found.ids_S[found.answer] == TOKENIZERS[name].mask_token_id
    assert (found.slot_S == -1).all()


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize(
    "source", ["{text} It was {answer}", "Review: {text}\nMood:{answer}", "{text}: {mask}", "{text}:"]
)
@quick
@given(text=texts)
def test_causal_row_and_label_words_are_the_librarys(name, source, text):
    """Row plus label word, pieced together, is what the tokenizer makes of the whole text."""
    made = encoder(name, "causal", source, **LABELS)
    found = made.encode({"text": text})
    assert found.answer == len(found.ids_S) - 1
    start = source if "{answer}" in source or "{mask}" in source else source + " {answer}"
    for words, pieces in zip(LABELS["words"], found.plan.words, strict=True):
        for word, ids in zip(words, pieces, strict=True):
            whole = start.format(text=text, answer=word, mask=word)
            assert [*found.ids_S, *ids] == library(name, whole, "causal")


def test_label_words_depend_on_the_space_before_them():
    """The control of the test above: without the space a byte-level word is another one."""
    spaced = encoder("byte_bpe", "causal", "{text}: {answer}", **LABELS).plan.words
    joined = encoder("byte_bpe", "causal", "{text}:{answer}", **LABELS).plan.words
    assert spaced != joined
    assert TOKENIZERS["byte_bpe"].decode(spaced[1][0]) == " terrible"
    assert TOKENIZERS["byte_bpe"].decode(joined[1][0]) == "terrible"
    after_field = encoder("byte_bpe", "causal", "{text}{answer}", **LABELS).plan.words
    assert after_field == spaced


def test_masked_label_words():
    roberta = TOKENIZERS["masked_byte_bpe"]
    inside = encoder("masked_byte_bpe", "masked", "{text} It was {mask}.", **LABELS).plan.words
    first = encoder("masked_byte_bpe", "masked", "{mask}: {text}", **LABELS).plan.words
    assert roberta.decode(inside[1][0]) == " terrible"
    assert roberta.decode(first[1][0]) == "terrible"
    bert = encoder("wordpiece", "masked", "({mask}) {text}", **LABELS).plan.words
    assert [TOKENIZERS["wordpiece"].decode(w) for w in bert[0]] == ["good", "great film"]


@pytest.mark.parametrize("name", MASKED)
def test_slots_break_the_text_and_nothing_else(name):
    tokenizer = TOKENIZERS[name]
    made = encoder(name, "masked", "{text} {soft:3} It was {mask} {soft:'not good'}.")
    found = made.encode({"text": "a fine film"})
    words = tokenizer(" not good" if name != "wordpiece" else "not good", add_special_tokens=False)["input_ids"]
    assert made.prompt_length == 3 + len(words)
    assert found.slot_S[found.slot_S >= 0].tolist() == list(range(made.prompt_length))
    assert made.init_ids_P.tolist() == [-1, -1, -1, *words]
    text = found.ids_S[found.slot_S < 0].tolist()
    before = library(name, f"a fine film It was {tokenizer.mask_token}", "masked")[:-1]
    assert text[: len(before)] == before
    assert tokenizer.decode(text[len(before) : -1]).strip() == "."
    assert text[-1] == tokenizer.sep_token_id


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("source", ["{text} It was {answer}", "Say {text}:"])
def test_a_slot_in_front_changes_nothing_else(name, source):
    """Columns outside of the slot are those of the template without it, wherever it stands to BOS or [CLS]."""
    plain = encoder(name, "causal", source).encode({"text": "fine"})
    template = Template.parse(source).with_soft(4)
    before = len(plain.ids_S) - len(encoder(name, "causal", source).pieces.before)
    for first in (False, True):
        found = encoder(name, "causal", template.source, soft_first=first).encode({"text": "fine"})
        assert found.ids_S[found.slot_S < 0].tolist() == plain.ids_S.tolist()
        start = 0 if first else len(plain.ids_S) - before
        assert np.flatnonzero(found.slot_S >= 0).tolist() == list(range(start, start + 4))


def test_shared_columns_are_what_every_row_begins_with():
    made = encoder("first_space_bpe", "causal", "{soft:2} film: {soft:3}{text} It was {answer}")
    one, other = made.encode({"text": "fine"}), made.encode({"text": "dull and slow"})
    assert one.shared == 1 + 2 + len(TOKENIZERS["first_space_bpe"].tokenize("film:")) + 3
    assert one.ids_S[: one.shared].tolist() == other.ids_S[: one.shared].tolist()
    beginning, rest = one.split()
    assert beginning.ids_S.tolist() == one.ids_S[: one.shared].tolist() and beginning.answer == one.shared - 1
    assert rest.ids_S.tolist() == one.ids_S[one.shared :].tolist()
    assert rest.ids_S[rest.answer] == one.ids_S[one.answer]


@pytest.mark.parametrize("name", {**MASKED, **CAUSAL})
@pytest.mark.parametrize("text", NASTY)
def test_data_is_never_special(name, text):
    """What looks like a special token in data is plain text; in the template's own text it is the token."""
    kind = "masked" if name in MASKED else "causal"
    made = encoder(name, kind, "{text} film {mask}")
    found = made.encode({"text": text})
    special = set(TOKENIZERS[name].all_special_ids) - {TOKENIZERS[name].unk_token_id}
    clean = made.encode({"text": "x"})
    assert sum(i in special for i in found.ids_S) == sum(i in special for i in clean.ids_S)


def test_special_tokens_of_the_template_are_special():
    bert = TOKENIZERS["wordpiece"]
    found = encoder("wordpiece", "masked", "{a} [SEP] {b} {mask}").encode({"a": "good", "b": "bad"})
    assert found.ids_S.tolist() == bert("good [SEP] bad [MASK]")["input_ids"]
    assert found.ids_S.tolist().count(bert.sep_token_id) == 2
    llama = encoder("first_space_bpe", "causal", "<s> {text}:").encode({"text": "good"})
    assert llama.ids_S.tolist().count(TOKENIZERS["first_space_bpe"].bos_token_id) == 1


@st.composite
def cases(draw):
    """A template with one or two fields to cut, a row that may be too long, and how to cut it."""
    marked = draw(st.booleans())
    a = "{a|shorten}" if marked or draw(st.booleans()) else "{a}"
    slot = draw(st.sampled_from(["", "{soft:2} ", "{soft:'not bad'} "]))
    two = draw(st.booleans())
    source = f"{slot}say: {a} it was ({{mask}}" + (", {b}" if two else "") + " good."
    row = {k: " ".join(draw(st.lists(st.sampled_from([*WORDS, *NASTY]), max_size=40))) for k in "ab"}
    return source, row, draw(st.sampled_from(["tail", "head", "middle"])), draw(st.integers(0, 5)), two


@pytest.mark.parametrize("name", MASKED)
@settings(max_examples=150, deadline=None, database=None)
@given(case=cases())
def test_cutting_fits_and_leaves_the_template_alone(name, case):
    source, row, truncate, extra, two = case
    whole = encoder(name, "masked", source, context=10_000, **LABELS).encode(row)
    try:
        found = encoder(name, "masked", source, context=40, extra=extra, truncate=truncate, **LABELS).encode(row)
    except DataError:
        if two and "{a|shorten}" in source:  # b may not be cut, and is too long alone
            return
        raise
    longest = max(len(w) for label in found.plan.words for w in label)
    assert len(found) == len(found.ids_S) + longest - 1
    assert len(found) + extra <= 40
    assert found.cut == len(whole.ids_S) - len(found.ids_S)
    assert found.cut == max(0, len(whole) + extra - 40)  # no more than needed
    ids = found.ids_S.tolist()
    assert ids.count(TOKENIZERS[name].mask_token_id) == 1
    assert (found.slot_S >= 0).sum() == (whole.slot_S >= 0).sum()
    text = "".join(TOKENIZERS[name].decode(found.ids_S[found.slot_S < 0], skip_special_tokens=True).split())
    assert text.startswith("say:")
    assert "itwas(" in text
    assert text.endswith("good.")
    if found.cut and not two:
        kept = _kept(whole.ids_S.tolist(), ids)
        gone = [i for i, k in enumerate(kept) if not k]
        assert gone == list(range(gone[0], gone[-1] + 1))


def _kept(whole: list[int], ids: list[int]) -> list[bool]:
    """Which pieces stayed, by a longest common start and end."""
    same = 0
    while same < len(ids) and whole[same] == ids[same]:
        same += 1
    end = len(ids) - same
    assert end == 0 or whole[-end:] == ids[-end:]
    return [i < same or i >= len(whole) - end for i in range(len(whole))]


NUMBERS = " ".join(str(n) for n in range(100, 160))


@pytest.mark.parametrize(
    ("truncate", "first", "last"), [("tail", "100", None), ("head", None, "159"), ("middle", "100", "159")]
)
def test_which_end_is_cut(truncate, first, last):
    tokenizer = TOKENIZERS["byte_bpe"]
    made = encoder("byte_bpe", "causal", "say: {text|shorten} It was:", context=50, truncate=truncate)
    found = made.encode({"text": NUMBERS})
    text = tokenizer.decode(found.ids_S)
    assert text.startswith("say:")
    assert text.endswith(" It was:")
    assert ("100" in text) == (first is not None)
    assert ("159" in text) == (last is not None)
    assert count_cut([found, made.encode({"text": "short"})]) == (1, found.cut)


def test_unmarked_fields_are_cut_longest_first():
    made = encoder("byte_bpe", "causal", "{a}\n{b}:", context=30)
    tokenizer = TOKENIZERS["byte_bpe"]
    text = tokenizer.decode(made.encode({"a": "good film", "b": NUMBERS}).ids_S)
    assert text.startswith("good film\n100")
    both = tokenizer.decode(made.encode({"a": NUMBERS, "b": NUMBERS}).ids_S)
    assert both.startswith("100")
    assert "\n100" in both


def test_rows_that_cannot_fit():
    row = PlainRow({"text": NUMBERS, "b": NUMBERS}, where="file.jsonl, row 3")
    with pytest.raises(DataError, match=r"file.jsonl, row 3: .*'error'"):
        encoder("byte_bpe", "causal", "{text}:", context=20, truncate="error").encode_rows([row])
    with pytest.raises(DataError, match=r"row 3: .*'text'"):
        encoder("byte_bpe", "causal", "{b} {text|shorten}:", context=20).encode_rows([row])
    with pytest.raises(ConfigError, match="30 of them slots"):
        encoder("byte_bpe", "causal", "{soft:30}{text}:", context=20)
    with pytest.raises(ConfigError, match="the prefix 19"):
        encoder("byte_bpe", "causal", "say {text}:", context=20, extra=19)
    with pytest.raises(DataError, match=r"row 3: .*no tokens"):
        encoder("byte_bpe", "causal", "{text}").encode_rows([replace(row, fields={"text": ""})])
    with pytest.raises(DataError, match=r"row 3: .*'text'"):
        encoder("byte_bpe", "causal", "{text}").encode_rows([replace(row, fields={"b": ""})])


def test_max_length_counts_the_prompt():
    made = encoder("wordpiece", "masked", "{soft:5}{text} {mask}", extra=3, max_length=20)
    assert len(made.encode({"text": NUMBERS}).ids_S) == 17
    assert len(encoder("wordpiece", "masked", "{text} {mask}", max_length=20).encode({"text": "a"}).ids_S) == 4


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("masked", "{text} It was", "no {mask}"),
        ("masked", [{"role": "user", "content": "{text}"}], "causal"),
        ("causal", "{mask}: {text}", "at the end"),
    ],
)
def test_answer_must_suit_the_model(kind, source, message):
    with pytest.raises(ConfigError, match=message):
        Encoder.build(TextLM(TOKENIZERS["wordpiece"], kind), Format(Template.parse(source)))


def test_soft_first_needs_a_slot_in_front():
    with pytest.raises(ConfigError, match="begins with a slot"):
        encoder("wordpiece", "masked", "{text} {mask}", soft_first=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((("good",), ()), "has no word"),
        ((("good",), (" ",)), "no pieces"),
        ((("good",), ("☃",)), "no pieces"),
        ((("good",), ("Good",)), "same pieces"),
        ((("good", "good"), ("bad",)), "same pieces"),
        ((("good",),), "2 labels and label words for 1"),
    ],
)
def test_label_words_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        encoder("wordpiece", "masked", "{text} {mask}", labels=("0", "1"), words=words)


def test_options_of_rows():
    made = encoder("byte_bpe", "causal", "{text}\nanswer:")
    rows = [
        PlainRow({"text": "a"}, ("good", "bad")),
        PlainRow({"text": "b"}, ("new york", "x", "y")),
        PlainRow({"text": "c"}, ("good", "bad")),
    ]
    found = made.encode_rows(rows)
    assert found[0].plan is found[2].plan
    assert [p.plan.labels for p in found] == [2, 3, 2]
    assert TOKENIZERS["byte_bpe"].decode(found[1].plan.words[0][0]) == " new york"
    with pytest.raises(DataError, match=r"row 7: .*same pieces"):
        made.encode_rows([PlainRow({"text": "a"}, ("good", "good"), "row 7")])


class Counting:
    """A tokenizer that counts its calls."""

    def __init__(self, tokenizer):
        self.inner, self.calls = tokenizer, 0

    def __len__(self):
        return len(self.inner)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, *args, **options):
        self.calls += 1
        return self.inner(*args, **options)


def test_many_rows_are_one_call_and_equal_one_by_one():
    tokenizer = Counting(TOKENIZERS["masked_byte_bpe"])
    format = Format(Template.parse("{text} It was {mask}. {soft:2} {text}"), **LABELS)
    made = Encoder.build(TextLM(tokenizer, "masked"), format)
    before = tokenizer.calls
    rows = [PlainRow({"text": f"{line} {n}"[:60]}) for n in range(20) for line in CORPUS]
    many = made.encode_rows(rows)
    assert tokenizer.calls - before == 2  # one for each stretch of text
    for row, found in zip(rows, many, strict=True):
        alone = made.encode(row.fields)
        assert found.ids_S.tolist() == alone.ids_S.tolist()
        assert found.slot_S.tolist() == alone.slot_S.tolist()
        assert (found.answer, found.cut, found.plan) == (alone.answer, alone.cut, alone.plan)


@pytest.mark.parametrize("pad", ["right", "left"])
def test_collate(pad):
    made = encoder("wordpiece", "masked", "{text} {soft:2} {mask}.")
    rows = [made.encode({"text": text}) for text in ("a", "a fine film with great actors", "")]
    batch = collate(rows, pad)
    for b, row in enumerate(rows):
        real = batch.attend_BS[b]
        assert batch.ids_BS[b][real].tolist() == row.ids_S.tolist()
        assert batch.slot_BS[b][real].tolist() == row.slot_S.tolist()
        assert (batch.slot_BS[b][~real] == -1).all()
        assert torch.equal(batch.position_BS[b][real], torch.arange(len(row.ids_S)))
        assert batch.ids_BS[b, batch.read_BR[b, 0]] == TOKENIZERS["wordpiece"].mask_token_id
        assert real[0 if pad == "right" else -1]


def test_slow_tokenizers_are_refused():
    class Slow:
        is_fast, name_or_path, mask_token_id = False, "old", None

        def __len__(self):
            return 1

    with pytest.raises(ModelError, match="'old' is a slow one"):
        Encoder.build(TextLM(Slow(), "causal"), Format(Template.parse("{text}")))
