"""Hold learnt values that are no prompts: weights, low-rank updates, probes, word counts, pools, ensembles.

A new kind of value is a file here and a line below, which lets records be read that name its form.
"""

from foreword.core.learnt import Learnt
from foreword.core.values.low_rank import LowRank
from foreword.core.values.members import Ensemble, Member, Rule
from foreword.core.values.neighbours import Neighbours
from foreword.core.values.pool import PromptPool
from foreword.core.values.probe import Probe
from foreword.core.values.tuned import Tuned
from foreword.core.values.weights import Weights
from foreword.core.values.word_counts import WordCounts

__all__ = [
    "Ensemble",
    "Learnt",
    "LowRank",
    "Member",
    "Neighbours",
    "Probe",
    "PromptPool",
    "Rule",
    "Tuned",
    "Weights",
    "WordCounts",
]
