"""The greediness figure: omega, and sigmoid against exponential weights at rising beta, on the tasks of a comparison.

    python -m harness.compare --config configs/compare/greediness.yaml
    python -m benchmarks.greediness

The second command writes greediness.png and greediness.csv, a line for each point of the figure, into the comparison's
folder, of the runs as they are. Of a run's log the figure takes the second half:

    effective share    1 / (1 + (std / mean)^2) of the positive policy's weights, the median: Kish's effective
                       sample size over the batch size; 1 if all weights are equal
    loss spike         the largest over the median of the positive policy's logged losses

docs/greediness.md says what came out.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import write_text
from harness import run_files
from harness.comparison.matrix import load_comparison
from harness.comparison.results import FINAL, Results, RunResult, shown
from harness.loggers import read_rows
from harness.plots import COLOURS, new_figure, save
from harness.score_statistics import FEWEST_SEEDS, interval

CONFIG = "configs/compare/greediness.yaml"
LOGGED = ["step", "actor/weight_mean", "actor/weight_std", "actor/positive_loss"]
OMEGA, SHARE, SPIKE = "score by omega", "effective share", "loss spike"  # panels; "score at N = n" beside them
SIGMOID, CLIPPED, UNCLIPPED = "sigmoid", "exponential, clipped", "exponential, no clip"
OMEGAS_BY_BETA = {0.0: f"{SIGMOID}, ω = 0: π+ alone", 1.0: f"{SIGMOID}, ω = 1: DIPOLE"}  # lines of the panels by beta
STYLES = {  # by line; the same weights have the same colour
    SIGMOID: {"color": COLOURS[0], "marker": "o"},
    OMEGAS_BY_BETA[0.0]: {"color": COLOURS[0], "marker": "o", "linestyle": "--", "markerfacecolor": "white"},
    OMEGAS_BY_BETA[1.0]: {"color": COLOURS[0], "marker": "o"},
    CLIPPED: {"color": COLOURS[1], "marker": "s"},
    UNCLIPPED: {"color": COLOURS[3], "marker": "^", "linestyle": ":"},
    "N = 1": {"color": COLOURS[2], "marker": "D"},
    "N = 16": {"color": COLOURS[4], "marker": "v"},
}

# ---- From run folders to points ----


def weights_of(run: RunResult) -> str:
    """Which weights a run trains with, as a line's name."""
    if run.planned.config.weighting == "sigmoid":
        return SIGMOID
    return UNCLIPPED if run.planned.config.max_weight is None else CLIPPED


def measured_in_log(run: RunResult) -> dict[str, float]:
    """{panel: value} of the log's second half, NaN while the run is not finished."""
    if not run.finished:
        return dict.fromkeys((SHARE, SPIKE), float("nan"))
    rows = pd.DataFrame(read_rows(run.planned.folder / run_files.TRAIN_LOG))[LOGGED].apply(pd.to_numeric)
    _, mean, std, losses = rows[2 * rows["step"] > run.planned.run.offline_steps].to_numpy().T
    return {SHARE: float(np.median(1 / (1 + (std / mean) ** 2))), SPIKE: float(losses.max() / np.median(losses))}


def settings_of(run: RunResult) -> dict:
    """What the points take from a run beside its scores; line: of its weights."""
    return {
        "run": run.planned.name,
        "task": run.planned.task,
        "line": weights_of(run),
        "beta": run.planned.config.inverse_temperature,
        "diverged": (run.planned.folder / run_files.DIVERGENCE).exists(),
    }


def measurements(results: Results) -> pd.DataFrame:
    """A line for every value of the figure: panel, task, line, x (omega or beta), value, whether its run diverged.

    Omega is shown at the beta at which sigmoid weights were evaluated with the most values of it.
    """
    settings = pd.DataFrame(map(settings_of, results.runs))
    scores = results.scores.assign(value=shown(results.scores, FINAL)).merge(settings.drop(columns="task"), on="run")
    n, sigmoid = scores["num_candidates"].map("N = {:g}".format), scores["line"] == SIGMOID
    widest = scores[sigmoid].groupby("beta")["greediness"].nunique().idxmax()
    by_omega = scores.assign(panel=OMEGA, line=n, x=scores["greediness"])[sigmoid & (scores["beta"] == widest)]
    lines = scores["line"].mask(sigmoid, scores["greediness"].map(OMEGAS_BY_BETA))
    by_beta = scores.assign(panel="score at " + n, line=lines, x=scores["beta"]).dropna(subset="line")
    logged = settings.join(pd.DataFrame(map(measured_in_log, results.runs)))
    logged = logged.melt([*settings], [SHARE, SPIKE], "panel", "value").assign(x=lambda rows: rows["beta"])
    parts = (by_omega, by_beta, logged)
    return pd.concat(part[["panel", "task", "line", "x", "value", "diverged"]] for part in parts)


