"""The figures of a comparison's report, as PNG files in the style of harness/plots.py."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from harness.comparison.results import FINAL, Results, RunResult
from harness.plots import COLOURS, line_style, new_figure, save
from harness.report import tables
from harness.report.blocks import Block, by_policy, estimates, title_of, unit_of
from harness.report.tables import categories_of, common_tasks, strata_of, with_results
from harness.score_statistics import (
    CONFIDENCE,
    FEWEST_SEEDS,
    intervals,
    mean,
    profile,
)

THRESHOLDS = np.linspace(0.0, 1.0, 101)
NORMALISED_FINAL = f"{FINAL}_normalised"


def rows_of_names(axes: Axes, names: Sequence[str]) -> None:
    """One line per name, the first at the top, with room for markers above the first and below the last."""
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)


# ---- Scores ----


def plot_scores(scores: pd.DataFrame, folder: Path, score: str = "final score") -> str | None:
    """Final scores: a panel for each category, a line for each policy with its seeds, mean and interval."""
    kept = with_results(scores)
    if kept.empty:
        return None
    found = {name: estimates(kept, tasks, FINAL) for name, tasks in categories_of(scores).items()}
    found = {name: ones for name, ones in found.items() if ones["seeds"].any()}
    if not found:
        return None
    titles = [title_of(lines) for lines in by_policy(kept).values()]
    columns = 1 if len(found) == 1 else 2
    figure, panels = new_figure(len(found), 7.5 / columns + 1.5, 0.9 + 0.27 * len(titles), columns)
    for axes, (category, ones) in zip(panels, found.items(), strict=True):
        tasks = categories_of(scores)[category]
        for place, (_, one) in enumerate(ones.iterrows()):
            colour = COLOURS[0] if one["near_best"] or not ones["near_best"].any() else "0.45"
            axes.plot([one["low"], one["high"]], [place, place], color=colour, lw=2.2, solid_capstyle="butt")
            axes.plot(one["each_seed"], np.full(len(one["each_seed"]), place + 0.25), "o", color="0.65", ms=2.8)
            axes.plot([one["mean"]], [place], "D", color=colour, ms=4.5)
        rows_of_names(axes, titles)
        axes.set_xlabel(f"{score} ({unit_of(scores, tasks)})", fontsize=8)
        axes.set_title(f"{category}: mean over {len(tasks)} tasks" if len(tasks) > 1 else tasks[0], fontsize=9)
    few = any(ones["few"].any() for ones in found.values())
    bars = "" if few else f"; bars: {CONFIDENCE:.0%} bootstrap intervals"
    figure.suptitle(f"diamonds: means; dots: seeds{bars}", fontsize=8)
    return save(figure, folder / "scores.png")


def plot_profiles(scores: pd.DataFrame, folder: Path, score: str = "final score") -> str | None:
    """Performance profiles of the final scores; None with fewer than two common tasks."""
    kept = with_results(scores)
    tasks = common_tasks(kept, NORMALISED_FINAL)
    if len(tasks) < 2:
        return None
    figure, (axes,) = new_figure(1, 7.0, 4.6)
    thresholds = THRESHOLDS * max(1.0, kept.loc[kept["task"].isin(tasks), NORMALISED_FINAL].max())
    for index, lines in enumerate(by_policy(kept).values()):
        strata = strata_of(lines, tasks, NORMALISED_FINAL)
        share, low, high = profile(strata, thresholds)
        style = line_style(index) | {"markevery": (7 * index % 25, 25), "markersize": 4}
        axes.step(thresholds, share, where="post", label=title_of(lines), lw=1.3, **style)
        if min(map(len, strata)) >= FEWEST_SEEDS:
            axes.fill_between(thresholds, low, high, step="post", color=style["color"], alpha=0.12, lw=0)
    axes.set_xlabel("normalised score τ", fontsize=8)
    axes.set_ylabel(f"share of runs with a {score} above τ", fontsize=8)
    axes.set_ylim(-0.03, 1.03)
    figure.legend(loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return save(figure, folder / "profiles.png")


def blocks_over_tasks(scores: pd.DataFrame, folder: Path, score: str = "final score") -> list[Block]:
    """Aggregates, probabilities of improvement and performance profiles, as far as there are any."""
    name = plot_profiles(scores, folder, score)
    text = [f"The share of runs whose normalised {score} is above τ, averaged over tasks."]
    profiles = Block("Performance profiles", text=text, figure=name) if name else None
    blocks = tables.aggregate_block(scores), tables.improvement_block(scores, score), profiles
    return [block for block in blocks if block is not None]


# ---- Learning curves ----


def curves_of(runs: Sequence[RunResult]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [s] that all the runs have evaluated at, and their shown scores [s, runs]."""
    score_name = runs[0].result["score_name"]
    by_run = [{int(row["step"]): float(row[score_name]) for row in run.evaluations} for run in runs]
    steps = sorted(set.intersection(*(set(scores) for scores in by_run)))
    scores = np.array([[scores[step] for scores in by_run] for step in steps])
    return np.array(steps), runs[0].scale.shown(scores)


