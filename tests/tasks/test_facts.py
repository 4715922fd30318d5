"""python -m pytest tests/tasks/test_facts.py

Acceptance test 21: ranks against a table worked out by hand, with ties and a subset of candidates; the control never
keeps an object; facts of a folder and of the embedded library.
"""

import json
import random

import numpy as np
import pytest

from foreword.errors import ConfigError, DataError
from foreword.tasks.label_metrics import rank_metrics, ranks
from foreword.tasks.read import read_task
from foreword.tasks.relations import countries, evidenced, fact_task, perturbed, read_facts, templates_of


def test_ranks_equal_the_table_worked_out_by_hand():
    score = np.array([[3.0, 1.0, 2.0, 0.0], [1.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0], [5.0, 4.0, 3.0, 2.0]])
    label = np.array([0, 1, 2, 3])
    assert ranks(score, label).tolist() == [1, 3, 4, 4]  # a tie counts against the right one
    found = rank_metrics(ranks(score, label))
    assert found["p_at_1"] == 0.25 and found["p_at_10"] == 1.0
    assert found["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 4 + 1 / 4) / 4)
    subset = rank_metrics(ranks(score[:, :3], np.array([0, 1, 2, 0])))  # other candidates, other ranks
    assert subset["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1) / 4)


@pytest.fixture
def folder(tmp_path):
    rng = random.Random(0)
    for split, count in (("train", 12), ("validation", 4), ("test", 8)):
        rows = [
            {"subject": f"Town {split} {n}", "object": rng.choice(["France", "Spain", "Italy"]), "relation": "P17"}
            for n in range(count)
        ]
        rows += [{"subject": f"Sea {n}", "object": "Spain", "relation": "P47"} for n in range(2) if split == "test"]
        rows += [{"subject": "Bay", "object": "Italy", "relation": "P47"} for _ in range(1) if split == "test"]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    told = {"name": "country", "lama_template": "[X] is located in [Y] .", "pararel_patterns": ["[X] lies in [Y]."]}
    borders = {"name": "border", "lama_template": "[Y] borders [X] .", "pararel_patterns": []}
    (tmp_path / "templates.json").write_text(json.dumps({"P17": told, "P47": borders}))
    return tmp_path


def test_a_relation_is_a_task_whose_labels_are_its_objects(folder):
    task = read_task(f"facts:{folder}:P17")
    assert task.labels == ("France", "Italy", "Spain") and task.fields == ("subject",)
    assert [len(task.rows(s)) for s in ("train", "validation", "test")] == [12, 4, 8]
    assert task.format("masked").template.source == "{subject} is located in {mask} ."
    assert task.format("causal").template.source == "{subject} is located in {answer}"
    assert task.format("masked").words[0] == ("France",)
    assert read_task(f"facts:{folder}:P17").hashes() == task.hashes() and task.origin is not None
    facts = read_facts(folder)
    few = fact_task(facts.relation("P17"), ["France", "Spain"])
    assert "Italy" not in few.labels and any("left out" in note for note in few.notes)
    assert not fact_task(facts.relation("P47"), facts.objects).train  # manual and paraphrase arms alone
    assert set(templates_of("[Y] borders [X] .")) == {"masked"}


def test_what_is_wrong_is_said(folder):
    with pytest.raises(ConfigError, match="has no relation 'P1'"):
        read_task(f"facts:{folder}:P1")
    with pytest.raises(DataError, match="once each"):
        templates_of("[X] and [X]")
    (folder / "templates.json").write_text("{}")
    with pytest.raises(DataError, match="no lama_template"):
        read_facts(folder)


@pytest.mark.parametrize("seed", range(3))
def test_the_control_never_keeps_the_object_and_tells_the_new_one(folder, seed):
    relation = read_facts(folder).relation("P17")
    task = evidenced(relation, fact_task(relation, relation.objects), seed)
    other = perturbed(task, seed)
    for split in ("train", "validation", "test"):
        for row, new in zip(task.rows(split), other.rows(split), strict=True):
            old_name, new_name = task.labels[row.label or 0], task.labels[new.label or 0]
            assert new_name != old_name and old_name not in new.fields["context"] and new_name in new.fields["context"]
            assert new.fields["subject"] == row.fields["subject"]
    with pytest.raises(DataError, match="does not hold"):
        perturbed(fact_task(relation, relation.objects))


def test_countries_are_an_embedded_task():
    pytest.importorskip("countryinfo")
    facts = countries()
    assert set(facts.relations) == {"capital", "continent", "currency", "language"}
    capital = {f["subject"]: f["object"] for rows in facts.relations["capital"].facts.values() for f in rows}
    assert capital["France"] == "Paris" and len(capital) > 150
    task = read_task("facts:countries:continent")
    assert {"Africa", "Asia", "Europe"} <= {*task.labels} and min(len(task.train), len(task.test)) > 40
    assert read_task("facts:countries:continent").hashes() == task.hashes()
