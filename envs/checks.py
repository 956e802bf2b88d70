"""What is found of a task's environment before training: one reset and a few steps, and the limit of its episodes."""

import contextlib
import dataclasses
from typing import List, Optional, Tuple

import gymnasium
import numpy as np

from common.errors import UserError, with_place
from envs.dataset import Dataset
from envs.seeding import SeededEnvironment, generators_preserved, layers
from envs.task import Task
from envs.wrappers import success_of, wrapped

STEPS = 5  # of the trial
LONGEST_FALLBACK = 10_000  # steps; a longer "episode" is data whose ends were not recorded


def checked_task(task: Task, max_episode_steps: Optional[int] = None) -> Task:
    """The task after a trial of its environment, whose episodes end after `max_episode_steps` at the latest.

    None: those of the task, else of the environment itself, else of the data's longest episode, which is printed.
    Raises UserError where environment and data do not fit each other, and where no limit is known.
    """
    if task.make_env is None:
        return task
    environment = _tried(task)
    steps = max_episode_steps or task.max_episode_steps
    if steps is None and not _names_a_limit(environment):
        steps = _longest_of_the_data(task)
    make_env = wrapped(task.make_env, {"max_episode_steps": steps, "score_name": task.score_name})
    return dataclasses.replace(task, make_env=make_env, max_episode_steps=steps)


def _longest_of_the_data(task: Task) -> int:
    steps = longest_episode(task.dataset)
    if steps > LONGEST_FALLBACK:
        raise UserError(
            f"task {task.name}: its environment names no time limit and the data's longest episode has {steps} steps: "
            f"set max_episode_steps"
        )
    print(
        f"task {task.name}: its environment names no time limit; its episodes end after {steps} steps, as the data's "
        f"longest does (max_episode_steps sets another limit)"
    )
    return steps


def longest_episode(dataset: Dataset) -> int:
    """The most transitions that follow one another in the data without an end in between."""
    rows = dataset.valid.cpu().numpy()
    ends = np.flatnonzero((np.diff(rows) != 1) | (dataset.masks.cpu().numpy()[rows[:-1]] == 0))
    return int(np.diff([-1, *ends, len(rows) - 1]).max())


def _names_a_limit(environment: gymnasium.Env) -> bool:
    return any(
        isinstance(layer, gymnasium.wrappers.TimeLimit) or getattr(layer, "max_episode_steps", None)
        for layer in layers(environment)
    )


@generators_preserved()
def _tried(task: Task) -> gymnasium.Env:
    """The task's environment, closed, after the beginnings of two episodes. Raises UserError where it does not fit."""
    try:
        seeded = SeededEnvironment(task.make_env, 0)
        with contextlib.closing(seeded):
            space = seeded.environment.action_space
            if space.shape != (task.action_dim,) or not np.allclose([space.low, space.high], [[-1.0], [1.0]]):
                raise UserError(
                    f"task {task.name}: its environment's actions are {space}, the data's have {task.action_dim} "
                    f"entries in [-1, 1]: wrap it in gymnasium.wrappers.RescaleAction(environment, -1, 1)"
                )
            (first, infos), (second, _) = _beginning(task, seeded), _beginning(task, seeded)
    except UserError:
        raise
    except Exception as error:  # an environment is the user's code: any error is possible
        raise UserError(
            f"task {task.name}: its environment fails in a trial ({with_place(error)}): correct make_env, whose "
            f"reset() gives (observation, info) and step() (observation, reward, terminated, truncated, info)"
        ) from error
    if not np.array_equal(first, second, equal_nan=True):
        print(
            f"task {task.name}: two episodes of its environment with one seed and the same actions differ, so scores "
            f"cannot be repeated exactly: take all random numbers from self.np_random"
        )
    if task.score_name == "success" and np.isnan([success_of(info) for info in infos]).all():
        print(
            f"task {task.name}: the first infos of its environment hold neither success nor is_success; episodes "
            f"count as failures until they do"
        )
    return seeded.environment


def _beginning(task: Task, seeded: SeededEnvironment) -> Tuple[np.ndarray, List[dict]]:
    """(observations [T, O], infos) of an episode's beginning with actions that are drawn from a seed."""
    actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, task.action_dim)).astype(np.float32)
    observation, _ = seeded.reset(0)
    observations, rewards, infos = [observation], [], []
    for action in actions:
        observation, reward, terminated, truncated, info = seeded.step(action)
        observations.append(observation)
        rewards.append(reward)
        infos.append(info)
        if terminated or truncated:
            break
    for name, values, shape in (("observation", observations, (task.observation_dim,)), ("reward", rewards, ())):
        for value in values:
            if np.shape(value) != shape:
                raise UserError(
                    f"task {task.name}: the {name} of its environment has shape {np.shape(value)}, not {shape}"
                )
            if not np.isfinite(value).all():
                raise UserError(f"task {task.name}: the {name} of its environment is not finite: find out why")
    return np.array(observations, dtype=np.float32), infos
