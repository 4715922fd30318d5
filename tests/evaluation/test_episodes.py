"""Arms on the same episodes, with null controls. Run: python -m pytest tests/evaluation/test_episodes.py"""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from foreword.errors import ArtefactError, ConfigError
from foreword.evaluation import episode_comparison as module
from foreword.evaluation.episode_comparison import RESULTS, EpisodeArm, EpisodeScores, Protocol, arms_of, measure_arms
from foreword.evaluation.episode_report import lines_of, markdown, over, resampled
from foreword.inference.scoring import score_rows
from foreword.methods.meta.adapted_start import adapt_start, leaves_of, rates_for
from foreword.methods.meta.episode_rows import EpisodeRows
from foreword.methods.meta.inner_loop import gradient
from foreword.methods.meta.meta_gradient import spread
from foreword.methods.registry import train
from foreword.models.load import load
from foreword.tasks.episodes import EpisodeSource
from foreword.tasks.rows import Row
from foreword.tasks.task import Task
from tests.methods.meta.test_metaprompting import SHORT, TINY, many_classes
from tests.seeds import new_seed

QUICK = Protocol(episodes=3, validation=2, steps=2, rates=(0.1, 0.5), fine_tuning_rates=(1e-3,))


def source_of(task: Task, **sizes) -> EpisodeSource:
    return EpisodeSource((task,), **{"ways": 3, "shots": 2, "queries": 3, **sizes})


def start_of(**options):
    return train(TINY["masked"], many_classes(), "metaprompting", **{**SHORT, "ways": 3, **options}).artefact


def test_an_adapted_arm_is_prompt_tuning_on_the_episode(tmp_path):
    """Right answers of every class, against the method a person would use on the same rows, episode by episode."""
    lm, start = TINY["masked"], start_of()
    source = source_of(many_classes())
    form = many_classes().format("masked")
    protocol = replace(QUICK, rates=(0.5,), validation=0)
    [found] = measure_arms(lm, source, [form], [EpisodeArm("x", "adapted", start)], protocol, out=tmp_path)
    for number, episode in enumerate(source.episodes("test", 0, 3)):
        task = source.as_task("test", episode)
        made = train(
            lm, task, "prompt-tuning", init=start, form=task.format("masked", start.format.template.source),
            optimizer="sgd", learning_rate=0.5, steps=2, batch_size=6, clip=0, keep="last", eval_every=2,
        )  # fmt: skip
        guess = score_rows(lm, [(made.artefact, task.test)])[0].argmax(1).tolist()
        right = [sum(g == r.label == c for g, r in zip(guess, task.test, strict=True)) for c in range(3)]
        assert tuple(right) == found.right_EN[number]
        assert found.classes_EN[number] == tuple(f"classes: {name}" for name in task.labels)
    assert found.queries_E == (3, 3, 3)


