"""Guess which columns are the texts of a task, and find columns that give the answer away.

Texts that are all different do not show whether a column holds the label, since each occurs with one label only. So
the measure is how well a row's label follows from the *other* rows with the same value: Goodman and Kruskal's
lambda (1954), the share of the majority guess's errors that a column saves, each row left out of its own prediction.
Real texts save at most 0.01 of them on every data set tried; a copy of the label saves all.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from foreword.errors import DataError
from foreword.tasks.cells import DIGITS, is_missing, plain, written

MOST_GUESSED = 2
ROWS = 5_000  # of which columns are judged, evenly spaced
CHANCE = 0.01  # how likely what is seen may be without any relation, by Chernoff's bound
SAVED, SAVED_BY_FEW = 0.8, 0.5  # least lambda of a column that gives the answer away; of one with few values
FEW = 5  # values a label
SHORT = 3  # words of a value besides the label's name
_ID = re.compile(r"(.*[_\-. ])?(id|ids|idx|index|uid|uuid|guid|key|hash|no|nr|num|number)\d*", re.IGNORECASE)
_ID_CAMEL = re.compile(r".*[a-z](Id|ID|Idx|Index|Key)")
Record = Mapping[str, Any]


@final
@dataclass(frozen=True)
class ColumnSample:
    """Hold the records on which columns are judged.

    `answers` are each record's answer as text, in one or more readings. `names` says whether they are label names: a
    column that consists of these is a leak, while answers in text may also stand in the question.
    """

    records: Sequence[Record]
    answers: Sequence[Sequence[str]]
    names: bool

    def texts(self, column: str) -> list[str] | None:
        """Return the values of a column, "" for those missing; None if a value is not text, or if all are missing."""
        try:
            cells = [plain(record.get(column), f"column {column!r}") for record in self.records]
        except DataError:  # bytes that are no text; told with their row if they are asked for
            return None
        if not all(cell is None or isinstance(cell, str) for cell in cells) or all(map(is_missing, cells)):
            return None
        return ["" if cell is None else str(cell) for cell in cells]


def sample_of(
    records: Sequence[Record], answers: Callable[[Record], Sequence[str] | None], *, names: bool
) -> ColumnSample:
    """Return a sample of the records that have an answer, evenly spaced; `answers` reads it, None if there is none."""
    step = max(1, len(records) // ROWS)
    pairs = [(record, readings) for record in records[::step] if (readings := answers(record)) is not None]
    return ColumnSample(
        [record for record, _ in pairs], [*zip(*(readings for _, readings in pairs), strict=True)], names
    )


def guess_texts(where: str, columns: Sequence[str], sample: ColumnSample) -> tuple[tuple[str, ...], list[str]]:
    """Return which of `columns` are texts, and a line for each column that was left out or that gives the answer away.

    Numbers and ids are no texts as long as another column is one.

    Raises: DataError if a column that gives the answer away is the only one, or if more than two are left.
    """
    texts = {name: values for name in columns if (values := sample.texts(name)) is not None}
    ids = [name for name, values in texts.items() if _is_id(name, values)]
    named = [name for name in texts if name not in ids] or [*texts]
    reasons = {name: gives_away(texts[name], sample) for name in named}
    kept = [name for name in named if reasons[name] is None]
    if named and not kept:  # what texts may do by themselves is no reason against the only ones
        kept = [name for name in named if gives_away(texts[name], sample, strict=True) is None]
        if not kept:
            raise DataError(
                f"{where}: the only column of text, {named[0]!r}, {reasons[named[0]]}, so that reading it is reading "
                f"the answer; name another column with text=, or {named[0]!r} itself if it is meant"
            )
    if len(kept) > MOST_GUESSED:
        raise DataError(
            f"{where} has {len(kept)} columns of text ({', '.join(kept)}), and which of them are to be read cannot be "
            "guessed; name them with text="
        )
    left = named if len(named) == len(texts) else texts
    lines = [f"column {name!r} is not read as text: it {_why(reasons.get(name))}" for name in left if name not in kept]
    return tuple(kept), lines + [warning(name, reason) for name in kept if (reason := reasons[name])]


def _why(reason: str | None) -> str:
    return reason or "holds numbers or ids"


def warning(column: str, reason: str) -> str:
    """Return the warning about a column that is read although it gives the answer away."""
    return f"warning: column {column!r} {reason}; if it was made from the answer, the figures mean nothing"


def gives_away(values: Sequence[str], sample: ColumnSample, *, strict: bool = False) -> str | None:
    """Say how a column gives the answer away; None if it does not.

    `strict` ignores what texts may do without a leak: be alike but for their digits, name the label, or be the answer.
    A question that stands in several rows may likewise determine its option or its answer in text.
    """
    whole = [" ".join(value.split()).casefold() for value in values]
    digitless = [re.sub(r"\d+", "0", value) for value in whole]
    for answers in sample.answers:
        for forms in (whole,) if strict else (whole, digitless):
            saved, count = determined(forms, answers)
            few = count <= FEW * len(set(answers))
            if not 1 < count <= len(values) / 4 or (strict and not sample.names and not _is_answer(whole, answers)):
                continue
            if saved >= (SAVED_BY_FEW if few else SAVED):
                nearly = "" if saved > 0.999 else f" but for {100 * (1 - saved):.0f}% of what the commonest would miss"
                return f"has {count} different values, which determine the answer{nearly}"
            # Coarser than the label, and made from it; a text that answers often repeats what it was asked.
            if few and sample.names and determined(answers, forms)[0] >= SAVED:
                return f"has {count} different values, which the answer determines"
        reason = None if strict else _names_label(whole, answers) if sample.names else _is_answer(whole, answers)
        if reason:
            return reason
    return None


def determined(values: Sequence[str], answers: Sequence[str]) -> tuple[float, int]:
    """Return lambda with each row left out of its own prediction, and the number of different values.

    Lambda is 0 if the majority is always right, or if so many hits are not unlikely without any relation.
    """
    total, counts = len(answers), Counter(answers)
    if not total:
        return 0.0, 0
    majority, base = counts.most_common(1)[0]
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for value, answer in zip(values, answers, strict=True):
        groups[value][answer] += 1
    hits = 0.0
    for group in groups.values():
        if sum(group.values()) == 1:
            hits += group[majority]
            continue
        (first, most), *rest = group.most_common()
        for answer, count in group.items():
            other = most if answer != first else rest[0][1] if rest else 0
            hits += count if count - 1 > other else count / 2 if count - 1 == other else 0
    if base == total or _chance(hits, base / total, total) > CHANCE:
        return 0.0, len(groups)
    return 1 - (total - hits) / (total - base), len(groups)


def _is_answer(whole: Sequence[str], answers: Sequence[str]) -> str | None:
    """Say that values are the answers themselves; None if they are not."""
    same = sum(_words(value) == _words(answer) for value, answer in zip(whole, answers, strict=True))
    return "is the answer itself" if len(set(answers)) > 1 and same >= 0.8 * len(answers) else None


def _names_label(whole: Sequence[str], answers: Sequence[str]) -> str | None:
    """Say that values are little but the name of their label, or texts that all name it; None if they are not."""
    rows = [(_words(value), _words(answer)) for value, answer in zip(whole, answers, strict=True)]
    patterns = {name: re.compile(rf"(?<!\w){re.escape(name)}(?!\w)") for _, name in rows if name}
    held = [(value, name) for value, name in rows if name and patterns[name].search(value)]
    short = sum(len(value.split()) - len(name.split()) <= SHORT for value, name in held)
    if short < 0.8 * len(rows) and len(held) < 0.95 * len(rows):
        return None
    some, counts = rows[:500], Counter(name for _, name in rows if name)
    likely = sum(  # what a label would have of its own name in the text of another row
        count / len(rows) * sum(patterns[name].search(value) is not None for value, _ in some) / len(some)
        for name, count in counts.most_common(100)
    )
    if not some or len(held) / len(rows) < likely + 0.3 or _chance(float(len(held)), likely, len(rows)) > CHANCE:
        return None
    return "holds the name of the label"


def _chance(hits: float, share: float, rows: int) -> float:
    """Return Chernoff's bound on the probability of so many hits in `rows`, each with the probability `share`."""
    rate = hits / rows
    if rate <= share:
        return 1.0
    if not share:
        return 0.0
    divergence = rate * math.log(rate / share)
    divergence += (1 - rate) * math.log((1 - rate) / (1 - share)) if rate < 1 else 0.0
    return math.exp(-rows * divergence)


def _words(text: str) -> str:
    return " ".join(re.sub(r"[\s_\-/]+", " ", text).casefold().split())


def _is_id(name: str, values: Sequence[str]) -> bool:
    """Return whether a column numbers or names its rows: by its name, or by values that are numbers or codes."""
    filled = [value.strip() for value in values if value.strip()]
    if not name.strip() or _ID.fullmatch(name) or _ID_CAMEL.fullmatch(name):
        return True
    if all(DIGITS.fullmatch(value) or _is_number(value) for value in filled):
        return True
    codes = all(" " not in value and any(map(str.isdigit, value)) for value in filled)
    return codes and len(filled) >= 8 and len(set(filled)) == len(filled)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def answer_text(cell: Any) -> str | None:
    """Return an answer as text for counting: the first of a list; None if there is none or it has no text."""
    try:
        value = plain(cell, "an answer")
        value = plain(value[0], "an answer") if isinstance(value, list) and value else value
        return None if is_missing(value) else (written(value, "an answer") or "").strip() or None
    except DataError:  # told with its row when it is read
        return None
