"""python -m pytest tests/methods/soft/test_p_tuning.py

The network of p-tuning: what it computes, where it starts, and that nothing of it is left once it is folded.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from foreword.core.artefact import TENSORS
from foreword.errors import ConfigError
from foreword.inference.scoring import encode_rows, score_rows
from foreword.methods import METHODS
from foreword.methods.registry import make_job, train
from foreword.methods.soft.p_tuning import lstm, lstm_leaves, mlp, mlp_leaves
from foreword.models.load import load
from foreword.tasks.label_metrics import accuracy
from foreword.training.checkpoint import Checkpoint
from foreword.training.contract import Step
from foreword.training.joint_step import TrainingExample, step_gradients
from foreword.training.loop import ExampleRows, Run
from foreword.training.trainer import Trained, TrainingInterrupted, train_many
from tests.planted import most_of, planted_task

ENCODERS = {"mlp": (mlp, mlp_leaves), "lstm": (lstm, lstm_leaves)}
TASK = planted_task(3, train=24, validation=8, test=12)
SHORT = {"length": 3, "hidden": 8, "steps": 5, "batch_size": 6, "eval_every": 2, "learning_rate": 1e-2}
LENGTH, WIDTH, HIDDEN = 5, 6, 4


def drawn(encoder: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A table and leaves in fp64, none of them zero."""
    generator = torch.Generator().manual_seed(2)
    leaves = ENCODERS[encoder][1](WIDTH, HIDDEN, generator)
    moved = {n: (t + 0.3 * torch.randn(t.shape, generator=generator)).double() for n, t in leaves.items()}
    return torch.randn(LENGTH, WIDTH, generator=generator).double(), moved


def reference(encoder: str, leaves: dict[str, torch.Tensor]) -> nn.Sequential:
    """The same network of torch's own modules: nn.LSTM(num_layers=2, bidirectional=True) and nn.Linear."""
    sizes = [WIDTH, HIDDEN, HIDDEN, WIDTH] if encoder == "mlp" else [2 * HIDDEN, 2 * HIDDEN, WIDTH]
    linears = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    with torch.no_grad():
        for number, layer in enumerate(linears):
            layer.weight = nn.Parameter(leaves[f"mlp.{number}.weight"].clone())
            layer.bias = nn.Parameter(leaves[f"mlp.{number}.bias"].clone())
    head = nn.Sequential(*[m for layer in linears for m in (layer, nn.ReLU())][:-1]).double()
    if encoder == "mlp":
        return head
    recurrent = nn.LSTM(WIDTH, HIDDEN, num_layers=2, bidirectional=True).double()
    with torch.no_grad():
        for layer in range(2):
            for direction, mark in enumerate(("", "_reverse")):
                getattr(recurrent, f"weight_ih_l{layer}{mark}").copy_(leaves[f"lstm.{layer}.input"][direction])
                getattr(recurrent, f"weight_hh_l{layer}{mark}").copy_(leaves[f"lstm.{layer}.hidden"][direction])
                getattr(recurrent, f"bias_ih_l{layer}{mark}").copy_(leaves[f"lstm.{layer}.bias"][direction])
                getattr(recurrent, f"bias_hh_l{layer}{mark}").zero_()
    return nn.ModuleDict({"lstm": recurrent, "head": head})


