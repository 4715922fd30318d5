"""python -m pytest tests/core/test_whereabouts.py"""

from pathlib import Path

import pytest

from foreword.core.data_paths import portable, resolved
from foreword.errors import DataError
from foreword.tasks.read_again import read_again


def recipe(source: str, **more: str) -> dict:
    return {"method": "m", "data": {"source": source, "seed": 3, **more}}


def test_paths_near_the_artefact_are_relative_to_it_and_come_back(tmp_path):
    folder, data = tmp_path / "out" / "x", str(tmp_path / "data" / "a.csv")
    told = portable(recipe(data, classes=str(tmp_path / "split.json")), folder)
    assert told["data"] == {"source": "artefact:../../data/a.csv", "seed": 3, "classes": "artefact:../../split.json"}
    assert resolved(told, folder) == recipe(data, classes=str(tmp_path / "split.json"))
    assert resolved(told, tmp_path / "b" / "y")["data"]["source"] == str(tmp_path / "data" / "a.csv")


def test_what_is_no_absolute_path_stays(tmp_path):
    for source in ("data/a.csv", "builtin:sentiment", "hf:owner/name", "facts:countries:capital"):
        assert portable(recipe(source), tmp_path) == recipe(source)
        assert resolved(recipe(source), tmp_path) == recipe(source)
    assert portable({"method": "m", "data": None}, tmp_path) == {"method": "m", "data": None}


def test_facts_name_a_folder_too(tmp_path):
    told = portable(recipe(f"facts:{tmp_path}/facts:P19"), tmp_path / "x")
    assert told["data"]["source"] == "facts:artefact:../facts:P19"
    assert resolved(told, tmp_path / "x")["data"]["source"] == f"facts:{tmp_path}/facts:P19"


def test_of_other_places_the_home_folder_or_the_name_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/nobody/home/ann"))
    assert portable(recipe("/nobody/home/ann/d/a.csv"), tmp_path)["data"]["source"] == "~/d/a.csv"
    told = portable(recipe("/other/place/a.csv"), tmp_path)
    assert told["data"]["source"] == "elsewhere:a.csv"
    with pytest.raises(DataError, match=r"'a\.csv', in a folder that the artefact does not tell; .* --tasks"):
        read_again(resolved(told, tmp_path)["data"])
