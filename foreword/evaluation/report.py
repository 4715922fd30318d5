"""Format the lines of a comparison as text: table cells, Markdown, and the notes below. No file is read or written."""

import math
from collections.abc import Sequence

from foreword.evaluation.statistics import Interval
from foreword.evaluation.summary import BASELINES, TableRow


def table(lines: Sequence[TableRow]) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows of cells; columns that are equal in every line are left out and stand in the caption."""
    columns: dict[str, list[str]] = {}
    if len({(line.model, line.kind) for line in lines}) > 1:
        columns["model"] = [f"{line.model}, {line.kind}" for line in lines]
        columns["parameters"] = [count(line.model_numbers) for line in lines]
    if len({line.task for line in lines}) > 1:
        columns["task"] = [line.task for line in lines]
    if len({(line.k, line.train_rows) for line in lines}) > 1:
        columns["training rows"] = [training(line) for line in lines]
    columns["method"] = [line.method for line in lines]
    if any(line.metrics for line in lines):
        for name in _measured(lines):
            columns[title(name)] = [valued(name, line.metrics.get(name)) for line in lines]
        for base in BASELINES:
            if any(base in line.versus for line in lines):
                columns[f"vs {base}"] = [versus(line, base) for line in lines]
    else:
        for name in dict.fromkeys(line.primary for line in lines):
            columns[f"development {title(name)}"] = [
                _plain(scale(name) * line.development.get(name, math.nan), 2 if name in NUMBERS else 1)
                for line in lines
            ]
        if any(line.primary == "accuracy" for line in lines):
            columns["development NLL"] = [f"{line.development.get('nll', float('nan')):.3f}" for line in lines]
    for name in ("no_answer", "cut"):
        if any(line.reasoned.get(name) for line in lines):
            columns.setdefault(title(name), [""] * len(lines))
            columns[title(name)] = [
                f"{100 * line.reasoned[name]:.1f}" if name in line.reasoned else cell
                for line, cell in zip(lines, columns[title(name)], strict=True)
            ]
    for name, cells in (("demonstrations", "shown"), ("calibration", "calibration")):
        if any(getattr(line, cells) for line in lines):
            columns[name] = [getattr(line, cells) for line in lines]
    if any(line.templates for line in lines):
        columns["other templates"] = [
            " / ".join(f"{scale(line.primary) * value:.1f}" for value in line.templates) if line.templates else ""
            for line in lines
        ]
    columns["numbers"] = [f"{line.numbers_trained:,}" for line in lines]
    columns["bytes"] = [f"{line.bytes_stored:,}" for line in lines]
    columns["seconds"] = ["" if line.train_seconds is None else f"{line.train_seconds:.1f}" for line in lines]
    if any(line.metrics for line in lines):
        columns["rows/s"] = [
            "" if line.examples_per_second is None else f"{line.examples_per_second:,.0f}" for line in lines
        ]
    if any(line.allowed > 1 for line in lines):
        columns["tried"] = [f"{line.tried} of {line.allowed}" for line in lines]
        columns["chosen"] = ["; ".join(f"{point} ({times})" for point, times in line.chosen) for line in lines]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def markdown(lines: Sequence[TableRow]) -> str:
    """Return caption, table and notes as Markdown."""
    if not lines:
        return "No run has finished.\n"
    headers, rows = table(lines)
    body = [headers, ["---"] * len(headers), *rows]
    grid = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body)
    under = "\n".join(f"- {note}" for note in notes(lines))
    return "\n\n".join(part for part in (caption(lines), grid, under) if part) + "\n"


def caption(lines: Sequence[TableRow]) -> str:
    """Return a sentence that says which models, tasks, rows and seeds were compared, and what the columns hold."""
    models = ", ".join(
        dict.fromkeys(f"{line.model} ({line.kind}, {count(line.model_numbers)} parameters)" for line in lines)
    )
    tasks = ", ".join(
        dict.fromkeys(
            f"{line.task}{' (synthetic text)' if line.synthetic else ''}: {line.test_rows:,} test rows"
            f"{', text in ' + ', '.join(line.fields) if line.fields else ''}"
            for line in lines
        )
    )
    rows = ", ".join(dict.fromkeys(training(line) for line in lines))
    seeds = seeds_of(lines)
    told = f"{models}. {tasks}; {rows}; {seeds}."
    if not any(line.metrics for line in lines):
        return f"{told} Development rows only; no test row was read."
    covers = _covers(lines)
    what = "Accuracy, macro-F1 and calibration error in percent, NLL in nats"
    texts = [title(name) for name in _measured([line for line in lines if line.primary != "accuracy"])]
    if texts:
        named = f"{', '.join(t for t in texts if t != 'NIST')} in percent{', NIST as it is' if 'NIST' in texts else ''}"
        what = f"{what}; {named}" if any(line.primary == "accuracy" for line in lines) else named[0].upper() + named[1:]
    for case in dict.fromkeys(line.case for line in lines):
        what = f"{what}{CASES.get(case, '')}"
    for name, by in {name: by for line in lines for name, by in line.tokenizers.items()}.items():
        what = f"{what}; {title(name)} reads {BY.get(by, by)}"
    if TITLES["slot_error"] in texts:
        what = f"{what}; of slot errors less is better"
    if "BLEU" in texts:
        what = f"{what}; corpus metrics are resampled by source"
    return (
        f"{told} {what}; in brackets 95% intervals over "
        f"{covers}. Differences are paired, on the same rows and seeds; = marks one that is not shown (its interval "
        "holds 0)."
    )


def notes(lines: Sequence[TableRow]) -> list[str]:
    """Return sentences on what is below the hand-written prompt, on differences that are not shown, and on grid
    points."""
    told = []
    many = len({line.question for line in lines}) > 1
    for line in lines:
        place = f" on {where(line)}" if many else ""
        against = line.versus.get("manual")
        if against is not None and against.high < 0:
            told.append(
                f"{line.method} is below the hand-written prompt{place}: {points(against, line.primary)} points of "
                f"{title(line.primary)}."
            )
        for base, gap in line.versus.items():
            if gap.measured and not gap.shown and (base == BASELINES[0] or line.method != BASELINES[0]):
                apart = points(gap, line.primary)
                told.append(f"Not shown{place}: a difference between {line.method} and {base} ({apart} points).")
        chosen_on = line.development.get("selection")
        if chosen_on is not None and line.primary in line.metrics and line.metrics[line.primary].measured:
            gap = scale(line.primary) * (chosen_on - line.metrics[line.primary].mean)
            told.append(
                f"{line.method} chose on rows of its own{place}: {title(line.primary)} "
                f"{scale(line.primary) * chosen_on:.1f} there, "
                f"which is {gap:+.1f} points from the test rows'."
            )
    for line in lines:
        place = f" on {where(line)}" if many else ""
        cut = line.metrics["cut"].mean if "cut" in line.metrics else line.reasoned.get("cut", 0.0)
        if cut:
            told.append(
                f"{100 * cut:.1f}% of the texts of {line.method}{place} were cut, with no end where their tokens ran "
                "out (--max-new-tokens); reasoning that was cut before its answer, and the last number of a cut text, "
                "are no answer."
            )
        if line.longer:
            rows, of, limit = line.longer
            told.append(
                f"{line.method}{place}: answers end at {limit:,} tokens, and the targets of {rows:,} of {of:,} "
                "training and validation rows are longer, so that no answer to such rows is right (--max-new-tokens)."
            )
    if any(line.allowed > 1 for line in lines):
        told.append(
            f"Every method might try {max(line.allowed for line in lines)} grid points; each seed chose on its "
            "development rows, and test rows were read once, for the choice."
        )
    if any(line.templates for line in lines):
        names = " or ".join(dict.fromkeys(title(line.primary) for line in lines if line.templates))
        told.append(
            f"Other templates: worst, median and best {names} over the task's paraphrased templates, on the same rows "
            "(means over seeds)."
        )
    compared = sum(len(line.versus) for line in lines)
    if compared > 1:
        told.append(f"{compared} differences, each at 95%, without correction for their number.")
    return told


TITLES = {
    "macro_f1": "macro-F1",
    "nll": "NLL",
    "ece": "calibration error",
    "f1": "F1",
    "no_answer": "no answer",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "nist": "NIST",
    "distinct": "distinct-n",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "slot_error": "slot error rate",
}
BY = {
    "zh": "Chinese characters as words (sacrebleu's zh)",
    "char": "characters as words (sacrebleu's char)",
    "unicode": "words of any script, not rouge-score's of a-z and 0-9",
}
CASES = {
    "lower": "; texts were compared in lower case",
    "uncased": "; texts were compared as an uncased model writes them (lower case, no accents, punctuation apart)",
}
NOT_MEASURED = "not measured"  # a metric that can't read these texts is not 0
NUMBERS = ("nll", "nist")  # as they are; all others are shares, told in percent


def title(name: str) -> str:
    """Return a metric's name as users read it."""
    return TITLES.get(name, name.replace("_", " "))


