"""Tokens that were added to a tokenizer: marks are text in data and marks in a template, words are words.

Run: python -m pytest tests/models/test_added_tokens.py
"""

import copy
import random
from typing import Any

import pytest
from tokenizers import AddedToken

from foreword.core.demos import Example, with_demos
from foreword.core.format import Format
from foreword.core.template import Template
from foreword.methods.words.chain_of_thought import reasoning_template
from foreword.models.encoding.encoder import Encoder, PlainRow
from foreword.tasks.formats import generic_chat
from foreword.tasks.rows import Row
from tests.models.trained import CAUSAL, MASKED, TextLM

PLAIN: list[Any] = [AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)]
ODD: list[Any] = [
    "<tool_call>",  # as `add_tokens` has a text: sought in the normalised text
    AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
    AddedToken("[one]", single_word=True, normalized=False),
    AddedToken("[[x]", normalized=False),
    AddedToken("[x]]", normalized=False),  # stands in the text that is left of the one before
    "__eou__",
]
SPECIAL: list[Any] = [AddedToken("<|special|>", special=True)]
WORDS = ["film", " ", "  ", "\n", "good", "A", "a", ".", "</s>", "[MASK]", "é"]
MARKS = [str(token) if isinstance(token, str) else token.content for token in [*PLAIN, *ODD, *SPECIAL]]
MAKE: dict[str, tuple[Any, Any]] = {
    **{f"causal-{name}": ("causal", make) for name, make in CAUSAL.items()},
    **{f"masked-{name}": ("masked", make) for name, make in MASKED.items()},
}


def pair(name: str) -> tuple[TextLM, TextLM]:
    """The tokenizer with the added tokens, and the same without them."""
    kind, make = MAKE[name]
    bare = make()
    made = copy.deepcopy(bare)
    made.add_tokens([*PLAIN, *ODD])
    made.add_special_tokens({"extra_special_tokens": SPECIAL})
    return TextLM(made, kind, 4000), TextLM(bare, kind, 4000)


def template(lm, source):
    return Template.parse(source.replace("{answer}", "{mask}") if lm.kind == "masked" else source)


def drawn(seed, count=60):
    rng = random.Random(seed)
    texts = ["".join(rng.choice([*MARKS, *WORDS]) for _ in range(rng.randint(1, 9))) for _ in range(count)]
    return [text if text.strip() else "film" for text in [*MARKS, "a<think>b", "<TOOL_CALL>", "[[x]]", *texts]]