def test_every_arm_is_measured_on_the_same_episodes_and_not_twice(tmp_path, monkeypatch):
    lm, source, form = TINY["masked"], source_of(many_classes()), many_classes().format("masked")
    starts = {"maml": [start_of(seed=0), start_of(seed=1)], "multitask": [start_of(algorithm="multitask")],
              "pool": [start_of(pool=2)]}  # fmt: skip
    arms = arms_of(starts, ["zero-step", "adapted", "prototypes", "fine-tuning"])
    assert [a.label for a in arms][-2:] == ["prototypes", "fine-tuning"]
    told: list[str] = []
    found = measure_arms(lm, source, [form], arms, QUICK, out=tmp_path, tell=told.append)
    assert {m.hash for m in found} == {source.hash("test", source.episodes("test", 0, 3))}
    assert all(m.rate in (0.1, 0.5) for m in found if m.how == "adapted")
    assert sum("validation" in line for line in told) == 2 * 4

    def again(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(module, "_answers", again)
    once_more = measure_arms(lm, source, [form], arms, QUICK, out=tmp_path)
    assert [(m.arm, m.rate, m.right_EN) for m in once_more] == [(m.arm, m.rate, m.right_EN) for m in found]
    with pytest.raises(AssertionError, match="again"):
        measure_arms(lm, source, [form], arms, replace(QUICK, seed=1), out=tmp_path)
    lines = lines_of(found, over(source, "test"))
    assert next(x for x in lines if x.arm == "maml" and x.how == "adapted").accuracy.seeds == 2
    assert "multitask" in next(x for x in lines if x.arm == "maml" and x.how == "adapted").versus
    assert "fine-tuning" in markdown(lines, "episodes", 3)
    for some, said in (
        (lines, "episodes and seeds, over episodes alone where there is one seed."),
        ([x for x in lines if x.accuracy.seeds == 2], "episodes and seeds."),
        ([x for x in lines if x.accuracy.seeds == 1], "episodes alone, since one seed shows no spread."),
    ):
        assert markdown(some, "episodes", 3).endswith(f"95% intervals over {said}")
    kept = (tmp_path / RESULTS).read_text().splitlines()
    assert len({json.loads(line)["key"] for line in kept}) == len(kept)
    with pytest.raises(ConfigError, match="no validation episodes"):
        measure_arms(lm, source, [form], arms, replace(QUICK, validation=0, episodes=2), out=tmp_path)
    with pytest.raises(ArtefactError, match="made for a masked model"):
        measure_arms(TINY["causal"], source, [many_classes().format("causal")], arms[:1], QUICK, out=tmp_path)


def shuffled(task: Task, seed: int) -> Task:
    """Labels permuted within each split: rows say nothing of them."""
    rng = random.Random(seed)
    changes = {}
    for split in ("train", "validation", "test"):
        labels = [row.label for row in task.rows(split)]
        rng.shuffle(labels)
        changes[split] = tuple(Row(r.fields, n, (), r.where) for r, n in zip(task.rows(split), labels, strict=True))
    return task.with_(**changes)


def test_shuffled_labels_give_chance_and_true_ones_do_not(tmp_path):
    """The null control: with labels drawn anew nothing is known of a query, adapted or not."""
    lm = load("foreword-mini")
    task = many_classes(new_seed(), rows=12, noise=False)
    start = train(lm, task, "metaprompting", **{**SHORT, "ways": 3, "algorithm": "vocabulary"}).artefact
    arms = [EpisodeArm("s", "adapted", start), EpisodeArm("prototypes", "prototypes")]
    protocol = Protocol(episodes=24, validation=0, steps=2, rates=(0.3,))
    form = task.format("masked")
    true, null = (
        measure_arms(lm, source_of(t, shots=3, queries=6), [form], arms, protocol, out=tmp_path / name)
        for name, t in (("true", task), ("null", shuffled(task, 1)))
    )
    assert true[1].accuracy_E.mean() > 0.7, "the control of the control: prototypes know the nouns"
    for measured in null:
        # Three classes; 24 episodes of 18 rows that share 36 rows in all, so the interval is that of the rows.
        assert abs(measured.accuracy_E.mean() - 1 / 3) < 0.25


def measured(arm: str, right: list[tuple[int, ...]], how: str = "adapted", **more) -> EpisodeScores:
    classes = tuple(tuple(f"c{(e + n) % 4}" for n in range(len(r))) for e, r in enumerate(right))
    return EpisodeScores(arm, how, None, 0.1, "test", more.get("hash", "h"), classes, tuple(right), (10,) * len(right))


def test_differences_are_paired_and_said_to_be_shown_only_if_they_are():
    rng = np.random.default_rng(0)
    base = [tuple(int(x) for x in rng.integers(0, 8, 2)) for _ in range(40)]
    better = [tuple(x + 1 for x in r) for r in base]
    noise = [tuple(int(x) for x in rng.integers(0, 8, 2)) for _ in range(40)]
    found = [measured("multitask", base), measured("maml", better), measured("other", noise), measured("maml", better)]
    lines = {line.arm: line for line in lines_of(found, "episodes")}
    apart = lines["maml"].versus["multitask"]
    assert (apart.mean, apart.low, apart.high) == pytest.approx((0.1, 0.1, 0.1))
    assert lines["maml"].verdict("multitask") == "shown better"
    assert lines["other"].verdict("multitask") == "not shown"
    assert lines["multitask"].versus == {}
    assert lines["multitask"].accuracy.mean == pytest.approx(np.mean([sum(r) / 20 for r in base]))
    with pytest.raises(ConfigError, match="different episodes"):
        lines_of([measured("a", base), measured("b", base, hash="other")], "episodes")


def test_of_unequal_numbers_of_seeds_those_that_both_arms_have_are_paired():
    base = [[(seed, seed)] * 20 for seed in (1, 3, 8)]  # the right answers of three seeds
    found = [measured("multitask", b) for b in base]
    found += [measured("two", [(x + 1, y + 1) for x, y in b]) for b in base[:2]]
    found += [measured("one", [(5, 5)] * 20)]
    lines = {line.arm: line for line in lines_of(found, "episodes")}
    two = lines["two"].versus["multitask"]
    assert (two.mean, two.low, two.high, two.seeds) == pytest.approx((0.1, 0.1, 0.1, 2))
    assert lines["one"].versus["multitask"].mean == pytest.approx(0.5 - 0.4)


def test_intervals_over_classes_are_wider_where_classes_differ():
    """Four classes, always right or never: resampling forty episodes would pretend to know them well."""
    right = [tuple(10 if (e + n) % 4 < 2 else 0 for n in range(2)) for e in range(40)]
    one = measured("x", right)
    by_class, by_episode = resampled(one, "classes"), resampled(one, "episodes")
    assert by_class.point == by_episode.point == pytest.approx(0.5)
    assert by_class.draws_D.std() > 2 * by_episode.draws_D.std()
    assert by_class.rows == 4
    source = source_of(many_classes(rows=8))
    assert over(source, "test") == "episodes"
    assert over(source_of(many_classes(rows=8), shots=3, queries=5), "test") == "classes"


def test_random_support_labels_give_no_gain_over_the_start_as_it_is():
    """Adapted on true rows with labels drawn anew, though the support is fitted: the loss on it falls."""
    lm, task = load("foreword-mini"), many_classes(5, rows=10)
    start = train(lm, task, "metaprompting", **{**SHORT, "ways": 3, "algorithm": "vocabulary"}).artefact
    source = source_of(task, shots=3, queries=6)
    leaves, extra, lens = leaves_of(lm, start)
    deck = EpisodeRows(
        lm, source, [replace(start.format, labels=task.labels, words=task.format("masked").words)], extra
    )
    episodes = source.episodes("test", 0, 8)
    support, query = (deck.folds("test", episodes, (part,)) for part in ("support", "query"))
    drawn = random.Random(new_seed())
    wrong = [replace(row, label=drawn.randrange(3)) for row in support]
    rates, budget = rates_for(start, leaves, 1.0), 2_000
    fitted = adapt_start(lens, leaves, wrong, 8, rates, 5, budget)
    losses = [float(gradient(lens.loss(wrong, (), 8, budget), at)[0].mean()) for at in (spread(leaves, 8), fitted)]
    assert losses[1] < losses[0]
    accuracy = []
    for at in (spread(leaves, 8), fitted):
        scores = lens.scores(at, wrong, query, budget)
        accuracy.append(np.mean([int(s.argmax()) == row.label for s, row in zip(scores, query, strict=True)]))
    assert accuracy[1] <= accuracy[0] + 0.1
