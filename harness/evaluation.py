"""Evaluation: rollouts of anything that has act(), in one batch of fixed size, with one stream of noise per episode.

Episode i is reset with seed + i and draws its noise from a generator with that seed. A batch has one row for each
episode of a wave; a row keeps its place, and the batch its size, until the wave's last episode has ended. So an episode
depends neither on the episodes beside it nor on the number of processes that host the environments, and evaluation
changes no random state of training.

A process whose environment raises an error, dies or hangs is replaced once for an episode: the episode is repeated from
its seed with the actions it had, so that the results are those of an undisturbed evaluation.

gymnasium.vector.AsyncVectorEnv is not used: it wants a process for each environment, steps ended ones, sends whole
infos through its pipes and shares one global numpy stream among the episodes of this process.
"""

import atexit
import collections
import contextlib
import multiprocessing
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace
from typing import Any, Callable, Iterator, Optional, Sequence

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from envs.errors import UserError

EVALUATION_SEED = 10_000  # of the evaluations during training
GRID_SEED = 1_000_000  # of the sweeps of act options
TUNING_SEED = 2_000_000  # of the evaluations that choose hyperparameters
SECONDS_TO_CLOSE = 10.0  # what a process gets to close its environments before it is killed
NO_ROW = -1
SECONDS_TO_ANSWER = 600.0  # a process that is silent for longer hangs; building 25 of OGBench's arms takes a minute
LESS_MEMORY = "lower eval_environments (each environment and its row of the batch take memory) or eval_workers"


class EnvironmentFailure(RuntimeError):
    """An environment raised an error, or the process that hosted it ended; the text names the episode's seed."""


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Scores of n episodes, in the order of their seeds.

    returns [n]: undiscounted sums of rewards; lengths [n]: environment steps; successes [n]: info["success"] at the
    last step, None where the environment reports none; seconds: of the whole evaluation; restarts: how often a process
    of environments was replaced and its episodes repeated.
    """

    returns: np.ndarray
    lengths: np.ndarray
    successes: Optional[np.ndarray]
    seconds: float
    restarts: int = 0

    @property
    def steps_per_second(self) -> float:
        return float(self.lengths.sum() / self.seconds)

    def summary(self) -> dict[str, float]:
        """Means over the episodes, without timings: equal seeds give equal summaries."""
        summary = {
            "return": float(self.returns.mean()),
            "return_std": float(self.returns.std()),
            "length": float(self.lengths.mean()),
            "episodes": float(len(self.returns)),
        }
        if self.successes is not None:
            summary["success"] = float(self.successes.mean())
        return summary

    def scores(self, score_name: str) -> np.ndarray:
        """The task's score of each episode [n]: "return" or "success"."""
        scores = {"return": self.returns, "success": self.successes}[score_name]
        if scores is None:
            raise ValueError('the score is "success", but the environment reports no info["success"]')
        return scores


class EpisodeNoise(nn.Module):
    """An agent's noise while it is evaluated: row i of every draw comes from a generator with seed `seeds[i]`.

    The generators are the CPU's, so that an agent sees the same noise on every device.
    """

    def __init__(self, seeds: Sequence[int], like: Tensor):
        super().__init__()
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.device, self.dtype = like.device, like.dtype

    def normal(self, *shape: int) -> Tensor:
        return self._draw(shape, self.dtype, lambda row, generator: row.normal_(generator=generator))

    def uniform(self, *shape: int) -> Tensor:
        return self._draw(shape, self.dtype, lambda row, generator: row.uniform_(generator=generator))

    def integers(self, high: int, *shape: int) -> Tensor:
        return self._draw(shape, torch.int64, lambda row, generator: row.random_(0, high, generator=generator))

    def _draw(self, shape: tuple, dtype: torch.dtype, fill: Callable) -> Tensor:
        if not shape or shape[0] != len(self.generators):
            raise ValueError(f"noise of shape {shape}: act() must draw one row for each of {len(self.generators)} rows")
        rows = torch.empty(shape, dtype=dtype)
        for row, generator in zip(rows.unbind(), self.generators, strict=True):
            fill(row, generator)
        return rows.to(self.device)


def _tensor_of(agent: Any) -> Tensor:
    """Any tensor of the agent, for its device and dtype."""
    tensors = chain(agent.parameters(), agent.buffers()) if isinstance(agent, nn.Module) else ()
    return next(iter(tensors), torch.empty(0))


