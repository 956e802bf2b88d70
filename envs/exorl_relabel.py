"""Rewards of stored physics states for any task of their domain, through dm_control's own reward functions."""

from typing import Dict, Sequence

import mujoco
import numpy as np
from tqdm import tqdm

from envs.exorl_domains import DOMAINS
from envs.exorl_environment import ActionScale, load_suite_environment

BLOCK_ROWS = 10_000  # rows read together, so that `physics` may be an HDF5 data set larger than memory


def relabel(domain: str, task_names: Sequence[str], physics: np.ndarray, actions: np.ndarray) -> Dict[str, np.ndarray]:
    """Rewards float32 [n] by task name: those of states `physics` [n, P], reached by `actions` [n, A] in [-1, 1].

    Row i's reward belongs to the state of row i: r(s'), ExORL's convention. It equals the online reward to float32
    rounding, since MuJoCo's `mj_step1` on the stored state is what dm_control calls last in a step, and all tasks
    here read positions, velocities, their sensors and the control only. ExORL's relabeller zeroes the control,
    which changes the rewards of the tasks that contain it (cartpole's balance and swingup); here the action that led
    to the state is set first. `physics` and `actions` may be arrays or HDF5 data sets.
    Raises ValueError where the widths are not the domain's.
    """
    expected = {"physics": DOMAINS[domain].physics_dim, "actions": DOMAINS[domain].action_dim}
    for name, array in (("physics", physics), ("actions", actions)):
        if array.shape != (len(physics), expected[name]):
            raise ValueError(f"{name}: expected shape {[len(physics), expected[name]]}, got {list(array.shape)}")
    environments = [load_suite_environment(domain, name) for name in task_names]
    tasks = [environment.task for environment in environments]
    simulator = environments[0].physics  # the tasks of a domain differ in nothing that a reward depends on
    scale = ActionScale(environments[0])
    rewards = np.empty((len(tasks), len(physics)), np.float32)
    with tqdm(total=len(physics), desc=f"relabel {domain}", unit="state", disable=None) as progress:
        for start in range(0, len(physics), BLOCK_ROWS):
            states = physics[start : start + BLOCK_ROWS]
            controls = scale.to_control(actions[start : start + BLOCK_ROWS])
            for row, (state, controls_of_row) in enumerate(zip(states, controls, strict=True), start):
                simulator.set_state(state)
                simulator.set_control(controls_of_row)
                with simulator.check_invalid_state():
                    mujoco.mj_step1(simulator.model.ptr, simulator.data.ptr)
                rewards[:, row] = [task.get_reward(simulator) for task in tasks]
            progress.update(len(states))
    return dict(zip(task_names, rewards, strict=True))
