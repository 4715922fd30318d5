"""Render a tokenizer's chat template with its variables and its clock.

The template's `strftime_now` is replaced by a macro in front of it, which reads the texts of a recorded moment. A
format that the macro has no text for ends the rendering with an error that names it; then the text is added and the
rendering begins again. So the library's own function renders every chat.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, final

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from foreword.core.format import CLOCK, ChatOptions, Format
from foreword.errors import ConfigError, ModelError

Message = Mapping[str, str]
RANDOM = ((nodes.Filter, "random"), (nodes.Name, "lipsum"))  # of Jinja
GIVEN = ("messages", "add_generation_prompt")  # variables that the library sets
# Options of the library's own function, which no variable of a template can be given through.
TAKEN = (
    "conversation", "chat_template", "continue_final_message", "tokenize", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens",
    "foreword_clock",
)  # fmt: skip
FORMATS = 64  # different formats of the clock that one template may ask for

_UNKNOWN = "foreword has no text for this format of the clock: "
_MACRO = (
    "{%- macro " + CLOCK + "(format) -%}{{- foreword_clock[format] if format in foreword_clock else "
    "raise_exception(" + repr(_UNKNOWN) + " ~ format) -}}{%- endmacro %}\n"
)
_DAY = re.compile(r"%[-_0^#]?[aAbBdmyYjUWGVuwxehDFCgnt%]")  # what a clock writes that changes at midnight alone
_ENGLISH = {
    "a": ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"),
    "A": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "b": ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
    "B": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
        "December",
    ),
}  # fmt: skip
_SEVERAL = {"c": "%a %b %e %H:%M:%S %Y", "x": "%m/%d/%y", "X": "%H:%M:%S", "h": "%b", "r": "%I:%M:%S %p"}


@final
@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """Hold a tokenizer's chat template with the options that it is rendered with.

    `name` is the model's name in errors. `reads` holds the names of the template's own variables, the clock's among
    them; `by_day` is true if the text that it makes of the clock changes only at midnight.
    """

    tokenizer: Any
    name: str
    source: str
    options: ChatOptions
    reads: tuple[str, ...]
    by_day: bool

    @staticmethod
    def of(tokenizer: Any, options: ChatOptions, model: str = "") -> "ChatTemplate":
        """Return the chat template of this tokenizer; `model` is the model's name in errors, or else the tokenizer's
        name.

        Raises: ModelError for a tokenizer without a chat template, and for a chat template that cannot be parsed or
        picks at random; ConfigError for variables that the template never reads.
        """
        name = model or tokenizer.name_or_path
        if not tokenizer.chat_template:
            raise ModelError(
                f"The tokenizer of {name!r} has no chat template, so it cannot take messages; give the template as "
                "one string."
            )
        try:
            source = tokenizer.get_chat_template(tools=options.variables.get("tools"))
            reads, random, by_day = _read(source)
        except (ValueError, TemplateSyntaxError) as error:
            raise ModelError(
                f"The chat template of {name!r} cannot be read ({error}); give the template as one string."
            ) from None
        if random:
            raise ModelError(
                f"The chat template of {name!r} picks at random (`{random}`), so it reads no row twice in the same "
                "way; give the template as one string."
            )
        own = tuple(sorted(reads - {*GIVEN, *TAKEN, *tokenizer.special_tokens_map}))
        unknown = [variable for variable in options.variables if variable not in own]
        if unknown:
            raise ConfigError(
                f"The chat template of {name!r} never reads {', '.join(unknown)}; "
                + (f"the chat options that it reads are {', '.join(own)}." if own else "it reads no chat options.")
            )
        return ChatTemplate(tokenizer, name, source, options, own, by_day)

    @property
    def reads_clock(self) -> bool:
        return CLOCK in self.reads

    @property
    def now(self) -> str:
        """Return the present moment by the library's clock: only the day if the template's text changes only at
        midnight."""
        shown = "{{ " + CLOCK + "('%Y-%m-%dT%H:%M:%S') }}"
        [moment] = self.tokenizer.apply_chat_template(
            [[{"role": "user", "content": ""}]], tokenize=False, chat_template=shown
        )
        return moment.partition("T")[0] if self.by_day else moment

    def render(self, conversations: Sequence[Sequence[Message]], prompt: bool = True) -> list[str]:
        """Return the text of each conversation, with the generation prompt if `prompt`. Raises: ConfigError with the
        template's own error for messages that it refuses."""
        if not conversations:  # as of a task without validation rows; the library refuses an empty list
            return []
        texts: dict[str, str] = {}  # of the clock, by format
        variables = {name: value for name, value in self.options.variables.items() if name != CLOCK}
        if self.reads_clock:
            variables |= {"chat_template": _MACRO + self.source, "foreword_clock": texts}
        plain = [[dict(message) for message in conversation] for conversation in conversations]
        while True:
            try:
                return self.tokenizer.apply_chat_template(
                    plain, tokenize=False, add_generation_prompt=prompt, **variables
                )
            except Exception as error:  # a template's own code raises whatever Python does
                form = str(error).partition(_UNKNOWN)[2] if isinstance(error, TemplateError) else ""
                if not form or form in texts or len(texts) == FORMATS:
                    raise self._refusal(plain, error) from None
                texts[form] = strftime(self.options.moment, form)

    def _refusal(self, conversations: Sequence[Sequence[Message]], error: Exception) -> ConfigError:
        roles = ", ".join(message["role"] for message in conversations[0])
        why = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        return ConfigError(
            f"The chat template of {self.name!r} refuses messages of the roles {roles}: "
            f"{why.rstrip('.')}. Change the messages, or give the template as one string."
        )


