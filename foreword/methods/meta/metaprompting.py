"""Learn over many small tasks where a prompt's training should start (MetaPrompting, Hou et al. 2022)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import torch

from foreword.core.doc import Doc, documented
from foreword.core.format import Format
from foreword.core.shapes import Tensor
from foreword.core.values import Learnt, PromptPool, Tuned, Weights
from foreword.errors import ConfigError
from foreword.methods.meta.double_backward import tell_if_coarse, twice_differentiable
from foreword.methods.meta.episode_rows import EpisodeRows
from foreword.methods.meta.meta_step import RATE, MetaPlan, MetaStep, PromptLens, points_of, rates_of
from foreword.methods.meta.pool_lens import PoolLens
from foreword.methods.meta.task_losses import MODEL, Shape
from foreword.methods.soft.prefix_tuning import PrefixTuningConfig, initial_prefix
from foreword.methods.soft.prompt_tuning import SlotConfig, initial_prompt
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoder
from foreword.tasks.episodes import EpisodeSource
from foreword.training.contract import GradientConfig, GradientMethod, Job, Learner
from foreword.training.options import Count, Fraction, Positive, Several, Whole
from foreword.training.warm_start import rate_shape

SOFT_INITS = ("vocabulary", "uniform", "labels", "text")
PREFIX_INITS = ("vocabulary", "labels", "text", "random")


@documented
@dataclass(frozen=True)
class MetaPromptingConfig(GradientConfig):
    """Hold the options of MetaPrompting. `steps` counts meta-steps, and `batch_size` the episodes of one.

    At an inner rate of 0.1, the exact meta-gradient of the embedded model is up to a thousand times the first-order one
    and points anywhere (LOG.md). With `tune_model` the result is not that of a frozen model.
    """

    algorithm: Annotated[
        Literal["maml", "fomaml", "reptile", "multitask", "vocabulary"],
        Doc("How it learns: maml (exact), fomaml, reptile, or the controls multitask and vocabulary (untrained)."),
    ] = "maml"
    prompt: Annotated[Literal["soft", "prefix"], Doc("What is learnt: a soft prompt, or a prefix.")] = "soft"
    length: Annotated[Count, Doc("Positions of the prompt.")] = 8
    init: Annotated[
        Literal["vocabulary", "uniform", "labels", "text", "random"],
        Doc("Initialisation of meta-training; uniform is for soft prompts, and random for prefixes."),
    ] = "vocabulary"
    init_text: Annotated[str, Doc("Text of init=text, which is cut or repeated to the length.")] = ""
    ways: Annotated[Several, Doc("Most classes of an episode.")] = 5
    shots: Annotated[Count, Doc("Support rows of each class.")] = 1
    queries: Annotated[Count, Doc("Query rows of each class.")] = 15
    inner_steps: Annotated[Count, Doc("Gradient descent steps of the inner loop.")] = 5
    inner_rate: Annotated[Positive, Doc("Learning rate of the inner loop.")] = 0.03
    second_order: Annotated[
        Literal["chain", "unrolled", "finite"],
        Doc("How second derivatives are taken: chained products, the unrolled graph, or finite differences."),
    ] = "chain"
    multi_step: Annotated[
        bool,
        Doc("Weigh the query loss after every inner step, annealed to the last one over half of training (MAML++)."),
    ] = False
    learn_rates: Annotated[bool, Doc("Learn a step size for each position too (Meta-SGD).")] = False
    pool: Annotated[Whole, Doc("Prompts with keys of which each row mixes its own (MetaPrompter; 0: one prompt).")] = 0
    prototypes: Annotated[
        Fraction, Doc("With a pool, share of the probability that comes from the mean features of the support rows.")
    ] = 0.5
    sharpness: Annotated[Positive, Doc("With a pool, factor of the cosines to those features.")] = 10.0
    transductive: Annotated[
        bool, Doc("With a pool, let query rows see each other, as the published code does; results say so.")
    ] = False
    tune_model: Annotated[bool, Doc("Adapt the model's weights as well, as in the paper.")] = False
    model_rate: Annotated[Positive, Doc("Learning rate of the model's weights in the inner loop.")] = 5e-5
    validation_episodes: Annotated[Whole, Doc("Validation episodes that each evaluation adapts to.")] = 20
    learning_rate: Annotated[Positive, Doc("Learning rate of the meta-steps.")] = 3e-3
    steps: Annotated[Count, Doc("Number of meta-steps.")] = 100
    batch_size: Annotated[Count, Doc("Episodes in one meta-step.")] = 4
    eval_every: Annotated[Count, Doc("Meta-steps between two evaluations on the validation episodes.")] = 20

    def __post_init__(self) -> None:
        allowed = ("vocabulary", "labels", "text", "uniform" if self.prompt == "soft" else "random")
        if self.init not in allowed:
            raise ConfigError(
                f"metaprompting: init={self.init} is not for a {self.prompt} prompt; choose {', '.join(allowed)}."
            )
        if self.pool and (self.prompt != "soft" or self.tune_model or self.learn_rates):
            raise ConfigError(
                "metaprompting: a pool is of soft prompts over a frozen model, with one inner rate; leave out "
                "prompt=prefix, tune_model and learn_rates."
            )
        if self.algorithm == "vocabulary":
            object.__setattr__(self, "steps", 1)  # nothing is trained
        if self.tune_model and self.second_order == "unrolled":
            raise ConfigError("metaprompting: tune_model needs second_order=chain or finite; a graph of all inner "
                              "steps through all weights has no room.")  # fmt: skip


class MetaPrompting(GradientMethod):
    name = "metaprompting"
    summary = "a start for soft prompts or prefixes, learnt over many small tasks"
    source = "Hou et al. 2022; MAML: Finn et al. 2017"
    Config = MetaPromptingConfig
    form = "soft"
    mixed_batch = False
    freezes_lm = True
    episodes = True

    def start(self, lm: FrozenLM, job: Job) -> Learner:
        config: MetaPromptingConfig = job.config
        source = EpisodeSource(job.family or (job.task,), config.ways, config.shots, config.queries)
        formats = [slotted(form, config) for form in formats_of(lm, job)]
        initial, shape = initial_leaf(lm, job, formats[0])
        name = "embed" if shape.form == "soft" else "pair"
        leaves = {name: initial}
        deck = EpisodeRows(lm, source, formats, extra=shape.start)
        check_lengths(deck, config)
        if config.learn_rates:
            leaves[RATE + name] = torch.zeros(rate_shape(initial), device=initial.device)
        if config.tune_model:
            lm.require_weights()
            leaves |= {MODEL + n: w.detach().float().clone() for n, w in lm.named_weights().items()}
        first = leaves[name]
        if config.pool:
            leaves = pool_leaves(lm, job, formats[0])
        lm.require_gradient()
        read = lm.checkpointing(True) if config.checkpointing else lm
        plan = plan_of(config)
        twice = read
        if plan.algorithm == "maml":
            tell_if_coarse(lm)
        if plan.twice:
            twice = twice_differentiable(read, shape, {name: first}, deck.longest("train"))
        for leaf in leaves.values():
            leaf.requires_grad_()
        budget = config.tokens_per_batch or lm.batch_tokens

        def record(leaves: Mapping[str, Tensor]) -> dict[str, Any]:
            return meta_recipe(config, source, formats, leaves)

        lens = PromptLens(read, twice, shape)
        if config.pool:
            lens = PoolLens(read, twice, config.prototypes, config.sharpness, config.transductive)
        meta_step = MetaStep(lens, deck, plan, job.seed, budget, record, alone=config.tune_model)

        stored = {n: w.dtype for n, w in lm.named_weights().items()} if config.tune_model else {}

        def build(leaves: Mapping[str, Tensor]) -> Learnt:
            if config.pool:
                return PromptPool(leaves["keys"], leaves["values"])
            prompt = shape.prompt(leaves)
            weights = {n: leaves[MODEL + n].to(dtype) for n, dtype in stored.items()}
            return Tuned(prompt, Weights(weights)) if weights else prompt

        form = formats[0] if not (source.by_classes or job.family) else replace(formats[0], labels=(), words=())
        return Learner(leaves, build, form, config, own=meta_step)


def plan_of(config: MetaPromptingConfig) -> MetaPlan:
    """Return the part of the config that a meta-step needs."""
    same = {f.name: getattr(config, f.name) for f in fields(MetaPlan) if f.name != "tasks"}
    return MetaPlan(tasks=config.batch_size, **same)


def formats_of(lm: FrozenLM, job: Job) -> list[Format]:
    """Return the format of each task; the job's own if there is one task."""
    if not job.family:
        return [job.format]
    keep = {"truncate": job.format.truncate, "max_length": job.format.max_length}
    keep["chat_options"] = job.format.chat_options
    return [task.format(lm.kind, chat=lm.instructed, lm=lm, **keep) for task in job.family]


