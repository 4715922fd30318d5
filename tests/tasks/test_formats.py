"""Default templates and label words. Run: python -m pytest tests/tasks/test_formats.py"""

import pytest

from foreword.core.template import Template
from foreword.errors import ConfigError
from foreword.tasks.formats import build_format, words_of
from foreword.tasks.known_templates import KNOWN
from foreword.tasks.task import Task

PAIRS = [{"text_a": f"a{i}", "text_b": f"b{i}", "label": ["Sci/Tech", "not_related"][i % 2]} for i in range(40)]


@pytest.mark.parametrize("kind", ["masked", "causal"])
@pytest.mark.parametrize("fields", [("text",), ("text_a", "text_b"), ("passage", "question", "note")])
def test_generic_templates_show_every_field_and_one_answer(kind: str, fields: tuple[str, ...]) -> None:
    found = build_format(kind, fields, ("x", "y"), None, None)  # type: ignore[arg-type]
    assert found.template.fields == fields
    assert found.template.answer is not None
    source = found.template.source
    assert isinstance(source, str)
    assert source.endswith("{mask}." if kind == "masked" else "{answer}")


def test_label_words_come_from_the_names_or_are_given() -> None:
    assert words_of("Sci/Tech") == "sci tech"
    assert words_of("not_related") == "not related"
    assert words_of("CULTURE & ARTS") == "culture & arts"
    found = Task(PAIRS).format("masked", label_words={"Sci/Tech": ["science", "computers"]})
    assert found.labels == ("Sci/Tech", "not_related")
    assert found.words == (("science", "computers"), ("not related",))


def test_bad_templates_and_words_are_named() -> None:
    task = Task(PAIRS)
    with pytest.raises(ConfigError, match=r"field 'text', which the rows lack \(fields: text_a, text_b\)"):
        task.format("masked", "{text} {mask}")
    with pytest.raises(ConfigError, match=r"label words were given for 'x', but the labels are"):
        task.format("masked", label_words={"x": "y"})
    with pytest.raises(ConfigError, match=r"'yes' is given for 'Sci/Tech' and 'not_related'"):
        task.format("masked", label_words={"Sci/Tech": "yes", "not_related": ["no", "yes"]})
    with pytest.raises(ConfigError, match=r"'Sci/Tech' has no label words"):
        task.format("masked", label_words={"Sci/Tech": []})


def test_order_of_choice_call_then_task_then_generic() -> None:
    task = Task(PAIRS, template={"masked": "{text_a} {mask} {text_b}"})
    assert task.format("masked", "{text_b} {mask}").template.source == "{text_b} {mask}"
    assert task.format("masked").template.source == "{text_a} {mask} {text_b}"
    assert str(task.format("causal").template.source).endswith("Label: {answer}")


def test_chat_lists_the_label_words_and_keeps_braces_literal() -> None:
    rows = [{"text": f"t{i}", "label": ["{a}", "b"][i % 2]} for i in range(20)]
    found = Task(rows).format("causal", chat=True)
    assert found.template.chat
    assert found.template.fields == ("text",)
    assert "b, {{a}}" in found.template.source[0]["content"]  # type: ignore[index]


def test_options_per_row_have_no_label_words() -> None:
    rows = [{"question": f"q{i}", "options": ["a", "b"], "label": 0} for i in range(20)]
    found = Task(rows, options="options").format("causal")
    assert (found.labels, found.words) == ((), ())


@pytest.mark.parametrize("name", KNOWN)
def test_known_templates_parse_and_words_are_distinct(name: str) -> None:
    known = KNOWN[name]
    for source in known.templates().values():
        assert Template.parse(source).answer is not None
        assert "|shorten" in source
    assert known.causal.endswith("{answer}")
    words = [w for some in known.words.values() for w in some]
    assert len(words) == len(set(words))
