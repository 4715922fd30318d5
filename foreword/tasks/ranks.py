"""How high the right answer ranks among candidates: precision at k and mean reciprocal rank."""

import numpy as np
from jaxtyping import Float, Int

Scores = Float[np.ndarray, "B C"]
Labels = Int[np.ndarray, " B"]


def ranks(score_BC: Scores, label_B: Labels) -> Int[np.ndarray, " B"]:
    """The rank of each row's right candidate, from 1. A tie counts against it: all that score as high come first."""
    right_B1 = np.take_along_axis(score_BC, label_B[:, None], axis=1)
    return (score_BC >= right_B1).sum(axis=1)


def rank_metrics(rank_B: Int[np.ndarray, " B"]) -> dict[str, float]:
    """P@1, P@10 and mean reciprocal rank (Petroni et al. 2019, section 4.4)."""
    return {
        "p_at_1": float((rank_B <= 1).mean()),
        "p_at_10": float((rank_B <= 10).mean()),
        "mrr": float((1.0 / rank_B).mean()),
    }