def slotted(form: Format, config: MetaPromptingConfig) -> Format:
    """Return the format with slots for a soft prompt (in front, if it has none), or without any for a prefix."""
    if config.prompt == "soft":
        return form if form.template.slots else replace(form, template=form.template.with_soft(config.length))
    if form.template.slots:
        raise ConfigError("metaprompting: a prefix needs no {soft:...} slots in the template; remove them.")
    return form


def check_lengths(deck: EpisodeRows, config: MetaPromptingConfig) -> None:
    """Raise a ConfigError if the templates of the tasks have slots for prompts of different lengths."""
    lengths = {encoder.prompt_length for encoder in deck._encoders}
    if config.prompt == "soft" and len(lengths) > 1:
        raise ConfigError(
            f"metaprompting: the tasks' templates have slots of {', '.join(map(str, sorted(lengths)))} positions; one "
            "start needs one length."
        )


def initial_leaf(lm: FrozenLM, job: Job, form: Format) -> tuple[Tensor, Shape]:
    """Return the leaf from which meta-training starts, drawn from the job's seed, and what it stands for."""
    config: MetaPromptingConfig = job.config
    generator = torch.Generator().manual_seed(job.seed)
    if config.prompt == "soft":
        prompt_config: Any = SlotConfig(length=config.length, init=config.init, init_text=config.init_text)  # pyright: ignore
        _, embed_PD = initial_prompt(lm, replace(job, config=prompt_config, format=form), generator)
        return embed_PD, Shape("soft")
    lm.require_prefix()
    # Activations of sampled words, where those are asked for: of a format without labels.
    init: Any = "labels" if config.init == "vocabulary" else config.init
    prompt_config = PrefixTuningConfig(length=config.length, init=init, init_text=config.init_text)
    form = replace(form, labels=(), words=()) if config.init == "vocabulary" else form
    pair = initial_prefix(lm, Encoder.build(lm, form, config.length), prompt_config, generator)
    return pair, Shape("prefix", config.length)


