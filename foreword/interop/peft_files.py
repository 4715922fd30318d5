"""Read and write a PEFT adapter folder: its config and its prompt's tensor, read safely and written as PEFT writes
them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from foreword.core.plain import LONGEST, read_plain
from foreword.core.shapes import Float, Tensor
from foreword.core.text import parse_json, shown
from foreword.errors import ArtefactError
from foreword.interop.folder import write_export

CONFIG, TENSORS, PICKLE, CARD = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "README.md"
PROMPT = "prompt_embeddings"
METHODS = {"PROMPT_TUNING": "prompt-tuning", "P_TUNING": "p-tuning", "PREFIX_TUNING": "prefix-tuning"}
HEADED = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


@dataclass(frozen=True, eq=False)
class Adapter:
    """Hold a PEFT adapter, with `config` as in adapter_config.json. `prompt_PX` is fp32: X is the width of the
    embeddings, or for a prefix the keys and values of every layer, flat: number `((2 * layer + (0: key, 1: value)) *
    heads + head) * size + i`. P is twice the length for a soft prompt of an encoder-decoder model."""

    config: dict[str, Any]
    prompt_PX: Float[Tensor, "P X"]

    @property
    def kind(self) -> str:
        return self.config["peft_type"]

    @property
    def method(self) -> str:
        """Return Foreword's name for the adapter's kind."""
        return METHODS[self.kind]

    @property
    def base_model(self) -> str | None:
        return self.config.get("base_model_name_or_path")

    @property
    def causal(self) -> bool:
        return self.config.get("task_type") == "CAUSAL_LM"

    @property
    def seq2seq(self) -> bool:
        """Return whether it is of an encoder-decoder model; a soft prompt then has two halves, one for either part."""
        return _of_two_parts(self.config)

    @property
    def length(self) -> int:
        """Return the number of positions of the prompt."""
        return int(self.config["num_virtual_tokens"])

    def save(self, folder: str | Path, card: str) -> Path:
        """Write the folder whole, byte for byte as `PeftModel.save_pretrained`, but for the card, which says more.

        Raises: ArtefactError if the folder holds anything else than one adapter, or cannot be written.
        """
        contents = {
            CONFIG: json.dumps(self.config, indent=2, sort_keys=True).encode(),
            TENSORS: tensors_to_bytes({PROMPT: self.prompt_PX.contiguous()}, {"format": "pt"}),
            CARD: card.encode(),
        }
        return write_export(folder, contents, "a PEFT adapter", also=(PICKLE,))

    @staticmethod
    def load(folder: str | Path) -> "Adapter":
        """Read an adapter from a folder, or from the only folder below it that has one. Unknown keys are kept.

        Raises: ArtefactError in one sentence: not an adapter, of another kind, damaged, or more than a prompt.
        """
        path = _place(Path(folder))
        config = _config(path / CONFIG)
        _refuse_kind(path, config)
        tensors = _tensors(path)
        others = sorted(tensors.keys() - {PROMPT})
        if others:
            raise ArtefactError(
                f"{path} holds trained weights beside the prompt ({others[0]}), for which an artefact has no place; "
                "only adapters without modules_to_save can be imported."
            )
        if PROMPT not in tensors:
            raise ArtefactError(f"{path} holds no tensor {PROMPT!r}, so there is no prompt to import.")
        prompt = tensors[PROMPT]
        length = config.get("num_virtual_tokens")
        halves = 2 if _of_two_parts(config) and config["peft_type"] != "PREFIX_TUNING" else 1
        whole = isinstance(length, int) and length > 0 and prompt.ndim == 2 and len(prompt) == halves * length
        if not whole or not prompt.is_floating_point():
            raise ArtefactError(
                f"{path}: tensor {PROMPT!r} is {prompt.dtype} of shape {list(prompt.shape)}; floating point with "
                f"{'two rows' if halves == 2 else 'a row'} for each of num_virtual_tokens={length!r} positions was "
                "expected."
            )
        if not torch.isfinite(prompt).all():
            raise ArtefactError(f"{path}: tensor {PROMPT!r} holds NaN or infinity.")
        return Adapter(config, prompt.detach().float().contiguous())


def _of_two_parts(config: Mapping[str, Any]) -> bool:
    return config.get("task_type") == "SEQ_2_SEQ_LM" or config.get("num_transformer_submodules") == 2


def _place(path: Path) -> Path:
    """Return the folder that has the config: this one, or the only one below it that has one."""
    if (path / CONFIG).is_file():
        return path
    named = sorted(found.parent for found in path.glob(f"*/{CONFIG}"))
    if len(named) > 1:
        raise ArtefactError(
            f"{path} holds the adapters {', '.join(found.name for found in named)}; give the folder of one of them."
        )
    if not named:
        raise ArtefactError(f"{path} is not a PEFT adapter: it has no {CONFIG}. Give the folder PEFT wrote.")
    return named[0]


def _config(file: Path) -> dict[str, Any]:
    try:
        config = parse_json(read_plain(file, LONGEST).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{file} cannot be read ({error}); copy the adapter again.") from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ArtefactError(f"{file} does not say its peft_type, so it is no PEFT config; copy the adapter again.")
    return config


def _refuse_kind(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse an adapter by its kind and task. Raises: ArtefactError unless it is one prompt in front of a language
    model's own head."""
    kind, task = config["peft_type"], config.get("task_type")
    if kind not in METHODS:
        raise ArtefactError(f"{path} is a {kind} adapter; only {', '.join(METHODS)} can be imported.")
    if not isinstance(task, str | None):
        raise ArtefactError(f"{path} has task type {shown(task)}, which is no text; copy the adapter again.")
    if task in HEADED:
        raise ArtefactError(
            f"{path} has task type {task}, so its prompt was trained together with a head of its own; a head cannot be "
            "turned into label words. Import a CAUSAL_LM or FEATURE_EXTRACTION adapter, or train one here."
        )


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the file by name; an old pickle is read by torch's loader of plain tensors and nothing
    else."""
    if (path / TENSORS).is_file():
        try:
            return tensors_from_bytes((path / TENSORS).read_bytes())
        except (OSError, SafetensorError) as error:
            raise ArtefactError(f"{path / TENSORS} is damaged ({error}); copy the adapter again.") from error
    if not (path / PICKLE).is_file():
        raise ArtefactError(f"{path} holds neither {TENSORS} nor {PICKLE}; copy the adapter again, with its tensors.")
    try:
        result = torch.load(path / PICKLE, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle can hold anything, and so can what is raised over it
        raise ArtefactError(
            f"{path / PICKLE} is damaged, or holds more than tensors, which is never run; save it again as {TENSORS}."
        ) from error
    if not isinstance(result, dict) or not all(isinstance(tensor, Tensor) for tensor in result.values()):
        raise ArtefactError(f"{path / PICKLE} does not hold tensors by name; save the adapter again as {TENSORS}.")
    return result
