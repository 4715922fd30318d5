"""Define the options that commands share: model, data and format. Each bundle reaches a command as one value."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from foreword.cli.console import note
from foreword.cli.decoding import DECODING, DecodingChoice, tell_set_aside
from foreword.core.text import parse_json
from foreword.errors import ConfigError

if TYPE_CHECKING:
    from foreword.core.format import Format, Truncate
    from foreword.models.base import FrozenLM
    from foreword.tasks.answer_metrics import Metric
    from foreword.tasks.task import Task
    from foreword.tasks.text_metric import Case

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class ModelChoice:
    """Hold how a model is loaded; all of it goes to `models.load`, which passes most of it to transformers."""

    kind: str | None
    dtype: str | None
    device: str | None
    device_map: str | None
    quantise: str | None
    revision: str | None
    trust_remote_code: bool

    def with_kind(self, kind: str | None) -> "ModelChoice":
        """Return the same choice with this kind, unless a kind was chosen."""
        return self if self.kind else dataclasses.replace(self, kind=kind)

    def of_another(self, kind: str) -> "ModelChoice":
        """Return the same devices for another model of this kind; dtype, revision and quantisation are left unset."""
        return dataclasses.replace(self, kind=kind, dtype=None, revision=None, quantise=None)

    def load(self, name: str) -> "FrozenLM":
        from foreword.models.load import load

        return load(name, **dataclasses.asdict(self))


@dataclass(frozen=True)
class DataChoice:
    """Hold which columns are read, and how many rows are used; shots are drawn later, with the run's seed."""

    text: tuple[str, ...]
    label: str | None
    options: tuple[str, ...]
    limit_train: int | None
    limit_test: int | None
    data_seed: int
    targets: str | None = None
    metric: "Metric | None" = None
    case: "Case | None" = None
    slots: str | None = None

    def read(
        self, source: str, *, quiet: bool = False, reader: "Callable[..., Task] | None" = None, **more: Any
    ) -> "Task":
        """Read a task, by `read_task` or another `reader`, and limit its rows.

        Print on stderr what was done to the splits, unless `quiet`.
        """
        from foreword.tasks.read import read_task

        task = (reader or read_task)(
            source,
            text=list(self.text) or None,
            label=self.label,
            options=list(self.options) or None,
            targets=self.targets,
            metric=self.metric,
            case=self.case,
            slots=self.slots,
            seed=self.data_seed,
            **more,
        )
        task = task.limit(train=self.limit_train, test=self.limit_test, seed=self.data_seed)
        if not quiet:
            note(task.describe())
            for line in task.notes:
                note(f"  {line}")
        return task


@dataclass(frozen=True)
class FormatChoice:
    """Hold the format of rows for the model; what is not given is the task's own, else generic."""

    template: str | None
    label_words: tuple[str, ...]
    truncate: "Truncate"
    max_length: int | None
    soft_first: bool = False
    max_new_tokens: int | None = None
    stop_strings: tuple[str, ...] = ()
    num_beams: int | None = None
    decoding: tuple[str, ...] = ()
    chat_options: tuple[str, ...] = ()
    noted: set[str] = dataclasses.field(default_factory=set)  # lines that stand on stderr already

    def template_source(self) -> Any:
        """Return the template: a string, or chat messages if it is a JSON list."""
        if self.template is None or not self.template.lstrip().startswith("[{"):
            return self.template
        try:
            return parse_json(self.template)
        except ValueError as error:
            raise ConfigError(
                f"--template starts like a list of messages but is not JSON ({error}); "
                'write [{"role": "user", "content": "{text}"}].'
            ) from error

    def words(self) -> dict[str, list[str]] | None:
        results: dict[str, list[str]] = {}
        for given in self.label_words:
            label, equals, words = given.partition("=")
            if not equals or not label or not words:
                raise ConfigError(f"--label-words {given!r} is not LABEL=WORD[,WORD...]; write positive=great,good.")
            if label in results:
                raise ConfigError(f"--label-words names {label!r} twice; give all its words at once, with commas.")
            results[label] = [word.strip() for word in words.split(",")]
        return results or None

    def chat(self) -> dict[str, Any]:
        """Return the variables given for the chat template, by name; a value that is no JSON is text."""
        results: dict[str, Any] = {}
        for given in self.chat_options:
            name, equals, text = given.partition("=")
            name = name.strip()
            if not equals or not name:
                raise ConfigError(f"--chat-option {given!r} is not NAME=VALUE; write enable_thinking=false.")
            if name in results:
                raise ConfigError(f"--chat-option names {name!r} twice; give it once.")
            try:
                results[name] = parse_json(text)
            except ValueError:
                results[name] = {"True": True, "False": False, "None": None}.get(text, text)
        return results

    @property
    def written(self) -> DecodingChoice:
        """Return how texts are decoded."""
        return DecodingChoice(self.max_new_tokens, self.stop_strings, self.num_beams, self.decoding)

    def build(self, task: "Task", lm: "FrozenLM", *, reasons: bool = False) -> "Format":
        """Build the format of a task for a model; `reasons` if a method reasons before labels, as `put` says.

        A line on stderr says if the model's chat template thinks before it answers. If the chat template reads the
        clock and no time was recorded, the format records the present time.
        """
        from foreword.models.encoding.chat import thinking
        from foreword.models.encoding.chat_template import frozen
        from foreword.tasks.formats import longer_targets

        form = task.format(
            lm.kind,
            self.template_source(),
            self.words(),
            chat=lm.instructed,
            truncate=self.truncate,
            max_length=self.max_length,
            soft_first=self.soft_first,
            chat_options=self.chat(),
            lm=lm,
        )
        form = frozen(lm.tokenizer, form, lm.name)
        line = thinking(lm.tokenizer, form, lm.name)
        if line and line not in self.noted:
            self.noted.add(line)
            note(line)
        form = self.written.put(form, task.name, reasons=reasons)
        tell_set_aside(lm, form)
        if form.decoding is not None and (longer := longer_targets(lm, form, (*task.train, *task.validation))):
            note(
                f"answers end at {form.decoding.max_new_tokens:,} tokens (--max-new-tokens), and the targets of "
                f"{longer:,} of {len(task.train) + len(task.validation):,} training and validation rows are longer"
            )
        return form


