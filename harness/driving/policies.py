"""Plans of a trained run's agent in the scenes of a set, and the run a folder holds."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import UserError
from envs.driving.bandit import BanditData, SceneSet, load_data, read_split
from envs.driving.collect import read_sidecar
from envs.driving.planner import along_route
from envs.driving.tasks import TASKS, is_exported
from harness.run_folder import load_agent, load_run, read_environment


class Policy:
    """The agent of a run folder and the encoding of its task. Raises UserError where the folder holds no such run."""

    def __init__(self, run_dir: Path):
        self.algorithm, self.run, _ = load_run(run_dir)
        self.data_identity = read_environment(run_dir)["data"]
        suite, _, name = self.run.task.partition("/")
        if suite != "driving" or name not in TASKS:
            raise UserError(f"{run_dir}: its task is {self.run.task}; give a run of a driving task")
        self.run_dir, self.kind = run_dir, TASKS[name][0]
        trained = self.data_identity.get("encoding", self.kind)
        if trained != self.kind:
            raise UserError(f"{run_dir}: was trained with the encoding {trained}, {name} has {self.kind}: train anew")
        self.agent = load_agent(self.algorithm.agent_class, run_dir, self.algorithm.name)

    def check_scenes(self, folder: Path) -> None:
        """Raises UserError where the set in `folder` is of another source: embedded scenes or those of NAVSIM."""
        if is_exported(self.run.task.partition("/")[2]) != ("metric" in read_sidecar(folder)):
            raise UserError(f"{self.run_dir}: its task is {self.run.task}, which the scenes in {folder} are not of")

    def plans(self, data: BanditData, observations: np.ndarray, bases: np.ndarray, **options: Any) -> np.ndarray:
        """A plan [N, 8, 3] for each of observations [N, O] with base plans [N, 8, 3]; options are act's."""
        if data.encoding.action_dim != self.agent.action_dim:
            raise UserError(
                f"{self.run_dir}: its actions have {self.agent.action_dim} numbers, those of this set "
                f"{data.encoding.action_dim}: give the --data_dir that the run was trained with"
            )
        actions = self.agent.act(torch.from_numpy(observations), **options).numpy()
        return data.encoding.decode(np.clip(actions, -1.0, 1.0).astype(np.float64), bases)


def sample_plans(policy: Policy, folder: Path, split: str, count: int, **options: Any) -> tuple[SceneSet, np.ndarray]:
    """The scenes of a split and `count` plans [S, count, 8, 3] of the policy for each."""
    policy.check_scenes(folder)
    data, scene_set = load_data(folder, policy.kind), read_split(folder, split)
    return scene_set, plans_in(policy, data, scene_set, data.observations[split], count, **options)


def plans_in(
    policy: Policy, data: BanditData, scene_set: SceneSet, observations: np.ndarray, count: int, **options: Any
) -> np.ndarray:
    """`count` plans [S, count, 8, 3] of the policy for each scene of a set, seen as observations [S, O]."""
    bases = np.stack([along_route(scene) for scene in scene_set.scenes]).repeat(count, axis=0)
    plans = policy.plans(data, observations.repeat(count, axis=0), bases, **options)
    return plans.reshape(len(scene_set.scenes), count, *plans.shape[1:])
