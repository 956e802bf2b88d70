"""Rewards of stored physics states for any task of their domain, through dm_control's own reward functions."""

from typing import Dict, Sequence, Union

import mujoco
import numpy as np
from dm_control import composer
from dm_control.rl import control

from envs.exorl.environment import action_scale, load_environment
from envs.exorl.fast_relabel import READERS, fast_rewards


class Relabeller:
    """Rewards of a domain's tasks, in as many calls as the states come in: loading the environments takes longest.

    A state's reward is r(s'), that of the state itself, ExORL's convention; it equals the online reward to float32
    rounding. ExORL's relabeller zeroes the control, which changes the rewards of the tasks that contain it (cartpole's
    balance and swingup, point_mass_maze); here the action that led to the state is set first.
    """

    def __init__(self, domain: str, task_names: Sequence[str]):
        self.domain, self.task_names = domain, tuple(task_names)
        self.environments = [load_environment(domain, name) for name in task_names]

    def __call__(self, physics: np.ndarray, actions: np.ndarray) -> Dict[str, np.ndarray]:
        """Rewards float32 [n] by task name of states `physics` [n, P], reached by `actions` [n, A] in [-1, 1]."""
        if self.domain in READERS:
            rewards = fast_rewards(self.domain, self.environments, physics)
        else:
            rewards = reference_rewards(self.environments, physics, actions)
        return dict(zip(self.task_names, rewards.astype(np.float32), strict=True))


def reference_rewards(
    environments: Sequence[Union[control.Environment, composer.Environment]], states: np.ndarray, actions: np.ndarray
) -> np.ndarray:
    """Rewards float64 [tasks, n] of `states` [n, P], one after the other: any domain's, and what the fast ones equal.

    MuJoCo's `mj_step1` on the stored state is what dm_control calls last in a step, and all tasks here read
    positions, velocities, their sensors and the control only. One physics serves all tasks of `environments`: those
    of a domain differ in nothing that a reward reads from it.
    """
    simulator, scale = environments[0].physics, action_scale(environments[0])
    rewards = np.empty((len(environments), len(states)))
    for row, (state, controls) in enumerate(zip(states, scale.from_unit(actions), strict=True)):
        simulator.set_state(state)
        simulator.set_control(controls)
        with simulator.check_invalid_state():
            mujoco.mj_step1(simulator.model.ptr, simulator.data.ptr)
        rewards[:, row] = [environment.task.get_reward(simulator) for environment in environments]
    return rewards
