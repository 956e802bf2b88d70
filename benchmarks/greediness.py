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

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import make_folder, replacing, write_text
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
    """{panel: value} of the log's second half, NaN while the run is not finished."""
    if not run.finished:
        return dict.fromkeys((SHARE, SPIKE), float("nan"))
    rows = pd.DataFrame(read_rows(run.planned.folder / run_files.TRAIN_LOG)).apply(pd.to_numeric, errors="coerce")
    rows = rows.reindex(columns=["step", *NEEDED_METRICS])[2 * rows["step"] > run.planned.run.offline_steps]
    mean, std, losses = (rows[name].to_numpy() for name in NEEDED_METRICS)
    return {SHARE: float(np.median(1 / (1 + (std / mean) ** 2))), SPIKE: float(losses.max() / np.median(losses))}


def settings_of(run: RunResult) -> dict:
    """What the points take from a run beside its scores; line: of its weights."""
    diverged = (run.planned.folder / run_files.DIVERGENCE).exists()
    return {
        "run": run.planned.name,
        "task": run.planned.task,
        "line": weights_of(run),
        "beta": run.planned.config.inverse_temperature,
        "diverged": diverged,
    }


def evaluated(results: Results) -> pd.DataFrame:
    """The comparison's scores with the settings of their runs; value: the score as it is shown."""
    settings = pd.DataFrame(map(settings_of, results.runs)).drop(columns="task")
    scores = results.scores.assign(value=shown(results.scores, FINAL)).merge(settings, on="run")
    return scores.assign(n=scores["num_candidates"].map("N = {:g}".format))


def widest_beta(scores: pd.DataFrame) -> float:
    """The beta at which sigmoid weights were evaluated with the most values of omega: where the figure shows omega."""
    omegas = scores[scores["line"] == SIGMOID].groupby("beta")["greediness"].nunique()
    if omegas.empty:
        raise UserError("the comparison has no variant with sigmoid weights, which the figure of omega needs")
    return omegas.idxmax()


def measurements(results: Results) -> pd.DataFrame:
    """A line for every value of the figure: panel, task, line, x (omega or beta), value, whether its run diverged."""
    scores = evaluated(results)
    sigmoid = scores["line"] == SIGMOID
    by_omega = scores[sigmoid & (scores["beta"] == widest_beta(scores))]
    by_omega = by_omega.assign(panel=OMEGA, line=by_omega["n"], x=by_omega["greediness"])
    lines = scores["line"].mask(sigmoid, scores["greediness"].map(OMEGAS_BY_BETA))
    by_beta = scores.assign(panel="score at " + scores["n"], line=lines, x=scores["beta"]).dropna(subset="line")
    logged = pd.DataFrame(
        {**settings_of(run), "panel": panel, "value": value}
        for run in results.runs
        for panel, value in measured_in_log(run).items()
    )
    parts = (by_omega, by_beta, logged.assign(x=logged["beta"]))
    return pd.concat(part[["panel", "task", "line", "x", "value", "diverged"]] for part in parts)


def points_of(results: Results) -> pd.DataFrame:
    """A line for each point: panel, task, line, x, values of the seeds, diverged seeds that have none, mean, low, high.

    low and high: the 95% bootstrap interval of the mean; the lowest and the highest of fewer than five seeds. Runs that
    are not finished are left out; one that diverged counts where its value would be. Raises UserError without any.
    """
    measured = measurements(results)
    has_value = np.isfinite(measured["value"])
    if not has_value.any():
        raise UserError(f"{results.comparison.out}: holds no finished run yet; run harness.compare first")
    tasks, points = tasks_of(results), []
    for key, lines in measured[has_value | measured["diverged"]].groupby(["panel", "task", "line", "x"]):
        values = lines["value"].dropna().to_numpy()
        low, high = float("nan"), float("nan")
        if len(values):
            low, high = interval([values]) if len(values) >= FEWEST_SEEDS else (values.min(), values.max())
        point = {"values": tuple(values), "diverged": int(lines["value"].isna().sum()), "seeds": len(values)}
        numbers = {"mean": values.mean() if len(values) else low, "low": low, "high": high}
        points.append(dict(zip(("panel", "task", "line", "x"), key, strict=True)) | point | numbers)
    points.sort(key=lambda point: (panel_place(point["panel"]), tasks.index(point["task"])))
    return pd.DataFrame(points)


def tasks_of(results: Results) -> list[str]:
    return [task for tasks in results.comparison.tasks.values() for task in tasks]


