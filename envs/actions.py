"""The map between a policy's actions in [-1, 1] and the box of an environment."""

import numpy as np
from gymnasium import spaces

from common.errors import UserError

LARGEST_INTEGER_RANGE = 1 << 16  # choices an entry; the centres of more lie closer to ±1 than ACTION_LIMIT


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
