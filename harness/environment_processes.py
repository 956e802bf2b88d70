"""Processes that host the environments of an evaluation, their pipes, and how one that fails is replaced.

A process whose environment raises an error, dies or hangs is replaced once for an episode: the episode is repeated from
its seed with the actions it had, so that the results are those of an undisturbed evaluation.
"""

import atexit
import collections
import contextlib
import multiprocessing
import signal
import sys
import time
from typing import Any, Callable, Optional

import gymnasium
import numpy as np
from tqdm import tqdm

from common.errors import UserError
from harness.environment_rows import NO_ROW, EnvironmentFailure, EnvironmentRows

SECONDS_TO_CLOSE = 10.0  # what a process gets to close its environments before it is killed
SECONDS_TO_ANSWER = 600.0  # a process that is silent for longer hangs; building 25 of OGBench's arms takes a minute
LESS_MEMORY = "lower eval_environments (each environment and its row of the batch take memory) or eval_workers"


def _host_environments(connection: Any, make_env: Callable[[], gymnasium.Env], row_at_work: Any) -> None:
    """The life of a hosting process: answers calls until the other end of its pipe is closed, by death too."""
    # Ctrl-C and a cluster's SIGTERM reach the whole group of processes; how to end is the parent's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hosted = EnvironmentRows(make_env)
    hosted.row_at_work = row_at_work
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            method, arguments = connection.recv()
            try:
                answer = getattr(hosted, method)(*arguments)
            except (EnvironmentFailure, UserError, MemoryError) as error:
                answer = error
            row_at_work.value = NO_ROW
            connection.send(answer)
    hosted.close()


