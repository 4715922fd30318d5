"""Hold other templates for a task, ten or more each, to measure how much depends on the wording of one.

Written for the label words that the task has; none was chosen by its score. `{mask}` stands where a causal model ends.
"""

from collections.abc import Sequence

from foreword.core.template import Field, literal, written

_SENTIMENT = (
    "{text|shorten} It was {mask}.",
    "{text|shorten} All in all, it was {mask}.",
    "Review: {text|shorten} Verdict: {mask}.",
    "{text|shorten} The film is {mask}.",
    "{text|shorten} I found it {mask}.",
    "{text|shorten} In a word: {mask}.",
    "A critic wrote: {text|shorten} To the critic it was {mask}.",
    "{text|shorten} What a {mask}.",
    "{text|shorten} My opinion: {mask}.",
    "Here is a comment: {text|shorten} The writer thinks it is {mask}.",
)
_QUESTION = (
    "{text|shorten} Category: {mask}.",
    "{text|shorten} The answer is a {mask}.",
    "Question: {text|shorten} Type: {mask}.",
    "{text|shorten} This asks for a {mask}.",
    "{text|shorten} Kind of answer: {mask}.",
    "Someone asks: {text|shorten} They want to know the {mask}.",
    "{text|shorten} It is a question about {mask}.",
    "Q: {text|shorten} Topic: {mask}.",
    "{text|shorten} What is asked for: {mask}.",
    "{text|shorten} Class: {mask}.",
)
_TOPIC = (
    "{text|shorten} News about {mask}.",
    "{text|shorten} Topic: {mask}.",
    "{text|shorten} This is about {mask}.",
    "Article: {text|shorten} Section: {mask}.",
    "{text|shorten} The subject is {mask}.",
    "{text|shorten} Category: {mask}.",
    "In the paper: {text|shorten} It stood under {mask}.",
    "{text|shorten} Filed under {mask}.",
    "{text|shorten} It belongs to {mask}.",
    "Headline: {text|shorten} Theme: {mask}.",
)
_INTENT = (
    "{text|shorten} Category: {mask}.",
    "{text|shorten} Intent: {mask}.",
    "A user says: {text|shorten} They want {mask}.",
    "{text|shorten} This is about {mask}.",
    "{text|shorten} Command: {mask}.",
    "{text|shorten} Topic: {mask}.",
    "Request: {text|shorten} Kind: {mask}.",
    "{text|shorten} It asks for {mask}.",
    "{text|shorten} What to do: {mask}.",
    "{text|shorten} Purpose: {mask}.",
)


def _about_pairs(first: str, second: str) -> tuple[str, ...]:
    """Return templates that ask whether the second text follows from the first; the label words answer."""
    a, b = written(Field(first, True)), written(Field(second))
    return (
        f"{a}. Is it true that {b}? {{mask}}.",
        f"{a} Question: {b} True or false? {{mask}}.",
        f"{a} Question: {b} Yes or no? {{mask}}.",
        f"{a}. Does it follow that {b}? {{mask}}.",
        f"Premise: {a} Hypothesis: {b} Answer: {{mask}}.",
        f"{a} So {b}? {{mask}}.",
        f"Given that {a}, {b}? {{mask}}.",
        f"{a} Based on this, {b} Right? {{mask}}.",
        f"Text: {a} Claim: {b} Verdict: {{mask}}.",
        f"{a} Then: {b} I say: {{mask}}.",
    )


def _about_one(field: str) -> tuple[str, ...]:
    text = written(Field(field, True))
    return (
        f"{text} It is {{mask}}.",
        f"Text: {text} Label: {{mask}}.",
        f"{text} Category: {{mask}}.",
        f"{text} This is {{mask}}.",
        f"{text} Answer: {{mask}}.",
        f"Input: {text} Output: {{mask}}.",
        f"{text} In a word: {{mask}}.",
        f"{text} Class: {{mask}}.",
        f"Read this: {text} It is called {{mask}}.",
        f"{text} The right word is {{mask}}.",
    )


def _about_several(fields: Sequence[str]) -> tuple[str, ...]:
    marked = [written(Field(name, i == 0)) for i, name in enumerate(fields)]
    named = [f"{_plain(name)}: {text}" for name, text in zip(fields, marked, strict=True)]
    ends = ("Label:", "Answer:", "Category:", "It is", "In a word:")
    return tuple(f"{' '.join(texts)} {end} {{mask}}." for texts in (named, marked) for end in ends)


def _plain(name: str) -> str:
    """Return a field's name as words of a template."""
    return written(literal(name.replace("_", " ")))


_KNOWN = {
    "sst2": _SENTIMENT, "mr": _SENTIMENT, "trec": _QUESTION, "ag_news": _TOPIC, "huffpost": _TOPIC, "reuters": _TOPIC,
    "hwu64": _INTENT, "sentiment": _SENTIMENT, "intents": _INTENT,
}  # fmt: skip
_PAIRS = ("sick", "rte")


def paraphrases(name: str, fields: Sequence[str]) -> tuple[str, ...]:
    """Return the templates of a task by its name if it is known, else by its number of fields."""
    if name in _PAIRS and len(fields) == 2:
        return _about_pairs(*fields)
    if name in _KNOWN and list(fields) == ["text"]:
        return _KNOWN[name]
    return _about_one(fields[0]) if len(fields) == 1 else _about_several(fields)
