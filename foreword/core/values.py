"""What is learnt besides prompts: weights, low-rank updates, probes, word counts, pools of examples, ensembles."""

from dataclasses import dataclass
from typing import Literal

from foreword.core.demos import Example
from foreword.core.format import Format
from foreword.core.prompts import HardPrompt, PrefixPrompt, SoftPrompt
from foreword.core.shapes import Float, Tensor


@dataclass(frozen=True, eq=False)
class Weights:
    """The model's own weights after fine-tuning, by name, in the dtype they are stored in."""

    tensors: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Tuned:
    """A prompt together with weights of the model that were learnt with it: for a model that is not frozen."""

    prompt: SoftPrompt | PrefixPrompt
    weights: Weights


@dataclass(frozen=True, eq=False)
class PromptPool:
    """Keys and soft prompts, from which every row mixes a prompt of its own (MetaPrompter, Jiang et al. 2023)."""

    keys_KD: Float[Tensor, "K D"]
    values_KPD: Float[Tensor, "K P D"]

    @property
    def length(self) -> int:
        return self.values_KPD.shape[1]


@dataclass(frozen=True, eq=False)
class LowRank:
    """Updates `scale * up @ down` of named weight matrices (LoRA, Hu et al. 2021).

    `factors` maps a weight's name to `(down_RI, up_OR)`; `transposed` names the weights stored input-first (GPT-2).
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    scale: float
    transposed: tuple[str, ...] = ()

    def merged(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights it touches, with the update added in the update's precision."""
        out = {}
        for name, (down, up) in self.factors.items():
            update = self.scale * (up @ down)
            old = weights[name]
            out[name] = (old.to(update.dtype) + (update.T if name in self.transposed else update)).to(old.dtype)
        return out


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier over frozen features; standardisation is folded in. `pool` is "answer" or "mean"."""

    weight_CD: Float[Tensor, "C D"]
    bias_C: Float[Tensor, "C"]
    pool: str


@dataclass(frozen=True, eq=False)
class WordCounts:
    """TF-IDF with logistic regression: scores are `tfidf @ weight.T + bias` over the word list's columns."""

    words: tuple[str, ...]
    idf_V: Float[Tensor, "V"]
    weight_CV: Float[Tensor, "C V"]
    bias_C: Float[Tensor, "C"]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """A pool of examples; each row is shown the `count` nearest to it, the nearest last (Liu et al. 2022).

    `embed_ND` has rows of length 1, made by the model itself or by the `encoder` named, which reads `{field} {field}`.
    """

    examples: tuple[Example, ...]
    embed_ND: Float[Tensor, "N D"]
    count: int
    separator: str
    encoder: str | None = None


@dataclass(frozen=True, eq=False)
class Member:
    """One of an ensemble: what was learnt, and the format in which its rows are put."""

    value: HardPrompt | SoftPrompt | PrefixPrompt | Neighbours
    format: Format


Rule = Literal["mean", "majority"]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Prompts that answer together, over the same labels: the mean of their probabilities, or the majority's label.

    Their rows share batches (Lester et al. 2021, section 6).
    """

    members: tuple[Member, ...]
    rule: Rule


def text_start(value: "Learnt") -> int:
    """How many positions of the context a value takes before the text begins: those of a prefix."""
    prompt = value.prompt if isinstance(value, Tuned) else value
    return prompt.start if isinstance(prompt, PrefixPrompt) else 0


def words_alone(value: "Learnt") -> bool:
    """Whether any model can read it: words of a template, or no model is needed. Token ids are of one tokenizer."""
    if isinstance(value, Ensemble):
        return all(words_alone(member.value) for member in value.members)
    return isinstance(value, WordCounts) or (isinstance(value, HardPrompt) and not value.length)


Learnt = (
    HardPrompt | SoftPrompt | PrefixPrompt | PromptPool | Weights | Tuned | LowRank | Probe | WordCounts | Neighbours
    | Ensemble
)  # fmt: skip
FORM = {
    HardPrompt: "hard",
    SoftPrompt: "soft",
    PrefixPrompt: "prefix",
    Weights: "weights",
    Tuned: "tuned",
    PromptPool: "pool",
    LowRank: "low-rank",
    Probe: "probe",
    WordCounts: "word-counts",
    Neighbours: "neighbours",
    Ensemble: "ensemble",
}
