"""How high the right answer ranks among candidates: precision at k and mean reciprocal rank."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Scores = Float[np.ndarray, "B C"]
Labels = Int[np.ndarray, " B"]


def ranks(score_BC: Scores, label_B: Labels) -> Int[np.ndarray, " B"]:
    """The rank of each row's right candidate, from 1. A tie counts against it: all that score as high come first."""
    right_B1 = np.take_along_axis(score_BC, label_B[:, None], axis=1)
    return (score_BC >= right_B1).sum(axis=1)


def precision_at(k: int, score_BC: Scores, label_B: Labels) -> Float[np.ndarray, " B"]:
    """1 for each row whose right candidate is among the first k, else 0."""
    return (ranks(score_BC, label_B) <= k).astype(np.float64)


def reciprocal(score_BC: Scores, label_B: Labels) -> Float[np.ndarray, " B"]:
    """One over each row's rank; its mean is the MRR."""
    return 1.0 / ranks(score_BC, label_B)


def rank_metrics(score_BC: Scores, label_B: Labels) -> dict[str, float]:
    """P@1, P@10 and MRR (Petroni et al. 2019, section 4.4)."""
    return {
        "p_at_1": float(precision_at(1, score_BC, label_B).mean()),
        "p_at_10": float(precision_at(10, score_BC, label_B).mean()),
        "mrr": float(reciprocal(score_BC, label_B).mean()),
    }


def macro(by_relation: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The mean over relations, each counting once, as LAMA's tables have it."""
    names = ("p_at_1", "p_at_10", "mrr")
    return {name: float(np.mean([found[name] for found in by_relation.values()])) for name in names}
