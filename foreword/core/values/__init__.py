"""Hold learnt values that are no prompts: weights, classifiers, pools of prompts or examples, ensembles.

A new kind of value is a class in a file here, and its name below, so that records which name its form can be read.
"""

from foreword.core.learnt import Learnt
from foreword.core.values.classifiers import Probe, WordCounts
from foreword.core.values.members import Ensemble, Member, Rule
from foreword.core.values.pools import Neighbours, PromptPool
from foreword.core.values.weights import LowRank, Tuned, Weights

__all__ = [
    "Ensemble", "Learnt", "LowRank", "Member", "Neighbours", "Probe", "PromptPool", "Rule", "Tuned", "Weights",
    "WordCounts",
]  # fmt: skip
