"""Start training from an artefact that `init` names: read it, check it, and record its hash."""

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
    """Return the options as a config takes them, and the artefact that `init` is or names, if there is one.

    If `length` is not given, use that of the initial prompt. If that prompt was meta-learned, and the method learns the
    prompt itself, also use its inner-loop settings (SGD, learning rate, steps), unless the options set `optimizer`,
    `learning_rate` or `reparametrise`.

    Raises: ConfigError if the method takes no start, or not of this form; ArtefactError for a damaged one.
    """
    init = options.get("init")
    start = init if isinstance(init, Artefact) else _read(init)
    if start is None:
        return dict(options), None
    if method.takes_init is None:
        raise ConfigError(f"{method.name} takes no start (init); prompt-tuning, p-tuning and prefix-tuning do.")
    if start.form != method.takes_init:
        fit = "prefix-tuning" if start.form == "prefix" else "prompt-tuning or p-tuning"
        wanted = f"give it to {fit}" if start.form in ("soft", "prefix") else "give one with a soft prompt or a prefix"
        raise ConfigError(
            f"{method.name} starts from a {method.takes_init} prompt and the artefact given is {start.form}; {wanted}."
        )
    inherited = {"length": start.value.length} if "length" not in options else {}  # pyright: ignore[reportAttributeAccessIssue]
    if method.adapts and not {"optimizer", "learning_rate", "reparametrise"} & options.keys():
        inherited |= adaptation_of(start, options)
    return {**inherited, **options, "init": Start(START + start.sha256)}, start


def adaptation_of(start: Artefact, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that repeat the inner loop of a start of metaprompting; none for another artefact."""
    inner = start.recipe.get("adaptation")
    if not inner:
        return {}
    steps = options.get("steps", inner["steps"])
    return {
        "optimizer": inner["optimizer"],
        "learning_rate": inner["learning_rate"],
        "steps": steps,
        "clip": 0.0,
        "eval_every": steps,
    }


def rate_shape(leaf: Tensor) -> tuple[int, ...]:
    """Return the shape of one step size for each position (in a prefix, of each layer's keys and values)."""
    return (*leaf.shape[:-1], 1) if leaf.ndim == 2 else (*leaf.shape[:3], 1, 1)


def shares_of(start: Artefact, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the step sizes that a start has learnt, as shares of the rate (Meta-SGD, Li et al. 2017).

    There is one for each position, shaped to broadcast over the leaf of the same name.
    """
    inner = start.recipe.get("adaptation", {})
    shares = {}
    for name, rates in inner.get("rates", {}).items():
        if (leaf := leaves.get(name)) is not None:
            rate = torch.tensor(rates, dtype=leaf.dtype, device=leaf.device).view(rate_shape(leaf))
            shares[name] = rate / inner["learning_rate"]
    return shares


def shares_in(job: Job, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the shares of the job's start, if the optimiser is SGD; another would scale them away."""
    return shares_of(job.init, leaves) if job.init and job.config.optimizer == "sgd" else {}


def _read(init: Any) -> Artefact | None:
    """Return the artefact in a folder; None for a word, which the config judges."""
    if not isinstance(init, str | Path) or isinstance(init, Start):
        return None
    folder = Path(init)
    named = isinstance(init, Path) or "/" in init or "\\" in init
    return Artefact.load(folder) if named or (folder / RECORD).exists() else None


def started(lm: FrozenLM, job: Job) -> Learnt | None:
    """Return the value that training starts from, checked against the model; None if the method draws its own.

    Raises: ArtefactError for a start made for another model; ConfigError if the config names a start by its hash
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