@contextlib.contextmanager
def _episode_noise(agent: Any, seeds: Sequence[int]) -> Iterator[None]:
    """Replaces agent.noise; an agent without that attribute (a scripted policy) has no noise to replace."""
    if not hasattr(agent, "noise"):
        yield
        return
    training_noise, agent.noise = agent.noise, EpisodeNoise(seeds, _tensor_of(agent))
    try:
        yield
    finally:
        agent.noise = training_noise


@contextlib.contextmanager
def _global_numpy_preserved() -> Iterator[None]:
    """Puts numpy's global generator back, with its state, which `EnvironmentRows` replaces."""
    bit_generator, state = np.random.get_bit_generator(), np.random.get_state(legacy=False)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_bit_generator(bit_generator)
        np.random.set_state(state)  # noqa: NPY002  (the swap loses the second half of a pair of normal draws)


class EnvironmentRows:
    """Environments by the row of the batch they belong to, built at a row's first reset and used again after that.

    OGBench's mazes draw from numpy's global generator, at reset and (teleports) in step. So each row has a global
    generator of its own, seeded with its episode and put in place around the row's calls. It leaves the last one there.
    """

    def __init__(self, make_env: Callable[[], gymnasium.Env]):
        self.make_env = make_env
        self.environments: dict[int, gymnasium.Env] = {}
        self.bit_generators: dict[int, np.random.BitGenerator] = {}
        self.seeds: dict[int, int] = {}
        self.row_at_work: Any = SimpleNamespace(value=NO_ROW)  # a process shares it with the one that it serves

    def reset(self, rows: np.ndarray, seeds: np.ndarray) -> tuple:
        """Starts an episode in each of rows [n]; returns (observations [n, O],)."""
        observations = []
        for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True):
            self.seeds[row] = seed
            if row not in self.environments:
                with self._global_generator(row, seed):
                    self.environments[row] = self.make_env()
            with self._global_generator(row, seed):
                observations.append(self.environments[row].reset(seed=seed)[0])
        return (np.asarray(observations, dtype=np.float32),)

    def step(self, rows: np.ndarray, actions: np.ndarray) -> tuple:
        """Steps rows [n] by actions [n, A]; returns observations [n, O], rewards, ends, successes (NaN: none) [n]."""
        observations = []
        rewards, successes, ends = np.zeros(len(rows)), np.full(len(rows), np.nan), np.zeros(len(rows), dtype=bool)
        for index, row in enumerate(rows.tolist()):
            with self._global_generator(row):
                observation, reward, terminated, truncated, info = self.environments[row].step(actions[index])
            observations.append(observation)
            rewards[index], ends[index] = reward, terminated or truncated
            successes[index] = info.get("success", np.nan)
        return np.asarray(observations, dtype=np.float32), rewards, ends, successes

    def close(self) -> None:
        for environment in self.environments.values():
            environment.close()
        self.environments.clear()

    @contextlib.contextmanager
    def _global_generator(self, row: int, seed: Optional[int] = None) -> Iterator[None]:
        """The row's global numpy generator, a new one if a seed is given; names the episode of an error."""
        if seed is not None:
            self.bit_generators[row] = np.random.MT19937(seed)
        np.random.set_bit_generator(self.bit_generators[row])
        self.row_at_work.value = row
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Exception:
            raise EnvironmentFailure(
                f"the environment of the episode with seed {self.seeds[row]} failed:\n{traceback.format_exc()}"
            ) from None


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


