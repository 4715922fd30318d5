"""Exports of prompts of words. Run: python -m pytest tests/interop/test_text.py"""

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.prompts import HardPrompt, SoftPrompt
from foreword.core.template import Template
from foreword.errors import ArtefactError
from foreword.interop.plain_text import export
from foreword.models.encoding.encoder import Encoder
from foreword.models.tiny import tiny

LABELS = {"labels": ("bad", "good"), "words": (("dull", "poor"), ("fine",))}


def made(source: Any, value: Any, kind: Any = "causal", **options: Any) -> Artefact:
    lm = tiny(kind)
    form = Format(Template.parse(source), **{**LABELS, **options})
    model = {"name": lm.name, "kind": kind}
    return Artefact(value, form, "manual", {}, 0, model, asdict(lm.fingerprint()), form.template.fields)


def pieces(lm: Any, text: str) -> HardPrompt:
    return HardPrompt(torch.tensor(lm.tokenizer(text, add_special_tokens=False)["input_ids"]))


WORDS = HardPrompt.empty()


def test_a_template_with_its_words(tmp_path):
    words = export(made("Say {{so}}: {text|shorten} It was {mask}.", WORDS, "masked"), tmp_path / "x")
    record = json.loads((tmp_path / "x" / "prompt.json").read_text())
    assert record["template"] == "Say {{so}}: {text|shorten} It was {mask}."
    assert record["label_words"] == {"bad": ["dull", "poor"], "good": ["fine"]}
    assert record["example"] == {
        "fields": {"text": "a text"}, "text": "Say {so}: a text It was ", "after_the_answer": ".",
    }  # fmt: skip
    page = (tmp_path / "x" / "prompt.txt").read_text()
    assert all(part in page for part in (record["template"], "bad: dull, poor", "Say {so}: a text It was ", "'.'"))
    assert words.example == record["example"]["text"]
    # what is read back is the same template
    assert Template.parse(record["template"]).source == record["template"]


def test_messages_stay_messages(tmp_path):
    source = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "{text}?"}]
    words = export(made(source, WORDS), tmp_path / "x")
    assert words.source == source
    assert words.example == [{"role": "system", "content": "Judge."}, {"role": "user", "content": "a text?"}]


@pytest.mark.parametrize("source", ["{soft:5}: {text} It {soft:3} {answer}", "{soft:'judge'}: {text}{soft:3}"])
def test_learnt_pieces_are_written_out(tmp_path, source):
    """A template of text alone, which the model reads as the very pieces that were learnt."""
    lm = tiny("causal")
    artefact = made(source, pieces(lm, "{rate as"))
    words = export(artefact, tmp_path / "x", lm)
    assert "{soft" not in str(words.source) and "{{rate" in str(words.source)
    new = Encoder.build(lm, Format(Template.parse(words.source), **LABELS)).encode({"text": "so"})
    old = Encoder.build(lm, artefact.format).encode({"text": "so"})
    ids = [int(artefact.value.ids_P[s]) if s >= 0 else int(i) for i, s in zip(old.ids_S, old.slot_S, strict=True)]
    assert new.ids_S.tolist() == ids


def test_pieces_that_no_text_gives_are_refused(tmp_path):
    lm = tiny("causal")
    broken = HardPrompt(pieces(lm, "aé").ids_P[[0, 2, 0]])  # half of a character
    with pytest.raises(ArtefactError, match="other pieces"):
        export(made("{soft:3}{text}", broken), tmp_path / "x", lm)
    with pytest.raises(ArtefactError, match="other pieces"):  # before <s>, where no text can be put
        export(made("{soft:4}{text}", pieces(lm, "rate"), soft_first=True), tmp_path / "x", lm)
    assert not (tmp_path / "x").exists()


def test_numbers_are_refused(tmp_path):
    with pytest.raises(ArtefactError, match=r"--to vllm or --to peft, or train `manual`"):
        export(made("{soft:3}{text}", SoftPrompt(torch.zeros(3, 32))), tmp_path / "x")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes").write_text("mine")
    with pytest.raises(ArtefactError, match="not an export of text alone"):
        export(made("{text}", WORDS), tmp_path / "x")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["notes"]
