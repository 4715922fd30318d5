"""Metrics of generated texts against the libraries, a plain BLEU of our own, and resamples taken in full.

Run: python -m pytest tests/tasks/test_corpus.py
"""

import math
import random
from collections import Counter

import numpy as np
import pytest
from nltk.translate.nist_score import corpus_nist
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from foreword.errors import ConfigError
from foreword.evaluation.statistics import difference, interval, resample_summed
from foreword.tasks.corpus_metrics import CORPUS, bleu, chrf, distinct, nist, require_library, rouge_l
from foreword.tasks.extract import NO_ANSWER
from foreword.tasks.rows import Row
from foreword.tasks.task import Task
from foreword.tasks.text_metric import Judge
from tests.seeds import new_seed

WORDS = "the a blue golden house near river serves cheap Italian food, is it's rated 5 out of five stars - £20".split()


def corpus(seed: int, rows: int = 60) -> tuple[list[str], tuple[tuple[str, ...], ...]]:
    """Texts that share words with one to four references; some are empty, one word long, or right."""
    rng = random.Random(seed)
    answers, targets = [], []
    for row in range(rows):
        own = [" ".join(rng.choices(WORDS, k=rng.randint(3, 14))) + "." for _ in range(rng.randint(1, 4))]
        words = rng.choice(own).split()
        for _ in range(rng.randint(0, 4)):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        answers.append("" if row % 17 == 5 else "House" if row % 17 == 6 else " ".join(words[: rng.randint(2, 14)]))
        targets.append(tuple(own))
    return answers, tuple(targets)


def streams(targets):
    return [[own[i] if i < len(own) else None for own in targets] for i in range(max(map(len, targets)))]


def split(text: str) -> list[str]:
    return Tokenizer13a()(text).split()


def plain_bleu(answers, targets) -> float:
    """Papineni et al. 2002 in plain loops: clipped counts, closest length, exponential smoothing of empty orders."""
    right, total, length, wanted = [0] * 4, [0] * 4, 0, 0
    for text, own in zip(answers, targets, strict=True):
        words, refs = split(text), [split(t) for t in own]
        length += len(words)
        wanted += min((abs(len(r) - len(words)), len(r)) for r in refs)[1]
        for n in range(1, 5):
            grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
            total[n - 1] += len(grams)
            for gram in set(grams):
                most = max(sum(tuple(r[i : i + n]) == gram for i in range(len(r) - n + 1)) for r in refs)
                right[n - 1] += min(grams.count(gram), most)
    if not any(right) or not all(total):
        return 0.0
    smooth, logs = 1.0, 0.0
    for r, t in zip(right, total, strict=True):
        if not r:
            smooth *= 2
        logs += math.log(r / t if r else 1 / (smooth * t)) / 4
    return math.exp(logs) * min(1.0, math.exp(1 - wanted / length))


@pytest.mark.parametrize("_", range(4))
def test_what_the_libraries_say_of_a_drawn_corpus(_: int) -> None:
    seed = new_seed(2**32)
    print("corpus", seed)  # shown where it fails
    answers, targets = corpus(seed)
    assert 100 * bleu(answers, targets).value() == pytest.approx(
        BLEU(force=True).corpus_score(answers, streams(targets)).score, abs=1e-9
    )
    assert bleu(answers, targets).value() == pytest.approx(plain_bleu(answers, targets), abs=1e-12)
    assert 100 * chrf(answers, targets).value() == pytest.approx(
        CHRF().corpus_score(answers, streams(targets)).score, abs=1e-9
    )
    told = corpus_nist([[split(t) for t in own] for own in targets], [split(a) for a in answers])
    assert nist(answers, targets).value() == pytest.approx(told, abs=1e-9)
    scorer = RougeScorer(["rougeL"])
    best = [max(scorer.score(t, a)["rougeL"].fmeasure for t in own) for a, own in zip(answers, targets, strict=True)]
    assert rouge_l(answers, targets).value() == pytest.approx(np.mean(best), abs=1e-12)
    for n in (1, 2):
        grams = Counter(tuple(w[i : i + n]) for w in map(split, answers) for i in range(len(w) - n + 1))
        assert distinct(n, answers).value() == pytest.approx(len(grams) / sum(grams.values()))
    mixed = answers[1:] + answers[:1]
    assert bleu(mixed, targets).value() < 0.5 * bleu(answers, targets).value()  # the control


@pytest.mark.parametrize("name", [*CORPUS, "distinct"])
def test_a_resample_is_the_metric_of_the_rows_taken(name: str) -> None:
    """Every draw, against the metric of texts and references taken row by row, as often as the draw has them."""
    answers, targets = corpus(3, rows=25)
    one = distinct(2, answers) if name == "distinct" else CORPUS[name](answers, targets)
    draws = resample_summed({name: one}, seed=4)[name].draws_D
    rng = np.random.default_rng([4, 25])
    pick = rng.integers(25, size=(200, 25))[:20]  # as they are drawn
    for number, rows in enumerate(pick):
        some, own = [answers[r] for r in rows], tuple(targets[r] for r in rows)
        if name == "distinct":
            whole = distinct(2, some).value()
        elif name == "nist":  # what an n-gram tells stays that of the whole corpus
            whole = nist_with(answers, targets, rows)
        else:
            whole = CORPUS[name](some, own).value()
        assert draws[number] == pytest.approx(whole, abs=1e-12)
    assert len(set(np.round(draws, 9))) > 500


