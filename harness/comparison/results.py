"""The results of a comparison's runs, read from their folders: scores by row, task and seed, and their scales.

A run that failed or is not finished has no score: its status and error are kept instead.
"""

import collections
import dataclasses
import functools
import json
import statistics
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from harness import run_files
from harness.comparison.matrix import Comparison, PlannedRun, Row
from harness.comparison.reevaluation import find_cell, read_reevaluation
from harness.config_file import load_config
from harness.csv_log import read_rows
from harness.run_folder import FIRST_HARNESS_VERSION, read_json

FINAL, LAST = "final", "last"  # the two scores: of the finished policy; mean of the last evaluations during training
SUCCESS, D4RL, RETURN = "success, %", "D4RL score", "return"  # units in which scores are shown


# ---- Scales ----


@dataclasses.dataclass(frozen=True)
class Scale:
    """How a score is shown, `factor` * score + `offset`, and normalised, (score - low) / (high - low)."""

    unit: str
    factor: float = 1.0
    offset: float = 0.0
    low: float = float("nan")  # NaN where the suite gives no range
    high: float = float("nan")

    def shown(self, scores: Any) -> Any:
        return self.factor * scores + self.offset

    def normalised(self, scores: Any) -> Any:
        return (scores - self.low) / (self.high - self.low)

    @property
    def can_normalise(self) -> bool:
        return bool(np.isfinite(self.high - self.low))


def scale_of(score_name: str, identity: dict) -> Scale:
    """The scale of a task's score, by its data set's identity.

    Success is shown in %; a return with D4RL's reference_returns as D4RL's score; other returns as they are, with the
    range that the suite gives (ExORL: 0 to the steps of an episode), where it gives one.
    """
    if score_name == "success":
        return Scale(SUCCESS, factor=100.0, low=0.0, high=1.0)
    if "reference_returns" in identity:
        low, high = identity["reference_returns"]["min"], identity["reference_returns"]["max"]
        return Scale(D4RL, 100.0 / (high - low), -100.0 * low / (high - low), low, high)
    low, high = identity.get("score_range", (float("nan"), float("nan")))
    return Scale(RETURN, low=low, high=high)


# ---- One run ----


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What the folder of a planned run holds."""

    planned: PlannedRun
    status: str  # "finished" | "failed" | "not finished" | "not begun"
    error: str
    config: Any  # the stored one; the planned one where the run has not begun
    environment: dict
    result: dict  # empty unless finished
    evaluations: Tuple[Dict[str, str], ...]
    updates_per_second: float  # median of train.csv's; NaN without
    cells: Tuple[Dict[str, str], ...]  # lines of reevaluation.csv

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def identity(self) -> dict:
        return self.environment.get("data", {})

    @property
    def harness_version(self) -> str:
        return str(self.environment.get("harness_version", FIRST_HARNESS_VERSION))

    @functools.cached_property
    def scale(self) -> Scale:
        return scale_of(self.result["score_name"], self.identity)


def read_run(planned: PlannedRun) -> RunResult:
    """Reads a run's folder as it is. Raises UserError for a damaged file."""
    folder = planned.folder
    config_path, environment_path = folder / run_files.CONFIG, folder / run_files.ENVIRONMENT
    begun = config_path.exists() and environment_path.exists()
    finished = begun and (folder / run_files.RESULT).exists()
    error_path = folder / run_files.ERROR
    error = error_path.read_text(encoding="utf-8").strip() if error_path.exists() else ""
    speeds = [float(row["updates_per_second"]) for row in read_rows(folder / run_files.TRAIN_LOG)]
    return RunResult(
        planned=planned,
        status="finished" if finished else "failed" if error else "not finished" if begun else "not begun",
        error="" if finished else error,
        config=load_config(type(planned.config), config_path) if begun else planned.config,
        environment=read_json(environment_path, needed=("data", "versions")) if begun else {},
        result=read_json(folder / run_files.RESULT, needed=("score", "score_name", "step")) if finished else {},
        evaluations=tuple(read_rows(folder / run_files.EVAL_LOG)),
        updates_per_second=statistics.median(speeds) if speeds else float("nan"),
        cells=tuple(read_reevaluation(folder)),
    )


# ---- Scores ----


@dataclasses.dataclass(frozen=True)
class Score:
    """The result of one run in one row of the report. Scores are raw; NaN where there is none."""

    row: Row
    run: RunResult
    options: Dict[str, Any]  # all act options
    final: float
    last: float  # only where the row acts as the evaluations during training did
    episodes: Optional[int]  # of the final score
    network_evaluations: float  # per action


