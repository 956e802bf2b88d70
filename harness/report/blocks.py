"""What the parts of a comparison's report have in common: blocks, cells of numbers, the mean of a policy's scores."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.comparison.matrix import CROSSED_OPTION
from harness.comparison.results import FINAL, LAST, PERCENT, shown
from harness.score_statistics import FEWEST_SEEDS, Interval, interval, mean, near_best, standard_deviation

NONE = "–"  # a cell without a value
MARK = "†"  # of rows whose runs do not share the table's protocol
KIND_NAMES = {FINAL: "final", LAST: "last evaluations"}
NORMALISED = "normalised score, %"


class Bold(str):
    """A cell set in bold."""


@dataclasses.dataclass
class Block:
    """One part of the report: heading, paragraphs, a figure, a table, notes below it."""

    title: str
    level: int = 2
    text: list[str] = dataclasses.field(default_factory=list)
    figure: str | None = None  # name of the PNG file
    header: Sequence[str] = ()
    rows: list[list[str]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


# ---- Cells ----


def number(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else NONE


def bracket(low: float, high: float, digits: int = 1) -> str:
    return f"{number(low, digits)} to {number(high, digits)}" if np.isfinite(low) else NONE


def joined(values: Any) -> str:
    """The distinct values, in a fixed order."""
    return " / ".join(sorted(set(values))) or NONE


def text_of(value: Any) -> str:
    """A config value in a cell."""
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, (tuple, list)) else str(value)


def drop_empty(header: Sequence[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The table without the columns in which no row has a value."""
    kept = [index for index in range(len(header)) if any(row[index] not in ("", NONE) for row in rows)]
    return [header[index] for index in kept], [[row[index] for index in kept] for row in rows]


# ---- Policies and their scores ----


def by_policy(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The lines of each policy, in the order of the table."""
    return dict(iter(scores.groupby("policy", sort=False)))


def title_of(lines: pd.DataFrame) -> str:
    """A policy's name, with N where it has rows of several."""
    first = lines.iloc[0]
    return first["name"] + first["policy"].removeprefix(first["label"])


def acting_cells(lines: pd.DataFrame) -> list[str]:
    """N and network evaluations per action; several values where the tasks differ."""
    columns = lines[CROSSED_OPTION].fillna(1), lines["network_evaluations"].dropna()
    return ["/".join(f"{value:g}" for value in sorted(column.unique())) or NONE for column in columns]


def unit_of(scores: pd.DataFrame, tasks: Sequence[str]) -> str | None:
    """The unit of a mean over the tasks: theirs where they share it, else the normalised score.

    None where scores differ in their ranges and a task has no range to normalise with.
    """
    finished = scores[scores["task"].isin(tasks) & scores["unit"].fillna("").ne("")]
    scales = finished.groupby("task")[["unit", "low", "high"]].first().reindex(tasks)
    units = scales["unit"].fillna("score").unique()
    if len(tasks) == 1 or (len(units) == 1 and units[0] in PERCENT):
        return units[0]
    if scales[["low", "high"]].isna().any(axis=None):
        return None
    return units[0] if len(scales.drop_duplicates()) == 1 else NORMALISED


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds (and tasks) as it is shown. strata: shown scores [n] of each task."""

    strata: list[np.ndarray]
    seed_means: np.ndarray  # means over the tasks of the seeds that have all tasks

    @property
    def seeds(self) -> int:
        return min(map(len, self.strata), default=0)

    @property
    def few(self) -> bool:
        return 0 < self.seeds < FEWEST_SEEDS

    @property
    def mean(self) -> float:
        return float(mean(*self.strata)) if self.seeds else math.nan

    @property
    def interval(self) -> Interval:
        """NaN where seeds are few."""
        return Interval(math.nan, math.nan) if self.few or not self.seeds else interval(self.strata)

    def cells(self, bold: bool) -> list[str]:
        """Mean; interval, or the seeds one by one where they are few; standard deviation over seeds."""
        average = Bold(number(self.mean)) if bold else number(self.mean)
        if self.few:
            return [average, ", ".join(number(value) for value in self.seed_means), NONE]
        return [average, bracket(*self.interval), number(standard_deviation(self.seed_means))]


def estimate(lines: pd.DataFrame, tasks: Sequence[str], kind: str, unit: str | None) -> Estimate:
    """A policy's mean over the tasks; without seeds where a task has none, since the mean over fewer is another one."""
    values = 100 * lines[f"{kind}_normalised"] if unit == NORMALISED else shown(lines, kind)
    wide = lines.assign(value=values).pivot(index="seed", columns="task", values="value").reindex(columns=tasks)
    strata = [wide[task].dropna().to_numpy() for task in tasks]
    if unit is None or not all(map(len, strata)):
        return Estimate([], np.array([]))
    return Estimate(strata, wide.dropna().mean(axis="columns").to_numpy())


def estimates(scores: pd.DataFrame, tasks: Sequence[str], kind: str) -> dict[str, Estimate]:
    unit = unit_of(scores, tasks)
    return {policy: estimate(lines, tasks, kind, unit) for policy, lines in by_policy(scores).items()}


def near_best_of(found: dict[str, Estimate]) -> set[str]:
    """Policies within 95% of the best; none while one that has results has too few seeds."""
    scored = {policy: one for policy, one in found.items() if one.seeds}
    if not scored or any(one.few for one in scored.values()):
        return set()
    near = near_best([one.mean for one in scored.values()])
    return {policy for policy, is_near in zip(scored, near, strict=True) if is_near}
