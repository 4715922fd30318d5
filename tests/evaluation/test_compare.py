"""What a comparison trains, chooses, tests and resumes. Run: python -m pytest tests/evaluation/test_compare.py"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from foreword.core.artefact import Artefact
from foreword.errors import ConfigError, DataError
from foreword.evaluation.compare import CompareOptions, Comparison, compare
from foreword.evaluation.records import Store
from foreword.evaluation.summary import TableRow
from foreword.tasks.task import Task
from tests.evaluation.fakes import FakeLM, Killed, World, fake_task

METHODS = ("manual", "stacked", "fine-tuning")
GRID = {"stacked": {"skill": [0.6, 0.9, 0.7], "luck": 0.75}}


def run(world: World, out: Path, methods: tuple[str, ...] = METHODS, **more) -> Comparison:
    more = {"seeds": 3, **more}
    task = more.pop("task", fake_task())
    return compare(more.pop("lm", FakeLM()), task, methods, out=out, tools=world.tools(), **more)


def trained(world: World) -> list[tuple[str, int, float]]:
    return [(job.method.name, job.seed, job.config.skill) for jobs in world.calls for job in jobs]


def told(found: Comparison) -> list[TableRow]:
    """The lines without what the clock said."""
    return [replace(line, train_seconds=None, examples_per_second=None) for line in found.lines]


def files(folder: Path) -> dict[str, bytes]:
    """All that must not depend on when and how often the comparison was stopped."""
    skip = {"timings.jsonl"}
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in skip}


def test_a_method_that_mixes_gets_all_seeds_and_points_as_one_stack(tmp_path: Path) -> None:
    world = World()
    run(world, tmp_path, options={**GRID, "fine-tuning": {"skill": [0.5, 0.6]}})
    sizes = [(jobs[0].method.name, len(jobs)) for jobs in world.calls]
    assert sizes == [("manual", 1)] * 3 + [("stacked", 9)] + [("fine-tuning", 1)] * 6
    assert len({job.name for job in world.calls[3]}) == 9
    together = {r.method: r.timing.stack for r in Store(tmp_path).records() if r.role == "result" and r.timing}
    assert together == {"manual": 1, "stacked": 9, "fine-tuning": 1}


def test_stack_limits_how_many_train_together(tmp_path: Path) -> None:
    world = World()
    run(world, tmp_path, ("stacked",), options=GRID, how=CompareOptions(stack=4))
    assert [len(jobs) for jobs in world.calls] == [4, 4, 1]


def test_the_choice_is_made_on_development_rows_only(tmp_path: Path) -> None:
    """The point that is best on test rows is the worst on development rows, and never sees a test row."""
    world = World()
    points = {"skill": [0.9, 0.6], "luck": [0.7, 1.0]}
    found = run(world, tmp_path, ("stacked",), options={"stacked": points})
    (line,) = found.lines
    assert {r.config["skill"] for r in found.records} == {0.9}
    assert {r.config["luck"] for r in found.records} == {0.7}, "ties go to the first point, not to the luckier one"
    assert line.metrics["accuracy"].mean < 0.9
    assert {a.config["skill"] for a in world.scored} == {0.9}
    assert len(world.scored) == 3, "test rows are read once a seed"
    assert line.chosen == (("skill=0.9, luck=0.7", 3),)
    assert (line.tried, line.allowed) == (4, 4)
    trials = [r for r in Store(tmp_path).records() if r.role == "trial"]
    assert len(trials) == 12
    assert not any(r.metrics or r.predictions for r in trials)


def test_a_tie_in_accuracy_goes_to_the_likelier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    plain = world._artefact

    def tied(lm, job):
        made = plain(lm, job)
        return made.with_metrics(validation={"rows": 20, "accuracy": 0.5, "nll": 1.0 / job.config.length})

    monkeypatch.setattr(world, "_artefact", tied)
    found = run(world, tmp_path, ("stacked",), options={"stacked": {"length": [4, 9, 6]}})
    assert {r.config["length"] for r in found.records} == {9}


def test_every_method_has_the_same_allowance_and_large_grids_are_drawn_from(tmp_path: Path) -> None:
    world = World()
    options = {"stacked": {"length": list(range(1, 21))}, "fine-tuning": {"length": [1, 2]}}
    found = run(world, tmp_path, options=options, how=CompareOptions(allowed=4))
    assert [(line.method, line.tried, line.allowed) for line in found.lines] == [
        ("manual", 1, 4), ("stacked", 4, 4), ("fine-tuning", 2, 4),
    ]  # fmt: skip
    tried = [{job.config.length for job in world.calls[3] if job.seed == seed} for seed in range(3)]
    assert len(tried[0]) == 4
    assert tried[0] == tried[1] == tried[2]


@pytest.mark.parametrize("kill_after", [0, 4, 11, 13, 16])
def test_a_killed_comparison_goes_on_with_what_is_missing_and_ends_in_the_same_bytes(
    tmp_path: Path, kill_after: int
) -> None:
    options = {**GRID, "fine-tuning": {"skill": [0.5, 0.6]}}
    whole = World()
    expected = run(whole, tmp_path / "whole", options=options)
    first = World(kill_after=kill_after)
    with pytest.raises(Killed):
        run(first, tmp_path / "parts", options=options)
    with (tmp_path / "parts" / "results.jsonl").open("ab") as file:
        file.write(b'{"id": "torn')  # what a process killed while writing leaves
    second = World()
    found = run(second, tmp_path / "parts", options=options)
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    assert told(found) == told(expected)
    again = set(trained(second)) & set(trained(first)[:kill_after])
    # A stack that was being recorded is made again as it was, in the same company; so is a choice made alone.
    assert len(again) <= 1 or {method for method, *_ in again} == {"stacked"}, again
    assert second.ended <= whole.ended - kill_after + len(again)
    third = World()
    assert told(run(third, tmp_path / "parts", options=options)) == told(expected)
    assert not third.calls
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_more_seeds_and_methods_run_only_what_is_new(tmp_path: Path) -> None:
    run(World(), tmp_path, ("manual",), seeds=2)
    world = World()
    found = run(world, tmp_path, ("manual", "stacked"), seeds=[0, 1, 5])
    assert trained(world) == [("manual", 5, 0.8), ("stacked", 0, 0.8), ("stacked", 1, 0.8), ("stacked", 5, 0.8)]
    assert [line.seeds for line in found.lines] == [(0, 1, 5)] * 2


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"stacked": {"length": 5}}},
        {"task": fake_task(rows=42)},
        {"task": fake_task().with_(label_words={"yes": ("good",), "no": ("bad",)})},
        {"lm": FakeLM(weights="other")},
        {"shots": 4},
    ],
    ids=["option", "rows", "label words", "weights", "shots"],
)
def test_what_decides_a_run_makes_it_another_run(tmp_path: Path, change: dict) -> None:
    run(World(), tmp_path, ("stacked",))
    world = World()
    run(world, tmp_path, ("stacked",), **change)
    assert len(trained(world)) == 3


def test_lost_predictions_are_made_again(tmp_path: Path) -> None:
    run(World(), tmp_path, ("stacked",))
    before = files(tmp_path)
    next((tmp_path / "predictions").glob("*.safetensors")).write_bytes(b"damaged")
    world = World()
    run(world, tmp_path, ("stacked",))
    assert len(trained(world)) == 1
    after = files(tmp_path)
    after.pop("results.jsonl")
    assert before == {**after, "results.jsonl": before["results.jsonl"]}
    assert len(Store(tmp_path).records()) == 3


def test_failures_stop_nothing_else_and_are_tried_again(tmp_path: Path) -> None:
    world = World(broken=frozenset({("stacked", 1)}))
    found = run(world, tmp_path)
    assert [(f.method, f.seed, f.reason) for f in found.failures] == [("stacked", 1, "the loss is not a number.")]
    assert [line.seeds for line in found.lines] == [(0, 1, 2), (0, 2), (0, 1, 2)]
    assert found.lines[1].versus["manual"].seeds == 2
    healed = World()
    found = run(healed, tmp_path)
    assert trained(healed) == [("stacked", 1, 0.8)]
    assert [line.seeds for line in found.lines] == [(0, 1, 2)] * 3


def test_an_unexpected_error_of_one_method_stops_no_other(tmp_path: Path) -> None:
    world = World()
    tools = world.tools()

    def train_many(lm, jobs, **more):
        if jobs[0].method.name == "stacked":
            raise ValueError("Cannot apply chat template to an empty conversation.")
        return tools.train_many(lm, jobs, **more)

    found = compare(FakeLM(), fake_task(), METHODS, out=tmp_path, seeds=2, tools=replace(tools, train_many=train_many))
    reason = "it ended in an unexpected ValueError: Cannot apply chat template to an empty conversation."
    assert [(f.method, f.seed, f.reason) for f in found.failures] == [("stacked", 0, reason), ("stacked", 1, reason)]
    assert [line.method for line in found.lines] == [name for name in METHODS if name != "stacked"]
    again = run(World(), tmp_path, seeds=2)
    assert not again.failures and len(again.lines) == len(METHODS)


def test_a_checkpoint_left_behind_is_gone_on_with_by_the_same_stack(tmp_path: Path) -> None:
    first = World(kill_after=4)
    with pytest.raises(Killed):
        run(first, tmp_path, ("stacked",), options=GRID)
    file, resumed = first.checkpoints[0]
    assert file is not None
    assert not resumed
    file.write_bytes(b"state")
    second = World()
    run(second, tmp_path, ("stacked",), options=GRID)
    assert second.checkpoints[0] == (file, True)
    assert [j.name for j in second.calls[0]] == [j.name for j in first.calls[0]], "the stack's jobs, in their order"
    ids = [json.loads(line)["id"] for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(ids) == 9 + 3, "what was recorded before is not recorded twice"


def test_whole_models_leave_no_checkpoint(tmp_path: Path) -> None:
    world = World()
    run(world, tmp_path, ("manual", "fine-tuning"))
    assert {file for file, _ in world.checkpoints} == {None}


def test_a_prompt_that_nothing_trained_is_read_once(tmp_path: Path) -> None:
    world = World()
    found = run(world, tmp_path)
    assert [a.method for a in world.scored].count("manual") == 1
    assert [a.method for a in world.scored].count("stacked") == 3
    manual = next(line for line in found.lines if line.method == "manual")
    assert len(manual.seeds) == 3


def test_artefacts_are_kept_with_their_test_metrics_up_to_a_size(tmp_path: Path) -> None:
    found = run(World(), tmp_path, ("stacked",), options={"stacked": {"length": 3}}, how=CompareOptions(keep_bytes=48))
    for record in found.records:
        assert record.artefact is not None
        artefact = Artefact.load(tmp_path / record.artefact)
        assert artefact.seed == record.seed
        assert artefact.metrics["test"]["accuracy"] == record.metrics["accuracy"]
        assert artefact.metrics["test"]["accuracy_low"] < record.metrics["accuracy"]
    found = run(
        World(), tmp_path / "b", ("stacked",), options={"stacked": {"length": 3}}, how=CompareOptions(keep_bytes=47)
    )
    assert [r.artefact for r in found.records] == [None] * 3
    assert not (tmp_path / "b" / "artefacts").exists()


def test_without_test_no_test_row_is_read(tmp_path: Path) -> None:
    world = World()
    found = run(world, tmp_path, ("stacked",), options=GRID, how=CompareOptions(test=False))
    assert not world.scored
    assert not found.lines[0].metrics
    assert found.lines[0].development["accuracy"] == pytest.approx(0.9)
    tested = run(World(), tmp_path, ("stacked",), options=GRID)
    assert tested.lines[0].metrics["accuracy"].rows == 40


def test_shots_are_drawn_with_the_seed_and_recorded(tmp_path: Path) -> None:
    world = World()
    found = run(world, tmp_path, shots=4)
    hashes = {(r.method, r.seed): r.hashes for r in found.records}
    assert len({h["train"] for h in hashes.values()}) == 3
    assert len({h["test"] for h in hashes.values()}) == 1
    assert {r.rows["train"] for r in found.records} == {r.rows["validation"] for r in found.records} == {8}
    assert {line.k for line in found.lines} == {4}
    by_hand = fake_task().few_shot(4, 2).hashes()
    assert hashes["stacked", 2] == by_hand


def test_several_models_and_rows_with_their_own_options(tmp_path: Path) -> None:
    def rows(part: str) -> list[dict]:
        return [{"text": f"{part} {i}", "choices": ["a", "b"], "label": i % 2} for i in range(30)]

    task = Task(train=rows("x"), validation=rows("y"), test=rows("z"), options="choices", name="picks")
    loaded: list[str] = []

    def later() -> FakeLM:
        loaded.append("second")
        return FakeLM("second", "v")

    found = compare([FakeLM("first"), later], task, ("manual", "stacked"), out=tmp_path, seeds=2, tools=World().tools())
    assert [(line.model, line.method) for line in found.lines] == [
        ("first", "manual"), ("first", "stacked"), ("second", "manual"), ("second", "stacked"),
    ]  # fmt: skip
    assert loaded == ["second"]
    assert set(found.lines[0].metrics) == {"accuracy", "nll", "ece"}
    assert all(r.labels == 0 for r in found.records)


def test_stages_count_every_run_once(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    run(World(), tmp_path, seeds=1, options=GRID)
    world = World(broken=frozenset({("fine-tuning", 1)}))
    run(world, tmp_path, seeds=3, options=GRID, on_stage=lambda s: seen.append((s.done, s.total)))
    assert seen[-1] == (15, 15)
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"methods": ("manual", "magic")}, ConfigError, "'magic' is not a method; choose one of manual"),
        ({"methods": ()}, ConfigError, "nothing to compare"),
        ({"options": {"lora": {"rank": 4}}}, ConfigError, "'lora', which is not compared"),
        ({"options": {"stacked": {"num_virtual_tokens": 4}}}, ConfigError, "length"),
        ({"options": {"stacked": {"length": []}}}, ConfigError, "grid of option 'length' is empty"),
        ({"options": {"stacked": {"length": [4, "x"]}}}, ConfigError, "length='x'"),
        ({"seeds": 0}, ConfigError, "names no seed"),
        ({"lm": []}, ConfigError, "no model"),
        ({"task": fake_task().with_(test=())}, DataError, "no test rows"),
        ({"task": fake_task().with_(validation=()), "options": GRID}, DataError, "no development rows"),
        ({"shots": 31}, DataError, "31"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_met_are_refused_before_anything_is_trained(
    tmp_path: Path, change: dict, error: type[Exception], says: str
) -> None:
    world = World()
    methods = change.get("methods", METHODS)
    with pytest.raises(error) as raised:
        run(world, tmp_path / "x", methods, **{k: v for k, v in change.items() if k != "methods"})
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not world.calls
