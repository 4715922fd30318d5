"""PEFT beside Foreword: the same tiny models, PEFT's own logits, and ours at every column of a row."""

import dataclasses
import functools
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
from torch import Tensor

from foreword.core.artefact import Artefact
from foreword.core.prompts import stack
from foreword.interop.peft_files import Adapter
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded, Encoder, collate, prepare
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import wrap
from tests.models import zoo

TEXTS = ["a", "this is fine", "no, not again"]
WORDS = {"good": "y", "bad": "n"}
FAMILIES = tuple(zoo.CONFIGS)
EXACT = 1e-5  # of max(1, max |logit|)


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns of its own use of transformers, and of arguments that it drops."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def task_type(family: str) -> str:
    return "FEATURE_EXTRACTION" if family in zoo.MASKED else "CAUSAL_LM"


def template(family: str) -> str:
    return "{text} :{mask}" if family in zoo.MASKED else "{text} :{answer}"


def base(family: str):
    """A model with a name, as one that was loaded has."""
    model = zoo.build(family)
    model.name_or_path = f"tiny/{family}"
    return model


@functools.cache
def frozen(family: str) -> FrozenLM:
    return wrap(zoo.build(family), byte_tokenizer("masked" if family in zoo.MASKED else "causal"))


def made(family: str, config: peft.PeftConfig) -> peft.PeftModel:
    """PEFT's model with a prompt of its own start, N(0, 1), and its network where it has one."""
    torch.manual_seed(7)
    with quiet():
        return peft.get_peft_model(base(family), config).eval()


def saved(model: peft.PeftModel, folder: Path, **how) -> Path:
    with quiet():
        model.save_pretrained(str(folder), **how)
    return folder


def loaded(family: str, folder: Path) -> peft.PeftModel:
    with quiet():
        return peft.PeftModel.from_pretrained(base(family), str(folder)).eval()


def drawn(family: str, kind: str, length: int = 3) -> Adapter:
    """An adapter with PEFT's smallest config and random numbers."""
    dims = frozen(family).dims
    columns = 2 * dims.layers * dims.heads * dims.head_size if kind == "PREFIX_TUNING" else dims.width
    config = {"peft_type": kind, "task_type": task_type(family), "num_virtual_tokens": length}
    return Adapter(config, torch.randn(length, columns, generator=torch.Generator().manual_seed(3)))


def write(adapter: Adapter, folder: Path) -> Path:
    adapter.save(folder, "a card")
    return folder


def rows(artefact: Artefact, lm: FrozenLM) -> list[Encoded]:
    extra = artefact.value.text_start
    return [Encoder.build(lm, artefact.format, extra).encode({"text": text}) for text in TEXTS]


def text_ids(encoded: Encoded) -> list[int]:
    """The row without its slots: what PEFT is given."""
    return encoded.ids_S[encoded.slot_S < 0].tolist()


@torch.no_grad()
def theirs(model: peft.PeftModel, ids: Sequence[int], left: int = 0, right: int = 0) -> Tensor:
    """(T, V): PEFT's logits at the row's own columns, with so many pads beside them."""
    ids_BS = torch.tensor([[*[0] * left, *ids, *[0] * right]])
    mask_BS = torch.tensor([[*[0] * left, *[1] * len(ids), *[0] * right]])
    with quiet():
        logits = model(input_ids=ids_BS, attention_mask=mask_BS).logits[0]
    end = len(logits) - right
    return logits[end - len(ids) : end]


@torch.no_grad()
def ours(lm: FrozenLM, artefact: Artefact, encoded: Sequence[Encoded], pad: str = "right") -> list[Tensor]:
    """(T, V) of each row in one batch, its slots left out."""
    batch = collate(encoded, pad)
    inputs, prefix = prepare(lm, batch, stack([artefact.value], lm.embed), torch.zeros(len(encoded), dtype=torch.long))
    inputs = dataclasses.replace(inputs, read_BR=torch.arange(batch.ids_BS.shape[1]).expand(len(encoded), -1))
    hidden_BSD = lm.hidden_at(inputs, prefix)
    logits = lm.piece_logits(hidden_BSD.flatten(0, 1), torch.arange(zoo.VOCAB)).unflatten(0, hidden_BSD.shape[:2])
    text_BS = inputs.attend_BS & (batch.slot_BS < 0)
    return [row[text] for row, text in zip(logits, text_BS, strict=True)]


def config_of(folder: Path) -> dict:
    return json.loads((folder / "adapter_config.json").read_text())
