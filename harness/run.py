"""What an algorithm's train() calls: runs from their folders' present state to their results and final reports."""

from typing import List, Sequence

import torch

from common.errors import UserError
from envs.task import Task
from harness.devices import set_up_torch
from harness.run_fields import check_run_fields
from harness.run_folder import RunFolder, remove_run, run_path
from harness.training import final_report
from harness.training.control_runs import control_configs, controls_beside
from harness.training.loop import complete


def run(agents: Sequence[torch.nn.Module], task: Task, restart: bool = False) -> List[dict]:
    """Completes the runs of the agents' configs, which differ in the seed only, prints what they ask for; results.

    See `harness.training.loop.complete`. `restart` removes earlier runs first, and their controls. Raises UserError
    for what the user must mend, before anything is removed or trained.
    """
    configs, agent_class = [agent.config for agent in agents], type(agents[0])
    for config in configs:
        check_run_fields(config)
    check_columns(agents[0], task)
    final_report.grid_of(configs[0], agent_class)  # refuses a wrong one now
    controls = control_configs(configs, agent_class)
    if restart:
        for config in [*configs, *controls]:
            remove_run(config)
    for config in [*configs, *controls]:
        RunFolder(config, task.identity)  # refuses another run's folder now instead of after the training
    set_up_torch(configs[0])
    with controls_beside(controls, agent_class, task):
        results = complete(agents, task)
    if configs[0].final_report:
        final_report.report(configs, controls, agent_class, task)
    else:
        for config, result in zip(configs, results, strict=True):
            before = f"{result['offline_score']:.4g} offline, " if config.online_steps else ""
            score = f"{task.score_name} {before}{result['score']:.4g}"
            print(f"{run_path(config)}: {score} after {result['step']} updates")
    return results


def check_columns(agent: torch.nn.Module, task: Task) -> None:
    """Raises UserError where the agent asks for a column that the task's data have not."""
    missing = [name for name in agent.batch_fields if name not in ("next_actions", *task.dataset.columns)]
    if missing:
        known = ", ".join(task.dataset.columns) or "none"
        instead = getattr(agent, "without_column", {}).get(missing[0])
        advice = f" ({instead})" if instead else ""
        raise UserError(
            f"config: these options need the column {missing[0]}, of which the data of {task.name} have {known}: "
            f"choose options that do without it{advice}, or another task"
        )
