"""Fit a linear probe: logistic regression over the frozen model's hidden states."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch

from foreword.core.doc import Doc, documented
from foreword.core.values import Probe
from foreword.errors import ConfigError
from foreword.inference.features import row_features
from foreword.methods.baselines.regression import choose_regularisation, logistic, require_classes
from foreword.models.base import FrozenLM
from foreword.training.contract import DirectMethod, Job, Made, SearchState
from foreword.training.options import Positive


@documented
@dataclass(frozen=True)
class LinearProbeConfig:
    """Hold the options of the linear probe."""

    pool: Annotated[
        Literal["answer", "mean"],
        Doc("Which hidden states are read: that of the answer, or the mean over the row's tokens."),
    ] = "mean"
    regularisation: Annotated[
        Positive | None, Doc("Inverse strength C of the L2 penalty (none: chosen on the validation rows).")
    ] = None


class LinearProbe(DirectMethod):
    name = "linear-probe"
    summary = "logistic regression over the frozen model's hidden states"
    source = "Alain & Bengio 2017"
    Config = LinearProbeConfig
    form = "probe"
    kinds = ("masked", "causal", "seq2seq")
    mixed_batch = False
    freezes_lm = True

    def make(self, lm: FrozenLM, job: Job, state: SearchState) -> Made:
        config: LinearProbeConfig = job.config
        if not job.format.labels:
            raise ConfigError("linear-probe needs one set of labels for all rows; this task brings options per row.")
        require_classes(self.name, job.task)
        parts = [job.task.train, job.task.validation]
        x = [
            row_features(lm, job.format, rows, config.pool, job.encoded_rows).double().numpy() if rows else None
            for rows in parts
        ]
        y = [np.asarray([row.label for row in rows]) for rows in parts]
        assert x[0] is not None
        mean, scale = x[0].mean(0), x[0].std(0) + 1e-6
        z = [None if part is None else (part - mean) / scale for part in x]
        strength = config.regularisation or choose_regularisation(z[0], y[0], z[1], y[1], job.seed)
        weight, bias = logistic(z[0], y[0], len(job.format.labels), strength, job.seed)
        weight = weight / scale
        bias = bias - weight @ mean
        probe = Probe(torch.from_numpy(weight).float(), torch.from_numpy(bias).float(), config.pool)
        return Made(probe, job.format, weight.size + bias.size)
