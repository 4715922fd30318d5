"""Prompt tuning: input embeddings in the template's slots, learnt by gradient (Lester et al. 2021)."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from foreword.core.prompts import SoftPrompt
from foreword.core.shapes import Float, Int, Tensor
from foreword.errors import ConfigError
from foreword.methods.base import GradientConfig, GradientMethod, Job, Learner
from foreword.models.base import FrozenLM
from foreword.models.encode import Encoder, plain_ids, word_ids

VOCABULARY_HEAD = 5000
UNIFORM_SCALE = 0.5


@dataclass(frozen=True)
class PromptTuningConfig(GradientConfig):
    """`length` positions are put in front of a template without slots; a template's own slots say their number.

    `init`: "uniform" in [-0.5, 0.5], "vocabulary" (distinct rows among the first 5,000 ordinary pieces), "labels" (mean
    embedding of each label's words, then vocabulary) or "text" (`init_text`, cut or repeated to the length).
    """

    length: int = 20
    init: Literal["uniform", "vocabulary", "labels", "text"] = "labels"
    init_text: str = ""
    optimizer: Literal["adamw", "adafactor"] = "adafactor"
    learning_rate: float = 0.3
    weight_decay: float = 1e-5
    clip: float = 1.0


class PromptTuning(GradientMethod):
    name = "prompt-tuning"
    summary = "learnt input embeddings in the template's slots"
    source = "Lester et al. 2021"
    Config = PromptTuningConfig
    form = "soft"
    mixed_batch = True
    freezes_lm = True

    def start(self, lm: FrozenLM, job: Job) -> Learner:
        config: PromptTuningConfig = job.config
        template = job.format.template
        form = job.format if template.slots else replace(job.format, template=template.with_soft(config.length))
        encoder = Encoder.build(lm, form)
        if encoder.init_ids_P is not None:
            initial = lm.embed(encoder.init_ids_P[None].to(lm.device))[0]
        else:
            initial = initial_prompt(lm, job, encoder.prompt_length, config)
        leaf = initial.detach().float().clone().requires_grad_()
        return Learner({"embed": leaf}, lambda leaves: SoftPrompt(leaves["embed"]), form, config)


def initial_prompt(lm: FrozenLM, job: Job, length: int, config: PromptTuningConfig) -> Float[Tensor, "P D"]:
    """The prompt a seed starts from (Lester et al. 2021, section 3.2).

    Raises: ConfigError for "text" without a text.
    """
    generator = torch.Generator().manual_seed(job.seed)
    if config.init == "uniform":
        return (torch.rand(length, lm.dims.width, generator=generator) - 0.5) * (2 * UNIFORM_SCALE)
    if config.init == "text":
        ids = plain_ids(lm, config.init_text)
        if not len(ids):
            raise ConfigError("prompt-tuning: init=text needs a text; give one with -o init_text='...'.")
        return lm.embed(ids.repeat(-(-length // len(ids)))[None, :length].to(lm.device))[0]
    rows = []
    if config.init == "labels":
        for words in job.format.words:
            pieces = torch.cat([word_ids(lm, word) for word in words])
            rows.append(lm.embed(pieces[None].to(lm.device))[0].mean(0))
    missing = length - len(rows)
    if missing > 0:
        rows += list(lm.embed(sampled_ids(lm, missing, generator)[None].to(lm.device))[0])
    return torch.stack(rows[:length])


def sampled_ids(lm: FrozenLM, count: int, generator: torch.Generator) -> Int[Tensor, "P"]:
    """Distinct ids among the first 5,000 ordinary pieces (vocabularies list the frequent ones first).

    Special tokens and BERT's `[unused...]` rows are no words and are left out; more than there are wrap around.
    """
    special = set(lm.tokenizer.all_special_ids)
    pieces = lm.tokenizer.convert_ids_to_tokens(list(range(min(len(lm.tokenizer), lm.dims.vocab))))
    ordinary = [i for i, p in enumerate(pieces) if i not in special and p and not p.startswith(("[unused", "<unused"))]
    head = torch.tensor(ordinary[:VOCABULARY_HEAD])
    order = torch.randperm(len(head), generator=generator)
    return head[order.repeat(-(-count // len(head)))[:count]]
