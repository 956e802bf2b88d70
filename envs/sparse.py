"""Sparse rewards: -1 for every step that does not meet the whole goal, however much of it (QAM's repository)."""

import dataclasses
from typing import Callable, Optional

import gymnasium
import torch

from common.errors import UserError
from envs.dataset import Dataset
from envs.spaces import Wrapped
from envs.task import Task

SPARSE_RECORD = "sparse"  # key of a task's environment record


def sparse(task: Task) -> Task:
    """The task with reward -1 wherever it is not 0, in its data sets and its environment; masks stay.

    For rewards that count what is missing, as OGBench's minus the number of sub-goals not met. Raises UserError for a
    task that has positive ones, or whose data's rewards are not the environment's.
    """
    if task.reward_shift or bool((task.dataset.rewards[task.dataset.valid] > 0).any()):
        raise UserError(
            f"config: sparse is for tasks whose reward is 0 at the goal and negative elsewhere, as those of ogbench; "
            f"{task.name} has other rewards: set it to false"
        )
    record = {SPARSE_RECORD: True}
    return dataclasses.replace(
        task,
        dataset=task.dataset.map(_with_sparse_rewards),
        validation=task.validation and task.validation.map(_with_sparse_rewards),
        make_env=with_sparse_rewards(task.make_env, record),
        environment=task.environment | record,
    )


def _with_sparse_rewards(dataset: Dataset) -> Dataset:
    return dataset.replaced(rewards=torch.where(dataset.rewards != 0, -1.0, 0.0))


class SparseRewards(gymnasium.RewardWrapper):
    """`environment` with reward -1 for every step whose reward is not 0."""

    def reward(self, reward: float) -> float:
        return -1.0 if reward else 0.0


def with_sparse_rewards(
    make_env: Optional[Callable[..., gymnasium.Env]], record: dict
) -> Optional[Callable[..., gymnasium.Env]]:
    """`make_env` with the sparse rewards that a task's record asks for, as it is where it does not."""
    if make_env is None or not record.get(SPARSE_RECORD):
        return make_env
    return Wrapped(make_env, SparseRewards)
