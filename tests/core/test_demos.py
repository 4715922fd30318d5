"""Demonstrations in templates, against templates written out by hand: python -m pytest tests/core/test_demos.py"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.core.demos import Example, with_demos
from foreword.core.template import MARK, Literal, Template
from foreword.errors import ConfigError, DataError

TWO = [Example({"text": "fine", "b": "x"}, "good"), Example({"text": "dull", "b": "y"}, "bad")]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("{text} It was {answer}", "{'fine'} It was good|{'dull'} It was bad|{text} It was {answer}"),
        ("{text} It was {mask}.", "{'fine'} It was good.|{'dull'} It was bad.|{text} It was {mask}."),
        ("Rate it. {demos}{text}: {answer}", "Rate it. {'fine'}: good|{'dull'}: bad|{text}: {answer}"),
        ("{text}: {mask}. So: {demos}", "{text}: {mask}. So: |{'fine'}: good. So: |{'dull'}: bad. So: "),
        ("{text}{answer}", "{'fine'} good|{'dull'} bad|{text}{answer}"),
        ("{text}", "{'fine'} good|{'dull'} bad|{text}"),
        ("{text} Label:", "{'fine'} Label: good|{'dull'} Label: bad|{text} Label:"),
        ("{mask}: {text|shorten}", "good: {'fine'}|bad: {'dull'}|{mask}: {text|shorten}"),
        ("{text}? {b}: {answer}", "{'fine'}? {'x'}: good|{'dull'}? {'y'}: bad|{text}? {b}: {answer}"),
        ("{{}} {text} {answer}", "{{}} {'fine'} good|{{}} {'dull'} bad|{{}} {text} {answer}"),
    ],
)
def test_each_is_the_template_s_own_text_filled(source, wanted):
    found = with_demos(Template.parse(source), TWO, "|")
    assert found.source == wanted
    assert Template.parse(found.source) == found
    assert found.holds_data
    assert with_demos(Template.parse(source), [], "|") == Template.parse(source).without_demos()


def test_a_chat_has_them_as_earlier_turns():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{text}?"}]
    found = with_demos(Template.parse(chat), TWO, "|")
    assert [(t["role"], t["content"]) for t in found.source] == [
        ("system", "Be brief."), ("user", "{'fine'}?"), ("assistant", "good"), ("user", "{'dull'}?"),
        ("assistant", "bad"), ("user", "{text}?"),
    ]  # fmt: skip


def test_an_answer_that_is_a_mark_stays_data():
    """Labels and targets come from rows too; only text that could hold a control token is quoted."""
    for source in ("{text} {answer}", [{"role": "user", "content": "{text}"}]):
        shown = with_demos(Template.parse(source), [Example({"text": "x"}, "a <think> b"), TWO[0]], "\n")
        assert Literal("a <think> b", data=True) in shown.parts
        assert not any(p.data and p.text == "good" for p in shown.parts if isinstance(p, Literal))
        assert Template.parse(shown.source) == shown


@settings(max_examples=300, deadline=None, database=None)
@given(text=st.text(), word=st.text(min_size=1).filter(str.strip))
def test_any_text_survives_as_data(text, word):
    found = Template.parse(
        with_demos(Template.parse("{text} = {answer}"), [Example({"text": text}, word)], "\n").source
    )
    data = [p.text for p in found.parts if isinstance(p, Literal) and p.data]
    assert data == [*([text] if text else []), *([word] if MARK.search(word) else [])]
    shown = "".join(p.text for p in found.parts if isinstance(p, Literal))
    assert shown == f"{text} = {word}\n = "
    assert found.fields == ("text",)


@pytest.mark.parametrize(
    ("source", "said"),
    [("{soft:3}{text}", "slots"), ("It was {answer}", "no field"), ("{text}{demos}{b} {answer}", "both sides")],
)
def test_what_has_no_demonstration_is_refused(source, said):
    with pytest.raises(ConfigError, match=said):
        with_demos(Template.parse(source), TWO, "|")


def test_an_example_without_the_field_is_refused():
    with pytest.raises(DataError, match="asks for field 'other'"):
        with_demos(Template.parse("{other}: {answer}"), TWO, "|")


def test_a_demonstration_for_an_encoder_holds_what_its_decoder_would_write():
    template = Template.parse("{text} is{decoder}It was {answer}")
    shown = with_demos(template, [Example({"text": "a film"}, "fine")], "\n")
    assert shown.source == "{'a film'} is It was fine\n{text} is{decoder}It was {answer}"
