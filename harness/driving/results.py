"""The table of a comparison on driving/bandit: sub-scores, intervals over seeds, omega chosen in the validation scenes.

    python -m harness.driving.results --comparison configs/compare/driving.yaml --out docs/results/driving

Every row has --samples plans per scene of each of its finished runs. Where rows differ in greediness alone, the one
with the highest mean PDMS in the validation scenes stands in the table; the test scenes choose nothing. The folder
--out takes `scores.csv` (one line per row, seed and split), `table.md` and, where there is such a choice,
`greediness.png`.
"""

import collections
import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import make_folder, write_text
from envs.driving.bandit import BanditData, SceneSet, fingerprint, load_data, read_split
from envs.driving.collect import data_folder, read_sidecar
from envs.driving.scene_files import SCORE_NAMES
from harness.comparison.matrix import Comparison, PlannedRun, Row, load_comparison
from harness.comparison.protocol import check_protocol
from harness.comparison.results import Results
from harness.driving.policies import Policy, plans_in
from harness.driving.table import BASELINES, TITLES, best_of, scores_of
from harness.plots import plot_lines
from harness.score_statistics import FEWEST_SEEDS, Interval, interval

TASK, KIND = "driving/bandit", "basis"  # KIND: its encoding
CHOOSES, REPORTED = "validation", "test"
PDMS = SCORE_NAMES.index("pdms")
GREEDINESS = "greediness"
REFERENCES = ("PDM-Closed-like planner", "cloning")  # horizontal lines of the figure


@dataclass(frozen=True)
class Entry:
    """One row's scores x 100 by split, [n seeds, 6] by SCORE_NAMES; [1, 6] of a planner, which has no seed."""

    label: str
    scores: Dict[str, np.ndarray]
    seeds: Tuple[int, ...] = ()
    greediness: Optional[float] = None  # of a point of a curve
    curve: str = ""  # what the points of one curve share

    def pdms(self, split: str) -> np.ndarray:
        return self.scores[split][:, PDMS]


# ---- Scores ----


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


def finished_of(results: Results, row: Row) -> List[PlannedRun]:
    """The row's runs that are finished, by seed."""
    return [run.planned for run in results.runs if run.finished and run.planned.variant.label == row.variant.label]


def checked_folder(results: Results) -> Path:
    """The folder of the scenes that all runs learned from. Raises UserError where it holds others by now."""
    first = next(run for run in results.runs if run.finished)
    folder = data_folder(first.run.data_dir)
    read_sidecar(folder)
    trained, found = first.identity.get("sha256"), fingerprint(folder)
    if trained != found:
        raise UserError(
            f"{folder}: its scenes ({found[:16]}) are not those of the runs ({str(trained)[:16]}): give the runs' own "
            "set as data_dir"
        )
    return folder


def planners(scenes: Dict[str, SceneSet]) -> Iterator[Entry]:
    """The rows that need no learning, the best of each scene's own plans the last."""
    for label, plans in BASELINES.items():
        scores = {split: scores_of(part, plans(part), f"{label}, {split}") for split, part in scenes.items()}
        yield Entry(label, {split: 100 * part.mean(axis=(0, 1))[None] for split, part in scores.items()})
    best = {split: 100 * best_of(part).mean(axis=(0, 1))[None] for split, part in scores.items()}
    yield Entry(f"data: best of {scores[REPORTED].shape[1]}", best)


def learned(results: Results, row: Row, data: BanditData, scenes: Dict[str, SceneSet], samples: int) -> Entry:
    """A row's scores with each seed; every policy begins at its checkpoint's noise, so that rows are compared alike."""
    runs = finished_of(results, row)
    scores: Dict[str, List[np.ndarray]] = {CHOOSES: [], REPORTED: []}
    for run in runs:
        for split, values in scores.items():
            plans = plans_in(Policy(run.folder), data, scenes[split], data.observations[split], samples, **row.act)
            title = f"{row.title}, seed {run.seed}, {split}"
            values.append(100 * scores_of(scenes[split], plans, title).mean(axis=(0, 1)))
    others = {name: value for name, value in row.act.items() if name != GREEDINESS}
    return Entry(
        label=curve_label(row) if GREEDINESS in row.act else row.label,
        scores={split: np.stack(values) for split, values in scores.items()},
        seeds=tuple(run.seed for run in runs),
        greediness=row.act.get(GREEDINESS),
        curve=f"{row.variant.label} {others}" if GREEDINESS in row.act else "",
    )


def curve_label(row: Row) -> str:
    """The label of all points of a curve, whose rows have labels of their own."""
    count = row.act.get("num_candidates")
    return row.variant.label if count is None else f"{row.variant.label}, best of {count}"


def curves(entries: Sequence[Entry]) -> List[List[Entry]]:
    """The groups of entries that differ in greediness alone, each in the order of greediness."""
    groups: Dict[str, List[Entry]] = collections.defaultdict(list)
    for entry in entries:
        if entry.curve:
            groups[entry.curve].append(entry)
    return [sorted(group, key=lambda entry: entry.greediness) for group in groups.values() if len(group) > 1]


def chosen(curve: Sequence[Entry]) -> Entry:
    """The point of a curve with the highest mean PDMS in the validation scenes."""
    return max(curve, key=lambda entry: entry.pdms(CHOOSES).mean())


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


def lead_cell(reference: Entry, entry: Entry) -> str:
    """By how much the reference's PDMS in the test scenes is above an entry's, with the interval of that."""
    pair = [reference.pdms(REPORTED), entry.pdms(REPORTED)]
    if entry is reference:
        return ""
    if len(pair[1]) == 1:  # a planner has no seeds: a constant
        pair = [pair[0] - pair[1]]
        return shown(pair[0].mean(), interval(pair))
    return shown(float(difference(*pair)), interval(pair, difference))


