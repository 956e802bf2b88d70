"""A sweep: one agent evaluated at every cell of a grid of act options, on the same episodes, a row for each."""

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from envs.task import Task
from harness.act_options import cells_of
from harness.agent_tools import network_evaluations
from harness.config import RunConfig
from harness.evaluation import GRID_SEED, EvaluationResult, Evaluator
from harness.score_statistics import interval


def sweep(
    agent: Any,
    task: Task,
    run: RunConfig,
    grid: dict[str, list],
    episodes: int | None = None,
    environments: int | None = None,
    workers: int | None = None,
) -> list[dict]:
    """Evaluates every cell of the grid on the same episodes; returns a row of plain values for each.

    A row holds first all act options, then the task's score (mean), its <score>_low and <score>_high (bootstrap
    interval of the mean; NaN for a single episode) and <score>_std over episodes, length, episodes and
    network_evaluations per action, and normalized_return (D4RL's score of the mean return) where the task has one.
    episodes (each different one once at most), environments and workers default to the run's.
    """
    episodes = episodes or task.episodes(run.eval_episodes)
    environments = min(environments or run.eval_environments, episodes)
    workers = run.eval_workers if workers is None else workers
    defaults = {name: getattr(agent.config, name) for name in agent.act_options}
    rows = []
    with Evaluator(task.make_env, environments, workers) as evaluator:
        for cell in tqdm(cells_of(grid), desc="grid", leave=False, disable=None):
            options = {**defaults, **cell}
            result = evaluator.evaluate(agent, episodes, GRID_SEED, **options)
            rows.append(result_row(agent, task, options, result))
    return rows


def result_row(agent: Any, task: Task, options: dict, result: EvaluationResult) -> dict:
    """The row of `sweep` for one evaluation with these act options."""
    scores = result.scores(task.score_name)
    nothing = agent.noise.like.new_zeros(1, task.observation_dim)
    low, high = interval([scores])
    normalized = task.normalized_return(float(result.returns.mean()))
    return {
        **options,
        task.score_name: float(scores.mean()),
        f"{task.score_name}_low": low,
        f"{task.score_name}_high": high,
        f"{task.score_name}_std": float(scores.std()),
        "length": float(result.lengths.mean()),
        "episodes": len(scores),
        "network_evaluations": int(network_evaluations(agent, nothing, **options)),
        **({} if normalized is None else {"normalized_return": normalized}),
    }


def option_names(rows: Sequence[Mapping], score_name: str) -> list[str]:
    """The act options of a sweep's rows: the columns before the score."""
    names = list(rows[0])
    return names[: names.index(score_name)]
