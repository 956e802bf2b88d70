"""python -m tests.toy_run RUN_DIR field=value ...: DIPOLE on the toy task, for tests that stop it."""

import dataclasses
import sys
from ast import literal_eval
from pathlib import Path
from unittest import mock

from algorithms.dipole import DIPOLE, DIPOLEConfig
from common.errors import exit_on_user_error
from harness.config import RunConfig
from harness.run_folder import run_path
from harness.train import train_run
from tests.toy import toy_task

RUN = RunConfig(
    task="toy/point",
    label="dipole",
    device="cpu",
    threads=1,
    offline_steps=60,
    log_interval=5,
    checkpoint_interval=20,
    eval_interval=20,
    eval_episodes=3,
    eval_environments=3,
    batch_size=8,
)
CONFIG = DIPOLEConfig(actor_hidden_dims=(8, 8), value_hidden_dims=(8, 8), flow_steps=2, num_candidates=2)


def toy_settings(run_dir, **changes) -> tuple[RunConfig, DIPOLEConfig]:
    """Both configs with changes to fields of either."""
    names = {field.name for field in dataclasses.fields(RunConfig)}
    of_run = {name: value for name, value in changes.items() if name in names}
    of_method = {name: value for name, value in changes.items() if name not in names}
    return dataclasses.replace(RUN, run_dir=str(run_dir), **of_run), dataclasses.replace(CONFIG, **of_method)


def toy_folder(run_dir, **changes) -> Path:
    """The folder of the run with these changes."""
    return run_path(toy_settings(run_dir, **changes)[0])


def toy_run(run_dir, agent_class=DIPOLE, task=None, restart=False, drawn=False, **changes) -> Path:
    """Trains a run with these changes, on the toy task unless another is given; returns its folder.

    drawn: the learning curve, which takes as long as the run, is a figure instead of an empty file.
    """
    from harness import plots  # here: main needs matplotlib at its end only

    run, config = toy_settings(run_dir, **changes)
    curve = plots.plot_learning_curve if drawn else lambda rows, path, *arguments, **options: path.touch()
    with mock.patch.object(plots, "plot_learning_curve", curve):
        train_run(agent_class, run, config, restart, task or toy_task())
    return run_path(run)


def main() -> None:
    changes = {name: literal_eval(text) for name, text in (argument.split("=") for argument in sys.argv[2:])}
    with exit_on_user_error():
        train_run(DIPOLE, *toy_settings(sys.argv[1], **changes), task=toy_task())


if __name__ == "__main__":
    main()
