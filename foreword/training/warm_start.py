"""Training that starts from an artefact: found where `init` names one, checked, and recorded by its hash."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from foreword.core.artefact import RECORD, Artefact
from foreword.core.shapes import Tensor
from foreword.core.values import Learnt
from foreword.errors import ConfigError
from foreword.models.base import FrozenLM
from foreword.models.compatibility import check
from foreword.training.contract import Job, Method
from foreword.training.options import Start

START = "start:"


def with_init(method: Method, options: Mapping[str, Any]) -> tuple[dict[str, Any], Artefact | None]:
    """The options as a config takes them, and the artefact that `init` gives or names, if it does.

    The length is the start's own where none is given. So is how it adapts, where the start was learnt to adapt and the
    method's leaves are the prompt itself: plain descent over some steps, unless an optimiser, a rate or a network is
    given.

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
    if method.adapts and not {"optimizer", "learning_rate", "reparametrise"} & options.keys():
        own |= adaptation_of(found, options)
    return {**own, **options, "init": Start(START + found.sha256)}, found


def adaptation_of(start: Artefact, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with which a prompt adapts as the start was learnt to; none for another artefact."""
    said = start.recipe.get("adaptation")
    if not said:
        return {}
    steps = options.get("steps", said["steps"])
    return {
        "optimizer": said["optimizer"],
        "learning_rate": said["learning_rate"],
        "steps": steps,
        "clip": 0.0,
        "eval_every": steps,
    }


def rate_shape(leaf: Tensor) -> tuple[int, ...]:
    """One step size for each position (of each layer's keys and values, in a prefix)."""
    return (*leaf.shape[:-1], 1) if leaf.ndim == 2 else (*leaf.shape[:3], 1, 1)


def shares_of(start: Artefact, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a start has learnt of each position's own step size, as a share of the rate and broadcast over the leaves
    (Meta-SGD, Li et al. 2017)."""
    said = start.recipe.get("adaptation", {})
    found = {}
    for name, rates in said.get("rates", {}).items():
        if (leaf := leaves.get(name)) is not None:
            rate = torch.tensor(rates, dtype=leaf.dtype, device=leaf.device).view(rate_shape(leaf))
            found[name] = rate / said["learning_rate"]
    return found


def shares_in(job: Job, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The shares of the job's start where it descends plainly; another optimiser would scale them away."""
    return shares_of(job.init, leaves) if job.init and job.config.optimizer == "sgd" else {}


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
                f"{job.method.name}: the recipe names a start by its hash ({job.config.init[:18]}...) and none was "
                "given; give its folder with --init."
            )
        return None
    check(lm, job.init)
    return job.init.value