def table(entries: Sequence[Entry]) -> str:
    """The table in Markdown: the test scenes, a row for each entry, of a curve the chosen point only."""
    found = curves(entries)
    points = {id(entry) for curve in found for entry in curve}
    best = [chosen(curve) for curve in found]
    shown_entries = [entry for entry in entries if id(entry) not in points or any(entry is one for one in best)]
    headings = [f"{REPORTED} scenes", "seeds", *TITLES[:-1], "PDMS"] + ([f"{best[0].label} leads by"] if best else [])
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for entry in shown_entries:
        label = f"{entry.label}, omega {entry.greediness:g}" if any(entry is one for one in best) else entry.label
        subscores = [f"{value:.1f}" for value in entry.scores[REPORTED].mean(axis=0)[:PDMS]]
        lead = [lead_cell(best[0], entry)] if best else []
        seeds = str(len(entry.seeds) or "")
        lines.append(f"| {' | '.join([label, seeds, *subscores, pdms_cell(entry.pdms(REPORTED)), *lead])} |")
    return "\n".join(lines)


def curve_table(curve: Sequence[Entry]) -> str:
    """A curve in Markdown: PDMS in the validation and the test scenes, and the test scenes' sub-scores."""
    best = chosen(curve)
    headings = ["omega", f"PDMS, {CHOOSES}", f"PDMS, {REPORTED}", *(f"{name}, {REPORTED}" for name in TITLES[:-1])]
    lines = [f"{best.label}:", "", f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for entry in curve:
        mark = " (chosen)" if entry is best else ""
        subscores = [f"{value:.1f}" for value in entry.scores[REPORTED].mean(axis=0)[:PDMS]]
        cells = [f"{entry.greediness:g}{mark}", pdms_cell(entry.pdms(CHOOSES)), pdms_cell(entry.pdms(REPORTED))]
        lines.append(f"| {' | '.join(cells + subscores)} |")
    return "\n".join(lines)


def csv_text(entries: Sequence[Entry]) -> str:
    """Every number: one line for each entry, split and seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", GREEDINESS, "split", "seed", *SCORE_NAMES])
    for entry in entries:
        for split, scores in entry.scores.items():
            for index, values in enumerate(scores):
                seed = entry.seeds[index] if entry.seeds else ""
                greediness = "" if entry.greediness is None else f"{entry.greediness:g}"
                writer.writerow([entry.label, greediness, split, seed, *(f"{value:.4f}" for value in values)])
    return text.getvalue()


def plot_curve(curve: Sequence[Entry], entries: Sequence[Entry], path: Path) -> None:
    """PDMS and the test scenes' sub-scores against greediness; the planner and single rows as horizontal lines."""
    lines = {}
    for split in (REPORTED, CHOOSES):
        lines[f"PDMS, {split}"] = [_point(entry.pdms(split)) for entry in curve]
    for index, title in enumerate(TITLES[:-1]):
        lines[f"{title}, {REPORTED}"] = [_point(entry.scores[REPORTED][:, index]) for entry in curve]
    references = {entry.label: float(entry.pdms(REPORTED).mean()) for entry in entries if entry.label in REFERENCES}
    plot_lines([entry.greediness for entry in curve], lines, path, "greediness ω", "score × 100", references)


def _point(values: np.ndarray) -> Tuple[float, float, float]:
    return float(values.mean()), *interval([values])


def write(entries: Sequence[Entry], out: Path, heading: str) -> List[Path]:
    """Writes the CSV, the tables and the figure to the folder `out`; returns their paths."""
    found = curves(entries)
    write_text(out / "scores.csv", csv_text(entries))
    write_text(out / "table.md", "\n\n".join([heading, table(entries), *map(curve_table, found)]) + "\n")
    if not found:
        return [out / "scores.csv", out / "table.md"]
    plot_curve(found[0], entries, out / "greediness.png")
    return [out / "scores.csv", out / "table.md", out / "greediness.png"]


def parser() -> CommandParser:
    flags = CommandParser("python -m harness.driving.results", __doc__, advice="; --help lists the flags")
    flags.add_argument("--comparison", required=True, metavar="FILE", help="the file that harness.compare ran")
    flags.add_argument("--run_dir", metavar="FOLDER", help="in place of the file's, as harness.compare's")
    flags.add_argument("--samples", type=int, default=8, help="plans per scene of each run")
    flags.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the files are written")
    return flags


def main(arguments: Optional[Sequence[str]] = None) -> None:
    with exit_on_user_error():
        options = parser().parse_args(arguments)
        results = read_results(load_comparison(options.comparison, options.run_dir))
        folder = checked_folder(results)
        make_folder(options.out, "--out")
        scenes = {split: read_split(folder, split) for split in (CHOOSES, REPORTED)}
        rows = [row for row in results.comparison.rows if finished_of(results, row)]
        data = load_data(folder, KIND)
        entries = [*planners(scenes), *(learned(results, row, data, scenes, options.samples) for row in rows)]
        counts = " and ".join(f"{len(part.scenes)} {split} scenes" for split, part in scenes.items())
        heading = (
            f"Scores times 100, {counts} (set {data.sha256[:12]}), {options.samples} plans per scene, "
            f"{results.runs[0].planned.run.offline_steps:,} updates."
        )
        paths = write(entries, options.out, heading)
        print((options.out / "table.md").read_text(encoding="utf-8"), *(f"written: {path}" for path in paths), sep="\n")


if __name__ == "__main__":
    main()
