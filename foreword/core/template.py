"""Parse templates: fields of a row become segments with named slots. A parser, never eval; data stays literal.

    {text}              a field of the row           {text|shorten}   the field that is cut when a row is too long
    {field:'any name'}  a field of any name          {field:'x'|shorten}
    {soft:20}           a slot of 20 positions       {soft:'It was'}  a slot as long as these words, started from them
    {mask} or {answer}  where the label word stands  {{ and }}        braces
    {demos}             where demonstrations stand   {'a text'}       text of data, no token of which is special
    {decoder}           what an encoder-decoder model's decoder begins with stands after it; without it, nothing does

A template is one such string, or a list of {"role": ..., "content": ...} messages with such strings as content.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from foreword.core.text import broken, shown
from foreword.errors import ConfigError, DataError

FORMS = (
    "{field}, {field|shorten}, {field:'any name'}, {soft:20}, {soft:'words'}, {mask} or {answer}, {demos}, {decoder}, "
    "{'text of data'}, and {{ or }} for a brace"
)
LONGEST_SLOT = 10_000
# Text in which a token may stand that is a mark and no word: <think>, [TOOL_CALLS], <|im_end|>, __eou__, 【mark】.
MARK = re.compile(
    r"<[^<>]{0,60}\w[^<>]{0,60}>|\[[^\[\]]{0,60}\w[^\[\]]{0,60}\]|\|[^|]{0,60}\w[^|]{0,60}\||__\w{1,60}?__|"
    r"[＜【「『〈《⟨][^＞】」』〉》⟩]{1,60}[＞】」』〉》⟩]"
)

_NAME = re.compile(r"[^\s{}|:'\"](?:[^{}|:'\"\n]*[^\s{}|:'\"])?")
_QUOTED = re.compile(r"soft\s*:\s*(?:'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\")\s*\}", re.DOTALL)
_DATA = re.compile(r"\s*(?:'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\")\s*\}", re.DOTALL)
_NAMED = re.compile(r"\s*field\s*:\s*(?:'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\")\s*(\|\s*shorten\s*)?\}", re.DOTALL)
_PLAIN = re.compile(r"[^{}]+")
_RESERVED = ("mask", "answer", "soft", "demos", "decoder")


@final
@dataclass(frozen=True)
class Literal:
    """Hold text of the template itself; `data` marks text that came from rows, in which no token is a special one."""

    text: str
    data: bool = False


@final
@dataclass(frozen=True)
class Field:
    """Hold a field of the row; `shorten` marks the part that is cut when a row is too long."""

    name: str
    shorten: bool = False


@final
@dataclass(frozen=True)
class Soft:
    """Mark a slot for a prompt: `length` positions, or as many as `words` have tokens."""

    length: int | None = None
    words: str | None = None


@final
@dataclass(frozen=True)
class AnswerPlace:
    """Mark where the label word stands; `name` is how it was written, "mask" or "answer"."""

    name: str = "answer"


@final
@dataclass(frozen=True)
class Demos:
    """Mark where demonstrations stand, until `core.demos` writes them there."""


@final
@dataclass(frozen=True)
class Decoder:
    """Mark where the encoder's text ends; what follows is what the decoder reads before the answer begins."""


@final
@dataclass(frozen=True)
class Filled:
    """Hold a field's text, from the row. Nothing in it is read as a template."""

    name: str
    text: str
    shorten: bool


Part = Literal | Field | Soft | AnswerPlace | Demos | Decoder
Segment = Literal | Filled | Soft | AnswerPlace | Demos | Decoder


@final
@dataclass(frozen=True)
class Turn:
    """Hold one message of a chat, or the whole of a plain template (role "")."""

    role: str
    parts: tuple[Part, ...]


