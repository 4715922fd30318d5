"""Prompt tuning: input embeddings in the template's slots, learnt by gradient (Lester et al. 2021)."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from foreword.core.prompts import SoftPrompt
from foreword.core.shapes import Float, Int, Tensor
from foreword.errors import ConfigError
from foreword.methods.base import GradientConfig, GradientMethod, Job, Learner
from foreword.models.base import FrozenLM
from foreword.models.encode import Encoder

VOCABULARY_HEAD = 5000
UNIFORM_SCALE = 0.5
OWN = -1.0  # an option that was not given; the config that is recorded never holds it


@dataclass(frozen=True)
class PromptTuningConfig(GradientConfig):
    """`length` positions are put in front of a template without slots; a template's own slots say their number.

    `init`: "uniform" in [-0.5, 0.5], "vocabulary" (distinct rows among the first 5,000 ordinary pieces), "labels" (mean
    embedding of each label's words, then vocabulary) or "text" (`init_text`, cut or repeated to the length).
    `learning_rate` and `weight_decay` are the optimiser's own where not given: 0.01 and 0 for AdamW, 0.3 and 1e-5 for
    Adafactor, with which Lester et al. train for 30,000 steps; AdamW gets further in the first hundreds (LOG.md).
    """

    length: int = 20
    init: Literal["uniform", "vocabulary", "labels", "text"] = "labels"
    init_text: str = ""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: float = OWN
    weight_decay: float = OWN

    def __post_init__(self) -> None:
        own = {"adamw": (0.01, 0.0), "adafactor": (0.3, 1e-5)}[self.optimizer]
        for name, value in zip(("learning_rate", "weight_decay"), own, strict=True):
            if getattr(self, name) == OWN:
                object.__setattr__(self, name, value)


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
        with torch.no_grad():
            initial = initial_prompt(lm, encoder, config, job.seed)
        leaf = initial.detach().float().clone().requires_grad_()
        return Learner({"embed": leaf}, lambda leaves: SoftPrompt(leaves["embed"]), form, config)


def initial_prompt(lm: FrozenLM, encoder: Encoder, config: PromptTuningConfig, seed: int) -> Float[Tensor, "P D"]:
    """The prompt a seed starts from (Lester et al. 2021, section 3.2); slots written as words start from those.

    Raises: ConfigError for "text" without a text.
    """
    generator = torch.Generator().manual_seed(seed)
    length = encoder.prompt_length
    if config.init == "uniform":
        initial = ((torch.rand(length, lm.dims.width, generator=generator) - 0.5) * (2 * UNIFORM_SCALE)).to(lm.device)
    elif config.init == "text":
        ids = text_ids(encoder, config.init_text, "prompt-tuning", length)
        initial = embedded(lm, ids)
    else:
        labels = label_ids(encoder) if config.init == "labels" else []
        rows = [embedded(lm, ids).mean(0) for ids in labels]
        missing = max(0, length - len(rows))
        initial = torch.stack([*rows, *embedded(lm, sampled_ids(lm, missing, generator))][:length])
    written = encoder.init_ids_P
    if written is None:
        return initial
    words = embedded(lm, written.clamp(min=0))
    return torch.where((written >= 0)[:, None].to(lm.device), words, initial.to(words.dtype))


def embedded(lm: FrozenLM, ids_P: Int[Tensor, "P"]) -> Float[Tensor, "P D"]:
    return lm.embed(ids_P[None].to(lm.device))[0]


def label_ids(encoder: Encoder) -> list[Int[Tensor, "P"]]:
    """For each label the pieces of all its words, in order; empty where rows bring their own options."""
    if encoder.plan is None:
        return []
    return [torch.tensor([piece for word in words for piece in word]) for words in encoder.plan.words]


def text_ids(encoder: Encoder, text: str, method: str, length: int) -> Int[Tensor, "P"]:
    """Pieces of a text, cut or repeated to the length."""
    [ids] = encoder.pieces.following([text.strip()])
    if not ids:
        raise ConfigError(f"{method}: init=text needs a text; give one with -o init_text='...'.")
    return torch.tensor(ids).repeat(-(-length // len(ids)))[:length]


def sampled_ids(lm: FrozenLM, count: int, generator: torch.Generator) -> Int[Tensor, "P"]:
    """Distinct ids among the first 5,000 ordinary pieces (vocabularies list the frequent ones first).

    Special tokens and BERT's `[unused...]` rows are no words and are left out; more than there are wrap around.
    """
    special = set(lm.tokenizer.all_special_ids)
    pieces = lm.tokenizer.convert_ids_to_tokens(list(range(min(len(lm.tokenizer), lm.dims.vocab))))
    ordinary = [i for i, p in enumerate(pieces) if i not in special and p and not p.startswith(("[unused", "<unused"))]
    head = torch.tensor(ordinary[:VOCABULARY_HEAD])
    if not count:
        return head[:0]
    order = torch.randperm(len(head), generator=generator)
    return head[order.repeat(-(-count // len(head)))[:count]]
