"""Learn low-rank updates of the attention weights through PEFT, as a baseline (LoRA, Hu et al. 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from foreword.core.doc import Doc, documented
from foreword.core.shapes import Tensor
from foreword.core.values import LowRank, Weights
from foreword.errors import ConfigError
from foreword.models.base import FrozenLM
from foreword.training.contract import GradientConfig, GradientMethod, Job, Learner
from foreword.training.options import Amount, Count, Positive, Whole


@documented
@dataclass(frozen=True)
class LoraConfig(GradientConfig):
    """Hold the options of LoRA."""

    rank: Annotated[Count, Doc("Rank of each update.")] = 8
    alpha: Annotated[Positive, Doc("Scale of the updates, which are multiplied by alpha / rank.")] = 16.0
    targets: Annotated[
        str,
        Doc("Modules that get an update, with commas (empty: PEFT's own choice, or all linear layers)."),
    ] = ""
    learning_rate: Positive = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: Whole = 20
    clip: Amount = 1.0


class Lora(GradientMethod):
    name = "lora"
    summary = "low-rank updates of the attention weights, through PEFT (pip install 'foreword[peft]')"
    source = "Hu et al. 2021"
    Config = LoraConfig
    form = "low-rank"
    kinds = ("masked", "causal", "seq2seq")
    mixed_batch = False
    freezes_lm = True
    answers = ("labels", "options", "text")

    def start(self, lm: FrozenLM, job: Job) -> Learner:
        config: LoraConfig = job.config
        lm.require_weights()
        injected = inject(lm, config, job.seed)
        _require_foldable(lm, injected, config)
        names = [name for name in injected.named_weights() if ".lora_A." in name or ".lora_B." in name]
        leaves = {n: injected.named_weights()[n].detach().float().clone().requires_grad_() for n in names}
        dtype = lm.dtype
        plain = lm.named_weights()

        def build(leaves: Mapping[str, Tensor]) -> Weights:
            return Weights({name: leaf.to(dtype) for name, leaf in leaves.items()})

        def fold(leaves: Mapping[str, Tensor]) -> LowRank:
            return folded(leaves, {name: tuple(w.shape) for name, w in plain.items()}, config.alpha / config.rank)

        return Learner(leaves, build, job.format, config, fold=fold, lm=injected)


def inject(lm: FrozenLM, config: LoraConfig, seed: int) -> FrozenLM:
    """Return a copy of the model with PEFT's low-rank layers in it; the model itself does not change.

    Raises: ConfigError if PEFT is missing or knows no such modules.
    """
    try:
        import peft
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN
    except ImportError as error:
        raise ConfigError("lora needs PEFT; install it with: pip install 'foreword[peft]'.") from error
    if any(".base_layer." in name or ".lora_" in name for name in lm.named_weights()):
        raise ConfigError(
            f"lora: {lm.name!r} has adapters of PEFT in it already; merge them into its weights first "
            "(merge_and_unload), or train a prompt over them."
        )
    targets: Any = [t.strip() for t in config.targets.split(",") if t.strip()]
    if not targets:
        targets = KNOWN.get(lm.family, "all-linear")
    recipe = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=targets,
        lora_dropout=0.0,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return lm.adapted(lambda model: peft.inject_adapter_in_model(recipe, model))
    except ValueError as error:
        raise ConfigError(f"lora: targets={config.targets!r} names no module of {lm.name!r} ({error}).") from error


def _require_foldable(lm: FrozenLM, injected: FrozenLM, config: LoraConfig) -> None:
    """Raise a ConfigError if an update is not of one matrix of the model's own, since it could not be folded."""
    plain = lm.named_weights()
    for name in injected.named_weights():
        module = name.partition(".lora_")[0]
        if module == name or ((".lora_A." in name or ".lora_B." in name) and f"{module}.weight" in plain):
            continue
        why = "is an embedding" if ".lora_embedding_" in name else "shares its matrix with another (tied)"
        raise ConfigError(
            f"lora: targets={config.targets!r} names {module}, which {why} in {lm.name!r}; name linear layers of the "
            "model's own, or leave targets out."
        )


def folded(leaves: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], scale: float) -> LowRank:
    """Return PEFT's leaves as factors of the plain model's weights, under the plain model's names."""
    factors, transposed = {}, []
    for name, down in leaves.items():
        if ".lora_A." not in name:
            continue
        plain = name.split(".lora_A.")[0] + ".weight"
        up = leaves[name.replace(".lora_A.", ".lora_B.")]
        factors[plain] = (down, up)
        if shapes[plain] != (up.shape[0], down.shape[1]):
            transposed.append(plain)
    return LowRank(factors, scale, tuple(transposed))
