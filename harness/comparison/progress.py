"""How far runs are, read from the CSV files of their folders, and the table of it that a comparison shows."""

import collections
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from harness import run_files
from harness.comparison.matrix import PlannedRun
from harness.comparison.workers import FAILED, FINISHED, RUNNING, STATES, STOPPED, WAITING
from harness.config import RunConfig
from harness.loggers import read_rows
from harness.run_folder import is_finished

COLOURS = {RUNNING: "cyan", FAILED: "red", STOPPED: "yellow", FINISHED: "green", WAITING: "bright_black"}
ORDER = list(COLOURS)  # what is shown first where the screen is too short
SECONDS_BETWEEN = 2.0  # two readings of the runs' files


@dataclasses.dataclass(frozen=True)
class Progress:
    """Updates made so far (as of the last row written), their total, the last score as text, seconds so far."""

    step: int
    total: int
    score: str  # "return 108"; empty before the first evaluation
    seconds: float
    trained: bool  # result.json exists

    @property
    def seconds_left(self) -> float:
        """What is left of the training at its speed so far, evaluations included; NaN before the first row."""
        return (self.total - self.step) * self.seconds / self.step if self.step else math.nan


def read_progress(folder: Path, run: RunConfig) -> Progress:
    """The progress of the run in its folder, of none where nothing is written yet."""
    trained, evaluations = read_rows(folder / run_files.TRAIN_LOG), read_rows(folder / run_files.EVAL_LOG)
    last = evaluations[-1] if evaluations else {}
    newest = max([*trained[-1:], *evaluations[-1:]], key=lambda row: int(row["step"]), default={})
    name = "success" if last.get("success") else "return"
    return Progress(
        step=int(newest.get("step", 0)),
        total=run.offline_steps + run.online_steps,
        score=f"{name} {float(last[name]):.4g}" if last else "",
        seconds=float(newest.get("seconds", 0)),
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


class LiveTable:
    """Shows states, steps, scores and the time left of runs: a table, or a line per change where there is no terminal.

    A context manager whose `show` takes the states by name. estimates: seconds that each run not yet finished was
    estimated to need, by name.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        workers: int,
        estimates: Mapping[str, float],
        console: Console | None = None,
    ):
        self.runs, self.workers, self.estimates = runs, workers, estimates
        self.console = console or Console(highlight=False)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.shown: dict[str, str] = {}
        self.looked_at = -math.inf

    def __enter__(self) -> "LiveTable":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, states: Mapping[str, str]) -> None:
        """Draws anew where a state has changed or the runs' files were last read some seconds ago."""
        changed = [run for run in self.runs if states[run.name] != self.shown.get(run.name, WAITING)]
        if self.live is None:
            for run in changed:
                self.console.print(self.line(run, states), soft_wrap=True, markup=False)
        elif changed or time.monotonic() - self.looked_at > SECONDS_BETWEEN:
            self.live.update(self.table(states, rows=max(3, self.console.height - 6)), refresh=True)
            self.looked_at = time.monotonic()
        self.shown = dict(states)

    def line(self, run: PlannedRun, states: Mapping[str, str]) -> str:
        """One state change in words."""
        state, progress = states[run.name], read_progress(run.folder, run.run)
        done = sum(other in (FINISHED, FAILED) for other in states.values())
        what = {
            RUNNING: f", continues after {progress.step:,} of {progress.total:,} updates" if progress.step else "",
            FINISHED: f", {progress.score}",
            STOPPED: ", it continues when the same command is run again",
            FAILED: f", see {run.folder / run_files.ERROR}",
        }
        return f"{time.strftime('%H:%M:%S')} [{done}/{len(states)}] {state}: {run.name}{what.get(state, '')}"

    def table(self, states: Mapping[str, str], rows: int) -> Table:
        """At most `rows` runs and a line that counts all."""
        counts = collections.Counter(states.values())
        ordered = sorted(self.runs, key=lambda run: ORDER.index(states[run.name]))
        read = ordered[: max(rows, counts[RUNNING])]  # those at work come first
        progress = {run.name: read_progress(run.folder, run.run) for run in read}
        left = self.seconds_left(states, progress)
        summary = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        about = f"; about {duration(left)} left with {self.workers} workers" if left else ""
        table = Table(title=summary + about, caption_justify="left", title_justify="left", expand=False)
        for heading in ("run", "state", "updates", "last score", "time left"):
            table.add_column(heading, justify="left" if heading in ("run", "state") else "right", no_wrap=True)
        for run in ordered[:rows]:
            state, one = states[run.name], progress[run.name]
            time_left = "re-evaluation" if one.trained else duration(one.seconds_left)
            cells = (f"{one.step:,}/{one.total:,}", one.score, time_left if state == RUNNING else "")
            table.add_row(run.name, state, *cells, style=COLOURS[state])
        if len(ordered) > rows:
            table.caption = f"{len(ordered) - rows} more runs are not shown"
        return table

    def seconds_left(self, states: Mapping[str, str], progress: Mapping[str, Progress]) -> float:
        """About what is left on the clock: speeds of the runs that have begun, estimates of the others."""
        total = 0.0
        for run in self.runs:
            estimate = self.estimates.get(run.name, 0.0)
            if states[run.name] == WAITING:
                total += estimate
            elif states[run.name] == RUNNING:
                left = progress[run.name].seconds_left
                total += estimate if math.isnan(left) else left
        return total / self.workers
