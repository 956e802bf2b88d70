"""The table at the end of a run that asks for one: the data, a control run, the method and its act options."""

import contextlib
import dataclasses
import multiprocessing
import os
from typing import Any, Iterator, Optional

import torch

from envs.task import Task
from harness.evaluate import format_table, parse_grid, sweep, write_report
from harness.loop import complete
from harness.run_folder import run_path


def control_config(config: Any, agent_class: type) -> Optional[Any]:
    """The config of the run's control, with the changes that the agent class names in `control`; None without them."""
    changes = getattr(agent_class, "control", None)
    if not config.final_report or changes is None:
        return None
    return dataclasses.replace(config, **changes, final_report=())


@contextlib.contextmanager
def control_beside(config: Any, agent_class: type, task: Task) -> Iterator[None]:
    """Trains the control in a process of its own meanwhile, where the machine has the cores for both.

    `report` runs the control again, which finds it finished or continues it: what goes wrong here shows there.
    """
    control = control_config(config, agent_class)
    if control is None or not 0 < 2 * config.threads <= (os.cpu_count() or 1):
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=run_quietly, args=(control, agent_class, task))
    process.start()
    try:
        yield
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()


def run_quietly(config: Any, agent_class: type, task: Task) -> None:
    """Runs `config` and prints nothing."""
    if config.threads:
        torch.set_num_threads(config.threads)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        complete(config, agent_class(config, task.observation_dim, task.action_dim), task)


def report(config: Any, agent_class: type, task: Task) -> None:
    """Sweeps the act options that `final_report` names and prints the table, under that of the control.

    The control has the same budget of updates and is trained here where it is not yet; an option that it sets itself
    is not swept for it. All cells share episode seeds, which training's evaluations do not use. Raises UserError for
    an option that the agent has not.
    """
    folder = run_path(config)
    grid = parse_grid(config.final_report, agent_class, config)
    control = control_config(config, agent_class)
    if control is not None:
        complete(control, agent_class(control, task.observation_dim, task.action_dim), task)
        control_grid = {name: values for name, values in grid.items() if name not in agent_class.control}
        control_rows = sweep(agent_class.load(run_path(control)), task, control, control_grid, config.eval_episodes)
    rows = sweep(agent_class.load(folder), task, config, grid, config.eval_episodes)
    text = write_report(rows, folder, task)

    print(f"\n{config.task} ({task.identity['source']}), {config.offline_steps:,} updates, seed {config.seed}")
    for label, score in task.reference_scores().items():
        print(f"{label} {task.score_name} {score:.1f}")
    if control is not None:
        print(f"\n{control.label}\n{format_table(control_rows, task.score_name)}")
    print(f"\n{folder.relative_to(config.run_dir).parts[0]}\n{text}")
    figures = [folder / name for name in ("learning_curve.png", "greediness.png") if (folder / name).exists()]
    print("figures:", *figures)
