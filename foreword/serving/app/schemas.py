"""Define what requests and answers may hold. Unknown options are refused: one that is ignored would give another answer
than asked. Options of OpenAI's that have no effect here may be given with a value that changes nothing."""

from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends
from fastapi.security import HTTPBearer
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# What no request needs, whatever a server's limits are. Pydantic makes an error of each item that is wrong, so every
# list and every object of names is counted first and read to its first fault.
ITEMS = 10_000  # of a list: rows, texts, messages
FIELDS = 256  # of one row
PARTS = 256  # of one message
STOPS, STOP_TEXT = 16, 1_000  # stop strings, and characters of each
UNREAD_KEYS, UNREAD_TEXT = 64, 4_096  # of what is accepted and not looked at
SPARE_KEYS = 16  # unknown options that are told by name
WHOLE = 2**31 - 1  # the largest number that counts anything

T = TypeVar("T")


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text has half of a character (a lone surrogate)") from None
    return text


def _no_ids(given: Any) -> Any:
    if isinstance(given, list) and given and isinstance(given[0], (int, list)):
        raise ValueError("ids of tokens are not read here; send the text itself, which the prompt's template takes in")
    return given


def _at_most(most: int, what: str) -> BeforeValidator:
    """Return a validator that counts entries before any is read. Raises: ValueError in one sentence."""

    def check(given: Any) -> Any:
        if isinstance(given, (list, dict)) and len(given) > most:
            if not most:
                raise ValueError("nothing but an empty one is taken here")
            raise ValueError(f"{len(given):,} {what} were given and {most:,} are allowed; send fewer")
        return given

    return BeforeValidator(check)


def _no_longer(most: int) -> AfterValidator:
    def check(given: str) -> str:
        if len(given) > most:
            raise ValueError(f"a text of {len(given):,} characters was given and {most:,} are allowed; send less")
        return given

    return AfterValidator(check)


Text = Annotated[str, AfterValidator(_whole)]
Texts = Annotated[
    Text | Annotated[list[Text], Field(fail_fast=True, max_length=ITEMS)] | None,
    _at_most(ITEMS, "texts"),
    BeforeValidator(_no_ids),
]
Stop = Annotated[Text, _no_longer(STOP_TEXT), Field(json_schema_extra={"maxLength": STOP_TEXT})]
Stops = Annotated[
    Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=STOPS)] | None, _at_most(STOPS, "stop strings")
]
Unread = Annotated[str, _no_longer(UNREAD_TEXT), Field(json_schema_extra={"maxLength": UNREAD_TEXT})]
Nothing = Annotated[T, _at_most(0, "entries")]
PROMPT = "A prompt: `name`, `name@3` or `name@alias`; or the model's own name."
Named = Annotated[str, Field(min_length=1, max_length=300, description=PROMPT)]
Fields = Annotated[dict[Text, Text], Field(max_length=FIELDS), _at_most(FIELDS, "fields")]
NOTHING = "Nothing but this is known."
UNREAD = "Accepted and not looked at."


class Asking(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, given: Any) -> Any:
        most = len(cls.model_fields) + SPARE_KEYS
        if isinstance(given, dict) and len(given) > most:
            raise ValueError(f"{len(given):,} options were given and there are {len(cls.model_fields)}; send fewer")
        return given


