"""Compute metrics of a corpus from sums over its rows, so that a resample of the rows is counts times a matrix.

BLEU (Papineni et al. 2002), chrF (Popovic 2015), ROUGE-L (Lin 2004), NIST (Doddington 2002) and distinct-n (Li et al.
2016). Texts are split into words once, whatever the number of resamples. METEOR is left out: every package that has it
needs WordNet, which is a separate download, or a Java program; without synonyms the number would be another metric.

What counts as a word depends on the script of the references. Words separated by spaces follow the rules of the
libraries (13a, and rouge-score's), to the digit; characters stand for words if a script has no spaces (`words_by`), and
ROUGE-L reads letters of any script if the references are not Latin (`_is_ascii`). A metric that cannot be measured on
some references, as ROUGE-L of signs without letters, is NaN and never 0.
"""

import importlib.util
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import numpy as np
from jaxtyping import Float

from foreword.errors import ConfigError
from foreword.tasks.words import HAN, KANA, UNSPACED, share, word_tokens

Texts = Sequence[str]
Targets = tuple[tuple[str, ...], ...]
Sums = Float[np.ndarray, "D F"]
Values = Float[np.ndarray, " D"]
ORDER = 5  # of NIST, as published

NEEDS = {"bleu": "sacrebleu", "chrf": "sacrebleu", "nist": "sacrebleu", "rouge_l": "rouge_score"}


@final
@dataclass(frozen=True, eq=False)
class Summed:
    """Hold a metric as `reduce(sums over rows of features, rows)`: a value in [low, high] for each of D sums.

    `features_RF` has one line for each row; it is scipy's sparse matrix if most of it is 0.
    """

    features_RF: Any
    reduce: Callable[[Sums, int], Values]
    low: float = 0.0
    high: float = 1.0

    def value(self) -> float:
        """Return the metric of the rows, each counted once."""
        rows = self.features_RF.shape[0]
        return float(self.reduce(np.asarray(self.features_RF.sum(axis=0)).reshape(1, -1), rows)[0])


def mean_of(value_R: Float[np.ndarray, " R"]) -> Summed:
    """Build the metric that is the mean over rows of values between 0 and 1."""
    return Summed(value_R[:, None], lambda sums_DF, rows: sums_DF[:, 0] / rows)


def not_measured(rows: int) -> Summed:
    """Return the metric of rows that cannot be measured: NaN."""
    return Summed(np.zeros((rows, 1)), lambda sums_DF, rows: np.full(len(sums_DF), np.nan))


@lru_cache(maxsize=16)
def words_by(targets: Targets) -> str:
    """Return the name of the sacrebleu tokenizer that splits texts into words for BLEU, NIST and distinct-n.

    It is "13a", unless a tenth of the rows or more have references in scripts without spaces: then it is "zh" if these
    are Chinese, else "char".
    """
    unspaced = [own for own in targets if share(own, UNSPACED) > 0.5]
    if not unspaced or len(unspaced) < 0.1 * len(targets):
        return "13a"
    texts = [text for own in unspaced for text in own]
    return "zh" if share(texts, HAN) > 0.5 and share(texts, KANA) == 0 else "char"


def tokenizers(targets: Targets) -> dict[str, str]:
    """Return by metric the tokenizer that reads these references, if it is not the default of the metric's library."""
    name = words_by(targets)
    result = {} if name == "13a" else {"bleu": name, "nist": name, "distinct": name}
    other = sum(not _is_ascii(own) for own in targets)
    if other:
        result["rouge_l"] = "unicode" if other == len(targets) else f"unicode in {other} of {len(targets)} rows"
    return result


def require_library(metric: str) -> None:
    """Check that the metric's library is installed. Raises: ConfigError that says what to install, if it is missing."""
    needed = NEEDS.get(metric)
    if needed is not None and importlib.util.find_spec(needed) is None:
        raise ConfigError(
            f"The metric {metric} needs {needed.replace('_', '-')}; pip install 'foreword[texts]', or choose a metric "
            "of single answers, as exact_match."
        )


