"""What the parts of a comparison's report have in common: blocks, cells of numbers, the mean of a policy's scores."""

import dataclasses
import math
from collections.abc import Collection, Sequence
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
    rows: list[dict[str, str]] = dataclasses.field(default_factory=list)  # of a table: a row's cells by column
    notes: list[str] = dataclasses.field(default_factory=list)


# ---- Cells ----


def number(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else NONE


def bracket(low: float, high: float, digits: int = 1) -> str:
    return f"{number(low, digits)} to {number(high, digits)}" if np.isfinite(low) else NONE


def joined(values: Any) -> str:
    """The distinct values, in a fixed order."""
    return " / ".join(sorted(set(values))) or NONE


def drop_empty(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The table without the columns in which no row has a value."""
    kept = [name for name in rows[0] if any(row[name] not in ("", NONE) for row in rows)]
    return [{name: row[name] for name in kept} for row in rows]


# ---- Policies and their scores ----


def by_policy(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The lines of each policy, in the order of the table."""
    return dict(iter(scores.groupby("policy", sort=False)))


def title_of(lines: pd.DataFrame) -> str:
    """A policy's name, with N where it has rows of several."""
    first = lines.iloc[0]
    return first["name"] + first["policy"].removeprefix(first["label"])


def with_marks(scores: pd.DataFrame, policies: Collection[str]) -> pd.DataFrame:
    """The scores with these policies' names marked, wherever they are shown."""
    return scores.assign(name=scores["name"] + np.where(scores["policy"].isin(policies), f" {MARK}", ""))


def policy_cells(lines: pd.DataFrame) -> dict[str, str]:
    """Name, N and network evaluations per action of a policy; several values where the tasks differ."""
    columns = {"N": lines[CROSSED_OPTION].fillna(1), "network evaluations per action": lines["network_evaluations"]}
    return {"policy": lines["name"].iloc[0]} | {title: joined_numbers(column) for title, column in columns.items()}


def joined_numbers(column: pd.Series) -> str:
    return "/".join(f"{value:g}" for value in sorted(column.dropna().unique())) or NONE


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


def estimates(scores: pd.DataFrame, tasks: Sequence[str], kind: str) -> pd.DataFrame:
    """Each policy's mean over the tasks as it is shown; no seeds where a task has none: over fewer it is another one.

    Columns: title, seeds (of the task with the fewest), few (too few seeds for an interval), mean, std, low and high
    (the interval), each_seed (the means [n] of the seeds that have all tasks), near_best (within 95% of the best; none
    while a policy with results has few seeds).
    """
    unit, lines = unit_of(scores, tasks), {}
    for policy, own in by_policy(scores).items():
        values = 100 * own[f"{kind}_normalised"] if unit == NORMALISED else shown(own, kind)
        wide = own.assign(value=values).pivot(index="seed", columns="task", values="value").reindex(columns=tasks)
        strata = [wide[task].dropna().to_numpy() for task in tasks]
        seeds = 0 if unit is None else min(map(len, strata))
        each_seed = wide.dropna().mean(axis="columns").to_numpy() if seeds else np.array([])
        lines[policy] = {
            "title": title_of(own),
            "seeds": seeds,
            "few": 0 < seeds < FEWEST_SEEDS,
            "mean": float(mean(*strata)) if seeds else math.nan,
            "std": standard_deviation(each_seed),
            **(interval(strata) if seeds >= FEWEST_SEEDS else Interval(math.nan, math.nan))._asdict(),
            "each_seed": each_seed,
        }
    found = pd.DataFrame(list(lines.values()), index=list(lines))
    return found.assign(near_best=False if found["few"].any() else near_best(found["mean"]))


def estimate_cells(one: pd.Series) -> tuple[str, str, str]:
    """Mean; interval, or the seeds one by one where they are few; standard deviation over seeds."""
    average = Bold(number(one["mean"])) if one["near_best"] else number(one["mean"])
    if one["few"]:
        return average, ", ".join(map(number, one["each_seed"])), NONE
    return average, bracket(one["low"], one["high"]), number(one["std"])
