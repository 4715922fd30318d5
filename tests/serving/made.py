"""Prompts of every form for tiny models, drawn from a seed, saved as artefacts that a server reads."""

from dataclasses import asdict
from pathlib import Path

import torch

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.prompts import HardPrompt, PrefixPrompt, SoftPrompt
from foreword.core.template import Template
from foreword.models.base import FrozenLM
from foreword.serving.store import Version
from foreword.serving.training_outputs import digest

LABELS = ("no", "yes")
WORDS = (("bad", "poor"), ("good",))
TEMPLATES = {
    "causal": {
        "hard": "Say what this is: {text|shorten} It was {answer}",
        "bare": "{text|shorten}{answer}",
        "ahead": "{soft:%d}Review: {text|shorten} It was {answer}",
        "behind": "{text|shorten}{soft:%d} It was {answer}",
        "around": "{soft:%d}{text|shorten}{soft:2} So {answer}",
        "prefix": "Review: {text|shorten} It was {answer}",
    },
    "masked": {
        "hard": "Say what this is: {text|shorten} It was {mask}.",
        "ahead": "{soft:%d}Review: {text|shorten} It was {mask}.",
        "behind": "{text|shorten}{soft:%d} It was {mask}.",
        "prefix": "Review: {text|shorten} It was {mask}.",
    },
}


def artefact(lm: FrozenLM, form: str, length: int = 3, seed: int = 0, **more: object) -> Artefact:
    """An artefact of one of the forms above; its numbers are drawn from the seed at the scale of words."""
    draw = torch.Generator().manual_seed(seed)
    source = TEMPLATES[lm.kind][form]
    template = Template.parse(source % length if "%d" in source else source)
    scale = float(lm.embed(torch.arange(20)[None]).std())
    if form == "prefix":
        ids = torch.randint(4, lm.dims.vocab, (length,), generator=draw)
        words = lm.prefix_from_words(ids)
        keys, values = (t + 0.3 * t.std() * torch.randn(t.shape, generator=draw) for t in words.sites["self"])
        value = PrefixPrompt({"self": (keys, values)}, length)
    elif template.slots:
        size = sum(slot.length or 0 for slot in template.slots)
        value = SoftPrompt(scale * torch.randn(size, lm.dims.width, generator=draw))
    else:
        value = HardPrompt.empty()
    made = {
        "method": {"prefix": "prefix-tuning"}.get(form, "prompt-tuning" if template.slots else "manual"),
        "config": {},
        "seed": seed,
        "model": {"name": lm.name, "kind": lm.kind},
        "fingerprint": asdict(lm.fingerprint()),
        "fields": ("text",),
    }
    return Artefact(value=value, format=Format(template, LABELS, WORDS), **{**made, **more})


def saved(root: Path, name: str, made: Artefact, number: int = 1) -> Version:
    folder = made.save(root / name / str(number))
    return Version(name, number, folder, digest({path.name: path.read_bytes() for path in folder.iterdir()}))
