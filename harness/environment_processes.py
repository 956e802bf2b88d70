"""Processes that host the environments of an evaluation. One that fails ends it; the run's own command continues."""

import atexit
import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from common.errors import UserError
from harness.environment_rows import EnvironmentFailure, EnvironmentRows

SECONDS_TO_CLOSE = 10.0  # what a process gets to close its environments before it is killed
SECONDS_TO_ANSWER = 600.0  # a process that is silent for longer hangs; building 25 of OGBench's arms takes a minute
LESS_MEMORY = "lower eval_environments (each environment and its row of the batch take memory) or eval_workers"


def _host_environments(connection: Any, make_env: Callable[[], gymnasium.Env]) -> None:
    """The life of a hosting process: answers calls until the other end of its pipe is closed, by death too."""
    # Ctrl-C and a cluster's SIGTERM reach the whole group of processes; how to end is the parent's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hosted = EnvironmentRows(make_env)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            method, arguments = connection.recv()
            try:
                answer = getattr(hosted, method)(*arguments)
            except (EnvironmentFailure, UserError, MemoryError) as error:
                answer = error
            connection.send(answer)
    hosted.close()


class EnvironmentProcesses:
    """`EnvironmentRows` in `workers` processes: row r lives in process r modulo workers."""

    seconds_to_answer = SECONDS_TO_ANSWER

    def __init__(self, make_env: Callable[[], gymnasium.Env], workers: int):
        # spawn: a fork would copy torch's and CUDA's state without their threads. It costs imports, once in a run.
        context = multiprocessing.get_context("spawn")
        self.seeds: dict[int, int] = {}  # of the rows' episodes
        self.connections, self.processes = [], []
        pipes = [context.Pipe() for _ in range(workers)]
        # Registered after the pipes, it runs before multiprocessing's own handler, which would wait for ever.
        atexit.register(self.close)
        for index, (connection, other_end) in enumerate(pipes):
            name = f"environments-{index}"
            process = context.Process(target=_host_environments, args=(other_end, make_env), daemon=True, name=name)
            process.start()
            other_end.close()
            self.connections.append(connection)
            self.processes.append(process)

    def reset(self, rows: np.ndarray, seeds: np.ndarray) -> tuple:
        """As `EnvironmentRows.reset`. The episodes of all other rows are over with it."""
        self.seeds = dict(zip(rows.tolist(), seeds.tolist(), strict=True))
        return self._call("reset", rows, seeds)

    def step(self, rows: np.ndarray, actions: np.ndarray) -> tuple:
        return self._call("step", rows, actions)

    def _call(self, method: str, rows: np.ndarray, values: np.ndarray) -> tuple:
        """Calls every process that hosts some of rows [n] with its rows and values; returns arrays [n, ...]."""
        owners = rows % len(self.processes)
        selections = {owner: np.flatnonzero(owners == owner) for owner in np.unique(owners).tolist()}
        for owner, selection in selections.items():
            with contextlib.suppress(OSError):  # a process that has ended: `_answer` says so
                self.connections[owner].send((method, (rows[selection], values[selection])))
        answers = [self._answer(owner, rows[selection]) for owner, selection in selections.items()]
        order = np.argsort(np.concatenate(list(selections.values())))
        return tuple(np.concatenate(parts)[order] for parts in zip(*answers, strict=True))

    def _answer(self, owner: int, rows: np.ndarray) -> tuple:
        """The answer of a process about rows [n]. Raises the error that it sent, UserError if it hangs or has ended."""
        process, connection = self.processes[owner], self.connections[owner]
        seeds = [self.seeds[row] for row in rows.tolist()]
        place = f"{process.name}, a process that hosts environments, in the episodes with seeds {seeds}"
        again = "give the same command again to continue"
        try:
            if not connection.poll(self.seconds_to_answer):
                raise UserError(f"{place}: gave no answer for {self.seconds_to_answer:g} s; {again}")
            answer = connection.recv()
        except (EOFError, OSError):
            process.join(1.0)  # its exit code arrives a moment after the end of its pipe
            killed = f" (a system that is short of memory kills so: {LESS_MEMORY})" if process.exitcode == -9 else ""
            raise UserError(f"{place}: ended with exit code {process.exitcode}{killed}; {again}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        atexit.unregister(self.close)
        for connection in self.connections:
            connection.close()
        deadline = time.monotonic() + SECONDS_TO_CLOSE
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
