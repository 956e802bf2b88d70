"""What an algorithm's train() calls: a run from its folder's present state to its result and final report."""

from typing import Any

import torch

from envs.errors import UserError
from envs.task import Task
from harness import final_report
from harness.loop import complete
from harness.run_fields import check_run_fields
from harness.run_folder import RunFolder, remove_run, run_path


def run(config: Any, agent: torch.nn.Module, task: Task, restart: bool = False) -> dict:
    """Completes the run of `config`, prints what it asks for and returns the result (see `harness.loop.complete`).

    `restart` removes an earlier run first, and its control. Raises UserError for what the user must mend, before
    anything is removed or trained.
    """
    check_run_fields(config)
    check_columns(agent, task)
    agent_class = type(agent)
    final_report.check(config, agent_class)
    control = final_report.control_config(config, agent_class)
    runs = [config] if control is None else [config, control]
    if restart:
        for each in runs:
            remove_run(each)
    for each in runs:
        RunFolder(each, task.identity)  # refuses another run's folder now instead of after the training
    if config.threads:
        torch.set_num_threads(config.threads)
    with final_report.control_beside(config, agent_class, task):
        result = complete(config, agent, task)
    if config.final_report:
        final_report.report(config, agent_class, task)
    else:
        before = f"{result['offline_score']:.4g} offline, " if config.online_steps else ""
        print(f"{run_path(config)}: {task.score_name} {before}{result['score']:.4g} after {result['step']} updates")
    return result


def check_columns(agent: torch.nn.Module, task: Task) -> None:
    """Raises UserError where the agent asks for a column that the task's data have not."""
    missing = [name for name in agent.batch_fields if name not in ("next_actions", *task.dataset.columns)]
    if missing:
        known = ", ".join(task.dataset.columns) or "none"
        raise UserError(
            f"config: these options need the column {missing[0]}, of which the data of {task.name} have {known}: "
            "choose options that do without it (advantage: critic), or another task"
        )
