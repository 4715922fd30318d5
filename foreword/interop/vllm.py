"""Export soft and hard prompts for vLLM, which takes a row's vectors with each request (`prompt_embeds`) and keeps no
prompts.

The folder has the prompt's vectors, the layout of a row around them, and a client that needs no Foreword.
"""

import io
import json
from pathlib import Path
from typing import Any

import torch

from foreword.core.artefact import Artefact
from foreword.core.prompts import HardPrompt, PrefixPrompt, SoftPrompt, lower
from foreword.core.shapes import Float, Tensor
from foreword.errors import ArtefactError
from foreword.interop.folder import SAMPLE, sample_fields, write_export
from foreword.models.base import FrozenLM
from foreword.models.compatibility import check
from foreword.models.encoding.encoder import Encoder
from foreword.models.encoding.row_items import Gap, Hole, Text
from foreword.models.encoding.tokenise import CONTEXTS

ROW, PROMPT, CLIENT, CARD = "row.json", "prompt.pt", "client.py", "README.md"
SOURCE = Path(__file__).with_name("vllm_client.py")  # copied, never imported: it needs the openai client
NOT_THERE = ("bert",)  # families that vLLM does not continue text with


def export(
    artefact: Artefact, folder: str | Path, lm: FrozenLM, *, base_model: str | None = None
) -> Float[Tensor, "P D"]:
    """Write the folder and return the prompt's vectors; `base_model` is the model's name unless given.

    Raises: ArtefactError for a prompt that vLLM has no way to be given, and if the artefact does not fit the model.
    """
    value = _require_vectors(artefact, lm)
    check(lm, artefact)
    name = base_model or lm.name
    encoder = Encoder.build(lm, artefact.format)
    row = {
        "base_model": name,
        "template": artefact.format.template.source,
        "fields": list(artefact.format.template.fields),
        "items": _items(encoder),
        "labels": _labels(encoder),
        "room": encoder.room,
        "special": sorted(encoder.pieces.never),
    }
    prompt_PD = lower(value, lm.embed).embed_PD.detach().cpu().contiguous()
    if not prompt_PD.is_floating_point() or prompt_PD.ndim != 2 or len(prompt_PD) != encoder.prompt_length:
        raise ArtefactError(
            f"The prompt is {prompt_PD.dtype} of shape {list(prompt_PD.shape)} and the template has slots for "
            f"{encoder.prompt_length} positions; the artefact is damaged: train it again."
        )
    saved = io.BytesIO()
    torch.save(prompt_PD, saved)
    contents = {
        ROW: (json.dumps(row, indent=1, ensure_ascii=False) + "\n").encode(),
        PROMPT: saved.getvalue(),
        CLIENT: SOURCE.read_bytes(),
        CARD: _card(artefact, lm, name, encoder).encode(),
    }
    write_export(folder, contents, "an export for vLLM")
    return prompt_PD


def _require_vectors(artefact: Artefact, lm: FrozenLM) -> SoftPrompt | HardPrompt:
    """Return the artefact's value. Raises: ArtefactError unless it is vectors or words for a model that vLLM continues
    text with."""
    value = artefact.value
    if isinstance(value, PrefixPrompt):
        raise ArtefactError(
            "vLLM takes input vectors with a request, not the keys and values that a prefix is; train prompt-tuning "
            "or p-tuning, or serve the prefix with `foreword serve`."
        )
    if not isinstance(value, SoftPrompt | HardPrompt):
        raise ArtefactError(
            f"An artefact of {artefact.method} ({artefact.form}) is no prompt, and vLLM can be given prompts alone; "
            "export one of prompt-tuning, p-tuning or manual."
        )
    if lm.kind != "causal" or lm.family in NOT_THERE:
        raise ArtefactError(
            f"vLLM reads vectors with models that continue text, and {lm.name!r} is a {lm.kind} model of the family "
            f"{lm.family}; train for one of the causal families, or serve this one with `foreword serve`."
        )
    if lm.family == "opt" and lm.dims.width != lm.query_heads * lm.dims.head_size:
        raise ArtefactError(
            f"{lm.name!r} has embeddings of {lm.dims.width}, narrower than its layers, and vLLM takes vectors of the "
            "layers' width; use another model."
        )
    return value


