"""Rewards of many physics states at once: MuJoCo computes only what a reward reads, dm_control's task does the rest."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Callable, Dict, Sequence, Tuple

import mujoco
import numpy as np
from dm_control.rl import control


@dataclass(frozen=True)
class _Reader:
    """How to get at what a domain's rewards read.

    `functions` bring it up to date after a new state; `locate` gives the views into MuJoCo's data that then hold it,
    by the name of the method of dm_control's Physics through which a task reads it.
    """

    functions: Tuple[Callable[[mujoco.MjModel, mujoco.MjData], None], ...]
    locate: Callable[[mujoco.MjModel, mujoco.MjData], Dict[str, np.ndarray]]


def _locate_walker(model: mujoco.MjModel, data: mujoco.MjData) -> Dict[str, np.ndarray]:
    torso = model.body("torso").id
    return {
        "torso_height": data.xpos[torso, 2, ...],
        "torso_upright": data.xmat[torso, 8, ...],
        "horizontal_velocity": data.subtree_linvel[torso, 0, ...],
    }


def _locate_cheetah(model: mujoco.MjModel, data: mujoco.MjData) -> Dict[str, np.ndarray]:
    return {"speed": data.subtree_linvel[model.body("torso").id, 0, ...]}


def _locate_quadruped(model: mujoco.MjModel, data: mujoco.MjData) -> Dict[str, np.ndarray]:
    first = model.sensor("velocimeter").adr[0]
    return {
        "torso_upright": data.xmat[model.body("torso").id, 8, ...],
        "torso_velocity": data.sensordata[first : first + 3],
    }


_VELOCITIES = (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_comVel)
# The walker's and cheetah's speed is read without the sensor that reports it: mj_sensorVel would call mj_subtreeVel
# for the first state only, since nothing here tells it that the state has changed.
READERS = {
    "cheetah": _Reader((*_VELOCITIES, mujoco.mj_subtreeVel), _locate_cheetah),
    "quadruped": _Reader((*_VELOCITIES, mujoco.mj_sensorVel), _locate_quadruped),
    "walker": _Reader((*_VELOCITIES, mujoco.mj_subtreeVel), _locate_walker),
}


def fast_rewards(domain: str, environments: Sequence[control.Environment], states: np.ndarray) -> np.ndarray:
    """Rewards float64 [tasks, n] of `states` [n, P] for the tasks of `environments`, all of one domain of READERS.

    Each task's own `get_reward` is called once, with a stand-in for the physics whose methods return arrays over the
    states. No reward of these domains reads controls, contacts or accelerations, so those are not computed.
    Raises dm_control's PhysicsError for states that MuJoCo would refuse.
    """
    if not (np.abs(states) <= mujoco.mjMAXVAL).all():
        raise control.PhysicsError(f"{domain}: a state holds a NaN or a value beyond {mujoco.mjMAXVAL:g}")
    reader, model = READERS[domain], environments[0].physics.model.ptr
    data = mujoco.MjData(model)
    views = reader.locate(model, data)
    readings = {name: np.empty((len(states), *view.shape)) for name, view in views.items()}
    pairs = [(readings[name], view) for name, view in views.items()]
    positions, velocities, functions = data.qpos, data.qvel, reader.functions
    state_parts = zip(states[:, : model.nq], states[:, model.nq : model.nq + model.nv], strict=True)
    for row, (position, velocity) in enumerate(state_parts):
        positions[:] = position
        velocities[:] = velocity
        for function in functions:
            function(model, data)
        for column, view in pairs:
            column[row] = view
    # A vector's components come first, as in the single reading that the task indexes; states are the last axis.
    methods = {name: (lambda column=column: np.moveaxis(column, 0, -1)) for name, column in readings.items()}
    return np.array([environment.task.get_reward(SimpleNamespace(**methods)) for environment in environments])
