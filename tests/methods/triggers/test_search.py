"""python -m pytest tests/methods/triggers/test_search.py

Acceptance tests 6 to 9, 12, 19, 20 and 23: optima by enumeration, a planted key, losses that fall and are what the log
says, a frozen model, test labels that do not matter, resuming, and better than the published loop at equal cost.
"""

import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr, ttest_rel

from foreword.errors import ForewordError
from foreword.inference.scoring import score_rows
from foreword.methods.registry import train
from foreword.methods.triggers.beam_search import State, descend
from foreword.methods.triggers.gradients import embeddings_of, first_order, slot_gradient
from foreword.tasks.label_metrics import accuracy
from foreword.training.trainer import TrainingInterrupted
from tests.methods.triggers.test_losses import library_loss
from tests.methods.triggers.trigger_setups import Planted, field_of, plan, planted_key, word_lm, word_task
from tests.seeds import new_seed

SEED = new_seed()


def searched(field, start=None, **options) -> State:
    start = start or tuple(field.allowed_A[:2].tolist())
    state = State.at(start, field.pool.losses([start])[0])
    return descend(field, plan(**options), state, lambda s: None)


def test_an_exhaustive_search_ends_where_no_single_swap_is_better():
    lm, _ = word_lm("causal", 53, seed=SEED)
    field = field_of(lm, word_task(53, SEED))
    tokens = field.allowed_A.tolist()
    state = searched(field, candidates=2 * len(tokens), steps=60, patience=60)
    best, loss = state.best
    swaps = [(*best[:s], t, *best[s + 1 :]) for s in (0, 1) for t in tokens if t != best[s]]
    assert len(swaps) == 2 * (len(tokens) - 1)
    assert min(field.pool.losses(swaps)) >= loss - 1e-12
    assert loss == pytest.approx(field.pool.losses([best])[0], abs=1e-12)


def optima_found(models: int) -> int:
    """In how many of so many random models a beam with restarts ends at the best of all prompts of two words."""
    found = 0
    for seed in range(models):
        lm, _ = word_lm("causal", 12, seed=SEED + seed, width=8)
        field = field_of(lm, word_task(12, seed, rows=3), seed)
        every = list(itertools.product(field.allowed_A.tolist(), repeat=2))
        state = searched(field, candidates=10, beam=3, restarts=4, patience=3, steps=60, swaps=2)
        found += state.best[1] <= min(field.pool.losses(every)) + 1e-10
    return found


def test_a_beam_with_restarts_finds_the_best_of_all_prompts():
    assert optima_found(3) >= 2


@pytest.mark.slow
def test_a_beam_with_restarts_finds_it_in_nine_of_ten_of_fifty_models():
    assert optima_found(50) >= 45


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_the_loss_kept_only_falls_and_every_loss_in_the_log_is_the_library_s(kind):
    lm, model = word_lm(kind, 30, seed=SEED)
    field = field_of(lm, word_task(30, SEED), length=3)
    state = searched(field, tuple(field.allowed_A[:3].tolist()), steps=8, restarts=1, patience=2, swaps=2)
    kept = [loss for _, loss in state.passed]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(kept)
    assert kept[-1] == state.best[1]
    for step in state.trace:
        assert step["loss"] == pytest.approx(library_loss(model, field, tuple(step["prompt"]), "class"), abs=1e-6)
        if step["accepted"]:
            now = library_loss(model, field, tuple(step["tried"]), "class")
            assert step["true"] == pytest.approx(now - step["loss"], abs=1e-6) and step["true"] < 0


@pytest.fixture(scope="module")
def planted():
    return {kind: planted_key(kind, SEED + n, words=2000) for n, kind in enumerate(("causal",))}