def frozen(tokenizer: Any, form: Format, model: str = "") -> Format:
    """Return the format with the present moment as its clock if its chat template reads the clock and none was
    recorded.

    Raises: ModelError, ConfigError as `ChatTemplate.of` says.
    """
    chat = undated(tokenizer, form, model)
    return form if chat is None else replace(form, chat_options=form.chat_options.at(chat.now))


def undated(tokenizer: Any, form: Format, model: str = "") -> ChatTemplate | None:
    """Return the chat template that a format is rendered with if it reads the clock and none was recorded.

    Raises: ModelError, ConfigError as `ChatTemplate.of` says.
    """
    if not form.template.chat or form.chat_options.clock is not None or not tokenizer.chat_template:
        return None
    chat = ChatTemplate.of(tokenizer, form.chat_options, model)
    return chat if chat.reads_clock and CLOCK not in form.chat_options.variables else None


def strftime(moment: datetime, form: str) -> str:
    """Return the moment in this format, in English whatever the language of the process is."""

    def plain(found: re.Match[str]) -> str:
        letter = found.group(1)
        if letter in _SEVERAL:
            return re.sub("%(.)", plain, _SEVERAL[letter])
        if letter in _ENGLISH:
            return _ENGLISH[letter][moment.weekday() if letter in "aA" else moment.month - 1]
        if letter == "e":
            return f"{moment.day:2}"
        if letter == "p":
            return "AM" if moment.hour < 12 else "PM"
        return found.group()

    return moment.strftime(re.sub("%(.)", plain, form, flags=re.DOTALL))


@final
class _Generation(Extension):
    """Parse the library's `generation` tag, which marks what the model writes and renders nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=64)
def _read(source: str) -> tuple[frozenset[str], str | None, bool]:
    """Return the variables that a template reads, the name in it that picks at random (or None), and whether its clock
    shows days alone."""
    environment = ImmutableSandboxedEnvironment(extensions=[_Generation, loopcontrols])
    tree = environment.parse(source)
    reads = frozenset(meta.find_undeclared_variables(tree))
    called = [(type(node), node.name) for node in tree.find_all((nodes.Filter, nodes.Name))]
    random = next((name for kind, name in RANDOM if (kind, name) in called), None)
    named = sum(node.name == CLOCK and node.ctx == "load" for node in tree.find_all(nodes.Name))
    for node in tree.find_all((nodes.Call, nodes.Test)):
        if not isinstance(node.node, nodes.Name) or node.node.name != CLOCK:
            continue
        form = next((arg.value for arg in node.args if isinstance(arg, nodes.Const)), None)
        named -= isinstance(node, nodes.Test) or (isinstance(form, str) and "%" not in _DAY.sub("", form))
    return reads, random, named == 0
