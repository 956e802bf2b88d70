"""The table at the end of a run that asks for one: the data, a control run, the method and its act options."""

import contextlib
import dataclasses
import multiprocessing
import os
from typing import Any, Dict, Iterator, List, Optional

import torch

from envs.task import Task
from harness.devices import choose_device
from harness.evaluate import parse_grid, sweep, write_report
from harness.loop import complete
from harness.run_folder import algorithm_name, label_of, load_agent, run_path


def check(config: Any, agent_class: type) -> Dict[str, list]:
    """The grid of `final_report`. Raises UserError for an option that the agent has not."""
    return parse_grid(config.final_report, agent_class, config)


def control_config(config: Any, agent_class: type) -> Optional[Any]:
    """The config of the run's control, with the changes that the agent class names in `control`; None without them."""
    changes = getattr(agent_class, "control", None)
    if not config.final_report or changes is None:
        return None
    label = f"{label_of(config)}_{changes['label']}"
    return dataclasses.replace(config, **(changes | {"label": label}), final_report=())


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
        if process.is_alive():
            print(f"waiting for the control run in {run_path(control)}", flush=True)
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
    """Sweeps the act options that `final_report` names, for the control too, and prints all in one table.

    The control has the same budget of updates and is trained here where it is not yet; an option that it sets itself
    is not swept for it. All cells share episode seeds, which training's evaluations do not use.
    """
    grid = check(config, agent_class)
    control = control_config(config, agent_class)
    shown: List[dict] = [{"policy": label, task.score_name: score} for label, score in task.reference_scores().items()]
    if control is not None:
        complete(control, agent_class(control, task.observation_dim, task.action_dim), task)
        control_grid = {name: values for name, values in grid.items() if name not in agent_class.control}
        shown += with_label(control, sweep_run(control, agent_class, task, control_grid))
    rows = sweep_run(config, agent_class, task, grid)
    shown += with_label(config, rows)
    updates = f"{config.offline_steps:,} updates" + (f", {config.online_steps:,} online" if config.online_steps else "")
    print(f"\n{config.task} ({task.identity['source']}), {updates}, seed {config.seed}\n")
    folder = run_path(config)
    print(write_report(rows, folder, task, shown))
    figures = [folder / name for name in ("learning_curve.png", "greediness.png") if (folder / name).exists()]
    print("figures:", *figures)


def sweep_run(config: Any, agent_class: type, task: Task, grid: Dict[str, list]) -> List[dict]:
    """The rows of the sweep of a finished run's agent."""
    agent = load_agent(agent_class, run_path(config), algorithm_name(config)).to(choose_device(config.device))
    return sweep(agent, task, config, grid, config.eval_episodes)


def with_label(config: Any, rows: List[dict]) -> List[dict]:
    """The rows, each with the run's label as `policy`."""
    return [{"policy": label_of(config), **row} for row in rows]
