"""A trained run as an agent of NAVSIM's official scoring scripts: v1.1's run_pdm_score.py, and both of v2's.

Its config, config/common/agent/dipole_agent.yaml in NAVSIM's folder:

    _target_: envs.driving.navsim_agent.NavsimAgent
    _convert_: all
    checkpoint_path: null    # RUN_DIR/checkpoint.pt of a run of driving/navsim, of any algorithm
    metric_cache_path: ${metric_cache_path}
    python: null    # of this project's environment; null: the one that runs the script
    data_dir: null    # of the exported set; null: the run's

The agent is privileged: it sees the annotated boxes of the current frame, the map and the route, which it takes from
the metric cache; it needs the scene (requires_scene) and cannot make a submission to a leaderboard.

NAVSIM's scripts catch exceptions, score what is left and print its average. So a mistake of the user, and the end of
the policy's process, end the script: one sentence and exit code 2.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import numpy as np

from common.errors import UserError, exit_on_user_error
from envs.driving.navsim_interface import METRICS, check_maps, metric, navsim_module, open_caches, read_cache, scene_of
from envs.driving.navsim_messages import receive, scene_to_arrays, send
from envs.driving.polygons import ROAD
from envs.driving.vehicle import DT, KNOT_STEPS, KNOTS

ROOT = Path(__file__).resolve().parents[2]
CONDA_VARIABLES = ("PYTHONPATH", "PYTHONHOME")  # of NAVSIM's environment, not for another Python
AbstractAgent = navsim_module("navsim.agents.abstract_agent").AbstractAgent


class NavsimAgent(AbstractAgent):
    """Plans by a run's checkpoint, in a process of its own (`navsim_policy`), for the scene that NAVSIM shows.

    With version 1 the noise of a plan is its scene's, with version 2 its log's: that scores how much the plans of two
    frames differ, and those of independent noise do.
    """

    def __init__(
        self,
        checkpoint_path: Optional[str],
        metric_cache_path: str,
        python: Optional[str] = None,
        data_dir: Optional[str] = None,
    ):
        self._extended = metric() == METRICS[1]
        if self._extended:
            sampling = navsim_module("nuplan.planning.simulation.trajectory.trajectory_sampling").TrajectorySampling
            super().__init__(sampling(num_poses=KNOTS, interval_length=KNOT_STEPS * DT), requires_scene=True)
        else:
            super().__init__(requires_scene=True)
        with exit_on_user_error():
            if checkpoint_path is None:
                raise UserError("agent.checkpoint_path is not set: give checkpoint.pt of a run of driving/navsim")
        self._checkpoint, self._metric_cache_path = Path(checkpoint_path).absolute(), Path(metric_cache_path)
        self._command = [python or sys.executable, "-m", "harness.driving.navsim_policy"]
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
        """Opens the metric cache and starts the policy's process."""
        with exit_on_user_error():
            check_maps()
            self._caches = open_caches(self._metric_cache_path)
            environment = {name: value for name, value in os.environ.items() if name not in CONDA_VARIABLES}
            try:
                self._process = subprocess.Popen(
                    self._command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            except OSError as error:
                raise UserError(f"agent.python={self._command[0]}: cannot be started ({error.strerror})") from error
            self._answer()

    def compute_trajectory(self, agent_input: Any, scene: Any) -> Any:
        """NAVSIM's Trajectory of 8 poses, 0.5 s apart, in the frame of the ego's rear axle."""
        with exit_on_user_error():
            token, log_name = scene.scene_metadata.initial_token, scene.scene_metadata.log_name
            now = scene_of(read_cache(self._caches, token), agent_input, scene, steps=1, kinds=ROAD)
            noise = np.array(log_name if self._extended else token)
            with contextlib.suppress(BrokenPipeError):  # where it has ended, its code or what it said is the answer
                send(self._process.stdin, noise=noise, **scene_to_arrays(now))
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
            answer = receive(self._process.stdout)
        except EOFError as error:
            raise UserError(
                f"{' '.join(self._command)}: has ended with code {self._process.wait()}, see above; agent.python must "
                "be the Python of this project's environment"
            ) from error
        if "error" in answer:
            raise UserError(str(answer["error"]))
        return answer
