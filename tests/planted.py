"""Tasks whose rule is drawn when the test runs, so that nothing can have been fitted to it beforehand."""

import random
from collections.abc import Callable

from foreword.tasks.task import Task
from tests.seeds import new_seed

FILLER = "the a some this that one it we they people here there today again often maybe just also still".split()
NOUNS = (
    "river garden window teacher winter bread horse letter music island doctor bridge candle summer orange village "
    "kitchen pocket yellow thunder basket mirror ladder pepper engine blanket castle pencil desert ribbon"
).split()


def planted_task(seed: int, *, train: int = 160, validation: int = 64, test: int = 128, words: int = 4) -> Task:
    """Two labels; which nouns mean which label is drawn from the seed, and every row has one of them among filler."""
    rng = random.Random(seed)
    nouns = rng.sample(NOUNS, 2 * words)
    pools = {"yes": nouns[:words], "no": nouns[words:]}

    def rows(count: int) -> list[dict[str, str]]:
        out = []
        for number in range(count):
            label = ("yes", "no")[number % 2]
            text = rng.choices(FILLER, k=5)
            text.insert(rng.randrange(6), rng.choice(pools[label]))
            out.append({"text": " ".join(text), "label": label})
        rng.shuffle(out)
        return out

    return Task(
        train=rows(train), validation=rows(validation), test=rows(test), name=f"planted-{seed}",
        template={"masked": "{text|shorten} : {mask} .", "causal": "{text|shorten} : {answer}"},
    )  # fmt: skip


def most_of(reached: Callable[[int], float], lowest: float, wanted: int = 2) -> list[tuple[int, float]]:
    """Reach what can be reached on rules drawn now, one seed after the other, until `wanted` are at least `lowest` or
    `wanted` are not.

    One rule in some thirty is hard to learn in the few steps of a test; two of three are not hard by chance. Of
    those of AutoPrompt it is one in ten, and three of five are not.
    """
    seen: list[tuple[int, float]] = []
    while max(good := sum(value >= lowest for _, value in seen), len(seen) - good) < wanted:
        seed = new_seed()
        seen.append((seed, reached(seed)))
    return seen


ANSWERS = "tea stone water light paper road".split()


def planted_texts(
    seed: int, *, train: int = 120, validation: int = 24, test: int = 64, words: int = 2, most: int = 1
) -> Task:
    """Two answers drawn from the seed, and which nouns call for which; rows accept up to `most` wordings of theirs."""
    rng = random.Random(seed)
    nouns, answers = rng.sample(NOUNS, 2 * words), rng.sample(ANSWERS, 2)
    pools = {answer: nouns[i * words : (i + 1) * words] for i, answer in enumerate(answers)}

    def rows(count: int) -> list[dict[str, object]]:
        out: list[dict[str, object]] = []
        for number in range(count):
            answer = answers[number % 2]
            text = rng.choices(FILLER, k=4)
            text.insert(rng.randrange(5), rng.choice(pools[answer]))
            out.append({"text": " ".join(text), "targets": [answer, f"some {answer}"][: rng.randint(1, most)]})
        rng.shuffle(out)
        return out

    return Task(
        train=rows(train), validation=rows(validation), test=rows(test), name=f"planted-texts-{seed}",
        template="{text|shorten} : {answer}", metric="exact_match",
    )  # fmt: skip
