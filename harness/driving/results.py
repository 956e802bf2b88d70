"""The table of a comparison on driving/bandit: sub-scores, intervals over seeds, act options chosen by validation.

    python -m harness.driving.results --comparison configs/compare/driving.yaml --out docs/results/driving \\
        --greediness 0 0.5 1 --noise_scale 1 0.5 0

Every row has --samples plans per scene of each of its finished runs, at every value of --greediness and --noise_scale
that its agent can take. The setting with the highest mean PDMS in the validation scenes stands in the table; the test
scenes choose nothing. The folder --out takes `scores.csv` (one line per row, setting, seed and split), `table.md` and,
where the reference has several greediness values, `greediness.png`.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from common.errors import CommandParser, UserError, check_at_least, exit_on_user_error
from common.files import format_rows, make_folder, write_text
from envs.driving.scene_files import SCORE_NAMES, SceneSet, read_split
from harness.comparison.matrix import Comparison, Row, load_comparison
from harness.comparison.protocol import check_protocol
from harness.comparison.results import Results, RunResult, with_checkpoint
from harness.driving.policies import Policy
from harness.driving.table import BASELINES, TITLES, planner_scores, scores_of
from harness.grid import cells_of, parse_grid
from harness.plots import plot_lines
from harness.run_folder import checkpoint_folder
from harness.score_statistics import FEWEST_SEEDS, Interval, interval

TASK = "driving/bandit"
CHOOSES, REPORTED = "validation", "test"
PDMS = "pdms"
SUBSCORES = dict(zip(SCORE_NAMES[:-1], TITLES[:-1], strict=True))
REFERENCES = ("PDM-Closed-like planner", "cloning", "IQL", "FQL")  # horizontal lines of the figure
SETTINGS = ("greediness", "noise_scale")


class Setting(NamedTuple):
    """Act options that are chosen in the validation scenes; None: the row has no choice of it."""

    greediness: float | None = None
    noise_scale: float | None = None

    def given(self) -> dict[str, float]:
        """{title in tables: value} of those that were chosen among several."""
        titles = {"omega": self.greediness, "noise": self.noise_scale}
        return {title: value for title, value in titles.items() if value is not None}

    def __str__(self) -> str:
        return "".join(f", {title} {value:g}" for title, value in self.given().items())


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


def line(scores: np.ndarray, **columns: object) -> dict:
    """A line of scores [S, K, 6]; empty columns: what the policy does not have."""
    means = 100 * scores.mean(axis=(0, 1))
    empty = dict.fromkeys((*SETTINGS, "seed"))
    return {**empty, **columns, **dict(zip(SCORE_NAMES, means, strict=True))}


Point = tuple[Row, RunResult, list[dict[str, float]]]  # a row, one of its runs, the settings it is sampled at


def points_to_sample(
    rows: Sequence[Row], runs: Sequence[RunResult], asked: Mapping[str, Sequence[str]]
) -> Iterator[Point]:
    """Each row's runs at every combination of the asked values of what the agent has and the row leaves open.

    Raises UserError for a value that the agent refuses.
    """
    for row, run in ((row, run) for row in rows for run in runs if run.planned.variant.label == row.variant.label):
        free = [name for name in row.variant.agent_class.act_options if name in asked and name not in row.act]
        free = [name for name in free if name != "greediness" or getattr(run.config, "num_policies", 1) == 2]
        grid = [f"{name}={','.join(asked[name])}" for name in free]
        yield row, run, cells_of(parse_grid(grid, row.variant.agent_class, run.config))


def lines_of(
    points: Sequence[Point], scenes: Mapping[str, SceneSet], samples: int, checkpoint: str = ""
) -> Iterator[dict]:
    """First what needs no learning; every policy begins at its checkpoint's noise, so that rows are compared alike.

    checkpoint: which of each run's kept ones acts; empty: the last.
    """
    for split, part in scenes.items():
        for label, scores in planner_scores(part).items():
            yield line(scores, label=label, split=split)
    for row, run, settings in points:
        policy = Policy(checkpoint_folder(run.planned.folder, checkpoint))
        start = policy.agent.noise.generator.get_state()
        for setting, (split, part) in itertools.product(settings, scenes.items()):
            policy.agent.noise.generator.set_state(start)
            plans = policy.sample(part, policy.data.observations[split], samples, **row.act, **setting)
            scores = scores_of(part, plans, f"{row.title}, seed {run.planned.seed}, {split}")
            yield line(scores, label=row.title, split=split, seed=run.planned.seed, **setting)


def points_of(scores: pd.DataFrame) -> list[tuple[str, Setting, pd.DataFrame]]:
    """(label, setting, lines) of every label at every setting, in their order."""
    groups = scores.groupby(["label", *SETTINGS], sort=False, dropna=False)
    return [
        (label, Setting(*(None if pd.isna(value) else value for value in setting)), lines)
        for (label, *setting), lines in groups
    ]


def chosen(scores: pd.DataFrame) -> dict[str, Setting]:
    """{label: its setting with the highest mean PDMS in the validation scenes}."""
    means: dict[str, dict[Setting, float]] = {}
    for label, setting, lines in points_of(scores[scores["split"] == CHOOSES]):
        means.setdefault(label, {})[setting] = lines[PDMS].mean()
    return {label: max(points, key=points.__getitem__) for label, points in means.items()}


def reported(scores: pd.DataFrame) -> list[tuple[str, Setting, pd.DataFrame]]:
    """The points of the test scenes, each label at its chosen setting alone."""
    best = chosen(scores)
    points = points_of(scores[scores["split"] == REPORTED])
    return [(label, setting, lines) for label, setting, lines in points if setting == best[label]]


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


def lead_cell(reference: np.ndarray, values: np.ndarray, constant: bool = False) -> str:
    """By how much the reference's PDMS [n seeds] is above another's, with the interval of that where seeds are enough.

    constant: the other is a planner, which has no seeds.
    """
    lead = float(difference(reference, values))
    seeds = len(reference) if constant else min(len(reference), len(values))
    if seeds < FEWEST_SEEDS:
        return f"{lead:.1f}"
    return shown(lead, interval([reference - values]) if constant else interval([reference, values], difference))


def subscores_of(lines: pd.DataFrame, suffix: str = "") -> dict[str, str]:
    return {title + suffix: f"{lines[name].mean():.1f}" for name, title in SUBSCORES.items()}


def table(scores: pd.DataFrame, reference: str) -> str:
    """The table in Markdown: the test scenes, each label at its chosen setting, and the lead of the reference's."""
    points = reported(scores)
    by_label = {label: lines[PDMS].to_numpy() for label, _, lines in points}
    rows = []
    for label, setting, lines in points:
        seeds = lines["seed"].count()
        row = {f"{REPORTED} scenes": f"{label}{setting}", "seeds": seeds or "", **subscores_of(lines)}
        row["PDMS"] = pdms_cell(by_label[label])
        if reference in by_label:
            lead = "" if label == reference else lead_cell(by_label[reference], by_label[label], constant=not seeds)
            row[f"{reference} leads by"] = lead
        rows.append(row)
    return format_rows(rows)


