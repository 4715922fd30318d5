"""Votes of samples: the winner, the early end, and what a vote of k is worth.

Run: python -m pytest tests/tasks/test_vote.py
"""

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.tasks.extract import NO_ANSWER
from foreword.tasks.vote import Ballot, majority_at

ANSWERS = st.sampled_from(["a", "b", "c", None])


def cast(answers, rule="majority", weights=None, order=None) -> Ballot:
    ballot = Ballot(len(answers), rule)
    for sample in order or range(len(answers)):
        found = NO_ANSWER if answers[sample] is None else answers[sample]
        ballot.add(sample, found, weight=1.0 if weights is None else weights[sample])
    return ballot


def plain_winner(answers, weights=None):
    """By the definition: the most weight, then the first to be given."""
    total = Counter()
    for n, answer in enumerate(answers):
        if answer is not None:
            total[answer] += 1.0 if weights is None else weights[n]
    if not total:
        return NO_ANSWER
    best = max(total.values())
    return next(a for a in answers if a is not None and math.isclose(total[a], best, rel_tol=1e-12))


@settings(deadline=None, max_examples=300)
@given(st.lists(ANSWERS, min_size=1, max_size=9), st.randoms())
def test_the_winner_is_the_same_in_any_order(answers, rng):
    order = rng.sample(range(len(answers)), len(answers))
    assert cast(answers).winner == cast(answers, order=order).winner == plain_winner(answers)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(ANSWERS, st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=1, max_size=9))
def test_weights_are_votes(pairs):
    answers, weights = zip(*pairs, strict=True)
    assert cast(answers, "likelihood", weights).winner == plain_winner(answers, weights)
    assert cast(answers, "majority", weights).winner == plain_winner(answers)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(ANSWERS, st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=1, max_size=9),
    st.randoms(),
    st.sampled_from(["majority", "likelihood"]),
)
def test_a_vote_that_ends_early_ends_as_the_whole_one(pairs, rng, rule):
    answers, weights = zip(*pairs, strict=True)
    whole = cast(answers, rule, weights)
    ballot = Ballot(len(answers), rule)
    for sample in rng.sample(range(len(answers)), len(answers)):
        ballot.add(sample, NO_ANSWER if answers[sample] is None else answers[sample], weight=weights[sample])
        if not ballot.needed:
            break
    assert ballot.winner == whole.winner


def test_it_ends_as_soon_as_it_may_and_no_sooner():
    ballot = Ballot(5)
    assert ballot.needed == 3
    for n in range(3):
        ballot.add(n, "a")
        assert ballot.needed == 2 - n
    close = Ballot(5)
    for n, answer in enumerate("aab"):
        close.add(n, answer)
    assert close.needed == 1
    close.add(3, "b")
    assert close.needed == 1
    none = Ballot(2)
    none.add(0, NO_ANSWER)
    assert none.needed == 1 and none.winner is NO_ANSWER
    none.add(1, NO_ANSWER)
    assert not none.needed and none.winner is NO_ANSWER and not none.votes


def enumerated(k: int, answers: list, right: set) -> float:
    """Every ordered choice of k samples, each by the vote itself."""
    orders = itertools.permutations(range(len(answers)), k)
    votes = [plain_winner([answers[i] for i in chosen]) in right for chosen in orders]
    return sum(votes) / len(votes)


@pytest.mark.parametrize("seed", range(12))
def test_the_estimate_is_the_mean_over_all_subsets(seed):
    rng = random.Random(seed)
    answers = rng.choices(["a", "b", "c", None], [4, 3, 2, 1.5], k=rng.randint(3, 7))
    right = set(rng.sample(["a", "b", "c"], rng.choice([1, 1, 2])))
    counts = Counter(a for a in answers if a is not None)
    for k in range(1, len(answers) + 1):
        ours = majority_at(k, counts, sorted(right), len(answers))
        assert ours == pytest.approx(enumerated(k, answers, right), abs=1e-12), (k, answers, right)


def law_value(n: int, law: dict[str, float], right: str) -> float:
    """The chance that a vote of n is right: over all counts, with one leader in t right where t lead."""
    names, total = list(law), 0.0
    for counts in itertools.product(range(n + 1), repeat=len(names)):
        if sum(counts) != n:
            continue
        ways = math.factorial(n)
        chance = 1.0
        for name, count in zip(names, counts, strict=True):
            ways //= math.factorial(count)
            chance *= law[name] ** count
        lead = [name for name, count in zip(names, counts, strict=True) if count == max(counts)]
        total += ways * chance * (right in lead) / len(lead)
    return total


def test_the_estimate_is_unbiased():
    """Its mean over all outcomes of n samples is the chance of a vote of k, exactly."""
    law, n = {"a": 0.5, "b": 0.3, "c": 0.2}, 6
    for k in (1, 2, 3, 5):
        mean = 0.0
        for outcome in itertools.product(law, repeat=n):
            chance = math.prod(law[a] for a in outcome)
            mean += chance * majority_at(k, Counter(outcome), ["a"], n)
        assert mean == pytest.approx(law_value(k, law, "a"), abs=1e-12)


def test_a_vote_that_was_not_drawn_cannot_be_estimated():
    assert majority_at(3, {}, ["a"], 3) == 0.0
    for k in (0, 4):
        with pytest.raises(ValueError, match="cannot be estimated"):
            majority_at(k, {"a": 2}, ["a"], 3)
