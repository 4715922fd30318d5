"""python -m pytest tests/training/test_options.py"""

import dataclasses
import inspect
import pydoc
from typing import Annotated

import pytest

from foreword.core.doc import Doc, docs_of, documented
from foreword.errors import ConfigError
from foreword.methods import METHODS
from foreword.training.options import Count, configure, kinds_of


@pytest.mark.parametrize("name", METHODS)
def test_every_option_has_one_sentence(name):
    config = METHODS[name].Config
    docs = docs_of(config)
    assert docs.keys() == {field.name for field in dataclasses.fields(config)}
    for option, text in docs.items():
        assert text.endswith(".") and not text.endswith(".."), option
        assert ". " not in text.replace("al. ", ""), f"{option}: one sentence"
        assert text[0].isupper() or text.startswith(option), option
    texts = list(docs.values())
    assert [text for text in texts if texts.count(text) > 1] == []


@pytest.mark.parametrize("name", METHODS)
def test_help_shows_each_sentence(name):
    config = METHODS[name].Config
    shown = " ".join(pydoc.render_doc(config, renderer=pydoc.plaintext).replace("|", "").split())
    for option, text in docs_of(config).items():
        assert " ".join(f"- {option}: {text}".replace("|", "").split()) in shown
    assert (inspect.getdoc(config) or "").count("Options:") == 1


def test_another_default_keeps_the_sentence_unless_it_brings_its_own():
    @documented
    @dataclasses.dataclass(frozen=True)
    class Parent:
        """Hold two."""

        one: Annotated[Count, Doc("First of all.")] = 1
        two: Annotated[int, Doc("Second of all.")] = 2

    @documented
    @dataclasses.dataclass(frozen=True)
    class Child(Parent):
        """Hold three."""

        one: Count = 5
        two: Annotated[int, Doc("Another second.")] = 3
        three: int = 4

    assert docs_of(Child) == {"one": "First of all.", "two": "Another second."}
    assert Child.__doc__ == "Hold three.\n\nOptions:\n    - one: First of all.\n    - two: Another second."
    assert Parent.__doc__ == "Hold two.\n\nOptions:\n    - one: First of all.\n    - two: Second of all."


def test_a_sentence_changes_nothing_of_what_is_allowed():
    """Of a field with a range, and of one that may be none."""
    method = METHODS["prompt-tuning"]
    kinds = kinds_of(method.Config)
    assert configure(method, {"steps": "7", "tokens_per_batch": "none", "keep": "last"}).steps == 7
    refused = {"steps": ("0", "at least 1"), "keep": ("first", "best, last"), "clip": ("-1", "at least 0")}
    for option, (value, part) in refused.items():
        assert option in kinds
        with pytest.raises(ConfigError, match=part):
            configure(method, {option: value})
