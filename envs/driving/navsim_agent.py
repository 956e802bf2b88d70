"""A trained run as an agent of NAVSIM's official scoring scripts, version 1.1 (`run_pdm_score.py`).

Its config, config/common/agent/dipole_agent.yaml in NAVSIM's folder:

    _target_: envs.driving.navsim_agent.NavsimAgent
    _convert_: all
    checkpoint_path: null    # RUN_DIR/checkpoint.pt of a run of driving/navsim, of any algorithm
    metric_cache_path: ${metric_cache_path}
    python: null    # of this project's environment; null: the one that runs the script
    data_dir: null    # of the exported set; null: the run's

The agent is privileged: it sees the annotated boxes of the current frame, the map and the route, which it takes from
the metric cache; it needs the scene (requires_scene) and cannot make a submission to a leaderboard.
Implemented against the v1.1 interface, not run on data.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import numpy as np

from common.errors import UserError
from envs.driving.navsim_export import scene_of
from envs.driving.navsim_interface import METRICS, metric, navsim_module
from envs.driving.navsim_messages import receive, scene_to_arrays, send

ROOT = Path(__file__).resolve().parents[2]
CONDA_VARIABLES = ("PYTHONPATH", "PYTHONHOME")  # of NAVSIM's environment, not for another Python
AbstractAgent = navsim_module("navsim.agents.abstract_agent").AbstractAgent


class NavsimAgent(AbstractAgent):
    """Plans by a run's checkpoint, in a process of its own (`navsim_policy`), for the scene that NAVSIM shows.

    Raises UserError where the installed NAVSIM gives another score than the one that the run was trained for.
    """

    def __init__(
        self,
        checkpoint_path: str,
        metric_cache_path: str,
        python: Optional[str] = None,
        data_dir: Optional[str] = None,
    ):
        if metric() != METRICS[0]:
            raise UserError(f"the NAVSIM installed here scores by {metric()}, this agent plans for {METRICS[0]}: v1.1")
        super().__init__(requires_scene=True)
        self._checkpoint, self._metric_cache_path = Path(checkpoint_path).absolute(), Path(metric_cache_path)
        self._command = [python or sys.executable, "-m", "envs.driving.navsim_policy"]
        self._command += ["--checkpoint", str(self._checkpoint)]
        if data_dir is not None:
            self._command += ["--data_dir", str(Path(data_dir).absolute())]
        self._process: Optional[subprocess.Popen] = None

    def name(self) -> str:
        """The class, what it is scored by and that it is privileged."""
        return f"{type(self).__name__} ({metric()}, ground-truth perception)"

    def get_sensor_config(self) -> Any:
        """No sensors."""
        return navsim_module("navsim.common.dataclasses").SensorConfig.build_no_sensors()

    def initialize(self) -> None:
        """Starts the policy's process and opens the metric cache. Raises UserError where the process ends at once."""
        self._caches = navsim_module("navsim.common.dataloader").MetricCacheLoader(self._metric_cache_path)
        environment = {name: value for name, value in os.environ.items() if name not in CONDA_VARIABLES}
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        trained_for = str(self._answer()["metric"])
        if trained_for != metric():
            raise UserError(f"{self._checkpoint}: was trained for {trained_for}, NAVSIM here scores by {metric()}")

    def compute_trajectory(self, agent_input: Any, scene: Any) -> Any:
        """NAVSIM's Trajectory of 8 poses, 0.5 s apart, in the frame of the ego's rear axle."""
        token = scene.scene_metadata.initial_token
        now, _ = scene_of(self._caches.get_from_token(token), agent_input, scene.map_api, steps=1)
        send(self._process.stdin, token=np.array(token), **scene_to_arrays(now))
        plan = self._answer()["plan"].astype(np.float32)
        return navsim_module("navsim.common.dataclasses").Trajectory(plan)

    def close(self) -> None:
        """Ends the policy's process; the end of this one does so too."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def _answer(self) -> dict:
        try:
            return receive(self._process.stdout)
        except EOFError as error:
            raise UserError(
                f"{' '.join(self._command)}: has ended with code {self._process.wait()}, see above"
            ) from error
