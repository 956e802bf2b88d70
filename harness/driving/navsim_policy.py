"""The plans of a trained run for scenes that come through stdin: the side of `navsim_agent` that runs in this project.

python -m harness.driving.navsim_policy --checkpoint RUN_DIR/checkpoint.pt

is started by the agent: algorithm files need a newer Python than NAVSIM's, so that two processes talk, each in its own
environment (`navsim_messages`). The noise of a plan depends on the name alone that comes with the scene.
"""

import os
import sys
import zlib
from pathlib import Path
from typing import Optional, Sequence

import numpy as np

from common.errors import CommandParser, UserError, exit_on_user_error
from envs.driving.bandit import fingerprint, load_data
from envs.driving.collect import data_folder, read_sidecar
from envs.driving.navsim_messages import receive, scene_from_arrays, send
from envs.driving.planner import along_route
from envs.driving.scene import Scene
from envs.driving.tasks import EXPORTED_DATA_DIR, is_exported
from harness.driving.policies import Policy


class ScenePlanner:
    """A run's agent with the scaling and encoding of the set that it was trained on.

    checkpoint: the run's checkpoint.pt; data_dir: the exported set, by default the run's own. Raises UserError for a
    run of another task and for a set that is not the one it was trained on.
    """

    def __init__(self, checkpoint: Path, data_dir: Optional[str] = None):
        run_dir = checkpoint.parent
        self.policy = Policy(run_dir)
        run = self.policy.run
        if not is_exported(run.task.partition("/")[2]):
            raise UserError(f"{run_dir}: its task is {run.task}; give a run of driving/navsim")
        folder = data_folder(data_dir or run.data_dir or EXPORTED_DATA_DIR)
        read_sidecar(folder)
        if self.policy.data_identity["sha256"] != fingerprint(folder):
            raise UserError(f"{folder}: is not the set that {run_dir} was trained on; set data_dir to that one")
        self.data = load_data(folder, self.policy.kind)

    def plan(self, scene: Scene, noise: str) -> np.ndarray:
        """The plan [8, 3] for a scene, in the ego's frame; equal names `noise` draw equal noise."""
        self.policy.agent.noise.generator.manual_seed(zlib.crc32(noise.encode()))
        return self.policy.plans(self.data, self.data.observe(scene)[None], along_route(scene)[None])[0]


def serve(checkpoint: Path, data_dir: Optional[str]) -> None:
    """Answers each scene on stdin by its plan on stdout until stdin ends; what else is printed goes to stderr.

    A user's mistake is an answer too, `error`, so that its sentence reaches whoever started NAVSIM's script.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        planner = ScenePlanner(checkpoint, data_dir)
        send(answers, algorithm=np.array(planner.policy.algorithm.name))
        while True:
            message = receive(sys.stdin.buffer)
            send(answers, plan=planner.plan(scene_from_arrays(message), str(message["noise"])))
    except UserError as error:
        send(answers, error=np.array(str(error)))
    except EOFError:
        return


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = CommandParser("python -m harness.driving.navsim_policy", __doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint.pt of a run of driving/navsim")
    parser.add_argument("--data_dir", help="folder of the exported set, default the run's")
    with exit_on_user_error():
        options = parser.parse_args(arguments)
        serve(options.checkpoint, options.data_dir)


if __name__ == "__main__":
    main()