class EnvironmentProcesses:
    """`EnvironmentRows` in `workers` processes: row r lives in process r modulo workers.

    A process that fails is replaced, and the episodes it had are repeated up to where they were. An episode at which a
    process fails twice ends the evaluation.
    """

    def __init__(self, make_env: Callable[[], gymnasium.Env], workers: int, seconds_to_answer: float):
        # spawn: a fork would copy torch's and CUDA's state without their threads. It costs imports, once in a run.
        self.context = multiprocessing.get_context("spawn")
        self.make_env, self.seconds_to_answer = make_env, seconds_to_answer
        self.restarts = 0
        self.seeds: dict[int, int] = {}
        self.failures: collections.Counter = collections.Counter()  # by row, since its last reset
        self.steps: list[tuple] = []  # (rows, actions) since the last reset: what an episode is repeated from
        self.observations: dict[int, np.ndarray] = {}  # the last of each row
        self.rows_at_work = [self.context.RawValue("q", NO_ROW) for _ in range(workers)]
        self.connections: list = [None] * workers
        self.processes: list = [None] * workers
        pipes = [self.context.Pipe() for _ in range(workers)]
        # Registered after the pipes, it runs before multiprocessing's own handler, which would wait for ever.
        atexit.register(self.close)
        for index, pipe in enumerate(pipes):
            self._start(index, pipe)

    def _start(self, index: int, pipe: tuple) -> None:
        self.connections[index], other_end = pipe
        arguments = (other_end, self.make_env, self.rows_at_work[index])
        name = f"environments-{index}"
        process = self.context.Process(target=_host_environments, args=arguments, daemon=True, name=name)
        process.start()
        other_end.close()
        self.processes[index] = process

    def reset(self, rows: np.ndarray, seeds: np.ndarray) -> tuple:
        """As `EnvironmentRows.reset`. The episodes of all other rows are over with it."""
        self.seeds = dict(zip(rows.tolist(), seeds.tolist(), strict=True))
        self.steps.clear()
        self.failures.clear()
        return self._call("reset", rows, seeds)

    def step(self, rows: np.ndarray, actions: np.ndarray) -> tuple:
        answers = self._call("step", rows, actions)
        self.steps.append((rows, actions))
        return answers

    def _call(self, method: str, rows: np.ndarray, values: np.ndarray) -> tuple:
        """Calls every process that hosts some of rows [n] with its rows and values; returns arrays [n, ...]."""
        owners = rows % len(self.processes)
        selections = {owner: np.flatnonzero(owners == owner) for owner in np.unique(owners).tolist()}
        for owner, selection in selections.items():
            self._send(owner, method, rows[selection], values[selection])
        answers = [
            self._answer_in_spite_of_failure(owner, method, rows[selection], values[selection])
            for owner, selection in selections.items()
        ]
        order = np.argsort(np.concatenate(list(selections.values())))
        answer = tuple(np.concatenate(parts)[order] for parts in zip(*answers, strict=True))
        self.observations.update(zip(rows.tolist(), answer[0], strict=True))
        return answer

    def _send(self, owner: int, method: str, *arguments: np.ndarray) -> None:
        with contextlib.suppress(OSError):  # a process that has ended: `_answer` says so
            self.connections[owner].send((method, arguments))

    def _answer(self, owner: int) -> Any:
        """The answer of a process, or the EnvironmentFailure that it sent, hangs in or ended by."""
        process, connection = self.processes[owner], self.connections[owner]
        try:
            if connection.poll(self.seconds_to_answer):
                return connection.recv()
            return EnvironmentFailure(f"{process.name} gave no answer for {self.seconds_to_answer:g} s")
        except (EOFError, OSError):
            process.join(1.0)  # its exit code arrives a moment after the end of its pipe
            killed = f"; a system that is short of memory kills so: {LESS_MEMORY}" if process.exitcode == -9 else ""
            return EnvironmentFailure(
                f"{process.name}, a process that hosts environments, ended (exit code {process.exitcode}); its own "
                f"message, if it had time for one, is above{killed}"
            )

    def _answer_in_spite_of_failure(self, owner: int, method: str, rows: np.ndarray, values: np.ndarray) -> tuple:
        """The answer to the call of a process with rows [n], after a restart where the first answer is a failure.

        Raises EnvironmentFailure where an episode failed twice.
        """
        answer = self._answer(owner)
        while isinstance(answer, EnvironmentFailure):
            self._count(owner, answer, rows)
            self._restart(owner)
            answer = self._repeat(owner, rows) if method == "step" else None
            if answer is None:
                self._send(owner, method, rows, values)
                answer = self._answer(owner)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _count(self, owner: int, failure: EnvironmentFailure, rows: np.ndarray) -> None:
        """Reports a failure and blames the row that was being worked on, all `rows` [n] where that is not known."""
        at_work = self.rows_at_work[owner].value
        blamed = rows.tolist() if at_work == NO_ROW else [at_work]
        seeds = [self.seeds[row] for row in blamed]
        named = f"{failure}\nwhile the episodes with seeds {seeds} ran"
        self.failures.update(blamed)
        if max(self.failures[row] for row in blamed) > 1:
            raise EnvironmentFailure(f"twice: {named}") from None
        self.restarts += 1
        reason = " ".join(str(failure).split())[-300:]
        tqdm.write(
            f"warning: {reason}; {self.processes[owner].name} is restarted and the episodes with seeds {seeds} are "
            f"repeated (restart {self.restarts})",
            file=sys.stderr,
        )

    def _restart(self, owner: int) -> None:
        self.connections[owner].close()
        self.processes[owner].kill()
        self.processes[owner].join()
        self.processes[owner].close()
        self.rows_at_work[owner].value = NO_ROW
        self._start(owner, self.context.Pipe())

    def _repeat(self, owner: int, rows: np.ndarray) -> Optional[EnvironmentFailure]:
        """Brings rows [n] of a new process to where they were; returns the failure if it fails again on the way."""
        calls = [("reset", rows, np.asarray([self.seeds[row] for row in rows.tolist()]))]
        for stepped, actions in self.steps:
            calls.append(("step", rows, actions[np.isin(stepped, rows)]))
        for call in calls:
            self._send(owner, *call)
            answer = self._answer(owner)
            if isinstance(answer, EnvironmentFailure):
                return answer
            if isinstance(answer, Exception):
                raise answer
        before = np.stack([self.observations[row] for row in rows.tolist()])
        if not np.array_equal(answer[0], before, equal_nan=True):
            raise EnvironmentFailure(
                f"the episodes with seeds {calls[0][2].tolist()} could not be repeated after a failure: the same seed "
                "and actions gave other observations"
            )
        return None

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
