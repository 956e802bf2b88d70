"""Rewards of stored physics states for any task of their domain, through dm_control's own reward functions."""

from types import SimpleNamespace
from typing import Callable, Dict, Sequence, Tuple, Union

import mujoco
import numpy as np
from dm_control import composer
from dm_control.rl import control

from envs.exorl.environment import action_scale, load_environment

Environment = Union[control.Environment, composer.Environment]


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


def reference_rewards(environments: Sequence[Environment], states: np.ndarray, actions: np.ndarray) -> np.ndarray:
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


# ---- Many states at once: MuJoCo computes only what a reward reads, dm_control's task does the rest ----


def _read_walker(model: mujoco.MjModel, data: mujoco.MjData) -> Dict[str, np.ndarray]:
    torso = model.body("torso").id
    return {
        "torso_height": data.xpos[torso, 2, ...],
        "torso_upright": data.xmat[torso, 8, ...],
        "horizontal_velocity": data.subtree_linvel[torso, 0, ...],
    }


def _read_cheetah(model: mujoco.MjModel, data: mujoco.MjData) -> Dict[str, np.ndarray]:
    return {"speed": data.subtree_linvel[model.body("torso").id, 0, ...]}


def _read_quadruped(model: mujoco.MjModel, data: mujoco.MjData) -> Dict[str, np.ndarray]:
    first = model.sensor("velocimeter").adr[0]
    upright = data.xmat[model.body("torso").id, 8, ...]
    return {"torso_upright": upright, "torso_velocity": data.sensordata[first : first + 3]}


# By domain: the views into MuJoCo's data that a task's rewards read, by the name of the method of dm_control's Physics
# through which it does; and what brings them up to date after the velocities. The walker's and cheetah's speed is read
# without the sensor that reports it: mj_sensorVel would call mj_subtreeVel for the first state only, since nothing here
# tells it that the state has changed.
READERS: Dict[str, Tuple[Callable, Callable]] = {
    "cheetah": (_read_cheetah, mujoco.mj_subtreeVel),
    "quadruped": (_read_quadruped, mujoco.mj_sensorVel),
    "walker": (_read_walker, mujoco.mj_subtreeVel),
}


def fast_rewards(domain: str, environments: Sequence[control.Environment], states: np.ndarray) -> np.ndarray:
    """Rewards float64 [tasks, n] of `states` [n, P] for the tasks of `environments`, all of one domain of READERS.

    Each task's own `get_reward` is called once, with a stand-in for the physics whose methods return arrays over the
    states. No reward of these domains reads controls, contacts or accelerations, so those are not computed.
    Raises dm_control's PhysicsError for states that MuJoCo would refuse.
    """
    if not (np.abs(states) <= mujoco.mjMAXVAL).all():
        raise control.PhysicsError(f"{domain}: a state holds a NaN or a value beyond {mujoco.mjMAXVAL:g}")
    (read, finish), model = READERS[domain], environments[0].physics.model.ptr
    data = mujoco.MjData(model)
    views = read(model, data)
    columns = {name: np.empty((len(states), *view.shape)) for name, view in views.items()}
    functions = (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_comVel, finish)
    pairs, qpos, qvel = [(columns[name], view) for name, view in views.items()], data.qpos, data.qvel
    state_parts = zip(states[:, : model.nq], states[:, model.nq : model.nq + model.nv], strict=True)
    for row, (position, velocity) in enumerate(state_parts):
        qpos[:] = position
        qvel[:] = velocity
        for function in functions:
            function(model, data)
        for column, view in pairs:
            column[row] = view
    # A vector's components come first, as in the single reading that the task indexes; states are the last axis.
    methods = {name: (lambda column=column: np.moveaxis(column, 0, -1)) for name, column in columns.items()}
    return np.array([environment.task.get_reward(SimpleNamespace(**methods)) for environment in environments])
