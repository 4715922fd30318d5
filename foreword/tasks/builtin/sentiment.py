"""Generate builtin:sentiment: synthetic reviews, positive or negative.

In a third of the rows the words of one polarity stand under a negation, a contrast or a report that reverses them, so
counting words is not enough. Test rows take most of their loaded words (all but `FAMILIAR`) and most of their shapes
from outside of training.
"""

import random
from collections.abc import Iterator

from foreword.tasks.builtin.grammar import ShuffledDeck, build, fill, lines, pools, sentence
from foreword.tasks.builtin.sentiment_words import DOMAINS, GENERAL, VERDICTS
from foreword.tasks.task import Task

SIZES = {"train": 2000, "validation": 400, "test": 1000}
LABELS = ("negative", "positive")

# {same}, {other}: a word of the aspect with the label's or the opposite polarity; {same2} of the second aspect.
# {verdict}: a clause of the label's polarity; {general}, {not_general}: words for anything.
PLAIN = {
    "train": lines("""
        the {aspect} was {same}. {verdict}.
        the {aspect} was {same} and the {aspect2} was {same2}.
        {remark}. the {aspect} was {same}.
        what a {general} {item}!
        this was a {general} {item}, and {verdict}.
        {remark}, and {verdict}.
        the {aspect} was really {same}.
    """),
    "validation": lines("""
        a {general} {item}: the {aspect} was {same}.
        {remark}. {verdict}, mainly because the {aspect} was {same}.
    """),
    "test": lines("""
        {remark}. the {aspect}? simply {same}.
        with the {aspect} so {same}, {verdict}.
        {remark}. everyone found the {aspect} {same}.
        rarely have I come across so {general} a {item}.
        the {aspect} struck me as {same}, so {verdict}.
    """),
}
TURNED = {
    "train": lines("""
        the {aspect} was not {other} at all.
        {remark}. the {aspect} was anything but {other}.
        I would never call the {aspect} {other}.
        the {aspect} was {other}, but {verdict}.
        although the {aspect} was {other}, {verdict}.
        I expected a {not_general} {item}, but {verdict}.
        {remark}. the {aspect} was never {other}.
    """),
    "validation": lines("""
        yes, the {aspect} was {other}, yet {verdict}.
        the {aspect} could not be called {other}.
    """),
    "test": lines("""
        {verdict}, even though the {aspect} was {other}.
        there was nothing {other} about the {aspect}.
        {remark}. nobody could describe the {aspect} as {other}.
        the reviews spoke of a {not_general} {item}. not so: {verdict}.
        the {aspect} may have been {other}; still, {verdict}.
        people who call the {aspect} {other} are wrong.
    """),
}


TURN = 1 / 3  # share of rows in which the loaded word is turned round
FAMILIAR = 0.35  # share of test rows that take loaded words from the training pools, always in an unseen shape


def make(split: str, label: int) -> Iterator[str]:
    """Yield reviews of one label without end, some plain, some reversed by their shape."""
    rng = random.Random(f"sentiment {split} {label}")
    new = [ShuffledDeck(rng, PLAIN[split]), ShuffledDeck(rng, TURNED[split])]
    known = [ShuffledDeck(rng, PLAIN["train"]), ShuffledDeck(rng, TURNED["train"])]
    verdicts = {s: [ShuffledDeck(rng, _clauses(v)[s]) for v in VERDICTS] for s in ("train", split)}
    while True:
        words = "train" if split == "test" and rng.random() < FAMILIAR else split
        seen_shape = words == split and rng.random() < 0.4
        shape = (known if seen_shape else new)[rng.random() < TURN]()
        yield _review(rng, shape, split, words, label, verdicts[words][1 - label])


def _review(rng: random.Random, shape: str, split: str, words: str, label: int, verdict: ShuffledDeck) -> str:
    domains = [d for d in DOMAINS.values() if pools(d[0])[words]]
    items, remarks, aspects = rng.choice(domains)
    (aspect, loaded), (aspect2, loaded2) = rng.sample([*aspects.items()], 2)
    return sentence(
        fill(
            shape,
            {
                "item": lambda: rng.choice(pools(items)[split]),
                "remark": lambda: rng.choice(_clauses(remarks)[split]),
                "aspect": lambda: aspect,
                "aspect2": lambda: aspect2,
                "same": lambda: rng.choice(pools(loaded[1 - label])[words]),
                "other": lambda: rng.choice(pools(loaded[label])[words]),
                "same2": lambda: rng.choice(pools(loaded2[1 - label])[words]),
                "general": lambda: rng.choice(pools(GENERAL[1 - label])[words]),
                "not_general": lambda: rng.choice(pools(GENERAL[label])[words]),
                "verdict": verdict,
            },
        )
    )


def _clauses(source: str) -> dict[str, tuple[str, ...]]:
    return pools(source, separator=";")


def load() -> Task:
    """Build the task, which always has the same rows."""
    return build(
        "sentiment",
        LABELS,
        SIZES,
        make,
        template={"masked": "{text|shorten} It was {mask}.", "causal": "{text|shorten} It was {answer}"},
        label_words={"negative": "terrible", "positive": "wonderful"},
    )
