"""Put rows that each have their own prompt into one batch, and try its rows alone if the batch fails."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, final

from foreword.core.prompts import Bank, HardPrompt, PrefixPrompt, stack
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded
from foreword.models.shared_prefix import bank_after
from foreword.serving.bank import Entry, PromptBank
from foreword.serving.jobs import fail, is_fatal


@final
@dataclass(frozen=True, eq=False)
class MixedBatch:
    """Hold a bank of the prompts that rows have, each once; `task_of[n]` is row n's, and `rows` are read after it.

    If the bank has the keys and values of what a row shares, `rows` has the rest of the row.
    """

    bank: Bank
    task_of: list[int]
    rows: list[Encoded]


def mix(lm: FrozenLM, prompts: PromptBank, rows: Sequence[tuple[Entry | None, Encoded]]) -> MixedBatch:
    """Put rows of many prompts into one batch; None as the entry is the model alone."""
    number: dict[int, int] = {}
    first: list[tuple[Entry, Encoded]] = []
    task_of: list[int] = []
    rests: list[Encoded] = []
    for entry, row in rows:
        if entry is None:
            task_of.append(-1)
            rests.append(row)
            continue
        # A row that is read whole brings its prompt's words or slots along: beside the compiled one, another prompt.
        splits = row.shared > 0 and entry.shared > 0
        key = 2 * id(entry) + splits
        if key not in number:
            number[key] = len(first)
            first.append((entry, row))
        task_of.append(number[key])
        rests.append(row.split()[1] if splits else row)
    prefixes = prompts.prefixes(first)
    nothing = HardPrompt.empty()
    values = [nothing if isinstance(entry.value, PrefixPrompt) else entry.value for entry, _ in first]
    if -1 in task_of:  # the model alone
        prefixes, values = [*prefixes, None], [*values, nothing]
    slots = any(bool((row.slot_S >= 0).any()) for row in rests)
    bank = bank_after(lm, prefixes, stack(values, lm.embed, lm.device).soft_TPD if slots else None)
    return MixedBatch(bank, [len(first) if task < 0 else task for task in task_of], rests)


def prefix_of(bank: Bank, task: int) -> PrefixPrompt | None:
    """Return the prefix of one prompt of a bank; None if it has none."""
    if bank.keys_TNQHK is None or bank.values_TNQHK is None:
        return None
    length = int(bank.prefix_length_T[task])
    if not length:
        return None
    return PrefixPrompt(
        {"self": (bank.keys_TNQHK[task, :, :length], bank.values_TNQHK[task, :, :length])}, int(bank.start_T[task])
    )


def attempt(work: Callable[[Any], None], jobs: list[Any], results: list[Future[Any]]) -> None:
    """Do the work of all jobs; if that fails, of each alone, so that only the one at fault gets the error.

    Raises: an error for which `is_fatal` is true, after which no row can be computed.
    """
    try:
        work(jobs)
    except Exception as error:
        if is_fatal(error):
            raise
        if len(jobs) == 1:
            fail(results[0], error)
            return
        for job, result in zip(jobs, results, strict=True):
            if not result.done():
                attempt(work, [job], [result])