def nist_with(answers, targets, rows) -> float:
    """NIST of some rows with the weights of all, in plain loops."""
    counts, words = Counter(), 0
    for own in targets:
        for text in map(split, own):
            words += len(text)
            counts.update(tuple(text[i : i + n]) for n in range(1, 6) for i in range(len(text) - n + 1))
    precisions, wanted, length = 0.0, 0, 0
    for n in range(1, 6):
        told, total = 0.0, 0
        for row in rows:
            text = split(answers[row])
            grams = Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
            found = []
            for own in map(split, targets[row]):
                both = grams & Counter(tuple(own[i : i + n]) for i in range(len(own) - n + 1))
                bits = sum(t * math.log2((counts[g[:-1]] if n > 1 else words) / counts[g]) for g, t in both.items())
                found.append((bits / max(1, sum(grams.values())), bits, len(own)))
            told, total = told + max(found)[1], total + sum(grams.values())
            wanted, length = wanted + max(found)[2], length + len(text)
        precisions += told / total if total else 0.0
    ratio = length / wanted
    return precisions * (math.exp(math.log(0.5) * (math.log(ratio) / math.log(1.5)) ** 2) if ratio < 1 else 1.0)


def test_paired_differences_are_narrower_and_hold_no_difference_where_there_is_none() -> None:
    answers, targets = corpus(8, rows=120)
    worse = [a.replace("the", "of") if i % 3 == 0 else a for i, a in enumerate(answers)]
    one, other = (resample_summed({"bleu": bleu(texts, targets)})["bleu"] for texts in (answers, worse))
    gap, alone = difference([one], [other]), interval([one])
    assert gap.shown and gap.mean > 0
    assert gap.high - gap.low < 0.7 * (alone.high - alone.low)
    same = difference([one], [one])
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_empty_texts_are_worth_nothing_and_break_nothing() -> None:
    targets = (("a b c d e f", "a b"), ("x",))
    judge = Judge("bleu", slots=None)
    found = judge.summed([NO_ANSWER, NO_ANSWER], targets)
    assert {name: one.value() for name, one in found.items() if name != "no_answer"} == dict.fromkeys(
        ("bleu", "chrf", "rouge_l", "nist", "distinct_1", "distinct_2", "exact_text"), 0.0
    )
    assert found["no_answer"].value() == 1.0
    half = judge.summed(["a b c d e f", NO_ANSWER], targets)
    assert 0 < half["bleu"].value() < 1 and half["exact_text"].value() == 0.5
    assert judge.summed([], []) == {}
    for drawn in resample_summed(half).values():
        assert np.isfinite(drawn.draws_D).all()


def test_case_is_kept_unless_it_is_said_not_to_be() -> None:
    rows = [Row({"q": "a"}, None, (), "", ("The Blue House is near the River.",))]
    texts = ["the blue house is near the river."]
    assert Judge("bleu", case="lower").metrics(texts, rows)["bleu"] == pytest.approx(1)
    assert Judge("bleu", case="lower").metrics(texts, rows)["exact_text"] == 1
    parted = [Row({"q": "a"}, None, (), "", ("A family-friendly Café's £20-25.",))]
    written = ["a family - friendly cafe ' s £20 - 25 ."]
    assert Judge("bleu", case="uncased").metrics(written, parted)["exact_text"] == 1
    assert Judge("bleu", case="lower").metrics(written, parted)["bleu"] < 0.3
    cased = Judge("bleu").metrics(texts, rows)
    assert cased["bleu"] < 0.6 and cased["exact_text"] == 0


@pytest.mark.parametrize("metric", [*CORPUS])
def test_single_texts_have_a_value_between_0_and_1(metric: str) -> None:
    judge, rng = Judge(metric), random.Random(1)
    answers, targets = corpus(5)
    values = [judge.value(a or NO_ANSWER, t) for a, t in zip(answers, targets, strict=True)]
    assert all(0 <= v <= 1 for v in values) and len(set(values)) > 20
    own = rng.choice(targets)
    assert judge.value(own[0], own) == pytest.approx(1, abs=1e-6) or metric == "nist"
    assert judge.right(max(own, key=lambda t: judge.value(t, own)), own) and not judge.right("zz", own)
    assert judge.value(NO_ANSWER, own) == 0


def test_what_cannot_be_asked_is_told(monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"are for metrics of generated texts .* and the metric is f1"):
        Judge("f1", case="lower")
    with pytest.raises(ConfigError, match="'nope' is no way to find slots"):
        Judge("bleu", slots="nope")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"bleu needs sacrebleu; pip install 'foreword\[texts\]'"):
        require_library("bleu")
    task = Task(train=[{"q": "a", "answer": "b"}] * 2, test=[{"q": "c", "answer": "d"}], metric="chrf")
    with pytest.raises(ConfigError, match="needs sacrebleu"):  # before anything is trained
        task.format("causal")
