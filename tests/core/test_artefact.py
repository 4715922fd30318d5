"""python -m pytest tests/core/test_artefact.py"""

import json
import os
from dataclasses import replace

import pytest
import torch

from foreword.core.artefact import RECORD, TENSORS, Artefact, check_fits
from foreword.core.format import Format
from foreword.core.prompts import HardPrompt, PrefixPrompt, SoftPrompt, same_prompt
from foreword.core.template import Template
from foreword.core.values import LowRank, Probe, Weights, WordCounts
from foreword.errors import ArtefactError

FORMAT = Format(Template.parse("{text} {soft:3} It was {mask}."), ("bad", "good"), (("bad",), ("good", "fine")))
PRINT = {"tokenizer": "t", "shape": "s", "weights": "w", "dtype": "float32"}
VALUES = {
    "hard": lambda: HardPrompt(torch.tensor([4, 5, 6])),
    "soft": lambda: SoftPrompt(torch.randn(3, 7)),
    "prefix": lambda: PrefixPrompt({"self": (torch.randn(2, 3, 2, 4), torch.randn(2, 3, 2, 4))}, 3),
    "weights": lambda: Weights({"a.weight": torch.randn(2, 2), "b": torch.randn(3).bfloat16()}),
    "low-rank": lambda: LowRank({"a.weight": (torch.randn(2, 5), torch.randn(4, 2))}, 2.0, ("a.weight",)),
    "probe": lambda: Probe(torch.randn(2, 7), torch.randn(2), "mean"),
    "word-counts": lambda: WordCounts(("a", "b c"), torch.ones(2), torch.randn(2, 2), torch.randn(2)),
}


def made(form: str = "soft") -> Artefact:
    return Artefact(
        VALUES[form](), FORMAT, "prompt-tuning", {"length": 3}, 7, {"name": "m", "kind": "masked"}, PRINT, ("text",)
    )


@pytest.mark.parametrize("form", VALUES)
def test_every_form_comes_back_bit_for_bit(form, tmp_path):
    before = made(form)
    after = Artefact.load(before.save(tmp_path / "x"))
    assert after.form == form
    assert after.format == FORMAT
    assert (after.seed, after.config, after.fields) == (7, {"length": 3}, ("text",))
    again = after.save(tmp_path / "y")
    for name in (TENSORS, RECORD):
        assert (tmp_path / "x" / name).read_bytes() == (again / name).read_bytes()
    if form in ("hard", "soft", "prefix"):
        assert same_prompt(before.value, after.value)
        assert not same_prompt(after.value, VALUES["soft" if form != "soft" else "prefix"]())


def test_a_soft_prompt_is_four_bytes_a_number_and_nothing_more(tmp_path):
    folder = made().save(tmp_path / "x")
    assert made().bytes_stored == 4 * 3 * 7
    assert (folder / TENSORS).stat().st_size < 4 * 3 * 7 + 200


@pytest.mark.parametrize("harm", ["flip", "truncate", "schema", "json", "missing", "form"])
def test_a_damaged_artefact_is_refused_in_a_sentence(harm, tmp_path):
    folder = made().save(tmp_path / "x")
    tensors, record = folder / TENSORS, folder / RECORD
    if harm == "flip":
        data = bytearray(tensors.read_bytes())
        data[-3] ^= 1
        tensors.write_bytes(data)
    elif harm == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-5])
    elif harm == "missing":
        tensors.unlink()
    elif harm == "json":
        record.write_text(record.read_text()[:100])
    else:
        content = json.loads(record.read_text())
        content["schema" if harm == "schema" else "form"] = 99 if harm == "schema" else "prefix"
        record.write_text(json.dumps(content))
    with pytest.raises(ArtefactError) as caught:
        Artefact.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(number, tmp_path):
    bad = made()
    bad = replace(bad, value=SoftPrompt(torch.full((3, 7), number)))
    with pytest.raises(ArtefactError, match="NaN or infinity"):
        Artefact.load(bad.save(tmp_path / "x"))


def test_a_name_that_no_folder_can_have_is_refused():
    with pytest.raises(ArtefactError, match="too long for the name of a folder") as caught:
        Artefact.load("x" * 5000)
    assert len(str(caught.value)) < 300


def test_a_folder_that_may_not_be_read_says_so(tmp_path):
    """Root reads as another user: for itself nothing is closed."""
    folder, root = made("hard").save(tmp_path / "x"), os.geteuid() == 0
    folder.chmod(0)
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(ArtefactError, match=r"Permission denied.*who may read the folder") as caught:
            Artefact.load(folder)
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)
    assert "damaged" not in str(caught.value)
    assert Artefact.load(folder).form == "hard"


def test_what_stands_beside_an_artefact_is_not_deleted(tmp_path):
    """As the results of a comparison that was given the same folder."""
    artefact = made("hard")
    artefact.save(tmp_path / "x")
    (tmp_path / "x" / "results.jsonl").write_text("{}")
    with pytest.raises(ArtefactError, match=r"holds 'results.jsonl' beside an artefact"):
        artefact.save(tmp_path / "x")
    assert (tmp_path / "x" / "results.jsonl").read_text() == "{}"


def test_saving_again_replaces_and_a_foreign_folder_is_left_alone(tmp_path):
    made().save(tmp_path / "x")
    second = made("prefix")
    second.save(tmp_path / "x")
    assert Artefact.load(tmp_path / "x").form == "prefix"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtefactError, match="nothing was written"):
        made().save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_full_disk_leaves_the_earlier_artefact(tmp_path, monkeypatch):
    first = made()
    first.save(tmp_path / "x")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtefactError, match="No space left"):
        made("prefix").save(tmp_path / "x")
    monkeypatch.undo()
    assert same_prompt(Artefact.load(tmp_path / "x").value, first.value)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_three_levels_of_the_fingerprint():
    artefact = made()
    assert check_fits(artefact, PRINT, "m") is None
    for level, told in (
        ("tokenizer", "another tokenizer"),
        ("shape", "another shape"),
        ("weights", "--allow-other-weights"),
    ):
        with pytest.raises(ArtefactError, match=told):
            check_fits(artefact, {**PRINT, level: "other"}, "n")
    assert "other weights" in str(check_fits(artefact, {**PRINT, "weights": "other"}, "n", allow_other_weights=True))
    with pytest.raises(ArtefactError, match="another shape"):
        check_fits(artefact, {**PRINT, "shape": "other"}, "n", allow_other_weights=True)
    assert "bfloat16" in str(check_fits(artefact, {**PRINT, "dtype": "bfloat16"}, "m"))


def test_the_card_says_what_may_leak(tmp_path):
    card = (made("word-counts").save(tmp_path / "x") / "README.md").read_text()
    assert "words of the training texts, in clear" in card


def test_the_folder_that_one_is_in_is_named_by_a_dot(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (".", "", "/"):
        with pytest.raises(ArtefactError, match=r"it has no foreword\.json"):
            Artefact.load(name)
    with pytest.raises(ArtefactError, match="no path"):
        Artefact.load("\0")


def test_a_file_is_not_replaced_by_an_artefact(tmp_path):
    target = tmp_path / "notes.txt"
    target.write_text("mine")
    (tmp_path / "link").symlink_to(target)
    for place in (target, tmp_path / "link"):
        with pytest.raises(ArtefactError, match="is a file and no folder; nothing was written"):
            made().save(place)
    assert target.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "notes.txt"]
