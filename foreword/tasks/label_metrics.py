"""Compute metrics of label scores: softmax turns a row of scores into probabilities; -inf marks a label a row lacks."""

import numpy as np
from jaxtyping import Float, Int

Scores = Float[np.ndarray, "B C"]
Labels = Int[np.ndarray, " B"]


def log_probabilities(score_BC: Scores) -> Scores:
    top_B1 = score_BC.max(axis=1, keepdims=True)
    shifted_BC = score_BC - top_B1
    return shifted_BC - np.log(np.exp(shifted_BC).sum(axis=1, keepdims=True))


def accuracy(score_BC: Scores, label_B: Labels) -> float:
    return float((score_BC.argmax(axis=1) == label_B).mean())


def macro_f1(score_BC: Scores, label_B: Labels) -> float:
    """Return the mean F1 over the labels that occur, as truth or as prediction; a label never hit counts 0."""
    guess_B = score_BC.argmax(axis=1)
    values = []
    for label in np.union1d(guess_B, label_B):
        hit = int(((guess_B == label) & (label_B == label)).sum())
        values.append(2 * hit / (int((guess_B == label).sum()) + int((label_B == label).sum())))
    return float(np.mean(values))


def nll(score_BC: Scores, label_B: Labels) -> float:
    """Return the mean negative log-likelihood of the true label, in nats."""
    return float(-log_probabilities(score_BC)[np.arange(len(label_B)), label_B].mean())


def ece(score_BC: Scores, label_B: Labels, bins: int = 15) -> float:
    """Return the expected calibration error of the top label (Guo et al. 2017, eq. 3).

    The bins have equal width and are closed on the right.
    """
    prob_B = np.exp(log_probabilities(score_BC).max(axis=1))
    hit_B = score_BC.argmax(axis=1) == label_B
    bin_B = np.clip(np.ceil(prob_B * bins).astype(int) - 1, 0, bins - 1)
    total = 0.0
    for b in np.unique(bin_B):
        inside_B = bin_B == b
        total += inside_B.mean() * abs(hit_B[inside_B].mean() - prob_B[inside_B].mean())
    return float(total)


def brier(score_BC: Scores, label_B: Labels) -> float:
    """Return the mean squared distance of probabilities to the true label's indicator, summed over labels: 0 to 2."""
    prob_BC = np.exp(log_probabilities(score_BC))
    prob_BC[np.arange(len(label_B)), label_B] -= 1.0
    return float((prob_BC**2).sum(axis=1).mean())


def all_metrics(score_BC: Scores, label_B: Labels) -> dict[str, float]:
    return {
        "accuracy": accuracy(score_BC, label_B),
        "macro_f1": macro_f1(score_BC, label_B),
        "nll": nll(score_BC, label_B),
        "ece": ece(score_BC, label_B),
        "brier": brier(score_BC, label_B),
    }


def ranks(score_BC: Scores, label_B: Labels) -> Int[np.ndarray, " B"]:
    """Return the rank of each row's right candidate, from 1; all candidates with the same score count as before it."""
    right_B1 = np.take_along_axis(score_BC, label_B[:, None], axis=1)
    return (score_BC >= right_B1).sum(axis=1)


def rank_metrics(rank_B: Int[np.ndarray, " B"]) -> dict[str, float]:
    """Return P@1, P@10 and mean reciprocal rank (Petroni et al. 2019, section 4.4)."""
    return {
        "p_at_1": float((rank_B <= 1).mean()),
        "p_at_10": float((rank_B <= 10).mean()),
        "mrr": float((1.0 / rank_B).mean()),
    }
