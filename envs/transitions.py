"""Transitions as people have them, turned into the rows of a Dataset; and the checks of arrays that loaders share."""

from typing import Any, Optional, Sequence

import numpy as np

from common.errors import UserError, one_line

# A squashed policy cannot reach ±1, and its density there is infinite (FQL's released code, envs/env_utils.py).
ACTION_LIMIT = 1.0 - 1e-5
ACTION_TOLERANCE = 1e-3  # beyond ±1: rounding, of float16 too, which is clipped; more is a mistake
SCALE = "give action_low and action_high, the bounds of the actions, by which they are scaled to [-1, 1]"
ROWS_AT_ONCE = 100_000  # looked at together: bounds the memory of a check


def rows_of_transitions(arrays: Sequence[Any], source: str) -> dict[str, np.ndarray]:
    """The arrays that Dataset takes, of N transitions: the arguments of `Dataset.from_transitions` in their order.

    A transition whose next observation is the one in the next row shares that row; any other gets a row of its own
    for it. Raises UserError that names `source`, the array and, where there is one, the row.
    """
    observations, actions, rewards, next_observations, terminals, timeouts, action_low, action_high = arrays
    observations = _numbers(source, "observations", observations, None, None)
    rows = len(observations)
    actions = _numbers(source, "actions", actions, rows, None)
    rewards = _numbers(source, "rewards", rewards, rows)
    terminal = _flags(source, "terminals", terminals, rows)
    follows = ~terminal  # whether the next row continues the episode
    if timeouts is not None:
        follows &= ~_flags(source, "timeouts", timeouts, rows)
    follows[-1] = False
    if next_observations is not None:
        next_observations = _numbers(source, "next_observations", next_observations, *observations.shape)
        follows[:-1] &= (next_observations[:-1] == observations[1:]).all(axis=1)
        known = np.ones(rows, bool)
    elif timeouts is not None:
        next_observations = observations  # of the terminal rows, where it counts for nothing
        known = follows | terminal
    else:
        raise UserError(
            f"{source}: next_observations and timeouts are both missing: give one of them, or an episode that a time "
            f"limit cut off would go on in the next one"
        )
    if not known.any():
        raise UserError(
            f"{source}: no transition is left, as the last row of each episode has no next observation: give longer "
            f"episodes, or next_observations"
        )
    try:
        unit = to_unit(actions, *(np.broadcast_to(bound, actions.shape[1]) for bound in (action_low, action_high)))
    except ValueError as error:  # also of bounds that do not broadcast
        raise UserError(
            f"{source}: {error}: give action_low and action_high as numbers or {[actions.shape[1]]}"
        ) from error
    refuse_out_of_range(source, unit, SCALE, f"{np.min(action_low):g} to {np.max(action_high):g}")
    alone = known & ~follows  # has a further row for its next observation
    row = np.arange(rows) + np.cumsum(alone) - alone
    closing = row[alone] + 1
    columns = {
        "observations": np.empty((rows + len(closing), observations.shape[1]), np.float32),
        "actions": np.empty((rows + len(closing), unit.shape[1]), np.float32),
        "rewards": np.zeros(rows + len(closing), np.float32),
        "masks": np.ones(rows + len(closing), np.float32),
    }
    columns["observations"][row], columns["observations"][closing] = observations, next_observations[alone]
    columns["actions"][row], columns["actions"][closing] = unit, unit[alone]
    columns["rewards"][row], columns["masks"][row] = rewards, ~terminal
    return {**columns, "valid": row[known]}


def to_unit(actions: np.ndarray, low: Any, high: Any) -> np.ndarray:
    """Actions [..., A] between the bounds `low` and `high` ([A] or numbers) as float32 in [-1, 1]."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise ValueError(f"action bounds {low.tolist()} and {high.tolist()} are not finite numbers low < high")
    return ((actions - (high + low) / 2) / ((high - low) / 2)).astype(np.float32)


def _numbers(source: str, name: str, array: Any, *shape: Optional[int]) -> np.ndarray:
    """The array as finite numbers of that shape, [rows, 1] as [rows]; None is any length. Raises UserError."""
    try:
        array = np.asarray(array)
    except ValueError as error:  # rows of different lengths
        raise UserError(f"{source}: {name} are no array ({one_line(error)}): give every row the same shape") from error
    if len(shape) == 1 and array.shape == (*shape, 1):
        array = array[:, 0]
    fits = array.ndim == len(shape) and all(
        length is None or length == found for length, found in zip(shape, array.shape, strict=True)
    )
    if not fits or array.size == 0 or array.dtype.kind not in "fiub":
        expected = ", ".join("any" if length is None else str(length) for length in shape)
        raise UserError(
            f"{source}: {name} have type {array.dtype} and shape {list(array.shape)}, expected numbers [{expected}], a "
            f"row for each transition"
        )
    refuse_non_finite(source, name, array)
    return array


def _flags(source: str, name: str, array: Any, rows: int) -> np.ndarray:
    flags = _numbers(source, name, array, rows)
    if not np.isin(flags, (0, 1)).all():
        raise UserError(f"{source}: {name} must be 0 or 1, row {(~np.isin(flags, (0, 1))).argmax()} is neither")
    return flags.astype(bool)


def refuse_non_finite(source: str, field: str, array: np.ndarray) -> None:
    """Raises UserError that names `source`, `field` and the row of the first NaN or infinity in `array` [R, ...]."""
    for start in range(0, len(array) if array.ndim else 0, ROWS_AT_ONCE):
        block = array[start : start + ROWS_AT_ONCE]
        with np.errstate(over="ignore"):
            finite = np.isfinite(block.astype(np.float32, copy=False))  # as networks get it
        if not finite.all():
            row = start + int(np.argwhere(~finite)[0, 0])
            what = "a NaN or infinity" if not np.isfinite(block).all() else "a number too large for float32"
            raise UserError(f"{source}: {field} holds {what} at row {row}: mend the data or fetch it again")


def refuse_out_of_range(source: str, actions: np.ndarray, fix: str, bounds: str = "-1 to 1") -> None:
    """Raises UserError that counts the rows of `actions` [R, A] that are outside [-1, 1] by more than rounding.

    bounds: what [-1, 1] stands for; fix: the end of the sentence.
    """
    outside = np.zeros(len(actions), bool)
    for start in range(0, len(actions), ROWS_AT_ONCE):
        block = actions[start : start + ROWS_AT_ONCE]
        outside[start : start + ROWS_AT_ONCE] = (np.abs(block) > 1 + ACTION_TOLERANCE).any(axis=1)
    if outside.any():
        raise UserError(
            f"{source}: actions of {outside.sum()} of {len(actions)} rows are outside {bounds}, the first in row "
            f"{outside.argmax()}: {fix}"
        )