def points_of(results: Results) -> pd.DataFrame:
    """A line for each point: panel, task, line, x, values of the seeds, diverged seeds that have none, mean, low, high.

    low and high: the 95% bootstrap interval of the mean; the lowest and the highest of fewer than five seeds. Runs that
    are not finished are left out; one that diverged counts where its value would be. Raises UserError without any.
    """
    measured = measurements(results)
    measured = measured[np.isfinite(measured["value"]) | measured["diverged"]]
    if not np.isfinite(measured["value"]).any():
        raise UserError(f"{results.comparison.out}: holds no finished run yet; run harness.compare first")
    points = []
    for key, lines in measured.groupby(["panel", "task", "line", "x"], sort=False):
        values = lines["value"].dropna().to_numpy()
        low, high = lines["value"].min(), lines["value"].max()
        if len(values) >= FEWEST_SEEDS:
            low, high = interval([values])
        counts = {"values": tuple(values), "diverged": int(lines["value"].isna().sum()), "seeds": len(values)}
        numbers = {"mean": lines["value"].mean(), "low": low, "high": high}
        points.append(dict(zip(("panel", "task", "line", "x"), key, strict=True)) | counts | numbers)
    return pd.DataFrame(points)


# ---- The figure ----


def figure_of(points: pd.DataFrame) -> Figure:
    """A column for each task; rows: score by omega, then by beta the score at each N, the weights' share, the spike."""
    panels, tasks = points["panel"].unique(), points["task"].unique()
    figure, axes = new_figure(len(panels) * len(tasks), 3.6, 2.3, len(tasks))
    for index, one in enumerate(axes):
        panel, task = panels[index // len(tasks)], tasks[index % len(tasks)]
        draw(one, points[(points["panel"] == panel) & (points["task"] == task)])
        one.set_xlabel("ω" if panel == OMEGA else "β", fontsize=8)
        one.set_xscale("linear" if panel == OMEGA else "log")
        if panel in (SHARE, SPIKE):
            one.set_yscale("log")
            one.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            one.yaxis.set_minor_formatter(NullFormatter())
        one.xaxis.set_major_formatter("{x:g}")
        one.yaxis.set_major_formatter("{x:g}")
        if index < len(tasks):
            one.set_title(task, fontsize=8)
        if task == tasks[0]:
            one.set_ylabel(panel, fontsize=8)
        if task == tasks[-1]:
            one.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    return figure


def draw(axes: Axes, points: pd.DataFrame) -> None:
    """The lines of one panel, each point with its bar; crosses at the top where seeds diverged."""
    for line in filter(set(points["line"]).__contains__, STYLES):
        drawn = points[points["line"] == line].sort_values("x")
        x, mean, low, high = drawn[["x", "mean", "low", "high"]].to_numpy().T
        bars = np.maximum([mean - low, high - mean], 0.0)  # a mean is at most a rounding error outside
        axes.errorbar(x, mean, bars, label=line, markersize=5, capsize=2.5, lw=1.3, **STYLES[line])
        gone, top = x[drawn["diverged"] > 0], axes.get_xaxis_transform()
        if len(gone):
            axes.plot(
                gone, [0.95] * len(gone), "x", color=STYLES[line]["color"], transform=top, label="a seed diverged"
            )


def main() -> None:
    parser = CommandParser("python -m benchmarks.greediness", __doc__)
    parser.add_argument("--config", metavar="FILE", default=CONFIG, help=f"the comparison (default: {CONFIG})")
    parser.add_argument("--run_dir", metavar="FOLDER", help="in place of the comparison's")
    with exit_on_user_error():
        options = parser.parse_args()
        comparison = load_comparison(options.config, options.run_dir)
        points = points_of(Results(comparison))
        path: Path = comparison.out / "greediness.csv"
        texts = points["values"].map(lambda values: " ".join(f"{value:.6g}" for value in values))
        write_text(path, points.assign(values=texts).to_csv(index=False, float_format="%.6g", lineterminator="\n"))
        save(figure_of(points), path.with_suffix(".png"))
        print(f"written: {path}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