@final
@dataclass(frozen=True)
class Template:
    """Hold a parsed template. Equal templates have equal sources."""

    turns: tuple[Turn, ...]

    @staticmethod
    def parse(source: str | Sequence[Any]) -> "Template":
        """Parse text or a list of messages. Raises: ConfigError that names the place and shows the allowed forms."""
        if not isinstance(source, str | list | tuple):
            raise ConfigError(f"The template is {shown(source)}; give text, or a list of {{role, content}} messages.")
        if isinstance(source, str):
            turns = (Turn("", _parse(source, "Template")),)
        else:
            turns = tuple(_parse_message(message, i) for i, message in enumerate(source, 1))
            if not turns:
                raise ConfigError("The template is an empty list; give at least one {role, content} message.")
        answers = [p for turn in turns for p in turn.parts if isinstance(p, AnswerPlace)]
        if len(answers) > 1:
            raise ConfigError(f"The template {source!r} has {len(answers)} places for the answer; it may have one.")
        if answers and turns[0].role:
            raise ConfigError(f"Messages with {_write(answers[0])}: leave it out; the model's own turn is the answer.")
        demos = sum(isinstance(p, Demos) for turn in turns for p in turn.parts)
        if demos > 1 or (demos and turns[0].role):
            raise ConfigError(
                f"The template {source!r} has {{demos}} {demos} times; a string may have it once, and messages need "
                "none: demonstrations become earlier turns."
            )
        _check_decoder(source, turns)
        return Template(turns)

    @property
    def source(self) -> str | list[dict[str, str]]:
        """Return the string or the messages that `parse` reads back as this template."""
        if not self.chat:
            return "".join(map(_write, self.turns[0].parts))
        return [{"role": t.role, "content": "".join(map(_write, t.parts))} for t in self.turns]

    @property
    def chat(self) -> bool:
        """Return whether the template is a list of messages."""
        return bool(self.turns[0].role)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return the parts of all turns in order."""
        return tuple(part for turn in self.turns for part in turn.parts)

    @property
    def fields(self) -> tuple[str, ...]:
        """Return the names of the fields, each once, in order."""
        return tuple(dict.fromkeys(p.name for p in self.parts if isinstance(p, Field)))

    @property
    def slots(self) -> tuple[Soft, ...]:
        return tuple(p for p in self.parts if isinstance(p, Soft))

    @property
    def answer(self) -> AnswerPlace | None:
        return next((p for p in self.parts if isinstance(p, AnswerPlace)), None)

    @property
    def halves(self) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        """Return the parts for the encoder, and those that its decoder begins with: none if there is no {decoder}."""
        if Decoder() not in self.parts:
            return self.parts, ()
        at = self.parts.index(Decoder())
        return self.parts[:at], self.parts[at + 1 :]

    @property
    def holds_data(self) -> bool:
        """Return whether text of rows stands in the template, as demonstrations do."""
        return any(isinstance(p, Literal) and p.data for p in self.parts)

    def without_demos(self) -> "Template":
        """Return the template without its place for demonstrations."""
        return Template(tuple(Turn(t.role, joined([p for p in t.parts if p != Demos()])) for t in self.turns))

    def fill(self, row: Mapping[str, str]) -> tuple[Segment, ...]:
        """Return the template's segments with the row's texts in place of the fields.

        Raises: DataError for a field that the row lacks or that is not text.
        """
        return tuple(
            Filled(p.name, field_text(row, p.name), p.shorten) if isinstance(p, Field) else p for p in self.parts
        )

    def with_soft(self, slot: int | str, where: str = "front") -> "Template":
        """Return the template if it has a slot, else with one of this length or of these words.

        The slot stands at the "front", or before the "answer". Raises: ConfigError for another place, or for a
        length or words that no slot may have.
        """
        if self.slots:
            return self
        soft = Soft(length=slot) if isinstance(slot, int) else Soft(words=slot)
        _check_slot(soft, f"with_soft({slot!r})")
        if where not in ("front", "answer"):
            raise ConfigError(f'A slot cannot stand at {where!r}; choose "front" or "answer".')
        first, last = self.turns[0], self.turns[-1]
        if where == "front":
            return Template((Turn(first.role, (soft, *first.parts)), *self.turns[1:]))
        at = last.parts.index(self.answer) if self.answer else len(last.parts)
        space = (Literal(" "),) if self.answer else ()
        return Template((*self.turns[:-1], Turn(last.role, (*last.parts[:at], soft, *space, *last.parts[at:]))))

    def for_kind(self, kind: str) -> "Template":
        """Return the template for a kind of model: "masked" with a place for the answer, others with nothing after it.

        The other kinds are "causal" and "seq2seq".

        Raises: ConfigError if words follow the answer, which only a masked model reads, and for a template with
        {decoder} if the model has no decoder of its own.
        """
        if Decoder() in self.parts and kind != "seq2seq":
            raise ConfigError(
                f"The template {self.source!r} has {{decoder}}, and a {kind} model has no decoder of its own; leave it "
                "out, or use an encoder-decoder model."
            )
        if self.chat or Decoder() in self.parts:
            return self
        (turn,) = self.turns
        if kind == "masked":
            return self if self.answer else Template((Turn("", (*turn.parts, Literal(" "), AnswerPlace("mask"))),))
        if self.answer is None:
            return self
        at = turn.parts.index(self.answer)
        after = turn.parts[at + 1 :]
        if any(not isinstance(p, Literal) or any(c.isalnum() for c in p.text) for p in after):
            raise ConfigError(
                f"The template {self.source!r} goes on after its answer, which a {kind} model has not read; give one "
                "that ends with it."
            )
        return Template((Turn("", (*turn.parts[:at], AnswerPlace("answer"))),))

    def without_soft(self) -> "Template":
        """Return the template without its slots; the spaces around a slot become one."""
        return Template(tuple(Turn(t.role, _without_slots(t.parts)) for t in self.turns))


def literal(text: str, data: bool = False) -> Literal:
    """Return text as a part of a template: data if it is a row's, or if a control token could stand in it."""
    return Literal(text, data=data or MARK.search(text) is not None)


