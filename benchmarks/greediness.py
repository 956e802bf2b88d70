"""The greediness figure: omega, and sigmoid against exponential weights at rising beta, on the tasks of a comparison.

    python -m harness.compare --config configs/compare/greediness.yaml
    python -m benchmarks.greediness

The second command writes greediness.png and greediness.csv, a line for each point of the figure, into the comparison's
folder, of the runs as they are. Of a run's log the figure takes the second half:

    effective share of the minibatch    1 / (1 + (std / mean)^2) of the positive policy's weights, the median: Kish's
                                        effective sample size over the batch size; 1 if all weights are equal
    loss spike                          the largest over the median of the positive policy's logged losses

docs/greediness.md says what came out.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import make_folder, replacing, write_rows_csv
from harness import run_files
from harness.comparison.matrix import Comparison, load_comparison
from harness.comparison.results import FINAL, Results, RunResult, shown
from harness.loggers import read_rows
from harness.plots import COLOURS
from harness.score_statistics import CONFIDENCE, FEWEST_SEEDS, interval

CONFIG = "configs/compare/greediness.yaml"
NEEDED_FIELDS = ("weighting", "max_weight", "inverse_temperature", "greediness", "num_candidates")
NEEDED_METRICS = ("actor/weight_mean", "actor/weight_std", "actor/positive_loss")
OMEGA, SHARE, SPIKE = "score by omega", "effective share", "loss spike"  # panels; "score at N = n" beside them
SIGMOID, CLIPPED, UNCLIPPED = "sigmoid", "exponential, clipped", "exponential, no clip"
OMEGAS_BY_BETA = {0.0: f"{SIGMOID}, ω = 0: π+ alone", 1.0: f"{SIGMOID}, ω = 1: DIPOLE"}  # lines of the panels by beta
STYLES = {  # by line; the same weights have the same colour
    SIGMOID: {"color": COLOURS[0], "marker": "o"},
    OMEGAS_BY_BETA[0.0]: {"color": COLOURS[0], "marker": "o", "linestyle": "--", "markerfacecolor": "white"},
    OMEGAS_BY_BETA[1.0]: {"color": COLOURS[0], "marker": "o"},
    CLIPPED: {"color": COLOURS[1], "marker": "s"},
    UNCLIPPED: {"color": COLOURS[3], "marker": "^", "linestyle": ":"},
}
CANDIDATE_STYLES = (
    {"color": COLOURS[2], "marker": "D"},
    {"color": COLOURS[4], "marker": "v"},
    {"color": COLOURS[5], "marker": "P"},
)
DATA_MEAN, DIVERGED = "mean return of the data", "a seed diverged"
OMEGA_GAP, BETA_GAP = 0.05, 1.07  # between the points of lines at the same x: a difference; a factor
X_MARGIN = 1.5  # of the axis of beta, as a factor

Key = tuple[str, str, str, float]  # panel, task, line, x


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of the figure: `values` of the seeds, `diverged` seeds that have none."""

    panel: str
    task: str
    line: str
    x: float  # omega or beta
    values: tuple[float, ...]
    diverged: int

    @property
    def mean(self) -> float:
        return float(np.mean(self.values)) if self.values else float("nan")

    @property
    def bounds(self) -> tuple[float, float]:
        """95% bootstrap interval of the mean; the lowest and the highest of fewer than five seeds."""
        if len(self.values) >= FEWEST_SEEDS:
            return interval([np.array(self.values)])
        return (min(self.values), max(self.values)) if self.values else (float("nan"), float("nan"))

    def csv_row(self) -> dict[str, Any]:
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        low, high = self.bounds
        values = " ".join(f"{value:.6g}" for value in self.values)
        numbers = {name: f"{value:.6g}" for name, value in {"mean": self.mean, "low": low, "high": high}.items()}
        return own | {"x": f"{self.x:g}", "values": values, "seeds": len(self.values), **numbers}


# ---- From run folders to points ----


def weights_of(run: RunResult) -> str:
    """Which weights a run trains with, as a line's name. Raises UserError for weights that the figure has not."""
    config = run.planned.config
    missing = [name for name in NEEDED_FIELDS if not hasattr(config, name)]
    if missing:
        raise UserError(
            f"{run.planned.variant.label}: {run.planned.variant.algorithm} has no {missing[0]}; the greediness figure "
            "is of DIPOLE's variants only"
        )
    if config.weighting not in ("sigmoid", "exponential"):
        raise UserError(
            f"{run.planned.variant.label}: weighting is {config.weighting}; the figure is of sigmoid and exponential"
        )
    if config.weighting == "sigmoid":
        return SIGMOID
    return UNCLIPPED if config.max_weight is None else CLIPPED


