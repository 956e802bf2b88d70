"""An environment as every policy sees it: observations float32 [O], actions in [-1, 1]^A."""

import inspect
from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional, Tuple

import gymnasium
import numpy as np
from gymnasium import spaces

from common.errors import UserError


def observation_width(space: spaces.Space, source: str) -> int:
    """Length O of a flattened observation. Raises UserError unless the space is a flat Box or a Dict of such spaces."""
    if isinstance(space, spaces.Dict) and space.spaces:
        return sum(observation_width(part, source) for part in space.spaces.values())
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space.shape[0]
    raise UserError(
        f"{source}: observation space {_describe(space)} is not supported: its observations must be "
        f"vectors (Box of one dimension) or Dicts of vectors"
    )


def flatten(space: spaces.Space, value: Any) -> np.ndarray:
    """One observation, or those of an episode, as float32 [..., O]; a Dict's entries follow one another by key.

    All entries of a Dict are kept: the observation of D4RL's antmaze lacks the ant's position, which is in
    achieved_goal. The order is that of gymnasium's FlattenObservation.
    """
    if isinstance(space, spaces.Dict):
        return np.concatenate([flatten(space[key], value[key]) for key in sorted(space.spaces)], axis=-1)
    return np.asarray(value, dtype=np.float32)


class ActionScale:
    """The map between actions in [-1, 1]^A and the box of the environment. Raises UserError for any other space."""

    def __init__(self, space: spaces.Space, source: str):
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise UserError(
                f"{source}: action space {_describe(space)} is not supported: its actions must be "
                f"vectors (Box of one dimension)"
            )
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        if not np.isfinite([low, high]).all() or (low >= high).any():
            raise UserError(f"{source}: action space has no finite bounds low < high: its actions cannot be scaled")
        self.dtype, self.shape = space.dtype, space.shape
        self.low, self.high = low, high  # what -1 and 1 stand for
        self._middle, self._half_range = (high + low) / 2, (high - low) / 2

    def to_unit(self, actions: np.ndarray) -> np.ndarray:
        """Actions [..., A] of the environment as float32 in [-1, 1]; a box that is ±1 already changes nothing."""
        return ((actions - self._middle) / self._half_range).astype(np.float32)

    def from_unit(self, actions: np.ndarray) -> np.ndarray:
        """Actions [..., A] in [-1, 1], clipped to it, as the environment takes them."""
        return (np.clip(actions, -1.0, 1.0) * self._half_range + self._middle).astype(self.dtype)


def _describe(space: spaces.Space) -> str:
    return f"{type(space).__name__}{space.shape or ''}"


class UnitEnvironment(gymnasium.Wrapper):
    """`environment` with its observations flattened to float32 [O] and actions in [-1, 1]^A, scaled to its box.

    Raises UserError, which begins with `source`, where its spaces are no vectors or its actions have no finite bounds.
    """

    def __init__(self, environment: gymnasium.Env, source: str):
        super().__init__(environment)
        self.source_space, self.scale = environment.observation_space, ActionScale(environment.action_space, source)
        width = observation_width(self.source_space, source)
        self.observation_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, self.scale.shape, np.float32)

    def reset(self, *, seed: Optional[int] = None, options: Optional[dict] = None) -> Tuple[np.ndarray, Dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return flatten(self.source_space, observation), info

    def step(self, action: np.ndarray) -> Tuple[np.ndarray, float, bool, bool, Dict[str, Any]]:
        observation, *rest = self.env.step(self.scale.from_unit(action))
        return flatten(self.source_space, observation), *rest


class NormalizedObservations(gymnasium.ObservationWrapper):
    """`environment` with (observation - mean) / std for each observation; mean and std are lists [O]."""

    def __init__(self, environment: gymnasium.Env, mean: list, std: list):
        super().__init__(environment)
        self.mean, self.std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, self.mean.shape, np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return (observation - self.mean) / self.std


@dataclass(frozen=True)
class Wrapped:
    """A `make_env` that wraps what another one makes; it has that one's parameters (`render_mode`) and is picklable."""

    make_env: Callable[..., gymnasium.Env]
    wrapper: Callable[..., gymnasium.Env]
    arguments: tuple = ()

    def __call__(self, **options: Any) -> gymnasium.Env:
        return self.wrapper(self.make_env(**options), *self.arguments)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.make_env)