def bleu(answers: Texts, targets: Targets) -> Summed:
    """Compute sacrebleu's BLEU-4 between 0 and 1: words of `words_by`, the closest reference length and its smoothing.

    It is not measured if no reference has four words, unless all are Latin: then it is sacrebleu's number, which is 0.
    """
    name = words_by(targets)
    short = not any(len(_words(text, name)) >= 4 for own in targets for text in own)
    if short and not all(map(_is_ascii, targets)):
        return not_measured(len(answers))
    return _sacrebleu("bleu", answers, targets)


def chrf(answers: Texts, targets: Targets) -> Summed:
    """Compute chrF2 of 6 characters between 0 and 1 as sacrebleu does, each row against its best reference."""
    return _sacrebleu("chrf", answers, targets)


def rouge_l(answers: Texts, targets: Targets) -> Summed:
    """Average rouge-score's F1 of ROUGE-L over rows, against the best reference; words are runs of a-z and 0-9.

    If the references of a row have letters of other scripts, words are runs of letters of any script. A row whose
    references have no words is not measured and does not count.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorers = {True: RougeScorer(["rougeL"]), False: RougeScorer(["rougeL"], tokenizer=_AnyScript())}
    result, measured = [], []
    for text, own in zip(answers, targets, strict=True):
        scorer = scorers[_is_ascii(own)]
        measured.append(any(map(word_tokens, own)))
        result.append(scorer.score_multi(own, text)["rougeL"].fmeasure if measured[-1] else 0.0)
    value_R, measured_R = np.array(result, dtype=np.float64), np.array(measured, dtype=np.float64)
    if measured_R.all():
        return mean_of(value_R)
    if not measured_R.any():
        return not_measured(len(answers))
    mean = value_R.sum() / measured_R.sum()

    def reduce(sums_DF: Sums, rows: int) -> Values:
        return np.divide(sums_DF[:, 0], sums_DF[:, 1], out=np.full(len(sums_DF), mean), where=sums_DF[:, 1] > 0)

    return Summed(np.stack([value_R, measured_R], axis=1), reduce)


@final
class _AnyScript:
    """Split texts into words of any script, for rouge-score's scorer."""

    def tokenize(self, text: str) -> list[str]:
        return word_tokens(text)


def _is_ascii(texts: Texts) -> bool:
    """Return whether 75% or more of the letters and digits in a row's references are ASCII, as rouge-score's are."""
    letters = [c for text in texts for c in text if c.isalnum()]
    return sum(c.isascii() for c in letters) >= 0.75 * len(letters)


def nist(answers: Texts, targets: Targets) -> Summed:
    """Compute NIST-5 as nltk's corpus_nist defines it, over the words of `words_by`; nltk does not return its sums.

    For each order every row takes the reference of highest precision. The information of an n-gram is measured once,
    over the references of all rows given; a resample of the rows does not measure it again. Without words NIST is 0.
    It is not measured if no n-gram of the references carries information.
    """
    info, counted = _references(targets)
    if not any(info.values()):
        return not_measured(len(answers))
    name = words_by(targets)
    rows = []
    for text, own in zip(answers, counted, strict=True):
        words, sums = _words(text, name), []
        for n in range(1, ORDER + 1):
            grams = _grams(words, n)
            total = sum(grams.values())
            best: tuple[float, float, int] = (-1.0, 0.0, 0)
            for reference, length in own:
                told = sum(
                    info[gram] * min(times, reference[gram]) for gram, times in grams.items() if gram in reference
                )
                best = max(best, (told / total if total else 0.0, told, length))
            sums += [best[1], total, best[2], len(words)]
        rows.append(sums)
    return Summed(np.array(rows, dtype=np.float64).reshape(-1, 4 * ORDER), _nist_of, high=math.inf)


def distinct(n: int, answers: Texts, by: str = "13a") -> Summed:
    """Return the number of different n-grams of words (split by `by`) over that of all n-grams in all texts; 0 if none.

    A resample repeats rows and so has fewer different n-grams: its draws show the spread, not the value.
    """
    from scipy.sparse import csr_matrix

    seen: dict[tuple[str, ...], int] = {}
    place, counts, ends = [], [], [0]
    for text in answers:
        for gram, times in _grams(_words(text, by), n).items():
            place.append(seen.setdefault(gram, len(seen)))
            counts.append(float(times))
        ends.append(len(place))
    features_RG = csr_matrix((counts, place, ends), shape=(len(answers), max(1, len(seen))))

    def reduce(sums_DG: Sums, rows: int) -> Values:
        return (sums_DG > 0).sum(axis=1) / np.maximum(sums_DG.sum(axis=1), 1)

    return Summed(features_RG, reduce)