def pool_leaves(lm: FrozenLM, job: Job, form: Format) -> dict[str, Tensor]:
    """Draw keys from a normal distribution, and for each a prompt as `init` says."""
    config: MetaPromptingConfig = job.config
    values = [initial_leaf(lm, replace(job, seed=1_000_003 * (n + 1) + job.seed), form)[0] for n in range(config.pool)]
    generator = torch.Generator().manual_seed(job.seed)
    keys = torch.randn(config.pool, lm.dims.width, generator=generator)
    return {"keys": keys.to(lm.device), "values": torch.stack(values)}


def meta_recipe(
    config: MetaPromptingConfig, source: EpisodeSource, formats: Sequence[Format], leaves: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the recipe of meta-training: what was adapted and how, the tasks, and learnt step sizes."""
    rates = rates_of(plan_of(config), points_of(leaves) | {k: v for k, v in leaves.items() if k.startswith(RATE)})
    learnt = {name: rates[name].flatten().tolist() for name in rates if RATE + name in leaves}
    tasks = [
        {"task": task.name, "hashes": task.hashes(), "format": form.to_json()}
        for task, form in zip(source.tasks, formats, strict=True)
    ]
    sizes = {"ways": source.ways, "shots": source.shots, "queries": source.queries}
    adaptation = {"optimizer": "sgd", "steps": config.inner_steps, "learning_rate": config.inner_rate}
    return {
        "frozen": not config.tune_model,
        "adaptation": {**adaptation, **({"rates": learnt} if learnt else {})},
        "episodes": {**sizes, "by_classes": source.by_classes},
        **({"transductive": config.transductive} if config.pool else {}),
        "tasks": tasks,
    }
