"""The table of a comparison on driving/bandit: sub-scores, intervals over seeds, omega chosen in the validation scenes.

    python -m harness.driving.results --comparison configs/compare/driving.yaml --out docs/results/driving

Every row has --samples plans per scene of each of its finished runs. Where rows differ in greediness alone, the one
with the highest mean PDMS in the validation scenes stands in the table; the test scenes choose nothing. The folder
--out takes `scores.csv` (one line per row, seed and split), `table.md` and, where there is such a choice,
`greediness.png`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import make_folder, write_text
from envs.driving.scene_files import SCORE_NAMES, SceneSet, read_split
from harness.comparison.matrix import Comparison, Row, load_comparison
from harness.comparison.protocol import check_protocol
from harness.comparison.results import Results, RunResult
from harness.driving.policies import Policy
from harness.driving.table import TITLES, planner_scores, scores_of
from harness.measurement import format_rows
from harness.plots import plot_lines
from harness.score_statistics import FEWEST_SEEDS, Interval, interval

TASK = "driving/bandit"
CHOOSES, REPORTED = "validation", "test"
PDMS = "pdms"
SUBSCORES = dict(zip(SCORE_NAMES[:-1], TITLES[:-1], strict=True))
REFERENCES = ("PDM-Closed-like planner", "cloning")  # horizontal lines of the figure


# ---- Scores: a line for each row, split and seed, x 100 ----


def read_results(comparison: Comparison) -> Results:
    """The comparison's runs. Raises UserError unless some are finished, by one protocol, on driving/bandit."""
    results = Results(comparison)
    if not any(run.finished for run in results.runs):
        raise UserError(
            f"{comparison.path}: no run is finished: run `python -m harness.compare --config {comparison.path}`"
        )
    check_protocol(results, allow_mixed=False)
    tasks = sorted({run.planned.task for run in results.runs})
    if tasks != [TASK]:
        raise UserError(f"{comparison.path}: its tasks are {', '.join(tasks)}; this table is of {TASK} alone")
    return results


def finished_of(results: Results, row: Row) -> list[RunResult]:
    return [run for run in results.runs_of(row.variant.label) if run.finished]


def line(scores: np.ndarray, **columns: object) -> dict:
    """A line of scores [S, K, 6]; curve: what the points of one curve share, greediness and seed where it has them."""
    means = 100 * scores.mean(axis=(0, 1))
    return {"curve": "", "greediness": None, "seed": None, **columns, **dict(zip(SCORE_NAMES, means, strict=True))}


def lines_of(results: Results, scenes: dict[str, SceneSet], samples: int) -> Iterator[dict]:
    """First what needs no learning; every policy begins at its checkpoint's noise, so that rows are compared alike."""
    for split, part in scenes.items():
        for label, scores in planner_scores(part).items():
            yield line(scores, label=label, split=split)
    for row in results.comparison.rows:
        label, point = row.label, {}
        if "greediness" in row.act:  # all points of a curve share a label, their rows have labels of their own
            others = {name: value for name, value in row.act.items() if name != "greediness"}
            count = others.get("num_candidates")
            label = row.variant.label if count is None else f"{row.variant.label}, best of {count}"
            point = {"greediness": row.act["greediness"], "curve": f"{label} {others}"}
        for run in finished_of(results, row):
            for split, part in scenes.items():
                policy = Policy(run.planned.folder)
                plans = policy.sample(part, policy.data.observations[split], samples, **row.act)
                scores = scores_of(part, plans, f"{row.title}, seed {run.planned.seed}, {split}")
                yield line(scores, label=label, split=split, seed=run.planned.seed, **point)


def chosen(scores: pd.DataFrame) -> dict[str, float]:
    """{curve: its greediness with the highest mean PDMS in the validation scenes}, of the curves with several."""
    found = {}
    for curve, points in scores[scores["split"] == CHOOSES].groupby("curve", sort=False):
        means = points.groupby("greediness")[PDMS].mean()
        if len(means) > 1:
            found[curve] = means.idxmax()
    return found


# ---- What is written ----


