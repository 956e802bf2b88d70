"""A sweep: one agent evaluated at every cell of a grid of act options, on the same episodes, a row for each."""

from typing import Any, Mapping, Optional, Sequence

from tqdm import tqdm

from harness.act_options import act_options, cells_of
from harness.evaluation import GRID_SEED, EvaluationResult, Evaluator
from harness.score_statistics import interval


def sweep(
    agent: Any,
    task: Any,
    config: Any,
    grid: dict[str, list],
    episodes: int,
    environments: Optional[int] = None,
    workers: Optional[int] = None,
) -> list[dict]:
    """Evaluates every cell of the grid on the same episodes; returns a row of plain values for each.

    A row holds first all act options, then the task's score (mean), its <score>_low and <score>_high (bootstrap
    interval of the mean; NaN for a single episode) and <score>_std over episodes, length, episodes and
    network_evaluations per action, and normalized_return (D4RL's score of the mean return) where the task has one.
    environments and workers default to the config's.
    """
    environments = config.eval_environments if environments is None else environments
    workers = config.eval_workers if workers is None else workers
    defaults = {name: getattr(config, name) for name in act_options(agent, config)}
    rows = []
    with Evaluator(task.make_env, min(environments, episodes), workers) as evaluator:
        for cell in tqdm(cells_of(grid), desc="grid", leave=False, disable=None):
            options = {**defaults, **cell}
            result = evaluator.evaluate(agent, episodes, GRID_SEED, **options)
            rows.append(result_row(agent, task, options, result))
    return rows


def result_row(agent: Any, task: Any, options: dict, result: EvaluationResult) -> dict:
    """The row of `sweep` for one evaluation with these act options."""
    scores = result.scores(task.score_name)
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
        "network_evaluations": agent.network_evaluations(**options),
        **({} if normalized is None else {"normalized_return": normalized}),
    }


def option_names(rows: Sequence[Mapping], score_name: str) -> list[str]:
    """The act options of a sweep's rows: the columns before the score."""
    names = list(rows[0])
    return names[: names.index(score_name)]
