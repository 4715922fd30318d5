"""Accuracy (of texts: the task's metric) by method with its intervals, as a picture. Needs the `plots` extra."""

from collections.abc import Sequence
from pathlib import Path

from foreword.errors import ArtefactError, ConfigError
from foreword.evaluation.report import title, where
from foreword.evaluation.summary import Line


def plot_accuracy(lines: Sequence[Line], file: str | Path) -> Path:
    """One panel a model, task and number of training rows; the file's ending decides the format.

    Raises: ConfigError where matplotlib is not installed, nothing was tested, or the ending names no format.
    """
    tested = [line for line in lines if line.metrics]
    if not tested:
        raise ConfigError("There is nothing to plot: no run was tested.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "Plots need matplotlib, which is not installed; run: pip install 'foreword[plots]'."
        ) from error
    panels: dict[str, list[Line]] = {}
    for line in tested:
        panels.setdefault(where(line), []).append(line)
    heights = [max(len(rows), 2) for rows in panels.values()]
    figure = Figure(figsize=(7, 0.45 * sum(heights) + 0.9 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (heading, rows) in zip(axes, panels.items(), strict=True):
        for place, line in enumerate(rows):
            value = line.metrics[line.primary]
            axis.plot([100 * value.low, 100 * value.high], [place, place], color="0.5", zorder=1)
            axis.scatter([100 * value.mean], [place], color="black", zorder=2)
        axis.set_yticks(range(len(rows)), [line.method for line in rows])
        axis.invert_yaxis()
        axis.set_title(heading, loc="left", fontsize="medium")
        axis.grid(axis="x", color="0.9")
    names = " or ".join(dict.fromkeys(title(line.primary) for line in tested))
    axes[-1].set_xlabel(f"test {names}, percent, with 95% intervals")
    try:
        figure.savefig(file)
    except ValueError as error:
        raise ConfigError(f"{file} cannot be drawn: {error}.") from error
    except OSError as error:
        raise ArtefactError(f"{file} could not be written ({error.strerror or error}).") from error
    return Path(file)
