"""Find label words in data: by a classifier's view of the output matrix, or by how likely a class makes them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch

from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.core.shapes import Float, Int, Tensor
from foreword.core.values import Learnt
from foreword.errors import ConfigError
from foreword.inference.features import features_of
from foreword.methods.baselines.regression import choose_regularisation, logistic
from foreword.methods.triggers.explanation import with_prompt
from foreword.methods.triggers.token_filters import TokenFilter, allowed_ids, scripts_of, surfaces_of
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded, Encoder
from foreword.tasks.label_metrics import accuracy, nll
from foreword.tasks.rows import Row, label_of
from foreword.tasks.task import Task

MOST = 5  # words a label
LIKELY = 1000  # ratios are of words that the class makes at least this likely, or every rare word would be one
POOLED = 40  # words of each label that are checked for being one piece where they stand


@final
@dataclass(frozen=True)
class WordChoice:
    """Hold label words, how they were found, and their accuracy and likelihood on development rows."""

    words: tuple[tuple[str, ...], ...]
    how: str
    accuracy: float
    likelihood: float


def classifier_scores(
    lm: FrozenLM, weight_CD: Float[Tensor, "C D"], bias_C: Float[Tensor, "C"], ids_A: Int[Tensor, "A"]
) -> Float[Tensor, "C A"]:
    """Return log s(y, w): a word's output row is read by the classifier as if it were an answer vector.

    The scores are normalised over the labels, the bias included (Shin et al. 2020, section 2.3, eq. 4 and 5).
    """
    weight_CD = weight_CD.to(lm.device, lm.dtype)
    # what the output matrix adds of its own (its bias) is no part of a word's row
    product_CA = lm.piece_logits(weight_CD, ids_A) - lm.piece_logits(torch.zeros_like(weight_CD[:1]), ids_A)
    return (product_CA.double().cpu() + bias_C.double()[:, None]).log_softmax(0)


def ratio_scores(
    lm: FrozenLM, vector_ND: Float[Tensor, "N D"], label_N: Int[np.ndarray, "N"], labels: int, ids_A: Int[Tensor, "A"]
) -> Float[Tensor, "C A"]:
    """Return a word's mean log-probability over the label's rows less that over the other labels' rows.

    This is after Schick et al. 2020. Words that are not among the 1,000 likeliest of the label have -inf.
    """
    sums_CA = torch.zeros(labels, len(ids_A), dtype=torch.float64)
    for at in range(0, len(vector_ND), 16):
        part_BD = vector_ND[at : at + 16].to(lm.device)
        logprob_BA = (lm.piece_logits(part_BD, ids_A) - lm.log_normaliser(part_BD)[:, None]).double().cpu()
        sums_CA.index_add_(0, torch.from_numpy(label_N[at : at + 16]), logprob_BA)
    count_C = torch.from_numpy(np.bincount(label_N, minlength=labels)).double()
    mean_CA = sums_CA / count_C.clamp(min=1)[:, None]
    rest_CA = (sums_CA.sum(0) - sums_CA) / (count_C.sum() - count_C).clamp(min=1)[:, None]
    lowest_C1 = mean_CA.topk(min(LIKELY, len(ids_A)), dim=1).values[:, -1:]
    return (mean_CA - rest_CA).masked_fill(mean_CA < lowest_C1, -torch.inf)


def find_words(lm: FrozenLM, task: Task, form: Format, value: Learnt | None = None, seed: int = 0) -> list[WordChoice]:
    """Return sets of 1 to 5 words a label by both scores, and the words given, best on development rows first.

    Words are single tokens that stand in one label's set alone. Without development rows the training rows choose.

    Raises: ConfigError if rows bring their own options, or no word is found for a label.
    """
    if not form.words:
        raise ConfigError("Label words can be searched where all rows share their labels; here each row has its own.")
    encoder = Encoder.build(lm, form)
    parts = [task.train, task.validation or task.train]
    vectors = [features_of(lm, _encoded(encoder, rows, value), "head") for rows in parts]
    labels = [np.asarray([label_of(row) for row in rows]) for rows in parts]
    ids_A, surfaces = _usable(lm, task)
    weight_CD, bias_C = fit_classifier(vectors, labels, len(form.labels), seed)
    ranked = {
        "classifier": classifier_scores(lm, weight_CD, bias_C, ids_A),
        "ratio": ratio_scores(lm, vectors[0], labels[0], len(form.labels), ids_A),
    }
    choices = []
    plan = encoder.plan
    assert plan is not None, "the format has words"
    if plan.single:
        given = tuple(tuple(word[0] for word in words) for words in plan.words)
        choices.append(_measured(lm, vectors[1], labels[1], form.words, given, "given"))
    for how, score_CA in ranked.items():
        best = _best_words(encoder, form, score_CA, ids_A, surfaces)
        for count in range(1, MOST + 1):
            chosen = [some[:count] for some in best]
            words = tuple(tuple(word for word, _ in some) for some in chosen)
            ids = tuple(tuple(i for _, i in some) for some in chosen)
            choices.append(_measured(lm, vectors[1], labels[1], words, ids, f"{how}, {count}"))
    return sorted(choices, key=lambda c: (-c.accuracy, -c.likelihood))


def fit_classifier(
    vectors: Sequence[Float[Tensor, "_ D"]], labels: Sequence[Int[np.ndarray, "_"]], count: int, seed: int
) -> tuple[Float[Tensor, "C D"], Float[Tensor, "C"]]:
    """Fit a logistic regression to answer vectors, its strength chosen on the second set; scaling is folded in."""
    x = [v.double().numpy() for v in vectors]
    mean, scale = x[0].mean(0), float(x[0].std()) + 1e-6  # one scale: a scale a column would turn the direction
    z = [(part - mean) / scale for part in x]
    strength = choose_regularisation(z[0], labels[0], z[1], labels[1], seed)
    weight, bias = logistic(z[0], labels[0], count, strength, seed)
    weight = weight / scale
    return torch.from_numpy(weight), torch.from_numpy(bias - weight @ mean)


def _encoded(encoder: Encoder, rows: Sequence[Row], value: Learnt | None) -> list[Encoded]:
    encoded = encoder.encode_rows(rows)
    if not isinstance(value, HardPrompt) or not value.length:
        return encoded
    prompt = tuple(value.ids_P.tolist())
    return [with_prompt(e, prompt, ()) for e in encoded]


def _usable(lm: FrozenLM, task: Task) -> tuple[Int[Tensor, "A"], list[str]]:
    """Return tokens that are whole words, and the text of every token.

    They bring their own space if the tokenizer writes one, and are of letters.
    """
    surfaces = surfaces_of(lm)
    texts = (text for row in task.train for text in row.fields.values())
    allowed = allowed_ids(lm, TokenFilter(frozenset(), scripts_of(texts)), (), surfaces)
    spaced = any(s.startswith(" ") for s in surfaces)
    whole = [i for i in allowed.tolist() if surfaces[i].startswith(" ") or not spaced]
    words = [i for i in whole if surfaces[i].strip().isalpha()]
    return torch.tensor(words or whole or allowed.tolist()), surfaces


def _best_words(
    encoder: Encoder, form: Format, score_CA: Float[Tensor, "C A"], ids_A: Int[Tensor, "A"], surfaces: list[str]
) -> list[list[tuple[str, int]]]:
    """Return up to five words a label with their tokens.

    Labels take their best in turns, so that no word serves two. Raises: ConfigError for a label without a word.
    """
    results: list[list[tuple[str, int]]] = [[] for _ in form.labels]
    orders = [iter(_whole_words(encoder, scores_A, ids_A, surfaces)) for scores_A in score_CA]
    used: set[int] = set()
    for _ in range(MOST):
        for label, order in enumerate(orders):
            word = next((w for w in order if w[1] not in used), None)
            if word is not None:
                results[label].append(word)
                used.add(word[1])
    for name, words in zip(form.labels, results, strict=True):
        if not words:
            raise ConfigError(f"No word was found for the label {name!r}; give label words by hand.")
    return results


def _whole_words(
    encoder: Encoder, score_A: Float[Tensor, "A"], ids_A: Int[Tensor, "A"], surfaces: list[str]
) -> list[tuple[str, int]]:
    """Return a label's best words that are one token in the answer's place, with that token."""
    order = [i for i in score_A.argsort(descending=True, stable=True).tolist()[:POOLED] if score_A[i] > -torch.inf]
    words = [surfaces[int(ids_A[i])].strip() for i in order]
    read = encoder.planner.place.ids(encoder.pieces, words) if words else []
    return [(word, int(ids_A[i])) for word, i, ids in zip(words, order, read, strict=True) if ids == [int(ids_A[i])]]


def _measured(
    lm: FrozenLM, vector_ND: Float[Tensor, "N D"], label_N: Int[np.ndarray, "N"],
    words: tuple[tuple[str, ...], ...], ids: tuple[tuple[int, ...], ...], how: str,
) -> WordChoice:  # fmt: skip
    flat = torch.tensor([i for some in ids for i in some])
    logit_NU = lm.piece_logits(vector_ND.to(lm.device), flat).double().cpu()
    parts = logit_NU.split([len(some) for some in ids], dim=1)
    score = torch.stack([part.logsumexp(1) for part in parts], dim=1).numpy()
    return WordChoice(words, how, float(accuracy(score, label_N)), -float(nll(score, label_N)))


def with_words(form: Format, choice: WordChoice) -> Format:
    """Return the format with these label words."""
    return replace(form, words=choice.words)
