"""Make starts of a search: the manual prompt's words, filler, chance, or the tokens nearest to a learnt soft prompt."""

import random
from collections.abc import Sequence
from typing import Literal

from foreword.errors import ConfigError
from foreword.methods.triggers.gradients import embeddings_of
from foreword.methods.triggers.projection import Descent
from foreword.methods.triggers.prompt_slots import Prompt
from foreword.methods.triggers.search_space import SearchSpace

Init = Literal["best", "manual", "filler", "pez", "random"]
FILLER = (".", ",", "-", ":", "the", "and", "so", "this")
PEZ_STEPS, PEZ_RATE = 24, 0.1
TRIES = 64


def starts(field: SearchSpace, init: Init) -> dict[str, tuple[Prompt, float]]:
    """Return the starts of this kind with their losses on the pool; each can be written as words, if that is required.

    "best" makes the manual words, filler and PEZ. If there are no manual words or filler, "best" and "filler" draw a
    random prompt.

    Raises: ConfigError if there is none.
    """
    results: dict[str, Prompt] = {}
    filler = _filler(field)
    if init in ("best", "filler") and filler is not None:
        results["filler"] = filler
    manual = _manual(field, filler)
    if init in ("best", "manual") and manual is not None:
        results["manual"] = manual
    if init == "random" or (init in ("best", "filler") and not results):
        results["random"] = random_prompt(field, random.Random(f"{field.job.seed} start"))
    if init in ("best", "pez"):
        begin = manual or filler or random_prompt(field, random.Random(f"{field.job.seed} start"))
        pez = _pez(field, begin)
        if pez is not None:
            results["pez"] = pez
    if not results:
        raise ConfigError(
            f"No start of the kind {init!r} can be made here: the template has no words before its answer, or they are "
            "not read back as they are written. Choose -o init=best."
        )
    return {k: (p, loss) for (k, p), loss in zip(results.items(), field.pool.losses([*results.values()]), strict=True)}


def _writable(field: SearchSpace, prompts: Sequence[Prompt]) -> list[Prompt]:
    return [p for p, good in zip(prompts, field.readable(prompts), strict=True) if good]


def _filler(field: SearchSpace) -> Prompt | None:
    """Return one common token in every slot: the one with the lowest loss; None if none can be written."""
    tokenizer = field.lm.tokenizer
    texts = [space + word for word in FILLER for space in (" ", "")]
    singles = field.slotted.encoder.pieces.after(("a",), texts)
    if field.slotted.length and tokenizer.unk_token_id is not None:
        singles = [ids for ids in singles if tokenizer.unk_token_id not in ids]
    prompts = _writable(field, [tuple(ids * field.slotted.length) for ids in singles if len(ids) == 1])
    if not prompts:
        return None
    losses = field.pool.losses(prompts)
    return prompts[min(range(len(prompts)), key=losses.__getitem__)]


def _manual(field: SearchSpace, filler: Prompt | None) -> Prompt | None:
    """Return the manual words in the last slots, and filler in those before; None if there are no words."""
    words, length = field.slotted.words, field.slotted.length
    if words is None:
        return None
    before = length - len(words)
    fillers = [(filler[0],)] if filler else [(int(i),) for i in field.allowed_A[:TRIES]]
    prompts = [one * before + words for one in fillers] if before else [words]
    return next(iter(_writable(field, prompts)), None)


def random_prompt(
    field: SearchSpace, rng: random.Random, around: Prompt | None = None, slots: int | None = None
) -> Prompt:
    """Draw a prompt of allowed tokens, or one that differs from another in so many slots.

    Raises: ConfigError if none of many can be written.
    """
    length = field.slotted.length
    prompts = []
    for _ in range(TRIES):
        new = list(around) if around else [0] * length
        for slot in range(length) if around is None else rng.sample(range(length), min(slots or 1, length)):
            new[slot] = int(field.allowed_A[rng.randrange(len(field.allowed_A))])
        prompts.append(tuple(new))
    good = _writable(field, prompts)
    if not good:
        raise ConfigError(
            f"None of {TRIES} prompts drawn by chance is read by the tokenizer of {field.lm.name!r} as it is written; "
            "use a shorter length, or -o words=false to keep token ids."
        )
    return good[0]


def _pez(field: SearchSpace, begin: Prompt) -> Prompt | None:
    """Return the best of the prompts that a short projected descent passes through."""
    descent = Descent(embeddings_of(field.lm, begin), PEZ_RATE)
    seen: dict[Prompt, float] = {}
    for step in range(PEZ_STEPS):
        prompt, loss = descent.advance(field.lm, field.gradient_blocks(step), field.allowed_A, field.objective)
        seen[prompt] = min(loss, seen.get(prompt, loss))
    prompts = _writable(field, sorted(seen, key=lambda p: seen[p])[:8])
    if not prompts:
        return None
    losses = field.pool.losses(prompts)
    return prompts[min(range(len(prompts)), key=losses.__getitem__)]
