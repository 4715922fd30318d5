"""Explain what a folder holds that was given as a model and is none: one sentence with what to give instead."""

import json
from pathlib import Path
from typing import Any

from foreword.core.artefact import RECORD
from foreword.errors import ModelError

CONFIG, ADAPTER, SENTENCES = "config.json", "adapter_config.json", "modules.json"
WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")
BESIDE = ("adapter_model", "optimizer", "scheduler", "training_args", "rng_state")  # files that are no model's weights
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "*.model", "tekken.json")
OTHERS = {"*.onnx": "ONNX", "tf_model*.h5": "TensorFlow", "flax_model*.msgpack": "Flax", "*.pth": "plain PyTorch"}
PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")


def require_model(source: str | Path, name: str) -> None:
    """Check that a path holds a checkpoint; a name on the hub passes. Raises: ModelError that says what a file or
    folder is instead of a checkpoint."""
    path = Path(source).expanduser()
    if not path.exists():
        return
    what = _file(path) if not path.is_dir() else _without_config(path) or _incomplete(path)
    if what is not None:
        raise ModelError(f"{name} {what}")


def sentences_of(source: str | Path) -> bool:
    """Return whether a folder is one of sentence-transformers, whose models have no output head."""
    return (Path(source).expanduser() / SENTENCES).is_file()


def _file(path: Path) -> str:
    if path.suffix == ".gguf":
        return _gguf(path.name)
    return "is a file, and a model is a folder with its config, weights and tokenizer; give that folder."


def _without_config(path: Path) -> str | None:
    """Return what a folder without a model's config is, or None if it has a config."""
    if (path / CONFIG).is_file():
        return None
    if (path / ADAPTER).is_file():
        return _adapter(_read(path / ADAPTER))
    if (path / RECORD).is_file():
        return (
            "is an artefact of Foreword, which is used with a model; give it as the artefact, and the model it names."
        )
    if (path / SENTENCES).is_file():
        return (
            "is a sentence-transformers model, which turns texts into vectors and has no output head; give a masked or "
            "causal language model."
        )
    if any(path.glob("*.gguf")):
        return _gguf(next(path.glob("*.gguf")).name)
    if (path / "model_index.json").is_file():
        return "is a pipeline of diffusers, which makes images; give a language model."
    within = sorted(found.parent.name for found in path.glob(f"*/{CONFIG}"))
    if within:
        return f"has no {CONFIG}, and its folders {', '.join(within[:4])} have one; give one of those."
    if not any(path.iterdir()):
        return "is an empty folder; give the folder of a checkpoint, or copy it again."
    return f"is a folder without a {CONFIG}, so it is no checkpoint of transformers; give the folder that has one."


def _incomplete(path: Path) -> str | None:
    """Return what a folder with a model's config lacks, or None if it lacks nothing."""
    files = [file for pattern in WEIGHTS for file in path.glob(pattern)]
    if not [file for file in files if not file.name.startswith(BESIDE)]:
        if (path / ADAPTER).is_file():
            return _adapter(_read(path / ADAPTER))
        if any(path.glob("*.gguf")):
            return _gguf(next(path.glob("*.gguf")).name)
        other = next((f"those of {kind} alone" for pattern, kind in OTHERS.items() if any(path.glob(pattern))), "none")
        return (
            f"has a {CONFIG} but no weights that transformers reads (model.safetensors; {other}); copy the checkpoint "
            "again with its weights, or save it with save_pretrained."
        )
    if not any(file for pattern in TOKENIZERS for file in path.glob(pattern)):
        return (
            "has a config and weights but no tokenizer; copy the checkpoint's tokenizer.json and tokenizer_config.json "
            "into it, or save its tokenizer there with save_pretrained."
        )
    return None


def _adapter(config: dict[str, Any]) -> str:
    kind, base = config.get("peft_type", "unknown"), config.get("base_model_name_or_path")
    of = f"an adapter of PEFT ({kind}), trained for {base!r}, and no model: give that model" if base else (
        f"an adapter of PEFT ({kind}) and no model: give the model that it was trained for"
    )  # fmt: skip
    if kind in PROMPTS:
        return f"is {of}, and read the adapter with `foreword import`."
    return f"is {of} with the adapter merged into it (merge_and_unload, then save_pretrained)."


def _gguf(file: str) -> str:
    return (
        f"holds weights of llama.cpp ({file}), through which no gradient and no prompt of numbers can go; give the "
        "checkpoint in transformers' own format that they were made from."
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