def sentence_value(metric: str, answer: str, targets: Sequence[str]) -> float:
    """Return the metric of one text; BLEU has as many orders as the text allows, since few texts have four words right.

    It is NaN if the metric cannot measure these targets.
    """
    own = (tuple(targets),)
    if metric == "bleu":
        from sacrebleu.metrics.bleu import BLEU

        scorer = BLEU(effective_order=True, force=True, tokenize=words_by(own))
        return float(scorer.sentence_score(answer, list(targets)).score) / 100
    return CORPUS[metric]([answer], own).value()


def _sacrebleu(name: str, answers: Texts, targets: Targets) -> Summed:
    scorer = _scorer(name, targets)
    # Sums of single rows have no public name in sacrebleu; the tests hold what is made of them to its corpus_score.
    features_RF = np.array(scorer._extract_corpus_statistics(list(answers), None), dtype=np.float64)

    def reduce(sums_DF: Sums, rows: int) -> Values:
        score_D = [scorer._compute_score_from_stats(sums_F.tolist()).score for sums_F in sums_DF]
        return np.minimum(np.array(score_D) / 100, 1.0)  # a last digit too many where all is right

    return Summed(features_RF, reduce)


@lru_cache(maxsize=8)
def _scorer(name: str, targets: Targets) -> Any:
    """Return a scorer that has read the references; it is cached, since most calls have those of the last call."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    most = max(map(len, targets))
    streams: Any = [[own[i] if i < len(own) else None for own in targets] for i in range(most)]
    return (
        CHRF(references=streams) if name == "chrf" else BLEU(references=streams, force=True, tokenize=words_by(targets))
    )


@lru_cache(maxsize=4)
def _references(targets: Targets) -> tuple[dict[tuple[str, ...], float], list[list[tuple[Counter[Any], int]]]]:
    """Return n-grams' information in bits (Doddington 2002, eq. 2), and each row's references as counts and lengths."""
    counts: Counter[tuple[str, ...]] = Counter()
    words, counted, name = 0, [], words_by(targets)
    for own in targets:
        rows = []
        for target in own:
            split = _words(target, name)
            grams: Counter[tuple[str, ...]] = Counter()
            for n in range(1, ORDER + 1):
                grams.update(_grams(split, n))
            counts.update(grams)
            words += len(split)
            rows.append((grams, len(split)))
        counted.append(rows)
    return {g: math.log2((counts[g[:-1]] if len(g) > 1 else words) / times) for g, times in counts.items()}, counted


def _nist_of(sums_DF: Sums, rows: int) -> Values:
    """Compute NIST by Doddington 2002, eq. 3, with the lengths of the references that were taken."""
    told_DN, total_DN, reference_DN, length_DN = np.moveaxis(sums_DF.reshape(len(sums_DF), ORDER, 4), 2, 0)
    precision_D = np.divide(told_DN, total_DN, out=np.zeros_like(told_DN), where=total_DN > 0).sum(axis=1)
    ratio_D = np.minimum(length_DN.sum(axis=1) / np.maximum(reference_DN.sum(axis=1), 1e-300), 1.0)
    beta = math.log(0.5) / math.log(1.5) ** 2
    penalty_D = np.exp(beta * np.log(np.maximum(ratio_D, 1e-300)) ** 2)
    return precision_D * np.where(ratio_D > 0, penalty_D, 0.0)


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _words(text: str, by: str) -> list[str]:
    return _tokenizer(by)(text).split()


@lru_cache(maxsize=4)
def _tokenizer(name: str) -> Callable[[str], str]:
    if name == "zh":
        from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

        return TokenizerZh()
    if name == "char":
        from sacrebleu.tokenizers.tokenizer_char import TokenizerChar

        return TokenizerChar()
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


CORPUS: dict[str, Callable[[Texts, Targets], Summed]] = {"bleu": bleu, "chrf": chrf, "rouge_l": rouge_l, "nist": nist}
