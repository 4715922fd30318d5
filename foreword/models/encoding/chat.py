"""Render chat templates with the tokenizer, and read the text back as parts.

The messages are rendered once with a sentinel for every field and slot; the text between the sentinels is the chat
template's own. Every row is rendered again with its data, and the result must equal the text of those parts.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from foreword.core.format import ChatOptions, Format
from foreword.core.template import AnswerPlace, Decoder, Demos, Field, Literal, Soft, Template, Turn, joined
from foreword.errors import ConfigError, DataError, ModelError
from foreword.models.encoding.chat_template import ChatTemplate, frozen
from foreword.models.encoding.row_items import Hole, Part

OPEN, CLOSE, PAD = "\ue000", "\ue001", "\u2003"  # private use; and a space that chat templates do not write
# The opening or, with a stroke, the closing mark of a block of thinking; and what turns thinking off.
_THINKING = re.compile(r"[<\[]\|?(/)?(?:\w+:)?(?:think\w*|thought\w*|reason\w*)\|?[>\]]", re.IGNORECASE)
_SWITCHES = {"enable_thinking": False, "thinking": False, "think": False, "reasoning_effort": "none"}
_SENTINEL = re.compile(f"({PAD}?){OPEN}([0-9]+){CLOSE}({PAD}?)")


@final
@dataclass(frozen=True, eq=False)
class Chat:
    """Hold a chat as parts of text, holes and slots. `tail` is the text before the answer, `lead` the spaces between
    the two."""

    rendering: ChatTemplate
    template: Template
    parts: tuple[Part, ...]
    order: tuple[int, ...]
    tail: str
    lead: str

    @staticmethod
    def of(tokenizer: Any, template: Template, options: ChatOptions | None = None, model: str = "") -> "Chat":
        """Return a template of messages as parts for this tokenizer; `model` is the model's name in errors.

        Raises: ModelError if the tokenizer has no chat template, or none that can be used; ConfigError for messages
        that it refuses, and for options that it never reads.
        """
        rendering = ChatTemplate.of(tokenizer, options or ChatOptions(), model)
        plain = list(template.parts)
        padded = rendering.render([_messages(template, lambda i, p: _sentinel(i, not isinstance(p, Soft)), True)])[0]
        parts: list[Part] = []
        order: list[int] = []
        at = 0
        for result in _SENTINEL.finditer(padded):
            part = plain[int(result.group(2))]
            parts += [Literal(padded[at : result.start()])] if result.start() > at else []
            if isinstance(part, Field):
                parts.append(Hole(part.name, part.shorten, not result.group(1), not result.group(3)))
            elif isinstance(part, Literal):  # text of data, which the chat template may strip as a field's
                stripped = Hole("", False, not result.group(1), not result.group(3)).trim(part.text)
                parts.append(Literal(stripped, data=True))
            else:
                assert isinstance(part, Soft), "chats have no answer"
                parts.append(part)
            order.append(int(result.group(2)))
            at = result.end()
        parts += [Literal(padded[at:])] if at < len(padded) else []
        wanted = [i for i, p in enumerate(plain) if isinstance(p, Field | Soft) or (isinstance(p, Literal) and p.data)]
        if sorted(order) != wanted:
            raise ModelError(
                f"The chat template of {rendering.name!r} leaves out or repeats a message's text; "
                "use other roles or a template of one string."
            )
        tail = parts[-1].text if parts and isinstance(parts[-1], Literal) else ""
        return Chat(rendering, template, tuple(parts), tuple(order), tail, _lead(rendering, template))

    def check(self, places: Sequence[str], filled: Sequence[Mapping[int, Sequence[str]]]) -> None:
        """Render every row with its data. Raises: DataError if the chat template changes the text of the data."""
        texts = [[text for item in sorted(row) for text in row[item]] for row in filled]
        numbers = [i for i in self.order if isinstance(self.template.parts[i], Field)]
        conversations = []
        for given in texts:
            text_of = dict(zip(numbers, given, strict=True))
            conversations.append(_messages(self.template, lambda i, p, t=text_of: t.get(i, _sentinel(i, False))))
        name = self.rendering.name
        for where, given, rendered in zip(places, texts, self.rendering.render(conversations), strict=True):
            if self._joined(given) != rendered:
                raise DataError(
                    f"{where}: the chat template of {name!r} changes the text of this row; "
                    "leave the row out, or use a template of one string."
                )

    def _joined(self, given: Sequence[str]) -> str:
        texts, slots = iter(given), iter(i for i in self.order if isinstance(self.template.parts[i], Soft))
        joined = []
        for part in self.parts:
            if isinstance(part, Literal):
                joined.append(part.text)
            else:
                joined.append(next(texts) if isinstance(part, Hole) else _sentinel(next(slots), False))
        return "".join(joined)


def begun(tokenizer: Any, asked: Sequence[Mapping[str, str]], field: str) -> Template:
    """Return messages as a template of one string in which the model's own turn begins with a field's text.

    Raises: ModelError, ConfigError as `Chat.of` says.
    """
    form = frozen(tokenizer, Format(Template.parse([dict(message) for message in asked])))
    chat = Chat.of(tokenizer, form.template, form.chat_options)
    parts = [Field(part.name, part.shorten) if isinstance(part, Hole) else part for part in chat.parts]
    lead = [Literal(chat.lead)] if chat.lead else []
    return Template((Turn("", joined([*parts, *lead, Field(field)])),))


def turn_end(tokenizer: Any) -> int | None:
    """Return the special token with which the chat template ends the model's own turn, or None if it writes none."""
    turns = [{"role": "user", "content": f"{OPEN}0{CLOSE}"}, {"role": "assistant", "content": f"{OPEN}1{CLOSE}"}]
    try:
        [whole] = ChatTemplate.of(tokenizer, ChatOptions()).render([turns], prompt=False)
    except (ConfigError, ModelError):  # it takes other messages; those who use it are told then
        return None
    after = whole.partition(f"{OPEN}1{CLOSE}")[2].lstrip()
    special = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = [content for content in special if content and after.startswith(content)]
    return special[max(ends, key=len)] if ends else None


