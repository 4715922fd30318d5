"""Write requests to a proposer, and find the instruction in its answers."""

import random
import re
import unicodedata
from collections.abc import Sequence

from foreword.core.format import Format
from foreword.tasks.rows import Row

LONGEST = 400  # characters of an instruction
COPIED = 20  # characters of a row that an instruction may not hold

_QUOTES = "\"'`“”‘’«»*"
# what putting word pieces together leaves
_SPACED = re.compile(r" (?=[.,:;?!)])|(?<=[(]) ")
_SHORTENED = re.compile(r"(?<=[\w)]) ?' (?=(?:s|t|re|ve|ll|d|m)\b)")
_LEADS = re.compile(r"^(?:(?:the )?(?:new |better )?instruction(?: was)?|in other words|output|answer)\s*:\s*", re.I)


def shown(row: Row, answer: str) -> str:
    """Return a row and its answer as a proposer sees them."""
    fields = row.fields
    named = {name.replace("_", " ").capitalize() if len(fields) > 1 else "Input": text for name, text in fields.items()}
    return "\n".join([*(f"{name}: {text}" for name, text in named.items()), f"Output: {answer}"])


def forward(examples: Sequence[str]) -> str:
    """Return a request for an instruction at its end (Zhou et al. 2022, forward generation)."""
    pairs = "\n\n".join(examples)
    return (
        "One instruction was given, and these outputs were written for the inputs by following it.\n\n"
        f"{pairs}\n\nThe instruction was to"
    )


def insert(examples: Sequence[str]) -> tuple[str, str]:
    """Return the text before and after the missing instruction (Zhou et al. 2022, reverse generation)."""
    pairs = "\n\n".join(examples)
    return "The instruction was to", f". These outputs were written by following it.\n\n{pairs}"


def insert_asked(examples: Sequence[str]) -> str:
    """Return the request of `insert` as one text, for a model that continues text."""
    before, after = insert(examples)
    return f"{before} ____{after}\n\nThe words that belong in the gap are:"


def variation(instruction: str) -> str:
    """Ask for another wording of a good instruction: iterative Monte-Carlo search (Zhou et al. 2022, section 3.3)."""
    return (
        f"Write the instruction in other words, with the same meaning.\n\nInstruction: {instruction}\nIn other words:"
    )


def history(scored: Sequence[tuple[str, float]], examples: Sequence[str]) -> str:
    """Return a request that shows what was tried, worst first, with its score out of 100 (Yang et al. 2023, OPRO)."""
    tried = "\n\n".join(f"Instruction: {text}\nScore: {100 * score:.0f}" for text, score in scored)
    pairs = "\n\n".join(examples)
    return (
        "These instructions were tried on a task, and each has a score; higher is better.\n\n"
        f"{tried}\n\nThe task, by examples:\n\n{pairs}\n\n"
        "A new instruction that is different from all of these and has a higher score:\n\nInstruction:"
    )


def instruction_of(answer: str, rows: Sequence[Row] = ()) -> str | None:
    """Return the instruction in an answer: its first line, without quotes and control characters.

    None if there is none, if it is too long, or if it copies the text of a row.
    """
    printable = "".join(c for c in answer if c in "\n\t" or unicodedata.category(c)[0] != "C")
    lines = [line.strip() for line in printable.splitlines()]
    first = next((line for line in lines if line.strip(_QUOTES + " .:-_")), "")
    first = _LEADS.sub("", first).strip(_QUOTES + " ")
    first = tidy(first).lstrip(".:;,-_ ").rstrip(":;,-_ ")
    if not any(c.isalpha() for c in first) or len(first) > LONGEST:
        return None
    low = first.lower()
    for row in rows:
        for text in row.fields.values():
            if len(text) >= COPIED and text.lower() in low:
                return None
    return first[0].upper() + first[1:]


def tidy(text: str) -> str:
    """Return the text with single spaces, and none where word pieces were put together with one too many."""
    return _SHORTENED.sub("'", _SPACED.sub("", " ".join(text.split())))


def seeds(form: Format) -> list[str]:
    """Return plain instructions to begin with, made of the label words."""
    words = [label[0] for label in form.words]
    if not words:
        return ["Choose the right answer.", "Answer the question.", "Which answer fits best?"]
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    return [
        f"Classify the text as {listed}.",
        f"Decide whether the text is {listed}.",
        f"Read the text and answer with {listed}.",
        f"Which of these fits the text: {', '.join(words)}?",
        f"Say in one word what the text is: {listed}.",
    ]


def edited(instruction: str, rng: random.Random) -> str:
    """Return the instruction with one small change: a word left out or moved, or another beginning.

    This is in the manner of GrIPS (Prasad et al. 2022), for proposers that cannot be asked for a variation.
    """
    words = instruction.split()
    kind = rng.randrange(4)
    if kind == 0 and len(words) > 2:
        del words[rng.randrange(len(words))]
    elif kind == 1 and len(words) > 2:
        at = rng.randrange(len(words) - 1)
        words[at], words[at + 1] = words[at + 1], words[at]
    else:
        begin = rng.choice(["Please", "Your task:", "In this task,", "For each input,", "Now"])
        words = [begin, words[0][:1].lower() + words[0][1:], *words[1:]] if words else words
    text = " ".join(words)
    return text[:1].upper() + text[1:]
