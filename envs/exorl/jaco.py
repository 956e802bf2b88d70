"""ExORL's jaco tasks: the hand reaches one of four points on the floor; on dm_control's manipulation parts."""

from typing import Tuple

import numpy as np
from dm_control import composer, mjcf
from dm_control.composer import initializers
from dm_control.composer.variation import distributions
from dm_control.manipulation.shared import arenas, cameras, constants, observations, robots, workspaces
from dm_control.utils import rewards

TIME_LIMIT = 10.0  # seconds: 250 steps
TARGETS = {  # metres
    "reach_top_left": (-0.09, 0.09, 0.001),
    "reach_top_right": (0.09, 0.09, 0.001),
    "reach_bottom_left": (-0.09, -0.09, 0.001),
    "reach_bottom_right": (0.09, -0.09, 0.001),
}
TARGET_RADIUS = 0.05  # metres
START_LOWER, START_UPPER = (-0.2, -0.2, 0.02), (0.2, 0.2, 0.4)  # metres; where the hand starts, as in reach_site


class Reach(composer.Task):
    """The hand's pinch point near a fixed target, which is not observed.

    The 42 observations are the arm's joints_pos (6 angles as sine and cosine), joints_torque (6), joints_vel (6), the
    hand's joints_pos (3), joints_vel (3), pinch_site_pos (3), pinch_site_rmat (9). The reward reads the pinch point by
    its name, so that the tasks of all targets can be asked about the physics of one.
    """

    def __init__(self, target: Tuple[float, float, float]):
        settings = observations.PERFECT_FEATURES
        self._target = np.array(target)
        self._arena = arenas.Standard()
        self._arm = robots.make_arm(obs_settings=settings)
        self._hand = robots.make_hand(obs_settings=settings)
        self._arm.attach(self._hand)
        self._arena.attach_offset(self._arm, offset=robots.ARM_OFFSET)
        self.tool_center_point = self._hand.tool_center_point.full_identifier
        self.control_timestep = constants.CONTROL_TIMESTEP
        self._place_hand = initializers.ToolCenterPointInitializer(
            self._hand,
            self._arm,
            position=distributions.Uniform(START_LOWER, START_UPPER),
            quaternion=workspaces.DOWN_QUATERNION,
        )
        # For pictures only: a camera, whose observation the settings leave out, and the target.
        self._cameras = cameras.add_camera_observables(self._arena, settings, cameras.FRONT_CLOSE)
        workspaces.add_target_site(
            self._arena.mjcf_model.worldbody, TARGET_RADIUS, visible=True, rgba=constants.RED, name="target", pos=target
        )

    @property
    def root_entity(self) -> composer.Entity:
        return self._arena

    @property
    def task_observables(self) -> dict:
        return self._cameras

    def initialize_episode(self, physics: mjcf.Physics, random_state: np.random.RandomState) -> None:
        """Draws how far the fingers are closed and where the hand is."""
        self._hand.set_grasp(physics, close_factors=random_state.uniform())
        self._place_hand(physics, random_state)

    def get_reward(self, physics: mjcf.Physics) -> float:
        """1 within TARGET_RADIUS of the target, falling as a Gaussian to 0.1 at twice that."""
        distance = np.linalg.norm(physics.named.data.site_xpos[self.tool_center_point] - self._target)
        return rewards.tolerance(distance, bounds=(0, TARGET_RADIUS), margin=TARGET_RADIUS)


def load(task: str) -> composer.Environment:
    """The environment of `task`, one of TARGETS. Raises KeyError for another name.

    The model is compiled once, since no episode changes it.
    """
    return composer.Environment(
        Reach(TARGETS[task]),
        time_limit=TIME_LIMIT,
        strip_singleton_obs_buffer_dim=True,
        recompile_mjcf_every_episode=False,
    )
