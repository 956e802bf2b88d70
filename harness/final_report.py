"""The table at the end of a run that asks for one: the data, a control run, the method and its act options."""

import contextlib
import dataclasses
import multiprocessing
import os
from typing import Any, Dict, Iterator, List, Optional, Sequence

import torch

from envs.task import Task
from harness.devices import choose_device, leaves_cores, set_up_torch
from harness.evaluate import parse_grid, sweep, write_report
from harness.loop import complete
from harness.run_folder import algorithm_name, label_of, load_agent, run_path


def check(config: Any, agent_class: type) -> Dict[str, list]:
    """The grid of `final_report`. Raises UserError for an option that the agent has not."""
    return parse_grid(config.final_report, agent_class, config)


def control_configs(configs: Sequence[Any], agent_class: type) -> List[Any]:
    """The configs of the runs' controls, with the changes that the agent class names in `control`; [] without them."""
    changes = getattr(agent_class, "control", None)
    if not configs[0].final_report or changes is None:
        return []
    label = f"{label_of(configs[0])}_{changes['label']}"
    return [dataclasses.replace(config, **(changes | {"label": label}), final_report=()) for config in configs]


@contextlib.contextmanager
def controls_beside(controls: Sequence[Any], agent_class: type, task: Task) -> Iterator[None]:
    """Trains the controls in a process of their own meanwhile, where the machine has the cores for both.

    `report` runs the controls again, which finds them finished or continues them: what goes wrong here shows there.
    """
    if not controls or not leaves_cores(controls[0]):
        yield
        return
    arguments = (controls, agent_class, task)
    process = multiprocessing.get_context("spawn").Process(target=complete_quietly, args=arguments)
    process.start()
    try:
        yield
        if process.is_alive():
            print(f"waiting for the control run in {run_path(controls[0])}", flush=True)
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()


def complete_quietly(configs: Sequence[Any], agent_class: type, task: Task) -> None:
    """Completes the runs of `configs` and prints nothing."""
    set_up_torch(configs[0])
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        complete(new_agents(configs, agent_class, task), task)


def new_agents(configs: Sequence[Any], agent_class: type, task: Task) -> List[torch.nn.Module]:
    return [agent_class(config, task.observation_dim, task.action_dim) for config in configs]


def report(configs: Sequence[Any], agent_class: type, task: Task) -> None:
    """Sweeps the act options that `final_report` names, for the controls too, and prints a table for each seed.

    A control has the same budget of updates and is trained here where it is not yet; an option that it sets itself
    is not swept for it. All cells share episode seeds, which training's evaluations do not use.
    """
    controls = control_configs(configs, agent_class)
    if controls:
        complete(new_agents(controls, agent_class, task), task)
    for index, config in enumerate(configs):
        report_run(config, controls[index] if controls else None, agent_class, task)


def report_run(config: Any, control: Optional[Any], agent_class: type, task: Task) -> None:
    """Prints the table of one finished run and its finished control."""
    grid = check(config, agent_class)
    shown: List[dict] = [{"policy": label, task.score_name: score} for label, score in task.reference_scores().items()]
    if control is not None:
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