def _bundle(name: str, kind: type, options: list[Decorator]) -> Decorator:
    names = [f.name for f in dataclasses.fields(kind)]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inner(**given: Any) -> Any:
            mine = {n: given.pop(n) for n in names if n in given}
            return function(**{name: kind(**mine)}, **given)

        wrapped: Callable[..., Any] = inner
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate


model_options = _bundle(
    "how",
    ModelChoice,
    [
        click.option(
            "--kind",
            type=click.Choice(["masked", "causal", "seq2seq"]),
            help="Which head to use; default: the model's own.",
        ),
        click.option("--dtype", metavar="DTYPE", help="float32, bfloat16, float16 or float64; default: as stored."),
        click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps; default: cuda where there is one."),
        click.option("--device-map", metavar="MAP", help="Spread a large model over devices, as in transformers."),
        click.option(
            "--quantise", type=click.Choice(["int8", "int4"]), help="Round the matrices while loading, by torchao."
        ),
        click.option("--revision", metavar="REVISION", help="A branch, tag or commit of the model's repository."),
        click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model."),
    ],
)

data_options = _bundle(
    "which",
    DataChoice,
    [
        click.option("--text", multiple=True, metavar="COLUMN", help="A column of text; repeat for several."),
        click.option("--label", metavar="COLUMN", help="The column of labels; default: label."),
        click.option("--options", multiple=True, metavar="COLUMN", help="A column of each row's own choices."),
        click.option("--limit-train", type=click.IntRange(min=1), metavar="N", help="Use N training rows at most."),
        click.option("--limit-test", type=click.IntRange(min=1), metavar="N", help="Use N test rows at most."),
        click.option("--data-seed", default=0, show_default=True, metavar="SEED", help="Seed of splits and limits."),
        click.option(
            "--targets", metavar="COLUMN", help="The column of answers in text, one or a list of those accepted."
        ),
        click.option(
            "--metric",
            type=click.Choice(
                ["exact_match", "f1", "contains", "exact_set", "number", "bleu", "chrf", "rouge_l", "nist"]
            ),
            help="How answers in text are compared; default: exact_match. BLEU and after: generated texts.",
        ),
        click.option(
            "--case",
            type=click.Choice(["kept", "lower", "uncased"]),
            help="Compare generated texts as they are, in lower case, or as an uncased model writes them.",
        ),
        click.option(
            "--slots", metavar="HOW", help="Measure slot errors: `literal`, or the rules of a data set (`e2e`)."
        ),
    ],
)

_FORMAT = [
    click.option(
        "--template",
        metavar="TEMPLATE",
        help="As '{text} It was {mask}.', with {soft:20} for learnt vectors; or a JSON list of chat messages.",
    ),
    click.option(
        "--label-words", multiple=True, metavar="LABEL=WORDS", help="As positive=great,good; repeat for each label."
    ),
    click.option(
        "--truncate",
        type=click.Choice(["tail", "head", "middle", "error"]),
        default="tail",
        show_default=True,
        help="Which end of an over-long text is cut.",
    ),
    click.option("--max-length", type=click.IntRange(min=1), metavar="N", help="Tokens a row, prompt included."),
    click.option(
        "--chat-option",
        "chat_options",
        multiple=True,
        metavar="NAME=VALUE",
        help="A variable of the model's chat template, as enable_thinking=false; repeat for several.",
    ),
    *DECODING,
]
_SOFT_FIRST = click.option("--soft-first", is_flag=True, help="Put leading learnt vectors before [CLS] or BOS.")

format_options = _bundle("how_put", FormatChoice, [*_FORMAT, _SOFT_FIRST])
decoding_options = _bundle("written", DecodingChoice, DECODING)  # of an artefact that says the rest
placed_format_options = _bundle("how_put", FormatChoice, _FORMAT)  # where the place of the prompt is given

shots_option = click.option(
    "--shots", type=click.IntRange(min=1), metavar="K", help="Train on K rows a label; of texts: K rows."
)

option_pairs = click.option(
    "-o", "--option", "given", multiple=True, metavar="KEY=VALUE", help="An option of the method (`foreword methods`)."
)

remote_option = click.option(
    "--allow-remote", is_flag=True, help="Let a method send training rows to the address in -o url=."
)


def with_remote(given: tuple[str, ...], allowed: bool) -> tuple[str, ...]:
    """Return the options given, with leave to ask a remote endpoint if `allowed`."""
    return (*given, "allow_remote=true") if allowed else given


def split_pair(text: str) -> tuple[str, str]:
    """Split KEY=VALUE into its two halves."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"-o {text!r} is not KEY=VALUE; write -o length=20.")
    return key.strip(), value.strip()
