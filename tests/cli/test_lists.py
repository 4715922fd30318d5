"""python -m pytest tests/cli/test_lists.py"""

import json

import pytest

from foreword.core.doc import docs_of
from foreword.methods import METHODS


@pytest.mark.parametrize("name", ["metaprompting", "manual", "few-shot"])
def test_the_options_of_a_method_are_shown_with_their_sentences(foreword, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    docs = docs_of(METHODS[name].Config)
    shown = " ".join(foreword("methods", name).out.split())
    described = json.loads(foreword("methods", name, "--json").out)
    assert described["descriptions"] == docs
    assert described["options"].keys() == docs.keys()
    for option, text in docs.items():
        assert f" {option} " in shown and text in shown


def test_the_list_of_methods_has_the_sentences_of_each(foreword):
    listed = json.loads(foreword("methods", "--json").out)
    assert {m["name"]: m["descriptions"] for m in listed} == {n: docs_of(m.Config) for n, m in METHODS.items()}