def hours_until(runs: Sequence[RunResult], steps: np.ndarray) -> np.ndarray:
    """Mean over the runs of the hours until each of the steps was evaluated [s], evaluations included."""
    by_run = [{int(row["step"]): float(row["seconds"]) for row in run.evaluations} for run in runs]
    return np.array([statistics.mean(seconds[step] for seconds in by_run) for step in steps]) / 3600


def curve_blocks(results: Results, folder: Path) -> list[Block]:
    """A figure of learning curves for each category."""
    categories = enumerate(categories_of(results.scores).items(), start=1)
    blocks = [
        learning_curves(results, category, tasks, folder / f"learning_curves_{place}.png")
        for place, (category, tasks) in categories
    ]
    return [block for block in blocks if block is not None]


def learning_curves(results: Results, category: str, tasks: Sequence[str], path: Path) -> Block | None:
    """A panel for each task, a line for each variant; None without a finished run.

    One task alone has a second panel, against hours.
    """
    finished = {task: [run for run in results.runs_on(task) if run.finished] for task in tasks}
    finished = {task: runs for task, runs in finished.items() if runs}
    if not finished:
        return None
    shown = [(task, "updates") for task in finished]
    shown += [(task, "hours") for task in finished if len(finished) == 1]
    figure, panels = new_figure(len(shown), 4.2, 3.2)
    handles, counts = {}, set()
    names = dict(zip(results.scores["label"], results.scores["name"], strict=True))
    for axes, (task, unit) in zip(panels, shown, strict=True):
        runs = finished[task]
        for index, variant in enumerate(results.comparison.variants()):
            own = [run for run in runs if run.planned.variant.label == variant.label]
            if own:
                handles[names.get(variant.label, variant.label)] = draw_curve(axes, own, index, unit)
                counts.add(len(own))
        axes.set_title(task, fontsize=8)
        axes.set_xlabel(unit, fontsize=8)
        axes.set_ylabel(runs[0].scale.unit, fontsize=8)
        if unit == "updates":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            for update in online_starts(runs):
                axes.axvline(update, color="grey", lw=0.8, ls=":")
        axes.set_xlim(left=0.0)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    bands = [f"its {CONFIDENCE:.0%} bootstrap interval"] if max(counts) >= FEWEST_SEEDS else []
    bands += ["the range of the seeds where they are few"] if min(counts) < FEWEST_SEEDS else []
    text = "Evaluations during training, with the act options of training: mean over the finished seeds. Band: "
    text += " or ".join(bands) + "."
    if any(online_starts(runs) for runs in finished.values()):
        text += " Dotted: the first steps in the environment."
    return Block(f"Learning curves: {category}", text=[text], figure=save(figure, path))


def online_starts(runs: Sequence[RunResult]) -> set[int]:
    """Numbers of updates after which the runs go on in the environment."""
    return {run.planned.run.offline_steps for run in runs if run.planned.run.online_steps}


def draw_curve(axes: Axes, runs: Sequence[RunResult], index: int, unit: str):
    """Mean over seeds; band: its 95% interval, or from the lowest to the highest of fewer than five seeds.

    unit: updates, or the mean hours until each evaluation.
    """
    steps, scores = curves_of(runs)
    x = steps if unit == "updates" else hours_until(runs, steps)
    style = line_style(index)
    (line,) = axes.plot(x, mean(scores), lw=1.4, markersize=3.5, clip_on=False, zorder=3, **style)
    few = len(runs) < FEWEST_SEEDS
    low, high = (scores.min(axis=-1), scores.max(axis=-1)) if few else intervals([scores], mean)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.08, lw=0)
    return line
