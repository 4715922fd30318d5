"""python -m pytest tests/methods/meta/test_metaprompting.py"""

import random
from dataclasses import replace

import pytest
import torch

from foreword.core.artefact import Artefact
from foreword.core.values import Tuned
from foreword.errors import ArtefactError, ConfigError, ModelError
from foreword.inference.scoring import score_rows
from foreword.methods import METHODS
from foreword.methods.meta import double_backward
from foreword.methods.meta.adapted_start import adapt_start, leaves_of, rates_for
from foreword.methods.meta.episode_rows import EpisodeRows
from foreword.methods.meta.inner_loop import adapt, gradient, product
from foreword.methods.meta.meta_gradient import meta_gradient, unrolled, weights_of
from foreword.methods.meta.task_losses import Shape
from foreword.methods.registry import make_job, train
from foreword.models.load import load
from foreword.tasks.episodes import EpisodeSource
from foreword.tasks.task import Task
from foreword.training.options import configure
from tests.live import Live
from tests.methods.meta.problems import folded
from tests.planted import NOUNS, planted_task

TINY = {kind: load(name) for kind, name in (("masked", "foreword-tiny"), ("causal", "foreword-tiny-causal"))}
TASK = planted_task(4, train=40, validation=24, test=16)
SHORT = {
    "length": 3,
    "steps": 3,
    "batch_size": 2,
    "queries": 3,
    "inner_steps": 2,
    "validation_episodes": 2,
    "eval_every": 2,
}


