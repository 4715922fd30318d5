"""Build default templates, label words and decodings by the kind of model, the fields and the rows of a task."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from foreword.core.format import Decoding, Format
from foreword.core.template import Field, Template, literal, written
from foreword.errors import ConfigError
from foreword.tasks.rows import Row

if TYPE_CHECKING:
    from foreword.models.base import FrozenLM

LONGEST = 256  # tokens of an answer, where no target is longer
CAP = 1024  # tokens of an answer at most, unless told otherwise: a prompt that never stops costs as many a row


def words_of(label: str) -> str:
    """Return the label word of a label's name: lower case, with `_`, `-`, `/` and spaces as one space."""
    return re.sub(r"[\s_\-/]+", " ", label).strip().lower() or label


def default_decoding(
    rows: Sequence[Row], chat: bool, lm: "FrozenLM | None" = None, metric: str | None = None
) -> Decoding:
    """Return a greedy decoding as long as the targets, to the end of the line unless targets or turns have several.

    A token has at least one byte, so the bytes of the longest target plus two, as a limit of tokens, cut no right
    answer and make no wrong one right. If that is more than `LONGEST`, `lm` counts the target's tokens, and the limit
    is a tenth more (at least 8); at most `CAP`, and half of the model's positions. If the metric looks for the answer
    in the text (a number, and in a chat what it contains), the text may say more than the target: it has `LONGEST`
    tokens or more, in a chat twice as many. `rows` are training and validation rows, never test rows.
    """
    targets = [target for row in rows for target in row.targets]
    longest = max((len(target.encode()) for target in targets), default=LONGEST)
    lines = chat or any("\n" in target for target in targets)
    limit = longest + 2
    if limit > LONGEST and lm is not None and targets:
        most = max(token_counts(lm, [target for target in targets if len(target.encode()) + 2 > LONGEST]))
        limit = max(LONGEST, min(limit, most + max(8, most // 10), max(LONGEST, lm.dims.context // 2)))
    if metric == "number" or (metric == "contains" and chat):
        room = lm.dims.context // 2 if lm is not None else CAP
        limit = max(limit, min(2 * LONGEST if chat else LONGEST, room))
    limit = min(limit, CAP) if targets else LONGEST
    return Decoding(limit, stop_strings=() if lines else ("\n",))


def token_counts(lm: "FrozenLM", texts: Sequence[str]) -> list[int]:
    """Return the number of the model's tokens in each text, without special tokens."""
    return [len(lm.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def longer_targets(lm: "FrozenLM", form: Format, rows: Sequence[Row]) -> int:
    """Count the rows whose targets all have more tokens than an answer may have, and so cannot be written."""
    if form.decoding is None:
        return 0
    limit = form.decoding.max_new_tokens
    result = 0
    for row in rows:
        # A token has a byte or more: what is short in bytes needs no count.
        if row.targets and all(len(target.encode()) > limit for target in row.targets):
            result += min(token_counts(lm, row.targets)) > limit
    return result


def text_template(fields: Sequence[str]) -> str:
    """Build a plain template for answers in text, with one line for each field."""
    return f"{shown(fields)}\n{'Output' if tuple(fields) == ('input',) else 'Answer'}: {{answer}}"


def generic_template(kind: Literal["masked", "causal", "seq2seq"], fields: Sequence[str], labels: Sequence[str]) -> str:
    """Build a plain template for one text, a pair, or several fields."""
    if len(fields) == 1:
        text = written(Field(fields[0], True))
        return f"{text} It is {{mask}}." if kind == "masked" else f"Text: {text}\nLabel: {{answer}}"
    if kind == "masked":
        return shown(fields, " ") + " Label: {mask}."
    return shown(fields) + ("\nLabel: {answer}" if labels else "\nAnswer: {answer}")


def generic_chat(fields: Sequence[str], words: Sequence[str]) -> list[dict[str, str]]:
    """Build a chat of one user message that shows the fields and lists the answers."""
    listed = ", ".join(written(literal(word)) for word in words)
    ask = f"Answer with one of these: {listed}." if words else "Answer the question."
    return [{"role": "user", "content": f"{shown(fields)}\n\n{ask}"}]


def shown(fields: Sequence[str], between: str = "\n") -> str:
    """Write the fields as a template shows them, each after its name; the first is cut if a row is too long."""
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
    """Build the Format of a task; a template or label words that are not given are generic."""
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
    """Write a field's name as words of a template before its text; a name without words is left out."""
    words = re.sub(r"[_\-]+", " ", name).strip().capitalize()
    return f"{written(literal(words))}: " if words else ""
