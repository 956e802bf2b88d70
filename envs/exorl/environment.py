"""ExORL's tasks as gymnasium environments, on dm_control's suite and its parts."""

import importlib
import logging
import warnings
from typing import Any, Dict, Optional, Tuple, Union

import gymnasium
import numpy as np
from dm_control.rl import control

from envs.exorl.domains import DOMAINS
from envs.spaces import ActionScale

with warnings.catch_warnings():
    # Without a display GLFW warns while dm_control looks for a renderer; nothing is rendered here.
    warnings.filterwarnings("ignore", message=".*(GLFW|X11|DISPLAY).*")
    from dm_control import composer, suite

FRAME_SIZE = 256  # pixels
PLAIN_SCENE = {"shadow": False, "reflection": False}
KNOWN_NOTICES = (
    "settotalmass",  # a deprecated attribute in the cheetah's model
    "Failed to converge",  # a pose for jaco's start that its arm cannot take; another is drawn then
)
CAMERAS = {"quadruped": 2}  # one that follows the robot; the first camera of the other domains does


def _is_no_known_notice(record: logging.LogRecord) -> bool:
    return not any(notice in record.getMessage() for notice in KNOWN_NOTICES)


logging.getLogger("absl").addFilter(_is_no_known_notice)  # dm_control's, a line for every environment or episode


def load_environment(domain: str, task: str) -> Union[control.Environment, composer.Environment]:
    """dm_control's environment of a task: the suite's own, else that of `envs.exorl.<domain>`."""
    if (domain, task) in suite.ALL_TASKS:
        return suite.load(domain, task)
    return importlib.import_module(f"envs.exorl.{domain}").load(task)


def action_scale(environment: Union[control.Environment, composer.Environment]) -> ActionScale:
    """The map from [-1, 1]^A to the actuators' own ranges (the quadruped's lift joints end at 1.1)."""
    spec = environment.action_spec()
    return ActionScale(gymnasium.spaces.Box(spec.minimum, spec.maximum, dtype=np.float64), "dm_control")


class ExORLEnvironment(gymnasium.Env):
    """One dm_control task that ends by truncation only, after the domain's episode_steps.

    It is a class of its own, because policies learn from ExORL's arrays: observations here are dm_control's entries
    flattened in dm_control's own order as float32 [O], exactly as ExORL stored them, which wrappers that sort the
    entries by name do not give. Actions are float32 [A] in [-1, 1]; a step's reward belongs to the state it reaches.
    `reset(seed=n)` determines the episode completely; without a seed the task's generator runs on.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, domain: str, task: str):
        self._environment = load_environment(domain, task)
        width = self._flatten(self._environment.reset().observation).shape
        self._physics = self._environment.physics  # the composer's exists from the first reset on
        self._scale = action_scale(self._environment)
        has_composer = isinstance(self._environment, composer.Environment)
        self._random = self._environment.random_state if has_composer else self._environment.task.random
        self._camera = CAMERAS.get(domain, 0)
        self._episode_steps = DOMAINS[domain].episode_steps
        self._steps = 0
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, width, np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, self._scale.shape, np.float32)

    @staticmethod
    def _flatten(observation: Dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.ravel(entry) for entry in observation.values()], dtype=np.float32)

    def reset(self, *, seed: Optional[int] = None, options: Optional[dict] = None) -> Tuple[np.ndarray, Dict[str, Any]]:
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._random.seed(seed)
        self._steps = 0
        return self._flatten(self._environment.reset().observation), {}

    def step(self, action: np.ndarray) -> Tuple[np.ndarray, float, bool, bool, Dict[str, Any]]:
        step = self._environment.step(self._scale.from_unit(action))
        self._steps += 1
        return self._flatten(step.observation), float(step.reward), False, self._steps >= self._episode_steps, {}

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
