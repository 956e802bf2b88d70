"""What a comparison shows while runs are at work: a line for each change, and in a terminal a bar of all updates."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from harness import run_files
from harness.comparison.matrix import PlannedRun
from harness.comparison.workers import FAILED, FINISHED, RUNNING, STOPPED, WAITING
from harness.loggers import read_rows
from harness.run_folder import read_result

SECONDS_BETWEEN = 2.0  # two readings of the runs' files


def updates_made(folder: Path) -> int:
    """The updates of a run as of the last row of its train.csv."""
    rows = read_rows(folder / run_files.TRAIN_LOG)
    return int(rows[-1]["step"]) if rows else 0


class Progress:
    """Shows the states of runs, by name: a context manager whose `show` is called while they are at work."""

    def __init__(self, runs: Sequence[PlannedRun]):
        self.runs = runs
        self.shown = {run.name: WAITING for run in runs}
        self.steps = {run.name: updates_made(run.folder) for run in runs}
        self.looked_at = time.monotonic()
        total = sum(run.run.offline_steps + run.run.online_steps for run in runs)
        self.bar = tqdm(total=total, initial=sum(self.steps.values()), unit=" updates", unit_scale=True, disable=None)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def show(self, states: Mapping[str, str]) -> None:
        for run in self.runs:
            if states[run.name] != self.shown[run.name]:
                tqdm.write(self.line(run, states))
        self.shown = dict(states)
        if not self.bar.disable and time.monotonic() - self.looked_at > SECONDS_BETWEEN:
            self.steps |= {run.name: updates_made(run.folder) for run in self.runs if states[run.name] != WAITING}
            self.bar.update(sum(self.steps.values()) - self.bar.n)
            self.looked_at = time.monotonic()

    def line(self, run: PlannedRun, states: Mapping[str, str]) -> str:
        """One state change in words."""
        state = states[run.name]
        ended = sum(other in (FINISHED, FAILED) for other in states.values())
        what = ""
        if state == RUNNING and (step := updates_made(run.folder)):
            what = f", continues after {step:,} updates"
        elif state == FINISHED:
            result = read_result(run.folder)
            what = f", {result['score_name']} {result['score']:.4g}"
        elif state == FAILED:
            what = f", see {run.folder / run_files.ERROR}"
        elif state == STOPPED:
            what = ", it continues when the same command is run again"
        return f"{time.strftime('%H:%M:%S')} [{ended}/{len(states)}] {state}: {run.name}{what}"
