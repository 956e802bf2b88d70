"""The table at the end of a run that asks for one: the data, a control run, the method and its act options."""

from typing import Any, Dict, List, Optional, Sequence

from envs.task import Task
from harness import run_files
from harness.act_options import parse_grid
from harness.devices import choose_device
from harness.run_folder import algorithm_name, label_of, load_agent, run_path
from harness.sweep import sweep
from harness.sweep_report import write_sweep_report


def grid_of(config: Any, agent_class: type) -> Dict[str, list]:
    """The grid of `final_report`. Raises UserError for an option that the agent has not."""
    return parse_grid(config.final_report, agent_class, config)


def report(configs: Sequence[Any], controls: Sequence[Any], agent_class: type, task: Task) -> None:
    """Sweeps the act options that `final_report` names, for the controls too, and prints a table for each seed.

    All runs are finished; there is a control for each config, or none. An option that a control sets itself is not
    swept for it. All cells share episode seeds, which training's evaluations do not use.
    """
    for index, config in enumerate(configs):
        report_run(config, controls[index] if controls else None, agent_class, task)


def report_run(config: Any, control: Optional[Any], agent_class: type, task: Task) -> None:
    """Prints the table of one run and its control."""
    grid = grid_of(config, agent_class)
    shown: List[dict] = [{"policy": label, task.score_name: score} for label, score in task.reference_scores().items()]
    if control is not None:
        control_grid = {name: values for name, values in grid.items() if name not in agent_class.control}
        shown += with_label(control, sweep_run(control, agent_class, task, control_grid))
    rows = sweep_run(config, agent_class, task, grid)
    shown += with_label(config, rows)
    updates = f"{config.offline_steps:,} updates" + (f", {config.online_steps:,} online" if config.online_steps else "")
    print(f"\n{config.task} ({task.identity['source']}), {updates}, seed {config.seed}\n")
    folder = run_path(config)
    print(write_sweep_report(rows, folder, task, shown))
    figures = [folder / name for name in (run_files.LEARNING_CURVE, run_files.GREEDINESS_FIGURE)]
    print("figures:", *(path for path in figures if path.exists()))


def sweep_run(config: Any, agent_class: type, task: Task, grid: Dict[str, list]) -> List[dict]:
    """The rows of the sweep of a finished run's agent."""
    agent = load_agent(agent_class, run_path(config), algorithm_name(config)).to(choose_device(config.device))
    return sweep(agent, task, config, grid, config.eval_episodes)


def with_label(config: Any, rows: List[dict]) -> List[dict]:
    """The rows, each with the run's label as `policy`."""
    return [{"policy": label_of(config), **row} for row in rows]
