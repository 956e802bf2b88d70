"""The data set: named tensors, one row per stored state, and the sampling of transitions from them."""

import copy
import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, Sequence

import torch

from envs.transitions import ACTION_LIMIT, SCALE, refuse_out_of_range, rows_of_transitions


@dataclass(frozen=True)
class Chunk:
    """How many successive transitions are sampled as one; more than one: see envs/chunks.py."""

    length: int = 1
    discount: float = 1.0  # of the rewards within
    first_action_only: bool = False  # h-step returns of single actions

    @property
    def actions(self) -> int:
        """How many actions a batch holds of each."""
        return 1 if self.first_action_only else self.length


class Dataset:
    """Named tensors, one row per stored state; row r's action, reward and mask belong to the transition r -> r+1.

    observations [R, O] float32
    actions [R, A] float32 in [-1, 1], clipped here to ±action_limit: into a copy, unless they keep within it
    rewards [R] float32
    masks [R] float32: 1 = bootstrap from the next observation
    valid [n] int64: ascending rows that have a successor; these are the transitions, so len(dataset) == n
    action_limit: see above; 1 leaves the actions as they are
    has_last_actions: whether the action in the row of an episode's last state was recorded (OGBench's are)
    columns: further per-row tensors [R] by name

    The next observation is row r+1: it is indexed, never stored twice. Rows outside `valid` (the last state of an
    episode) are reached as next observations only; what else they hold is never read, their action where it was
    recorded excepted.
    Tensors of these types are not copied; observations may be a view of a memory-mapped file, masks an expanded number.
    Raises ValueError that names the field when shapes do not fit together, UserError that counts the transitions whose
    actions are outside [-1, 1] by more than rounding.
    """

    chunk = Chunk()  # what a batch holds of the transitions: one each

    def __init__(
        self,
        observations: torch.Tensor,
        actions: torch.Tensor,
        rewards: torch.Tensor,
        masks: torch.Tensor,
        valid: torch.Tensor,
        has_last_actions: bool = False,
        action_limit: float = ACTION_LIMIT,
        **columns: torch.Tensor,
    ):
        self.observations = torch.as_tensor(observations, dtype=torch.float32)
        self.actions = torch.as_tensor(actions, dtype=torch.float32)
        self.rewards = torch.as_tensor(rewards, dtype=torch.float32)
        self.masks = torch.as_tensor(masks, dtype=torch.float32)
        self.valid = torch.as_tensor(valid, dtype=torch.int64)
        self.has_last_actions = has_last_actions
        self.columns = {name: torch.as_tensor(column) for name, column in columns.items()}
        self._check_shapes()
        self._clip_actions(action_limit)

    @classmethod
    def from_transitions(
        cls,
        observations: Any,
        actions: Any,
        rewards: Any,
        next_observations: Any,
        terminals: Any,
        timeouts: Any = None,
        action_low: Any = -1.0,
        action_high: Any = 1.0,
        source: str = "transitions",
    ) -> "Dataset":
        """The data set of N transitions in D4RL's and CORL's form, arrays or tensors on the CPU, in the order of time.

        observations and next_observations [N, O]; actions [N, A] between action_low and action_high (numbers or [A]),
        which become -1 and 1; rewards, terminals and timeouts [N] or [N, 1]. terminals is 1 where the episode truly
        ended (no bootstrap), timeouts 1 where a limit cut it off (bootstraps).
        Where next_observations is None a transition's is the next row; timeouts are needed then, and an episode's step
        at its time limit is left out, as nobody recorded what followed (D4RL's qlearning_dataset).
        Raises UserError that names `source`, the array and the row: NaN, wrong shape, actions outside their bounds.
        """
        arrays = (observations, actions, rewards, next_observations, terminals, timeouts, action_low, action_high)
        columns = rows_of_transitions(arrays, source)
        return cls(**{name: torch.from_numpy(column) for name, column in columns.items()})

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

    def _clip_actions(self, limit: float) -> None:
        lowest, highest = self.actions.aminmax() if self.actions.numel() else (0, 0)
        if not (lowest >= -limit and highest <= limit):
            used = self.actions if self.has_last_actions else self.actions[self.valid]
            refuse_out_of_range("data set", used.cpu().numpy(), SCALE)
            self.actions = self.actions.clamp(-limit, limit)

    def __len__(self) -> int:
        return len(self.valid)

    def replaced(self, **tensors: Any) -> "Dataset":
        """The same transitions with other `tensors`, by attribute."""
        changed = copy.copy(self)
        vars(changed).update(tensors)
        return changed

    def to(self, device) -> "Dataset":
        """The same data set on `device`."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return self.replaced(**tensors, columns={name: column.to(device) for name, column in self.columns.items()})

    def map(self, change: Callable[["Dataset"], "Dataset"]) -> "Dataset":
        """`change` of this data set; of each part, where it is read in parts (envs/shards.py)."""
        return change(self)

    def advance_to(self, step: int) -> float:
        """Prepares for the updates that follow the first `step`; returns after how many to call it again.

        Only a data set that is read in parts has something to do, see envs/shards.py.
        """
        return math.inf

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

        `fields` may name columns, and "next_actions" [B, A]: the action of row r+1 (ReBRAC's released code). At an
        episode's end that row's action may be nobody's: unless it was recorded, the transition's own stands for it.
        """
        rows = self.valid.index_select(0, indices)  # index_select: a fifth of the time of [indices] on a CPU
        batch = {
            "observations": self.observations.index_select(0, rows),
            "actions": self.actions.index_select(0, rows),
            "rewards": self.rewards.index_select(0, rows),
            "masks": self.masks.index_select(0, rows),
            "next_observations": self.observations.index_select(0, rows + 1),
        }
        for field in fields:
            if field == "next_actions":
                following = self.valid[(indices + 1).clamp(max=len(self) - 1)]  # the row of the next transition
                goes_on = (rows < self.valid[-1]) if self.has_last_actions else (following == rows + 1)
                batch[field] = self.actions.index_select(0, torch.where(goes_on, rows + 1, rows))
            else:
                batch[field] = self.column(field).index_select(0, rows)
        return batch

    def column(self, field: str) -> torch.Tensor:
        if field not in self.columns:
            raise ValueError(f"unknown field {field!r}: next_actions or one of {sorted(self.columns)}")
        return self.columns[field]
