"""What requests may say. Unknown options are refused: one that is ignored would give another answer than asked."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text has half of a character (a lone surrogate)") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
PROMPT = "A prompt: `name`, `name@3` or `name@alias`; or the model's own name."
Named = Annotated[str, Field(min_length=1, max_length=300, description=PROMPT)]
Fields = dict[Text, Text]


class Asking(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(Asking):
    include_usage: bool = False


class Generating(Asking):
    """What completions and chats share; names and meanings are OpenAI's, `top_k` aside."""

    model: Named
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=2**31, description="Of so many likeliest pieces one is drawn; 0: of all.")
    n: int = Field(1, ge=1, le=128, description="Samples of each text; sample i has the seed `seed + i`.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Text | list[Text] | None = None
    seed: int | None = Field(None, ge=-(2**62), le=2**62)
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    user: str | None = Field(None, description="Accepted and not looked at.")


class CompletionRequest(Generating):
    prompt: Text | list[Text] | None = Field(
        None, description="What fills the one field of the prompt's template; the model alone goes on after it."
    )
    fields: Fields | None = Field(None, description="For a template with several fields: each one's text.")
    max_tokens: int | None = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    best_of: Literal[1] | None = None


class ContentPart(Asking):
    type: Literal["text"]
    text: Text


class Message(Asking):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[ContentPart]
    name: str | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Generating):
    messages: list[Message] = Field(
        min_length=1,
        description="A prompt that was learnt has its own instruction and reads one message of the user; the model "
        "alone reads all, with its own chat template.",
    )
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


class ClassifyRequest(Asking):
    """One or more rows to be labelled: texts, or the fields of each by name."""

    model: Named
    input: Text | Fields | list[Text | Fields]
    options: list[Text] | None = Field(None, description="The labels to choose from, where the prompt has none.")


class RollbackRequest(Asking):
    to: int | None = Field(None, ge=1, description="The version to go back to; the one before by default.")


class VersionRequest(Asking):
    version: int = Field(ge=1)


class ShareRequest(Asking):
    version: int = Field(ge=1)
    fraction: float = Field(gt=0, le=1)


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int


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
    model: str
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


class Added(BaseModel):
    name: str
    version: int
    id: str
    sha256: str


class Health(BaseModel):
    status: str


class Error(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class Failure(BaseModel):
    error: Error
