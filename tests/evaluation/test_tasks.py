"""Many tasks in one job. Run: python -m pytest tests/evaluation/test_tasks.py"""

import json

import pytest
import torch

import foreword
from foreword.core.artefact import Artefact
from foreword.errors import ArtefactError, ConfigError, DataError, ModelError
from foreword.evaluation import schedule
from foreword.evaluation.records import Store
from foreword.evaluation.tasks import train_tasks
from foreword.methods.registry import train as train_one
from tests.killed import contents
from tests.planted import planted_task

OPTIONS = {"length": 3, "steps": 12, "batch_size": 6, "eval_every": 6}


@pytest.fixture(scope="module")
def lm():
    return foreword.load("foreword-tiny")


def some_tasks(count=5, **sizes):
    sizes = {"train": 24, "validation": 12, "test": 20, **sizes}
    return {f"t{seed}": planted_task(seed, **sizes) for seed in range(count)}


@pytest.fixture
def stacks(monkeypatch):
    """The names of the tasks in every stack that is trained."""
    import foreword.training.trainer as home

    seen, own = [], home.train_many

    def spy(lm, jobs, **more):
        if jobs[0].method.name != "manual":
            seen.append([job.task.name for job in jobs])
        return own(lm, jobs, **more)

    monkeypatch.setattr(home, "train_many", spy)
    return seen


@pytest.mark.parametrize(
    ("method", "options"),
    [("prompt-tuning", {}), ("prefix-tuning", {"reparametrise": True, "hidden": 8}), ("fine-tuning", {"length": None})],
)
def test_in_one_job_as_one_by_one(method, options, tmp_path, stacks):
    lm = foreword.load("foreword-tiny", dtype="float64")
    tasks = some_tasks(4)
    options = {k: v for k, v in {**OPTIONS, **options}.items() if v is not None}
    report = train_tasks(lm, tasks, method, out=tmp_path, options=options, stack=3)
    sizes = [len(stack) for stack in stacks]
    assert sizes == ([1] * 4 if method == "fine-tuning" else [3, 1])
    for name, task in tasks.items():
        alone = train_one(lm, task, method, **options).artefact
        mixed = Artefact.load(tmp_path / "artefacts" / name)
        assert mixed.made_of == alone.made_of
        assert mixed.metrics["validation"] == alone.metrics["validation"]
        torch.testing.assert_close(pack(mixed), pack(alone), rtol=0, atol=1e-6)
        record = report.records[name]
        logprob, _ = Store(tmp_path).predictions(record)
        own = foreword.open_artefact(tmp_path / "artefacts" / name, lm).scores(task.test).log_softmax(-1)
        torch.testing.assert_close(torch.from_numpy(logprob), own.double(), rtol=0, atol=1e-6)


def pack(artefact):
    return {k: v.double() for k, v in artefact.value.tensors().items()}


def test_what_is_unchanged_is_not_trained_again(lm, tmp_path, stacks):
    tasks = some_tasks(4)

    def job(**changed):
        stacks.clear()
        report = train_tasks(lm, {**tasks, **changed}, "prompt-tuning", out=tmp_path, options=OPTIONS)
        return report, contents(tmp_path)

    first, whole = job()
    assert stacks == [["planted-0", "planted-1", "planted-2", "planted-3"]]
    assert all(line.trained for line in first.lines)
    second, same = job()
    assert not stacks
    assert same == whole
    assert not any(line.trained for line in second.lines)
    assert [(x.verdict, x.learnt) for x in second.lines] == [(x.verdict, x.learnt) for x in first.lines]
    _, other = job(t2=planted_task(77, train=24, validation=12, test=20))
    assert stacks == [["planted-77"]]
    changed = {k for k in other if k.startswith("artefacts") and other[k] != whole[k]}
    assert changed == {"artefacts/t2/prompt.safetensors", "artefacts/t2/foreword.json", "artefacts/t2/README.md"}
    job()  # and back: what the folder says of the old rows is not taken for the artefact of the new ones
    assert stacks == [["planted-2"]]
    (tmp_path / "artefacts" / "t1" / "prompt.safetensors").write_bytes(b"damaged")
    report, _ = job()
    assert stacks == [["planted-1"]]
    assert [line.trained for line in report.lines] == [False, True, False, False]
    stacks.clear()
    train_tasks(lm, tasks, "prompt-tuning", out=tmp_path, options={**OPTIONS, "steps": 13})
    assert [len(s) for s in stacks] == [4], "another recipe is another job"


