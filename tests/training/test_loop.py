"""python -m pytest tests/training/test_loop.py"""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from foreword.core.prompts import SoftPrompt
from foreword.errors import ArtefactError, ModelError
from foreword.inference.batched import batches_of, stacked_scores
from foreword.inference.scoring import encode_rows
from foreword.methods.registry import make_job, train
from foreword.models.load import load
from foreword.training import joint_step
from foreword.training.contract import Learner
from foreword.training.joint_step import TrainingExample, step_gradients
from foreword.training.loop import ExampleRows, Run, batch_rows, fit
from foreword.training.trainer import Trained, train_many
from tests.planted import planted_task

LM = load("foreword-tiny", dtype=torch.float64)
TASK = planted_task(11, train=24, validation=8, test=8)


def learner_of(**options) -> Learner:
    from foreword.methods import METHODS

    job = make_job(
        LM, TASK, "prompt-tuning", options={"length": 3, "optimizer": "adamw", "learning_rate": 0.01, **options}
    )
    return METHODS["prompt-tuning"].start(LM, job)


def rows_of(learner: Learner, part) -> ExampleRows:
    return ExampleRows(encode_rows(LM, learner.format, part), [row.label for row in part])


def test_every_epoch_shows_every_row_once_and_steps_do_not_depend_on_where_training_stopped():
    learner = learner_of(batch_size=7)
    run = Run("x", learner, rows_of(learner, TASK.train), rows_of(learner, TASK.validation), seed=3)
    seen = [i for step in range(24) for i in batch_rows(run, step)]
    assert len(seen) == 7 * 24
    for epoch in range(7):
        assert sorted(seen[24 * epoch : 24 * (epoch + 1)]) == list(range(24))
    assert seen[:24] != seen[24:48]
    assert batch_rows(run, 9) == seen[63:70]
    other = Run("y", learner, run.train, run.dev, seed=4)
    assert batch_rows(other, 0) != batch_rows(run, 0)


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_accumulation_leaves_the_gradient_of_the_mean(budget):
    """Against central differences of the mean loss over all rows, computed row by row."""
    learner = learner_of()
    rows = rows_of(learner, TASK.train[:9])
    examples = [TrainingExample(0, e, y, 1 / 9) for e, y in zip(rows.encoded, rows.label_N, strict=True)]
    if budget == 1:
        with_one_row_each = batches_of(rows.encoded, budget)
        assert all(len(batch) == 1 for batch in with_one_row_each)
    losses, _ = step_gradients(LM, [learner], examples, budget)
    leaf = learner.leaves["embed"]

    def mean_loss(embed: torch.Tensor) -> float:
        total = 0.0
        for row, label in zip(rows.encoded, rows.label_N, strict=True):
            score = stacked_scores(LM, [SoftPrompt(embed)], [[row]], 10_000)[0][0]
            total -= float(score.log_softmax(-1)[label])
        return total / 9

    assert losses[0] == pytest.approx(mean_loss(leaf.detach()), rel=1e-5)
    for place in [(0, 0), (1, 5), (2, 3)]:
        nudge = torch.zeros_like(leaf, dtype=torch.float64)
        nudge[place] = 1e-5
        slope = (mean_loss(leaf.detach() + nudge) - mean_loss(leaf.detach() - nudge)) / 2e-5
        assert float(leaf.grad[place]) == pytest.approx(slope, rel=1e-3, abs=1e-7)
    assert all(weight.grad is None for weight in LM.named_weights().values())


def test_what_a_learner_builds_runs_once_a_step_however_many_batches():
    calls = Counter()
    plain = learner_of()

    def build(leaves):
        calls["build"] += 1
        return plain.build(leaves)

    learner = replace(plain, build=build)
    rows = rows_of(learner, TASK.train)
    examples = [TrainingExample(0, e, y, 1 / 24) for e, y in zip(rows.encoded, rows.label_N, strict=True)]
    step_gradients(LM, [learner], examples, 1)
    assert calls["build"] == 1
    assert learner.leaves["embed"].grad is not None


