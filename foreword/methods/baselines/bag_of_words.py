"""Classify rows by TF-IDF over words and pairs of neighbours with logistic regression. No language model at all."""

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch

from foreword.core.doc import Doc, documented
from foreword.core.values import WordCounts
from foreword.core.values.classifiers import row_words
from foreword.errors import ConfigError, DataError
from foreword.methods.baselines.regression import choose_regularisation, logistic, require_classes
from foreword.models.base import FrozenLM
from foreword.tasks.rows import Row
from foreword.training.contract import DirectMethod, Job, Made, SearchState
from foreword.training.options import Count, Positive


@documented
@dataclass(frozen=True)
class BagOfWordsConfig:
    """Hold the options of the bag of words."""

    regularisation: Annotated[
        Positive | None, Doc("Inverse strength C of the L2 penalty (none: chosen on the validation rows).")
    ] = None
    min_rows: Annotated[Count, Doc("Training rows that a word must stand in.")] = 1


class BagOfWords(DirectMethod):
    name = "bag-of-words"
    summary = "TF-IDF with logistic regression; needs no model"
    source = "Wang & Manning 2012 for how hard it is to beat"
    Config = BagOfWordsConfig
    form = "word-counts"
    kinds = ("masked", "causal", "seq2seq")
    mixed_batch = False
    freezes_lm = True
    uses_lm = False

    def make(self, lm: FrozenLM, job: Job, state: SearchState) -> Made:
        from sklearn.feature_extraction.text import TfidfVectorizer

        if not job.format.labels:
            raise ConfigError("bag-of-words needs one set of labels for all rows; this task brings options per row.")
        require_classes(self.name, job.task)
        fields = tuple(job.task.fields)

        def words(row: Row) -> list[str]:
            return row_words(fields, row.fields)

        seen = Counter(word for row in job.task.train for word in set(words(row)))
        vocabulary = sorted(word for word, rows in seen.items() if rows >= job.config.min_rows)
        if not vocabulary:
            raise DataError(
                f"bag-of-words: no word of {job.task.name!r} stands in {job.config.min_rows} training rows."
            )
        tfidf = TfidfVectorizer(
            analyzer=words,  # pyright: ignore[reportArgumentType]
            vocabulary=vocabulary,
            lowercase=False,  # the words are in lower case, the names of fields before them are as they are
            sublinear_tf=True,
        )
        x = tfidf.fit_transform(job.task.train)
        y = np.asarray([row.label for row in job.task.train])
        held = tfidf.transform(job.task.validation) if job.task.validation else None
        held_y = np.asarray([row.label for row in job.task.validation])
        strength = job.config.regularisation or choose_regularisation(x, y, held, held_y, job.seed)
        weight, bias = logistic(x, y, len(job.format.labels), strength, job.seed)
        value = WordCounts(
            words=tuple(vocabulary),
            idf_V=torch.from_numpy(tfidf.idf_).float(),
            weight_CV=torch.from_numpy(weight).float(),
            bias_C=torch.from_numpy(bias).float(),
        )
        return Made(value, job.format, weight.size + bias.size)
