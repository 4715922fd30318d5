"""Export prompts of words as text: the template, the label words and an example, for a person and for any other
program."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.core.template import AnswerPlace, Filled, Literal, Part, Soft, Template, Turn
from foreword.errors import ArtefactError
from foreword.interop.folder import SAMPLE, sample_fields, write_export
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoder
from foreword.models.encoding.row_items import Gap

RECORD, TEXT = "prompt.json", "prompt.txt"


@dataclass(frozen=True)
class Words:
    """Hold a prompt that is text alone. `source` is a template without slots, as Foreword writes one; `example` is a
    row filled in up to the answer, one text or messages, and `after` what a masked model reads behind it."""

    source: str | list[dict[str, str]]
    labels: dict[str, list[str]]
    example: str | list[dict[str, str]]
    after: str


def export(artefact: Artefact, folder: str | Path, lm: FrozenLM | None = None) -> Words:
    """Write `prompt.txt` and `prompt.json`; `lm` is needed for prompts of token ids, which its tokenizer writes out.

    Raises: ArtefactError for a prompt that is not words, or whose tokens no text gives again.
    """
    if not isinstance(artefact.value, HardPrompt):
        raise ArtefactError(
            f"An artefact of {artefact.method} ({artefact.form}) holds numbers that no text can say; export it with "
            "--to vllm or --to peft, or train `manual`, whose prompt is words."
        )
    form = artefact.format
    if artefact.value.length:
        assert lm is not None, "token ids are of a tokenizer"
        form = _written_out(form, artefact.value, lm)
    words = _words(form)
    record: dict[str, Any] = {
        "template": words.source,
        "fields": list(form.template.fields),
        **({"chat_options": form.chat_options.to_json()} if form.chat_options.to_json() else {}),
        "label_words": words.labels,
        "example": {"fields": sample_fields(form), "text": words.example, "after_the_answer": words.after},
        "method": artefact.method,
        "made_for": artefact.model,
    }
    contents = {
        RECORD: (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode(),
        TEXT: _page(artefact, words).encode(),
    }
    write_export(folder, contents, "an export of text")
    return words


def _written_out(form: Format, value: HardPrompt, lm: FrozenLM) -> Format:
    """Return the format with the words of the prompt in place of its slots. Raises: ArtefactError if a row then
    differs."""
    encoder = Encoder.build(lm, form)
    lengths = [len(item.ids) for item in encoder.row.items if isinstance(item, Gap)]
    texts = iter([lm.tokenizer.decode(own.tolist()) for own in value.ids_P.split(lengths)])
    turns = []
    for turn in form.template.turns:
        parts: list[Part] = []
        for part in turn.parts:
            if isinstance(part, Soft):
                last = parts[-1] if parts else None
                if isinstance(last, Literal):  # the spaces before a slot are no part of a row
                    parts[-1] = Literal(last.text.rstrip(" "))
                part = Literal(next(texts))
            parts.append(part)
        turns.append(Turn(turn.role, tuple(parts)))
    written = replace(form, template=Template.parse(Template(tuple(turns)).source), soft_first=False)
    options = () if form.labels else ("yes", "no")
    learnt = encoder.encode(sample_fields(form), options)
    ids_S = np.where(learnt.slot_S >= 0, value.ids_P.numpy()[learnt.slot_S], learnt.ids_S)
    if Encoder.build(lm, written).encode(sample_fields(form), options).ids_S.tolist() != ids_S.tolist():
        raise ArtefactError(
            f"The prompt's pieces written as text, {written.template.source!r}, are other pieces to {lm.name!r}, so "
            "text does not say what was learnt; export it with --to vllm, or use it with Foreword."
        )
    return written


def _words(form: Format) -> Words:
    template = form.template
    texts, behind, answered = [], "", False
    for turn in template.turns:
        text = ""
        for part in Template((turn,)).fill(sample_fields(form)):
            if isinstance(part, AnswerPlace):
                answered = True
            elif isinstance(part, Literal | Filled):
                text, behind = (text, behind + part.text) if answered else (text + part.text, behind)
        texts.append((turn.role, text))
    example = [{"role": role, "content": text} for role, text in texts] if template.chat else texts[0][1]
    labels = {label: list(words) for label, words in zip(form.labels, form.words, strict=True)}
    return Words(template.source, labels, example, behind)


def _page(artefact: Artefact, words: Words) -> str:
    def shown(text: str | list[dict[str, str]]) -> list[str]:
        if isinstance(text, str):
            return [text]
        return [line for message in text for line in (f"[{message['role']}]", message["content"])]

    labels = [f"{label}: {', '.join(some)}" for label, some in words.labels.items()]
    before = f", before {words.after!r}" if words.after else ""
    lines = [
        "TEMPLATE",
        "",
        *shown(words.source),
        "",
        "LABEL WORDS",
        "",
        *(labels or ["Each row brings its own options."]),
        "",
        f"EXAMPLE, with {SAMPLE!r} in each field; the answer comes after it{before}",
        "",
        *shown(words.example),
        "",
        "{name} is a field of the row, |shorten the one to cut where a text is too long; {mask} or {answer} is where",
        f"the label word stands. Made by Foreword (method {artefact.method}) for {artefact.model.get('name')}.",
    ]
    return "\n".join(lines) + "\n"
