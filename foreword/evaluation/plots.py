"""Plot accuracy with its intervals, by method or over numbers of labels. This needs the `plots` extra."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from foreword.errors import ArtefactError, ConfigError
from foreword.evaluation.report import title, where
from foreword.evaluation.statistics import Interval
from foreword.evaluation.summary import TableRow


def plot_accuracy(lines: Sequence[TableRow], file: str | Path) -> Path:
    """Plot one panel for each model, task and number of training rows to `file`, whose suffix decides the format.

    Raises: ConfigError if matplotlib is not installed, nothing was tested, or the suffix names no format; ArtefactError
    if the file cannot be written.
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
    panels: dict[str, list[TableRow]] = {}
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


Curves = Mapping[str, Mapping[str, Sequence[tuple[int, Interval]]]]


def plot_curves(panels: Curves, file: str | Path, *, across: str, up: str) -> Path:
    """Plot curves with their intervals to `file`, one panel for each group; equal names have equal colours.

    Raises: ConfigError if matplotlib is not installed, or the file's suffix names no format; ArtefactError if the file
    cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "Plots need matplotlib, which is not installed; run: pip install 'foreword[plots]'."
        ) from error
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    places = sorted({x for lines in panels.values() for points in lines.values() for x, _ in points})
    figure = Figure(figsize=(3.4 * min(3, len(panels)), 3.2 * -(-len(panels) // 3) + 1.0), layout="constrained")
    axes = figure.subplots(-(-len(panels) // 3), min(3, len(panels)), squeeze=False).ravel()
    for axis, (heading, lines) in zip(axes, panels.items(), strict=False):
        for number, name in enumerate(names):
            points = lines.get(name, [])
            at = [places.index(x) + 0.06 * (number - len(names) / 2) for x, _ in points]
            mean = [100 * value.mean for _, value in points]
            below = [100 * max(0.0, value.mean - value.low) for _, value in points]
            above = [100 * max(0.0, value.high - value.mean) for _, value in points]
            style = {"color": f"C{number % 10}", "marker": "osD^v<>PX*"[number % 10], "markersize": 4, "capsize": 2}
            axis.errorbar(at, mean, [below, above], label=name, linewidth=1, elinewidth=0.7, **style)
        axis.set_xticks(range(len(places)), [str(x) for x in places])
        axis.set_xlim(-0.5, len(places) - 0.5)
        axis.set_title(heading, loc="left", fontsize="medium")
        axis.grid(axis="y", color="0.9")
    for axis in axes[len(panels) :]:
        axis.axis("off")
    figure.supxlabel(across, fontsize="medium")
    figure.supylabel(up, fontsize="medium")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2 * min(3, len(panels)), fontsize="small")
    try:
        figure.savefig(file, dpi=150, metadata={"Software": None})
    except ValueError as error:
        raise ConfigError(f"{file} cannot be drawn: {error}.") from error
    except OSError as error:
        raise ArtefactError(f"{file} could not be written ({error.strerror or error}).") from error
    return Path(file)
