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
    So these are seeded with the episode and put in place before every call, where they are left: see
    `generators_preserved`. gymnasium's `np_random` is the environment's own affair.
    """

    def __init__(self, make_env: Callable[[], gymnasium.Env], seed: int):
        """seed: for what the building draws, e.g. that of the first episode."""
        self._seed_generators(seed)
        self.environment = self._call(make_env)
        self._spaces = _own_spaces(self.environment)

    def reset(self, seed: int) -> tuple:
        """gymnasium's answer to `reset(seed=seed)`."""
        self._seed_generators(seed)
        for space in self._spaces:
            space.seed(seed)
        return self._call(self.environment.reset, seed=seed)

    def step(self, action: np.ndarray) -> tuple:
        """gymnasium's answer to `step(action)`."""
        return self._call(self.environment.step, action)

    def close(self) -> None:
        self.environment.close()

    def _seed_generators(self, seed: int) -> None:
        self._numpy, self._python = np.random.MT19937(seed), random.Random(seed)
        self._torch = torch.Generator().manual_seed(seed).get_state()

    def _call(self, function: Callable, *arguments: Any, **options: Any) -> Any:
        np.random.set_bit_generator(self._numpy)
        random.seed(self._python.getrandbits(64))  # anew for every call: to save its state would take twice as long
        torch.default_generator.set_state(self._torch)
        answer = function(*arguments, **options)
        self._torch = torch.default_generator.get_state()
        return answer


@contextlib.contextmanager
def generators_preserved() -> Iterator[None]:
    """Puts the global generators, which `SeededEnvironment` replaces, back with their states."""
    bit_generator, state = np.random.get_bit_generator(), np.random.get_state(legacy=False)  # noqa: NPY002
    others = random.getstate(), torch.default_generator.get_state()
    try:
        yield
    finally:
        np.random.set_bit_generator(bit_generator)
        np.random.set_state(state)  # noqa: NPY002  (the swap loses the second half of a pair of normal draws)
        random.setstate(others[0])
        torch.default_generator.set_state(others[1])


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