def _measured(lines: Sequence[TableRow]) -> list[str]:
    """Return the names of all lines' metrics in order, without `no_answer` and `cut` if they are 0 in every line."""
    names = dict.fromkeys(name for line in lines for name in line.metrics)
    never = {n for n in ("no_answer", "cut") if all(line.metrics[n].mean == 0 for line in lines if n in line.metrics)}
    if any(line.primary == "accuracy" for line in lines):
        names = dict.fromkeys(("accuracy", "macro_f1", "nll", "ece", *names))
    return [name for name in names if name not in never]


def scale(name: str) -> float:
    """Return the factor by which a metric is multiplied for display: 100 for shares, else 1."""
    return 1.0 if name in NUMBERS else 100.0


def valued(name: str, value: Interval | None) -> str:
    """Format a metric with its interval, in percent unless it is not a share."""
    if value is not None and not value.measured:
        return NOT_MEASURED
    return number(value) if name in NUMBERS else percent(value)


def _plain(value: float, digits: int) -> str:
    return NOT_MEASURED if math.isnan(value) else f"{value:.{digits}f}"


def percent(value: Interval | None) -> str:
    return "" if value is None else f"{100 * value.mean:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def number(value: Interval | None) -> str:
    return "" if value is None else f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def points(gap: Interval, name: str = "accuracy") -> str:
    """Format a difference of the metric `name`, in percentage points unless it is not a share."""
    by, digits = scale(name), 2 if name in NUMBERS else 1
    return f"{by * gap.mean:+.{digits}f} [{by * gap.low:+.{digits}f}, {by * gap.high:+.{digits}f}]"


