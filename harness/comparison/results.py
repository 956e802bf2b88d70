"""The results of a comparison's runs, read from their folders: one table of scores that the whole report is made of.

`Results.scores` has a line for each policy (a row of the report), task and seed; it is what scores.csv holds.
A run that failed or is not finished has no score: its status and error are kept instead.
"""

import dataclasses
import functools
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd

from common.errors import UserError
from harness import run_files
from harness.comparison.matrix import CROSSED_OPTION, Comparison, PlannedRun, Row
from harness.comparison.reevaluation import find_cell, read_reevaluation
from harness.config import RunConfig, flat, stored_config
from harness.loggers import read_rows
from harness.run_folder import check_fields, checkpoint_folder, finished_result, read_environment

FINAL, LAST = KINDS = ("final", "last_evaluations")  # columns: of the finished policy; mean of training's last ones
SUCCESS, D4RL, RETURN = "success, %", "D4RL score", "return"  # units in which scores are shown
PERCENT = (SUCCESS, D4RL)  # shown as 100 times the normalised score


# ---- Scales ----


@dataclasses.dataclass(frozen=True)
class Scale:
    """The unit in which a score is shown, and the suite's lowest and highest score, NaN where it gives none."""

    unit: str = ""
    low: float = math.nan
    high: float = math.nan

    def normalised(self, scores: Any) -> Any:
        return (scores - self.low) / (self.high - self.low)

    def shown(self, scores: Any) -> Any:
        return 100 * self.normalised(scores) if self.unit in PERCENT else scores


def scale_of(score_name: str, identity: dict) -> Scale:
    """The scale of a task's score, by its data set's identity.

    Success is shown in %; a return with D4RL's reference_returns as D4RL's score; other returns as they are, with the
    range that the suite gives (ExORL: 0 to the steps of an episode), where it gives one.
    """
    if score_name == "success":
        return Scale(SUCCESS, 0.0, 1.0)
    if "reference_returns" in identity:
        return Scale(D4RL, identity["reference_returns"]["min"], identity["reference_returns"]["max"])
    return Scale(RETURN, *identity.get("score_range", ()))


# ---- One run ----


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What the folder of a planned run holds."""

    planned: PlannedRun
    status: str  # "finished" | "failed" | "not finished" | "not begun"
    error: str
    run: RunConfig  # this and the method's config: the stored ones; the planned ones where the run has not begun
    config: Any
    environment: dict
    result: dict  # empty unless finished
    evaluations: list[dict[str, str]]  # rows of eval.csv
    updates_per_second: float  # median of train.csv's; NaN without
    cells: list[dict[str, str]]  # lines of reevaluation.csv

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def identity(self) -> dict:
        return self.environment.get("data", {})

    @functools.cached_property
    def scale(self) -> Scale:
        return scale_of(self.result["score_name"], self.identity)


def read_run(planned: PlannedRun) -> RunResult:
    """Reads a run's folder as it is. Raises UserError for a damaged file."""
    folder = planned.folder
    config_path = folder / run_files.CONFIG
    begun = config_path.exists() and (folder / run_files.ENVIRONMENT).exists()
    result = (begun and finished_result(folder, planned.run.total_updates)) or {}
    error_path = folder / run_files.ERROR
    error = error_path.read_text(encoding="utf-8").strip() if error_path.exists() else ""
    evaluations = read_rows(folder / run_files.EVAL_LOG)
    if result and not evaluations:
        raise UserError(
            f"{folder / run_files.EVAL_LOG}: has no evaluation of this finished run; put its own file back, or train "
            f"it again with harness.compare --restart {planned.variant.label}"
        )
    speeds = [float(row["updates_per_second"]) for row in read_rows(folder / run_files.TRAIN_LOG)]
    run, config = planned.run, planned.config
    if begun:
        run, config = stored_config(config_path, type(planned.config))
        # Else the report would name settings that the run never had; what all runs must share is the protocol's matter.
        check_fields(folder, flat(planned.run, config), flat(planned.run, planned.config))
    return RunResult(
        planned=planned,
        status="finished" if result else "failed" if error else "not finished" if begun else "not begun",
        error="" if result else error,
        run=run,
        config=config,
        environment=read_environment(folder) if begun else {},
        result=result,
        evaluations=evaluations,
        updates_per_second=statistics.median(speeds) if speeds else math.nan,
        cells=read_reevaluation(folder),
    )


