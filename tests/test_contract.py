"""python -m pytest tests/test_contract.py

One table of tests over all methods. A new method joins by its line in METHODS and, if slow to learn, one in QUICK.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from foreword.core.artefact import TENSORS, Artefact
from foreword.errors import ConfigError
from foreword.inference.scoring import score_rows
from foreword.methods import METHODS
from foreword.methods.registry import make_job, train
from foreword.models.load import load
from foreword.tasks.label_metrics import accuracy
from foreword.tasks.task import Task
from foreword.training.contract import Step
from foreword.training.trainer import Trained, TrainingInterrupted, train_many
from tests.planted import most_of, planted_task
from tests.seeds import new_seed

GRADIENT = [name for name, method in METHODS.items() if method.gradient]
LEARNERS = [name for name, method in METHODS.items() if method.learns]
SEARCHES = [name for name, method in METHODS.items() if method.resumes and not method.gradient]
KINDS = {"masked": "foreword-tiny", "causal": "foreword-tiny-causal", "seq2seq": "foreword-tiny-seq2seq"}
BRIEF = {
    "chain-of-thought": {"max_new_tokens": 4, "samples": 3},
    "ape": {"candidates": 4, "resampled": 2, "budget": 40, "proposal_tokens": 6},
    "template-search": {"candidates": 6, "beam": 2, "longest": 2, "examples": 4, "budget": 40},
    "autoprompt": {"steps": 3, "candidates": 6, "length": 3},
    "pez": {"steps": 4, "eval_every": 2, "length": 3},
}
SHORT = {"steps": 4, "batch_size": 6, "eval_every": 2, "learning_rate": 1e-2}
QUICK = {
    "autoprompt": {
        "label_words": "search",
        "init": "manual",
        "steps": 3,
        "candidates": 8,
        "pool_rows": 128,
        "gradient_rows": 32,
    },
    "prompt-tuning": {"steps": 60, "optimizer": "adamw", "learning_rate": 3e-2},
    "p-tuning": {"steps": 40, "learning_rate": 1e-3},
    "prefix-tuning": {"steps": 60, "learning_rate": 1e-2},
    "lora": {"steps": 40, "learning_rate": 5e-3},
    "fine-tuning": {"steps": 40, "learning_rate": 3e-4},
    "metaprompting": {
        "steps": 40,
        "learning_rate": 3e-2,
        "shots": 2,
        "queries": 8,
        "inner_steps": 1,
        "inner_rate": 1e-3,
        "validation_episodes": 4,
    },
}


def short(name: str, **more) -> dict:
    options = dict(SHORT) if METHODS[name].gradient else dict(BRIEF.get(name, {}))
    if name in ("prompt-tuning", "p-tuning", "prefix-tuning", "metaprompting"):
        options["length"] = 3
    if METHODS[name].episodes:
        options |= {"batch_size": 2, "inner_steps": 2, "validation_episodes": 2, "queries": 3}
    return {**options, **more}


def able(name: str, lm) -> None:
    """Leave out what a method's capabilities leave out."""
    if lm.kind not in METHODS[name].kinds:
        pytest.skip(f"{name} needs a {METHODS[name].kinds[0]} model")