def curve_table(label: str, scores: pd.DataFrame, best: Setting) -> str:
    """All settings of a label in Markdown: PDMS in the validation and the test scenes, and the latter's sub-scores."""
    rows = []
    for _, setting, lines in points_of(scores[scores["label"] == label]):
        by_split = dict(iter(lines.groupby("split")))
        cells = {f"PDMS, {split}": pdms_cell(by_split[split][PDMS].to_numpy()) for split in (CHOOSES, REPORTED)}
        mark = " (chosen)" if setting == best else ""
        own = {title: f"{value:g}" for title, value in setting.given().items()}
        last = list(own)[-1]
        rows.append({**own, last: own[last] + mark, **cells, **subscores_of(by_split[REPORTED], f", {REPORTED}")})
    return f"{label}:\n\n{format_rows(rows)}"


def plot_curves(label: str, scores: pd.DataFrame, path: Path) -> None:
    """The label's PDMS in the test scenes against greediness, a line a noise scale; others as horizontal lines."""
    points = scores[(scores["label"] == label) & (scores["split"] == REPORTED)]
    lines = {}
    for scale, part in points.groupby("noise_scale", sort=False):
        seeds = part.groupby("greediness")[PDMS]
        lines[f"{label}, noise x {scale:g}"] = [(values.mean(), *interval([values.to_numpy()])) for _, values in seeds]
    references = {
        f"{other}{setting}": own[PDMS].mean() for other, setting, own in reported(scores) if other in REFERENCES
    }
    plot_lines(sorted(points["greediness"].unique()), lines, path, "greediness ω", "PDMS x 100, test", references)


