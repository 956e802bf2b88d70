"""What is found of a task's environment before training: one reset and a few steps, and the limit of its episodes."""

import dataclasses
import json
from typing import Any, Callable, NoReturn, Optional, Sequence

import gymnasium
import numpy as np

from common.errors import UserError, one_line, with_place
from envs.dataset import Dataset
from envs.seeding import SeededEnvironment, generators_preserved, layers
from envs.task import Task
from envs.wrappers import success_of, wrapped

STEPS = 5  # of the trial
LONGEST_FALLBACK = 10_000  # steps; a longer "episode" is data whose ends were not recorded


def checked_task(task: Task, max_episode_steps: Optional[int] = None) -> Task:
    """The task after a trial of its environment, whose episodes end after `max_episode_steps` at the latest.

    None: those of the task, else of the environment itself, else of the data's longest episode, which is printed.
    Raises UserError where environment, data and identity do not fit each other, and where no limit is known.
    """
    _check_identity(task)
    if task.make_env is None:
        return task
    environment = _Trial(task).run()
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


def _check_identity(task: Task) -> None:
    for key, value in task.identity.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise UserError(
                f"task {task.name}: identity[{key!r}] cannot be written as JSON ({one_line(error)}): use Python's own "
                f"numbers, texts, lists and dicts, e.g. int(...) of a numpy number"
            ) from error


class _Trial:
    """One reset and a few steps of a task's environment, each answer compared with what the task says."""

    def __init__(self, task: Task):
        self.task, self.reports_success = task, False

    @generators_preserved()
    def run(self) -> gymnasium.Env:
        """Returns the environment, closed. Raises UserError for the first thing that does not fit."""
        seeded = self._call("building", SeededEnvironment, self.task.make_env, 0)
        self._check_class(seeded.environment)
        try:
            if not np.array_equal(self._episode(seeded), self._episode(seeded), equal_nan=True):
                print(
                    f"task {self.task.name}: two episodes of its environment with one seed and the same actions "
                    f"differ, so scores cannot be repeated exactly: take all random numbers from self.np_random"
                )
            if self.task.score_name == "success" and not self.reports_success:
                print(
                    f"task {self.task.name}: the first infos of its environment hold neither success nor is_success; "
                    f"episodes count as failures until they do"
                )
        finally:
            seeded.close()
        return seeded.environment

    def _episode(self, seeded: SeededEnvironment) -> np.ndarray:
        """The observations [T, O] of an episode's beginning with actions that are drawn from a seed."""
        actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, self.task.action_dim)).astype(np.float32)
        observation, _ = self._answer("reset", ("observation", "info"), seeded.reset, 0)
        observations = [self._observation(observation)]
        for action in actions:
            names = ("observation", "reward", "terminated", "truncated", "info")
            observation, reward, terminated, truncated, info = self._answer("step", names, seeded.step, action)
            observations.append(self._observation(observation))
            self._check_reward(reward)
            if not isinstance(info, dict):
                self._refuse(f"step() gives {type(info).__name__} as info", "return a dict")
            self.reports_success |= not np.isnan(success_of(info))
            if terminated or truncated:
                break
        return np.stack(observations)

    def _answer(self, what: str, names: Sequence[str], function: Callable, argument: Any) -> tuple:
        answer = self._call(what, function, argument)
        if not isinstance(answer, tuple) or len(answer) != len(names):
            advice = "adapt it to gymnasium, or to gym 0.26's interface"
            self._refuse(f"{what}() must return ({', '.join(names)})", advice)
        return answer

    def _check_class(self, environment: Any) -> None:
        if not isinstance(environment, gymnasium.Env):
            self._refuse(
                f"make_env builds a {type(environment).__name__}, which is no gymnasium.Env", "derive it from that"
            )
        space, width = environment.action_space, self.task.action_dim
        if not isinstance(space, gymnasium.spaces.Box) or space.shape != (width,):
            self._refuse(f"its actions are {space}, the data's have {width} entries", "give it Box(-1, 1)")
        if not (np.allclose(space.low, -1) and np.allclose(space.high, 1)):
            self._refuse(
                f"its actions are {space}, and a policy's lie in [-1, 1]",
                "wrap it in gymnasium.wrappers.RescaleAction(environment, -1, 1) and scale the data's likewise",
            )
        for dimension, column in {"observation_dim": "observations", "action_dim": "actions"}.items():
            named, found = getattr(self.task, dimension), getattr(self.task.dataset, column).shape[1]
            if found != named:
                self._refuse(f"{dimension} is {named}, the data's are {found}", "correct it")

    def _observation(self, observation: Any) -> np.ndarray:
        shape = (self.task.observation_dim,)
        found = type(observation).__name__ if isinstance(observation, (dict, tuple)) else np.shape(observation)
        if found != shape:
            self._refuse(
                f"its observation is a {found}, the data's have shape {shape}",
                "wrap it in gymnasium.wrappers.FlattenObservation" if found == "dict" else "give it the data's",
            )
        array = np.asarray(observation, dtype=np.float32)
        if not np.isfinite(array).all():
            self._refuse("its observation holds a NaN or infinity", "find out why before training")
        return array

    def _check_reward(self, reward: Any) -> None:
        if np.shape(reward) != ():
            self._refuse(f"its reward has shape {np.shape(reward)}", "return one number: weigh several objectives")
        if not np.isfinite(float(reward)):
            self._refuse(f"its reward is {reward}", "find out why before training")

    def _call(self, what: str, function: Callable, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError:
            raise
        except Exception as error:  # an environment is the user's code: any error is possible
            raise UserError(
                f"task {self.task.name}: {what} its environment failed ({with_place(error)}): correct make_env, or "
                f"install the versions that it was written for"
            ) from error

    def _refuse(self, fault: str, advice: str) -> NoReturn:
        raise UserError(f"task {self.task.name}: {fault}: {advice}")