def run(network: nn.Module, table: torch.Tensor) -> torch.Tensor:
    return network["head"](network["lstm"](table)[0]) if isinstance(network, nn.ModuleDict) else network(table)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_network_is_that_of_torchs_modules(encoder):
    """Output and the gradient of the table, fp64."""
    table, leaves = drawn(encoder)
    found, wanted = table.clone().requires_grad_(), table.clone().requires_grad_()
    mine, theirs = ENCODERS[encoder][0](found, leaves), run(reference(encoder, leaves), wanted)
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)
    weight = torch.randn(mine.shape, dtype=torch.float64)
    (mine * weight).sum().backward()
    (theirs * weight).sum().backward()
    assert torch.allclose(found.grad, wanted.grad, rtol=0, atol=1e-12)
    leaves["mlp.0.weight"][0, 0] += 1.0
    assert not torch.allclose(ENCODERS[encoder][0](table, leaves), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_gradients_are_finite_differences_twice(encoder):
    """Of every leaf, first and second order."""
    table, leaves = drawn(encoder)
    names = list(leaves)

    def network(table, *tensors):
        return ENCODERS[encoder][0](table, dict(zip(names, tensors, strict=True)))

    tensors = [t.clone().requires_grad_() for t in (table, *leaves.values())]
    assert torch.autograd.gradcheck(network, tensors)
    assert torch.autograd.gradgradcheck(network, tensors, fast_mode=True)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_it_starts_where_prompt_tuning_starts_and_folds_away(encoder, tmp_path):
    lm = load("foreword-tiny")
    job = make_job(lm, TASK, "p-tuning", options={"length": 4, "encoder": encoder, "hidden": 8}, seed=6)
    learner = METHODS["p-tuning"].start(lm, job)
    plain = METHODS["prompt-tuning"].start(lm, make_job(lm, TASK, "prompt-tuning", options={"length": 4}, seed=6))
    assert torch.equal(learner.build(learner.leaves).embed_PD, plain.leaves["embed"])
    assert learner.format == plain.format
    artefact = train(lm, TASK, "p-tuning", encoder=encoder, **SHORT).artefact
    assert artefact.form == "soft"
    assert artefact.bytes_stored == 4 * 3 * lm.dims.width
    assert artefact.numbers_trained > 3 * lm.dims.width
    again = type(artefact).load(artefact.save(tmp_path / "x"))
    assert torch.equal(score_rows(lm, [(artefact, TASK.test)])[0], score_rows(lm, [(again, TASK.test)])[0])


def test_slots_written_as_words_start_from_those():
    lm = load("foreword-mini")
    form = TASK.format("masked", template="{text} {soft:'is this good'} {mask}")
    for options in ({}, {"init": "uniform"}):
        learner = METHODS["p-tuning"].start(lm, make_job(lm, TASK, "p-tuning", options=options, form=form))
        ids = lm.tokenizer("is this good", add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert torch.equal(learner.build(learner.leaves).embed_PD.detach(), lm.embed(ids)[0].float())


def test_every_leaf_learns_once_the_last_layer_has_moved():
    lm = load("foreword-tiny-causal", dtype=torch.float64)
    for encoder in ENCODERS:
        job = make_job(lm, TASK, "p-tuning", options={"encoder": encoder, "length": 3, "hidden": 8})
        learner = METHODS["p-tuning"].start(lm, job)
        with torch.no_grad():
            last = "mlp.2" if encoder == "mlp" else "mlp.1"
            learner.leaves[f"{last}.weight"].normal_()
        encoded = encode_rows(lm, learner.format, TASK.train[:4])
        step_gradients(lm, [learner], [TrainingExample(0, row, 0, 0.25) for row in encoded], 10_000)
        silent = [n for n, leaf in learner.leaves.items() if leaf.grad is None or not leaf.grad.abs().max()]
        assert not silent, (encoder, silent)


@pytest.mark.parametrize("kind", ["foreword-tiny", "foreword-tiny-causal"])
def test_an_lstm_alone_equals_in_a_mixed_batch_and_after_a_stop(kind, tmp_path):
    """The contract's rules for the encoder that is not the default; other lengths and networks share the stack."""
    lm = load(kind, dtype=torch.float64)
    options = {**SHORT, "encoder": "lstm"}
    others = [{**options, "length": 5, "hidden": 4}, {**SHORT, "encoder": "mlp"}]
    jobs = [make_job(lm, TASK, "p-tuning", options=o, seed=n) for n, o in enumerate([options, *others])]
    for job, mixed in zip(jobs, train_many(lm, jobs), strict=True):
        [alone] = train_many(lm, [job])
        assert isinstance(mixed, Trained) and isinstance(alone, Trained)
        one, other = (score_rows(lm, [(t.artefact, TASK.test)])[0] for t in (mixed, alone))
        assert torch.allclose(one, other, rtol=0, atol=2e-5)
    whole = train(lm, TASK, "p-tuning", **options).artefact.save(tmp_path / "whole") / TENSORS

    def stop(step: Step) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    file = tmp_path / "checkpoint"
    with pytest.raises(TrainingInterrupted):
        train(lm, TASK, "p-tuning", progress=stop, checkpoint=file, **options)
    resumed = train(lm, TASK, "p-tuning", checkpoint=file, resume=True, **options).artefact.save(tmp_path / "resumed")
    assert (resumed / TENSORS).read_bytes() == whole.read_bytes()
    again = train(lm, TASK, "p-tuning", **options).artefact.save(tmp_path / "again") / TENSORS
    assert again.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_best_leaves_of_a_checkpoint_fold_to_the_same_bytes(encoder, tmp_path):
    """Tensors of a file lie anywhere in memory, where a product may round otherwise; many draws, so that one would."""
    lm = load("foreword-tiny")
    rows = ExampleRows([], [])
    for seed in range(12):
        job = make_job(lm, TASK, "p-tuning", options={**SHORT, "encoder": encoder, "hidden": 32}, seed=seed)
        first, second = (Run("x", METHODS["p-tuning"].start(lm, job), rows, rows, 0) for _ in range(2))
        generator = torch.Generator().manual_seed(seed)
        first.best_leaves = {
            n: torch.randn(t.shape, generator=generator) for n, t in sorted(first.learner.leaves.items())
        }
        saver = Checkpoint(tmp_path / "checkpoint", "k" * seed)
        saver.write([first])
        saver.restore([second])
        wanted, found = (r.learner.saved(r.final_leaves()).embed_PD for r in (first, second))
        assert torch.equal(wanted, found), seed


def test_rules_drawn_now_are_learnt_by_the_lstm():
    """On held-out rows, as the contract asks of the default encoder."""
    lm = load("foreword-mini")
    options = {"encoder": "lstm", "hidden": 64, "steps": 30, "learning_rate": 2e-3, "length": 5, "eval_every": 15}

    def reached(seed: int) -> float:
        task = planted_task(seed)
        artefact = train(lm, task, "p-tuning", seed=seed, **options).artefact
        found = score_rows(lm, [(artefact, task.test)])[0].double().numpy()
        return accuracy(found, np.array([row.label for row in task.test]))

    seen = most_of(reached, 0.8)
    assert sum(value >= 0.8 for _, value in seen) == 2, seen


def test_names_of_peft_are_told_ours():
    lm = load("foreword-tiny")
    with pytest.raises(ConfigError, match="Did you mean encoder"):
        make_job(lm, TASK, "p-tuning", options={"encoder_reparameterization_type": "LSTM"})
    with pytest.raises(ConfigError, match="mlp, lstm"):
        make_job(lm, TASK, "p-tuning", options={"encoder": "gru"})
    with pytest.raises(ConfigError, match="at least 1"):
        make_job(lm, TASK, "p-tuning", options={"hidden": 0})