def _like(**example: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", allow_inf_nan=False, json_schema_extra={"examples": [example]})


class StreamOptions(Asking):
    include_usage: bool | None = Field(None, description="Send the counts of tokens last.")


class Generating(Asking):
    """Hold the options that completions and chats share; names and meanings are OpenAI's, `top_k` aside. Null is the
    default."""

    model: Named
    temperature: float | None = Field(1.0, ge=0, le=2, description="0: always the likeliest piece.")
    top_p: float | None = Field(1.0, gt=0, le=1, description="One of the likeliest pieces that make up this much.")
    top_k: int | None = Field(0, ge=0, le=2**31, description="One of so many likeliest pieces; 0: of all.")
    n: int | None = Field(1, ge=1, le=128, description="Samples of each text; sample i has the seed `seed + i`.")
    stream: bool | None = Field(False, description="Send the text as it is made, as server-sent events.")
    stream_options: StreamOptions | None = None
    stop: Stops = Field(None, description=f"The text ends before the first of these; {STOPS} at most.")
    seed: int | None = Field(None, ge=-(2**62), le=2**62, description="The same seed gives the same text.")
    presence_penalty: Literal[0] | None = Field(None, description=NOTHING)
    frequency_penalty: Literal[0] | None = Field(None, description=NOTHING)
    logit_bias: Nothing[Annotated[dict[str, float], Field(max_length=0)] | None] = Field(None, description=NOTHING)
    user: Unread | None = Field(None, description=UNREAD)


class CompletionRequest(Generating):
    model_config = _like(model="acme-reviews", prompt="A film to remember.", max_tokens=32, temperature=0)

    prompt: Texts = Field(
        None, description="What fills the one field of the prompt's template; the model alone goes on after it."
    )
    fields: Fields | None = Field(None, description="For a template with several fields: each one's text.")
    max_tokens: int | None = Field(16, ge=0, le=WHOLE, description="New pieces of text at most; 0 with `echo` alone.")
    logprobs: int | None = Field(None, ge=0, le=20, description="Show each piece's and so many likelier ones' chance.")
    echo: bool | None = Field(False, description="Begin with `prompt`; with `logprobs`, its pieces too.")
    best_of: Literal[1] | None = Field(None, description=NOTHING)
    suffix: Literal[""] | None = Field(None, description=NOTHING)


class ContentPart(Asking):
    type: Literal["text"]
    text: Text


class Message(Asking):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Text | Annotated[list[ContentPart], Field(fail_fast=True, max_length=PARTS)], _at_most(PARTS, "parts")
    ]
    name: Unread | None = Field(None, description=UNREAD)

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ResponseFormat(Asking):
    type: Literal["text"]