def many_classes(seed: int = 0, classes: int = 9, rows: int = 8, noise: bool = True) -> Task:
    """Nine classes, three in each split; a row has a noun of its class, and with `noise` another."""
    rng = random.Random(seed)
    names = rng.sample(NOUNS, classes)
    records: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for c, name in enumerate(names):
        part = ("train", "validation", "test")[3 * c // classes]
        others = [rng.choice(NOUNS) if noise else "number" for _ in range(rows)]
        records[part] += [{"text": f"{name} {other} {i}", "label": name} for i, other in enumerate(others)]
    return Task(**records, labels=names, name="classes", template={"masked": "{text} : {mask} .", "causal": "{text} :"})


def start_of(lm, task=TASK, **options) -> Artefact:
    return train(lm, task, "metaprompting", **{**SHORT, **options}).artefact


@pytest.mark.parametrize("learnt", [{}, {"learn_rates": True, "learning_rate": 0.3, "keep": "last"}])
@pytest.mark.parametrize("prompt", ["soft", "prefix"])
@pytest.mark.parametrize("kind", TINY)
def test_a_prompt_trained_from_a_start_by_plain_descent_ends_where_the_inner_loop_does(kind, prompt, learnt):
    """The artefact, --init and the one loop of prompt tuning, against the folded adaptation of two episodes."""
    lm = TINY[kind]
    start = start_of(lm, prompt=prompt, **learnt)
    rates = start.recipe["adaptation"].get("rates", {})
    assert bool(rates) == bool(learnt) and all(max(some) > 1.01 * min(some) for some in rates.values())
    source = EpisodeSource((TASK,), ways=2, shots=3, queries=3)
    episodes = source.episodes("test", 1, 2)
    leaves, extra, lens = leaves_of(lm, start)
    form = start.format
    deck = EpisodeRows(lm, source, [form], extra)
    support = deck.folds("test", episodes, ("support",))
    ends = adapt_start(lens, leaves, support, 2, rates_for(start, leaves, 0.2), 3, 200)
    method = {"soft": "prompt-tuning", "prefix": "prefix-tuning"}[prompt]
    for number, episode in enumerate(episodes):
        own = source.as_task("test", episode)
        made = train(
            lm, own, method, init=start, form=own.format(kind, template=form.template.source), optimizer="sgd",
            learning_rate=0.2, steps=3, batch_size=6, clip=0, keep="last", eval_every=3,
        ).artefact  # fmt: skip
        assert made.parent == start.sha256
        end, *_ = leaves_of(lm, made)
        for name, leaf in end.items():
            assert torch.allclose(leaf, ends[name][number], atol=2e-6)
            assert not torch.allclose(leaf, leaves[name], atol=1e-4)


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_without_an_optimiser_of_its_own_a_prompt_adapts_as_its_start_was_learnt_to(method):
    lm = TINY["masked"]
    start = start_of(lm, prompt="soft" if method == "prompt-tuning" else "prefix", inner_rate=0.07)

    def config(**options):
        return make_job(lm, TASK, method, options={"init": start, **options}).config

    def told(**options) -> tuple:
        own = config(**options)
        return own.optimizer, own.learning_rate, own.steps, own.clip, own.eval_every

    plain = configure(METHODS[method], {})
    assert told() == ("sgd", 0.07, 2, 0.0, 2)
    assert told(steps=7) == ("sgd", 0.07, 7, 0.0, 7)
    assert told(eval_every=1, clip=1.0) == ("sgd", 0.07, 2, 1.0, 1)
    assert told(optimizer="adamw") == (plain.optimizer, plain.learning_rate, plain.steps, plain.clip, plain.eval_every)
    assert told(learning_rate=0.5) == (plain.optimizer, 0.5, plain.steps, plain.clip, plain.eval_every)
    made = train(lm, TASK, method, init=start).artefact
    assert made.metrics["steps"] == 2
    # A prompt that was learnt otherwise, or one behind a network, has no inner loop to repeat.
    start = made
    assert told() == (plain.optimizer, plain.learning_rate, plain.steps, plain.clip, plain.eval_every)
    if method == "prompt-tuning":
        own = make_job(lm, TASK, "p-tuning", options={"init": start_of(lm)}).config
        assert own.optimizer == configure(METHODS["p-tuning"], {}).optimizer


def test_a_start_is_recorded_and_what_does_not_fit_is_refused(tmp_path):
    lm = TINY["masked"]
    folder = start_of(lm).save(tmp_path / "start")
    start = Artefact.load(folder)
    options = {"steps": 1, "batch_size": 4}
    made = train(lm, TASK, "prompt-tuning", init=str(folder), **options).artefact
    assert made.config["init"] == f"start:{start.sha256}"
    assert (made.parent, made.value.length) == (start.sha256, 3)
    again = Artefact.load(made.save(tmp_path / "made"))
    assert again.parent == start.sha256
    other = train(lm, TASK, "prompt-tuning", init="vocabulary", length=3, **options).artefact
    assert other.made_of != made.made_of
    through = METHODS["p-tuning"].start(lm, make_job(lm, TASK, "p-tuning", options={"init": start}))
    assert torch.equal(through.build(through.leaves).embed_PD.detach(), start.value.embed_PD)
    form = TASK.format("masked", template="{soft:5} {text} {mask}")
    with pytest.raises(
        ConfigError, match=r"the start given has 3 positions and the template's slots 5; write \{soft:3\}"
    ):
        train(lm, TASK, "prompt-tuning", init=start, form=form)
    with pytest.raises(ConfigError, match="give it to prompt-tuning"):
        train(lm, TASK, "prefix-tuning", init=start)
    with pytest.raises(ConfigError, match="lora takes no start"):
        train(lm, TASK, "lora", init=start)
    with pytest.raises(ArtefactError, match="other weights"):
        train(load("foreword-tiny", dtype=None).with_weights(moved(lm)), TASK, "prompt-tuning", init=start)
    with pytest.raises(ArtefactError, match="not an artefact"):
        train(lm, TASK, "prompt-tuning", init="no/where")
    with pytest.raises(ConfigError, match="by its hash"):
        train(lm, TASK, "prompt-tuning", **made.config)
    with pytest.raises(ConfigError, match="choose one of uniform"):
        train(lm, TASK, "prompt-tuning", init="nowhere")
    prefix = start_of(lm, prompt="prefix")
    with pytest.raises(ConfigError, match="set length=3 and start=after"):
        train(lm, TASK, "prefix-tuning", init=prefix, length=4)


def moved(lm):
    name, weight = next(iter(lm.named_weights().items()))
    return {name: weight + 1}


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile", "multitask", "vocabulary"])
def test_algorithms_are_what_they_say(algorithm):
    """What each leaves in the leaf, against the mean over tasks of what the mathematics gives for the same episodes."""
    lm = load("foreword-tiny", dtype=torch.float64)
    job = make_job(lm, many_classes(), "metaprompting", options={**SHORT, "ways": 3, "algorithm": algorithm}, seed=7)
    learner = METHODS["metaprompting"].start(lm, job)
    own, leaves = learner.own, learner.leaves
    own.gradients(leaves, 4)
    found = leaves["embed"].grad
    episodes = own.deck.source.episodes("train", 7, 2, 8)
    start = {"embed": leaves["embed"].detach()[None].expand(2, -1, -1)}
    rates = {"embed": torch.full((1, 1, 1), job.config.inner_rate)}

    def loss(*parts):
        return own.lens.loss((), own.deck.folds("train", episodes, parts), 2, 10_000)

    if algorithm == "vocabulary":
        assert found is None
        return
    if algorithm == "maml":
        wanted = unrolled(loss("support"), loss("query"), start, rates, weights_of(2, 0.0, False)).start
    elif algorithm == "fomaml":
        wanted = meta_gradient(loss("support"), loss("query"), start, rates, weights_of(2, 0.0, False), None).start
    elif algorithm == "multitask":
        wanted = gradient(loss("support", "query"), start)[1]
    else:
        end = adapt(loss("support", "query"), start, rates, 2).last
        wanted = {"embed": start["embed"] - end["embed"]}
    assert torch.allclose(found, wanted["embed"].mean(0), atol=1e-7)
    assert float(found.abs().max()) > 0


def test_learnt_step_sizes_move_and_are_recorded_and_used():
    lm = TINY["masked"]
    start = start_of(lm, learn_rates=True, multi_step=True, learning_rate=0.3, keep="last")
    rates = start.recipe["adaptation"]["rates"]["embed"]
    assert len(rates) == 3
    assert all(r > 0 for r in rates)
    assert len({round(r, 6) for r in rates}) == 3
    leaves, *_ = leaves_of(lm, start)
    own = start.config["inner_rate"]
    assert torch.allclose(rates_for(start, leaves, own)["embed"].flatten(), torch.tensor(rates))
    assert torch.allclose(rates_for(start, leaves, 2 * own)["embed"].flatten(), 2 * torch.tensor(rates))


def test_the_step_sizes_gradient_is_the_slope_of_the_query_loss():
    lm = load("foreword-tiny", dtype=torch.float64)
    options = {**SHORT, "ways": 3, "learn_rates": True, "inner_rate": 0.5}
    job = make_job(lm, many_classes(), "metaprompting", options=options)
    learner = METHODS["metaprompting"].start(lm, job)
    learner.own.gradients(learner.leaves, 0)
    leaves = {name: leaf.detach().double() for name, leaf in learner.leaves.items()}
    found = learner.leaves["rate.embed"].grad.flatten()
    for place in range(3):
        values = []
        for sign in (1, -1):
            nudged = {n: leaf.clone() for n, leaf in leaves.items()}
            nudged["rate.embed"][place] += sign * 1e-4
            values.append(learner.own.gradients(nudged, 0))
        assert float(found[place]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4, abs=1e-9)


def test_only_the_prompt_learns_and_nothing_of_the_model_is_copied():
    lm = TINY["masked"]
    job = make_job(lm, TASK, "metaprompting", options=SHORT)
    learner = METHODS["metaprompting"].start(lm, job)
    before = [w.data_ptr() for w in lm.named_weights().values()]
    assert {n: t.numel() for n, t in learner.leaves.items()} == {"embed": 3 * lm.dims.width}
    largest = max(w.numel() for w in lm.named_weights().values())
    copies = []

    class Copies(Live):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket.__name__ in ("clone", "copy_", "_to_copy"):
                copies.extend(t for t in args if isinstance(t, torch.Tensor) and t.data_ptr() in before)
            return super().__torch_dispatch__(func, types, args, kwargs)

    with Copies():
        learner.own.gradients(learner.leaves, 0)
    assert not copies
    assert largest > 3 * lm.dims.width
    assert [w.data_ptr() for w in lm.named_weights().values()] == before
    assert all(w.grad is None for w in lm.named_weights().values())


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_memory_does_not_grow_with_inner_steps_and_the_meter_shows_where_it_does(kind):
    _, folds, loss, start = folded(kind, 2, 3, dtype=torch.float32, budget=10_000)
    support, query = loss(folds(0)), loss(folds(6))
    rates = {"embed": torch.full((1, 1, 1), 0.01)}

    def peak(how, steps: int) -> int:
        with Live() as live:
            how(support, query, start, rates, weights_of(steps, 1.0, False))
        return live.peak

    few, many = (peak(meta_gradient, steps) for steps in (1, 20))
    assert many <= 1.15 * few
    grown = [peak(unrolled, steps) for steps in (1, 5)]
    assert grown[1] > 1.8 * grown[0]


LONG = " ".join(NOUNS[:14])


@pytest.mark.parametrize("kind", TINY)
def test_attention_that_cannot_be_differentiated_twice_is_found_before_the_first_step(kind, capsys):
    """Rows of more columns than the fused kernel is used from; one line says so, and first order never switches."""
    lm = TINY[kind]
    rows = [{"text": f"{LONG} {i}", "label": ("yes", "no")[i % 2]} for i in range(8)]
    task = Task(train=rows, test=[{"text": "other", "label": "yes"}])
    job = make_job(lm, task, "metaprompting", options=SHORT)
    learner = METHODS["metaprompting"].start(lm, job)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "cannot be differentiated twice" in said[0]
    learner.own.gradients(learner.leaves, 0)
    assert learner.leaves["embed"].grad is not None
    for more in ({"algorithm": "fomaml"}, {"second_order": "finite"}):
        other = METHODS["metaprompting"].start(lm, make_job(lm, task, "metaprompting", options={**SHORT, **more}))
        other.own.gradients(other.leaves, 0)
        assert capsys.readouterr().err == ""
    METHODS["metaprompting"].start(lm, make_job(lm, TASK, "metaprompting", options=SHORT))
    assert capsys.readouterr().err == "", "short rows are attended plainly already"


def test_half_precision_is_told_where_it_would_spoil_second_derivatives(capsys):
    """In bfloat16 the second-order term may even turn around; first order and single precision say nothing."""
    lm = load("foreword-tiny", dtype="bfloat16")
    METHODS["metaprompting"].start(lm, make_job(lm, TASK, "metaprompting", options=SHORT))
    [said] = capsys.readouterr().err.splitlines()
    assert "bfloat16" in said and "--dtype float32" in said
    METHODS["metaprompting"].start(lm, make_job(lm, TASK, "metaprompting", options={**SHORT, "algorithm": "fomaml"}))
    assert capsys.readouterr().err == ""


def test_a_model_that_cannot_be_differentiated_twice_at_all_is_refused(monkeypatch):
    lm = TINY["masked"]
    deck = EpisodeRows(lm, EpisodeSource((TASK,)), [TASK.format("masked", template="{soft:3} {text} {mask}")])

    def no(*_):
        raise RuntimeError("derivative for aten::some_attention_backward is not implemented")

    monkeypatch.setattr(double_backward, "product", no)
    with pytest.raises(ModelError, match="algorithm=fomaml"):
        double_backward.twice_differentiable(lm, Shape("soft"), {"embed": torch.zeros(3, 32)}, deck.longest("train"))
    fused = lm.with_kernel("sdpa")
    loss = double_backward.PromptLoss(
        fused, fused, Shape("soft"), [double_backward.EpisodeRow(0, deck.longest("train"), 0, 1.0)], 1, 99
    )
    with pytest.raises(RuntimeError, match="derivative"):
        product(loss, {"embed": torch.zeros(1, 3, 32)}, {"embed": torch.ones(1, 3, 32)})


def test_a_tuned_model_is_marked_kept_whole_and_leaves_the_model_as_it_was(tmp_path):
    lm = TINY["masked"]
    before = {n: w.clone() for n, w in lm.named_weights().items()}
    start = start_of(lm, tune_model=True, learning_rate=1e-3, model_rate=1e-3)
    assert all(torch.equal(w, before[n]) for n, w in lm.named_weights().items())
    assert isinstance(start.value, Tuned)
    assert (start.form, start.recipe["frozen"]) == ("tuned", False)
    assert start_of(lm).recipe["frozen"] is True
    assert any(not torch.equal(t, before[n]) for n, t in start.value.weights.by_name.items())
    again = Artefact.load(start.save(tmp_path / "x"))
    one, other = (score_rows(lm, [(a, TASK.test)])[0] for a in (start, again))
    assert torch.equal(one, other)
    plain = replace(start, value=start.value.prompt)
    assert not torch.allclose(one, score_rows(lm, [(plain, TASK.test)])[0])
    with pytest.raises(ConfigError, match="the artefact given is tuned"):
        train(lm, TASK, "prompt-tuning", init=start)


def test_a_start_may_be_a_text():
    lm = TINY["masked"]
    start = start_of(lm, algorithm="vocabulary", init="text", init_text="nice film", length=5)
    ids = lm.tokenizer.encode("nice film", add_special_tokens=False)[:5]
    assert torch.equal(start.value.embed_PD, lm.embed(torch.tensor([ids]))[0])
    start_of(lm, prompt="prefix", init="text", init_text="nice film")
    with pytest.raises(ConfigError, match="init_text"):
        start_of(lm, init="text")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"init": "random"}, "not for a soft prompt; choose vocabulary"),
        ({"prompt": "prefix", "init": "uniform"}, "not for a prefix prompt; choose vocabulary, labels"),
        ({"ways": 1}, "at least 2"),
        ({"inner_rate": 0}, "above 0"),
        ({"tune_model": True, "second_order": "unrolled"}, "chain or finite"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(ConfigError, match=said):
        make_job(TINY["masked"], TASK, "metaprompting", options=options)
