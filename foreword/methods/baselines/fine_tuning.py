"""Fine-tune every weight of the model under the hand-written prompt, as a baseline and a ceiling."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from foreword.core.doc import Doc, documented
from foreword.core.shapes import Tensor
from foreword.core.values import Weights
from foreword.models.base import FrozenLM
from foreword.training.contract import GradientConfig, GradientMethod, Job, Learner
from foreword.training.options import Amount, Positive, Whole


@documented
@dataclass(frozen=True)
class FineTuningConfig(GradientConfig):
    """Hold the options of fine-tuning. Leaves are fp32 whatever the dtype of the model."""

    dropout: Annotated[bool, Doc("Use the model's own dropout during training.")] = True
    learning_rate: Positive = 1e-4
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: Whole = 20
    weight_decay: Amount = 0.01
    clip: Amount = 1.0


class FineTuning(GradientMethod):
    name = "fine-tuning"
    summary = "all weights of the model, through the same template and label words"
    source = "Devlin et al. 2019; through a template: Schick & Schuetze 2021"
    Config = FineTuningConfig
    form = "weights"
    kinds = ("masked", "causal", "seq2seq")
    mixed_batch = False
    freezes_lm = False
    answers = ("labels", "options", "text")

    def start(self, lm: FrozenLM, job: Job) -> Learner:
        lm.require_weights()
        stored = {name: w.dtype for name, w in lm.named_weights().items()}
        leaves = {n: w.detach().float().clone().requires_grad_() for n, w in lm.named_weights().items()}

        def build(leaves: Mapping[str, Tensor]) -> Weights:
            return Weights({name: leaf.to(stored[name]) for name, leaf in leaves.items()})

        return Learner(leaves, build, job.format, job.config, dropout=job.config.dropout)
