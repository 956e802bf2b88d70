"""The replay of an online phase: the data set's transitions and a ring of new ones, sampled together."""

from typing import Dict, Optional, Sequence

import torch

from common.errors import UserError
from envs.chunks import figures, fold
from envs.dataset import Dataset


class Replay:
    """The transitions of `dataset` and, in a ring, the newest `capacity` online ones.

    Every online transition holds its own next observation, so that neither the end of an episode nor that of the ring
    joins what does not belong together. Actions are kept as they were taken, in [-1, 1]; the data's are clipped a
    little inside (FQL's code has both). A slot is sampled as soon as it is filled, the last one too: FQL's ring leaves
    that out once it is full.

    What is added are single transitions. Where the data set has chunks, windows of as many transitions are sampled, of
    the data followed by the ring: all of them, also those that join the two (envs/chunks.py).

    room: how many online transitions come in before each further one takes the place of the data set's oldest
    (FQL's code with a full buffer); None, and the data set is never touched. balanced: see `sample`.
    Raises UserError where the ring alone could not hold a chunk, but might have to.
    """

    def __init__(self, dataset: Dataset, capacity: int, room: Optional[int] = None, balanced: bool = False):
        self.dataset, self.capacity, self.room, self.balanced = dataset, capacity, room, balanced
        self.chunk = dataset.chunk
        if room is not None and 0 < capacity < self.chunk.length:
            raise UserError(
                f"config: action_chunk is {self.chunk.length}, the online replay has room for {capacity}: raise "
                f"replay_capacity and online_steps"
            )
        self.added = 0  # online transitions so far, those that the ring has lost included
        device = dataset.observations.device
        observation, action = dataset.observations.shape[1:], dataset.actions.shape[1:]
        self.columns = {
            "observations": torch.zeros(capacity, *observation, device=device),
            "actions": torch.zeros(capacity, *action, device=device),
            "rewards": torch.zeros(capacity, device=device),
            "masks": torch.zeros(capacity, device=device),
            "next_observations": torch.zeros(capacity, *observation, device=device),
            "episodes": torch.zeros(capacity, dtype=torch.int64, device=device),
        }

    def __len__(self) -> int:
        """How many online transitions the ring holds."""
        return min(self.added, self.capacity)

    @property
    def dropped(self) -> int:
        """How many of the data set's oldest transitions are sampled no more."""
        return 0 if self.room is None else min(max(self.added - self.room, 0), len(self.dataset.valid))

    def add(self, transitions: Dict[str, torch.Tensor]) -> None:
        """Appends transitions [n, ...] by column, in the order of time; `episodes` [n] numbers their episodes."""
        for name, column in self.columns.items():
            new = transitions[name].to(column)[-self.capacity :]
            first = self.added + len(transitions[name]) - len(new)
            slots = torch.arange(first, first + len(new), device=column.device) % self.capacity
            column[slots] = new
        self.added += len(transitions["rewards"])

    def newest(self, count: int) -> Dict[str, torch.Tensor]:
        """The last `count` transitions [count, ...] on the CPU, by time. Raises ValueError for more than there are."""
        if count > len(self):
            raise ValueError(f"count is {count}, the ring holds {len(self)}")
        slots = torch.arange(self.added - count, self.added) % max(self.capacity, 1)
        return {name: column[slots.to(column.device)].cpu() for name, column in self.columns.items()}

    def sample(
        self, batch_size: int, generator: torch.Generator, fields: Sequence[str] = ()
    ) -> Dict[str, torch.Tensor]:
        """A batch as the data set's `sample` gives it, uniform over data and ring together.

        With `balanced` its first half is of the data set and the rest of the ring (RLPD, Ball et al., ICML 2023), as
        soon as the ring holds a chunk.
        """
        device, length = self.dataset.valid.device, self.chunk.length
        kept = len(self.dataset.valid) - self.dropped
        if self.balanced and min(kept, len(self)) >= length:
            half = batch_size // 2
            old = torch.randint(kept - length + 1, (half,), generator=generator, device=device)
            new = torch.randint(len(self) - length + 1, (batch_size - half,), generator=generator, device=device)
            parts = self.dataset.take(old + self.dropped, fields), self.take(new, fields)
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        starts = kept + len(self) - length + 1
        return self.take_joint(torch.randint(starts, (batch_size,), generator=generator, device=device), fields)

    def take_joint(self, numbers: torch.Tensor, fields: Sequence[str] = ()) -> Dict[str, torch.Tensor]:
        """The batch that begins with transitions `numbers` [B] of what is left of the data followed by the ring."""
        kept = len(self.dataset.valid) - self.dropped
        is_old = numbers < kept
        old = self.dataset.take((numbers + self.dropped).clamp(max=len(self.dataset.valid) - 1), fields)
        new = self.take((numbers - kept).clamp(min=0), fields)
        batch = {
            name: torch.where(is_old.view(-1, *[1] * (column.ndim - 1)), column, new[name])
            for name, column in old.items()
        }
        if self.chunk.actions > 1:  # a window that begins in the data may have its last actions in the ring
            within = self._window(numbers - kept, self.chunk.actions)
            new_actions = self.columns["actions"][self._slots(within.clamp(min=0))]
            actions = batch["actions"].view(new_actions.shape)
            batch["actions"] = torch.where(within[..., None] < 0, actions, new_actions).flatten(1)
        return batch

    def take(self, numbers: torch.Tensor, fields: Sequence[str] = ()) -> Dict[str, torch.Tensor]:
        """The ring's transitions, or chunks that begin with them, number `numbers` [B] as a batch; 0 is the oldest.

        "next_actions" [B, A] are those of the episode's next transition or chunk; at an episode's end, and for the
        newest, they are the own ones. (FQL's code takes the next slot's, another episode's at the end.)
        """
        length, columns = self.chunk.length, self.columns
        slots = self._slots(self._window(numbers, length))
        rewards, masks, episodes = (columns[name][slots] for name in ("rewards", "masks", "episodes"))
        goes_on = episodes[:, 1:] == episodes[:, :-1]
        *folded, last = fold(rewards.unbind(1), masks.unbind(1), goes_on.unbind(1), self.chunk.discount)
        rewards, masks, valid = figures(*folded, last, self.chunk)
        batch = {
            "observations": columns["observations"][slots[:, 0]],
            "actions": self._actions(numbers),
            "rewards": rewards,
            "masks": masks,
            "next_observations": columns["next_observations"][slots.gather(1, last[:, None])[:, 0]],
            **({"valid": valid} if length > 1 else {}),
        }
        for field in fields:
            if field != "next_actions":
                raise ValueError(f"unknown field {field!r}: online transitions have next_actions only")
            final = numbers + length + self.chunk.actions - 1  # the last transition of the next
            same_episode = columns["episodes"][self._slots(final)] == episodes[:, 0]
            following = torch.where(same_episode & (final < len(self)), numbers + length, numbers)
            batch[field] = self._actions(following)
        return batch

    def _actions(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.columns["actions"][self._slots(self._window(numbers, self.chunk.actions))].flatten(1)

    def _window(self, numbers: torch.Tensor, length: int) -> torch.Tensor:
        """The `length` successive numbers from each of `numbers` [B] on, [B, length]."""
        return numbers[:, None] + torch.arange(length, device=numbers.device)

    def _slots(self, numbers: torch.Tensor) -> torch.Tensor:
        """Where the ring keeps its transitions number `numbers`, 0 the oldest."""
        return (self.added - len(self) + numbers) % self.capacity
