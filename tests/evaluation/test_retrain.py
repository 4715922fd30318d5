"""A new base model. Run: python -m pytest tests/evaluation/test_retrain.py"""

import json

import pytest

import foreword
from foreword.core.artefact import Artefact
from foreword.errors import ArtefactError, DataError, ModelError
from foreword.evaluation.records import Store
from foreword.evaluation.retrain import find_artefacts, retrain
from foreword.evaluation.statistics import difference, resample
from foreword.evaluation.tasks import train_tasks
from foreword.methods.registry import train as train_one
from foreword.tasks.read import read_task
from tests.killed import contents
from tests.planted import planted_task

OPTIONS = {"length": 3, "steps": 10, "batch_size": 6, "eval_every": 5}


def write(path, seed, template=None):
    task = planted_task(seed, train=60, validation=10, test=40)
    rows = [{**r.fields, "label": task.labels[r.label]} for s in ("train", "validation", "test") for r in task.rows(s)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    if template:
        path.with_name(f"{path.stem}.task.json").write_text(json.dumps({"template": template}))


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "tasks"
    place.mkdir()
    for seed in range(3):
        write(place / f"t{seed}.jsonl", seed, "{text|shorten} means {mask}" if seed == 1 else None)
    return place


@pytest.fixture(scope="module")
def masked():
    return foreword.load("foreword-tiny")


@pytest.fixture(scope="module")
def causal():
    return foreword.load("foreword-tiny-causal")


def never(name, kind):
    raise AssertionError("the predictions are kept; no model is needed")


@pytest.fixture
def store(folder, masked, tmp_path):
    tasks = {p.stem: read_task(p).limit(train=30, seed=4) for p in sorted(folder.glob("t?.jsonl"))}
    out = tmp_path / "store"
    train_tasks(masked, tasks, "prompt-tuning", out=out, options=OPTIONS, seed=5, shots=4)
    return out


def test_every_prompt_is_made_again_from_its_recipe_and_compared(store, causal, tmp_path):
    report = retrain(store, causal, out=tmp_path / "new", load=never)
    assert [line.name for line in report.lines] == ["t0", "t1", "t2"]
    old_records = {r.artefact: r for r in Store(store).records()}
    for line in report.lines:
        old, new = (Artefact.load(p / "artefacts" / line.name) for p in (store, tmp_path / "new"))
        assert (new.method, new.seed, new.hashes) == (old.method, 5, old.hashes)
        assert new.config == old.config
        assert (old.model["kind"], new.model["kind"]) == ("masked", "causal")
        mine = Store(tmp_path / "new").predictions(report.records[line.name])
        theirs = Store(store).predictions(old_records[f"artefacts/{line.name}"])
        change = difference([resample("accuracy", *mine)], [resample("accuracy", *theirs)])
        assert line.change == change
        assert line.before.mean + change.mean == pytest.approx(line.learnt.mean)
    table = [json.loads(text) for text in (tmp_path / "new" / "tasks.jsonl").read_text().splitlines()]
    assert [t["before"]["accuracy"] for t in table] == [line.before.mean for line in report.lines]


def test_over_the_same_model_it_makes_the_same_bytes(store, masked, tmp_path):
    report = retrain(store, masked, out=tmp_path / "new", load=never)
    assert all(line.change.mean == 0 for line in report.lines)
    assert contents(tmp_path / "new" / "artefacts") == contents(store / "artefacts")


def test_the_recorded_template_is_used_again_for_a_model_of_the_kind(store, masked, tmp_path):
    retrain(store, masked, out=tmp_path / "new", load=never)
    assert "means" in str(Artefact.load(tmp_path / "new" / "artefacts" / "t1").format.template.source)


def test_rows_that_changed_are_refused_and_the_others_go_on(store, folder, causal, tmp_path):
    write(folder / "t1.jsonl", 9)
    (folder / "t2.jsonl").unlink()
    report = retrain(store, causal, out=tmp_path / "new", load=never)
    lines = {line.name: line for line in report.lines}
    assert lines["t0"].verdict != "failed"
    assert "have changed" in lines["t1"].reason
    assert "does not exist" in lines["t2"].reason
    allowed = retrain(
        store, causal, out=tmp_path / "changed", load=lambda n, k: foreword.load(n), allow_changed_data=True
    )
    line = {line.name: line for line in allowed.lines}["t1"]
    assert line.verdict != "failed"
    assert line.before is not None, "the old prompt is read on the new rows"


def test_rows_may_be_given_from_elsewhere(store, folder, causal, tmp_path):
    moved = folder.rename(tmp_path / "moved")
    gone = retrain(store, causal, out=tmp_path / "gone", load=never)
    assert {line.verdict for line in gone.lines} == {"failed"}
    tasks = {p.stem: read_task(p).limit(train=30, seed=4).few_shot(4, 5) for p in sorted(moved.glob("t[01].jsonl"))}
    found = {line.name: line for line in retrain(store, causal, out=tmp_path / "new", load=never, tasks=tasks).lines}
    assert found["t0"].verdict != "failed"
    assert "no task is called 't2'" in found["t2"].reason


def test_an_artefact_of_its_own_is_read_again_by_its_old_model(folder, masked, causal, tmp_path):
    task = read_task(folder / "t0.jsonl")
    artefact = train_one(masked, task, "prefix-tuning", **OPTIONS).artefact
    artefact.save(tmp_path / "one")
    loaded = []

    def load(name, kind):
        loaded.append((name, kind))
        return masked

    (line,) = retrain(tmp_path / "one", causal, out=tmp_path / "new", load=load).lines
    expected = foreword.open_artefact(tmp_path / "one", masked).evaluate(task)["accuracy"]
    assert line.before.mean == pytest.approx(expected)
    assert loaded == [("foreword-tiny", "masked")]

    def gone(name, kind):
        raise ModelError(f"{name} is not there")

    report = retrain(tmp_path / "one", causal, out=tmp_path / "new", load=gone)
    assert report.lines[0].before is None
    assert "is not there" in report.notes[0]


def test_what_cannot_be_made_again_says_why(masked, causal, tmp_path):
    task = planted_task(1, train=24, validation=8, test=16)
    train_one(masked, task, "prompt-tuning", **OPTIONS).artefact.save(tmp_path / "all" / "in-memory")
    (tmp_path / "all" / "damaged").mkdir()
    (tmp_path / "all" / "damaged" / "foreword.json").write_text("{")
    lines = {line.name: line for line in retrain(tmp_path / "all", causal, out=tmp_path / "new", load=never).lines}
    assert "given in memory" in lines["in-memory"].reason
    assert "damaged" in lines["damaged"].reason
    with pytest.raises(ArtefactError, match="holds no artefact"):
        retrain(tmp_path / "new", causal, out=tmp_path / "newer", load=never)
    with pytest.raises(ArtefactError, match="the store itself"):
        retrain(tmp_path / "all", causal, out=tmp_path / "all", load=never)


def test_a_comparison_is_a_store_too(folder, masked, causal, tmp_path):
    task = read_task(folder / "t0.jsonl")
    options = {"prompt-tuning": {"steps": 6, "eval_every": 3}, "bag-of-words": {}}
    foreword.compare(masked, task, ["manual", *options], out=tmp_path / "runs", seeds=2, options=options)
    found = find_artefacts(tmp_path / "runs")
    assert len(found) == 6
    report = retrain(tmp_path / "runs", causal, out=tmp_path / "new", load=never)
    assert {line.verdict for line in report.lines} <= {"better", "worse", "no difference shown"}
    assert sum(r.method == "prompt-tuning" for r in report.records.values()) == 2


def test_the_origin_of_rows_survives_what_draws_them_and_not_what_changes_them(folder):
    task = read_task(folder / "t0.jsonl").limit(train=20, seed=3).few_shot(3, seed=2)
    from foreword.tasks.read_again import read_again

    assert read_again(json.loads(json.dumps(task.origin))).hashes() == task.hashes()
    assert task.relabel_shuffled().origin is None
    assert task.with_(train=task.train[:4]).origin is None
    with pytest.raises(DataError):
        read_again({**task.origin, "source": "nowhere"})
