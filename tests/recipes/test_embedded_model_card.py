"""python -m pytest tests/recipes/test_embedded_model_card.py

The card's recipe on a tiny model and a small task: what it samples is what the model says, nothing is measured twice.
"""

import json
from pathlib import Path

import embedded_model_card as recipe
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertLMHeadModel

from foreword.evaluation.statistics import Interval
from foreword.models.hf.loading import EMBEDDED

TASK = "reviews"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models, a task of two labels and a validation text."""
    folder = tmp_path_factory.mktemp("card")
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=30522, max_position_embeddings=512, initializer_range=0.4, **sizes)
    for seed, name in enumerate(("before", "now")):
        torch.manual_seed(seed)
        BertForMaskedLM(config).save_pretrained(folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name / file).write_bytes((EMBEDDED / file).read_bytes())
    (folder / "data" / TASK).mkdir(parents=True)
    for split, count in (("train", 80), ("test", 12)):
        rows = [{"text": f"text number {i} of {split}", "label": ("good", "bad")[i % 2]} for i in range(count)]
        (folder / "data" / TASK / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = " ".join(f"Row {i} of the text." for i in range(700))
    (folder / "valid.jsonl").write_text(json.dumps({"text": text}) + "\n")
    return folder


@pytest.fixture
def run(folders, monkeypatch):
    monkeypatch.setattr(recipe, "TASKS", (TASK,))
    monkeypatch.setattr(recipe.Worth, "facts", lambda self: Interval(0.5, 0.4, 0.6, 1, 10))

    def call(*more: str) -> Path:
        named = {"model": "now", "before": "before", "data": "data", "valid": "valid.jsonl", "out": "out"}
        options = [part for name, file in named.items() for part in (f"--{name}", str(folders / file))]
        assert recipe.main([*options, "--quick", *more]) == 0
        return folders / "out-quick" / "quick.md"

    return call


def test_the_card_says_what_the_model_does_and_measures_nothing_twice(run, folders, monkeypatch):
    page = run()
    first = page.read_text()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    masked = BertForMaskedLM.from_pretrained(folders / "now")
    with torch.no_grad():
        for sentence in recipe.SENTENCES:
            left, right = sentence.split("[MASK]")
            ids = [101, *tokenizer(left, add_special_tokens=False)["input_ids"]]
            place = len(ids)
            ids += [103, *tokenizer(right, add_special_tokens=False)["input_ids"], 102]
            best = masked(torch.tensor([ids])).logits[0, place].sort(descending=True).indices[:5]
            assert f"- {sentence} {', '.join(tokenizer.convert_ids_to_tokens(best.tolist()))}\n" in first
    causal = BertLMHeadModel.from_pretrained(folders / "now", is_decoder=True)
    rng = torch.Generator().manual_seed(0)
    for opening in recipe.OPENINGS:
        ids = [101, *tokenizer(opening, add_special_tokens=False)["input_ids"]]
        for _ in range(24):
            with torch.no_grad():
                best = causal(torch.tensor([ids])).logits[0, -1].sort(descending=True)
            share = (best.values[:40] / 0.7).exp()
            ids.append(int(best.indices[torch.multinomial(share / share.sum(), 1, generator=rng)]))
        assert f"- {tokenizer.decode(ids[1:])}\n" in first
    for cell in (f"| {TASK}, masked, zero-shot | ", f"| {TASK}, causal, zero-shot, batch calibration | ", "P@1 | 50.0"):
        assert cell in first
    assert f"| {TASK}, masked, prefix tuning, 16 shots | " in first
    monkeypatch.setattr(recipe, "compare", None)
    monkeypatch.setattr(recipe, "measure", None)
    assert run().read_text() == first


def test_other_weights_are_measured_anew(run, folders):
    run()
    kept = {file.name for file in (folders / "out-quick").iterdir() if file.is_dir()}
    torch.manual_seed(5)
    model = BertForMaskedLM.from_pretrained(folders / "now")
    model.bert.embeddings.word_embeddings.weight.data.normal_()
    model.save_pretrained(folders / "now")
    run()
    assert len({file.name for file in (folders / "out-quick").iterdir() if file.is_dir()} - kept) == 1


@pytest.mark.parametrize("given", ["model", "before", "data", "valid"])
def test_what_is_not_there_is_said_in_one_sentence(given, folders, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(recipe, "TASKS", (TASK,))
    monkeypatch.setattr(recipe.Worth, "facts", lambda self: Interval(0.5, 0.4, 0.6, 1, 10))
    named = {"model": "now", "before": "before", "data": "data", "valid": "valid.jsonl"}
    files = {name: folders / file for name, file in named.items()} | {
        given: tmp_path / "nowhere",
        "out": tmp_path / "x",
    }
    assert recipe.main([part for name, file in files.items() for part in (f"--{name}", str(file))] + ["--quick"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1 and str(tmp_path / "nowhere") in said[0]
    assert not (tmp_path / "x-quick" / "quick.md").exists()
