"""Define the options that say how answers in text are decoded, the same for all commands."""

import dataclasses
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from foreword.cli.console import note
from foreword.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from foreword.core.format import Format
    from foreword.models.base import FrozenLM


@dataclass(frozen=True)
class DecodingChoice:
    """Hold how texts are decoded; what is not given stays as the task or the artefact has it."""

    max_new_tokens: int | None = None
    stop_strings: tuple[str, ...] = ()
    num_beams: int | None = None
    decoding: tuple[str, ...] = ()

    def said(self) -> dict[str, Any]:
        """Return the values given, by the names of `Decoding`."""
        from foreword.core.format import Decoding
        from foreword.training.options import parse_value

        kinds = typing.get_type_hints(Decoding)
        known = sorted(kinds.keys() - {"stop_strings"})
        results: dict[str, Any] = {}
        for given in self.decoding:
            name, equals, value = (part.strip() for part in given.partition("="))
            if not equals or name not in known:
                raise ConfigError(
                    f"--decoding {given!r} is not NAME=VALUE with one of the names {', '.join(known)}; texts that end "
                    "an answer are given with --stop."
                )
            results[name] = parse_value("--decoding", name, kinds[name], value)
        plain = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams, "stop_strings": self.stop_strings}
        for name, value in plain.items():
            if value and results.setdefault(name, value) != value:
                raise ConfigError(f"--decoding {name}={results[name]} and --{name.replace('_', '-')} {value} differ.")
        return results

    def put(self, form: "Format", whose: str, *, reasons: bool = False) -> "Format":
        """Return the format with this decoding; if a method `reasons` before labels, `reasoning` says how long.

        Raises: ConfigError if answers are labels, or for a value out of range.
        """
        said = self.said()
        if reasons and form.decoding is None:
            said.pop("max_new_tokens", None)
        if not said:
            return form
        if form.decoding is None:
            raise ConfigError(
                f"--max-new-tokens, --stop, --num-beams and --decoding are for answers in text, and those of {whose} "
                "are labels; leave them out (--max-new-tokens may stay where chain-of-thought reasons before labels)."
            )
        return dataclasses.replace(form, decoding=dataclasses.replace(form.decoding, **said))

    def reasoning(self, config: type, given: "Mapping[str, Any]") -> dict[str, Any]:
        """Return the method's option that `--max-new-tokens` sets too, if it has one; `given` are its options by `-o`.

        Raises: ConfigError if both were given and differ.
        """
        limit = self.said().get("max_new_tokens")
        if limit is None or "max_new_tokens" not in {field.name for field in dataclasses.fields(config)}:
            return {}
        own = given.get("max_new_tokens", limit)
        if str(own[0] if isinstance(own, tuple) and len(own) == 1 else own) != str(limit):
            raise ConfigError(
                f"--max-new-tokens {limit} and -o max_new_tokens={','.join(own) if isinstance(own, tuple) else own} "
                "differ, and both say where reasoning ends; give one of them."
            )
        return {"max_new_tokens": given.get("max_new_tokens", limit)}


def tell_set_aside(lm: "FrozenLM | None", form: "Format") -> None:
    """Print a line on stderr if the model's own generation_config asks for a decoding that is not obeyed."""
    if lm is not None and form.decoding is not None and lm.set_aside:
        told = ", ".join(f"{name}={value}" for name, value in lm.set_aside.items())
        note(f"{lm.name}: its generation_config is not obeyed ({told}); what is wanted of it is given by --decoding")


DECODING = [
    click.option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Tokens of an answer in text, or of reasoning before an answer; default: as many as the targets need.",
    ),
    click.option(
        "--stop",
        "stop_strings",
        multiple=True,
        callback=lambda _, __, given: tuple(text.replace("\\n", "\n").replace("\\t", "\t") for text in given),
        metavar="TEXT",
        help="Where an answer in text ends, \\n for a line; repeat for several.",
    ),
    click.option("--num-beams", type=click.IntRange(min=1), metavar="N", help="Beams of an answer in text."),
    click.option(
        "--decoding",
        multiple=True,
        metavar="NAME=VALUE",
        help="Anything else of decoding, by its name in transformers: length_penalty=0.8, do_sample=true, top_p=0.9.",
    ),
]
