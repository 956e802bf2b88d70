"""Runs of a comparison on an existing Ray cluster: one Ray task per run, started again by Ray when its machine is lost.

A task is the same process as on one machine (`Attempt` of workers.py), which ends with the Ray worker that started it.
A run that is started again continues from its checkpoint, so the run folders must be on storage that all machines
share; that is checked before anything runs. docs/cluster.md describes the set-up.
"""

import contextlib
import dataclasses
import fcntl
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

from common.errors import UserError
from common.files import make_folder, write_text
from harness import run_files
from harness.algorithms import ROOT
from harness.comparison.matrix import Comparison, PlannedRun
from harness.comparison.shared_storage import Probe, probe_in
from harness.comparison.slots import Slot
from harness.comparison.workers import (
    FAILED,
    POLL_SECONDS,
    RUNNING,
    STOPPED,
    WAITING,
    Attempt,
    Stopping,
    environment_of,
)

RETRIES = -1  # Ray's word for no limit: machines lost and runs stopped from outside count, not runs that fail
STOPPED_BY_SIGTERM = 128 + signal.SIGTERM  # exit code of a run after its checkpoint (harness/training/loop.py)
COLOUR = re.compile(r"\x1b\[[0-9]*m")  # of terminals, in Ray's messages
ANSWER_SECONDS = 10.0
PROBE_SECONDS = 300.0  # for every machine to start a worker and look for the probe file
LOCK_SECONDS = 120.0  # for the process of a lost Ray worker to write its checkpoint and end


class Interrupted(Exception):
    """Another one than the driver stopped a run, as a machine does that shuts down; Ray starts it again."""


@dataclasses.dataclass(frozen=True)
class Resources:
    """What one run takes of a machine: CPU cores and GPUs (a fraction: several runs share one)."""

    cpus: float
    gpus: float

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.cpus != int(self.cpus):
            raise UserError(f"command line: --cpus_per_run is {self.cpus:g}, it must be a whole number from 1 on")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise UserError(f"command line: --gpus_per_run is {self.gpus:g}, it must be a fraction or a whole number")

    def places(self, machine: Dict[str, float]) -> int:
        """How many runs a machine with Ray's resources of these names holds."""
        by_gpu = [int(machine.get("GPU", 0) / self.gpus)] if self.gpus else []
        return min(int(machine.get("CPU", 0) / self.cpus), *by_gpu, 10**6)


# ---- What happens on the machines ----


def work_on(run: PlannedRun, cells: List[Dict[str, Any]], environment: Dict[str, str], probe: Probe) -> str:
    """The Ray task: completes the run in a process of its own; returns its state at the end."""
    problem = probe.problem()
    if problem:
        raise UserError(problem)
    wait_for_lock(run.folder / run_files.LOCK)
    attempt = Attempt(run, cells, environment)
    try:
        while (state := attempt.poll()) == RUNNING:  # not `wait`, in which ray.cancel is noticed at the end only
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:  # ray.cancel
        attempt.stop()
        attempt.process.wait()
        raise
    if attempt.process.returncode == STOPPED_BY_SIGTERM:
        raise Interrupted(f"{run.name} was stopped by SIGTERM")
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