def test_one_bad_task_stops_no_other(lm, tmp_path):
    good = some_tasks(3)
    own = {"template": "{text} : {mask} .", "label_words": None}
    long = planted_task(5, train=24, validation=12, test=20)
    row = long.test[0]
    long = long.with_(test=(type(row)({"text": "word " * 400}, row.label, (), "long, row 1"),))
    bad = {
        "unreadable": DataError("line 7 is not JSON"),
        "no-test": planted_task(6, train=24, validation=12, test=20).with_(test=()),
        "no-train": planted_task(7, train=24, validation=12, test=20).with_(train=()),
        "too-long": long.with_(**own),
    }
    mixed = dict(sorted({**good, **bad}.items()))
    report = train_tasks(
        lm, mixed, "prompt-tuning", out=tmp_path / "mixed", options=OPTIONS,
        form=lambda lm, task: task.format(lm.kind, truncate="error"),
    )  # fmt: skip
    verdicts = {line.name: line for line in report.lines}
    assert list(verdicts) == list(mixed)
    assert {n for n, line in verdicts.items() if line.verdict == "failed"} == set(bad)
    assert "line 7" in verdicts["unreadable"].reason
    assert "no test rows" in verdicts["no-test"].reason
    assert "no training rows" in verdicts["no-train"].reason
    assert "long, row 1" in verdicts["too-long"].reason
    assert {p.name for p in (tmp_path / "mixed" / "artefacts").iterdir()} == set(good)
    table = [json.loads(line) for line in (tmp_path / "mixed" / "tasks.jsonl").read_text().splitlines()]
    assert [t["task"] for t in table] == list(mixed)
    assert all(("reason" in t) == (t["task"] in bad) for t in table)


def test_a_task_whose_loss_is_no_number_fails_alone(tmp_path, monkeypatch, lm):
    import foreword.training.loop as loop

    own = loop.step_gradients

    def spoiled(lm, learners, examples, budget):
        losses, budget = own(lm, learners, examples, budget)
        return [float("nan") if owner == 1 and len(learners) == 3 else x for owner, x in enumerate(losses)], budget

    monkeypatch.setattr(loop, "step_gradients", spoiled)
    report = train_tasks(lm, some_tasks(3), "prompt-tuning", out=tmp_path, options=OPTIONS)
    assert [line.verdict == "failed" for line in report.lines] == [False, True, False]
    assert "learning_rate" in report.lines[1].reason


def test_a_task_that_failed_still_fails_alone_after_a_kill(tmp_path, monkeypatch, lm):
    import foreword.training.loop as loop

    own, record = loop.step_gradients, schedule.record_result

    def spoiled(lm, learners, examples, budget):
        losses, budget = own(lm, learners, examples, budget)
        return [float("nan") if owner == 1 and len(learners) == 3 else x for owner, x in enumerate(losses)], budget

    def dying(desk, cell, trained, together):
        if cell.name == "t2":
            raise Killed
        return record(desk, cell, trained, together)

    monkeypatch.setattr(loop, "step_gradients", spoiled)
    monkeypatch.setattr(schedule, "record_result", dying)
    with pytest.raises(Killed):
        train_tasks(lm, some_tasks(3), "prompt-tuning", out=tmp_path / "parts", options=OPTIONS)
    monkeypatch.setattr(schedule, "record_result", record)
    for out in ("parts", "whole"):
        report = train_tasks(lm, some_tasks(3), "prompt-tuning", out=tmp_path / out, options=OPTIONS)
        assert [line.verdict == "failed" for line in report.lines] == [False, True, False]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_what_a_killed_stack_left_goes_when_its_rows_have_changed_and_others_stay(tmp_path, monkeypatch, lm):
    own = schedule.record_result

    def dying(desk, cell, trained, together):
        if cell.job.method.name == "prompt-tuning":
            raise Killed
        return own(desk, cell, trained, together)

    monkeypatch.setattr(schedule, "record_result", dying)
    with pytest.raises(Killed):
        train_tasks(lm, some_tasks(2), "prompt-tuning", out=tmp_path, options=OPTIONS)
    monkeypatch.undo()
    left = tmp_path / "checkpoints"
    mine = {p.name for p in left.iterdir()}
    assert len(mine) == 2, "a checkpoint and who is in it"
    (left / "choice-abc").mkdir()
    train_tasks(lm, some_tasks(2), "prefix-tuning", out=tmp_path, options=OPTIONS)
    assert {p.name for p in left.iterdir()} == {*mine, "choice-abc"}, "another method's, and a comparison's"
    changed = {**some_tasks(2), "t1": planted_task(9, train=24, validation=12, test=20)}
    train_tasks(lm, changed, "prompt-tuning", out=tmp_path, options=OPTIONS)
    assert {p.name for p in left.iterdir()} == {"choice-abc"}


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "n" * 201, ""])
def test_a_name_that_is_no_folder_is_refused(name, lm, tmp_path):
    (task,) = some_tasks(1).values()
    report = train_tasks(lm, {name: task, "fine": task}, "manual", out=tmp_path / "store")
    assert [line.verdict == "failed" for line in report.lines] == [True, False]
    assert [p.name for p in (tmp_path / "store" / "artefacts").iterdir()] == ["fine"]


