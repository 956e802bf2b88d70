"""What is put around a task's environment, by the record that a run keeps of its task."""

import inspect
import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional, Tuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit, TransformObservation, TransformReward

# Keys of a record.
NORMALIZATION = ("observation_mean", "observation_std")
SPARSE = "sparse"
CHUNK, ACTION_BOUNDS = "action_chunk", ("action_low", "action_high")

STEPS = "chunk_steps"  # key of an info
SUCCESS_KEYS = ("success", "is_success")  # of an info: OGBench's and Gymnasium-Robotics'


@dataclass(frozen=True)
class Wrapped:
    """A `make_env` that wraps what another one makes; it has that one's parameters (`render_mode`) and is picklable."""

    make_env: Callable[..., gymnasium.Env]
    wrapper: Callable[..., gymnasium.Env]
    arguments: tuple = ()

    def __call__(self, **options: Any) -> gymnasium.Env:
        return self.wrapper(self.make_env(**options), *self.arguments)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.make_env)


def wrapped(make_env: Optional[Callable[..., gymnasium.Env]], record: dict) -> Optional[Callable[..., gymnasium.Env]]:
    """`make_env` with all that `record` asks for, as it is where it asks for nothing, None where there is none."""
    if make_env is None:
        return None
    if record.get("max_episode_steps") is not None:
        make_env = Wrapped(make_env, TimeLimit, (record["max_episode_steps"],))
    if record.get("score_name") == "success":
        make_env = Wrapped(make_env, SuccessAlways)
    if all(name in record for name in NORMALIZATION):
        make_env = Wrapped(make_env, normalized, tuple(record[name] for name in NORMALIZATION))
    if record.get(SPARSE):
        make_env = Wrapped(make_env, sparse)
    return Wrapped(make_env, ChunkedEnvironment, (record[CHUNK],)) if CHUNK in record else make_env


def single_steps(make_env: Callable[..., gymnasium.Env]) -> Callable[..., gymnasium.Env]:
    """The `make_env` that takes single actions, of a task with or without chunks: a replay holds single transitions."""
    return make_env.make_env if getattr(make_env, "wrapper", None) is ChunkedEnvironment else make_env


def success_of(info: dict) -> float:
    """1 or 0 as the info of an environment's step reports it, NaN where it says nothing."""
    return float(next((info[key] for key in SUCCESS_KEYS if key in info), math.nan))


class SuccessAlways(gymnasium.Wrapper):
    """Reports a failure where the environment reports a success only when there is one."""

    def step(self, action: np.ndarray) -> tuple:
        *answer, info = self.env.step(action)
        return *answer, info | {"success": np.nan_to_num(success_of(info), nan=0.0)}


def normalized(environment: gymnasium.Env, mean: list, std: list) -> gymnasium.Env:
    """`environment` with (observation - mean) / std for each observation; mean and std are lists [O]."""
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    space = spaces.Box(-np.inf, np.inf, mean.shape, np.float32)
    return TransformObservation(environment, lambda observation: (observation - mean) / std, space)


def sparse(environment: gymnasium.Env) -> gymnasium.Env:
    """`environment` with reward -1 for every step whose reward is not 0."""
    return TransformReward(environment, lambda reward: -1.0 if reward else 0.0)


class ChunkedEnvironment(gymnasium.Wrapper):
    """`environment` that takes a chunk of `length` of its actions, [length * A], and executes it open loop.

    It stops where the episode ends. The reward is the sum over the steps made, info[STEPS] is their number; the
    observation, the ends and the rest of info are the last step's.
    """

    def __init__(self, environment: gymnasium.Env, length: int):
        super().__init__(environment)
        self.length, space = length, environment.action_space
        self.action_space = spaces.Box(np.tile(space.low, length), np.tile(space.high, length), dtype=space.dtype)

    def step(self, action: np.ndarray) -> Tuple[np.ndarray, float, bool, bool, Dict[str, Any]]:
        total, steps = 0.0, 0
        for step_action in np.reshape(action, (self.length, -1)):
            observation, reward, terminated, truncated, info = self.env.step(step_action)
            total, steps = total + float(reward), steps + 1
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, {**info, STEPS: steps}
