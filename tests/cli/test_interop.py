"""`foreword export` and `foreword import`. Run: python -m pytest tests/cli/test_interop.py"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load, save

TEMPLATES = {
    "foreword-tiny": "{text|shorten} : {mask} .",
    "foreword-tiny-causal": "{text|shorten} : {answer}",
}
WORDS = ("--label-words", "bad=n", "--label-words", "good=y,z")
STEPS = ("-o", "length=3", "-o", "steps=2")


def train(foreword, data, out, method, model, *more):
    template = TEMPLATES[model] if method == "prefix-tuning" else "{soft:3}" + TEMPLATES[model]
    first = () if method == "prefix-tuning" else ("--soft-first",)
    made = foreword(
        "train", method, "--model", model, "--data", data, "--out", out, "--template", template, *first, *WORDS, *STEPS,
        *more,
    )  # fmt: skip
    assert made.code == 0, made.err
    return out


@pytest.mark.parametrize("model", TEMPLATES)
@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning", "prefix-tuning"])
def test_there_and_back_predicts_the_same(foreword, data, tmp_path, method, model):
    """Exported and imported, the artefact gives the same probabilities; exported again, the same bytes."""
    mine = train(foreword, data, tmp_path / "mine", method, model)
    told = foreword("export", mine, tmp_path / "adapter", "--format", "peft")
    assert told.code == 0, told.err
    assert "README.md" in told.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "mine"]
    back = foreword(
        "import", tmp_path / "adapter", "--template", TEMPLATES[model], *WORDS, "--labels", "bad,good",
        "--out", tmp_path / "back", "--json",
    )  # fmt: skip
    assert back.code == 0, back.err
    shown = json.loads(back.out)
    assert (shown["method"], shown["model"]["name"], shown["label_words"]["good"]) == (method, model, ["y", "z"])
    texts = ("a fine film", "a dull book", "x")
    first, second = (foreword("predict", tmp_path / name, "--json", *texts) for name in ("mine", "back"))
    assert first.code == 0
    assert second.out == first.out
    again = foreword("export", tmp_path / "back", tmp_path / "again", "--json")
    assert json.loads(again.out)["config"]["base_model_name_or_path"] == model
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()
    measured = foreword("evaluate", tmp_path / "back", "--data", data, "--json")
    assert json.loads(measured.out)["rows"] == 64


def test_another_name_of_the_model_is_told_and_another_shape_refused(foreword, data, tmp_path):
    mine = train(foreword, data, tmp_path / "mine", "prompt-tuning", "foreword-tiny")
    assert foreword("export", mine, tmp_path / "x", "--base-model", "some/bert").code == 0
    imported = ("import", tmp_path / "x", "--template", TEMPLATES["foreword-tiny"], *WORDS, "--out", tmp_path / "y")
    assert "cannot be read" in foreword(*imported).error  # there is no such model here
    told = foreword(*imported, "--model", "foreword-tiny")
    assert told.code == 0
    assert "'some/bert'" in told.err
    assert "exists already" in foreword(*imported, "--model", "foreword-tiny").error
    assert foreword(*imported, "--model", "foreword-tiny", "--overwrite").code == 0
    refused = foreword(*imported, "--model", "foreword-mini", "--overwrite")
    assert "embeddings of" in refused.error
    assert refused.code == 2


def test_what_cannot_be_exported_leaves_nothing(foreword, data, artefact, tmp_path):
    """A slot after [CLS] (the default), words, and a folder of something else."""
    after = foreword("export", artefact, tmp_path / "x")
    assert (after.code, "--soft-first" in after.error) == (2, True)
    manual = tmp_path / "manual"
    assert foreword("train", "manual", "--model", "foreword-tiny", "--data", data, "--out", manual).code == 0
    assert "export one of prompt-tuning" in foreword("export", manual, tmp_path / "x").error
    counts = tmp_path / "counts"
    assert foreword("train", "bag-of-words", "--model", "foreword-tiny", "--data", data, "--out", counts).code == 0
    assert "word counts" in foreword("export", counts, tmp_path / "x").error
    assert not (tmp_path / "x").exists()
    mine = train(foreword, data, tmp_path / "mine", "prompt-tuning", "foreword-tiny")
    before = sorted(p.name for p in manual.iterdir())
    assert "exists already" in foreword("export", mine, manual).error
    assert "not a PEFT adapter alone" in foreword("export", mine, manual, "--overwrite").error
    assert sorted(p.name for p in manual.iterdir()) == before


def test_what_an_import_needs(foreword, data, tmp_path):
    mine = train(foreword, data, tmp_path / "mine", "prefix-tuning", "foreword-tiny-causal")
    foreword("export", mine, tmp_path / "x")
    out = ("--out", tmp_path / "y")
    assert "--template" in foreword("import", tmp_path / "x", *WORDS, *out).error
    template = ("--template", TEMPLATES["foreword-tiny-causal"])
    assert "labels in their order" in foreword("import", tmp_path / "x", *template, *out).error
    assert (
        "label words were given for"
        in foreword("import", tmp_path / "x", *template, *WORDS, *out, "--labels", "a,b").error
    )
    assert "not a PEFT adapter" in foreword("import", mine, *template, *WORDS, *out).error
    assert "causal" in foreword("import", tmp_path / "x", *template, *WORDS, *out, "--kind", "masked").error
    for decoding in (("--num-beams", "3"), ("--stop", "x"), ("--decoding", "top_p=0.5")):
        assert "give --max-new-tokens too" in foreword("import", tmp_path / "x", *template, *out, *decoding).error
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "x", broken)
    file = broken / "adapter_model.safetensors"
    [(name, prompt)] = load(file.read_bytes()).items()
    file.write_bytes(save({name: torch.full_like(prompt, float("nan"))}))
    refused = foreword("import", broken, *template, *WORDS, *out)
    assert (refused.code, "NaN" in refused.error) == (2, True)
    assert not (tmp_path / "y").exists()
    config = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
    (tmp_path / "x" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    assert "--model" in foreword("import", tmp_path / "x", *template, *WORDS, *out).error


def test_export_for_vllm(foreword, data, tmp_path):
    """Vectors of a causal model go, and each other form is told what it can do instead."""
    mine = train(foreword, data, tmp_path / "mine", "prompt-tuning", "foreword-tiny-causal")
    told = foreword("export", mine, tmp_path / "x", "--to", "vllm", "--base-model", "my/llama")
    assert told.code == 0, told.err
    assert "vllm serve my/llama --enable-prompt-embeds" in told.out
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["README.md", "client.py", "prompt.pt", "row.json"]
    assert torch.load(tmp_path / "x" / "prompt.pt", weights_only=True).shape == (3, 32)
    row = json.loads((tmp_path / "x" / "row.json").read_text())
    assert (row["base_model"], row["fields"], len(row["labels"]["good"])) == ("my/llama", ["text"], 2)
    assert "exists already" in foreword("export", mine, tmp_path / "x", "--to", "vllm").error
    again = foreword("export", mine, tmp_path / "x", "--format", "vllm", "--overwrite", "--json")
    assert json.loads(again.out)["shape"] == [3, 32]
    assert "not a PEFT adapter alone" in foreword("export", mine, tmp_path / "x", "--overwrite").error
    prefix = train(foreword, data, tmp_path / "prefix", "prefix-tuning", "foreword-tiny-causal")
    assert "foreword serve" in foreword("export", prefix, tmp_path / "y", "--to", "vllm").error
    masked = train(foreword, data, tmp_path / "masked", "prompt-tuning", "foreword-tiny")
    assert "masked" in foreword("export", masked, tmp_path / "y", "--to", "vllm").error
    assert not (tmp_path / "y").exists()


def test_export_of_words(foreword, data, tmp_path):
    manual = tmp_path / "manual"
    assert foreword("train", "manual", "--model", "foreword-tiny", "--data", data, "--out", manual).code == 0
    told = foreword("export", manual, tmp_path / "x", "--to", "text", "--json")
    assert told.code == 0, told.err
    record = json.loads((tmp_path / "x" / "prompt.json").read_text())
    assert json.loads(told.out)["template"] == record["template"]
    assert set(record["label_words"]) == {"good", "bad"}
    assert foreword("export", manual, tmp_path / "x", "--to", "text", "--overwrite").code == 0
    soft = train(foreword, data, tmp_path / "soft", "prompt-tuning", "foreword-tiny")
    assert "train `manual`" in foreword("export", soft, tmp_path / "y", "--to", "text").error
    counts = tmp_path / "counts"
    assert foreword("train", "bag-of-words", "--model", "foreword-tiny", "--data", data, "--out", counts).code == 0
    assert "bag-of-words" in foreword("export", counts, tmp_path / "y", "--to", "text").error
    assert "word counts" in foreword("export", counts, tmp_path / "y", "--to", "vllm").error
