"""A batch of rows that each have their own prompt: the bank that holds these, and what is done where a batch fails."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from foreword.core.prompts import Bank, HardPrompt, PrefixPrompt, stack
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded
from foreword.serving.bank import Entry, PromptBank
from foreword.serving.jobs import fail, is_fatal


def mixed_bank(
    lm: FrozenLM, prompts: PromptBank, rows: Sequence[tuple[Entry | None, Encoded]]
) -> tuple[Bank, list[int], list[bool]]:
    """A bank of the prompts that these rows have, each once; whose is whose; and which rows' leads it holds."""
    number: dict[int, int] = {}
    first: list[tuple[Entry, Encoded]] = []
    task_of, led = [], []
    for entry, row in rows:
        if entry is None:
            task_of.append(-1)
            led.append(False)
            continue
        leads = 0 < row.lead < len(row.ids_S) and entry.lead > 0
        # A row that ends with its lead has nothing to read after it, so it brings its lead along: another prompt.
        key = 2 * id(entry) + leads
        if key not in number:
            number[key] = len(first)
            first.append((entry, row if leads else replace(row, lead=0)))
        task_of.append(number[key])
        led.append(leads)
    nothing = HardPrompt.empty()
    prefixes = prompts.prefixes(first)
    values = [nothing if isinstance(entry.value, PrefixPrompt) else entry.value for entry, _ in first]
    if -1 in task_of:  # the model alone
        prefixes, values = [*prefixes, None], [*values, nothing]
    bank = stack([nothing if p is None else p for p in prefixes], lm.embed, lm.device)
    rest = [row.slot_S[row.lead :] if leads else row.slot_S for (_, row), leads in zip(rows, led, strict=True)]
    if any(bool((slot_S >= 0).any()) for slot_S in rest):
        bank = replace(bank, soft_TPD=stack(values, lm.embed, lm.device).soft_TPD)
    return bank, [len(first) if t < 0 else t for t in task_of], led


def prefix_of(bank: Bank, task: int) -> PrefixPrompt | None:
    if bank.keys_TNQHK is None or bank.values_TNQHK is None:
        return None
    length = int(bank.prefix_length_T[task])
    if not length:
        return None
    return PrefixPrompt(
        {"self": (bank.keys_TNQHK[task, :, :length], bank.values_TNQHK[task, :, :length])}, int(bank.start_T[task])
    )


def attempt(work: Callable[[Any], None], jobs: list[Any], results: list[Future[Any]]) -> None:
    """Do the work of all; if that fails, of each alone, so that only the one at fault is told.

    Raises: what `is_fatal` says, after which no row can be computed.
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