class Evaluator:
    """Environments that one run keeps for all its evaluations; a context manager, closed at its end.

    `environments` bounds the rows of the batch: as many episodes advance together, each in an environment of its own
    (OGBench's manipulation environments take 100 to 200 MB each). `workers` processes host them; 0 means this process.
    After an error the environments are closed; the next evaluation builds them anew. A process that gives no answer for
    `seconds_to_answer` counts as failed; without processes nothing can be restarted and the first failure is the end.
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env],
        environments: int = 50,
        workers: int = 0,
        seconds_to_answer: float = SECONDS_TO_ANSWER,
    ):
        if environments < 1 or workers < 0:
            raise ValueError(f"environments is {environments}, workers is {workers}; they start at 1 and at 0")
        self.make_env, self.environments, self.workers = make_env, environments, min(workers, environments)
        self.seconds_to_answer = seconds_to_answer
        self.rows: Any = None

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        rows, self.rows = self.rows, None
        if rows is not None:
            rows.close()

    def evaluate(self, agent: Any, episodes: int, seed: int, **act_options: Any) -> EvaluationResult:
        """Runs `agent.act(observations, **act_options)` in episodes with seeds seed, ..., seed + episodes - 1.

        Raises EnvironmentFailure where an environment fails (in a process: for the second time in an episode),
        FloatingPointError where an action is not finite, UserError where memory runs out.
        """
        if episodes < 1:
            raise ValueError(f"episodes is {episodes}; it starts at 1")
        started = time.perf_counter()
        num_rows = min(episodes, self.environments)
        returns, lengths, successes = np.zeros(episodes), np.zeros(episodes, dtype=np.int64), np.zeros(episodes)
        progress = tqdm(total=episodes, desc="evaluation", unit="episode", leave=False, disable=None)
        try:
            with progress, _global_numpy_preserved():
                if self.rows is None:
                    self.rows = self._build()
                restarts = self._restarts()
                for first in range(0, episodes, num_rows):
                    wave = slice(first, first + num_rows)  # of a wave past the last episode, numpy takes what is there
                    seeds = np.arange(seed + first, seed + first + num_rows)
                    with _episode_noise(agent, seeds):
                        scores = (returns[wave], lengths[wave], successes[wave])
                        self._run_wave(agent, act_options, seeds, *scores, progress)
        except BaseException as error:
            self.close()  # calls to the processes may be left without an answer
            if is_out_of_memory(error):
                raise UserError(
                    f"evaluation: out of memory with {num_rows} environments at a time ({_one_line(error)}); "
                    f"{LESS_MEMORY}"
                ) from error
            raise
        if np.isnan(successes).any() and not np.isnan(successes).all():
            raise ValueError('info["success"] is missing at the last step of some episodes only')
        reported = None if np.isnan(successes).any() else successes
        seconds = time.perf_counter() - started
        return EvaluationResult(returns, lengths, reported, seconds, self._restarts() - restarts)

    def _build(self) -> Any:
        if self.workers:
            return EnvironmentProcesses(self.make_env, self.workers, self.seconds_to_answer)
        return EnvironmentRows(self.make_env)

    def _restarts(self) -> int:
        return self.rows.restarts if self.workers else 0

    def _run_wave(
        self,
        agent: Any,
        act_options: dict,
        seeds: np.ndarray,
        returns: np.ndarray,
        lengths: np.ndarray,
        successes: np.ndarray,
        progress: tqdm,
    ) -> None:
        """Fills returns, lengths, successes [n] with the episodes of seeds[:n]; rows past n stay zero observations."""
        running = np.arange(len(returns))
        (first_observations,) = self.rows.reset(running, seeds[running])
        observations = np.zeros((len(seeds), *first_observations.shape[1:]), dtype=np.float32)
        observations[running] = first_observations
        like = _tensor_of(agent)
        while len(running):
            batch = torch.tensor(observations, dtype=like.dtype, device=like.device)
            actions = agent.act(batch, **act_options).to("cpu", torch.float32).numpy()[running]
            if not np.isfinite(actions).all():
                bad = seeds[running[~np.isfinite(actions).all(axis=1)]].tolist()
                raise FloatingPointError(f"act() gave actions that are not finite in the episodes with seeds {bad}")
            observations[running], rewards, ends, succeeded = self.rows.step(running, actions)
            returns[running] += rewards
            lengths[running] += 1
            successes[running] = succeeded
            progress.update(int(ends.sum()))
            running = running[~ends]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether python, numpy, CUDA or torch's CPU allocator (which has no error type of its own) found no memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def evaluate(
    agent: Any,
    make_env: Callable[[], gymnasium.Env],
    episodes: int,
    seed: int,
    environments: int = 50,
    workers: int = 0,
    **act_options: Any,
) -> EvaluationResult:
    """One evaluation with environments of its own; see `Evaluator` for several."""
    with Evaluator(make_env, min(environments, episodes), workers) as evaluator:
        return evaluator.evaluate(agent, episodes, seed, **act_options)