class Killed(BaseException):
    """A process that is gone: no handler sees it."""


def test_a_damaged_artefact_that_cannot_be_made_again_is_a_failure(tmp_path, monkeypatch, lm):
    tasks = some_tasks(2)
    train_tasks(lm, tasks, "prompt-tuning", out=tmp_path, options=OPTIONS)
    (tmp_path / "artefacts" / "t1" / "foreword.json").unlink()

    def refuse(self):
        raise ModelError("no gradient reaches a prompt")

    monkeypatch.setattr(type(lm), "require_gradient", refuse)
    report = train_tasks(lm, tasks, "prompt-tuning", out=tmp_path, options=OPTIONS)
    assert [line.verdict == "failed" for line in report.lines] == [False, True], "its old record is no artefact"


def test_a_rule_is_learnt_and_its_shuffled_control_is_not(tmp_path):
    lm = foreword.load("foreword-mini")
    true = {f"true{s}": planted_task(s) for s in (1, 2)}
    false = {f"false{s}": task.relabel_shuffled(s) for s, task in enumerate(true.values())}
    options = {"length": 8, "steps": 60, "learning_rate": 0.01, "eval_every": 20}
    report = train_tasks(lm, true | false, "prefix-tuning", out=tmp_path, options=options)
    verdicts = {line.name: line.verdict for line in report.lines}
    assert {verdicts[name] for name in true} == {"better"}
    assert "better" not in {verdicts[name] for name in false}


def test_equal_rows_under_two_names_are_two_artefacts(lm, tmp_path):
    task = planted_task(3, train=24, validation=12, test=20)
    report = train_tasks(lm, {"one": task, "two": task}, "prompt-tuning", out=tmp_path, options=OPTIONS)
    assert len(report.records) == 2
    one, two = (pack(Artefact.load(tmp_path / "artefacts" / name)) for name in ("one", "two"))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_words_of_equal_rows_that_cannot_be_read_fail_every_task_that_has_these_rows(lm, tmp_path, monkeypatch):
    from foreword.methods.words.manual import Manual

    def refuse(self, *_):
        raise DataError("no words")

    task = planted_task(3, train=24, validation=12, test=20)
    monkeypatch.setattr(Manual, "make", refuse)
    jobs = {"one": task.with_(name="one"), "two": task.with_(name="two"), "other": planted_task(4, train=24, test=20)}
    report = train_tasks(lm, jobs, "prompt-tuning", out=tmp_path, options=OPTIONS)
    assert [(line.verdict, line.reason) for line in report.lines] == [("failed", "no words")] * 3


