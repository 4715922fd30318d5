"""Convert artefacts to PEFT's adapter folders and back: prompt tuning, p-tuning and prefix tuning, for every kind of
model.

PEFT has no place for a template and for label words: they are written into the card, and given at import. It puts a
soft prompt before everything, [CLS] and BOS included, and starts the text of a prefix behind it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from packaging.version import InvalidVersion, Version

from foreword.core.artefact import Artefact
from foreword.core.format import ChatOptions, Format
from foreword.core.prompts import PrefixPrompt, SoftPrompt
from foreword.core.shapes import Float, Tensor
from foreword.core.template import Soft, Template
from foreword.errors import ArtefactError, ConfigError
from foreword.interop import peft_seq2seq
from foreword.interop.card import card
from foreword.interop.peft_files import Adapter
from foreword.models.base import FrozenLM
from foreword.models.compatibility import check
from foreword.models.encoding.chat_template import frozen
from foreword.models.encoding.encoder import Encoder
from foreword.models.encoding.row_items import Gap
from foreword.tasks.formats import build_format

LAYOUT = "0.21.2"  # the release of PEFT whose files these are, key for key; it goes into peft_version
TASKS = {"causal": "CAUSAL_LM", "masked": "FEATURE_EXTRACTION", "seq2seq": "SEQ_2_SEQ_LM"}
SCALED_BEFORE = ("gemma2",)  # families whose forward pass scaled prompts before transformers 5.4
# Releases of PEFT: what is older than the first was trained before transformers 5.4, and the second came out after it.
# The first is the oldest that runs with transformers 5, and the first that records itself.
UNSURE_FROM, SCALED_FROM = Version("0.18.0"), Version("0.19.0")
# Their encoders take no key-value cache, and that is how PEFT gives a prefix.
WITHOUT_CACHE = ("albert", "deberta-v2", "distilbert", "modernbert")


def export(artefact: Artefact, folder: str | Path, lm: FrozenLM, *, base_model: str | None = None) -> Adapter:
    """Write an artefact as PEFT would have saved the same prompt; `base_model` is the model's name unless given.

    What PEFT records of training and does not read again is written as its defaults: the prompt is final, so
    `prompt_tuning_init` is RANDOM and `prefix_projection` is false. A folder that holds anything but an adapter is left
    alone.

    Raises: ArtefactError for an artefact that PEFT has no form for, and if the artefact does not fit the model.
    """
    value = artefact.value
    if not isinstance(value, SoftPrompt | PrefixPrompt):
        raise ArtefactError(
            f"An artefact of {artefact.method} ({artefact.form}) is no prompt of numbers; PEFT's prompt files hold "
            "soft prompts and prefixes, so export one of prompt-tuning, p-tuning or prefix-tuning."
        )
    check(lm, artefact)
    name = base_model or lm.name
    if isinstance(value, SoftPrompt):
        _require_front(lm, artefact.format)
        rows = peft_seq2seq.both_halves(value) if lm.kind == "seq2seq" else value.embed_PD.detach().float().cpu()
        adapter = Adapter(_soft_config(artefact, lm, name), rows)
    else:
        _require_cache(lm, value)
        flat_PX = peft_seq2seq.flat_prefix(value, lm) if lm.kind == "seq2seq" else flat_prefix(value)
        adapter = Adapter(_prefix_config(value.length, lm, name), flat_PX)
    adapter.save(folder, card(artefact, adapter, lm))
    return adapter


def read(
    source: str | Path | Adapter,
    lm: FrozenLM,
    *,
    template: str | Sequence[Mapping[str, str]],
    label_words: Mapping[str, str | Sequence[str]] | None = None,
    labels: Sequence[str] | None = None,
    **options: Any,
) -> Artefact:
    """Return an artefact from a PEFT adapter and from its template and label words, which PEFT does not record.

    A soft prompt goes before [CLS] or BOS, where PEFT has it, unless the template has slots elsewhere; a prefix needs
    none. `labels` default to the names in `label_words`, and the words to the labels; `options` are those of `Format`,
    and with `decoding` among them the model writes and there are no labels. `foreign` tells whether the adapter names
    another model, and `peft_seq2seq.unread` what PEFT never reads of an encoder-decoder model's.

    Raises: ArtefactError for a folder that is no such adapter or does not fit the model; ConfigError for a template or
    label words that do not suit it; ModelError if the model takes no prefix.
    """
    adapter = source if isinstance(source, Adapter) else Adapter.load(source)
    made = "causal" if adapter.causal else "seq2seq" if adapter.seq2seq else None
    if made not in (None, lm.kind) or (lm.kind == "seq2seq" and made is None):
        raise ArtefactError(
            f"The adapter was made for a {made or 'masked'} model and {lm.name!r} is loaded as {lm.kind}."
        )
    value = _value(adapter, lm)
    names = tuple(labels if labels is not None else label_words or ())
    if not names and options.get("decoding") is None:
        raise ConfigError(
            "An import needs the labels in their order, or label words by label, or how text is written (decoding); "
            "give one of them."
        )
    parsed = Template.parse(template if isinstance(template, str) else [dict(message) for message in template])
    if not parsed.fields:
        raise ConfigError(f"The template {template!r} names no field of a row; write {{text}} where its text goes.")
    soft = isinstance(value, SoftPrompt)
    parsed = _with_slots(parsed, value.length) if soft else parsed
    options["soft_first"] = soft and not parsed.chat and isinstance(parsed.parts[0], Soft)
    options["chat_options"] = ChatOptions.of(options.get("chat_options"))
    form = build_format(lm.kind, parsed.fields, names, parsed.source, label_words, **options)
    form = frozen(lm.tokenizer, form)
    encoder = Encoder.build(lm, form, 0 if soft else value.length)
    wanted = value.length if soft else 0
    if encoder.prompt_length != wanted:
        raise ConfigError(
            f"The template has slots for {encoder.prompt_length} positions and the adapter, {adapter.kind}, fills "
            f"{wanted}; leave the slots out, and they stand where PEFT has them."
        )
    return Artefact(
        value=value,
        format=form,
        method=adapter.method,
        config=_options(adapter),
        seed=0,
        model={"name": lm.name, "kind": lm.kind},
        fingerprint=asdict(lm.fingerprint()),
        fields=parsed.fields,
        recipe={
            "imported": "peft",
            "adapter": adapter.config,
            "sha256": _digest(adapter.prompt_PX),
            **({} if scale_of(adapter, lm) == 1.0 else {"scaled_by": scale_of(adapter, lm)}),
        },
        numbers_trained=adapter.prompt_PX.numel(),
    )


def foreign(adapter: Adapter, lm: FrozenLM) -> str | None:
    """Return a line if the adapter names another model than this one, else None; names may differ for the same
    weights."""
    if adapter.base_model in (None, lm.name):
        return None
    return f"The adapter was made for {adapter.base_model!r} and is imported for {lm.name!r}; scores may differ widely."


def scale_of(adapter: Adapter, lm: FrozenLM) -> float:
    """Return the factor that an adapter's vectors are multiplied by.

    Before transformers 5.4 a Gemma 2 multiplied all that stands before its first layer, prompts included, by the root
    of its width; since then its embedding does, and a prompt is taken as it is. PEFT records no release but that of
    PEFT: before 0.18 it records none, and does not run with transformers 5.

    Raises: ArtefactError if the release does not tell whether the model scaled the prompt.
    """
    if lm.family not in SCALED_BEFORE or adapter.kind == "PREFIX_TUNING":
        return 1.0
    release = _release(adapter)
    if release is not None and release >= SCALED_FROM:
        return 1.0
    if release is not None and release >= UNSURE_FROM:
        raise ArtefactError(
            f"The adapter was made with PEFT {adapter.config['peft_version']} for a model of the family {lm.family}, "
            "whose prompts are scaled by the model before transformers 5.4 and not since; which of them trained it is "
            'not recorded. Write it into its adapter_config.json: "peft_version": "0.17.1" if transformers was older '
            'than 5.4, "0.19.0" if it was not.'
        )
    return float(torch.tensor(lm.dims.width**0.5, dtype=lm.dtype))


def scaled(adapter: Adapter, lm: FrozenLM) -> str | None:
    """Return a line on what is taken for granted of a family whose prompts are scaled; None for all others."""
    if lm.family not in SCALED_BEFORE or adapter.kind == "PREFIX_TUNING":
        return None
    scale = scale_of(adapter, lm)
    if scale == 1.0:
        return (
            f"The adapter's vectors are taken as transformers 5.4 and newer take those of a {lm.family}; one that was "
            'trained with an older transformers needs "peft_version": "0.17.1" in its adapter_config.json.'
        )
    return (
        f"The adapter is from before transformers 5.4, where a {lm.family} scaled prompts itself: its vectors are "
        f"multiplied by {scale:g}, the root of the model's width."
    )


def _release(adapter: Adapter) -> Version | None:
    """Return the release of PEFT that an adapter records; None if it has none. A text that is no release counts as
    unsure."""
    recorded = adapter.config.get("peft_version")
    if recorded is None:
        return None
    try:
        return Version(str(recorded).partition("@")[0])
    except InvalidVersion:
        return UNSURE_FROM


def flat_prefix(value: PrefixPrompt) -> Float[Tensor, "P X"]:
    """Return keys and values in the order of `Adapter.prompt_PX`, fp32."""
    pair = torch.stack(value.sites["self"]).detach().float().cpu()
    return pair.permute(2, 1, 0, 3, 4).flatten(1)


def _require_front(lm: FrozenLM, form: Format) -> None:
    """Check that the prompt is one piece before everything else of a row. Raises: ArtefactError unless it is."""
    items = Encoder.build(lm, form).row.items
    gaps = [isinstance(item, Gap) for item in items]
    if all(gaps[: sum(gaps)]):
        return
    first = isinstance(form.template.parts[0], Soft) and not form.template.chat
    advice = (
        "train it with --soft-first, which puts its slot there"
        if first and not form.soft_first
        else "train it with a template that begins with its only slot, and --soft-first"
    )
    read = " that an encoder reads" if lm.kind == "seq2seq" else ""
    raise ArtefactError(
        f"PEFT puts a soft prompt before everything{read}, [CLS] and BOS included; in {form.template.source!r} it "
        f"stands elsewhere, so no adapter equals it: {advice}."
    )


def _require_cache(lm: FrozenLM, value: PrefixPrompt) -> None:
    if lm.family in WITHOUT_CACHE:
        raise ArtefactError(
            f"PEFT gives a prefix as a key-value cache, which models of the family {lm.family} do not take; use it "
            "with Foreword, or export a soft prompt."
        )
    if value.start != value.length:
        raise ArtefactError(
            f"PEFT starts the text behind the prefix, at position {value.length}; this one was trained with the text "
            f"at {value.start}: train it with -o start=after."
        )


def _common(lm: FrozenLM, name: str, kind: str, length: int) -> dict[str, Any]:
    return {
        "auto_mapping": None,
        "base_model_name_or_path": name,
        "inference_mode": True,
        "modules_to_save": None,
        "num_layers": lm.sites["encoder"].layers if lm.kind == "seq2seq" else lm.dims.layers,
        "num_transformer_submodules": 2 if lm.kind == "seq2seq" else 1,
        "num_virtual_tokens": length,
        "peft_type": kind,
        "peft_version": LAYOUT,
        "revision": None,
        "task_type": TASKS[lm.kind],
    }


def _soft_config(artefact: Artefact, lm: FrozenLM, name: str) -> dict[str, Any]:
    """Return PEFT's config: p-tuning keeps its name and its network's sizes; any other soft prompt is PROMPT_TUNING."""
    assert isinstance(artefact.value, SoftPrompt)
    width, made = lm.dims.width, artefact.config
    through = artefact.method == "p-tuning"
    config = _common(lm, name, "P_TUNING" if through else "PROMPT_TUNING", artefact.value.length)
    heads = lm.sites["encoder"].heads if lm.kind == "seq2seq" else lm.query_heads
    config |= {"num_attention_heads": heads, "token_dim": width}
    if through:
        return config | {
            "encoder_dropout": 0.0,
            "encoder_hidden_size": made.get("hidden") or width,
            "encoder_num_layers": 2,
            "encoder_reparameterization_type": made.get("encoder", "mlp").upper(),
        }
    return config | {
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "tokenizer_kwargs": None,
        "tokenizer_name_or_path": None,
    }


def _prefix_config(length: int, lm: FrozenLM, name: str) -> dict[str, Any]:
    width = lm.dims.heads * lm.dims.head_size
    return _common(lm, name, "PREFIX_TUNING", length) | {
        "encoder_hidden_size": width,
        "init_weights": None,
        "num_attention_heads": lm.dims.heads,
        "prefix_projection": False,
        "token_dim": width,
    }


def _value(adapter: Adapter, lm: FrozenLM) -> SoftPrompt | PrefixPrompt:
    prompt_PX, dims = adapter.prompt_PX, lm.dims
    length, columns = prompt_PX.shape
    if adapter.kind != "PREFIX_TUNING":
        if columns != dims.width:
            raise ArtefactError(
                f"The adapter has positions of {columns} numbers and {lm.name!r} has embeddings of {dims.width}; give "
                f"the model it was made for ({adapter.base_model!r} by its config)."
            )
        return peft_seq2seq.soft_of(adapter) if adapter.seq2seq else SoftPrompt(prompt_PX * scale_of(adapter, lm))
    lm.require_prefix()
    if adapter.seq2seq:
        return peft_seq2seq.prefix_of(adapter, lm)
    said = tuple(adapter.config.get(key) for key in ("num_layers", "num_attention_heads", "token_dim"))
    have = (dims.layers, dims.heads, dims.heads * dims.head_size)
    if columns != 2 * have[0] * have[2] or any(s not in (None, h) for s, h in zip(said, have, strict=True)):
        raise ArtefactError(
            f"The adapter has a prefix of {columns} numbers a position (layers, heads and width {said}); {lm.name!r} "
            f"has {2 * have[0] * have[2]} {have}: give the model it was made for ({adapter.base_model!r} by its "
            "config)."
        )
    pair = prompt_PX.view(length, dims.layers, 2, dims.heads, dims.head_size).permute(2, 1, 0, 3, 4).contiguous()
    return PrefixPrompt({"self": (pair[0], pair[1])}, start=length)


def _with_slots(template: Template, length: int) -> Template:
    if template.slots:
        return template
    if template.chat:
        raise ConfigError(
            "PEFT has a soft prompt before everything, where messages have no slot; give the template as one string, "
            "or write {soft:N} into the message where it shall stand."
        )
    return template.with_soft(length)


def _options(adapter: Adapter) -> dict[str, Any]:
    """Return the options of the method that PEFT's config holds."""
    config = adapter.config
    known: dict[str, Any] = {"length": adapter.length}
    if adapter.seq2seq and adapter.kind == "PREFIX_TUNING":
        known["sites"] = "self"
    if adapter.kind == "P_TUNING":
        known["encoder"] = str(config.get("encoder_reparameterization_type", "MLP")).lower()
        known["hidden"] = config.get("encoder_hidden_size")
    return known


def _digest(prompt_PX: Tensor) -> str:
    return hashlib.sha256(prompt_PX.numpy().tobytes()).hexdigest()
