"""Generate builtin:intents: synthetic requests to an assistant, of 20 intents.

Over half of the test rows make requests that no training row makes, and all speak of other things or in other polite
frames. Many intents share times, people, places and money, so that no single word decides.
"""

import random
from collections.abc import Iterator

from foreword.tasks.builtin.grammar import ShuffledDeck, articles, build, fill, pools
from foreword.tasks.builtin.intents_phrases import FRAMES, OPENINGS, PHRASES, SLOTS
from foreword.tasks.task import Task

SIZES = {"train": 2600, "validation": 400, "test": 1000}
LABELS = tuple(PHRASES)
BARE = 0.3  # share of requests without a frame
FAMILIAR = 0.45  # share of test rows with a request of the training rows, about new things and in a new frame


def make(split: str, label: int) -> Iterator[str]:
    """Yield requests of one intent without end."""
    rng = random.Random(f"intents {split} {label}")
    requests = pools(PHRASES[LABELS[label]], ";")
    new, known = ShuffledDeck(rng, requests[split]), ShuffledDeck(rng, requests["train"])
    order, opening = ShuffledDeck(rng, _words(FRAMES, split)), ShuffledDeck(rng, _words(OPENINGS, split))
    slots = {name: ShuffledDeck(rng, _words(source, split)) for name, source in SLOTS.items()}
    slots |= {f"{name}2": slots[name] for name in SLOTS}
    while True:
        familiar = split == "test" and rng.random() < FAMILIAR
        shape = known() if familiar else new()
        frame = order if shape.startswith("!") else opening
        request = articles(fill(shape.removeprefix("!"), slots))
        bare = rng.random() < BARE and not familiar
        yield request if bare else frame().replace("{request}", request)


def _words(source: str, split: str) -> tuple[str, ...]:
    """Return the words of a split; validation, which has few, adds those of training."""
    found = pools(source, ";")
    return found["train"] + found["validation"] if split == "validation" else found[split]


def load() -> Task:
    """Build the task, which always has the same rows."""
    return build(
        "intents",
        LABELS,
        SIZES,
        make,
        template={"masked": "{text|shorten} Category: {mask}.", "causal": "{text|shorten} Category: {answer}"},
    )