class ChatRequest(Generating):
    model_config = _like(model="acme-reviews", messages=[{"role": "user", "content": "A film to remember."}])

    messages: Annotated[list[Message], Field(fail_fast=True), _at_most(ITEMS, "messages")] = Field(
        min_length=1,
        max_length=ITEMS,
        description="A prompt that was learnt has its own instruction and reads one message of the user; the model "
        "alone reads all, with its own chat template.",
    )
    max_tokens: int | None = Field(None, ge=1, le=WHOLE, description="The older name of `max_completion_tokens`.")
    max_completion_tokens: int | None = Field(
        None, ge=1, le=WHOLE, description="New pieces of text at most; 256 by default."
    )
    logprobs: bool | None = Field(None, description="Show the chance of each piece.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="And of so many likelier ones.")
    response_format: ResponseFormat | None = Field(None, description=NOTHING)
    tools: Nothing[Annotated[list[Any], Field(max_length=0)] | None] = Field(None, description=NOTHING)
    store: Literal[False] | None = Field(None, description=NOTHING)
    metadata: Annotated[
        Annotated[dict[str, Unread], Field(max_length=UNREAD_KEYS)] | None,
        _at_most(UNREAD_KEYS, "entries"),
    ] = Field(None, description=UNREAD)


class ClassifyRequest(Asking):
    """Hold one or more rows to be labelled: texts, or the fields of each by name."""

    model_config = _like(model="acme-reviews@2", input=["A film to remember.", {"text": "Two hours of my life."}])

    model: Named
    input: Annotated[
        Text | Fields | Annotated[list[Text | Fields], Field(fail_fast=True, max_length=ITEMS)],
        _at_most(ITEMS, "entries"),
    ]
    options: Annotated[
        Annotated[list[Text], Field(fail_fast=True, max_length=ITEMS)] | None, _at_most(ITEMS, "options")
    ] = Field(None, description="The labels to choose from, where the prompt has none.")


class RollbackRequest(Asking):
    model_config = _like(to=1)

    to: int | None = Field(None, ge=1, le=WHOLE, description="The version to go back to; the one before by default.")


class VersionRequest(Asking):
    model_config = _like(version=2)

    version: int = Field(ge=1, le=WHOLE)


class ShareRequest(Asking):
    model_config = _like(version=2, fraction=0.05)

    version: int = Field(ge=1, le=WHOLE)
    fraction: float = Field(gt=0, le=1, description="Of the requests that name no version.")


class Usage(BaseModel):
    """Count the pieces of an answer; a text with several samples is counted once."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int


class Choice(BaseModel):
    index: int
    finish_reason: Literal["stop", "length"]


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="Null for the first piece of a prompt.")
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Choice):
    text: str
    logprobs: TextLogprobs | None


class Answer(BaseModel):
    id: str
    created: int
    model: str = Field(description="The prompt with the version that was used, or the model's name.")
    usage: Usage


class Completion(Answer):
    object: Literal["text_completion"]
    choices: list[TextChoice]


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChatLogprob]
    refusal: None


class Said(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Choice):
    message: Said
    logprobs: ChatLogprobs | None


class ChatCompletion(Answer):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "foreword"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Classified(BaseModel):
    index: int
    label: str
    probabilities: dict[str, float]
    cut: int = Field(description="Pieces that did not fit and were left out.")


class Classification(BaseModel):
    object: Literal["list"] = "list"
    model: str = Field(description="The prompt with the version that was used.")
    data: list[Classified]
    usage: Usage


class VersionCard(BaseModel):
    version: int
    id: str
    sha256: str
    added: str


class Share(BaseModel):
    version: int
    fraction: float


class PromptCard(BaseModel):
    name: str
    current: int
    versions: list[VersionCard]
    aliases: dict[str, int]
    share: Share | None
    form: str
    method: str
    template: Any
    labels: list[str]
    fields: list[str]


class PromptLine(BaseModel):
    name: str
    current: int
    versions: int
    may_infer: bool
    may_administer: bool


class PromptList(BaseModel):
    object: Literal["list"] = "list"
    data: list[PromptLine]
    next: str | None = Field(description="Give it as `after` for the names that follow; null at the end.")
    model: str | None = Field(description="The model alone, where this key may use it.")
    continues: bool = Field(description="Whether the model continues texts; a masked model labels them only.")
    may_add: bool = Field(description="Whether this key may add prompts, of some names at least.")
    damaged: list[str] = Field(
        default=[], description="Names that are damaged, and not served; the server's log says why."
    )


class Added(BaseModel):
    name: str
    version: int
    id: str
    sha256: str


class Health(BaseModel):
    status: str
    damaged: int | None = Field(default=None, description="Prompts that are damaged, and not served, if any are.")


class Error(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class Failure(BaseModel):
    error: Error


AGAIN: dict[str, Any] = {"headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}}


MEANINGS = {
    400: "What was asked cannot be done as it was asked",
    401: "A key is needed",
    403: "This key, host or origin may not do this",
    404: "There is no such prompt, or this key may not use it",
    408: "The body did not arrive in time",
    409: "It does not go together with what there is",
    413: "The body or the text is too large",
    429: "Too much is asked at once; again after Retry-After",
    500: "The server failed, or a prompt that it serves is damaged",
    503: "The server stops; again after Retry-After",
    504: "The answer took longer than is allowed",
}


FAILURES: dict[int | str, dict[str, Any]] = {
    **{
        status: {"model": Failure, "description": words, **(AGAIN if status in (429, 503) else {})}
        for status, words in MEANINGS.items()
    },
    "4XX": {"model": Failure, "description": "Any other refusal"},  # and not 422, which FastAPI would add
}


BEARER = HTTPBearer(
    auto_error=False, description="From `foreword keys add`; a server that has none is open to its own machine."
)


def guarded() -> APIRouter:
    """Return a router for routes that need a key; the check itself runs before all routes, in auth.py."""
    return APIRouter(responses=FAILURES, dependencies=[Depends(BEARER)])
