"""Processes that make the files of a local data set, one job after the other."""

import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Callable, Optional, Sequence

from tqdm import tqdm

_worker: Optional[Callable[[Any], None]] = None  # of a process of the pool, set once when it starts


def run_jobs(
    make_worker: Callable[[], Callable[[Any], None]],
    jobs: Sequence[Any],
    workers: int,
    jobs_per_worker: int,
    done: int,
    description: str,
    unit: str = "episode",
) -> None:
    """Calls `make_worker()`, picklable, once in each of up to `workers` processes, and the result for each job.

    jobs_per_worker: how many jobs take as long as the start of a process; done: jobs of an earlier call.
    """
    bar = {"desc": description, "unit": unit, "initial": done, "total": done + len(jobs), "disable": None}
    workers = min(workers, -(-len(jobs) // jobs_per_worker))
    if workers <= 1:
        worker = make_worker() if jobs else None
        for job in tqdm(jobs, **bar):
            worker(job)
        return
    # spawn: a fork would copy this process's threads' locks, torch's among them.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(make_worker,))
    try:
        for _ in tqdm(executor.map(_work, jobs), **bar):
            pass
    finally:
        executor.shutdown(cancel_futures=True)


def _start(make_worker: Callable[[], Callable[[Any], None]]) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the parent, which stops its workers
    _worker = make_worker()


def _work(job: Any) -> None:
    _worker(job)
