"""The plans of a trained run's agent in the scenes of a set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import UserError
from envs.driving.bandit import load_data
from envs.driving.collect import read_sidecar
from envs.driving.planner import along_route
from envs.driving.scene import Scene
from envs.driving.scene_files import SceneSet
from envs.driving.tasks import TASKS, is_exported, scenes_folder
from harness.run_folder import load_agent, load_run, read_environment


class Policy:
    """The agent of a run folder with the encoding of a set of scenes: that in data_dir, by default the run's own.

    Raises UserError where the folder holds no run of a driving task, and for scenes that its task is not of.
    """

    def __init__(self, run_dir: Path, data_dir: str | None = None):
        self.algorithm, run, _ = load_run(run_dir)
        suite, _, self.task = run.task.partition("/")
        if suite != "driving" or self.task not in TASKS:
            raise UserError(f"{run_dir}: its task is {run.task}; give a run of a driving task")
        self.run_dir, self.identity, kind = run_dir, read_environment(run_dir)["data"], TASKS[self.task][0]
        self.folder = scenes_folder(self.task, data_dir or run.data_dir)
        if is_exported(self.task) != ("metric" in read_sidecar(self.folder)):
            raise UserError(f"{run_dir}: its task is {run.task}, which the scenes in {self.folder} are not of")
        self.data = load_data(self.folder, kind)
        self.agent = load_agent(self.algorithm.agent_class, run_dir, self.algorithm.name)

    def check_unchanged(self) -> None:
        """Raises UserError where the run was trained on another set than this one."""
        trained, found = self.identity["sha256"], self.data.sha256
        if trained != found:
            raise UserError(
                f"{self.folder}: its scenes ({found[:16]}) are not those of {self.run_dir} ({trained[:16]}): set "
                "data_dir to the set that it was trained on"
            )

    def plan(self, scene: Scene) -> np.ndarray:
        """A plan [8, 3] for a scene, in the ego's frame."""
        return self._plans(self.data.observe(scene)[None], along_route(scene)[None])[0]

    def sample(self, scenes: SceneSet, observations: np.ndarray, count: int, **options: Any) -> np.ndarray:
        """`count` plans [S, count, 8, 3] for each scene, seen as observations [S, O]; options are act's."""
        bases = np.stack([along_route(scene) for scene in scenes.scenes])
        plans = self._plans(observations.repeat(count, axis=0), bases.repeat(count, axis=0), **options)
        return plans.reshape(len(bases), count, *plans.shape[1:])

    def _plans(self, observations: np.ndarray, bases: np.ndarray, **options: Any) -> np.ndarray:
        actions = self.agent.act(torch.from_numpy(observations), **options).numpy()
        return self.data.encoding.decode(np.clip(actions, -1.0, 1.0).astype(np.float64), bases)


def open_runs(run_dirs: Sequence[Path], data_dir: str | None) -> tuple[Path, list[Policy]]:
    """(folder of the set in data_dir, by default the first run's, the policies of the runs in it)."""
    policies: list[Policy] = []
    for run_dir in run_dirs:
        policies.append(Policy(run_dir, data_dir))
        data_dir = str(policies[0].folder)
    folder = scenes_folder("bandit", data_dir)
    read_sidecar(folder)
    return folder, policies
