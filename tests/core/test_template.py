"""Templates: what is parsed, what is refused, and that data stays literal.

Run: python -m pytest tests/core/test_template.py
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.core.template import AnswerPlace, Demos, Field, Filled, Literal, Soft, Template, Turn
from foreword.errors import ConfigError, DataError

NASTY = [
    "{",
    "}",
    "{}",
    "{{text}}",
    "{mask}",
    "{soft:3}",
    "[MASK]",
    "<mask>",
    "</s>",
    "\x00",
    "שלום\u202e",
    "__import__('os')",
]

names = st.sampled_from(["text", "text_a", "label-coarse", "Sentence 1", "__import__", "é", "x.y"])
words = st.text(min_size=1).filter(str.strip)
literals = st.builds(Literal, st.text(min_size=1))
other = st.one_of(
    st.builds(Field, names, st.booleans()),
    st.builds(Soft, length=st.integers(1, 10_000)),
    st.builds(lambda w: Soft(words=w), words),
    st.builds(lambda t: Literal(t, data=True), st.text() | st.sampled_from(NASTY)),
)


@st.composite
def parts_of_templates(draw) -> tuple:
    """The parts of any template: literals never stand side by side, and there is one answer at most."""
    parts = draw(st.lists(st.one_of(literals, other), max_size=8))
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), AnswerPlace(draw(st.sampled_from(["mask", "answer"]))))
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), Demos())
    own = [isinstance(p, Literal) and not p.data for p in parts]
    return tuple(p for i, p in enumerate(parts) if not (own[i] and i and own[i - 1]))


def test_every_form():
    template = Template.parse("{{{text|shorten}}} {soft:20}{soft:'It\\'s } '} was { b }: {mask}.")
    assert template.parts == (
        Literal("{"),
        Field("text", True),
        Literal("} "),
        Soft(length=20),
        Soft(words="It's } "),
        Literal(" was "),
        Field("b"),
        Literal(": "),
        AnswerPlace("mask"),
        Literal("."),
    )
    assert template.fields == ("text", "b")
    assert template.slots == (Soft(length=20), Soft(words="It's } "))
    assert template.answer == AnswerPlace("mask")
    assert not template.chat


@settings(max_examples=300, deadline=None, database=None)
@given(parts_of_templates())
def test_source_round_trip(parts):
    template = Template((Turn("", parts),))
    assert Template.parse(template.source) == template


@settings(max_examples=500, deadline=None, database=None)
@given(st.text(alphabet=st.sampled_from([*"{}|:'\"\\ softmaskwernx20_().,\x00א"]), max_size=40))
def test_any_text_parses_or_is_refused_with_its_place(source):
    template = refused = None
    try:
        template = Template.parse(source)
    except ConfigError as error:
        refused = str(error)
    if refused is not None:
        assert "position" in refused or "answer" in refused
    if template is not None:
        assert Template.parse(template.source) == template


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("a {text", "position 2"),
        ("a } b", "position 2"),
        ("{}", "position 0"),
        ("{text|cut}", "position 0"),
        ("{text|}", "position 0"),
        ("{soft}", "position 0"),
        ("{soft:-1}", "position 0"),
        ("{soft:0}", "position 0"),
        ("{soft:1e9}", "position 0"),
        ("{soft:99999999}", "position 0"),
        ("{soft:''}", "position 0"),
        ("x{soft:'open}", "position 1"),
        ('{"placeholder" "text_a"}', "position 0"),
        ("{__import__('os').system('exit 1')}", "position 0"),
        ("{mask|shorten}", "position 0"),
        ("{text!r:>10}{", "position 0"),
    ],
)
def test_refused_with_place_and_allowed_forms(source, place):
    with pytest.raises(ConfigError, match=place):
        Template.parse(source)


def test_one_answer_only():
    with pytest.raises(ConfigError, match="2 places"):
        Template.parse("{mask} and {answer}")


@settings(max_examples=200, deadline=None, database=None)
@given(st.text() | st.sampled_from(NASTY))
def test_data_stays_literal(text):
    filled = Template.parse("{text} {soft:2} {{x}} {mask}").fill({"text": text})
    assert filled == (Filled("text", text, False), Literal(" "), Soft(length=2), Literal(" {x} "), AnswerPlace("mask"))


def test_missing_field_and_wrong_type():
    template = Template.parse("{text} {other}")
    with pytest.raises(DataError, match="'other'; the row has 'text'"):
        template.fill({"text": "a"})
    with pytest.raises(DataError, match="int 3"):
        template.fill({"text": "a", "other": 3})  # type: ignore[dict-item]


def test_slot_is_added_once():
    template = Template.parse("{text} It was {mask}.")
    assert template.with_soft(5).source == "{soft:5}{text} It was {mask}."
    assert template.with_soft("a b").source == "{soft:'a b'}{text} It was {mask}."
    assert template.with_soft(5, "answer").source == "{text} It was {soft:5} {mask}."
    assert Template.parse("{text}").with_soft(5, "answer").source == "{text}{soft:5}"
    held = Template.parse("{text} {soft:2} {mask}")
    assert held.with_soft(5) is held
    with pytest.raises(ConfigError, match="positions"):
        template.with_soft(0)
    with pytest.raises(ConfigError, match="middle"):
        template.with_soft(5, "middle")


@pytest.mark.parametrize(
    ("source", "without"),
    [
        ("{soft:3} {text} It was {mask}.", "{text} It was {mask}."),
        ("{text} {soft:3} It was {mask}.", "{text} It was {mask}."),
        ("{text}{soft:3}{mask}", "{text}{mask}"),
        ("a {soft:3}{soft:'b'}", "a"),
        ("{soft:1}", ""),
        ("a{soft:1}b", "ab"),
    ],
)
def test_slots_leave_no_trace(source, without):
    template = Template.parse(source).without_soft()
    assert template.source == without
    assert Template.parse(without).parts == template.parts


@pytest.mark.parametrize("source", ["{text} It was {mask}.", "Say: {text}\n{answer}"])
def test_adding_and_removing_a_slot_is_nothing(source):
    template = Template.parse(source)
    assert template.with_soft(7).without_soft() == template
    assert template.with_soft(7, "answer").without_soft() == template


CHAT = [{"role": "system", "content": "Be {{brief}}."}, {"role": "user", "content": "{soft:4} {text|shorten}?"}]


def test_messages():
    template = Template.parse(CHAT)
    assert template.chat
    assert template.source == CHAT
    assert [turn.role for turn in template.turns] == ["system", "user"]
    assert template.fields == ("text",)
    assert Template.parse(template.source) == template
    bare = template.without_soft()
    assert bare.source[1] == {"role": "user", "content": "{text|shorten}?"}
    assert bare.with_soft(2).source[0] == {"role": "system", "content": "{soft:2}Be {{brief}}."}
    assert bare.with_soft(2, "answer").source[1] == {"role": "user", "content": "{text|shorten}?{soft:2}"}


@pytest.mark.parametrize(
    "source",
    [
        [],
        [{"role": "user"}],
        [{"role": "", "content": "a"}],
        [{"role": "user", "content": "a", "name": "b"}],
        [{"role": "user", "content": "a {mask}"}],
        [{"role": "user", "content": "a } b"}],
        [{"role": "user", "content": None}],
        ["text"],
    ],
)
def test_messages_refused(source):
    with pytest.raises(ConfigError):
        Template.parse(source)
