"""Lines and the text made of them. Run: python -m pytest tests/evaluation/test_report.py"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foreword.errors import ConfigError
from foreword.evaluation import report
from foreword.evaluation.plots import plot_accuracy
from foreword.evaluation.predictions import Scored
from foreword.evaluation.records import Record, Timing
from foreword.evaluation.statistics import Interval
from foreword.evaluation.summary import TableRow, summarise
from foreword.tasks.label_metrics import all_metrics
from tests.evaluation.test_records import record

ROWS = 300
LABEL_R = np.arange(ROWS) % 2
EASE_R = np.random.default_rng(0).random(ROWS)


def planted(method: str, seed: int, skill: float, **changes) -> tuple[Record, np.ndarray]:
    """A run that is right on the easiest `skill` part of the rows, but for a few that depend on the seed."""
    right_R = (EASE_R + np.random.default_rng([seed, *method.encode()]).normal(0, 0.05, ROWS)) < skill
    said_R = np.where(right_R, LABEL_R, 1 - LABEL_R)
    logprob_RC = np.log(np.where(said_R[:, None] == np.arange(2), 0.8, 0.2))
    made = record(
        seed,
        id=f"{method}-{seed}-{sorted(changes.items())}",
        method=method,
        metrics=all_metrics(logprob_RC, LABEL_R),
        rows={"train": 100, "validation": 10, "test": ROWS},
        timing=Timing(2.0 + seed, 1, 50.0),
        **{"task": "reviews", **changes},
    )
    return made, logprob_RC


def lines_of(runs: list[tuple[Record, np.ndarray]]) -> list[TableRow]:
    kept = {made.id: logprob_RC for made, logprob_RC in runs}
    return summarise([made for made, _ in runs], lambda r: Scored(kept[r.id], LABEL_R) if r.id in kept else None)


@pytest.fixture(scope="module")
def lines() -> list[TableRow]:
    skills = {"manual": 0.60, "prompt-tuning": 0.61, "prefix-tuning": 0.75, "lora": 0.5, "fine-tuning": 0.75}
    return lines_of([planted(name, seed, skill) for name, skill in skills.items() for seed in range(3)])


def test_means_and_differences_are_those_of_the_runs(lines: list[TableRow]) -> None:
    by_name = {line.method: line for line in lines}
    assert [*by_name] == ["manual", "prompt-tuning", "prefix-tuning", "lora", "fine-tuning"]
    runs = {name: [planted(name, s, k)[0] for s in range(3)] for name, k in (("manual", 0.6), ("prefix-tuning", 0.75))}
    means = {name: np.mean([r.metrics["accuracy"] for r in some]) for name, some in runs.items()}
    prefix = by_name["prefix-tuning"]
    assert prefix.metrics["accuracy"].mean == pytest.approx(means["prefix-tuning"])
    assert prefix.versus["manual"].mean == pytest.approx(means["prefix-tuning"] - means["manual"])
    assert prefix.versus["manual"].shown
    assert not prefix.versus["fine-tuning"].shown
    assert by_name["lora"].versus["manual"].high < 0
    assert "manual" not in by_name["manual"].versus
    assert prefix.train_seconds == pytest.approx(3.0)


def test_the_text_says_which_differences_are_not_shown(lines: list[TableRow]) -> None:
    told = report.notes(lines)
    assert any(re.search(r"Not shown: a difference between prompt-tuning and manual \([+-]\d", line) for line in told)
    assert any("between prefix-tuning and fine-tuning" in line for line in told)
    assert any(line.startswith("lora is below the hand-written prompt") for line in told)
    assert not any("prefix-tuning and manual" in line for line in told)
    text = report.markdown(lines)
    row = next(line for line in text.splitlines() if line.startswith("| prompt-tuning"))
    assert row.count(" = |") == 1, "unlike manual it is not, fine-tuning it is shown to be"
    assert "300 test rows" in text
    assert "3 seeds" in text


def test_markdown_is_a_table_whatever_the_names_hold(lines: list[TableRow]) -> None:
    odd = [replace(line, method=f"a|b {line.method}") for line in lines]
    text = report.markdown(odd)
    table = [line for line in text.splitlines() if line.startswith("|")]
    counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert len(table) == 7
    assert len(counts) == 1
    headers, rows = report.table(lines)
    assert all(len(row) == len(headers) for row in rows)
    assert not any("nan" in cell for row in rows for cell in row)


def test_only_equal_rows_are_compared() -> None:
    other = {"hashes": {"train": "a", "validation": "b", "test": "other"}}
    runs = [planted("manual", 0, 0.6), planted("prompt-tuning", 0, 0.9, **other)]
    assert [line.versus for line in lines_of(runs)] == [{}, {}]
    runs = [planted("manual", 0, 0.6, k=4), planted("prompt-tuning", 0, 0.9, k=16)]
    assert [line.versus for line in lines_of(runs)] == [{}, {}]
    runs = [planted("manual", 0, 0.6), planted("prompt-tuning", 1, 0.9)]
    assert [line.versus for line in lines_of(runs)] == [{}, {}], "no seed in common"
    runs = [*(planted("manual", s, 0.6) for s in (0, 1, 2)), *(planted("prompt-tuning", s, 0.9) for s in (1, 2, 3))]
    assert lines_of(runs)[1].versus["manual"].seeds == 2


def test_the_last_result_of_a_seed_stands_and_lost_predictions_leave_no_number() -> None:
    first, second = planted("manual", 0, 0.2, config={"length": 1}), planted("manual", 0, 0.9, config={"length": 2})
    (line,) = lines_of([first, second])
    assert line.metrics["accuracy"].mean == pytest.approx(second[0].metrics["accuracy"])
    lost = planted("lora", 0, 0.5)[0]
    (line,) = summarise([lost], lambda r: None)
    assert line.metrics == {}
    assert "no test row was read" in report.markdown([line])


def test_models_tasks_and_shots_get_columns_when_they_differ() -> None:
    runs = [
        planted("manual", 0, 0.6),
        planted("manual", 0, 0.7, model="larger", model_numbers=3_000_000_000, kind="causal"),
        planted("manual", 0, 0.7, task="news", k=16, synthetic=True),
    ]
    headers, rows = report.table(lines_of(runs))
    assert headers[:5] == ["model", "parameters", "task", "training rows", "method"]
    assert rows[1][:5] == ["larger, causal", "3.0B", "reviews", "100 training rows", "manual"]
    assert rows[2][3] == "16 shots a label"
    assert "synthetic" in report.caption(lines_of(runs))


def test_choices_of_a_grid_are_told() -> None:
    grid = [(0, 10), (1, 20), (2, 20)]
    runs = [planted("prompt-tuning", s, 0.7, point={"length": n}, tried=2, allowed=4) for s, n in grid]
    headers, rows = report.table(lines_of(runs))
    cells = dict(zip(headers, rows[0], strict=True))
    assert cells["tried"] == "2 of 4"
    assert cells["chosen"] == "length=20 (2); length=10 (1)"
    assert any("4 grid points" in note for note in report.notes(lines_of(runs)))


def test_nothing_finished_is_said() -> None:
    assert report.markdown([]) == "No run has finished.\n"
    with pytest.raises(ConfigError, match=r"no run was tested"):
        plot_accuracy([], "x.png")


def test_a_plot_is_drawn(lines: list[TableRow], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = plot_accuracy([*lines, replace(lines[0], task="other")], tmp_path / "x.svg")
    drawn = file.read_text()
    assert drawn.count("prefix-tuning") == 1
    assert "other, m (masked)" in drawn
    with pytest.raises(ConfigError, match="cannot be drawn"):
        plot_accuracy(lines, tmp_path / "x.nonsense")


def test_count() -> None:
    assert [report.count(n) for n in (999, 1_234, 22_700_000, 7_000_000_000)] == ["999", "1.2K", "22.7M", "7.0B"]
    assert report.points(Interval(0.1, -0.05, 0.2, 1, 1)) == "+10.0 [-5.0, +20.0]"


def test_the_key_of_the_matrix_says_what_the_numbers_and_the_intervals_are(lines: list[TableRow]) -> None:
    assert "Test accuracy in percent, with 95% intervals over the choice of test rows and of seeds." in report.matrix(
        lines
    )
    alone = lines_of([planted("manual", 0, 0.6)])
    assert "over test rows alone, since one seed shows no spread." in report.matrix(alone)
    nist = [replace(line, metrics={"nist": line.metrics["accuracy"]}) for line in alone]
    assert "Test NIST, with 95% intervals" in report.matrix(nist)


def test_lines_of_other_weights_are_another_question() -> None:
    runs = [planted("manual", 0, 0.6), planted("manual", 1, 0.6, fingerprint={"weights": "others"})]
    assert len({line.question for line in lines_of(runs)}) == 2
