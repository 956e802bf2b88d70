"""The environments of an evaluation by their row of the batch."""

import contextlib
import traceback
from typing import Callable, Iterator

import gymnasium
import numpy as np

from common.errors import UserError
from envs.seeding import SeededEnvironment
from envs.wrappers import STEPS, success_of


class EnvironmentFailure(RuntimeError):
    """An environment raised an error; the text names the episode's seed and holds the traceback."""


class EnvironmentRows:
    """Environments by the row of the batch they belong to, built at a row's first reset and used again after that."""

    def __init__(self, make_env: Callable[[], gymnasium.Env]):
        self.make_env = make_env
        self.environments: dict[int, SeededEnvironment] = {}
        self.seeds: dict[int, int] = {}

    def reset(self, rows: np.ndarray, seeds: np.ndarray) -> tuple:
        """Starts an episode in each of rows [n]; returns (observations [n, O],)."""
        observations = []
        for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True):
            self.seeds[row] = seed
            with self._named(row):
                if row not in self.environments:
                    self.environments[row] = SeededEnvironment(self.make_env, seed)
                observations.append(self.environments[row].reset(seed)[0])
        return (np.asarray(observations, dtype=np.float32),)

    def step(self, rows: np.ndarray, actions: np.ndarray) -> tuple:
        """Steps rows [n] by actions [n, A]; returns observations [n, O] and, [n] each, rewards, ends, successes (NaN:
        none) and how many steps were made, several with chunks."""
        observations = []
        rewards, successes, ends = np.zeros(len(rows)), np.full(len(rows), np.nan), np.zeros(len(rows), dtype=bool)
        steps = np.ones(len(rows), dtype=np.int64)
        for index, row in enumerate(rows.tolist()):
            with self._named(row):
                observation, reward, terminated, truncated, info = self.environments[row].step(actions[index])
                observations.append(observation)
                rewards[index], ends[index], successes[index] = reward, terminated or truncated, success_of(info)
                steps[index] = info.get(STEPS, 1)
        return np.asarray(observations, dtype=np.float32), rewards, ends, successes, steps

    def close(self) -> None:
        for environment in self.environments.values():
            environment.close()
        self.environments.clear()

    @contextlib.contextmanager
    def _named(self, row: int) -> Iterator[None]:
        """Names the episode of an error."""
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Exception:
            raise EnvironmentFailure(
                f"the environment of the episode with seed {self.seeds[row]} failed:\n{traceback.format_exc()}"
            ) from None
