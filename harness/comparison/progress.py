"""How far a run is, read from the CSV files of its folder while it may be running."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from harness.run_folder import read_rows


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
    trained, evaluations = read_rows(folder / "train.csv"), read_rows(folder / "eval.csv")
    evaluated = evaluations[-1] if evaluations else None
    newest = max([*trained[-1:], *evaluations[-1:]], key=lambda row: int(row["step"]), default=None)
    name = "success" if evaluated and evaluated.get("success") else "return"
    return Progress(
        step=int(newest["step"]) if newest else 0,
        total=total_updates(config),
        score=float(evaluated[name]) if evaluated else math.nan,
        score_name=name,
        seconds=float(newest["seconds"]) if newest else 0.0,
        trained=(folder / "result.json").exists(),
    )
