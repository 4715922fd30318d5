"""Measure how natural a prompt's words are to the model itself: the cost of reading them after a full stop."""

from collections.abc import Sequence

from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.core.template import Template
from foreword.inference.likelihood import LikelihoodRequest, text_likelihoods
from foreword.models.base import FrozenLM
from foreword.tasks.rows import Row

ROW = Row({}, None, (), "the prompt")


def fluency(lm: FrozenLM, texts: Sequence[tuple[str, ...]]) -> list[float]:
    """Return the mean negative log-likelihood of each prompt's tokens, in nats (Shi et al. 2023, eq. 4, second term).

    For a masked model each token is predicted at a mask with all the others masked too. Never negative.
    """
    if not texts:
        return []
    form = Format(Template.parse(". {mask}" if lm.kind == "masked" else ". {answer}"))
    words = [" ".join(text.strip() for text in some) for some in texts]
    value = HardPrompt.empty()
    [found] = text_likelihoods(lm, [LikelihoodRequest(value, form, [ROW] * len(words), words)])
    return (-found.mean_N).clamp(min=0).double().tolist()
