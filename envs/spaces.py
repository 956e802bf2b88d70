"""An environment as every policy sees it: observations float32 [O], actions in [-1, 1]^A."""

from typing import Any, Dict, Optional, Tuple

import gymnasium
import numpy as np
from gymnasium import spaces

from common.errors import UserError

LARGEST_INTEGER_RANGE = 1 << 16  # choices an entry; the centres of more lie closer to ±1 than ACTION_LIMIT


def observation_width(space: spaces.Space, source: str) -> int:
    """Length O of a flattened observation.

    Raises UserError unless the space is a flat Box or a Dict of numbers and such spaces.
    """
    if isinstance(space, spaces.Dict) and space.spaces:
        return sum(1 if _is_number(part) else observation_width(part, source) for part in space.spaces.values())
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space.shape[0]
    raise UserError(
        f"{source}: observation space {describe(space)} is not supported: its observations must be vectors (Box of one "
        f"dimension) or Dicts of vectors"
    )


def _is_number(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and space.shape == ()


def flatten(space: spaces.Space, value: Any) -> np.ndarray:
    """One observation, or those of an episode, as float32 [..., O]; a Dict's entries follow one another by key.

    All entries of a Dict are kept: the observation of D4RL's antmaze lacks the ant's position, which is in
    achieved_goal. The order is that of gymnasium's FlattenObservation for a space built from a plain dict.
    """
    if isinstance(space, spaces.Dict):
        return np.concatenate([flatten(space[key], value[key]) for key in sorted(space.spaces)], axis=-1)
    array = np.asarray(value, dtype=np.float32)
    return array[..., None] if _is_number(space) else array


class ActionScale:
    """The map between actions in [-1, 1]^A and the Box `space`; its inverse is exact, up to rounding of real numbers.

    Real bounds are mapped to ±1. Of n integers each has an equal share of [-1, 1]: it is read as the centre of its
    share and taken for every number in it, so that a uniform policy takes each equally often.
    Raises UserError, which begins with `source`, for any other space, and for bounds that cannot be scaled.
    """

    def __init__(self, space: spaces.Space, source: str):
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise UserError(
                f"{source}: action space {describe(space)} is not supported: its actions must be "
                f"vectors (Box of one dimension)"
            )
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        if not np.isfinite([low, high]).all() or (low >= high).any():
            raise UserError(f"{source}: action space has no finite bounds low < high: its actions cannot be scaled")
        self.dtype, self.shape = space.dtype, space.shape
        self._is_integer = np.issubdtype(space.dtype, np.integer)
        if self._is_integer:
            if (high - low >= LARGEST_INTEGER_RANGE).any():
                raise UserError(f"{source}: action space has more than {LARGEST_INTEGER_RANGE} integers an entry")
            self._lowest, self._highest = low, high
            low, high = low - 0.5, high + 0.5
        self.low, self.high = low, high  # what -1 and 1 stand for
        self._middle, self._half_range = (high + low) / 2, (high - low) / 2

    def to_unit(self, actions: np.ndarray) -> np.ndarray:
        """Actions [..., A] of the environment as float32 in [-1, 1]; a real box that is ±1 already changes nothing."""
        return ((actions - self._middle) / self._half_range).astype(np.float32)

    def from_unit(self, actions: np.ndarray) -> np.ndarray:
        """Actions [..., A] in [-1, 1], clipped to it, as the environment takes them."""
        scaled = np.clip(actions, -1.0, 1.0) * self._half_range + self._middle
        if self._is_integer:
            scaled = np.clip(np.rint(scaled), self._lowest, self._highest)
        return scaled.astype(self.dtype)


def describe(space: spaces.Space) -> str:
    """The kind of a space and its shape, e.g. `Box(4, 3)`."""
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
        observation, reward, *rest = self.env.step(self.scale.from_unit(action))
        reward = reward.item() if isinstance(reward, np.ndarray) and reward.size == 1 else reward
        return flatten(self.source_space, observation), reward, *rest
