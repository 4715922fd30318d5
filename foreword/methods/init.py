"""Training that starts from an artefact: found where `init` names one, checked, and recorded by its hash."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foreword.core.artefact import RECORD, Artefact
from foreword.core.learnt import Learnt
from foreword.errors import ConfigError
from foreword.methods.base import Job, Method
from foreword.methods.options import Start
from foreword.models.base import FrozenLM
from foreword.models.fits import check

START = "start:"


def with_init(method: Method, options: Mapping[str, Any]) -> tuple[dict[str, Any], Artefact | None]:
    """The options as a config takes them, and the artefact that `init` gives or names, if it does.

    The length is the start's own where none is given.

    Raises: ConfigError where the method takes none, or not of this form; ArtefactError for a damaged one.
    """
    given = options.get("init")
    found = given if isinstance(given, Artefact) else _read(given)
    if found is None:
        return dict(options), None
    if method.takes_init is None:
        raise ConfigError(f"{method.name} takes no start; prompt-tuning, p-tuning and prefix-tuning do.")
    if found.form != method.takes_init:
        fit = "prefix-tuning" if found.form == "prefix" else "prompt-tuning or p-tuning"
        wanted = f"give it to {fit}" if found.form in ("soft", "prefix") else "give one with a soft prompt or a prefix"
        raise ConfigError(
            f"{method.name} starts from a {method.takes_init} prompt and the artefact given is {found.form}; {wanted}."
        )
    own = {"length": found.value.length} if "length" not in options else {}  # pyright: ignore[reportAttributeAccessIssue]
    return {**own, **options, "init": Start(START + found.sha256)}, found


def _read(given: Any) -> Artefact | None:
    """The artefact in a folder; None for a word, which the config judges."""
    if not isinstance(given, str | Path) or isinstance(given, Start):
        return None
    folder = Path(given)
    named = isinstance(given, Path) or "/" in given or "\\" in given
    return Artefact.load(folder) if named or (folder / RECORD).exists() else None


def started(lm: FrozenLM, job: Job) -> Learnt | None:
    """The value that training starts from, after the checks against the model; None where it draws its own.

    Raises: ArtefactError for a start made for another model; ConfigError where the config names a start by its hash
    alone.
    """
    if job.init is None:
        if str(getattr(job.config, "init", "")).startswith(START):
            raise ConfigError(
                f"{job.method}: the recipe names a start by its hash ({job.config.init[:18]}...) and none was given; "
                "give its folder with --init."
            )
        return None
    check(lm, job.init)
    return job.init.value