def versus(line: TableRow, base: str) -> str:
    gap = line.versus.get(base)
    if gap is not None and not gap.measured:
        return NOT_MEASURED
    told = "" if gap is None else points(gap, line.primary)
    return told if gap is None or gap.shown else f"{told} ="


def seeds_of(lines: Sequence[TableRow]) -> str:
    """Return the number of seeds as text, with the number of subsets of training rows if they were drawn separately."""
    seeds = " or ".join(str(n) for n in sorted({len(line.seeds) for line in lines}))
    subsets = " or ".join(str(n) for n in sorted({line.subsets for line in lines if line.subsets}))
    told = f"{seeds} {'seed' if seeds == '1' else 'seeds'}"
    return f"{told} on each of {subsets} subsets" if subsets else told


def training(line: TableRow) -> str:
    return f"{line.train_rows:,} training rows" if line.k is None else f"{line.k} shots a label"


def where(line: TableRow) -> str:
    return f"{line.task}, {line.model} ({line.kind}), {training(line)}"


def _covers(lines: Sequence[TableRow]) -> str:
    """Return what the intervals of these lines are over."""
    if seeds_of(lines) == "1 seed":
        return "test rows alone, since one seed shows no spread"
    return f"the choice of test rows and of {'subsets' if any(line.subsets for line in lines) else 'seeds'}"


def count(n: int) -> str:
    """Format a count in short: 1,234 as 1.2K, 22,700,000 as 22.7M."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= size:
            return f"{n / size:.1f}{letter}"
    return str(n)


def matrix(lines: Sequence[TableRow]) -> str:
    """Return one table for each model and number of shots, methods down and tasks across, of each task's main metric.

    `markdown` has the rest.
    """
    groups: dict[tuple[str, str, int | None], list[TableRow]] = {}
    for line in lines:
        if line.metrics:
            groups.setdefault((line.model, line.kind, line.k), []).append(line)
    parts = []
    for (model, kind, shots), some in groups.items():
        tasks = list(dict.fromkeys(line.task for line in some))
        cells = {(line.method, line.task): line for line in some}
        rows = "all training rows" if shots is None else f"{shots} shots a label"
        body = [["method", *(_head(task, some) for task in tasks), "mean"], ["---"] * (len(tasks) + 2)]
        for method in dict.fromkeys(line.method for line in some):
            results = [cells.get((method, task)) for task in tasks]
            means = [
                100 * line.metrics[line.primary].mean
                for line in results
                if line and line.primary not in NUMBERS and line.metrics[line.primary].measured
            ]
            mean = f"{sum(means) / len(means):.1f}" if len(means) == len(tasks) else ""
            body.append([method, *("" if line is None else _marked(line) for line in results), mean])
        grid = "\n".join("| " + " | ".join(row) + " |" for row in body)
        parts.append(f"**{model} ({kind}), {rows}, {seeds_of(some)}**\n\n{grid}")
    if not parts:
        return "No run has finished.\n"
    shown = [line for some in groups.values() for line in some]
    shares = dict.fromkeys(title(line.primary) for line in shown if line.primary not in NUMBERS)
    others = dict.fromkeys(title(line.primary) for line in shown if line.primary in NUMBERS)
    names = [*([f"{' or '.join(shares)} in percent"] if shares else []), *others]
    key = (
        f"Test {' or '.join(names)}, with 95% intervals over {_covers(shown)}. Against the hand-written prompt on the "
        "same rows: = no difference is shown, < below it."
    )
    return "\n\n".join([*parts, key]) + "\n"


def _head(task: str, lines: Sequence[TableRow]) -> str:
    line = next(line for line in lines if line.task == task)
    return f"{task} ({line.train_rows:,} train, {line.test_rows:,} test)"


def _marked(line: TableRow) -> str:
    gap = line.versus.get(BASELINES[0])
    mark = "" if gap is None or not gap.measured or gap.low > 0 else " <" if gap.high < 0 else " ="
    return valued(line.primary, line.metrics[line.primary]) + mark
