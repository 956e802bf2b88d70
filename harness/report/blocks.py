"""What the parts of a comparison's report have in common: blocks, cells of numbers, names of rows."""

import dataclasses
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from harness.comparison.matrix import CROSSED_OPTION, PlannedRun, Row
from harness.comparison.results import D4RL, FINAL, LAST, SUCCESS, Results, Scale
from harness.score_statistics import FEWEST_SEEDS, interval, mean, near_best, standard_deviation

NONE = "–"  # a cell without a value
MARK = "†"  # of rows whose runs do not share the table's protocol
KINDS = {FINAL: "final", LAST: "last evaluations"}


class Bold(str):
    """A cell set in bold."""


@dataclasses.dataclass
class Block:
    """One part of the report: heading, paragraphs, a figure, a table, notes below it."""

    title: str
    level: int = 2
    text: List[str] = dataclasses.field(default_factory=list)
    figure: Optional[str] = None  # name of the PNG file
    header: Sequence[str] = ()
    rows: List[List[str]] = dataclasses.field(default_factory=list)
    notes: List[str] = dataclasses.field(default_factory=list)


# ---- Names ----


def policy_name(row: Row, marked: Sequence[str] = ()) -> str:
    """The row's label and its act options, without the number of candidates, which has a column of its own."""
    parts = [row.label, *(f"{name} {value}" for name, value in row.act.items() if name != CROSSED_OPTION)]
    return ", ".join(parts) + (f" {MARK}" if row.title in marked else "")


def short_title(row: Row) -> str:
    """A name that no other row has, for figures."""
    return row.title.replace(f"{CROSSED_OPTION} ", "N = ")


def candidates_of(row: Row, run: PlannedRun) -> Optional[int]:
    """N of a row on a run's task; None for an agent that cannot choose among candidates."""
    return row.cell(run).get(CROSSED_OPTION)


def acting_cells(results: Results, row: Row, tasks: Sequence[str]) -> List[str]:
    """N and network evaluations per action; several values where the tasks differ."""
    scores = [score for task in tasks for score in results.of(row, task)]
    counts = {str(candidates_of(row, score.run.planned) or 1) for score in scores}
    costs = {f"{score.network_evaluations:g}" for score in scores if np.isfinite(score.network_evaluations)}
    return ["/".join(sorted(values, key=float)) or NONE for values in (counts, costs)]


# ---- Numbers ----


def number(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else NONE


def bracket(low: float, high: float, digits: int = 1) -> str:
    return f"{number(low, digits)} to {number(high, digits)}" if np.isfinite(low) else NONE


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds (and tasks) as it is shown. strata: shown scores [n] of each task."""

    strata: Tuple[np.ndarray, ...]
    seed_means: np.ndarray  # means over the tasks of the seeds that have all tasks

    @property
    def seeds(self) -> int:
        return min((len(scores) for scores in self.strata), default=0)

    @property
    def few(self) -> bool:
        return 0 < self.seeds < FEWEST_SEEDS

    @property
    def mean(self) -> float:
        return float(mean(*self.strata)) if self.seeds else float("nan")

    def cells(self, bold: bool) -> List[str]:
        """Mean; interval, or the seeds one by one where they are few; standard deviation over seeds."""
        if not self.seeds:
            return [NONE, NONE, NONE]
        average = Bold(number(self.mean)) if bold else number(self.mean)
        if self.few:
            return [average, ", ".join(number(value) for value in self.seed_means), NONE]
        return [average, bracket(*interval(self.strata)), number(standard_deviation(self.seed_means))]


def common_scale(results: Results, tasks: Sequence[str]) -> Optional[Scale]:
    """The scale in which a mean over tasks is shown: theirs where they share it, else the normalised score in %.

    None where scores differ in their ranges and a task has no range to normalise with.
    """
    scales = [results.scale(task) for task in tasks]
    if len(scales) == 1 or {scale.unit for scale in scales} in ({SUCCESS}, {D4RL}):
        return scales[0]
    if not all(scale.can_normalise for scale in scales):
        return None
    return scales[0] if len(set(scales)) == 1 else Scale("normalised score, %")


def estimate(results: Results, row: Row, tasks: Sequence[str], kind: str) -> Estimate:
    """A row's mean over the tasks; without seeds where a task has none, since the mean over fewer is another number."""
    scale = common_scale(results, tasks)
    by_task: List[Dict[int, float]] = []
    for task in tasks:
        own = results.scale(task)
        show = own.shown if scale is not None and scale.unit == own.unit else lambda raw, s=own: 100 * s.normalised(raw)
        by_task.append({seed: show(value) for seed, value in results.by_seed(row, task, kind).items()})
    if scale is None or not all(by_task):
        return Estimate((), np.array([]))
    seeds = [seed for seed in by_task[0] if all(seed in values for values in by_task)]
    strata = tuple(np.array(list(values.values())) for values in by_task)
    return Estimate(strata, np.array([np.mean([values[seed] for values in by_task]) for seed in seeds]))


def estimates(results: Results, tasks: Sequence[str], kind: str) -> Dict[str, Estimate]:
    """By row title."""
    return {row.title: estimate(results, row, tasks, kind) for row in results.rows}


def bold_titles(found: Dict[str, Estimate]) -> set:
    """Rows within 95% of the best; none while a row that has results has too few seeds."""
    shown = {title: one for title, one in found.items() if one.seeds}
    if not shown or any(one.few for one in shown.values()):
        return set()
    near = near_best([one.mean for one in shown.values()])
    return {title for title, is_near in zip(shown, near, strict=True) if is_near}


def score_header(found: Dict[str, Dict[str, Estimate]], averaged: str) -> List[str]:
    """Column titles of the scores of both kinds."""
    names = {FINAL: KINDS[FINAL], LAST: f"last {averaged}"}
    header: List[str] = []
    for kind, ones in found.items():
        few = {one.few for one in ones.values() if one.seeds}
        spread = "each seed" if few == {True} else "95% interval, or each seed" if True in few else "95% interval"
        header += [f"{names[kind]}: mean", f"{names[kind]}: {spread}", f"{names[kind]}: std"]
    return header


def drop_empty(header: Sequence[str], rows: List[List[str]]) -> Tuple[List[str], List[List[str]]]:
    """The table without the columns in which no row has a value."""
    kept = [index for index in range(len(header)) if any(row[index] not in ("", NONE) for row in rows)]
    return [header[index] for index in kept], [[row[index] for index in kept] for row in rows]


def text_of(value: Any) -> str:
    """A config value in a cell."""
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, (tuple, list)) else str(value)
