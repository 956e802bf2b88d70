"""The table that a comparison shows while its runs work; plain lines, one per change, where there is no terminal."""

import collections
import math
import time
from typing import Dict, List, Mapping, Optional, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from harness import run_files
from harness.comparison.matrix import PlannedRun
from harness.comparison.progress import Progress, duration, read_progress
from harness.comparison.workers import FAILED, FINISHED, RUNNING, STATES, STOPPED, WAITING

ORDER = (RUNNING, FAILED, STOPPED, FINISHED, WAITING)  # what is shown first where the screen is too short
COLOURS = {RUNNING: "cyan", FAILED: "red", STOPPED: "yellow", FINISHED: "green", WAITING: "bright_black"}
SECONDS_BETWEEN = 2.0  # two readings of the runs' files


class LiveTable:
    """Shows states, steps, scores and the time left of runs; a context manager whose `show` takes the states by name.

    estimates: seconds that each run not yet finished was estimated to need, by name.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        workers: int,
        estimates: Mapping[str, float],
        console: Optional[Console] = None,
    ):
        self.runs, self.workers, self.estimates = runs, workers, estimates
        self.console = console or Console(highlight=False)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.shown: Dict[str, str] = {}
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
        state = states[run.name]
        done = sum(other in (FINISHED, FAILED) for other in states.values())
        text = f"{time.strftime('%H:%M:%S')} [{done}/{len(states)}] {state}: {run.name}"
        progress = read_progress(run.folder, run.config)
        if state == RUNNING and progress.step:
            return f"{text}, continues after {progress.step:,} of {progress.total:,} updates"
        if state == FINISHED:
            return f"{text}, {progress.score_name} {progress.score:.4g}"
        if state == STOPPED:
            return f"{text}, it continues when the same command is run again"
        return f"{text}, see {run.folder / run_files.ERROR}" if state == FAILED else text

    def table(self, states: Mapping[str, str], rows: int) -> Table:
        """At most `rows` runs and a line that counts all."""
        counts = collections.Counter(states.values())
        summary = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        ordered: List[PlannedRun] = sorted(self.runs, key=lambda run: ORDER.index(states[run.name]))
        read = ordered[: max(rows, counts[RUNNING])]  # those at work come first
        progress = {run.name: read_progress(run.folder, run.config) for run in read}
        left = self.seconds_left(states, progress)
        about = f"; about {duration(left)} left with {self.workers} workers" if left else ""
        table = Table(title=f"{summary}{about}", caption_justify="left", title_justify="left", expand=False)
        for heading, justify in (
            ("run", "left"),
            ("state", "left"),
            ("updates", "right"),
            ("last score", "right"),
            ("time left", "right"),
        ):
            table.add_column(heading, justify=justify, no_wrap=True)
        for run in ordered[:rows]:
            table.add_row(*cells(run, states[run.name], progress[run.name]), style=COLOURS[states[run.name]])
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


def cells(run: PlannedRun, state: str, progress: Progress) -> List[str]:
    """The texts of a run's line in the table."""
    score = "" if math.isnan(progress.score) else f"{progress.score_name} {progress.score:.4g}"
    left = ""
    if state == RUNNING:
        left = "re-evaluation" if progress.trained else duration(progress.seconds_left)
    return [run.name, state, f"{progress.step:,}/{progress.total:,}", score, left]
