"""Use the hand-written prompt: the template and the label words as a person wrote them."""

from foreword.core.prompts import HardPrompt
from foreword.errors import ConfigError
from foreword.inference.calibration import HardConfig
from foreword.models.base import FrozenLM
from foreword.training.contract import DirectMethod, Job, Made, SearchState


class Manual(DirectMethod):
    name = "manual"
    summary = "the template and label words as written; nothing is trained"
    source = "Brown et al. 2020; Schick & Schuetze 2021"
    Config = HardConfig
    form = "hard"
    answers = ("labels", "options", "text")
    kinds = ("masked", "causal", "seq2seq")
    mixed_batch = True
    freezes_lm = True
    learns = False
    retemplates = True

    def make(self, lm: FrozenLM, job: Job, state: SearchState) -> Made:
        if job.format.template.slots:
            raise ConfigError(
                "manual uses words only, and this template has {soft:...} slots; remove them, or use prompt-tuning."
            )
        return Made(HardPrompt.empty(), job.format)