def panel_place(panel: str) -> tuple[int, int]:
    """For sorting: omega, the scores by beta with their N rising, the share, the spike."""
    fixed = {OMEGA: 0, SHARE: 2, SPIKE: 3}
    return (fixed[panel], 0) if panel in fixed else (1, int(panel.split()[-1]))


# ---- The figure ----


def figure_of(results: Results, points: pd.DataFrame) -> Figure:
    """A column for each task; rows: score by omega, then by beta the score at each N, the weights' share, the spike."""
    tasks = tasks_of(results)
    panels = sorted({OMEGA, SHARE, SPIKE, *points["panel"]}, key=panel_place)
    figure = Figure(figsize=(3.1 * len(tasks) + 2.4, 2.3 * len(panels) + 0.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(caption(points.loc[points["seeds"] > 0, "seeds"]), fontsize=9)
    for panel, row in zip(panels, figure.subfigures(len(panels), 1, squeeze=False)[:, 0], strict=True):
        row.suptitle(row_title(panel, results), fontsize=10, fontweight="bold")
        labelled = {}
        for task, axes in zip(tasks, row.subplots(1, len(tasks), squeeze=False)[0], strict=True):
            style_axes(axes, panel, results, task)
            draw(axes, points[(points["panel"] == panel) & (points["task"] == task)], panel)
            axes.set_title(task if panel == OMEGA else task.split("/")[-1], fontsize=7 if panel == OMEGA else 9)
            handles, labels = axes.get_legend_handles_labels()
            labelled |= dict(zip(labels, handles, strict=True))
        labelled |= {label: labelled.pop(label) for label in (DATA_MEAN, DIVERGED) if label in labelled}  # to the end
        row.legend(labelled.values(), labelled, loc="outside right center", fontsize=8, frameon=False)
    return figure


def caption(seeds: pd.Series) -> str:
    fewest, most = seeds.min(), seeds.max()
    if most == 1:
        return "One seed: differences between seeds are not shown"
    count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    few = fewest < FEWEST_SEEDS
    bars = "from the lowest to the highest seed" if few else f"{CONFIDENCE:.0%} bootstrap intervals over seeds"
    return f"Means over {count} seeds, bars: {bars}"


def row_title(panel: str, results: Results) -> str:
    if panel == OMEGA:
        return f"Score against greediness ω (sigmoid weights, β = {widest_beta(evaluated(results)):g})"
    if panel == SHARE:
        return "Effective share of a minibatch (1: all weights are equal)"
    if panel == SPIKE:
        return "Loss spike: largest / median loss of the positive policy, second half of training"
    candidates = panel_place(panel)[1]
    alone = "the policy alone" if candidates == 1 else f"the critic's choice of {candidates} candidates"
    return f"Score against inverse temperature β at N = {candidates} ({alone})"


def draw(axes: Axes, points: pd.DataFrame, panel: str) -> None:
    """The lines of one panel, each point with its bar; crosses at the top where seeds diverged.

    Lines stand a little aside from each other, so that their bars stay apart.
    """
    lines = [line for line in STYLES if line in set(points["line"])] or list(points["line"].unique())
    for index, line in enumerate(lines):
        style = STYLES.get(line) or CANDIDATE_STYLES[index % len(CANDIDATE_STYLES)]
        aside = index - (len(lines) - 1) / 2
        drawn = points[points["line"] == line].sort_values("x")
        x = drawn["x"] + aside * OMEGA_GAP if panel == OMEGA else drawn["x"] * BETA_GAP**aside
        if drawn["seeds"].any():
            scored = drawn["seeds"] > 0
            mean, low, high = (drawn.loc[scored, name].to_numpy() for name in ("mean", "low", "high"))
            bars = np.maximum([mean - low, high - mean], 0.0)  # a mean is at most a rounding error outside
            axes.errorbar(x[scored], mean, bars, label=line, markersize=5, capsize=2.5, lw=1.3, **style)
        gone = x[drawn["diverged"] > 0]
        if len(gone):
            top = axes.get_xaxis_transform()
            axes.plot(gone, [0.95] * len(gone), "x", color=style["color"], transform=top, ms=8, mew=2, label=DIVERGED)


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
    texts = points["values"].map(lambda values: " ".join(f"{value:.6g}" for value in values))
    write_text(paths[0], points.assign(values=texts).to_csv(index=False, float_format="%.6g", lineterminator="\n"))
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
