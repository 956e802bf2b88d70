"""The replay of an online phase: the data set's transitions and a ring of new ones, sampled together."""

from typing import Dict, Optional, Sequence

import torch

from envs.dataset import Dataset


class Replay:
    """The transitions of `dataset` and, in a ring, the newest `capacity` online ones.

    Every online transition holds its own next observation, so that neither the end of an episode nor that of the ring
    joins what does not belong together. Actions are kept as they were taken, in [-1, 1]; the data's are clipped a
    little inside (FQL's code has both). A slot is sampled as soon as it is filled, the last one too: FQL's ring leaves
    that out once it is full.

    room: how many online transitions come in before each further one takes the place of the data set's oldest
    (FQL's code with a full buffer); None, and the data set is never touched. balanced: see `sample`.
    """

    def __init__(self, dataset: Dataset, capacity: int, room: Optional[int] = None, balanced: bool = False):
        self.dataset, self.capacity, self.room, self.balanced = dataset, capacity, room, balanced
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
        return 0 if self.room is None else min(max(self.added - self.room, 0), len(self.dataset))

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
        """A batch as `Dataset.sample` gives it, uniform over data and ring together.

        With `balanced` its first half is of the data set and the rest of the ring (RLPD, Ball et al., ICML 2023).
        """
        device, kept = self.dataset.valid.device, len(self.dataset) - self.dropped
        if self.balanced and kept > 0:
            half = batch_size // 2
            old = torch.randint(kept, (half,), generator=generator, device=device)
            new = torch.randint(len(self), (batch_size - half,), generator=generator, device=device)
            parts = self.dataset.take(old + self.dropped, fields), self.take(new, fields)
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        indices = torch.randint(kept + len(self), (batch_size,), generator=generator, device=device)
        is_old = indices < kept
        old = self.dataset.take((indices + self.dropped).clamp(max=len(self.dataset) - 1), fields)
        new = self.take((indices - kept).clamp(min=0), fields)
        return {
            name: torch.where(is_old.view(-1, *[1] * (column.ndim - 1)), column, new[name])
            for name, column in old.items()
        }

    def take(self, slots: torch.Tensor, fields: Sequence[str] = ()) -> Dict[str, torch.Tensor]:
        """The transitions in `slots` [B] of the ring as a batch.

        "next_actions" [B, A] is the action of the episode's next transition; at an episode's end, and for the newest
        transition, it is the transition's own action. (FQL's code takes the next slot's, another episode's at the end.)
        """
        batch = {name: column[slots] for name, column in self.columns.items() if name != "episodes"}
        for field in fields:
            if field != "next_actions":
                raise ValueError(f"unknown field {field!r}: online transitions have next_actions only")
            following = (slots + 1) % self.capacity
            is_newest = slots == (self.added - 1) % self.capacity
            same_episode = self.columns["episodes"][following] == self.columns["episodes"][slots]
            batch[field] = self.columns["actions"][torch.where(same_episode & ~is_newest, following, slots)]
        return batch