def found_and_by_chance(made: Planted) -> tuple[int, int]:
    """In how many of three searches the key is found, and in how many drawings of prompts at equal cost."""
    found, by_chance = 0, 0
    for seed in range(3):
        field = field_of(made.lm, made.task, seed, length=2, gradient_rows=32)
        rng = random.Random(seed)
        tokens = [t for t in field.allowed_A.tolist() if t != made.key]
        state = searched(field, tuple(rng.sample(tokens, 2)), steps=24, candidates=8, patience=3, restarts=3)
        found += made.key in state.best[0]
        drawn = [tuple(rng.choices(field.allowed_A.tolist(), k=2)) for _ in range(state.read // field.pool.rows)]
        losses = field.pool.losses(drawn)
        by_chance += made.key in drawn[losses.index(min(losses))]
    return found, by_chance


def test_a_planted_key_is_found_and_chance_at_equal_cost_does_not_find_it():
    """The key is one of 2,000 words; the searches find it in the rows that they may read, in three models of five.

    In a few drawn models of a hundred, the slopes at nearly all prompts hide the key: no search finds it there; in the
    others all or nearly all do.
    """
    seen: list[tuple[int, int, int]] = []
    while max(good := sum(found >= 2 for _, found, _ in seen), len(seen) - good) < 3:
        seed = new_seed()
        seen.append((seed, *found_and_by_chance(planted_key("causal", seed, words=2000))))
    assert good == 3, seen
    assert sum(found for _, found, _ in seen) > sum(by_chance for _, _, by_chance in seen), seen


def test_the_projected_descent_ends_below_its_start(planted):
    made = planted["causal"]
    artefact = train(made.lm, made.task, "pez", seed=SEED, length=2, steps=40, eval_every=4).artefact
    steps = [s["loss"] for s in artefact.trace["projections"] if s["loss"] is not None]
    assert steps and artefact.metrics["pool_loss"] <= min(steps) + 1e-6
    assert artefact.metrics["validation"]["accuracy"] >= artefact.metrics["manual_validation_accuracy"]


def test_predicted_changes_rank_as_true_ones_and_beat_chance(planted):
    made = planted["causal"]
    field = field_of(made.lm, made.task, SEED, length=2)
    rng = random.Random(SEED)
    predicted, true, best, drawn = [], [], [], []
    for _ in range(40):
        now = tuple(rng.choices(field.allowed_A.tolist(), k=2))
        _, grad_PD = slot_gradient(made.lm, field.pool.blocks, embeddings_of(made.lm, now), "class")
        change_PA = first_order(made.lm, grad_PD, now, field.allowed_A)
        [loss] = field.pool.losses([now])
        order = change_PA[0].argsort()[:8].tolist()
        picks = order + rng.sample(range(len(field.allowed_A) - 1), 34)
        prompts = [(int(field.allowed_A[i]), now[1]) for i in picks]
        changes = [value - loss for value in field.pool.losses(prompts)]
        good = [i for i, p in enumerate(picks) if np.isfinite(float(change_PA[0, p]))]
        predicted += [float(change_PA[0, picks[i]]) for i in good]
        true += [changes[i] for i in good]
        best.append(float(np.mean(changes[:8])))
        drawn.append(float(np.mean(changes[8:])))
    correlation, p = spearmanr(predicted, true)
    assert len(true) >= 1600 and correlation > 0 and p < 1e-6, (SEED, correlation, p)
    assert ttest_rel(best, drawn, alternative="less").pvalue < 0.01, SEED


@pytest.mark.slow
def test_at_equal_cost_it_does_better_than_the_published_loop_and_than_chance(planted, capsys):
    """Development rows choose, test rows are read: 5 seeds, intervals printed."""
    made = planted["causal"]
    lm, task = made.lm, made.task
    label = np.array([row.label for row in task.test])

    def reached(artefact) -> float:
        return accuracy(score_rows(lm, [(artefact, task.test)])[0].double().numpy(), label)

    ours, theirs, chance, manual = [], [], [], []
    for seed in range(5):
        options = {"length": 2, "candidates": 8}
        mine = train(lm, task, "autoprompt", seed=seed, steps=8, gradient_rows=32, **options).artefact
        rows = mine.metrics["rows_read"]
        steps = max(1, rows // (9 * 32))
        paper = train(
            lm, task, "autoprompt", seed=seed, steps=steps, variant="paper", accumulation=1, **options
        ).artefact
        assert paper.metrics["rows_read"] >= rows - 9 * 32
        ours.append(reached(mine))
        theirs.append(reached(paper))
        words = " ".join(f"w{n}" for n in random.Random(seed).sample(range(2000), 2))
        drawn = task.with_(template={"causal": f"{{text}} {words} {{answer}}"})
        chance.append(reached(train(lm, drawn, "manual").artefact))
        manual.append(reached(train(lm, task, "manual").artefact))
    rng = np.random.default_rng(0)
    for name, values in (("published", theirs), ("random", chance), ("manual", manual)):
        draws = [np.mean(rng.choice(np.array(ours) - values, 5)) for _ in range(2000)]
        with capsys.disabled():
            print(f"\nours minus {name}: {np.mean(ours) - np.mean(values):+.3f}", np.quantile(draws, [0.025, 0.975]))
        assert np.mean(ours) >= np.mean(values), (SEED, name)
    assert np.mean(ours) > max(np.mean(chance), np.mean(manual)), SEED


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_a_killed_search_goes_on_to_the_same_artefact(kind, tmp_path):
    lm, _ = word_lm(kind, 30, seed=SEED)
    task = word_task(30, SEED, rows=10)
    options = {"length": 2, "steps": 6, "candidates": 6}
    for method in ("autoprompt", "pez"):
        more = {k: v for k, v in options.items() if k != "candidates" or method == "autoprompt"}
        if method == "pez":
            more["eval_every"] = 1
        whole = train(lm, task, method, seed=3, **more).artefact

        def stop(step) -> None:
            if step.step == 3:
                raise KeyboardInterrupt

        file = tmp_path / method
        with pytest.raises(TrainingInterrupted):
            train(lm, task, method, seed=3, progress=stop, checkpoint=file, **more)
        assert file.exists()
        with pytest.raises(ForewordError, match="another run"):
            train(lm, task, method, seed=4, checkpoint=file, resume=True, **more)
        again = train(lm, task, method, seed=3, checkpoint=file, resume=True, **more).artefact
        assert not file.exists()
        saved = [a.save(tmp_path / f"{method}-{n}") for n, a in enumerate((whole, again))]
        records = [json.loads((folder / "foreword.json").read_text()) for folder in saved]
        assert records[0] == records[1]
        assert (saved[0] / "prompt.safetensors").read_bytes() == (saved[1] / "prompt.safetensors").read_bytes()


def test_killed_between_rounds_label_words_and_prompt_end_in_the_same_artefact(tmp_path):
    """In the second round too, with the words of all rounds in the trace."""
    lm, _ = word_lm("masked", 30, seed=SEED)
    task = word_task(30, SEED, rows=10)
    options = {"length": 2, "steps": 4, "candidates": 4, "label_words": "search", "rounds": 2, "init": "manual"}
    whole = train(lm, task, "autoprompt", seed=3, **options).artefact
    for killed_at in (1, 3):
        file = tmp_path / f"at-{killed_at}"

        def stop(step, at=killed_at) -> None:
            if step.step == at:
                raise KeyboardInterrupt

        with pytest.raises(TrainingInterrupted):
            train(lm, task, "autoprompt", seed=3, progress=stop, checkpoint=file, **options)
        again = train(lm, task, "autoprompt", seed=3, checkpoint=file, resume=True, **options).artefact
        assert len(again.trace["words"]) >= 2
        records = [a.save(tmp_path / f"{killed_at}-{n}") / "foreword.json" for n, a in enumerate((whole, again))]
        assert records[0].read_bytes() == records[1].read_bytes()


def test_the_batch_size_does_not_change_what_is_found(monkeypatch):
    lm, _ = word_lm("causal", 30, seed=SEED)
    task = word_task(30, SEED, rows=10)
    found = []
    for tokens in (1024, 7):
        monkeypatch.setattr(type(lm), "batch_tokens", property(lambda self, tokens=tokens: tokens))
        field = field_of(lm, task, length=2)
        found.append([(s["tried"], s["accepted"]) for s in searched(field, steps=6).trace])
    assert found[0] == found[1]


def test_test_labels_do_not_matter_and_the_manual_prompt_is_never_beaten_by_what_is_kept():
    """The result is at least the manual prompt on development rows, for a model that has learnt nothing."""
    for seed in range(2):
        lm, _ = word_lm("causal", 30, seed=SEED + seed)
        task = word_task(30, SEED + seed, rows=12, test=8)
        other = task.with_(test=tuple(replace(r, label=1 - (r.label or 0)) for r in task.test))
        one, two = (train(lm, t, "autoprompt", seed=1, length=2, steps=2, candidates=6).artefact for t in (task, other))
        assert one.trace == two.trace and one.format == two.format
        validation = one.metrics["validation"]
        assert validation["accuracy"] >= one.metrics["manual_validation_accuracy"]
        manual = train(lm, task, "manual").artefact.metrics["validation"]
        assert (validation["accuracy"], -validation["nll"]) >= (manual["accuracy"], -manual["nll"] - 1e-6)
        assert 0 <= one.metrics["left_their_start"] <= one.metrics["searches"]


def test_the_model_is_as_it_was_even_after_an_error(monkeypatch):
    lm, model = word_lm("causal", 30, seed=SEED)
    task = word_task(30, SEED)

    def state():
        own = {k: v.clone() for k, v in model.state_dict().items()}
        return own, [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]

    before = state()
    train(lm, task, "autoprompt", length=2, steps=2, candidates=4)
    monkeypatch.setattr(
        "foreword.methods.triggers.beam_search.first_order", lambda *a: (_ for _ in ()).throw(OSError("x"))
    )
    with pytest.raises(OSError, match="x"):
        train(lm, task, "autoprompt", length=2, steps=2, candidates=4)
    after = state()
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("method", ["autoprompt", "pez"])
def test_a_template_with_slots_has_no_manual_accuracy(method):
    lm, _ = word_lm("causal", 30, seed=SEED)
    task = word_task(30, SEED, rows=10).with_(template={"causal": "{text} {soft:2} {answer}"})
    options = {"steps": 2} if method == "autoprompt" else {"steps": 2, "eval_every": 1}
    metrics = train(lm, task, method, **options).artefact.metrics
    assert "manual_validation_accuracy" not in metrics and metrics["kept"] == "found"