def _sentinel(number: int, pad: bool) -> str:
    edge = PAD if pad else ""
    return f"{edge}{OPEN}{number}{CLOSE}{edge}"


def _messages(
    template: Template, text_of: Callable[[int, Field | Soft | Literal], str], data: bool = False
) -> list[dict[str, str]]:
    """Return the messages, with `text_of(number, part)` in place of every part that is not the template's own text.

    Text of demonstrations stands as it is unless `data` is true, in which case `text_of` replaces it too.
    """
    messages, number = [], 0
    for turn in template.turns:
        content = []
        for part in turn.parts:
            assert not isinstance(part, AnswerPlace | Demos | Decoder), "messages have none of them"
            if isinstance(part, Literal) and not (data and part.data):
                content.append(part.text)
            else:
                content.append(text_of(number, part))
            number += 1
        messages.append({"role": turn.role, "content": "".join(content)})
    return messages


def _lead(rendering: ChatTemplate, template: Template) -> str:
    """Return the spaces that the chat template puts between the generation prompt and the model's message."""
    messages = _messages(template, _sentinel_of)
    answer = {"role": "assistant", "content": f"{OPEN}{CLOSE}"}
    try:
        [prompt], [whole] = rendering.render([messages]), rendering.render([[*messages, answer]], prompt=False)
    except ConfigError:
        return ""
    if not whole.startswith(prompt):
        return ""
    lead = whole[len(prompt) :].partition(OPEN)[0]
    return lead if not lead.strip() else ""


def _sentinel_of(number: int, part: object) -> str:
    return _sentinel(number, False)


def thinking(tokenizer: Any, form: Format, model: str = "") -> str | None:
    """Return one line if the model's chat template lets it think before it answers messages, else None.

    It thinks if the template's generation prompt opens a block of thinking, or if a variable of the template that turns
    thinking off would change that prompt.
    """
    if not form.template.chat or not tokenizer.chat_template:
        return None
    rendering = ChatTemplate.of(tokenizer, form.chat_options, model)
    messages = _messages(form.template, _sentinel_of, True)

    def begun(variables: Mapping[str, Any]) -> str:
        options = ChatOptions.of({**rendering.options.variables, **variables}, rendering.options.clock)
        [prompt] = replace(rendering, options=options).render([messages])
        return prompt.rpartition(CLOSE)[2]

    ahead = begun({})
    marks = list(_THINKING.finditer(ahead))
    if marks and marks[-1].group(1):
        return None  # a block of thinking that is closed, before the answer
    switch = next((name for name in _SWITCHES if name in rendering.reads), None)
    if not marks:
        try:
            if switch is None or begun({switch: _SWITCHES[switch]}) == ahead:
                return None
        except ConfigError:
            return None
    where = "inside of the block of thinking that it opens" if marks else "where the model would begin to think"
    what = "Label words are scored" if form.answers != "text" else "Answers are read from"
    advice = (
        "" if switch is None else f"; give the chat option {switch}={json.dumps(_SWITCHES[switch])} for answers alone"
    )
    return f"The chat template of {rendering.name!r} lets the model think first. {what} {where}{advice}."
