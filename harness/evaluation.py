"""Evaluation: rollouts of anything that has act(), in one batch of fixed size, with one stream of noise per episode.

Episode i is reset with seed + i and draws its noise from a generator with that seed. A batch has one row for each
episode of a wave; a row keeps its place, and the batch its size, until the wave's last episode has ended. So an episode
depends neither on the episodes beside it nor on the number of processes that host the environments, and evaluation
changes no random state of training.

gymnasium.vector.AsyncVectorEnv is not used: it wants a process for each environment, steps ended ones, sends whole
infos through its pipes and shares one global numpy stream among the episodes of this process.
"""

import contextlib
import time
from dataclasses import dataclass
from itertools import chain
from typing import Any, Callable, Optional, Sequence

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.errors import UserError, one_line
from envs.seeding import generators_preserved
from envs.task import Task
from harness.agent_tools import noise_of
from harness.environment_processes import LESS_MEMORY, EnvironmentProcesses
from harness.environment_rows import EnvironmentRows

EVALUATION_SEED = 10_000  # of the evaluations during training
GRID_SEED = 1_000_000  # of the sweeps of act options
TUNING_SEED = 2_000_000  # of the evaluations that choose hyperparameters


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Scores of n episodes, in the order of their seeds.

    returns [n]: undiscounted sums of rewards; lengths [n]: environment steps; successes [n]: info["success"] (or
    ["is_success"]) at the last step, None where no episode reports one; seconds: of the whole evaluation.
    """

    returns: np.ndarray
    lengths: np.ndarray
    successes: Optional[np.ndarray]
    seconds: float

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

    def row(self, task: Task) -> dict[str, float]:
        """The summary and, where the task has D4RL's references, the normalized return: columns of eval.csv."""
        self.scores(task.score_name)  # raises where there is none
        normalized = task.normalized_return(float(self.returns.mean()))
        return self.summary() | ({} if normalized is None else {"normalized_return": normalized})

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


def _episode_noise(agent: Any, seeds: Sequence[int]) -> contextlib.AbstractContextManager:
    """Replaces agent.noise within its block; an agent without that attribute (a scripted policy) has none."""
    if not hasattr(agent, "noise"):
        return contextlib.nullcontext()
    return noise_of(agent, EpisodeNoise(seeds, _tensor_of(agent)))


class Evaluator:
    """Environments that one run keeps for all its evaluations; a context manager, closed at its end.

    `environments` bounds the rows of the batch: as many episodes advance together, each in an environment of its own
    (OGBench's manipulation environments take 100 to 200 MB each). `workers` processes host them; 0 means this process.
    After an error the environments are closed; the next evaluation builds them anew.
    """

    def __init__(self, make_env: Callable[[], gymnasium.Env], environments: int = 50, workers: int = 0):
        self.make_env, self.environments, self.workers = make_env, environments, min(workers, environments)
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

        Raises EnvironmentFailure where an environment fails, UserError where its process ends or memory runs out,
        FloatingPointError where an action is not finite.
        """
        started = time.perf_counter()
        num_rows = min(episodes, self.environments)
        returns, lengths, successes = np.zeros(episodes), np.zeros(episodes, dtype=np.int64), np.zeros(episodes)
        progress = tqdm(total=episodes, desc="evaluation", unit="episode", leave=False, disable=None)
        try:
            with progress, generators_preserved():
                if self.rows is None:
                    self.rows = self._build()
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
                    f"evaluation: out of memory with {num_rows} environments at a time ({one_line(error)}); "
                    f"{LESS_MEMORY}"
                ) from error
            raise
        # Some environments report a success only where there is one: no word of it in other episodes is a failure.
        reported = None if np.isnan(successes).all() else np.nan_to_num(successes, nan=0.0)
        return EvaluationResult(returns, lengths, reported, time.perf_counter() - started)

    def _build(self) -> Any:
        if self.workers:
            return EnvironmentProcesses(self.make_env, self.workers)
        return EnvironmentRows(self.make_env)

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
            observations[running], rewards, ends, succeeded, steps = self.rows.step(running, actions)
            returns[running] += rewards
            lengths[running] += steps
            successes[running] = succeeded
            progress.update(int(ends.sum()))
            running = running[~ends]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether python, numpy, CUDA or torch's CPU allocator (which has no error type of its own) found no memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


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
