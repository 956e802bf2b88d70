"""The plans of a trained run for scenes that come through stdin: the side of `navsim_agent` that runs in this project.

python -m harness.driving.navsim_policy --checkpoint RUN_DIR/checkpoint.pt

is started by the agent: algorithm files need a newer Python than NAVSIM's, so that two processes talk, each in its own
environment (`navsim_messages`). The noise of a plan depends on the name alone that comes with the scene.
"""

import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import CommandParser, UserError, exit_on_user_error
from envs.driving.navsim_messages import receive, scene_from_arrays, send
from envs.driving.scene import Scene
from envs.driving.tasks import is_exported
from harness.driving.policies import Policy


def open_policy(checkpoint: Path, data_dir: str | None = None) -> Policy:
    """A run's agent with the set that it was trained on, by default where it was then. Raises UserError for another."""
    policy = Policy(checkpoint.parent, data_dir)
    if not is_exported(policy.task):
        raise UserError(f"{policy.run_dir}: its task is driving/{policy.task}; give one of driving/navsim")
    policy.check_unchanged()
    return policy


def plan(policy: Policy, scene: Scene, noise: str) -> np.ndarray:
    """The plan [8, 3] for a scene, in the ego's frame; equal names `noise` draw equal noise."""
    policy.agent.noise.generator.manual_seed(zlib.crc32(noise.encode()))
    return policy.plan(scene)


def serve(checkpoint: Path, data_dir: str | None) -> None:
    """Answers each scene on stdin by its plan on stdout until stdin ends; what else is printed goes to stderr.

    A user's mistake is an answer too, `error`, so that its sentence reaches whoever started NAVSIM's script.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        policy = open_policy(checkpoint, data_dir)
        send(answers, algorithm=np.array(policy.algorithm.name))
        while True:
            message = receive(sys.stdin.buffer)
            send(answers, plan=plan(policy, scene_from_arrays(message), str(message["noise"])))
    except UserError as error:
        send(answers, error=np.array(str(error)))
    except EOFError:
        return


def main(arguments: Sequence[str] | None = None) -> None:
    parser = CommandParser("python -m harness.driving.navsim_policy", __doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint.pt of a run of driving/navsim")
    parser.add_argument("--data_dir", help="folder of the exported set, default the run's")
    with exit_on_user_error():
        options = parser.parse_args(arguments)
        serve(options.checkpoint, options.data_dir)


if __name__ == "__main__":
    main()
