"""Show each row the training rows nearest to it (few-shot, KATE)."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from foreword.core.doc import Doc, documented
from foreword.core.values import Neighbours
from foreword.errors import ConfigError
from foreword.inference.calibration import HardConfig
from foreword.inference.retrieval import embeddings, encode_near
from foreword.methods.words.demonstrations import example_of, longest_rows, pool_of
from foreword.models.base import FrozenLM
from foreword.training.contract import DirectMethod, Job, Made, SearchState
from foreword.training.options import Count, Joint

PROBED = 50  # training rows that say how many demonstrations fit, if there are no validation rows


@documented
@dataclass(frozen=True)
class FewShotKnnConfig(HardConfig):
    """Hold the options of few-shot with the nearest training rows, of which the nearest stands last."""

    demos: Annotated[Count, Doc("Nearest training rows that are shown before each row, if they fit.")] = 8
    encoder: Annotated[
        str | None,
        Doc("Folder of a sentence model that measures distances (none: the mean hidden states of the model itself)."),
    ] = None
    separator: Annotated[Joint, Doc("Text after each demonstration; \\n is a new line and \\s a space.")] = "\n\n"


class FewShotKnn(DirectMethod):
    name = "few-shot-knn"
    summary = "the nearest training rows shown to each row; nothing is trained"
    source = "Liu et al. 2022 (KATE)"
    Config = FewShotKnnConfig
    form = "neighbours"
    kinds = ("masked", "causal", "seq2seq")
    mixed_batch = True
    freezes_lm = True
    learns = False
    demonstrates = True
    retemplates = True

    def make(self, lm: FrozenLM, job: Job, state: SearchState) -> Made:
        config: FewShotKnnConfig = job.config
        pool = pool_of(job.task)
        longest_rows(lm, job.format, job.task, 0.5)  # where half of the rows have no room, none is worth showing
        value = Neighbours(
            examples=tuple(example_of(job.format, row) for row in pool),
            embed_ND=embeddings(lm, job.format, pool, config.encoder),
            count=config.demos,
            separator=config.separator,
            encoder=config.encoder,
        )
        rows = job.task.validation or pool[:PROBED]
        _, shown = encode_near(lm, value, job.format, rows)
        if not any(shown):
            raise ConfigError(
                f"Not one demonstration fits beside a row of {job.task.name!r}; use shorter rows or a shorter template."
            )
        told = {"shown": round(float(np.mean(shown)), 2), "asked": config.demos, "least": min(shown), "pool": len(pool)}
        return Made(value, job.format, metrics={"demonstrations": told})
