"""python -m tests.toy_run RUN_DIR field=value ...: DIPOLE on the toy task, for tests that stop it; seeds=[0,1]."""

import dataclasses
import sys
from ast import literal_eval
from typing import List, Sequence

from algorithms.dipole import DIPOLE, DIPOLEConfig
from common.errors import exit_on_user_error
from harness.run import run
from tests.toy import toy_task

CONFIG = DIPOLEConfig(
    task="toy/point",
    device="cpu",
    threads=1,
    offline_steps=60,
    log_interval=5,
    checkpoint_interval=20,
    eval_interval=20,
    eval_episodes=3,
    eval_environments=3,
    batch_size=8,
    actor_hidden_dims=(8, 8),
    value_hidden_dims=(8, 8),
    flow_steps=2,
    num_candidates=2,
)


def toy_config(run_dir, **changes) -> DIPOLEConfig:
    return dataclasses.replace(CONFIG, run_dir=str(run_dir), **changes)


def toy_run(config: DIPOLEConfig, validation: bool = False) -> dict:
    """Trains and evaluates; returns the run's result."""
    return toy_runs([config], validation)[0]


def toy_runs(configs: Sequence[DIPOLEConfig], validation: bool = False) -> List[dict]:
    """Trains the seeds side by side and evaluates them; returns the runs' results."""
    task = toy_task(validation)
    return run([DIPOLE(config, task.observation_dim, task.action_dim) for config in configs], task)


def main() -> None:
    changes = {name: literal_eval(text) for name, text in (argument.split("=") for argument in sys.argv[2:])}
    seeds = changes.pop("seeds", [0])
    with exit_on_user_error():
        toy_runs([toy_config(sys.argv[1], **({"seed": seed} | changes)) for seed in seeds])


if __name__ == "__main__":
    main()