def write(scores: pd.DataFrame, out: Path, heading: str, reference: str) -> list[Path]:
    """Writes the CSV, the tables and the figure to the folder `out`; returns their paths."""
    paths = [out / "scores.csv", out / "table.md"]
    numbers = scores[["label", *SETTINGS, "split", "seed", *SCORE_NAMES]].astype({"seed": "Int64"}).round(4)
    write_text(paths[0], numbers.to_csv(index=False, lineterminator="\n"))
    best = chosen(scores)
    curves = [label for label in best if len(scores[scores["label"] == label][list(SETTINGS)].drop_duplicates()) > 1]
    parts = [curve_table(label, scores, best[label]) for label in curves]
    write_text(paths[1], "\n\n".join([heading, table(scores, reference), *parts]) + "\n")
    figure = out / "greediness.png"
    figure.unlink(missing_ok=True)  # of an earlier call, which may have had other values
    if scores[scores["label"] == reference]["greediness"].nunique() > 1:
        plot_curves(reference, scores, figure)
        paths.append(figure)
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    parser = CommandParser("python -m harness.driving.results", __doc__, advice="; --help lists the flags")
    parser.add_argument("--comparison", required=True, metavar="FILE", help="the file that harness.compare ran")
    parser.add_argument("--run_dir", metavar="FOLDER", help="in place of the file's, as harness.compare's")
    parser.add_argument("--samples", type=int, default=8, help="plans per scene of each run")
    for name in SETTINGS:
        parser.add_argument(f"--{name}", nargs="+", default=[], metavar="VALUE", help="values to choose among")
    parser.add_argument(
        "--checkpoint",
        default="",
        metavar="NAME",
        help="of each run's checkpoints/, as of harness.average; else its last",
    )
    parser.add_argument("--reference", help="row whose lead is shown; default DIPOLE, if it is there")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the files are written")
    with exit_on_user_error():
        options = parser.parse_args(arguments)
        check_at_least(options, samples=1)
        results = read_results(load_comparison(options.comparison, options.run_dir))
        runs = with_checkpoint(results.runs, options.checkpoint)
        asked = {name: getattr(options, name) for name in SETTINGS if getattr(options, name)}
        points = list(points_to_sample(results.comparison.rows, runs, asked))
        titles = [*dict.fromkeys(row.title for row, _, _ in points), *BASELINES]
        if options.reference not in (None, *titles):
            raise UserError(f"--reference {options.reference}: the rows are {'; '.join(titles)}")
        unfinished = Counter(run.planned.variant.label for run in results.runs if not run.finished)
        for label, count in unfinished.items():
            print(f"left out: {count} of the {len(results.comparison.seeds)} seeds of {label}, which are not finished")
        first = Policy(runs[0].planned.folder)
        first.check_unchanged()
        make_folder(options.out, "--out")
        scenes = {split: read_split(first.folder, split) for split in (CHOOSES, REPORTED)}
        scores = pd.DataFrame(lines_of(points, scenes, options.samples, options.checkpoint))
        counts = " and ".join(f"{len(part.scenes)} {split} scenes" for split, part in scenes.items())
        named = f", checkpoint {options.checkpoint}" if options.checkpoint else ""
        heading = (
            f"Scores times 100, {counts} (set {first.data.sha256[:12]}), {options.samples} plans per scene, "
            f"runs of {runs[0].planned.run.offline_steps:,} updates{named}."
        )
        paths = write(scores, options.out, heading, options.reference or "DIPOLE")
        print((options.out / "table.md").read_text(encoding="utf-8"), *(f"written: {path}" for path in paths), sep="\n")


if __name__ == "__main__":
    main()
