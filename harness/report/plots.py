"""The figures of a comparison's report, as PNG files in the style of harness/plots.py."""

import math
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from common.files import replacing
from harness.comparison.matrix import Row
from harness.comparison.results import FINAL, Results, RunResult
from harness.plots import COLOURS, MARKERS
from harness.report.blocks import bold_titles, estimates, short_title
from harness.report.tables import common_tasks, rows_with_results
from harness.score_statistics import (
    FEWEST_SEEDS,
    interquartile_mean,
    interval,
    intervals,
    mean,
    optimality_gap,
    profile,
)

DASHES = ("-", "--", ":")
THRESHOLDS = np.linspace(0.0, 1.0, 101)
PANEL_COLUMNS = 3


def line_style(index: int) -> dict:
    """Colour, marker and dashes of the line of that number: no two of the first 18 are the same."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


def new_figure(panels: int, width: float, height: float, columns: int = PANEL_COLUMNS) -> Tuple[Figure, List[Axes]]:
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


# ---- Scores ----


def plot_scores(results: Results, folder: Path) -> Optional[str]:
    """Final scores: a panel for each category, a line for each policy with its seeds, mean and interval."""
    rows = rows_with_results(results)
    categories = {name: estimates(results, tasks, FINAL) for name, tasks in results.categories().items()}
    categories = {name: found for name, found in categories.items() if any(one.seeds for one in found.values())}
    if not categories:
        return None
    columns = 1 if len(categories) == 1 else 2
    figure, panels = new_figure(len(categories), 7.5 / columns + 1.5, 0.9 + 0.27 * len(rows), columns)
    for axes, (category, found) in zip(panels, categories.items(), strict=True):
        best = bold_titles(found)
        for place, row in enumerate(rows):
            one = found[row.title]
            if not one.seeds:
                continue
            colour = COLOURS[0] if row.title in best or not best else "0.45"
            if not one.few:
                low, high = interval(one.strata)
                axes.plot([low, high], [place, place], color=colour, lw=2.2, solid_capstyle="butt")
            axes.plot(one.seed_means, np.full(len(one.seed_means), place + 0.25), "o", color="0.65", ms=2.8)
            axes.plot([one.mean], [place], "D", color=colour, ms=4.5)
        axes.set_yticks(range(len(rows)), [short_title(row) for row in rows], fontsize=8)
        axes.invert_yaxis()
        scale_unit = results.scale(results.categories()[category][0]).unit
        axes.set_xlabel(f"final score ({scale_unit})", fontsize=8)
        axes.set_title(category, fontsize=9)
    few = any(one.few for found in categories.values() for one in found.values())
    shown = "diamonds: means; dots: seeds" + ("" if few else "; bars: 95% bootstrap intervals")
    figure.suptitle(shown, fontsize=8)
    return save(figure, folder / "scores.png")


def plot_aggregates(results: Results, folder: Path) -> Optional[str]:
    """Interquartile mean and optimality gap with their intervals; None with fewer than two common tasks."""
    rows = rows_with_results(results)
    tasks = common_tasks(results, rows, normalisable=True)
    if len(tasks) < 2:
        return None
    figure, panels = new_figure(2, 5.0, 0.9 + 0.27 * len(rows), columns=2)
    titles = {"IQM (higher is better)": interquartile_mean, "optimality gap (lower is better)": optimality_gap}
    for axes, (title, statistic) in zip(panels, titles.items(), strict=True):
        for place, row in enumerate(rows):
            strata = [results.normalised(row, task, FINAL) for task in tasks]
            low, high = interval(strata, statistic)
            axes.plot([low, high], [place, place], color=COLOURS[0], lw=6, alpha=0.35, solid_capstyle="butt")
            axes.plot([statistic(*strata)], [place], "|", color=COLOURS[0], ms=11, mew=2)
        axes.set_yticks(range(len(rows)), [short_title(row) for row in rows], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(f"{title}, final score, {len(tasks)} tasks", fontsize=9)
    panels[1].tick_params(labelleft=False)
    return save(figure, folder / "aggregates.png")


def plot_profiles(results: Results, folder: Path) -> Optional[str]:
    """Performance profiles of the final scores; None with fewer than two common tasks."""
    rows = rows_with_results(results)
    tasks = common_tasks(results, rows, normalisable=True)
    if len(tasks) < 2:
        return None
    figure, (axes,) = new_figure(1, 7.0, 4.6)
    highest = max(results.normalised(row, task, FINAL).max() for row in rows for task in tasks)
    thresholds = THRESHOLDS * max(1.0, highest)
    for index, row in enumerate(rows):
        strata = [results.normalised(row, task, FINAL) for task in tasks]
        share, low, high = profile(strata, thresholds)
        style = line_style(index) | {"markevery": (7 * index % 25, 25), "markersize": 4}
        axes.step(thresholds, share, where="post", label=short_title(row), lw=1.3, **style)
        if min(map(len, strata)) >= FEWEST_SEEDS:
            axes.fill_between(thresholds, low, high, step="post", color=style["color"], alpha=0.12, lw=0)
    axes.set_xlabel("normalised score τ", fontsize=8)
    axes.set_ylabel("share of runs with a final score above τ", fontsize=8)
    axes.set_ylim(-0.03, 1.03)
    figure.legend(loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return save(figure, folder / "profiles.png")


def plot_improvement(rows: Sequence[Row], pairs: Dict[Tuple[str, str], tuple], folder: Path) -> Optional[str]:
    """The probabilities of improvement as a matrix of colours; None with fewer than two rows."""
    if len(rows) < 2:
        return None
    values = np.array([[pairs.get((row.title, other.title), (0.5,))[0] for other in rows] for row in rows])
    size = 1.8 + 0.42 * len(rows)
    figure, (axes,) = new_figure(1, size + 2.2, size)
    image = axes.imshow(values, cmap="RdBu", vmin=0.0, vmax=1.0)
    for (line, column), value in np.ndenumerate(values):
        if line != column:
            colour = "white" if abs(value - 0.5) > 0.3 else "black"
            axes.text(column, line, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_yticks(range(len(rows)), [f"{place}  {short_title(row)}" for place, row in enumerate(rows, 1)], fontsize=8)
    axes.set_xticks(range(len(rows)), range(1, len(rows) + 1), fontsize=8)
    axes.grid(False)
    axes.xaxis.tick_top()
    figure.colorbar(image, ax=axes, label="probability that left scores more than above", shrink=0.8)
    return save(figure, folder / "improvement.png")


# ---- Learning curves ----


def curves_of(runs: Sequence[RunResult]) -> Tuple[np.ndarray, np.ndarray]:
    """Steps [s] that all the runs have evaluated at, and their shown scores [s, runs]."""
    score_name = next(run.result["score_name"] for run in runs)
    by_run = [{int(row["step"]): float(row[score_name]) for row in run.evaluations} for run in runs]
    steps = sorted(set.intersection(*(set(scores) for scores in by_run)))
    scores = np.array([[scores[step] for scores in by_run] for step in steps])
    return np.array(steps), runs[0].scale.shown(scores)


def plot_learning_curves(results: Results, category: str, folder: Path, name: str) -> Optional[str]:
    """A panel for each task of the category, a line for each variant; None without a finished run."""
    tasks = [task for task in results.categories()[category] if any(run.finished for run in results.runs_on(task))]
    if not tasks:
        return None
    variants = results.comparison.variants()
    columns = min(PANEL_COLUMNS, len(tasks))
    figure, panels = new_figure(len(tasks), 7.5 if columns == 1 else 4.2, 4.6 if columns == 1 else 3.2)
    labels = {}
    for axes, task in zip(panels, tasks, strict=True):
        for index, variant in enumerate(variants):
            runs = [run for run in results.runs_on(task) if run.finished and run.planned.variant.label == variant.label]
            if runs:
                labels[variant.label] = _draw_curve(axes, runs, index)
        axes.set_title(task, fontsize=8)
        axes.set_xlabel("updates", fontsize=8)
        axes.set_ylabel(results.scale(task).unit, fontsize=8)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlim(left=0.0)
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return save(figure, folder / name)


def _draw_curve(axes: Axes, runs: Sequence[RunResult], index: int):
    """Mean over seeds; band: its 95% interval, or from the lowest to the highest of fewer than five seeds."""
    steps, scores = curves_of(runs)
    style = line_style(index)
    (line,) = axes.plot(steps, mean(scores), lw=1.4, markersize=3.5, **style)
    if len(runs) >= FEWEST_SEEDS:
        low, high = intervals([scores], mean)
    else:
        low, high = scores.min(axis=-1), scores.max(axis=-1)
    axes.fill_between(steps, low, high, color=style["color"], alpha=0.08, lw=0)
    return line
