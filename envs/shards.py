"""A data set in several files of one size, of which one at a time is in memory."""

from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import torch

from common.errors import UserError
from envs.dataset import Dataset

# What is the data set's of the file in memory. Others of Dataset's members would change that file's only.
OF_THE_PART = ("observations", "actions", "rewards", "masks", "valid", "columns", "chunk", "whole") + (
    *("sample", "draw", "take", "column"),
)


class Shards:
    """Stands for a Dataset: the one that `load(path)` makes of a file, of the next one after every `interval` updates.

    The files follow one another in the order of `paths`, over and over (QAM's repository, `dataset_replace_interval`).
    Raises UserError where a file has other sizes than the first.
    """

    def __init__(
        self, paths: Sequence[Path], load: Callable[[Path], Dataset], interval: int, part: Optional[Dataset] = None
    ):
        self.paths, self.load, self.interval = list(paths), load, interval
        self.path = self.paths[0]  # of the file in memory
        self.part = load(self.path) if part is None else part
        self.sizes = self._sizes_of(self.part)

    def __getattr__(self, name: str) -> Any:
        if name not in OF_THE_PART:
            raise AttributeError(f"a data set that is read in parts has no {name}")
        return getattr(self.part, name)

    def __len__(self) -> int:
        return len(self.part)

    def map(self, change: Callable[[Dataset], Dataset]) -> "Shards":
        """The same files with `change` of the data set of each; to be called before the first update."""
        load = self.load
        return Shards(self.paths, lambda path: change(load(path)), self.interval, change(self.part))

    def to(self, device: Any) -> "Shards":
        return Shards(self.paths, self.load, self.interval, self.part.to(device))

    def advance_to(self, step: int) -> float:
        """See Dataset.advance_to: which file is sampled depends on the number of updates alone."""
        path = self.paths[step // self.interval % len(self.paths)]
        if path != self.path:
            self._read(path)
        return self.interval - step % self.interval

    def _read(self, path: Path) -> None:
        on_cpu = self.part.observations.device.type == "cpu"
        if on_cpu:
            self.part = None  # before the next one needs its memory
        part = self.load(path)
        if self._sizes_of(part) != self.sizes:
            raise UserError(f"{path}: has not as many rows and transitions as {self.paths[0].name}: fetch it again")
        if on_cpu:
            self.part = part
        else:
            refill(self.part, part)
        self.path = path

    @staticmethod
    def _sizes_of(part: Dataset) -> tuple:
        return part.observations.shape, part.valid.shape


def refill(dataset: Dataset, other: Dataset) -> None:
    """Copies `other` into the memory of `dataset`, which is of the same sizes: a CUDA graph keeps reading there."""
    for name, tensor in [*vars(dataset).items(), *dataset.columns.items()]:
        if isinstance(tensor, torch.Tensor):
            tensor.copy_(other.columns[name] if name in dataset.columns else getattr(other, name))