@pytest.mark.parametrize("name", MAKE)
def test_data_is_as_if_nothing_had_been_added(name):
    with_marks, without = pair(name)
    added = {with_marks.tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
    texts = drawn(name)
    source = "Is it? {text} So {answer}"
    bytes_ = name.endswith("byte_bpe")  # the others have no pieces for a mark's brackets
    words = (("<think>",) if bytes_ else ("film",), ("good",))
    found, wanted = (Encoder.build(lm, Format(template(lm, source), ("a", "b"), words)) for lm in (with_marks, without))
    for text in texts:
        row = found.encode({"text": text})
        assert added.isdisjoint(row.ids_S.tolist()), text
        assert row.ids_S.tolist() == wanted.encode({"text": text}).ids_S.tolist(), text
    assert found.plan is not None
    assert wanted.plan is not None
    if bytes_:
        assert found.plan.words == wanted.plan.words
        options = ["</think>", "[one]"]
        one, other = (e.encode({"text": "a"}, options).plan for e in (found, wanted))
        assert one is not None
        assert other is not None
        assert one.words == other.words
    # the control: the tokenizer itself takes the text for its tokens
    taken = with_marks.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert sum(not added.isdisjoint(ids) for ids in taken) > len(MARKS) / 2


@pytest.mark.parametrize("name", MAKE)
def test_where_pieces_stand_is_told_of_marks_too(name):
    """A row that is cut keeps the text's own beginning, marks or not."""
    with_marks, _ = pair(name)
    encoder = Encoder.build(with_marks, Format(template(with_marks, "{text} So {answer}")))
    for text in drawn(name, 20):
        ids = encoder.pieces.start([text])[0]
        spans = encoder.pieces.offsets(text, True)
        assert len(spans) == len(ids)
        assert all(0 <= a <= b <= len(text) for a, b in spans)
        assert [a for a, _ in spans] == sorted(a for a, _ in spans)


@pytest.mark.parametrize("name", MAKE)
def test_a_templates_own_marks_are_the_librarys(name):
    with_marks, _ = pair(name)
    made = with_marks.tokenizer
    source = "Say <think>a good </think> film <both> or [one] and not x[one] {text}<think> then {answer}"
    found = Encoder.build(with_marks, Format(template(with_marks, source))).encode({"text": "dull"}).ids_S.tolist()
    mask = made.mask_token if with_marks.kind == "masked" else ""
    whole = source.replace("{text}", "dull").replace("{answer}", mask)
    wanted = made(whole if mask else whole.rstrip())["input_ids"]
    if with_marks.kind == "causal" and wanted[-1] == made.sep_token_id is not None:
        wanted = wanted[:-1]  # which a causal model's row goes without
    assert found == wanted
    think = made.convert_tokens_to_ids("<think>")
    assert found.count(think) == 2


def test_demonstrations_and_names_are_data_too():
    with_marks, without = pair("causal-byte_bpe")
    chat = "{% for m in messages %}{{ m.role }}: <think>{{ m.content }}\n{% endfor %}"
    with_marks.tokenizer.chat_template = chat
    without.tokenizer.chat_template = chat.replace("<think>", "")
    added = [with_marks.tokenizer.convert_tokens_to_ids(mark) for mark in MARKS]
    row = Row({"text": "<think> a"}, None, (), "", ("<tool_call>",), "so [one]")
    for source in ("{text} is {answer}", [{"role": "user", "content": "{text}?"}]):
        plain = Template.parse(source)
        turns = 1 if isinstance(source, str) else 3
        shown = [
            with_demos(plain, [Example(row.fields, "__eou__")], "\n"),
            reasoning_template(Format(plain), [row], "think", "</think> The answer is"),
        ]
        for one in shown:
            ids = Encoder.build(with_marks, Format(one)).encode({"text": "<think>"}).ids_S.tolist()
            own = one is shown[1]  # the words that conclude are the author's, as those of a template are
            assert sum(i in added for i in ids) == own + (turns if isinstance(source, list) else 0)
    asked = generic_chat(["<think>", "text"], ["<tool_call>", "good"])
    ids = Encoder.build(with_marks, Format(Template.parse(asked))).encode({"<think>": "a", "text": "b"}).ids_S.tolist()
    assert sum(i in added for i in ids) == 1


@pytest.mark.parametrize("name", ["causal-byte_bpe", "causal-first_space_bpe"])
def test_words_and_spaces_that_were_added_stay_words(name):
    kind, make = MAKE[name]
    made = make()
    made.add_tokens(["benzodiazepine", AddedToken("covid-19", lstrip=True), AddedToken("        ", normalized=False)])
    made.add_tokens(PLAIN)
    encoder = Encoder.build(TextLM(made, kind), Format(Template.parse("{text}{answer}")))
    for text in ("a benzodiazepine of covid-19", "if x:\n        return"):
        assert encoder.encode({"text": text}).ids_S.tolist() == made(text)["input_ids"]
        marked = encoder.encode({"text": text + " <think>"}).ids_S.tolist()
        wanted = made(text)["input_ids"]
        assert marked[: len(wanted)] == wanted


@pytest.mark.parametrize("seed", range(3))
def test_rows_in_a_batch_are_rows_alone(seed):
    with_marks, _ = pair("causal-unigram")
    encoder = Encoder.build(with_marks, Format(Template.parse("{soft:2}{text} So {answer}")))
    rows = [PlainRow({"text": text}) for text in drawn(seed, 10)]
    for row, found in zip(rows, encoder.encode_rows(rows), strict=True):
        assert found.ids_S.tolist() == encoder.encode(row.fields).ids_S.tolist()
