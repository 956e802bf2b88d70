"""The table at the end of a run that asks for one: the data, behaviour cloning, the method and its act options."""

import dataclasses
from pathlib import Path
from typing import Any

from envs.task import Task
from harness.evaluate import format_table, parse_grid, reference_lines, sweep, write_report
from harness.run_folder import run_path


def report(config: Any, agent_class: type, task: Task, folder: Path) -> None:
    """Sweeps the act options that `final_report` names and prints the table, under that of a control run.

    The control is a run of the same budget with the config changes of the agent class's `control` (behaviour cloning
    for DIPOLE), trained here where it is missing; an option that it sets itself is not swept for it. All cells share
    episode seeds, which training's evaluations do not use. Raises UserError for an option that the agent has not.
    """
    from harness.run import run  # here: run.py calls this module

    grid = parse_grid(config.final_report, agent_class, config)
    control = getattr(agent_class, "control", None)
    if control is not None:
        control_config = dataclasses.replace(config, **control, final_report=())
        print(f"control: {control_config.label}, the same budget of updates")
        run(control_config, agent_class(control_config, task.observation_dim, task.action_dim), task)
        control_grid = {name: values for name, values in grid.items() if name not in control}
        control_agent = agent_class.load(run_path(control_config))
        control_rows = sweep(control_agent, task, control_config, control_grid, config.eval_episodes)
    rows = sweep(agent_class.load(folder), task, config, grid, config.eval_episodes)
    text = write_report(rows, folder, task)

    print(f"\n{config.task} ({task.identity['source']}), {config.offline_steps:,} updates, seed {config.seed}")
    for label, score in reference_lines(task).items():
        print(f"{label} {task.score_name} {score:.1f}")
    if control is not None:
        print(f"\n{control_config.label}\n{format_table(control_rows, task.score_name)}")
    print(f"\n{folder.relative_to(config.run_dir).parts[0]}\n{text}")
    print(f"figures: {folder / 'learning_curve.png'} {folder / 'greediness.png'}")