def _items(encoder: Encoder) -> list[dict[str, Any]]:
    """Return the row in order: {"ids"}, tokens that are the same in every row; {"slot"}, positions of the prompt;
    {"text"}, text with fields, read after each of "contexts" until one leaves the text's tokens apart."""
    items: list[dict[str, Any]] = []
    for item in encoder.row.items:
        if isinstance(item, Gap):
            items.append({"slot": [item.start, item.start + len(item.ids)]})
        elif isinstance(item, Text) and item.ids is None:
            alone = item.first or encoder.pieces.restarts
            items.append(
                {
                    "text": [_hole(part) if isinstance(part, Hole) else part for part in item.parts],
                    "strip_left": item.left,
                    "strip_right": item.right,
                    "contexts": [] if alone else list(CONTEXTS),
                }
            )
        elif items and "ids" in items[-1]:
            items[-1]["ids"] += list(item.ids or ())
        else:
            items.append({"ids": list(item.ids or ())})
    return items


def _hole(hole: Hole) -> dict[str, Any]:
    return {"field": hole.name, "strip_left": hole.strip_left, "strip_right": hole.strip_right}


def _labels(encoder: Encoder) -> dict[str, list[list[int]]]:
    """Return the token ids of each label's words."""
    if encoder.plan is None:
        return {}
    return {
        label: [list(word) for word in words]
        for label, words in zip(encoder.format.labels, encoder.plan.words, strict=True)
    }


def _card(artefact: Artefact, lm: FrozenLM, name: str, encoder: Encoder) -> str:
    form = artefact.format
    words = [
        f"- {label}: {', '.join(map(json.dumps, some))}" for label, some in zip(form.labels, form.words, strict=True)
    ]
    encoded = encoder.encode(sample_fields(form))
    ids = [-1 if slot >= 0 else int(i) for i, slot in zip(encoded.ids_S, encoded.slot_S, strict=True)]
    scaled = [
        f"- {name} scales its embeddings. The vectors here are scaled, as the embedding of transformers 5.4 and newer "
        "gives them and as vLLM takes them since it scales in its own embedding too (its pull request 36787); an "
        "older vLLM scales them a second time, and then every answer is wrong."
    ]
    lines = [
        f"# A prompt of {encoder.prompt_length} positions for {name}, to be used with vLLM",
        "",
        f"Made by Foreword (method {artefact.method}, seed {artefact.seed}).",
        "",
        "```",
        f"vllm serve {name} --enable-prompt-embeds",
        "pip install torch transformers openai",
        'python client.py "a text"',
        "```",
        "",
        f"- `{PROMPT}`: the prompt's vectors, one tensor of [positions, hidden] = [{encoder.prompt_length}, "
        f"{lm.dims.width}] by `torch.save`, read by `torch.load(weights_only=True)`.",
        f"- `{ROW}`: how a row is laid out around them, and the pieces of the label words.",
        f"- `{CLIENT}`: embeds a text, puts the vectors in their places, asks the server through the completions API "
        "(`prompt_embeds`, base64 of `torch.save`), and reads the labels from the log-probabilities.",
        "",
        f"Template: `{json.dumps(form.template.source, ensure_ascii=False)}`",
        "",
        *(words or ["Each row brings its own options as label words; the client continues the text."]),
        "",
        f"With {json.dumps(SAMPLE)} in each field the row is `{ids}`, where -1 is a vector of the prompt.",
        "",
        "## What to know",
        "",
        "- The server needs `--enable-prompt-embeds`. vLLM's documentation warns that vectors of a wrong shape may "
        "stop its engine and that the flag is for trusted users only.",
        "- The whole row is sent as vectors with every request, since the server keeps no prompts. It works with "
        "prefix caching, LoRA and log-probabilities, not with speculative decoding or log-probabilities of the prompt.",
        "- The server tells the 20 likeliest tokens; a label word beyond them counts as 0. For more labels start it "
        "with a higher `--max-logprobs`, and raise LIKELIEST in the client.",
        "- Load the model in one dtype on both sides: the row's vectors are rounded to the client's.",
        *(scaled if lm.family.startswith("gemma") else []),
        "- A text that is too long is refused here; Foreword would cut it.",
        "- A prefix (keys and values) has no way into vLLM; prompts of vectors and of words do.",
        "- What was learnt from private data can leak it; treat it like the data.",
    ]
    return "\n".join(lines) + "\n"