def test_out_of_memory_halves_the_batch_and_says_so_once(monkeypatch, capsys):
    learner, reference = learner_of(), learner_of()
    rows = rows_of(learner, TASK.train)
    examples = [TrainingExample(0, e, y, 1 / 24) for e, y in zip(rows.encoded, rows.label_N, strict=True)]
    step_gradients(LM, [reference], examples, 10_000)
    real = joint_step.score
    sizes = []

    def small(lm, encoded, bank, task_B):
        sizes.append(len(encoded))
        if len(encoded) > 13:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(lm, encoded, bank, task_B)

    monkeypatch.setattr(joint_step, "score", small)
    losses, budget = step_gradients(LM, [learner], examples, 10_000)
    assert budget < 10_000
    assert sizes[0] == 24
    assert max(sizes[1:]) <= 13
    assert capsys.readouterr().err.count("out of memory") == 1
    assert torch.allclose(learner.leaves["embed"].grad, reference.leaves["embed"].grad, atol=1e-7)
    monkeypatch.setattr(joint_step, "score", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(ModelError, match="single row"):
        step_gradients(LM, [learner], examples, 100)
    assert losses[0] > 0


def test_one_member_stops_early_and_the_rest_goes_on():
    jobs = [
        make_job(LM, TASK, "prompt-tuning", seed=1, options={"length": 2, "steps": 12, "eval_every": 1, "patience": p,
                                                              "learning_rate": 1e-9, "batch_size": 4})
        for p in (2, 0)
    ]  # fmt: skip
    patient, endless = train_many(LM, jobs)
    assert isinstance(patient, Trained) and isinstance(endless, Trained)
    assert patient.artefact.metrics["steps"] < 12
    assert endless.artefact.metrics["steps"] == 12


def test_the_best_step_is_kept_unless_the_last_is_asked_for():
    """The rate grows with warm-up until training diverges, so that the last step is not the best."""
    options = {
        "length": 2,
        "steps": 30,
        "eval_every": 1,
        "learning_rate": 3.0,
        "warmup": 30,
        "optimizer": "adamw",
        "clip": 0,
    }
    best = train(LM, TASK, "prompt-tuning", keep="best", **options).artefact
    last = train(LM, TASK, "prompt-tuning", keep="last", **options).artefact
    assert last.metrics["kept_step"] == 30
    if best.metrics["kept_step"] != 30:
        assert not torch.equal(best.value.embed_PD, last.value.embed_PD)
    key = ("accuracy", "nll")
    ranked = [(a.metrics["validation"][key[0]], -a.metrics["validation"][key[1]]) for a in (last, best)]
    assert ranked[0] <= ranked[1]


def test_a_checkpoint_of_another_job_or_a_damaged_one_is_refused(tmp_path):
    file = tmp_path / "checkpoint"

    def stop(step):
        if step.step == 2:
            raise KeyboardInterrupt

    options = {"length": 2, "steps": 4, "batch_size": 4, "checkpoint": file}
    with pytest.raises(KeyboardInterrupt):
        train(LM, TASK, "prompt-tuning", progress=stop, **options)
    with pytest.raises(ArtefactError, match="of another job"):
        train(LM, TASK, "prompt-tuning", resume=True, seed=9, **options)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ArtefactError, match="damaged"):
        train(LM, TASK, "prompt-tuning", resume=True, **options)


def test_checkpointing_recomputes_and_gives_the_same_prompt():
    options = {"length": 2, "steps": 3, "batch_size": 4}
    one = train(LM, TASK, "prompt-tuning", **options).artefact
    other = train(LM, TASK, "prompt-tuning", checkpointing=True, **options).artefact
    assert torch.allclose(one.value.embed_PD, other.value.embed_PD, atol=1e-6)


def test_a_bf16_model_trains_an_fp32_prompt():
    lm = load("foreword-tiny", dtype=torch.bfloat16)
    artefact = train(lm, TASK, "prompt-tuning", length=2, steps=3).artefact
    assert artefact.value.embed_PD.dtype == torch.float32
    exact = train(load("foreword-tiny"), TASK, "prompt-tuning", length=2, steps=3).artefact
    assert not torch.equal(exact.value.embed_PD, artefact.value.embed_PD)


def test_fit_with_nothing_left_to_do_does_nothing():
    learner = learner_of(steps=1)
    run = Run("x", learner, rows_of(learner, TASK.train), rows_of(learner, TASK.validation), seed=0)
    fit(LM, [run])
    before = learner.leaves["embed"].detach().clone()
    fit(LM, [run])
    assert torch.equal(before, learner.leaves["embed"])


@pytest.mark.parametrize("where", ["step", "evaluation"])
def test_interrupted_inside_a_step_it_goes_on_from_before_it(where, tmp_path, monkeypatch):
    """Ctrl-C between the optimiser's steps of two members, or before an evaluation is done, must not count twice."""
    from foreword.training import loop

    keep = "last" if where == "step" else "best"
    options = {"length": 2, "steps": 40, "batch_size": 4, "eval_every": 1, "keep": keep}
    jobs = [make_job(LM, TASK, "prompt-tuning", seed=s, options=options) for s in (0, 1)]
    whole = [t.artefact for t in train_many(LM, jobs)]
    calls = Counter()
    # The second member's step 28 when its weights have moved, or the evaluation that finds its best step.
    best = 2 * whole[1].metrics["kept_step"]
    owner, name, last = (torch.optim.AdamW, "step", 56) if where == "step" else (loop, "nll", best)
    real = getattr(owner, name)

    def once(*given):
        calls["all"] += 1
        found = real(*given)
        if calls["all"] == last:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(owner, name, once)
    file = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train_many(LM, jobs, checkpoint=file)
    monkeypatch.undo()
    again = [t.artefact for t in train_many(LM, jobs, checkpoint=file, resume=True)]
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(one.value.embed_PD, other.value.embed_PD)
        assert one.metrics == other.metrics
