"""Learn input embeddings in the template's slots by gradient (prompt tuning, Lester et al. 2021)."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch

from foreword.core.doc import Doc, documented
from foreword.core.format import Format
from foreword.core.prompts import SoftPrompt
from foreword.core.shapes import Float, Int, Tensor
from foreword.errors import ConfigError
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoder
from foreword.training.contract import GradientConfig, GradientMethod, Job, Learner
from foreword.training.options import Amount, Count, Positive, Start
from foreword.training.warm_start import shares_in, started

VOCABULARY_HEAD = 5000
UNIFORM_SCALE = 0.5
Init = Literal["uniform", "vocabulary", "labels", "text"] | Start
OWN = -1.0  # stands for an option that was not given; no recorded config holds it


@documented
@dataclass(frozen=True)
class SlotConfig(GradientConfig):
    """Hold the options of methods that learn the embeddings of a template's slots.

    A template's own slots say their number and place. Of an artefact given as `init`, the record keeps the hash.
    """

    length: Annotated[Count, Doc("Positions that a template without slots gets.")] = 20
    place: Annotated[
        Literal["front", "answer"],
        Doc("Where they are put: in front, or right before the answer (infix tuning; Li & Liang 2021, section 7.2)."),
    ] = "front"
    init: Annotated[
        Init,
        Doc("Initialisation: uniform in [-0.5, 0.5], frequent tokens, label words, a text, or a prompt's folder."),
    ] = "labels"
    init_text: Annotated[str, Doc("Text of init=text, which is cut or repeated to the length.")] = ""


@documented
@dataclass(frozen=True)
class PromptTuningConfig(SlotConfig):
    """Hold the options of prompt tuning.

    Lester et al. train with Adafactor for 30,000 steps; AdamW gets further in the first hundreds (LOG.md). If `init` is
    a start of metaprompting, training repeats its inner loop (SGD at its rates, its steps, no clipping), unless an
    optimiser or a rate is given.
    """

    optimizer: Literal["adamw", "adafactor", "sgd"] = "adamw"
    learning_rate: Annotated[
        Positive, Doc("Learning rate (not given: 0.01 for AdamW, 0.3 for Adafactor, 0.1 for SGD).")
    ] = OWN
    weight_decay: Annotated[Amount, Doc("Weight decay (not given: 1e-5 for Adafactor, 0 for the others).")] = OWN

    def __post_init__(self) -> None:
        own = {"adamw": (0.01, 0.0), "adafactor": (0.3, 1e-5), "sgd": (0.1, 0.0)}[self.optimizer]
        for name, value in zip(("learning_rate", "weight_decay"), own, strict=True):
            if getattr(self, name) == OWN:
                object.__setattr__(self, name, value)


class PromptTuning(GradientMethod):
    name = "prompt-tuning"
    summary = "learnt input embeddings in the template's slots"
    source = "Lester et al. 2021"
    Config = PromptTuningConfig
    form = "soft"
    kinds = ("masked", "causal", "seq2seq")
    mixed_batch = True
    freezes_lm = True
    takes_init = "soft"
    adapts = True
    answers = ("labels", "options", "text")

    def start(self, lm: FrozenLM, job: Job) -> Learner:
        config: PromptTuningConfig = job.config
        form, initial = initial_prompt(lm, job, torch.Generator().manual_seed(job.seed))
        own = {"embed": initial.requires_grad_()}
        return Learner(own, lambda leaves: SoftPrompt(leaves["embed"]), form, config, shares=shares_in(job, own))


@torch.no_grad()
def initial_prompt(lm: FrozenLM, job: Job, generator: torch.Generator) -> tuple[Format, Float[Tensor, "P D"]]:
    """Return the job's format with its slots, and the initial prompt, fp32 (Lester et al. 2021, section 3.2).

    Slots that are written as words begin as those words. The job's config is a `SlotConfig`.

    Raises: ConfigError for "text" without a text.
    """
    config: SlotConfig = job.config
    template = job.format.template
    form = replace(job.format, template=template.with_soft(config.length, config.place))
    encoder = Encoder.build(lm, form)
    start = started(lm, job)
    if isinstance(start, SoftPrompt):
        if start.embed_PD.shape != (encoder.prompt_length, lm.dims.width):
            raise ConfigError(
                f"{job.method.name}: the start given has {start.length} positions and the template's slots "
                f"{encoder.prompt_length}; write {{soft:{start.length}}} in the template, or take another start."
            )
        return form, start.embed_PD.detach().float().clone().to(lm.device)
    initial = _drawn(lm, encoder, config, job.method.name, generator)
    written = encoder.init_ids_P
    if written is not None:
        words = embedded(lm, written.clamp(min=0))
        initial = torch.where((written >= 0)[:, None].to(lm.device), words, initial.to(words.dtype))
    return form, initial.detach().float().clone()


def _drawn(
    lm: FrozenLM, encoder: Encoder, config: SlotConfig, method: str, generator: torch.Generator
) -> Float[Tensor, "P D"]:
    """Draw what `init` asks for, in every slot."""
    length = encoder.prompt_length
    if config.init == "uniform":
        return ((torch.rand(length, lm.dims.width, generator=generator) - 0.5) * (2 * UNIFORM_SCALE)).to(lm.device)
    if config.init == "text":
        return embedded(lm, text_ids(encoder, config.init_text, method, length))
    labels = label_ids(encoder) if config.init == "labels" else []
    rows = [embedded(lm, ids).mean(0) for ids in labels]
    missing = max(0, length - len(rows))
    return torch.stack([*rows, *embedded(lm, sampled_ids(lm, missing, generator))][:length])


def embedded(lm: FrozenLM, ids_P: Int[Tensor, "P"]) -> Float[Tensor, "P D"]:
    return lm.embed(ids_P[None].to(lm.device))[0]


def label_ids(encoder: Encoder) -> list[Int[Tensor, "P"]]:
    """Return the tokens of all words of each label, in order; nothing if rows bring their own options."""
    if encoder.plan is None:
        return []
    return [torch.tensor([piece for word in words for piece in word]) for words in encoder.plan.words]


def text_ids(encoder: Encoder, text: str, method: str, length: int) -> Int[Tensor, "P"]:
    """Return the tokens of a text, cut or repeated to the length."""
    [ids] = encoder.pieces.following([text.strip()])
    if not ids:
        raise ConfigError(f"{method}: init=text needs a text; give one with -o init_text='...'.")
    return torch.tensor(ids).repeat(-(-length // len(ids)))[:length]


def sampled_ids(lm: FrozenLM, count: int, generator: torch.Generator) -> Int[Tensor, "P"]:
    """Draw distinct ids among the first 5,000 ordinary tokens (vocabularies list the frequent ones first).

    Special tokens and BERT's `[unused...]` rows are left out. If more are asked for than there are, ids repeat.
    """
    special = set(lm.tokenizer.all_special_ids)
    pieces = lm.tokenizer.convert_ids_to_tokens(list(range(min(len(lm.tokenizer), lm.dims.vocab))))
    ordinary = [i for i, p in enumerate(pieces) if i not in special and p and not p.startswith(("[unused", "<unused"))]
    head = torch.tensor(ordinary[:VOCABULARY_HEAD])
    if not count:
        return head[:0]
    order = torch.randperm(len(head), generator=generator)
    return head[order.repeat(-(-count // len(head)))[:count]]
