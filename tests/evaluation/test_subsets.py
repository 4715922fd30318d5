"""Low data: draws of training rows apart from the seeds. Run: python -m pytest tests/evaluation/test_subsets.py"""

import numpy as np
import pytest

from foreword.errors import ConfigError
from foreword.evaluation.compare import compare
from foreword.evaluation.records import Store
from foreword.evaluation.report import markdown
from foreword.evaluation.statistics import interval
from foreword.evaluation.summary import summarise
from foreword.models.tiny import tiny
from tests.planted import planted_texts

OPTIONS = {"prompt-tuning": {"steps": 2, "length": 2, "batch_size": 4, "eval_every": 2}}
METHODS = ("manual", "prompt-tuning")


@pytest.fixture(scope="module")
def task():
    return planted_texts(5, train=40, validation=4, test=12)


@pytest.fixture(scope="module")
def lm():
    return tiny("causal")


def test_every_method_and_seed_has_the_same_subsets(lm, task, tmp_path):
    found = compare(lm, task, METHODS, out=tmp_path, shots=5, subsets=3, seeds=[7, 8], options=OPTIONS)
    assert not found.failures and len(found.records) == 12
    store = Store(tmp_path)
    assert {(r.method, r.details["subset"], r.seed) for r in store.records()} == {
        (method, subset, seed) for method in METHODS for subset in range(3) for seed in (7, 8)
    }
    drawn = {(r.details["subset"], r.hashes["train"]) for r in found.records}
    assert len(drawn) == 3  # a subset is one set of rows, whatever the method and the seed
    assert drawn == {(s, task.few_shot(5, s).hashes()["train"]) for s in range(3)}
    assert all(r.rows["train"] == 5 for r in found.records)
    prompts = {r.id for r in found.records if r.method == "prompt-tuning"}
    assert len(prompts) == 6
    lines = (tmp_path / "results.jsonl").read_bytes()
    compare(lm, task, METHODS, out=tmp_path, shots=5, subsets=3, seeds=[7, 8], options=OPTIONS)
    assert (tmp_path / "results.jsonl").read_bytes() == lines


def test_a_subset_counts_as_the_mean_of_its_seeds(lm, task, tmp_path):
    found = compare(lm, task, METHODS, out=tmp_path, shots=5, subsets=3, seeds=2, options=OPTIONS)
    store = Store(tmp_path)
    line = next(line for line in found.lines if line.method == "prompt-tuning")
    assert line.seeds == (0, 1) and line.subsets == 3
    name = line.primary
    runs = {r.draw: r for r in found.records if r.method == "prompt-tuning"}
    for metric in (name, "f1"):
        means = [np.mean([runs[s, seed].metrics[metric] for seed in (0, 1)]) for s in range(3)]
        assert line.metrics[metric].mean == pytest.approx(np.mean(means))
        assert line.metrics[metric].seeds == 3
    text = markdown(found.lines)
    assert "2 seeds on each of 3 subsets" in text and "the choice of test rows and of subsets" in text
    single = summarise([r for r in found.records if r.details["subset"] == 0], store.predictions)
    assert single[0].subsets == 1 and single[0].metrics[name].seeds == 1


def test_the_interval_is_that_of_subsets_and_not_of_runs():
    """Seeds that agree within each subset make no interval narrower than one seed a subset does."""
    from foreword.evaluation.statistics import Resampled
    from foreword.evaluation.summary import _mean_of

    rng = np.random.default_rng(0)
    points = [0.2, 0.5, 0.8]
    runs = {
        (subset, seed): {"f1": Resampled(point, point + 0.01 * rng.standard_normal(2000), 50)}
        for subset, point in enumerate(points)
        for seed in range(4)
    }
    means = [_mean_of([runs[s, seed] for seed in range(4)])["f1"] for s in range(3)]
    honest, naive = interval(means), interval([run["f1"] for run in runs.values()])
    assert honest.mean == pytest.approx(naive.mean)
    assert honest.high - honest.low > 1.5 * (naive.high - naive.low)


def test_a_draw_with_each_seed_stays_as_it_was(lm, task, tmp_path):
    found = compare(lm, task, ["manual"], out=tmp_path, shots=5, seeds=2)
    assert all("subset" not in r.details and r.draw == (-1, r.seed) for r in found.records)
    assert len({r.hashes["train"] for r in found.records}) == 2
    assert "subset" not in markdown(found.lines)


@pytest.mark.parametrize("asked", [{"subsets": 2}, {"subsets": 0, "shots": 5}])
def test_subsets_need_a_size(lm, task, tmp_path, asked):
    with pytest.raises(ConfigError, match="give both"):
        compare(lm, task, ["manual"], out=tmp_path, **asked)
