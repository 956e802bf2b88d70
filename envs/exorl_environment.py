"""ExORL's tasks as gymnasium environments, on dm_control's suite."""

import contextlib
import logging
import warnings
from typing import Any, Dict, Iterator, Optional, Tuple

import gymnasium
import numpy as np
from dm_control.rl import control

from envs.exorl_domains import EPISODE_STEPS

with warnings.catch_warnings():
    # Without a display GLFW warns while dm_control looks for a renderer; nothing is rendered here.
    warnings.filterwarnings("ignore", message=".*(GLFW|X11|DISPLAY).*")
    from dm_control import suite

FRAME_SIZE = 256  # pixels
PLAIN_SCENE = {"shadow": False, "reflection": False}
CAMERAS = {"quadruped": 2}  # one that follows the robot; the first camera of the other domains does


def _is_no_mass_notice(record: logging.LogRecord) -> bool:
    return "settotalmass" not in record.getMessage()


@contextlib.contextmanager
def _without_mass_notice() -> Iterator[None]:
    """Drops MuJoCo's notice that the cheetah's model uses a deprecated attribute, one line for every environment."""
    logger = logging.getLogger("absl")
    logger.addFilter(_is_no_mass_notice)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_mass_notice)


def load_suite_environment(domain: str, task: str) -> control.Environment:
    """dm_control's own environment of a task."""
    with _without_mass_notice():
        return suite.load(domain, task)


class ActionScale:
    """The map from actions in [-1, 1]^A to the actuators' own ranges (the quadruped's lift joints end at 1.1)."""

    def __init__(self, environment: control.Environment):
        spec = environment.action_spec()
        self.shape = spec.shape
        self._half_range = (spec.maximum - spec.minimum) / 2
        self._middle = (spec.maximum + spec.minimum) / 2

    def to_control(self, actions: np.ndarray) -> np.ndarray:
        """Controls, float64, of actions [..., A]; actions outside [-1, 1] count as its ends."""
        return np.minimum(np.maximum(actions, -1.0), 1.0) * self._half_range + self._middle


class ExORLEnvironment(gymnasium.Env):
    """One dm_control task, 1000 steps long, that ends by truncation only.

    It is a class of its own, because policies learn from ExORL's arrays: observations here are dm_control's entries
    flattened in dm_control's own order as float32 [O], exactly as ExORL stored them, which wrappers that sort the
    entries by name do not give. Actions are float32 [A] in [-1, 1]; a step's reward belongs to the state it reaches.
    `reset(seed=n)` determines the episode completely; without a seed the task's generator runs on.
    It steps dm_control's physics and task directly, as dm_control's Environment does, without building its TimeStep.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, domain: str, task: str):
        environment = load_suite_environment(domain, task)
        self._environment = environment
        self._physics = environment.physics
        self._task = environment.task
        self._physics_steps = round(environment.control_timestep() / environment.physics.timestep())
        self._scale = ActionScale(environment)
        self._camera = CAMERAS.get(domain, 0)
        self._steps = 0
        width = self._flatten(environment.reset().observation).shape
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, width, np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, self._scale.shape, np.float32)

    @staticmethod
    def _flatten(observation: Dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.ravel(entry) for entry in observation.values()], dtype=np.float32)

    def reset(self, *, seed: Optional[int] = None, options: Optional[dict] = None) -> Tuple[np.ndarray, Dict[str, Any]]:
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._task.random.seed(seed)
        self._steps = 0
        return self._flatten(self._environment.reset().observation), {}

    def step(self, action: np.ndarray) -> Tuple[np.ndarray, float, bool, bool, Dict[str, Any]]:
        physics, task = self._physics, self._task
        task.before_step(self._scale.to_control(action), physics)
        physics.step(self._physics_steps)
        task.after_step(physics)
        reward = float(task.get_reward(physics))
        observation = self._flatten(task.get_observation(physics))
        self._steps += 1
        return observation, reward, False, self._steps >= EPISODE_STEPS, {}

    def render(self) -> np.ndarray:
        """A picture of the scene, uint8 [FRAME_SIZE, FRAME_SIZE, 3], without shadows.

        Shadows, reflections and multi-sampling take most of the time without a GPU. Needs OpenGL, see MUJOCO_GL.
        """
        self._physics.model.vis.quality.offsamples = 0  # read when the first picture is drawn
        return self._physics.render(FRAME_SIZE, FRAME_SIZE, camera_id=self._camera, render_flag_overrides=PLAIN_SCENE)

    def close(self) -> None:
        self._physics.free()  # what the pictures were drawn in, too

    def physics_state(self) -> np.ndarray:
        """The simulator's state now, float64 [P] = qpos, qvel, act: a new array."""
        return self._physics.get_state()
