"""How long the runs of a comparison will take, by a short measurement of each variant at its real size."""

import dataclasses
import heapq
import math
import time
from typing import Any, Callable, Dict, Mapping, Sequence, Tuple

from envs.task import Task
from harness.comparison.matrix import Comparison, PlannedRun
from harness.comparison.progress import duration, read_progress, total_updates
from harness.comparison.reevaluation import is_complete, missing_cells
from harness.devices import choose_device, seeded_generator, set_up_torch
from harness.measurement.rates import rate, waiting_for

MEASURED_SECONDS = 0.5  # of updates of one variant, and of each kind of action


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds that the parts of a variant's run took when measured."""

    start: float  # of a process, with its imports and the data
    update: float
    cells: Tuple[float, ...]  # an evaluation with each cell of act options, the run's own first


# ---- The short measurement ----


def measure(run: PlannedRun, cells: Sequence[Dict[str, Any]], task: Task, start: float) -> Cost:
    """A few updates and a few actions of the variant at its real size, and an episode of random actions."""
    config = run.config
    set_up_torch(config)
    device = choose_device(config.device)
    agent = run.variant.load().agent_class(config, task.observation_dim, task.action_dim).to(device)
    dataset = task.dataset.to(device)
    generator = seeded_generator(device, config.seed)
    wait = waiting_for(device)

    def seconds_of(work: Callable[[], Any]) -> float:
        return 1 / rate(work, MEASURED_SECONDS, wait)

    update = seconds_of(lambda: agent.update(dataset.sample(config.batch_size, generator, agent.batch_fields)))
    observations = dataset.observations[: min(config.eval_environments, config.eval_episodes)]
    length, step = episode_cost(task)
    waves = math.ceil(config.eval_episodes / len(observations))
    hosts = max(1, min(config.eval_workers, len(observations)))
    steps = length * (waves * step * len(observations) / hosts)
    acting = [seconds_of(lambda cell=cell: agent.act(observations, **cell)) for cell in cells]
    return Cost(start, update, tuple(steps + waves * length * seconds for seconds in acting))


def episode_cost(task: Task) -> Tuple[int, float]:
    """(length, seconds of a step) of an episode of random actions."""
    environment = task.make_env()
    environment.action_space.seed(0)
    environment.reset(seed=0)
    started, length, ended = time.perf_counter(), 0, False
    while not ended:
        _, _, terminated, truncated, _ = environment.step(environment.action_space.sample())
        length, ended = length + 1, terminated or truncated
    seconds = time.perf_counter() - started
    environment.close()
    return length, seconds / length


# ---- The estimate ----


def estimate_run(run: PlannedRun, cells: Sequence[Dict[str, Any]], cost: Cost) -> float:
    """Seconds that the rest of a run will take."""
    config, progress = run.config, read_progress(run.folder, run.config)
    seconds = cost.start
    if not progress.trained:
        left = total_updates(config) - progress.step
        seconds += left * cost.update + math.ceil(left / config.eval_interval) * cost.cells[0]
    missing = missing_cells(run.folder, list(cells))
    return seconds + sum(each for cell, each in zip(cells, cost.cells, strict=True) if cell in missing)


def estimates(comparison: Comparison, costs: Mapping[Tuple[str, str], Cost]) -> Dict[str, float]:
    """Seconds by name of the runs that are not complete."""
    return {
        run.name: estimate_run(run, comparison.cells(run), costs[run.variant.label, run.category])
        for run in comparison.runs
        if not is_complete(run, comparison.cells(run))
    }


def total_time(seconds: Sequence[float], workers: int) -> float:
    """Seconds on the clock when each worker takes the next run as soon as it is free."""
    free_at = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free_at, free_at[0] + each)
    return max(free_at)


def estimate_table(
    comparison: Comparison,
    seconds: Mapping[str, float],
    costs: Mapping[Tuple[str, str], Cost],
    workers: int,
) -> str:
    """The estimate by variant and category, and the total, as text."""
    lines = [("variant", "category", "runs to do", "updates/s", "an evaluation", "a run", "all of them")]
    for (label, category), cost in costs.items():
        runs = [run for run in comparison.runs if run.variant.label == label and run.category == category]
        each = [seconds[run.name] for run in runs if run.name in seconds]
        if each:
            evaluation = f"{cost.cells[0]:.1f} s"
            lines.append(
                (label, category, f"{len(each)} of {len(runs)}", f"{1 / cost.update:.0f}", evaluation)
                + (duration(sum(each) / len(each)), duration(sum(each)))
            )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = "\n".join(
        "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )
    total = duration(total_time(list(seconds.values()), workers))
    return f"{text}\nabout {total} with {workers} workers, if the machine has nothing else to do"
