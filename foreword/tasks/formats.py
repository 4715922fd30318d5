"""Default templates and label words: per task where one is known, else by the kind of model and the fields."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from foreword.core.format import Decoding, Format
from foreword.core.template import Field, Template, literal, written
from foreword.errors import ConfigError
from foreword.tasks.rows import Row

LONGEST = 256  # pieces of an answer, unless told otherwise


def words_of(label: str) -> str:
    """The label word of a label's name: lower case, with `_`, `-`, `/` and spaces as one space."""
    return re.sub(r"[\s_\-/]+", " ", label).strip().lower() or label


def default_decoding(rows: Sequence[Row], chat: bool) -> Decoding:
    """Greedy and to the end of the line, unless targets or turns have several; a piece is a byte at least, so that two
    pieces more than the longest target has bytes cut no right answer and make no wrong one right.
    """
    targets = [target for row in rows for target in row.targets]
    longest = max((len(target.encode()) for target in targets), default=LONGEST)
    lines = chat or any("\n" in target for target in targets)
    return Decoding(min(LONGEST, longest + 2), stop_strings=() if lines else ("\n",))


def text_template(fields: Sequence[str]) -> str:
    """A plain template for answers in text: each field on a line of its own."""
    return f"{shown(fields)}\n{'Output' if tuple(fields) == ('input',) else 'Answer'}: {{answer}}"


def generic_template(kind: Literal["masked", "causal", "seq2seq"], fields: Sequence[str], labels: Sequence[str]) -> str:
    """A plain template for one text, a pair, or several fields."""
    if len(fields) == 1:
        text = written(Field(fields[0], True))
        return f"{text} It is {{mask}}." if kind == "masked" else f"Text: {text}\nLabel: {{answer}}"
    if kind == "masked":
        return shown(fields, " ") + " Label: {mask}."
    return shown(fields) + ("\nLabel: {answer}" if labels else "\nAnswer: {answer}")


def generic_chat(fields: Sequence[str], words: Sequence[str]) -> list[dict[str, str]]:
    """One user message that shows the fields and lists the answers."""
    listed = ", ".join(written(literal(word)) for word in words)
    ask = f"Answer with one of these: {listed}." if words else "Answer the question."
    return [{"role": "user", "content": f"{shown(fields)}\n\n{ask}"}]


def shown(fields: Sequence[str], between: str = "\n") -> str:
    """The fields as a template shows them, each after its name; the first is cut if a row is too long."""
    return between.join(f"{_title(name)}{written(Field(name, i == 0))}" for i, name in enumerate(fields))


def build_format(
    kind: Literal["masked", "causal", "seq2seq"],
    fields: Sequence[str],
    labels: tuple[str, ...],
    template: str | Sequence[Mapping[str, str]] | None,
    label_words: Mapping[str, str | Sequence[str]] | None,
    *,
    chat: bool = False,
    **options: Any,
) -> Format:
    """The Format of a task; what is not given is generic."""
    words = _label_words(labels, label_words)
    if template is None and options.get("decoding") is not None and not chat:
        template = text_template(fields)
    if template is None:
        firsts = [w[0] for w in words]
        template = generic_chat(fields, firsts) if chat else generic_template(kind, fields, labels)
    parsed = Template.parse(template if isinstance(template, str) else [dict(message) for message in template])
    unknown = [name for name in parsed.fields if name not in fields]
    if unknown:
        raise ConfigError(
            f"the template names the field {unknown[0]!r}, which the rows lack (fields: {', '.join(fields)}); "
            "correct the name, or write {{ and }} for braces"
        )
    return Format(template=parsed, labels=labels, words=words, **options)


def _label_words(
    labels: tuple[str, ...], given: Mapping[str, str | Sequence[str]] | None
) -> tuple[tuple[str, ...], ...]:
    given = given or {}
    unknown = [name for name in given if name not in labels]
    if unknown and labels:
        raise ConfigError(f"label words were given for {unknown[0]!r}, but the labels are {', '.join(labels)}")
    found = [given.get(label, words_of(label)) for label in labels]
    words = tuple((w,) if isinstance(w, str) else tuple(w) for w in found)
    seen: dict[str, str] = {}
    for label, some in zip(labels, words, strict=True):
        if not some:
            raise ConfigError(f"label {label!r} has no label words; give one or more")
        for word in some:
            if word in seen:
                raise ConfigError(f"label word {word!r} is given for {seen[word]!r} and {label!r}; give each its own")
            seen[word] = label
    return words


def _title(name: str) -> str:
    """A field's name as words of a template before its text; a name without words is left out."""
    words = re.sub(r"[_\-]+", " ", name).strip().capitalize()
    return f"{written(literal(words))}: " if words else ""
