"""Hold templates and label words of data sets known by folder name, chosen on development rows with foreword-mini.

Some words are odd to a person ("animal" for an entity); they separate the classes best without training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Known:
    """Hold the prompt of a known data set: templates by kind of model, and words for labels whose names do not fit."""

    masked: str
    causal: str
    words: Mapping[str, tuple[str, ...]]

    def templates(self) -> dict[str, str]:
        return {"masked": self.masked, "causal": self.causal}


_SENTIMENT = Known(
    masked="{text|shorten} It was {mask}.",
    causal="{text|shorten} It was {answer}",
    words={"negative": ("terrible",), "positive": ("wonderful",)},
)

KNOWN_TEXTS: dict[str, dict[str, str]] = {
    "e2e_nlg": {"metric": "bleu", "slots": "e2e", "template": "{source|shorten}\nText: {answer}"},
}
KNOWN: dict[str, Known] = {
    "sst2": _SENTIMENT,
    "mr": _SENTIMENT,
    "trec": Known(
        masked="Category: {mask}. {text|shorten}",
        causal="{text|shorten} Category: {answer}",
        words={
            "entity": ("animal",),
            "human": ("who",),
            "location": ("place",),
        },
    ),
    "ag_news": Known(
        masked="{mask}: {text|shorten}",
        causal="{text|shorten} News about {answer}",
        words={"Business": ("business",), "Sci/Tech": ("technology",), "Sports": ("sports",), "World": ("politics",)},
    ),
    "sick": Known(
        masked="{text_a|shorten}. {text_b}? {mask}.",
        causal="{text_a|shorten}. Is it true that {text_b}? {answer}",
        words={"contradiction": ("false",), "entailment": ("true",), "neutral": ("maybe",)},
    ),
    "rte": Known(
        masked="{text_a|shorten}? {mask}, {text_b}",
        causal="{text_a|shorten} Question: {text_b} Yes or no? {answer}",
        words={"entailment": ("yes",), "not_entailment": ("no",)},
    ),
    "hwu64": Known(masked="{text|shorten} Category: {mask}.", causal="{text|shorten} Category: {answer}", words={}),
    "huffpost": Known(masked="{mask}: {text|shorten}", causal="{text|shorten} News about {answer}", words={}),
    "reuters": Known(masked="{mask}: {text|shorten}", causal="{text|shorten} News about {answer}", words={}),
}
