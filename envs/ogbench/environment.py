"""OGBench's single tasks as gymnasium environments with float32 observations and reproducible episodes."""

import functools
import tempfile
import warnings
from typing import Any, Callable, Dict, Optional, Tuple

import gymnasium
import numpy as np
import ogbench

with warnings.catch_warnings():
    # Without a display GLFW warns while a renderer is looked for; nothing is rendered here.
    warnings.filterwarnings("ignore", message=".*(GLFW|X11|DISPLAY).*")
    from ogbench.manipspace.envs.manipspace_env import ManipSpaceEnv


MANIPULATION_ACTION_DIM = 5  # x, y, z, yaw, gripper


def build(make: Callable[..., gymnasium.Env]) -> gymnasium.Env:
    """`make(disable_env_checker=True)`, an OGBench environment, without two traps of its simulations.

    Each maze writes its walls to a temporary XML file and leaves it there; here it is deleted. (Its descriptor stays
    open all the same.) The arm's action_space is a property that builds a new Box, unseeded and with two warnings, at
    each access; here it is one Box. The checker is left out because it reads observation_space, which is as dear.
    """
    shared = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            environment = make(disable_env_checker=True)
        finally:
            tempfile.tempdir = shared
    simulation = environment.unwrapped
    if isinstance(simulation, ManipSpaceEnv):
        space = gymnasium.spaces.Box(-1.0, 1.0, (MANIPULATION_ACTION_DIM,), np.float32)
        # A property of the class hides an attribute of the instance, so the instance gets a class of its own.
        simulation.__class__ = type(type(simulation).__name__, (type(simulation),), {"action_space": space})
    return environment


class OGBenchEnvironment(gymnasium.Env):
    """One single task, e.g. "cube-single-play-singletask-task1-v0"; `environment` is OGBench's own.

    Rewards, terminations and info["success"] are functions of the state in which the action is taken, as in the data
    sets (ogbench >= 1.2). Actions are clipped to [-1, 1], which the point maze itself leaves out. Of OGBench's info
    only success is passed on: 17 arrays a step would cross every pipe.
    `reset(seed=n)` determines the episode; it also seeds numpy's global generator, from which the mazes draw.
    """

    metadata = {"render_modes": []}

    def __init__(self, task_name: str):
        self.environment = build(functools.partial(ogbench.make_env_and_datasets, task_name, env_only=True))
        first_observation, _ = self.environment.reset()
        action_shape = self.environment.unwrapped.action_space.shape
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, first_observation.shape, np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, action_shape, np.float32)

    def reset(self, *, seed: Optional[int] = None, options: Optional[dict] = None) -> Tuple[np.ndarray, Dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            np.random.seed(seed)  # noqa: NPY002  (OGBench's mazes draw from it)
            self.environment.unwrapped.action_space.seed(seed)  # a reset samples a few actions to settle the scene
        observation, _ = self.environment.reset(seed=seed, options=options)
        return observation.astype(np.float32), {}

    def step(self, action: np.ndarray) -> Tuple[np.ndarray, float, bool, bool, Dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.environment.step(np.clip(action, -1.0, 1.0))
        success = {"success": float(info["success"])}
        return observation.astype(np.float32), float(reward), bool(terminated), bool(truncated), success

    def close(self) -> None:
        self.environment.close()
