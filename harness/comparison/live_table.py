"""The table that a comparison shows while its runs work; plain lines, one per change, where there is no terminal."""

import collections
import math
import time
from typing import Dict, List, Mapping, Optional, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from harness.comparison.matrix import PlannedRun
from harness.comparison.progress import read_progress
from harness.comparison.workers import ERROR, FAILED, FINISHED, RUNNING, STATES, STOPPED, WAITING

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
        return f"{text}, see {run.folder / ERROR}" if state == FAILED else text

    def table(self, states: Mapping[str, str], rows: int) -> Table:
        """At most `rows` runs and a line that counts all."""
        counts = collections.Counter(states.values())
        summary = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        left = self.seconds_left(states)
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
        ordered: List[PlannedRun] = sorted(self.runs, key=lambda run: ORDER.index(states[run.name]))
        for run in ordered[:rows]:
            table.add_row(*self.cells(run, states[run.name]), style=COLOURS[states[run.name]])
        if len(ordered) > rows:
            table.caption = f"{len(ordered) - rows} more runs are not shown"
        return table

    def cells(self, run: PlannedRun, state: str) -> List[str]:
        progress = read_progress(run.folder, run.config)
        score = "" if math.isnan(progress.score) else f"{progress.score_name} {progress.score:.4g}"
        left = ""
        if state == RUNNING:
            left = "re-evaluation" if progress.trained else duration(progress.seconds_left)
        return [run.name, state, f"{progress.step:,}/{progress.total:,}", score, left]

    def seconds_left(self, states: Mapping[str, str]) -> float:
        """About what is left on the clock: speeds of the runs that have begun, estimates of the others."""
        total = 0.0
        for run in self.runs:
            estimate = self.estimates.get(run.name, 0.0)
            if states[run.name] == WAITING:
                total += estimate
            elif states[run.name] == RUNNING:
                left = read_progress(run.folder, run.config).seconds_left
                total += estimate if math.isnan(left) else left
        return total / self.workers


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
