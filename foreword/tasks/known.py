"""Templates and label words of data sets that are known by their folder's name, chosen on development rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Known:
    """How a known data set is put to a model: templates by kind, and words for the labels whose name will not do."""

    masked: str
    causal: str
    words: Mapping[str, tuple[str, ...]]

    def templates(self) -> dict[str, str]:
        return {"masked": self.masked, "causal": self.causal}


_SENTIMENT = Known(
    masked="{text|shorten} It was {mask}.",
    causal="{text|shorten} It was {answer}",
    words={"negative": ("terrible",), "positive": ("great",)},
)

KNOWN: dict[str, Known] = {
    "sst2": _SENTIMENT,
    "mr": _SENTIMENT,
    "trec": Known(
        masked="{mask}: {text|shorten}",
        causal="Question: {text|shorten} Type: {answer}",
        words={
            "abbreviation": ("expression",),
            "description": ("description",),
            "entity": ("entity",),
            "human": ("human",),
            "location": ("location",),
            "number": ("number",),
        },
    ),
    "ag_news": Known(
        masked="{mask} news: {text|shorten}",
        causal="{text|shorten} Topic: {answer}",
        words={"Business": ("business",), "Sci/Tech": ("technology",), "Sports": ("sports",), "World": ("world",)},
    ),
    "sick": Known(
        masked="{text_a|shorten}? {mask}, {text_b}",
        causal="{text_a|shorten}. Is it true that {text_b}? {answer}",
        words={"contradiction": ("no",), "entailment": ("yes",), "neutral": ("maybe",)},
    ),
    "rte": Known(
        masked="{text_a|shorten}? {mask}, {text_b}",
        causal="{text_a|shorten} Question: {text_b} True or false? {answer}",
        words={"entailment": ("yes",), "not_entailment": ("no",)},
    ),
    "hwu64": Known(masked="{text|shorten} It is about {mask}.", causal="{text|shorten} It is about {answer}", words={}),
    "huffpost": Known(masked="{mask} news: {text|shorten}", causal="{text|shorten} Topic: {answer}", words={}),
    "reuters": Known(masked="{mask} news: {text|shorten}", causal="{text|shorten} Topic: {answer}", words={}),
}
