"""Formats survive JSON, so that an artefact puts rows to the model as training did.

Run: python -m pytest tests/core/test_format.py
"""

import json
from dataclasses import fields, replace

import pytest

from foreword.core.format import ChatOptions, Decoding, Format
from foreword.core.template import Template
from foreword.errors import ConfigError

PLAIN = Format(Template.parse("{text|shorten} {soft:'It\\'s'} {mask}"), ("0", "é"), (("bad", "not good"), ("good",)))
CHAT = Format(Template.parse([{"role": "user", "content": "{a}{{}} {soft:3}"}]))


@pytest.mark.parametrize("given", [PLAIN, CHAT], ids=["plain", "chat"])
def test_json_round_trip(given):
    assert Format.from_json(json.loads(json.dumps(given.to_json()))) == given


OTHER = {
    "template": Template.parse("{text} {mask}"),
    "labels": ("1", "é"),
    "words": (("bad",), ("good",)),
    "truncate": "middle",
    "soft_first": True,
    "max_length": 99,
    "pieces": "sum",
    "decoding": Decoding(9, True, stop_strings=("\n",)),
    "shift": (0.25, -1.5),
    "temperature": 0.1 + 0.2,
    "calibration": "contextual",
    "premise": "So: {answer}",
    "chat_options": ChatOptions.of({"enable_thinking": False, "documents": [{"title": "é", "text": ""}]}, "2024-02-29"),
}


@pytest.mark.parametrize("name", [f.name for f in fields(Format)])
def test_every_field_is_kept(name):
    changed = replace(PLAIN, **{name: OTHER[name]})
    back = Format.from_json(json.loads(json.dumps(changed.to_json())))
    assert back == changed
    assert back != PLAIN


def test_a_broken_template_is_refused():
    data = PLAIN.to_json() | {"template": "{text"}
    with pytest.raises(ConfigError, match="never closed"):
        Format.from_json(data)


def test_formats_of_before_calibration_load_and_keep_their_bytes():
    old = PLAIN.to_json()
    assert not {"shift", "temperature", "calibration", "premise"} & old.keys()
    assert Format.from_json(old).temperature == 1.0
    assert not PLAIN.calibrated


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"shift": (1.0,)}, "1 numbers for 2 labels"), ({"shift": (0.0, float("nan"))}, "finite"),
     ({"temperature": 0.0}, "above 0"), ({"temperature": float("inf")}, "above 0")],
)  # fmt: skip
def test_a_calibration_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        replace(PLAIN, **wrong)


@pytest.mark.parametrize("given", [{"num_beams": 1001}, {"num_return_sequences": 10_001, "do_sample": True}])
def test_more_beams_and_samples_than_any_memory_holds_are_refused(given):
    for make in (lambda: Decoding(**given), lambda: Decoding.from_json(given)):
        with pytest.raises(ConfigError, match="must be between 1 and"):
            make()
    assert Decoding(num_beams=1000) and Decoding(num_return_sequences=10_000, do_sample=True)
