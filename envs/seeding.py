"""Environments whose episodes are determined by their seeds, wherever they draw their random numbers from."""

import contextlib
import copy
import random
from typing import Any, Callable, Iterator, List

import gymnasium
import numpy as np
import torch


class SeededEnvironment:
    """The environment that `make_env` builds, with spaces and global generators of its own, seeded with each episode.

    OGBench's mazes draw from numpy's global generator, others from Python's or torch's (the CPU's), or sample a space.
    So these are seeded with the episode, put in place around every call, and the process' own are put back (of numpy's
    but for the kept half of a pair of normal draws). gymnasium's `np_random` is the environment's own affair.
    """

    def __init__(self, make_env: Callable[[], gymnasium.Env], seed: int):
        """seed: for what the building draws, e.g. that of the first episode."""
        self._seed_generators(seed)
        with self._own_generators():
            self.environment = make_env()
        self._spaces = _own_spaces(self.environment)

    def reset(self, seed: int) -> tuple:
        """gymnasium's answer to `reset(seed=seed)`."""
        self._seed_generators(seed)
        for space in self._spaces:
            space.seed(seed)
        with self._own_generators():
            return self.environment.reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple:
        """gymnasium's answer to `step(action)`."""
        with self._own_generators():
            return self.environment.step(action)

    def close(self) -> None:
        self.environment.close()

    def _seed_generators(self, seed: int) -> None:
        self._numpy = np.random.MT19937(seed)
        self._python = random.Random(seed).getstate()
        self._torch = torch.Generator().manual_seed(seed).get_state()

    @contextlib.contextmanager
    def _own_generators(self) -> Iterator[None]:
        others = np.random.get_bit_generator(), random.getstate(), torch.default_generator.get_state()
        np.random.set_bit_generator(self._numpy)
        random.setstate(self._python)
        torch.default_generator.set_state(self._torch)
        try:
            yield
        finally:
            self._python, self._torch = random.getstate(), torch.default_generator.get_state()
            np.random.set_bit_generator(others[0])
            random.setstate(others[1])
            torch.default_generator.set_state(others[2])


def layers(environment: Any) -> Iterator[Any]:
    """The environment and what it wraps, from the outside in: gymnasium's wrappers and the classes of this package."""
    while environment is not None:
        yield environment
        inside = vars(environment)
        environment = inside.get("env", inside.get("environment"))


def _own_spaces(environment: Any) -> List[gymnasium.Space]:
    """The spaces that the environment's layers hold; those of a class are copied first, they are all instances'.

    A property is left alone: OGBench's arm builds a space anew at each access.
    """
    found = []
    for layer in layers(environment):
        for cls in type(layer).__mro__:
            for name, value in vars(cls).items():
                if isinstance(value, gymnasium.Space) and name not in vars(layer):
                    setattr(layer, name, copy.deepcopy(value))
        found += [value for value in vars(layer).values() if isinstance(value, gymnasium.Space)]
    return found
