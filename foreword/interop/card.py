"""Write the card of an exported adapter: what PEFT's files do not say, for the person who gets them."""

import json

from foreword.core.artefact import Artefact
from foreword.interop.folder import SAMPLE, sample_fields
from foreword.interop.peft_files import Adapter
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoder
from foreword.models.load import EMBEDDED


def card(artefact: Artefact, adapter: Adapter, lm: FrozenLM) -> str:
    """Return README.md with the front matter that the hub reads, the template, the label words and a row to check
    against."""
    form, name = artefact.format, json.dumps(adapter.base_model)
    options = ", is_decoder=True" if adapter.causal and lm.family == "bert" else ""
    embedded = [f"{lm.name} comes with Foreword; its folder is foreword/data/foreword-mini in the package.", ""]
    auto = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "seq2seq": "AutoModelForSeq2SeqLM"}[
        lm.kind
    ]
    words = [
        f"- {label}: {', '.join(map(json.dumps, some))}" for label, some in zip(form.labels, form.words, strict=True)
    ]
    template = json.dumps(form.template.without_soft().source, ensure_ascii=False)
    lines = [
        "---",
        f"base_model: {name}",
        "library_name: peft",
        *(["pipeline_tag: text-generation"] if adapter.causal else []),
        "tags:",
        f"- {json.dumps(f'base_model:adapter:{adapter.base_model}')}",
        "---",
        "",
        f"# A {adapter.method} adapter for {adapter.base_model}",
        "",
        f"Made by Foreword (method {artefact.method}, seed {artefact.seed}). PEFT has no place for the template and "
        "the label words, so they are here:",
        "",
        f"- Template: `{template}`",
        *(
            words
            or ["- The answer is a text." if form.decoding else "- Each row brings its own options as label words."]
        ),
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {auto}",
        "",
        f'model = PeftModel.from_pretrained({auto}.from_pretrained({name}{options}), "FOLDER").eval()',
        "```",
        "",
        *(embedded if lm.name in EMBEDDED else []),
        *_sample(artefact, adapter, lm),
        "",
        "Pad on the right: with padding on the left PEFT's positions count the pads.",
        "What was learnt from private data can leak it; treat it like the data.",
    ]
    return "\n".join(lines) + "\n"


def _sample(artefact: Artefact, adapter: Adapter, lm: FrozenLM) -> list[str]:
    """Return lines with the token ids of a row and the column from which its answer is read."""
    options = () if artefact.format.labels or artefact.format.decoding else ("yes", "no")
    extra = 0 if adapter.kind != "PREFIX_TUNING" else len(adapter.prompt_PX)
    encoded = Encoder.build(lm, artefact.format, extra).encode(sample_fields(artefact.format), options)
    if encoded.source is not None:
        read = encoded.source.ids_S[encoded.source.slot_S < 0].tolist()
        return [
            f"With {json.dumps(SAMPLE)} in each field the `input_ids` are `{read}` and the `decoder_input_ids` "
            f"`{encoded.ids_S.tolist()}`; the answer is read from the logits of column {encoded.answer}."
        ]
    slots = int((encoded.slot_S >= 0).sum())
    ids = encoded.ids_S[slots:].tolist()
    return [
        f"With {json.dumps(SAMPLE)} in each field the `input_ids` are `{ids}`, and the answer is read from the logits "
        f"of column {encoded.answer} of those that the model returns"
        + (f" (its first {slots} are the prompt's)." if slots else "."),
    ]