# ---- The table of scores ----


def score_line(row: Row, run: RunResult) -> dict[str, Any]:
    """A run's line in the table for one row of the report; scores are raw, None where there is none.

    The final score is that of the row's line in reevaluation.csv, else, for the run's own act options, of result.json.
    The two agree: the re-evaluation of the own options repeats training's last evaluation. The mean of the last
    evaluations was taken during training and so exists for the run's own options only.
    """
    planned, result, options = run.planned, run.result, row.cell(run.planned)
    own = run.finished and options == planned.own_cell()
    cell = (run.finished and find_cell(run.cells, options)) or {}
    final = float(cell["score"]) if cell else result["score"] if own else None
    last = result["score_last_evaluations"] if own else None
    scale = run.scale if run.finished else Scale()
    return {
        "policy": row.policy,
        "label": row.label,
        "name": row.shown_name,
        "variant": planned.variant.label,
        "algorithm": planned.variant.algorithm,
        "category": planned.category,
        "task": planned.task,
        "seed": planned.seed,
        **options,
        "status": run.status,
        "score_name": result.get("score_name"),
        **dataclasses.asdict(scale),
        "final": final,
        "final_episodes": int(cell["episodes"]) if cell else result["episodes"] if own else None,
        "last_evaluations": last,
        "last_evaluations_averaged": result.get("evaluations_averaged"),
        "final_normalised": None if final is None else scale.normalised(final),
        "last_evaluations_normalised": None if last is None else scale.normalised(last),
        "network_evaluations": float(cell["network_evaluations"]) if cell else None,
        "updates": result.get("step"),
        "seconds": result.get("seconds"),
        "updates_per_second": run.updates_per_second,
        "parameters": run.environment.get("parameters"),
        "data_source": run.identity.get("source"),
        "data_sha256": run.identity.get("sha256"),
        "run": planned.name,
        "overrides": json.dumps(planned.variant.overrides),
        "error": run.error.splitlines()[-1] if run.error else None,
    }


class Results:
    """What the runs of a comparison gave: each run by itself, and the table of scores."""

    def __init__(self, comparison: Comparison):
        self.comparison = comparison
        self.runs = [read_run(planned) for planned in comparison.runs]
        lines = [
            score_line(row, run)
            for row, run in itertools.product(comparison.rows, self.runs)
            if run.planned.variant.label == row.variant.label
        ]
        self.scores = with_candidates(pd.DataFrame(lines))

    def runs_on(self, task: str) -> list[RunResult]:
        return [run for run in self.runs if run.planned.task == task]

    def runs_of(self, label: str) -> list[RunResult]:
        return [run for run in self.runs if run.planned.variant.label == label]

    def identity(self, task: str) -> dict:
        """The identity of the task's data set, empty before its first run has begun."""
        return next((run.identity for run in self.runs_on(task) if run.identity), {})


def with_checkpoint(runs: Sequence[RunResult], name: str) -> list[RunResult]:
    """The finished runs that keep the checkpoint of this name (empty: all); prints which do not.

    Raises UserError where none does.
    """
    finished = [run for run in runs if run.finished]
    kept = [run for run in finished if checkpoint_folder(run.planned.folder, name).is_dir()]
    if finished and not kept:
        raise UserError(
            f"{finished[0].planned.folder / run_files.KEPT_CHECKPOINTS}: no run has {name} there; name one that is, or "
            "make it with `python -m harness.average RUN_DIR`"
        )
    for run in finished:
        if run not in kept:
            print(f"left out: {run.planned.name} keeps no checkpoint {name}")
    return kept


def with_candidates(scores: pd.DataFrame) -> pd.DataFrame:
    """The table with the column of N, also where no agent of it chooses among candidates."""
    if CROSSED_OPTION not in scores:
        scores[CROSSED_OPTION] = math.nan
    numbers = [*KINDS, *(f"{kind}_normalised" for kind in KINDS), "low", "high", "network_evaluations", CROSSED_OPTION]
    return scores.astype(dict.fromkeys(numbers, "float64"))


def shown(scores: pd.DataFrame, kind: str) -> pd.Series:
    """The scores of a kind in their units."""
    return scores[kind].mask(scores["unit"].isin(PERCENT), 100 * scores[f"{kind}_normalised"])


def to_csv(scores: pd.DataFrame) -> str:
    return scores.to_csv(index=False, float_format="%.9g", lineterminator="\n")
