"""Action chunks: a task whose action is h actions of another's, executed one after the other without a look between.

An agent sees a batch as ever: actions [B, h*A], h actions in the order of time; rewards [B], their discounted sum R;
masks [B], discount^(h-1) times the chunk's mask, so that `rewards + discount * masks * value` is its target;
next_observations [B, O], the state after the chunk; and valid [B], 0 where an episode ended before the chunk's last
action (terms of a loss that are about the chunk's actions or outcome are weighted by it). All h-step windows of the
stored transitions are chunks, those across the end of an episode too: they are drawn, with valid 0, like the others.

Rules and figures are those of the QAM repository (Li and Levine; utils/datasets.py, `sample_sequence`).
"""

from typing import Dict, Sequence, Tuple

import torch
from torch import Tensor

from common.errors import UserError
from envs.dataset import Chunk, Dataset
from envs.task import Task
from envs.wrappers import ACTION_BOUNDS, CHUNK


def chunked(task: Task, length: int, discount: float, first_action_only: bool = False) -> Task:
    """The task with chunks of `length` actions, in its data sets and its environment; itself for a length of 1.

    discount is that of the algorithm. first_action_only gives h-step returns of single actions: actions are [B, A], the
    environment is left as it is. Raises UserError where no episode is as long as a chunk.
    """
    if length == 1:
        return task
    chunk = Chunk(length, discount, first_action_only)
    bounds = {name: task.environment[name] * length for name in ACTION_BOUNDS if name in task.environment}
    record = {} if first_action_only else {CHUNK: length} | bounds
    action_dim = task.action_dim * chunk.actions
    task = task.changed(lambda part: ChunkedDataset(part, chunk), record, action_dim=action_dim)
    for dataset in (task.dataset, task.validation):
        if dataset is not None and not dataset.whole.any():
            raise UserError(f"task {task.name}: no episode has the {length} transitions of a chunk: lower action_chunk")
    return task


class ChunkedDataset(Dataset):
    """The windows of `chunk.length` successive transitions of `dataset`: chunk i begins with its transition number i.

    What `take` needs of a window is computed here, once: 20 bytes a transition beside a copy of the actions. (Its
    columns are single: index_select takes a fifth of the time for one number a row as for two.)
    A chunk begins at each of the n transitions but the last length - 1. These have rows too (valid is 0, their actions
    run on into zeros), which are not drawn from the data alone: online transitions may follow them (`Replay`).
    """

    def __init__(self, dataset: Dataset, chunk: Chunk):
        rows, length = dataset.valid, chunk.length
        self.chunk, self.observations, self.columns, self.valid = chunk, dataset.observations, dataset.columns, rows
        goes_on = torch.cat([rows[1:] == rows[:-1] + 1, torch.zeros_like(rows[:1], dtype=torch.bool)])
        rewards, masks = dataset.rewards[rows], dataset.masks[rows]
        shifts = range(length)
        returns, masks, last = fold(
            [rewards.roll(-k) for k in shifts],
            [masks.roll(-k) for k in shifts],
            [goes_on.roll(-k) for k in shifts[:-1]],
            chunk.discount,
        )
        self.next_rows = rows + last + 1  # [n], of the observation after the chunk
        self.rewards, self.masks, self.whole = figures(returns, masks, last, chunk)  # [n] each
        width = chunk.actions * dataset.actions.shape[1]
        self.window = (len(rows), width), (dataset.actions.shape[1], 1)  # sizes and strides of all windows of actions
        self.actions = torch.nn.functional.pad(dataset.actions[rows], (0, 0, 0, length - 1))  # [n + length - 1, A]

    def __len__(self) -> int:
        return len(self.valid) - self.chunk.length + 1

    def take(self, indices: Tensor, fields: Sequence[str] = ()) -> Dict[str, Tensor]:
        """The chunks that begin with transitions number `indices` [B], see the module's docstring.

        `fields` may name columns, of which the start's entry is taken, and "next_actions": those of the chunk that
        follows, as far as it lies within the same episode; otherwise the chunk's own.
        """
        rows, next_rows = self.valid.index_select(0, indices), self.next_rows.index_select(0, indices)
        windows = self.actions.as_strided(*self.window)  # a view: a window's actions lie one after the other in memory
        batch = {
            "observations": self.observations.index_select(0, rows),
            "actions": windows.index_select(0, indices),
            "rewards": self.rewards.index_select(0, indices),
            "masks": self.masks.index_select(0, indices),
            "next_observations": self.observations.index_select(0, next_rows),
            "valid": self.whole.index_select(0, indices),
        }
        for field in fields:
            if field == "next_actions":
                following = (indices + self.chunk.length).clamp(max=len(self.valid) - 1)
                goes_on = self.valid[following] == next_rows  # never after an end: no transition begins in its state
                if not self.chunk.first_action_only:
                    goes_on &= self.whole[following] == 1
                batch[field] = windows.index_select(0, torch.where(goes_on, following, indices))
            else:
                batch[field] = self.column(field).index_select(0, rows)
        return batch


def fold(
    rewards: Sequence[Tensor], masks: Sequence[Tensor], goes_on: Sequence[Tensor], discount: float
) -> Tuple[Tensor, Tensor, Tensor]:
    """Folds windows of h transitions, of which [k] gives the k-th of each window as a tensor [N].

    goes_on: for the first h-1, whether the next transition of the store belongs to the same episode.
    Returns R = sum_k discount^k r_k (float64), the smallest mask and the number of the last transition, [N] each, all
    up to the end of the window or of the episode in which it begins.
    """
    total, mask, last = rewards[0].double(), masks[0], torch.zeros_like(masks[0], dtype=torch.int64)
    alive = torch.ones_like(masks[0], dtype=torch.bool)
    for k in range(1, len(rewards)):
        alive = alive & goes_on[k - 1]
        total = torch.where(alive, total + discount**k * rewards[k].double(), total)
        mask = torch.where(alive, torch.minimum(mask, masks[k]), mask)
        last = last + alive
    return total, mask, last


def figures(returns: Tensor, masks: Tensor, last: Tensor, chunk: Chunk) -> Tuple[Tensor, Tensor, Tensor]:
    """A batch's rewards, masks and valid, float32 [N] each, from what `fold` returns."""
    return returns.float(), chunk.discount ** (chunk.length - 1) * masks, (last == chunk.length - 1).float()