def difference(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the first less mean of the second."""
    return np.mean(strata[0], axis=axis) - np.mean(strata[1], axis=axis)


def shown(value: float, bounds: Interval) -> str:
    text = f"{value:.1f}"
    return text if np.isnan(bounds.low) else f"{text} [{bounds.low:.1f}, {bounds.high:.1f}]"


def pdms_cell(values: np.ndarray) -> str:
    """Mean with its interval; with few seeds their values one by one instead."""
    if 1 < len(values) < FEWEST_SEEDS:
        return f"{values.mean():.1f} ({', '.join(f'{value:.1f}' for value in values)})"
    return shown(values.mean(), interval([values]))


def lead_cell(reference: np.ndarray, values: np.ndarray) -> str:
    """By how much the reference's PDMS [n seeds] is above another's, with the interval of that."""
    if len(values) == 1:  # a planner has no seeds: a constant
        return shown(float(difference(reference, values)), interval([reference - values]))
    return shown(float(difference(reference, values)), interval([reference, values], difference))


def subscores_of(lines: pd.DataFrame, suffix: str = "") -> dict[str, str]:
    return {title + suffix: f"{lines[name].mean():.1f}" for name, title in SUBSCORES.items()}


def table(scores: pd.DataFrame) -> str:
    """The table in Markdown: the test scenes, a row for each label, of a curve the chosen point only."""
    best, reference = chosen(scores), None
    reported = scores[scores["split"] == REPORTED]
    points = list(reported.groupby(["curve", "greediness", "label"], sort=False, dropna=False))
    if best:
        curve, omega = next(iter(best.items()))
        reference = reported[(reported["curve"] == curve) & (reported["greediness"] == omega)]
    rows = []
    for (curve, omega, label), lines in points:
        if curve not in best or best[curve] == omega:
            name = f"{label}, omega {omega:g}" if curve in best else label
            row = {f"{REPORTED} scenes": name, "seeds": lines["seed"].count() or "", **subscores_of(lines)}
            row["PDMS"] = pdms_cell(lines[PDMS].to_numpy())
            if reference is not None:
                own = lines.index.equals(reference.index)
                lead = "" if own else lead_cell(reference[PDMS].to_numpy(), lines[PDMS].to_numpy())
                row[f"{reference['label'].iloc[0]} leads by"] = lead
            rows.append(row)
    return format_rows(rows)


def curve_table(points: pd.DataFrame, best: float) -> str:
    """A curve in Markdown: PDMS in the validation and the test scenes, and the test scenes' sub-scores."""
    rows = []
    for omega, lines in points.groupby("greediness"):
        by_split = dict(iter(lines.groupby("split")))
        cells = {f"PDMS, {split}": pdms_cell(by_split[split][PDMS].to_numpy()) for split in (CHOOSES, REPORTED)}
        mark = " (chosen)" if omega == best else ""
        rows.append({"omega": f"{omega:g}{mark}", **cells, **subscores_of(by_split[REPORTED], f", {REPORTED}")})
    return f"{points['label'].iloc[0]}:\n\n{format_rows(rows)}"


def plot_curve(points: pd.DataFrame, scores: pd.DataFrame, path: Path) -> None:
    """PDMS and the test scenes' sub-scores against greediness; the planner and single rows as horizontal lines."""
    titles = {(REPORTED, PDMS): f"PDMS, {REPORTED}", (CHOOSES, PDMS): f"PDMS, {CHOOSES}"}
    titles |= {(REPORTED, name): f"{title}, {REPORTED}" for name, title in SUBSCORES.items()}
    lines = {}
    for (split, name), title in titles.items():
        seeds = points[points["split"] == split].groupby("greediness")[name]
        lines[title] = [(values.mean(), *interval([values.to_numpy()])) for _, values in seeds]
    means = scores[scores["split"] == REPORTED].groupby("label")[PDMS].mean()
    references = {label: means[label] for label in REFERENCES if label in means}
    plot_lines(sorted(points["greediness"].unique()), lines, path, "greediness ω", "score × 100", references)


def write(scores: pd.DataFrame, out: Path, heading: str) -> list[Path]:
    """Writes the CSV, the tables and the figure to the folder `out`; returns their paths."""
    curves = {curve: scores[scores["curve"] == curve] for curve in chosen(scores)}
    paths = [out / "scores.csv", out / "table.md"]
    columns = ["label", "greediness", "split", "seed", *SCORE_NAMES]
    numbers = scores[columns].astype({"seed": "Int64"}).round(4)
    write_text(paths[0], numbers.to_csv(index=False, lineterminator="\n"))
    parts = [curve_table(points, chosen(scores)[curve]) for curve, points in curves.items()]
    write_text(paths[1], "\n\n".join([heading, table(scores), *parts]) + "\n")
    if curves:
        paths.append(out / "greediness.png")
        plot_curve(next(iter(curves.values())), scores, paths[-1])
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    parser = CommandParser("python -m harness.driving.results", __doc__, advice="; --help lists the flags")
    parser.add_argument("--comparison", required=True, metavar="FILE", help="the file that harness.compare ran")
    parser.add_argument("--run_dir", metavar="FOLDER", help="in place of the file's, as harness.compare's")
    parser.add_argument("--samples", type=int, default=8, help="plans per scene of each run")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the files are written")
    with exit_on_user_error():
        options = parser.parse_args(arguments)
        results = read_results(load_comparison(options.comparison, options.run_dir))
        first = Policy(next(run for run in results.runs if run.finished).planned.folder)
        first.check_unchanged()
        make_folder(options.out, "--out")
        scenes = {split: read_split(first.folder, split) for split in (CHOOSES, REPORTED)}
        scores = pd.DataFrame(lines_of(results, scenes, options.samples))
        counts = " and ".join(f"{len(part.scenes)} {split} scenes" for split, part in scenes.items())
        heading = (
            f"Scores times 100, {counts} (set {first.data.sha256[:12]}), {options.samples} plans per scene, "
            f"{results.runs[0].planned.run.offline_steps:,} updates."
        )
        paths = write(scores, options.out, heading)
        print((options.out / "table.md").read_text(encoding="utf-8"), *(f"written: {path}" for path in paths), sep="\n")


if __name__ == "__main__":
    main()
