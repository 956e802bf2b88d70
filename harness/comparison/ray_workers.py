"""Runs of a comparison on an existing Ray cluster: one Ray task per run, started again by Ray when its machine is lost.

A task runs the same two commands as on one machine (`Attempt` of workers.py), which end with the Ray worker that
started them. A run that is started again continues from its checkpoint, so the run folders must be on storage that all
machines share. docs/comparisons.md describes the set-up.
"""

import contextlib
import fcntl
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import make_folder, write_text
from harness import run_files
from harness.algorithms import ROOT
from harness.comparison.matrix import Comparison, PlannedRun
from harness.comparison.workers import (
    FAILED,
    POLL_SECONDS,
    RUNNING,
    STOPPED,
    WAITING,
    Attempt,
    announce,
    environment_of,
    move,
    updates_bar,
)
from harness.signals import StopSignals

RETRIES = -1  # Ray's word for no limit: machines lost and runs stopped from outside count, not runs that fail
STOPPED_BY_SIGTERM = 128 + signal.SIGTERM  # exit code of a run after its checkpoint
COLOUR = re.compile(r"\x1b\[[0-9]*m")  # of terminals, in Ray's messages
ANSWER_SECONDS = 10.0
LOCK_SECONDS = 120.0  # for the process of a lost Ray worker to write its checkpoint and end


class Interrupted(Exception):
    """Another one than the driver stopped a run, as a machine does that shuts down; Ray starts it again."""


# ---- What happens on the machines ----


def work_on(name: str, folder: Path, commands: list[list[str]], environment: dict[str, str], out: Path) -> str:
    """The Ray task: completes the run by its commands; returns its state at the end.

    Raises UserError where this machine does not see the comparison's folder `out`.
    """
    if not out.exists():
        here = socket.gethostname()
        raise UserError(f"{out}: not the same folder on {here}, choose a run_dir on storage that all share")
    wait_for_lock(folder / run_files.LOCK)
    attempt = Attempt(name, folder, commands, environment)
    try:
        while (state := attempt.poll()) == RUNNING:  # not `wait`, in which ray.cancel is noticed at the end only
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:  # ray.cancel
        attempt.stop()
        attempt.process.wait()
        raise
    if attempt.process.returncode == STOPPED_BY_SIGTERM:
        raise Interrupted(f"{name} was stopped by SIGTERM")
    return state


def wait_for_lock(path: Path) -> None:
    """Waits until no process holds the run; after LOCK_SECONDS it is the run itself that says who does."""
    deadline = time.monotonic() + LOCK_SECONDS
    while path.exists() and time.monotonic() < deadline:
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(POLL_SECONDS)


# ---- The cluster ----


def check_answers(address: str) -> None:
    """Raises UserError where nothing listens at host:port; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or "/" in host or not port.isdigit():
        raise UserError(f"command line: --ray {address}: give host:port of the cluster's head, or auto on its machines")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"command line: --ray {address}: nothing answers there ({error}), see `ray status`") from error


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """ray, connected to the cluster at `address` (host:port, or auto for the one of this machine) within the block."""
    check_answers(address)
    try:
        import ray
    except ImportError as error:
        raise UserError("ray is not installed; run: pip install -r requirements-ray.txt") from error
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}  # the workers import this module from the same path as here
    try:
        ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level="WARNING")
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"command line: --ray {address}: no cluster answers ({reason}), see `ray status`") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def check_cluster(address: str, cpus: int, gpus: float) -> None:
    """Raises UserError where the cluster holds no run that takes so many cores and GPUs."""
    with connected(address) as ray:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(machine.get("CPU", 0) >= cpus and machine.get("GPU", 0) >= gpus for machine in alive):
        raise UserError(
            f"command line: none of the cluster's {len(alive)} machines has the {cpus} CPUs and {gpus:g} GPUs of a "
            "run, lower --cpus_per_run or --gpus_per_run"
        )


# ---- Running ----


def run_on_ray(
    comparison: Comparison, runs: Sequence[PlannedRun], address: str, cpus: int, gpus: float
) -> dict[str, str]:
    """As `workers.run_locally`, on the cluster: gives Ray all runs at once, which starts them in their order.

    cpus, gpus: what one run takes of a machine; of a GPU also a fraction, so that several runs share it.
    """
    states = {run.name: WAITING for run in runs}
    with connected(address) as ray, StopSignals() as signals, updates_bar(runs) as bar:
        retries = {"max_retries": RETRIES, "retry_exceptions": [Interrupted]}
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, **retries)(work_on)
        environment, tasks = environment_of(comparison) | {"OMP_NUM_THREADS": str(cpus)}, {}
        for run in runs:
            commands, out = run.commands(comparison.cells(run)), comparison.out.absolute()
            arguments = (run.name, run.folder.absolute(), commands, environment, out)
            tasks[remote.options(name=run.name).remote(*arguments)] = run
        cancelled = False
        try:
            while tasks:
                if signals.received and not cancelled:
                    cancelled = True
                    for task in tasks:
                        ray.cancel(task)
                before = dict(states)
                for task in ray.wait(list(tasks), timeout=POLL_SECONDS)[0]:
                    run = tasks.pop(task)
                    states[run.name] = ended_state(ray, task, run, cancelled)
                announce(before, states)
                move(bar, runs)
        except KeyboardInterrupt:
            for task in tasks:
                ray.cancel(task, force=True)
            raise
    return states


def ended_state(ray: Any, task: Any, run: PlannedRun, cancelled: bool) -> str:
    """The state in which a Ray task has ended; where the task itself failed, error.txt is written."""
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        if cancelled:
            return STOPPED
        make_folder(run.folder, "run_dir")
        write_text(run.folder / run_files.ERROR, f"{COLOUR.sub('', str(error)).strip()}\n")
        return FAILED