def measured_in_log(run: RunResult) -> dict[str, float]:
    """{panel: value} of the log's second half."""
    rows = [
        row
        for row in read_rows(run.planned.folder / run_files.TRAIN_LOG)
        if 2 * int(row["step"]) > run.planned.run.offline_steps
    ]
    mean, std, losses = (np.array([float(row.get(name) or "nan") for row in rows]) for name in NEEDED_METRICS)
    return {SHARE: float(np.median(1 / (1 + (std / mean) ** 2))), SPIKE: float(losses.max() / np.median(losses))}


def widest_beta(results: Results) -> float:
    """The beta at which sigmoid weights were evaluated with the most values of omega: where the figure shows omega."""
    runs = {run.planned.name: run for run in results.runs}
    omegas = collections.defaultdict(set)
    for score in results.scores.itertuples():
        if weights_of(runs[score.run]) == SIGMOID:
            omegas[runs[score.run].planned.config.inverse_temperature].add(score.greediness)
    if not omegas:
        raise UserError("the comparison has no variant with sigmoid weights, which the figure of omega needs")
    return max(omegas, key=lambda beta: len(omegas[beta]))


def measurements(results: Results) -> Iterator[tuple[Key, RunResult, float]]:
    """Every value of the figure with its point and its run; NaN where the run has none."""
    omega_beta, runs = widest_beta(results), {run.planned.name: run for run in results.runs}
    for score in results.scores.assign(value=shown(results.scores, FINAL)).itertuples():
        run, omega, panel = runs[score.run], score.greediness, f"score at N = {score.num_candidates:g}"
        beta, weights = run.planned.config.inverse_temperature, weights_of(run)
        if weights == SIGMOID and beta == omega_beta:
            yield (OMEGA, score.task, f"N = {score.num_candidates:g}", omega), run, score.value
        if weights != SIGMOID or omega in OMEGAS_BY_BETA:
            line = OMEGAS_BY_BETA[omega] if weights == SIGMOID else weights
            yield (panel, score.task, line, beta), run, score.value
    for run in results.runs:
        values = measured_in_log(run) if run.finished else dict.fromkeys((SHARE, SPIKE), float("nan"))
        for panel, value in values.items():
            yield (panel, run.planned.task, weights_of(run), run.planned.config.inverse_temperature), run, value


def points_of(results: Results) -> list[Point]:
    """The figure's points, in the order of the comparison. Raises UserError if no run is finished.

    Runs that are not finished are left out; a run that diverged counts where its value would be.
    """
    values: dict[Key, list[float]] = collections.defaultdict(list)
    diverged: dict[Key, int] = collections.Counter()
    for key, run, value in measurements(results):
        if run.finished and np.isfinite(value):
            values[key].append(value)
        elif (run.planned.folder / run_files.DIVERGENCE).exists():
            diverged[key] += 1
    if not values:
        raise UserError(f"{results.comparison.out}: holds no finished run yet; run harness.compare first")
    tasks = tasks_of(results)
    keys = sorted({*values, *diverged}, key=lambda key: (panel_place(key[0]), tasks.index(key[1]), *key[2:]))
    return [Point(*key, tuple(values.get(key, ())), diverged.get(key, 0)) for key in keys]


def tasks_of(results: Results) -> list[str]:
    return [task for tasks in results.comparison.tasks.values() for task in tasks]


def candidates_of(panel: str) -> int:
    return int(panel.split()[-1])


def panel_place(panel: str) -> tuple[int, int]:
    """For sorting: omega, the scores by beta with their N rising, the share, the spike."""
    fixed = {OMEGA: 0, SHARE: 2, SPIKE: 3}
    return (fixed[panel], 0) if panel in fixed else (1, candidates_of(panel))


# ---- The figure ----


