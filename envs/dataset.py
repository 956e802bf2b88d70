"""The data set: named tensors, one row per stored state, and the sampling of transitions from them."""

from typing import Dict, Sequence

import numpy as np
import torch

from common.errors import UserError

# A squashed policy cannot reach ±1, and its density there is infinite (FQL's released code, envs/env_utils.py).
ACTION_LIMIT = 1.0 - 1e-5
FINITE_CHECK_ROWS = 100_000  # rows looked at together: bounds the memory of the check


class Dataset:
    """Named tensors, one row per stored state; row r's action, reward and mask belong to the transition r -> r+1.

    observations [R, O] float32
    actions [R, A] float32, clipped here to ±ACTION_LIMIT: into a copy, unless they keep within it
    rewards [R] float32
    masks [R] float32: 1 = bootstrap from the next observation
    valid [n] int64: ascending rows that have a successor; these are the transitions, so len(dataset) == n
    columns: further per-row tensors [R] by name

    The next observation is row r+1: it is indexed, never stored twice. Rows outside `valid` (the last state of an
    episode) are reached as next observations only.
    Tensors of these types are not copied; observations may be a view of a memory-mapped file, masks an expanded number.
    Raises ValueError that names the field when shapes do not fit together.
    """

    def __init__(
        self,
        observations: torch.Tensor,
        actions: torch.Tensor,
        rewards: torch.Tensor,
        masks: torch.Tensor,
        valid: torch.Tensor,
        **columns: torch.Tensor,
    ):
        self.observations = torch.as_tensor(observations, dtype=torch.float32)
        self.actions = _clipped(torch.as_tensor(actions, dtype=torch.float32))
        self.rewards = torch.as_tensor(rewards, dtype=torch.float32)
        self.masks = torch.as_tensor(masks, dtype=torch.float32)
        self.valid = torch.as_tensor(valid, dtype=torch.int64)
        self.columns = {name: torch.as_tensor(column) for name, column in columns.items()}
        self._check_shapes()

    def _check_shapes(self) -> None:
        rows = len(self.observations)
        matrices = {"observations": self.observations, "actions": self.actions}
        vectors = {"rewards": self.rewards, "masks": self.masks, **self.columns}
        for name, tensor in {**matrices, **vectors}.items():
            dimensions = 2 if name in matrices else 1
            if tensor.ndim != dimensions or len(tensor) != rows:
                expected = f"[{rows}, width]" if dimensions == 2 else f"[{rows}]"
                raise ValueError(f"{name}: expected shape {expected}, got {list(tensor.shape)}")
        if self.valid.ndim != 1 or len(self.valid) == 0:
            raise ValueError(f"valid: expected shape [n] with n > 0, got {list(self.valid.shape)}")
        if self.valid[0] < 0 or self.valid[-1] > rows - 2 or bool((self.valid[1:] <= self.valid[:-1]).any()):
            raise ValueError(f"valid: rows must ascend within 0 to {rows - 2}, the last row has no successor")

    def __len__(self) -> int:
        return len(self.valid)

    def to(self, device) -> "Dataset":
        """The same data set on `device`."""
        tensors = (self.observations, self.actions, self.rewards, self.masks, self.valid)
        columns = {name: column.to(device) for name, column in self.columns.items()}
        return Dataset(*(tensor.to(device) for tensor in tensors), **columns)

    def sample(
        self, batch_size: int, generator: torch.Generator, fields: Sequence[str] = ()
    ) -> Dict[str, torch.Tensor]:
        """A batch of transitions, uniform with replacement; `generator` lives on the data set's device.

        Returns observations [B, O], actions [B, A], rewards [B], masks [B], next_observations [B, O] and the optional
        `fields`, see `take`.
        """
        return self.take(self.draw(batch_size, generator), fields)

    def draw(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """The numbers [B] of the transitions that `sample` would take."""
        return torch.randint(len(self), (batch_size,), generator=generator, device=self.valid.device)

    def take(self, indices: torch.Tensor, fields: Sequence[str] = ()) -> Dict[str, torch.Tensor]:
        """The transitions number `indices` [B] (0 to len(dataset) - 1) as a batch, see `sample`.

        `fields` may name columns, and "next_actions" [B, A]: the action of row r+1, clamped at the last transition of
        the whole data set (ReBRAC's released code; at an episode's end this is the action stored with its last state).
        """
        rows = self.valid[indices]
        batch = {
            "observations": self.observations[rows],
            "actions": self.actions[rows],
            "rewards": self.rewards[rows],
            "masks": self.masks[rows],
            "next_observations": self.observations[rows + 1],
        }
        for field in fields:
            if field == "next_actions":
                batch[field] = self.actions[torch.minimum(rows + 1, self.valid[-1])]
            elif field in self.columns:
                batch[field] = self.columns[field][rows]
            else:
                raise ValueError(f"unknown field {field!r}: next_actions or one of {sorted(self.columns)}")
        return batch


def _clipped(actions: torch.Tensor) -> torch.Tensor:
    if actions.numel() == 0 or (actions.min() >= -ACTION_LIMIT and actions.max() <= ACTION_LIMIT):
        return actions
    return actions.clamp(-ACTION_LIMIT, ACTION_LIMIT)


def refuse_non_finite(source: str, field: str, array: np.ndarray) -> None:
    """Raises UserError that names `source`, `field` and the row of the first NaN or infinity in `array` [R, ...]."""
    for start in range(0, len(array), FINITE_CHECK_ROWS):
        finite = np.isfinite(array[start : start + FINITE_CHECK_ROWS])
        if not finite.all():
            row = start + int(np.argwhere(~finite)[0, 0])
            raise UserError(
                f"{source}: {field} holds a NaN or infinity at row {row}: the file is damaged, fetch or make it again"
            )
