"""Figures as PNG files: a run's learning curve, its score against an act option.

Figures are made without pyplot, whose global state (current figure, back end) belongs to the user's own program.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from common.files import replacing

# Okabe and Ito's palette, told apart by colour-blind readers; markers and dashes tell the lines apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":")
REFERENCE_DASHES = ((0, (6, 3)), (0, (2, 2)), (0, (6, 2, 1, 2)))
PANEL_COLUMNS = 3


def line_style(index: int) -> dict:
    """Colour, marker and dashes of the line of that number: no two of the first 18 are the same."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


def new_figure(panels: int, width: float, height: float, columns: int = PANEL_COLUMNS) -> tuple[Figure, list[Axes]]:
    """A figure of `panels` axes in rows of at most `columns`; width and height in inches are a panel's."""
    columns = min(columns, panels)
    lines = math.ceil(panels / columns)
    figure = Figure(figsize=(width * columns, height * lines), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for spare in axes[panels:]:
        spare.remove()
    for one in axes[:panels]:
        one.grid(alpha=0.25, lw=0.6)
        one.tick_params(labelsize=8)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes[:panels]


def save(figure: Figure, path: Path) -> str:
    """Writes the PNG whole or not at all; returns its name."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path.name


def plot_learning_curve(
    evaluations: Sequence[Mapping],
    png_path: str | Path,
    score_name: str,
    reference_lines: Mapping[str, float],
    online_from: int | None = None,
    title: str = "",
) -> None:
    """Plots the evaluations' score against updates, with a band of one standard deviation over the episodes.

    evaluations: rows with the columns `step`, `score_name` and, for the band, `<score_name>_std`.
    reference_lines: horizontal lines by label, such as the mean return of the data. online_from: updates after which
    the online phase begins, marked by a vertical line.
    """
    steps, scores = _column(evaluations, "step"), _column(evaluations, score_name)
    figure, axes = _figure("updates", score_name)
    axes.plot(steps, scores, color=COLOURS[0], marker=MARKERS[0], markersize=4, label="evaluation: mean")
    if f"{score_name}_std" in evaluations[0]:
        spread = _column(evaluations, f"{score_name}_std")
        label = "± one standard deviation over episodes"
        axes.fill_between(steps, scores - spread, scores + spread, color=COLOURS[0], alpha=0.18, lw=0, label=label)
    if online_from is not None:
        axes.axvline(online_from, color=COLOURS[1], lw=1.2, ls=":", label="online from here")
    axes.set_title(title, fontsize=9)
    axes.set_xlim(left=min(0.0, steps.min()))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _finish(figure, axes, png_path, reference_lines)


def plot_sweep(
    rows: Sequence[Mapping],
    png_path: str | Path,
    score_name: str,
    reference_lines: Mapping[str, float],
    option: str,
    others: Sequence[str] = (),
    title: str = "",
) -> None:
    """Plots the score against an act option with its bootstrap intervals, a line for each setting of the `others`.

    rows: of `harness.evaluate.rows_of`.
    """
    values = np.unique(_column(rows, option))
    gap = 0.012 * (np.ptp(values) or 1.0)  # between lines, so that their intervals stay apart
    varying = [name for name in others if len({row[name] for row in rows}) > 1]
    settings = list(dict.fromkeys(tuple(row[name] for name in varying) for row in rows))
    figure, axes = _figure(option, score_name)
    for index, setting in enumerate(settings):
        line = [row for row in rows if tuple(row[name] for name in varying) == setting]
        line.sort(key=lambda row: float(row[option]))
        x = _column(line, option) + gap * (index - (len(settings) - 1) / 2)
        label = ", ".join(f"{name} {value}" for name, value in zip(varying, setting, strict=True)) or "agent"
        plot_line(axes, index, label, x, *(_column(line, f"{score_name}{part}") for part in ("", "_low", "_high")))
    axes.set_xticks(values, [f"{value:g}" for value in values])
    about = f"mean of {rows[0]['episodes']} episodes, bars: 95% bootstrap intervals"
    axes.set_title(f"{title}\n{about}" if title else about, fontsize=9)
    _finish(figure, axes, png_path, reference_lines)


def plot_lines(
    x: Sequence[float],
    lines: Mapping[str, Sequence[tuple[float, float, float]]],
    png_path: str | Path,
    x_label: str,
    y_label: str,
    reference_lines: Mapping[str, float],
) -> None:
    """Plots lines by label, at each x a mean with the ends of its interval, drawn as bars where they are finite."""
    figure, axes = _figure(x_label, y_label)
    for index, (label, points) in enumerate(lines.items()):
        plot_line(axes, index, label, x, *np.array(points, dtype=np.float64).T)
    axes.set_xticks(x, [f"{value:g}" for value in x])
    _finish(figure, axes, png_path, reference_lines)


def plot_line(
    axes: Axes, index: int, label: str, x: Sequence[float], means: np.ndarray, low: np.ndarray, high: np.ndarray
) -> None:
    """The line of that number through `means`, with bars from `low` to `high` where these are finite, [n] each."""
    axes.errorbar(
        x,
        means,
        yerr=np.nan_to_num(np.maximum([means - low, high - means], 0.0)),  # a mean may be a rounding error outside
        label=label,
        markersize=5,
        capsize=3,
        lw=1.3,
        clip_on=False,  # a success rate of 1 has its whole marker
        **line_style(index),
    )


def _column(rows: Sequence[Mapping], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def _figure(x_label: str, score_name: str) -> tuple[Figure, Axes]:
    figure, (axes,) = new_figure(1, 6.4, 4.2)
    axes.set_xlabel(x_label)
    axes.set_ylabel({"return": "episode return", "success": "success rate"}.get(score_name, score_name))
    if score_name == "success":
        axes.set_ylim(-0.03, 1.03)
    return figure, axes


def _finish(figure: Figure, axes: Axes, png_path: str | Path, reference_lines: Mapping[str, float]) -> None:
    """Adds reference lines and a legend, and writes the file."""
    for index, (label, score) in enumerate(reference_lines.items()):
        dashes = REFERENCE_DASHES[index % len(REFERENCE_DASHES)]
        axes.axhline(score, color="0.35", lw=1.2, ls=dashes, label=f"{label} ({score:.4g})")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    save(figure, Path(png_path))
