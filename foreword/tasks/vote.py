"""Count the votes of several samples: the winner, whether it can still be beaten, and how often a vote of k is right.

Samples without an answer cast no vote. Of answers with equal votes the one whose first sample comes first wins.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from typing import final

from foreword.core.format import Vote
from foreword.tasks.extract import NO_ANSWER, Found


@final
@dataclass(eq=False)
class Ballot:
    """Hold the votes of one row's samples, which may come in any order; `asked` of them at most.

    A vote weighs 1, or between 0 and 1 if likelihoods are its weight, so `asked - cast` bounds the votes to come.
    """

    asked: int
    rule: Vote = "majority"
    cast: dict[int, tuple[Hashable, float]] = field(default_factory=dict)
    answers: dict[int, Found] = field(default_factory=dict)

    def add(self, sample: int, answer: Found, key: Hashable = None, weight: float = 1.0) -> None:
        """Add one sample's answer; answers with equal keys (by default the answers themselves) are one answer."""
        assert sample not in self.answers and 0 <= weight <= 1, "a sample votes once, with at most one vote"
        self.answers[sample] = answer
        if answer is not NO_ANSWER:
            self.cast[sample] = (answer if key is None else key, 1.0 if self.rule == "majority" else weight)

    @property
    def votes(self) -> dict[Hashable, float]:
        """Return the weight of each answer, the winner first."""
        total: dict[Hashable, float] = {}
        for sample in sorted(self.cast):
            key, weight = self.cast[sample]
            total[key] = total.get(key, 0.0) + weight
        return dict(sorted(total.items(), key=lambda item: -item[1]))  # stable: equal ones by their first sample

    @property
    def winner(self) -> Found:
        """Return the answer with most votes, as the first of its samples gave it; NO_ANSWER if there are no votes."""
        votes = self.votes
        if not votes:
            return NO_ANSWER
        first = next(iter(votes))
        return self.answers[min(sample for sample, (key, _) in self.cast.items() if key == first)]

    @property
    def needed(self) -> int:
        """Return the least number of further votes after which no others can change the winner; 0 if none can now.

        The winner needs more votes than the second: at equal votes a later sample with a lower number could decide.
        """
        left = self.asked - len(self.answers)
        first, second = [*self.votes.values(), 0.0, 0.0][:2]
        return max(0, min(left, math.floor((second + left - first) / 2 * (1 + 1e-12)) + 1))


def majority_at(k: int, counts: Mapping[Hashable, int], right: Sequence[Hashable], total: int) -> float:
    """Return the chance that the majority of k samples, drawn from these `total` ones without replacement, is right.

    It is the unbiased estimate for a vote of k: the mean over all subsets, and over their orders if votes are equal, so
    that each of t leaders wins one time in t. `counts` are the votes by answer; `total` less their sum cast no vote.
    """
    if not 1 <= k <= total:
        raise ValueError(f"a vote of {k} cannot be estimated from {total} samples")
    silent = total - sum(counts.values())
    whole = 0.0
    for answer in set(right) & counts.keys():
        others = [count for key, count in counts.items() if key != answer]
        for own in range(1, min(k, counts[answer]) + 1):
            # ways[ties][drawn]: of the others so far, none of which has more votes than `own`
            ways: dict[tuple[int, int], int] = {(0, 0): 1}
            for count in others:
                grown: dict[tuple[int, int], int] = {}
                for (ties, drawn), number in ways.items():
                    for votes in range(min(own, count, k - own - drawn) + 1):
                        at = ties + (votes == own), drawn + votes
                        grown[at] = grown.get(at, 0) + number * comb(count, votes)
                ways = grown
            for (ties, drawn), number in ways.items():
                rest = k - own - drawn
                if rest <= silent:
                    whole += comb(counts[answer], own) * number * comb(silent, rest) / (ties + 1)
    return whole / comb(total, k)