def score_of(row: Row, run: RunResult) -> Score:
    """A run's score in a row: the final one from its line of reevaluation.csv, else, for its own options, result.json.

    The two agree: the re-evaluation of the run's own act options repeats training's last evaluation. The mean of the
    last evaluations was taken during training and so exists for the run's own options only.
    """
    options = row.cell(run.planned)
    own = run.finished and options == run.planned.own_cell()
    last = float(run.result["score_last_evaluations"]) if own else float("nan")
    line = find_cell(run.cells, options)
    if run.finished and line is not None:
        return Score(
            row, run, options, float(line["score"]), last, int(line["episodes"]), float(line["network_evaluations"])
        )
    final = float(run.result["score"]) if own else float("nan")
    return Score(row, run, options, final, last, int(run.result["episodes"]) if own else None, float("nan"))


class Results:
    """All scores of a comparison, by row, task and seed."""

    def __init__(self, comparison: Comparison):
        self.comparison = comparison
        self.rows = comparison.rows
        self.runs = [read_run(planned) for planned in comparison.runs]
        self.tasks: Dict[str, str] = {run.planned.task: run.planned.category for run in self.runs}  # with category
        by_variant = collections.defaultdict(list)
        for run in self.runs:
            by_variant[run.planned.variant.label].append(run)
        self.scores = [score_of(row, run) for row in self.rows for run in by_variant[row.variant.label]]
        self._by_place = collections.defaultdict(list)
        for score in self.scores:
            self._by_place[score.row.title, score.run.planned.task].append(score)

    def of(self, row: Row, task: str) -> List[Score]:
        """One score for each planned run, missing ones among them, in the order of the seeds."""
        return sorted(self._by_place[row.title, task], key=lambda score: score.run.planned.seed)

    def by_seed(self, row: Row, task: str, kind: str) -> Dict[int, float]:
        """The raw scores that exist, by seed; kind: FINAL | LAST."""
        scores = {score.run.planned.seed: getattr(score, kind) for score in self.of(row, task)}
        return {seed: value for seed, value in scores.items() if np.isfinite(value)}

    def values(self, row: Row, task: str, kind: str) -> np.ndarray:
        """The raw scores that exist [n seeds]."""
        return np.array(list(self.by_seed(row, task, kind).values()), dtype=np.float64)

    def normalised(self, row: Row, task: str, kind: str) -> np.ndarray:
        return self.scale(task).normalised(self.values(row, task, kind))

    def scale(self, task: str) -> Scale:
        """The task's scale; of a task without a finished run, one that shows scores as they are."""
        run = next((run for run in self.runs if run.planned.task == task and run.finished), None)
        return Scale("score") if run is None else run.scale

    def runs_on(self, task: str) -> List[RunResult]:
        return [run for run in self.runs if run.planned.task == task]

    def identity(self, task: str) -> dict:
        """The identity of the task's data set, empty before its first run has begun."""
        return next((run.identity for run in self.runs_on(task) if run.identity), {})

    def categories(self) -> Dict[str, List[str]]:
        """Tasks by category, in the order of the matrix."""
        categories = collections.defaultdict(list)
        for task, category in self.tasks.items():
            categories[category].append(task)
        return dict(categories)


# ---- The raw data ----


def csv_rows(results: Results) -> List[Dict[str, Any]]:
    """One line for each row label, task, seed and act options: everything that the report is made of."""
    names = list(dict.fromkeys(name for score in results.scores for name in score.options))
    return [_csv_row(score, names, results.tasks) for score in results.scores]


def _csv_row(score: Score, option_names: Sequence[str], categories: Dict[str, str]) -> Dict[str, Any]:
    run, planned = score.run, score.run.planned
    scale = run.scale if run.finished else Scale("")
    return {
        "label": score.row.label,
        "variant": planned.variant.label,
        "algorithm": planned.variant.algorithm,
        "category": planned.category,
        "task": planned.task,
        "seed": planned.seed,
        **{name: score.options.get(name, "") for name in option_names},
        "status": run.status,
        "score_name": run.result.get("score_name", ""),
        "final": _number(score.final),
        "final_episodes": _number(score.episodes),
        "last_evaluations": _number(score.last),
        "last_evaluations_averaged": run.result.get("evaluations_averaged", ""),
        "final_normalised": _number(scale.normalised(score.final)),
        "last_evaluations_normalised": _number(scale.normalised(score.last)),
        "network_evaluations": _number(score.network_evaluations),
        "updates": run.result.get("step", ""),
        "seconds": _number(run.result.get("seconds")),
        "updates_per_second": _number(run.updates_per_second),
        "parameters": run.environment.get("parameters", ""),
        "data_source": run.identity.get("source", ""),
        "data_sha256": run.identity.get("sha256", ""),
        "run": planned.name,
        "overrides": json.dumps(planned.variant.overrides),
        "error": run.error.splitlines()[-1] if run.error else "",
    }


def _number(value: Optional[float]) -> str:
    """A number with the digits that give it back; empty for None and NaN."""
    return "" if value is None or value != value else repr(value) if isinstance(value, int) else f"{value:.9g}"
