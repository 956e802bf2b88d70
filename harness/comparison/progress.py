"""How far a run is, read from the CSV files of its folder while it may be running."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from harness import run_files
from harness.csv_log import read_rows
from harness.run_folder import is_finished


@dataclasses.dataclass(frozen=True)
class Progress:
    """Updates made so far (as of the last row written), their total, the last score and its name, seconds so far."""

    step: int
    total: int
    score: float  # NaN before the first evaluation
    score_name: str
    seconds: float
    trained: bool  # result.json exists

    @property
    def seconds_left(self) -> float:
        """What is left of the training at its speed so far, evaluations included; NaN before the first row."""
        return (self.total - self.step) * self.seconds / self.step if self.step else math.nan


def total_updates(config: Any) -> int:
    return config.offline_steps + config.online_steps


def read_progress(folder: Path, config: Any) -> Progress:
    """The progress of the run of `config` in its folder, of none where nothing is written yet."""
    trained, evaluations = read_rows(folder / run_files.TRAIN_LOG), read_rows(folder / run_files.EVAL_LOG)
    evaluated = evaluations[-1] if evaluations else None
    newest = max([*trained[-1:], *evaluations[-1:]], key=lambda row: int(row["step"]), default=None)
    name = "success" if evaluated and evaluated.get("success") else "return"
    return Progress(
        step=int(newest["step"]) if newest else 0,
        total=total_updates(config),
        score=float(evaluated[name]) if evaluated else math.nan,
        score_name=name,
        seconds=float(newest["seconds"]) if newest else 0.0,
        trained=is_finished(folder),
    )


def duration(seconds: float) -> str:
    """12 s, 4 min, 2 h 05 min, 3 d 04 h; empty for NaN."""
    if math.isnan(seconds):
        return ""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24:02d} h"
