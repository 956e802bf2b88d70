"""Runs of a comparison as processes of this machine: one run each, with its own share of the cores and GPUs.

A process that crashes or is killed ends its own run only. What it prints goes to the run's log.txt; where it fails, the
last lines of that stand in error.txt until a later attempt succeeds.
"""

import datetime
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from common.files import make_folder, write_text
from harness import run_files
from harness.algorithms import ROOT
from harness.comparison.matrix import Comparison, PlannedRun
from harness.comparison.slots import Slot

ERROR_LINES = 30
POLL_SECONDS = 0.5
WAITING, RUNNING, FINISHED, FAILED, STOPPED = STATES = ("waiting", "running", "finished", "failed", "stopped")


class Attempt:
    """One process that works on a run, from wherever its folder stands."""

    def __init__(self, run: PlannedRun, cells: List[Dict[str, Any]], environment: Mapping[str, str]):
        """Starts it with these environment variables beside the caller's."""
        self.run, self.asked_to_stop = run, False
        make_folder(run.folder, "run_dir")
        command = [sys.executable, "-m", "harness.comparison.planned_run", run.name]
        with open(run.folder / run_files.LOG, "a", encoding="utf-8") as log:
            log.write(f"==== {datetime.datetime.now():%Y-%m-%d %H:%M:%S} {run.name}\n")
            log.flush()
            self.log_start = log.tell()
            # A session of its own: Ctrl-C in the terminal reaches the starter only, which then stops the run once.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, "PYTHONUNBUFFERED": "1", "PYTHONPATH": _import_path()},
                start_new_session=True,
            )
        self.process.stdin.write(pickle.dumps((run, cells)))
        self.process.stdin.flush()  # stays open: its end is the sign that this process is gone

    def poll(self) -> str:
        """RUNNING, or how it ended; then error.txt is written or removed."""
        code = self.process.poll()
        if code is None:
            return RUNNING
        self.process.stdin.close()
        error = self.run.folder / run_files.ERROR
        if code == 0:
            error.unlink(missing_ok=True)
            return FINISHED
        if self.asked_to_stop:
            return STOPPED
        # Summaries show the last line: what the run itself said, or which signal ended it before it could say anything.
        parts = [f"{_ended(code)}; the last lines of {run_files.LOG}:", self._last_lines()]
        write_text(error, "\n\n".join(parts if code > 0 else [*parts, _ended(code)]) + "\n")
        return FAILED

    def stop(self) -> None:
        """Asks for a checkpoint and the end; `poll` says when that has happened."""
        self.asked_to_stop = True
        self.process.terminate()

    def kill(self) -> None:
        self.asked_to_stop = True
        self.process.kill()

    def _last_lines(self) -> str:
        with open(self.run.folder / run_files.LOG, encoding="utf-8", errors="replace") as log:
            log.seek(self.log_start)
            lines = deque((line.rstrip() for line in log), maxlen=ERROR_LINES)
        return "\n".join(line for line in lines if line)


def _import_path() -> str:
    """PYTHONPATH with this repository first; the folder that the command was given in stays the run's."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def _ended(code: int) -> str:
    if code >= 0:
        return f"the process ended with exit code {code}"
    hint = " (often: out of memory)" if -code == signal.SIGKILL else ""
    return f"the process was ended by signal {signal.Signals(-code).name}{hint}"


def environment_of(comparison: Comparison) -> Dict[str, str]:
    """Environment variables of all runs of a comparison, wherever they run."""
    return {"WANDB_RUN_GROUP": comparison.name}


class Stopping:
    """Notes SIGINT and SIGTERM while runs are at work."""

    def __init__(self) -> None:
        self.received: List[int] = []

    def __enter__(self) -> "Stopping":
        self.previous = {
            number: signal.signal(number, lambda number, frame: self.received.append(number))
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def run_locally(
    comparison: Comparison,
    runs: Sequence[PlannedRun],
    slots: Sequence[Slot],
    show: Callable[[Dict[str, str]], None],
) -> Tuple[Dict[str, str], int]:
    """Works on the runs, in their order, until all ended or a signal came; returns their states and that signal (0).

    `show` is called with the states by name about twice a second. At SIGINT or SIGTERM the runs write checkpoints; a
    second one kills them.
    """
    states = {run.name: WAITING for run in runs}
    waiting = deque(runs)
    attempts: List[Optional[Attempt]] = [None] * len(slots)
    with Stopping() as stopping:
        while True:
            for index, attempt in enumerate(attempts):
                if attempt is not None:
                    states[attempt.run.name] = attempt.poll()
                    if states[attempt.run.name] != RUNNING:
                        attempts[index] = attempt = None
                if attempt is None and waiting and not stopping.received:
                    run = waiting.popleft()
                    attempts[index] = Attempt(run, comparison.cells(run), environment_of(comparison) | slots[index])
                    states[run.name] = RUNNING
            _pass_on(stopping.received, [attempt for attempt in attempts if attempt is not None])
            show(states)
            if not any(attempts):
                break
            time.sleep(POLL_SECONDS)
    return states, stopping.received[0] if stopping.received else 0


def _pass_on(received: Sequence[int], attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        if len(received) > 1:
            attempt.kill()
        elif received and not attempt.asked_to_stop:
            attempt.stop()