def import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError("ray is not installed; run: pip install -r requirements-ray.txt") from error
    return ray


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
    ray = import_ray()
    check_answers(address)
    # The workers import this module from the same path as here.
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    try:
        ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level="WARNING")
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"command line: --ray {address}: no cluster answers ({reason}), see `ray status`") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def machines(ray: Any, resources: Resources) -> List[Tuple[str, int]]:
    """(Ray's id of a machine, runs that it holds at a time) of those that hold any. Raises UserError without one."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    places = [(node["NodeID"], resources.places(node["Resources"])) for node in alive]
    able = [each for each in places if each[1] > 0]
    if not able:
        raise UserError(
            f"command line: none of the cluster's {len(alive)} machines has the {resources.cpus:g} CPUs and "
            f"{resources.gpus:g} GPUs of a run, lower --cpus_per_run or --gpus_per_run"
        )
    return able


def slots_on(address: str, resources: Resources, folder: Path) -> List[Slot]:
    """A place for each run that the cluster holds at a time, after every machine has proved that it sees `folder`.

    Raises UserError that names what keeps the cluster from working.
    """
    with connected(address) as ray, probe_in(folder) as probe:
        able = machines(ray, resources)
        check_shared(ray, [node for node, _ in able], probe)
    return [{"OMP_NUM_THREADS": str(int(resources.cpus))}] * sum(places for _, places in able)


def check_shared(ray: Any, nodes: Sequence[str], probe: Probe) -> None:
    """Raises UserError where a machine does not see the probe or cannot run this repository's code."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(Probe.problem)
    asked = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(probe)
        for node in nodes
    ]
    print(f"asking {len(nodes)} machines of the cluster whether they see {probe.path.parent}", flush=True)
    try:
        problems = ray.get(asked, timeout=PROBE_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        raise UserError(f"--ray: a machine has not answered in {PROBE_SECONDS:g} seconds, see `ray status`") from error
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"--ray: a machine cannot run the code in {ROOT} ({reason}); is it on all machines?") from error
    for problem in problems:
        if problem:
            raise UserError(problem)


# ---- Running ----


class Submitted:
    """A run's Ray task."""

    def __init__(self, ray: Any, run: PlannedRun, task: Any):
        self.ray, self.run, self.task = ray, run, task
        self.log_size = self._log_size()

    def _log_size(self) -> int:
        log = self.run.folder / run_files.LOG
        return log.stat().st_size if log.exists() else 0

    def state(self, asked_to_stop: bool) -> str:
        """Its state now; where the task itself failed, error.txt is written."""
        if not self.ray.wait([self.task], timeout=0)[0]:
            return RUNNING if self._log_size() > self.log_size else WAITING  # an attempt begins with a line in the log
        try:
            return self.ray.get(self.task)
        except self.ray.exceptions.RayError as error:
            if asked_to_stop:
                return STOPPED
            make_folder(self.run.folder, "run_dir")
            write_text(self.run.folder / run_files.ERROR, f"{COLOUR.sub('', str(error)).strip()}\n")
            return FAILED


def with_absolute_paths(run: PlannedRun) -> PlannedRun:
    """The run with the folders that its config names seen from here, because a Ray worker starts somewhere else."""
    names = [name for name in ("run_dir", "data_dir") if getattr(run.config, name) is not None]
    paths = {name: str(Path(getattr(run.config, name)).expanduser().absolute()) for name in names}
    return dataclasses.replace(run, config=dataclasses.replace(run.config, **paths))


def run_on_ray(
    comparison: Comparison,
    runs: Sequence[PlannedRun],
    address: str,
    resources: Resources,
    slot: Slot,
    show: Callable[[Dict[str, str]], None],
) -> Tuple[Dict[str, str], int]:
    """As `workers.run_locally`, on the cluster: gives Ray all runs at once, which starts them in their order.

    At SIGINT or SIGTERM the runs write checkpoints; a second one ends their Ray workers.
    """
    states = {run.name: WAITING for run in runs}
    with connected(address) as ray, probe_in(comparison.out) as probe, Stopping() as stopping:
        retries = {"max_retries": RETRIES, "retry_exceptions": [Interrupted]}
        task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, **retries)(work_on)
        environment = environment_of(comparison) | slot
        submitted = [
            Submitted(ray, run, task.options(name=run.name).remote(run, comparison.cells(run), environment, probe))
            for run in map(with_absolute_paths, runs)
        ]
        cancelled = 0
        while True:
            for each in submitted:
                if states[each.run.name] in (WAITING, RUNNING):
                    states[each.run.name] = each.state(asked_to_stop=bool(stopping.received))
            show(states)
            unfinished = [each for each in submitted if states[each.run.name] in (WAITING, RUNNING)]
            if not unfinished:
                break
            if len(stopping.received) > cancelled:
                cancelled = len(stopping.received)
                for each in unfinished:
                    ray.cancel(each.task, force=cancelled > 1)
            time.sleep(POLL_SECONDS)
    return states, stopping.received[0] if stopping.received else 0