def digest(lm) -> str:
    total = hashlib.sha256()
    for name, weight in sorted(lm.named_weights().items()):
        total.update(name.encode() + weight.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def scores(lm, artefact, rows) -> torch.Tensor:
    return score_rows(lm, [(artefact, rows)])[0]


@pytest.fixture(params=KINDS)
def lm(request):
    return load(KINDS[request.param])


@pytest.fixture
def task():
    return planted_task(new_seed(), train=24, validation=8, test=16)


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_gives_the_same_artefact_and_the_model_stays(name, lm, task, tmp_path):
    able(name, lm)
    before = digest(lm)
    files = [train(lm, task, name, seed=5, **short(name)).artefact.save(tmp_path / str(i)) / TENSORS for i in (1, 2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert digest(lm) == before
    if METHODS[name].gradient:
        other = train(lm, task, name, seed=6, **short(name)).artefact.save(tmp_path / "3") / TENSORS
        assert other.read_bytes() != files[0].read_bytes()


@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded_it_scores_the_same(name, lm, task, tmp_path):
    able(name, lm)
    artefact = train(lm, task, name, **short(name)).artefact
    again = Artefact.load(artefact.save(tmp_path / "x"))
    assert torch.equal(scores(lm, artefact, task.test), scores(lm, again, task.test))
    assert artefact.form == METHODS[name].form
    assert artefact.hashes == task.hashes()
    assert artefact.metrics["validation"]["rows"] == len(task.validation)


@pytest.mark.parametrize("name", [n for n in GRADIENT if METHODS[n].mixed_batch])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_alone_equals_in_a_mixed_batch(name, lm, clip):
    """Seeds, rates, lengths, decays and two tasks in one stack; each member equals its own run alone."""
    tasks = [planted_task(n, train=20 + n, validation=8, test=8) for n in (1, 2)]
    able(name, lm)
    lm = load(KINDS[lm.kind], dtype=torch.float64)
    jobs = [
        make_job(lm, task, name, seed=seed, options=short(name, clip=clip, **more))
        for task in tasks
        for seed, more in enumerate([{}, {"length": 5}, {"weight_decay": 0.1}, {"steps": 3, "learning_rate": 0.1}])
    ]
    together = train_many(lm, jobs)
    for job, mixed in zip(jobs, together, strict=True):
        alone = train_many(lm, [job])[0]
        assert isinstance(mixed, Trained) and isinstance(alone, Trained)
        assert mixed.artefact.metrics["kept_step"] == alone.artefact.metrics["kept_step"]
        one, other = (scores(lm, t.artefact, job.task.test) for t in (mixed, alone))
        assert torch.allclose(one, other, rtol=0, atol=2e-5), job.name
    first, second = (scores(lm, t.artefact, jobs[0].task.test) for t in together[:2])
    assert not torch.allclose(first, second, rtol=0, atol=2e-5)


def reached(name: str, task: Task, seed: int) -> float:
    """Test accuracy of a method with its quick options."""
    lm = load("foreword-mini")
    options = ({"eval_every": 20} if METHODS[name].gradient else {}) | QUICK.get(name, {})
    artefact = train(lm, task, name, seed=seed, **options).artefact
    score = scores(lm, artefact, task.test).double().numpy()
    return accuracy(score, np.array([row.label for row in task.test]))


@pytest.mark.parametrize("name", LEARNERS)
def test_rules_drawn_now_are_learnt(name):
    wanted = 3 if name == "autoprompt" else 2
    seen = most_of(lambda seed: reached(name, planted_task(seed), seed), 0.8, wanted)
    assert sum(value >= 0.8 for _, value in seen) == wanted, seen


@pytest.mark.parametrize("name", LEARNERS)
def test_shuffled_labels_teach_nothing(name):
    """Over all thirty nouns: what is learnt by chance of each is right in half of them, give or take a tenth."""
    seed = new_seed()
    value = reached(name, planted_task(seed, words=15).relabel_shuffled(seed), seed)
    assert value <= 0.7, (seed, value)


@pytest.mark.parametrize("name", GRADIENT)
def test_interrupted_and_resumed_it_ends_in_the_same_bytes(name, lm, task, tmp_path):
    able(name, lm)
    options = short(name, steps=7)
    whole = train(lm, task, name, **options).artefact.save(tmp_path / "whole") / TENSORS

    def stop(step: Step) -> None:
        if step.step == 5:
            raise KeyboardInterrupt

    file = tmp_path / "checkpoint"
    with pytest.raises(TrainingInterrupted) as caught:
        train(lm, task, name, progress=stop, checkpoint=file, **options)
    assert caught.value.trained[0] is not None
    assert file.exists()
    resumed = train(lm, task, name, checkpoint=file, resume=True, **options).artefact.save(tmp_path / "resumed")
    assert (resumed / TENSORS).read_bytes() == whole.read_bytes()
    assert (resumed / "foreword.json").read_bytes() == (whole.parent / "foreword.json").read_bytes()
    assert [p.name for p in Path(tmp_path).iterdir() if p.name.startswith(("checkpoint", "."))] == []


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_interrupted_and_resumed_ends_in_the_same_bytes(name, lm, task, tmp_path):
    able(name, lm)
    options = short(name)
    whole = train(lm, task, name, **options).artefact.save(tmp_path / "whole")

    def stop(step: Step) -> None:
        if step.step >= 2:  # searches of instructions report rows
            raise KeyboardInterrupt

    file = tmp_path / "checkpoint"
    with pytest.raises(TrainingInterrupted):
        train(lm, task, name, progress=stop, checkpoint=file, **options)
    assert file.exists()
    resumed = train(lm, task, name, checkpoint=file, resume=True, **options).artefact.save(tmp_path / "resumed")
    for kept in (TENSORS, "foreword.json"):
        assert (resumed / kept).read_bytes() == (whole / kept).read_bytes()
    assert [p.name for p in Path(tmp_path).iterdir() if p.name.startswith(("checkpoint", "."))] == []


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_option_is_refused_with_the_valid_ones(name, lm, task):
    able(name, lm)
    with pytest.raises(ConfigError, match="has no option 'num_virtual_tokens'") as caught:
        make_job(lm, task, name, options={"num_virtual_tokens": 3})
    if "length" in METHODS[name].Config.__dataclass_fields__:
        assert "Did you mean length?" in str(caught.value)
    with pytest.raises(ConfigError, match="choose one of"):
        make_job(lm, task, name + "x")


def test_one_bad_job_does_not_stop_the_others(lm, task):
    good = make_job(lm, task, "prompt-tuning", options=short("prompt-tuning"))
    bad = make_job(
        lm, task, "prompt-tuning", options=short("prompt-tuning", learning_rate=1e30, optimizer="adamw", clip=0)
    )
    empty = make_job(lm, task.with_(train=()), "prompt-tuning", options=short("prompt-tuning"))
    outcomes = train_many(lm, [bad, good, empty])
    assert isinstance(outcomes[1], Trained)
    alone = train_many(lm, [good])[0]
    assert isinstance(alone, Trained)
    assert torch.allclose(scores(lm, outcomes[1].artefact, task.test), scores(lm, alone.artefact, task.test), atol=1e-5)
    assert "no training rows" in str(outcomes[2])
    assert "learning_rate" in str(outcomes[0])
