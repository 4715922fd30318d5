"""What is given as a model and is none says so in one sentence. Run: python -m pytest tests/models/test_folder.py"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from foreword.errors import ModelError
from foreword.models.hf.tiny_checkpoints import byte_tokenizer, random_model
from foreword.models.load import load


def checkpoint(folder: Path) -> None:
    tokenizer = byte_tokenizer("causal")
    random_model("causal", tokenizer, 0, 32, 1, 64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def adapter(kind: str, base: str | None = "org/base") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        config = {"peft_type": kind, "base_model_name_or_path": base}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "adapter_model.safetensors").write_bytes(b"")
        byte_tokenizer("causal").save_pretrained(folder)

    return write


def beside_a_config(folder: Path) -> None:
    checkpoint(folder)
    (folder / "model.safetensors").unlink()
    adapter("LORA")(folder)


def without(*names: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        checkpoint(folder)
        for name in names:
            (folder / name).unlink()

    return write


def holding(name: str, content: str = "{}", config: bool = False) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(content)
        if config:
            without("model.safetensors")(folder)

    return write


def vectors(folder: Path) -> None:
    random_model("masked", byte_tokenizer("masked"), 0, 32, 1, 64).bert.save_pretrained(folder)  # type: ignore[operator]
    byte_tokenizer("masked").save_pretrained(folder)
    (folder / "modules.json").write_text("[]")


def parent(folder: Path) -> None:
    (folder / "checkpoint-5").mkdir()
    checkpoint(folder / "checkpoint-5")


CASES = {
    "lora": (adapter("LORA"), r"adapter of PEFT \(LORA\), trained for 'org/base', and no model: .*merge_and_unload"),
    "prompt": (adapter("PREFIX_TUNING"), r"adapter of PEFT \(PREFIX_TUNING\).*`foreword import`"),
    "adapter without base": (adapter("LORA", None), "give the model that it was trained for"),
    "adapter beside a config": (beside_a_config, r"adapter of PEFT \(LORA\)"),
    "artefact": (holding("foreword.json"), "is an artefact of Foreword"),
    "sentence-transformers": (holding("modules.json", "[]"), "is a sentence-transformers model"),
    "sentence-transformers, flat": (vectors, "is a sentence-transformers model"),
    "gguf": (holding("model.Q4.gguf", "GGUF"), r"holds weights of llama.cpp \(model.Q4.gguf\)"),
    "gguf beside a config": (holding("model.Q4.gguf", "GGUF", config=True), "holds weights of llama.cpp"),
    "onnx": (holding("model.onnx", "", config=True), "no weights that transformers reads .*ONNX alone"),
    "images": (holding("model_index.json"), "pipeline of diffusers"),
    "empty": (lambda folder: None, "is an empty folder"),
    "no config": (holding("notes.txt", "x"), r"is a folder without a config\.json"),
    "no weights": (without("model.safetensors"), r"has a config\.json but no weights that transformers reads"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "config and weights but no tokenizer"),
    "parent": (parent, r"has no config\.json, and its folders checkpoint-5 have one"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_folder_that_is_no_model_says_what_it_is(case: str, tmp_path: Path) -> None:
    write, sentence = CASES[case]
    write(tmp_path)
    with pytest.raises(ModelError, match=sentence) as refused:
        load(tmp_path)
    assert str(refused.value).startswith(str(tmp_path)) and "\n" not in str(refused.value)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    for name, sentence in (("model.gguf", "holds weights of llama.cpp"), ("model.txt", "is a file, and a model")):
        (tmp_path / name).write_bytes(b"GGUF")
        with pytest.raises(ModelError, match=sentence):
            load(tmp_path / name)


def test_a_whole_checkpoint_is_read(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / "training_args.bin").write_bytes(b"")
    assert load(tmp_path).kind == "causal"
