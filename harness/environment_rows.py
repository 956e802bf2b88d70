"""The environments of an evaluation by their row of the batch, each with a global numpy generator of its own."""

import contextlib
import traceback
from types import SimpleNamespace
from typing import Any, Callable, Iterator, Optional

import gymnasium
import numpy as np

from common.errors import UserError

NO_ROW = -1  # while none is at work


class EnvironmentFailure(RuntimeError):
    """An environment raised an error, or the process that hosted it ended; the text names the episode's seed."""


@contextlib.contextmanager
def global_numpy_preserved() -> Iterator[None]:
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

    restarts = 0  # as of `EnvironmentProcesses`; here nothing can be restarted

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