def figure_of(results: Results, points: Sequence[Point]) -> Figure:
    """A column for each task; rows: score by omega, then by beta the score at each N, the weights' share, the spike."""
    tasks = tasks_of(results)
    panels = sorted({OMEGA, SHARE, SPIKE, *(point.panel for point in points)}, key=panel_place)
    figure = Figure(figsize=(3.1 * len(tasks) + 2.4, 2.3 * len(panels) + 0.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(caption(points), fontsize=9)
    for panel, row in zip(panels, figure.subfigures(len(panels), 1, squeeze=False)[:, 0], strict=True):
        row.suptitle(row_title(panel, results), fontsize=10, fontweight="bold")
        labelled = {}
        for task, axes in zip(tasks, row.subplots(1, len(tasks), squeeze=False)[0], strict=True):
            style_axes(axes, panel, results, task)
            draw(axes, [point for point in points if (point.panel, point.task) == (panel, task)])
            axes.set_title(task if panel == OMEGA else task.split("/")[-1], fontsize=7 if panel == OMEGA else 9)
            handles, labels = axes.get_legend_handles_labels()
            labelled |= dict(zip(labels, handles, strict=True))
        labelled |= {label: labelled.pop(label) for label in (DATA_MEAN, DIVERGED) if label in labelled}  # to the end
        row.legend(labelled.values(), labelled, loc="outside right center", fontsize=8, frameon=False)
    return figure


def caption(points: Sequence[Point]) -> str:
    seeds = [len(point.values) for point in points if point.values]
    count = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    if max(seeds) == 1:
        return "One seed: differences between seeds are not shown"
    few = min(seeds) < FEWEST_SEEDS
    bars = "from the lowest to the highest seed" if few else f"{CONFIDENCE:.0%} bootstrap intervals over seeds"
    return f"Means over {count} seeds, bars: {bars}"


def row_title(panel: str, results: Results) -> str:
    if panel == OMEGA:
        return f"Score against greediness ω (sigmoid weights, β = {widest_beta(results):g})"
    if panel == SHARE:
        return "Effective share of a minibatch (1: all weights are equal)"
    if panel == SPIKE:
        return "Loss spike: largest / median loss of the positive policy, second half of training"
    candidates = candidates_of(panel)
    alone = "the policy alone" if candidates == 1 else f"the critic's choice of {candidates} candidates"
    return f"Score against inverse temperature β at N = {candidates} ({alone})"


def draw(axes: Axes, points: Sequence[Point]) -> None:
    """The lines of one panel, each point with its bar; crosses at the top where seeds diverged."""
    styled = [line for line in STYLES if line in {point.line for point in points}]
    lines = styled or list(dict.fromkeys(point.line for point in points))
    for index, line in enumerate(lines):
        style = STYLES.get(line) or CANDIDATE_STYLES[index % len(CANDIDATE_STYLES)]
        aside = index - (len(lines) - 1) / 2
        drawn = sorted((point for point in points if point.line == line), key=lambda point: point.x)
        scored = [point for point in drawn if point.values]
        if scored:
            means = np.array([point.mean for point in scored])
            low, high = np.array([point.bounds for point in scored]).T
            bars = np.maximum([means - low, high - means], 0.0)  # a mean is at most a rounding error outside
            x = [drawn_at(point, aside) for point in scored]
            axes.errorbar(x, means, bars, label=line, markersize=5, capsize=2.5, lw=1.3, **style)
        gone = [drawn_at(point, aside) for point in drawn if point.diverged]
        if gone:
            top = axes.get_xaxis_transform()
            axes.plot(gone, [0.95] * len(gone), "x", color=style["color"], transform=top, ms=8, mew=2, label=DIVERGED)


def drawn_at(point: Point, aside: float) -> float:
    """Where a point stands: lines stand a little aside from each other, so that their bars stay apart."""
    return point.x + aside * OMEGA_GAP if point.panel == OMEGA else point.x * BETA_GAP**aside


def style_axes(axes: Axes, panel: str, results: Results, task: str) -> None:
    if panel in (SHARE, SPIKE):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        units = [run.scale.unit for run in results.runs_on(task) if run.finished]
        axes.set_ylabel(units[0] if units else "", fontsize=8)
        mean = results.identity(task).get("episode_return_mean")
        if mean is not None:
            axes.axhline(mean, color="0.5", lw=1.0, ls=(0, (2, 2)), label=DATA_MEAN)
    if panel == OMEGA:
        axes.set_xlabel("ω", fontsize=8)
    else:
        betas = sorted({run.planned.config.inverse_temperature for run in results.runs})
        axes.set_xscale("log")
        axes.set_xticks(betas, [f"{beta:g}" for beta in betas])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(betas[0] / X_MARGIN, betas[-1] * X_MARGIN)
        axes.set_xlabel("β", fontsize=8)
    axes.grid(alpha=0.25, lw=0.6)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


# ---- The command ----


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes greediness.csv and greediness.png of the runs as they are; returns their paths. Raises UserError."""
    results = Results(comparison)
    points = points_of(results)
    make_folder(folder, "--out")
    paths = [folder / "greediness.csv", folder / "greediness.png"]
    write_rows_csv([point.csv_row() for point in points], paths[0])
    with replacing(paths[1]) as temporary:
        figure_of(results, points).savefig(temporary, format="png")
    return paths


def main() -> None:
    parser = CommandParser("python -m benchmarks.greediness", __doc__)
    parser.add_argument("--config", metavar="FILE", default=CONFIG, help=f"the comparison (default: {CONFIG})")
    parser.add_argument("--run_dir", metavar="FOLDER", help="in place of the comparison's")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of figure and CSV (default: the comparison's)")
    with exit_on_user_error():
        options = parser.parse_args()
        comparison = load_comparison(options.config, options.run_dir)
        for path in write(comparison, options.out or comparison.out):
            print(f"written: {path}")


if __name__ == "__main__":
    main()