def test_an_unexpected_end_of_a_stack_counts_the_runs_that_were_wanted(lm, tmp_path, monkeypatch):
    """One of a stack's runs is recorded, the process is killed, and going on ends in an error: two runs failed."""
    record, counted = schedule.record_result, []

    def dying(desk, cell, trained, together):
        if cell.name == "t1":
            raise Killed
        return record(desk, cell, trained, together)

    with monkeypatch.context() as patch:
        patch.setattr(schedule, "record_result", dying)
        with pytest.raises(Killed):
            train_tasks(lm, some_tasks(3), "prompt-tuning", out=tmp_path, options=OPTIONS)
    import foreword.training.trainer as home

    own = home.train_many

    def broken(lm, jobs, **more):
        if jobs[0].method.name == "manual":
            return own(lm, jobs, **more)
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(home, "train_many", broken)
    report = train_tasks(
        lm, some_tasks(3), "prompt-tuning", out=tmp_path, options=OPTIONS,
        on_stage=lambda stage: counted.append((stage.done, stage.total)),
    )  # fmt: skip
    assert [line.verdict == "failed" for line in report.lines] == [False, True, True]
    assert counted[-1][0] == counted[-1][1] == 6, counted


@pytest.mark.parametrize("after", [1, 2, 4])
def test_killed_while_a_stack_is_recorded_it_goes_on_in_the_same_company(after, lm, tmp_path, monkeypatch, stacks):
    tasks, done = some_tasks(5), []
    whole = tmp_path / "whole"
    train_tasks(lm, tasks, "prompt-tuning", out=whole, options=OPTIONS, stack=3)
    own = schedule.record_result

    def dying(desk, cell, trained, together):
        if cell.job.method.name != "manual":
            if len(done) == after:
                raise Killed
            done.append(cell)
        return own(desk, cell, trained, together)

    stacks.clear()
    monkeypatch.setattr(schedule, "record_result", dying)
    parts = tmp_path / "parts"
    with pytest.raises(Killed):
        train_tasks(lm, tasks, "prompt-tuning", out=parts, options=OPTIONS, stack=3)
    monkeypatch.setattr(schedule, "record_result", own)
    begun = stacks[-1]
    stacks.clear()
    train_tasks(lm, tasks, "prompt-tuning", out=parts, options=OPTIONS, stack=3)
    assert stacks[0] == begun, "alone, a run's last digits could differ"
    assert contents(parts) == contents(whole)


def test_a_full_disk_stops_the_job_and_keeps_what_was_done(lm, tmp_path, monkeypatch):
    tasks, own = some_tasks(4), Artefact.save

    def full(self, folder):
        if str(folder).endswith("t2"):
            raise ArtefactError(f"{folder} could not be written (No space left on device).")
        return own(self, folder)

    monkeypatch.setattr(Artefact, "save", full)
    with pytest.raises(ArtefactError, match="No space left"):
        train_tasks(lm, tasks, "prompt-tuning", out=tmp_path / "parts", options=OPTIONS, stack=4)
    monkeypatch.undo()
    train_tasks(lm, tasks, "prompt-tuning", out=tmp_path / "parts", options=OPTIONS, stack=4)
    train_tasks(lm, tasks, "prompt-tuning", out=tmp_path / "whole", options=OPTIONS, stack=4)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_methods_and_options_are_checked_before_anything_is_made(lm, tmp_path):
    with pytest.raises(ConfigError, match="length"):
        train_tasks(lm, some_tasks(1), "prompt-tuning", out=tmp_path / "x", options={"num_virtual_tokens": 3})
    with pytest.raises(ConfigError, match="is not a method"):
        train_tasks(lm, some_tasks(1), "prompting", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_words_alone_are_a_method_too(lm, tmp_path):
    report = train_tasks(lm, some_tasks(2), "manual", out=tmp_path)
    assert [line.verdict for line in report.lines] == ["no difference shown"] * 2
    assert all(line.difference.mean == 0 for line in report.lines)
    assert Artefact.load(tmp_path / "artefacts" / "t1").form == "hard"


def test_a_model_that_refuses_the_method_fails_every_task_in_words(tmp_path, monkeypatch, lm):
    def refuse(self):
        raise ModelError("no prefix for this family")

    monkeypatch.setattr(type(lm), "require_prefix", refuse)
    report = train_tasks(lm, some_tasks(2), "prefix-tuning", out=tmp_path, options=OPTIONS)
    assert [line.reason for line in report.lines] == ["no prefix for this family"] * 2
