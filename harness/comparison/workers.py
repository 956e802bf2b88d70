"""Runs of a comparison as processes of this machine: one run each, with its own share of the cores and GPUs.

A run is its two command lines, one after the other. A process that crashes or is killed ends its own run only. What it
prints goes to the run's log.txt; where it fails, the last lines of that stand in error.txt until a later attempt
succeeds.
"""

import contextlib
import ctypes
import datetime
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from common.files import make_folder, write_text
from harness import run_files
from harness.algorithms import ROOT
from harness.comparison.matrix import Comparison, PlannedRun
from harness.signals import StopSignals

ERROR_LINES = 30
POLL_SECONDS = 0.5
LONGEST_ROW = 16_384  # bytes
WAITING, RUNNING, FINISHED, FAILED, STOPPED = ("waiting", "running", "finished", "failed", "stopped")
PR_SET_PDEATHSIG = 1  # of Linux's prctl
LIBC = ctypes.CDLL(None)
Slot = dict[str, str]  # environment variables of the processes that take a place one after another


class Attempt:
    """Works on a run, from wherever its folder stands, until its last command has ended or one has failed."""

    def __init__(self, name: str, folder: Path, commands: Sequence[Sequence[str]], environment: Mapping[str, str]):
        """Starts the first command with these environment variables beside the caller's."""
        self.name, self.folder, self.environment, self.asked_to_stop = name, folder, environment, False
        self.commands = deque(commands)
        make_folder(folder, "run_dir")
        log = folder / run_files.LOG
        self.log_start = log.stat().st_size if log.exists() else 0
        self.start_next(f"==== {datetime.datetime.now():%Y-%m-%d %H:%M:%S} {name}\n")

    def start_next(self, heading: str = "") -> None:
        with open(self.folder / run_files.LOG, "a", encoding="utf-8") as log:
            log.write(heading)
            log.flush()
            # A session of its own: Ctrl-C in the terminal reaches the starter only, which then stops the run once.
            self.process = subprocess.Popen(
                self.commands.popleft(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": import_path()} | self.environment,
                start_new_session=True,
                preexec_fn=stop_with_parent,
            )

    def poll(self) -> str:
        """RUNNING, or how it ended; then error.txt is written or removed."""
        code = self.process.poll()
        if code == 0 and self.commands and not self.asked_to_stop:
            self.start_next()
            return RUNNING
        if code is None:
            return RUNNING
        error = self.folder / run_files.ERROR
        if code == 0 and not self.commands:
            error.unlink(missing_ok=True)
            return FINISHED
        if self.asked_to_stop:
            return STOPPED
        # Summaries show the last line: what the run itself said, or which signal ended it before it could say anything.
        with open(self.folder / run_files.LOG, encoding="utf-8", errors="replace") as log:
            log.seek(self.log_start)
            last = deque((line.rstrip() for line in log), maxlen=ERROR_LINES)
        parts = [f"{ended(code)}; the last lines of {run_files.LOG}:", "\n".join(filter(None, last))]
        write_text(error, "\n\n".join(parts if code > 0 else [*parts, ended(code)]) + "\n")
        return FAILED

    def stop(self) -> None:
        """Asks for a checkpoint and the end; `poll` says when that has happened."""
        self.asked_to_stop = True
        self.process.terminate()


def stop_with_parent() -> None:
    """In a new process: Linux sends it SIGTERM, at which a run writes a checkpoint, when its parent is gone."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def import_path() -> str:
    """PYTHONPATH with this repository first; the folder that the command was given in stays the run's."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def ended(code: int) -> str:
    if code >= 0:
        return f"the process ended with exit code {code}"
    hint = " (often: out of memory)" if -code == signal.SIGKILL else ""
    return f"the process was ended by signal {signal.Signals(-code).name}{hint}"


def announce(before: Mapping[str, str], states: Mapping[str, str]) -> None:
    """Prints a line for each run whose state has changed."""
    ended = sum(state in (FINISHED, FAILED) for state in states.values())
    for name, state in states.items():
        if state != before[name]:
            tqdm.write(f"{time.strftime('%H:%M:%S')} [{ended}/{len(states)}] {state}: {name}")  # above the bar
            sys.stdout.flush()


def updates_bar(runs: Sequence[PlannedRun]) -> tqdm:
    """A bar of the updates of all runs, in a terminal."""
    total = sum(run.run.total_updates for run in runs)
    return tqdm(total=total, unit="update", unit_scale=True, smoothing=0.05, disable=None)


def move(bar: tqdm, runs: Sequence[PlannedRun]) -> None:
    """Moves the bar to what the runs' logs hold."""
    if not bar.disable:
        bar.update(sum(updates_made(run.folder / run_files.TRAIN_LOG) for run in runs) - bar.n)


def updates_made(log: Path) -> int:
    """The updates of the last row of a run's train.csv, read from the file's end."""
    with contextlib.suppress(FileNotFoundError), open(log, "rb") as file:
        file.seek(max(0, os.path.getsize(log) - LONGEST_ROW))
        step = file.read().rstrip(b"\n").rpartition(b"\n")[2].partition(b",")[0]
        return int(step) if step.isdigit() else 0  # the header, or a row that is being written
    return 0


def run_locally(comparison: Comparison, runs: Sequence[PlannedRun], slots: Sequence[Slot]) -> dict[str, str]:
    """Works on the runs, in their order, until all have ended; returns their states.

    At SIGINT or SIGTERM the runs write checkpoints, and SystemExit is raised when they have ended; a second SIGINT
    kills them.
    """
    states = {run.name: WAITING for run in runs}
    waiting, free, attempts = deque(runs), deque(slots), []
    try:
        with StopSignals() as signals, updates_bar(runs) as bar:
            while attempts or (waiting and not signals.received):
                before = dict(states)
                while waiting and free and not signals.received:
                    run, slot = waiting.popleft(), free.popleft()
                    environment = environment_of(comparison) | slot
                    attempt = Attempt(run.name, run.folder, run.commands(comparison.cells(run)), environment)
                    attempts.append((attempt, slot))
                for attempt, slot in list(attempts):
                    if signals.received and not attempt.asked_to_stop:
                        attempt.stop()
                    states[attempt.name] = attempt.poll()
                    if states[attempt.name] != RUNNING:
                        attempts.remove((attempt, slot))
                        free.append(slot)
                announce(before, states)
                move(bar, runs)
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        for attempt, _ in attempts:
            attempt.process.kill()
        raise
    return states


def environment_of(comparison: Comparison) -> dict[str, str]:
    """Environment variables of all runs of a comparison, wherever they run."""
    return {"WANDB_RUN_GROUP": comparison.name}


# ---- Places on this machine ----


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def slots_of(workers: int, gpus: Sequence[str]) -> list[Slot]:
    """A place per worker, each with its share of the cores and the next of the GPUs, if there are any."""
    threads = str(max(1, cores() // workers))
    gpu_of = [{"CUDA_VISIBLE_DEVICES": name} for name in gpus] or [{}]
    return [{"OMP_NUM_THREADS": threads} | gpu_of[index % len(gpu_of)] for index in range(workers)]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",") if listed else [str(index) for index in range(torch.cuda.device_count())]
