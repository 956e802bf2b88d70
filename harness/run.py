"""What an algorithm's train() calls: a run from its folder's present state to its result and final report."""

from typing import Any

import torch

from envs.errors import UserError
from envs.task import Task
from harness import final_report
from harness.evaluate import parse_grid
from harness.loop import complete
from harness.run_folder import run_path


def run(config: Any, agent: torch.nn.Module, task: Task) -> dict:
    """Completes the run of `config`, prints what it asks for and returns the result (see `harness.loop.complete`)."""
    check_run_fields(config)
    parse_grid(config.final_report, agent, config)  # a wrong option is said before the training
    if config.threads:
        torch.set_num_threads(config.threads)
    with final_report.control_beside(config, type(agent), task):
        result = complete(config, agent, task)
    if config.final_report:
        final_report.report(config, type(agent), task)
    else:
        print(f"{run_path(config)}: {task.score_name} {result['score']:.4g} after {result['step']} updates")
    return result


def check_run_fields(config: Any) -> None:
    """Raises UserError for run fields outside their ranges."""
    counts = ("offline_steps", "log_interval", "checkpoint_interval", "eval_interval", "eval_episodes")
    for field in (*counts, "eval_environments", "batch_size"):
        if getattr(config, field) < 1:
            raise UserError(f"config: {field} is {getattr(config, field)}, it must be at least 1")
    for field in ("seed", "threads", "eval_workers", "collect_episodes"):
        if getattr(config, field) < 0:
            raise UserError(f"config: {field} is {getattr(config, field)}, it must be at least 0")
