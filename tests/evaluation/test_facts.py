"""Facts of several relations through one model. python -m pytest tests/evaluation/test_facts.py"""

import importlib
import json
import random

import numpy as np
import pytest
import torch

import foreword
from foreword.core.artefact import Artefact
from foreword.evaluation import facts as lines
from foreword.inference.scoring import score_rows
from foreword.tasks.label_metrics import ranks
from foreword.tasks.relations import Facts, read_facts
from tests.methods.triggers.trigger_setups import word_lm


@pytest.fixture
def folder(tmp_path):
    """Two relations with training rows and one without; objects of one piece and one of two."""
    rng = random.Random(1)
    for split, count in (("train", 8), ("validation", 4), ("test", 6)):
        rows = []
        for relation, objects in (("P1", ["w1", "w2", "w3"]), ("P2", ["w4", "w5"]), ("P3", ["w1", "w6", "w7 w8"])):
            if relation == "P3" and split != "test":
                continue
            for n in range(count):
                subject = f"w{10 + n} w{rng.randrange(20)} {relation[-1] and 'w9'}"
                rows.append(
                    {
                        "subject": f"{subject} w{ord(split[1]) % 7}",
                        "object": objects[n % len(objects)],
                        "relation": relation,
                    }
                )
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    told = {"lama_template": "[X] so [Y] .", "pararel_patterns": ["[X] then [Y] .", "[X] a [Y] ."]}
    (tmp_path / "templates.json").write_text(json.dumps(dict.fromkeys(("P1", "P2", "P3"), told)))
    return tmp_path


@pytest.fixture
def lm():
    return word_lm("masked", 30, seed=3, dtype=torch.float32)[0]


def test_all_relations_in_one_batch_are_each_alone(folder, lm):
    asked = lines.ask(lm, read_facts(folder), "relation")
    assert [a.task.labels for a in asked if a.task] == [("w1", "w2", "w3"), ("w4", "w5"), ("w1", "w6")]
    made = dict(zip(("P1", "P2", "P3"), lines.manual(lm, asked), strict=True))
    together = lines.answer(lm, asked, made, "manual", 0)
    for one, found in zip(asked, together, strict=True):
        assert one.task is not None
        score = score_rows(lm, [(made[found.relation], one.task.test)])[0].double().numpy()
        assert found.rank_R.tolist() == ranks(score, np.array([r.label for r in one.task.test])).tolist()


def test_every_object_may_be_a_candidate(folder, lm):
    asked = lines.ask(lm, read_facts(folder), "all")
    assert all(a.task is not None and len(a.task.labels) == 6 for a in asked)


def test_a_paraphrase_is_chosen_on_development_rows(folder, lm):
    asked = lines.ask(lm, read_facts(folder), "relation")
    chosen = lines.best_paraphrase(lm, asked)
    for one, artefact in zip(asked, chosen, strict=True):
        assert one.task is not None
        if not one.task.validation:
            assert artefact.format.template.source == "{subject} so {mask} ."
            continue
        values = {}
        for pattern in (one.relation.template, *one.relation.paraphrases):
            own = lines._written(lm, one.task, pattern.replace("[X]", "{subject}").replace("[Y]", "{mask}"))
            score = score_rows(lm, [(own, one.task.validation)])[0].double().numpy()
            label = np.array([r.label for r in one.task.validation])
            values[own.format.template.source] = float((1 / ranks(score, label)).mean())
        assert values[artefact.format.template.source] == max(values.values())


def test_relations_are_learnt_in_one_stack_and_those_without_rows_say_so(folder, lm):
    asked = lines.ask(lm, read_facts(folder), "relation")
    made = lines.learnt(lm, asked, "prompt-tuning", {"steps": 3, "length": 2}, 0)
    assert isinstance(made["P1"], Artefact) and isinstance(made["P2"], Artefact)
    assert made["P3"] == "no training rows"
    found = lines.answer(lm, asked, {k: v for k, v in made.items() if isinstance(v, Artefact)}, "prompt-tuning", 0)
    assert [f.relation for f in found] == ["P1", "P2"]


def test_the_interval_of_one_relation_is_that_of_its_rows():
    rank_R = np.array([1] * 30 + [5] * 70)
    point, low, high = lines.macro_interval({"P1": rank_R})["p_at_1"]
    assert point == pytest.approx(0.3) and 0.2 < low < 0.25 and 0.35 < high < 0.4


def test_seeds_on_the_same_rows_are_no_more_rows():
    rank_R = np.array([1] * 30 + [5] * 70)
    one = lines.macro_interval({"P1": rank_R})["p_at_1"]
    four = lines.macro_interval({"P1": np.stack([rank_R] * 4)})["p_at_1"]
    as_rows = lines.macro_interval({"P1": np.concatenate([rank_R] * 4)})["p_at_1"]
    apart = lines.macro_interval({"P1": np.stack([rank_R, rank_R * 0 + 1])})["p_at_1"]
    wide = {name: high - low for name, (_, low, high) in {"one": one, "four": four, "rows": as_rows}.items()}
    assert wide["four"] == pytest.approx(wide["one"], abs=0.03) and wide["rows"] < 0.7 * wide["one"]
    assert apart[2] - apart[1] > 0.6  # seeds that disagree


def test_the_recipe_runs_goes_on_and_prints_its_table(folder, lm, tmp_path, capsys, monkeypatch):
    recipe = importlib.import_module("facts")
    monkeypatch.setattr(foreword, "load", lambda *a, **k: lm)
    monkeypatch.setitem(recipe.OPTIONS, "autoprompt", {"steps": 2, "candidates": 4, "length": 2})
    monkeypatch.setitem(recipe.OPTIONS, "prompt-tuning", {"steps": 2, "length": 2})
    given = ["--data", str(folder), "--relations", "all", "--out", str(tmp_path / "out")]
    assert recipe.main(given) == 0
    first = capsys.readouterr().out
    assert "2 of 3 relations, which every arm has; 1 seed(s)" in first and "searches left their start" in first
    assert "| P3 |" in first
    monkeypatch.setattr(lines, "answer", lambda *a: pytest.fail("run again"))
    assert recipe.main(given) == 0
    assert capsys.readouterr().out == first
    monkeypatch.undo()
    monkeypatch.setattr(foreword, "load", lambda *a, **k: lm)
    assert recipe.main([*given, "--evidence", "--arms", "manual"]) == 0
    assert isinstance(read_facts(folder), Facts)