def filled(parts: Sequence[Part], row: Mapping[str, str]) -> list[Part]:
    """Return the parts with a row's texts in place of its fields, as data: no token in them is a special one.

    Raises: DataError as `field_text` says.
    """
    return [Literal(field_text(row, part.name), data=True) if isinstance(part, Field) else part for part in parts]


def written(*parts: Part) -> str:
    """Return the source text of these parts."""
    return "".join(map(_write, parts))


def field_text(row: Mapping[str, str], name: str) -> str:
    """Return the row's text of this name. Raises: DataError if it is missing or not text."""
    if not isinstance(row, Mapping):
        raise DataError(f"The row is {shown(row)}; give a mapping of fields to texts.")
    if name not in row:
        given = ", ".join(map(repr, row)) or "no fields"
        raise DataError(f"The template asks for field {name!r}; the row has {given}.")
    text = row[name]
    if not isinstance(text, str):
        raise DataError(f"Field {name!r} holds {type(text).__name__} {shown(text)}; it must hold text.")
    return text


def _check_decoder(source: Any, turns: Sequence[Turn]) -> None:
    parts = [part for turn in turns for part in turn.parts]
    count = parts.count(Decoder())
    if not count:
        return
    if count > 1 or turns[0].role:
        raise ConfigError(
            f"The template {source!r} has {{decoder}} {count} times; a string may have it once, and messages none."
        )
    at = parts.index(Decoder())
    odd = [p for p in parts[at:] if isinstance(p, Field | Demos)]
    if odd:
        raise ConfigError(
            f"The template {source!r} has {_write(odd[0])} after {{decoder}}, where only words, slots and {{answer}} "
            "may stand: the encoder reads the row; move it before {decoder}."
        )
    if any(isinstance(p, AnswerPlace) for p in parts[:at]):
        raise ConfigError(
            f"The template {source!r} has its answer before {{decoder}}; the decoder writes it: move it to the end."
        )


def _parse_message(message: Any, number: int) -> Turn:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        given = sorted(map(str, message)) if isinstance(message, Mapping) else shown(message)
        raise ConfigError(f"Message {number} of the template has {given}; it needs exactly role and content.")
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or not role or not isinstance(content, str):
        raise ConfigError(f"Message {number} of the template has role {shown(role)}; role and content must be text.")
    return Turn(role, _parse(content, f"Message {number} of the template"))


