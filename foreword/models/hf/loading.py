"""Build an `HFLM` or an `HFSeq2Seq` from a name, a folder or a loaded model; every failure becomes one sentence."""

import copy
import logging
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging import version
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    TorchAoConfig,
)

from foreword.errors import ConfigError, ModelError
from foreword.models.base import Kind
from foreword.models.hf import families, model_folder, shared_weights, storage
from foreword.models.hf.lm import HFLM
from foreword.models.hf.model import HFModel
from foreword.models.hf.seq2seq import HFSeq2Seq
from foreword.models.memory import is_out_of_memory

OLDEST = version.parse("5.7.0")  # before it ModernBERT's attention cannot be replaced
GROUP = 32  # weights of a row that share a scale in int4
AUTO = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}
EMBEDDED = Path(__file__).parents[2] / "data" / "foreword-mini"


def load(
    source: str | Path,
    name: str,
    kind: Kind | None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: Any = None,
    quantise: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> HFModel:
    """Read a checkpoint with transformers and wrap it; see `foreword.models.load.load`."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    origin: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    model_folder.require_model(source, name)
    with _told(name):
        config = AutoConfig.from_pretrained(source, **origin)
    kind = kind_of(config, name) if kind is None else kind
    families.family_of(config.model_type, kind, name)
    if kind == "causal" and config.model_type in families.FAMILIES["masked"]:
        config.is_decoder = True
    quantised: dict[str, Any] = {}
    if quantise is not None or getattr(config, "quantization_config", None) is not None:
        quantised = quantising(config, quantise, name)
        if device_map is None:
            device_map = {"": place}  # what is quantised cannot always be moved later
    auto: Any = AUTO[kind]
    kept = as_dtype(dtype)
    with _told(name), _quiet():
        tokenizer = AutoTokenizer.from_pretrained(source, **origin)
        options = {"config": config, "dtype": kept, "device_map": device_map, "output_loading_info": True}
        loaded: Any = auto.from_pretrained(source, **options, **quantised, **origin)
        model, report = loaded
    if report["missing_keys"] and model_folder.sentences_of(source):
        raise ModelError(
            f"{name} is a sentence-transformers model, which turns texts into vectors and has no output head; give a "
            "masked or causal language model."
        )
    if report["missing_keys"]:
        raise ModelError(
            f"The checkpoint {name} lacks weights that a {kind} model needs ({min(report['missing_keys'])}): it was "
            f"saved without that output head; choose a checkpoint made as a {kind} language model."
        )
    if quantise is not None and all(storage.is_plain(p) for p in model.parameters()):
        raise ModelError(
            f"No layer of {name} (family {config.model_type}) can be quantised so: its weights are not in linear "
            "layers; load it without quantise, or choose a model of another family."
        )
    if device_map is None:
        model = model.to(place)
    return _build(model.requires_grad_(False).eval(), tokenizer, kind, name)


def wrap(model: Any, tokenizer: Any, kind: Kind | None, name: str | None = None) -> HFModel:
    """Read a loaded model through a view that shares its tensors; the model itself is left as it is."""
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"wrap() takes a transformers model with a language-modelling head; a {type(model).__name__} was given"
            f"{_of_peft(model) if 'peft' in type(model).__module__ else ''}."
        )
    name = name or model.config.name_or_path or type(model).__name__
    kind = kind_of(model.config, name, type(model).__name__) if kind is None else kind
    return _build(shared_weights.view_of(model), tokenizer, kind, name)


def _of_peft(model: Any) -> str:
    """Return what to give instead of a model of PEFT, whose base has the changed layers but no prompt before it."""
    config = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        return (
            ", whose prompt is not in its get_base_model(); save it with save_pretrained and read that folder with "
            "`foreword import`"
        )
    return "; give its get_base_model(), which has the adapter in it"


def _build(model: PreTrainedModel, tokenizer: Any, kind: Kind, name: str) -> HFModel:
    if version.parse(transformers.__version__) < OLDEST:
        raise ModelError(
            f"transformers {transformers.__version__} is installed, on which not every family is exact; install "
            f"{OLDEST} or newer."
        )
    if not tokenizer.is_fast:
        raise ModelError(f"The tokenizer of {name} has no fast version, which Foreword reads offsets from.")
    rows = shared_weights.embedding_rows(model)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        # Padded positions are masked in every layer, so any token will do. The tokenizer may be the caller's: copy it.
        tokenizer = copy.deepcopy(tokenizer)
        others = (tokenizer.eos_token_id, tokenizer.unk_token_id, 0)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(next(i for i in others if i is not None and i < rows))
    lm = (HFSeq2Seq if kind == "seq2seq" else HFLM)(model, tokenizer, kind, name)
    try:
        lm.require_own_logits()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"Out of memory with two tokens through {name}. Use a smaller model, a lower precision (--dtype, "
            "--quantise) or more devices (--device-map)."
        ) from error
    return lm


def kind_of(config: Any, name: str, model_class: str | None = None) -> Kind:
    """Return masked, causal or seq2seq, by the class that the checkpoint names, else by the family."""
    classes = [model_class] if model_class else (config.architectures or [])
    decoder_alone = any(named.endswith("ForCausalLM") for named in classes)
    if config.model_type in families.FAMILIES["seq2seq"] and not decoder_alone:
        return "seq2seq"  # first: the oldest T5 checkpoints name a class T5WithLMHeadModel
    for named in classes:
        if named.endswith("ForMaskedLM") or named == "ElectraForPreTraining":
            return "masked"
        if named.endswith(("ForCausalLM", "LMHeadModel")):
            return "causal"
    if config.model_type in families.FAMILIES["masked"]:
        return "causal" if config.is_decoder else "masked"
    if config.model_type in families.FAMILIES["causal"]:
        return "causal"
    families.family_of(config.model_type, "causal", name)
    raise AssertionError


def quantising(config: Any, quantise: Any, name: str) -> dict[str, Any]:
    """Return the options that make transformers quantise while it loads; empty if `quantise` is None, as it must be for
    a checkpoint that is quantised already.

    "int8" rounds each row of a matrix to 255 steps, "int4" each 32 numbers of a row to 15; both by torchao, and both
    leave embeddings, norms, biases and the output head alone.

    Raises: ConfigError for an unknown word, a missing library or a checkpoint that is quantised already.
    """
    if quantise is None:
        return {}
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(f"{name} is stored quantised; leave quantise out to load it as it is.")
    if not isinstance(quantise, str):
        return {"quantization_config": quantise}
    if quantise not in ("int8", "int4"):
        raise ConfigError(
            f"The quantisation {quantise!r} is not known; use int8, int4 or a quantisation config of transformers."
        )
    try:
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
    except ImportError as error:
        raise ConfigError(
            f"quantise={quantise} needs torchao; install it with: pip install 'foreword[quantise]'."
        ) from error
    four = torch.int4  # pyright: ignore[reportAttributeAccessIssue]
    recipe = Int8WeightOnlyConfig() if quantise == "int8" else IntxWeightOnlyConfig(four, PerGroup(GROUP))
    return {"quantization_config": TorchAoConfig(recipe)}


def as_dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    """Return the dtype in a form that transformers understands; "auto" keeps the dtype that the checkpoint stores."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return "auto" if dtype is None else dtype
    short = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(dtype, dtype)
    known = {"auto", "float64", "float32", "bfloat16", "float16"}
    if short not in known:
        raise ConfigError(f"The dtype {dtype!r} is not known; use one of {', '.join(sorted(known))}.")
    return "auto" if short == "auto" else getattr(torch, short)


@contextmanager
def _told(name: str) -> Any:
    """Turn what transformers and the hub raise for a model they cannot read into one sentence."""
    try:
        yield
    except Exception as error:  # whatever stands in a broken folder, transformers has its own exception for it
        raise ModelError(
            f"The model {name} cannot be read: {_reason(name, error)}. Give a folder that holds it, a name that is in "
            "the local cache or reachable on the hub, or one of foreword-mini, foreword-mini-causal."
        ) from error


def _reason(name: str, error: Exception) -> str:
    if name.startswith(("/", ".", "~")) and not Path(name).exists():
        return "there is no such folder"
    if "automatic conversion of the weights" in str(error):
        return f"its weights cannot be quantised so: int4 takes {GROUP} numbers of a row together and wants such widths"
    if "couldn't connect to" in str(error).lower():
        return "it is not in the local cache and the hub cannot be reached"
    return str(error).strip().split("\n")[0].rstrip(".")


@contextmanager
def _quiet() -> Any:
    """Silence the bar that transformers draws and the report that it prints while it loads; the command line has its
    own."""
    bars = transformers.utils.logging.is_progress_bar_enabled()
    level = logging.getLogger("transformers").level
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(level or logging.WARNING)
        if bars:
            transformers.utils.logging.enable_progress_bar()