def _parse(source: str, what: str) -> tuple[Part, ...]:
    if reason := broken(source):
        raise ConfigError(f"{what} {reason}.")

    def fail(at: int, problem: str) -> ConfigError:
        return ConfigError(f"{what} {source!r}, position {at}: {problem}. Allowed: {FORMS}.")

    parts: list[Part] = []
    text: list[str] = []

    def flush() -> None:
        if text:
            parts.append(Literal("".join(text)))
            text.clear()

    at = 0
    while at < len(source):
        plain = _PLAIN.match(source, at)
        if plain:
            text.append(plain.group())
            at = plain.end()
        elif source[at : at + 2] in ("{{", "}}"):
            text.append(source[at])
            at += 2
        elif source[at] == "}":
            raise fail(at, "a '}' without its '{'; write }} for a brace")
        else:
            quoted = next((m for form in (_QUOTED, _DATA, _NAMED) if (m := form.match(source, at + 1))), None)
            end = quoted.end() if quoted else source.find("}", at) + 1
            if not end:
                raise fail(at, "a '{' that is never closed; write {{ for a brace")
            flush()
            if quoted:
                words = quoted.group(1) if quoted.group(1) is not None else quoted.group(2)
                words = re.sub(r"\\(.)", r"\1", words, flags=re.DOTALL)
                part: Part = Soft(words=words)
                if quoted.re is _DATA:
                    part = Literal(words, data=True)
                elif quoted.re is _NAMED:
                    part = Field(words, bool(quoted.group(3)))
            else:
                part = _form(source[at + 1 : end - 1], at, fail)
            if isinstance(part, Soft):
                _check_slot(part, f"{what} {source!r}, position {at}")
            parts.append(part)
            at = end
    flush()
    return tuple(parts)


def _form(inside: str, at: int, fail: Callable[[int, str], ConfigError]) -> Part:
    """Parse one form between braces, other than quoted words."""
    body = inside.strip()
    name, colon, value = body.partition(":")
    if name.strip() == "soft":
        if not colon or not re.fullmatch(r"[0-9]{1,9}", value.strip()):
            raise fail(at, f"{{{inside}}} needs a length or words in quotes")
        return Soft(length=int(value))
    if body in ("mask", "answer"):
        return AnswerPlace(body)
    if body == "demos":
        return Demos()
    if body == "decoder":
        return Decoder()
    name, bar, modifier = body.partition("|")
    name, modifier = name.strip(), modifier.strip()
    if name in _RESERVED or not _NAME.fullmatch(name):
        problem = f"{{{inside}}} is not a field, a slot or the answer"
        if name in _RESERVED:
            problem += f"; a field of that name is {_write(Field(name, modifier == 'shorten'))}"
        raise fail(at, problem)
    if bar and modifier != "shorten":
        raise fail(at, f"{{{inside}}} has {modifier!r} after the bar")
    return Field(name, bool(bar))


def _check_slot(soft: Soft, where: str) -> None:
    if soft.length is not None and not 1 <= soft.length <= LONGEST_SLOT:
        raise ConfigError(f"{where}: a slot of {soft.length} positions; it may have 1 to {LONGEST_SLOT}.")
    if soft.words is not None and not soft.words.strip():
        raise ConfigError(f"{where}: a slot without words; give a length or at least one word.")


def _write(part: Part) -> str:
    match part:
        case Demos():
            return "{demos}"
        case Decoder():
            return "{decoder}"
        case Literal(text, True):
            return f"{{{_quoted(text)}}}"
        case Literal(text):
            return text.replace("{", "{{").replace("}", "}}")
        case Field(name, shorten):
            plain = _NAME.fullmatch(name) and name not in _RESERVED
            return "{" + (name if plain else f"field:{_quoted(name)}") + ("|shorten" if shorten else "") + "}"
        case Soft(length, None):
            return f"{{soft:{length}}}"
        case Soft(_, words):
            return f"{{soft:{_quoted(words or '')}}}"
        case AnswerPlace(name):
            return "{" + name + "}"


def _quoted(text: str) -> str:
    return "'" + re.sub(r"(['\\])", r"\\\1", text) + "'"


def joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Return the parts with neighbouring texts of the template merged and empty ones left out, as `parse` does."""
    kept: list[Part] = []
    for part in parts:
        last = kept[-1] if kept else None
        if isinstance(part, Literal) and not part.data and isinstance(last, Literal) and not last.data:
            kept[-1] = Literal(last.text + part.text)
        elif not isinstance(part, Literal) or part.text:
            kept.append(part)
    return tuple(kept)


def _without_slots(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    kept: list[Part] = []
    removed = False
    for part in parts:
        own = kept[-1] if kept else None
        text = own.text if isinstance(own, Literal) and not own.data else None
        if isinstance(part, Soft):
            removed = True
            if text is not None:
                kept[-1] = Literal(text.rstrip(" "))
            continue
        begins = own is None or (text is not None and text[-1:].isspace())
        if removed and begins and isinstance(part, Literal) and not part.data:
            part = Literal(part.text.lstrip(" "))
        removed = False
        kept.append(part)
    return joined(kept)
