"""What is done before the first run starts: every data set is loaded, folders are checked, the time is estimated.

Each data set is loaded in a process of its own, which is gone, with its memory and GPU context, before a run starts.
"""

import concurrent.futures.process
import dataclasses
import heapq
import math
import multiprocessing
import time
from collections.abc import Collection, Mapping, Sequence

import pandas as pd
import torch
from tqdm import tqdm

from common.errors import UserError
from envs.task import Task
from harness.algorithms import load_algorithm
from harness.comparison.matrix import Cell, Comparison, PlannedRun, collecting
from harness.comparison.progress import duration, read_progress
from harness.comparison.reevaluation import is_complete, missing_cells
from harness.devices import choose_device, seeded_generator, set_up_torch
from harness.measurement.rates import rate, waiting_for
from harness.run_folder import check_folder, load_run_task

MEASURED_SECONDS = 0.5  # of updates of one variant, and of each kind of action


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds that the parts of a variant's run took when measured."""

    start: float  # of a process, with its imports and the data
    update: float
    cells: tuple[float, ...]  # an evaluation with each cell of act options, the run's own first


Costs = dict[tuple[str, str], Cost]  # by label of the variant and category


@dataclasses.dataclass(frozen=True)
class DataCheck:
    """The result of checking one data set."""

    problems: list[str]
    described: str  # one line about the data, empty where they could not be loaded
    costs: dict[str, Cost]  # by label of the variants that were measured


def check_data(
    comparison: Comparison, threads: int, restarted: Collection[str] = ()
) -> tuple[list[str], list[str], Costs]:
    """(problems, a line about each data set, costs) of all data sets of the comparison.

    A variant is measured on the first task of each category, where it has runs that are not complete. restarted: names
    of the runs that are to be removed, whatever their folders hold.
    """
    groups: dict[tuple[str, str | None], list[PlannedRun]] = {}
    for run in comparison.runs:
        groups.setdefault((run.task, run.run.data_dir), []).append(run)
    problems, lines, costs = [], [], {}
    for runs in tqdm(groups.values(), desc="data sets", unit="set", disable=None):
        category, measured = runs[0].category, {}
        for run in runs:
            cells, label = comparison.cells(run), run.variant.label
            todo = run.name in restarted or not is_complete(run.folder, cells)
            if todo and label not in measured and (label, category) not in costs:
                measured[label] = (run, cells)
        opened = [run for run in runs if run.name not in restarted and run.folder.exists()]
        # spawn: a process that was forked would share this one's threads and, on a GPU machine, its CUDA state
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                work = pool.submit(inspect_data, runs[0], opened, list(measured.values()), threads, time.time())
                found = work.result()
            except concurrent.futures.process.BrokenProcessPool:
                problems.append(f"{runs[0].task}: the process that loaded its data was killed (often: out of memory)")
                continue
        problems += found.problems
        lines += [found.described] if found.described else []
        costs |= {(label, category): cost for label, cost in found.costs.items()}
    return problems, lines, costs


def inspect_data(
    first: PlannedRun,
    opened: Sequence[PlannedRun],
    measured: Sequence[tuple[PlannedRun, list[Cell]]],
    threads: int,
    submitted: float,
) -> DataCheck:
    """Loads the data set of a run (collecting it where that says so), checks folders of runs on it, measures others.

    submitted: time.time() when the process was asked for, so that the cost of its start can be told.
    """
    torch.set_num_threads(threads)
    try:
        task = load_run_task(first.run)
        if task.make_env is None:
            raise UserError(f"{task.name}: has no environment, so that there is no score to compare by")
    except UserError as error:
        return DataCheck([str(error)], "", {})
    start, problems = time.time() - submitted, []
    for each in opened:
        with collecting(problems):
            check_folder(each.run, each.config, task.identity)
    source, digest = task.identity["source"], task.identity["sha256"][:12]
    described = f"{task.name}: {source}, {len(task.dataset):,} transitions, sha256 {digest}"
    costs = {each.variant.label: measure(each, cells, task, start) for each, cells in ([] if problems else measured)}
    return DataCheck(problems, described, costs)


# ---- The estimate ----


def measure(planned: PlannedRun, cells: Sequence[Cell], task: Task, start: float) -> Cost:
    """A few updates and a few actions of the variant at its real size, and an episode of random actions."""
    run = planned.run
    set_up_torch(run)
    device = choose_device(run.device)
    agent_class = load_algorithm(planned.variant.algorithm).agent_class
    agent = agent_class(planned.config, task.observation_dim, task.action_dim).to(device)
    dataset, generator, wait = task.dataset.to(device), seeded_generator(device, run.seed), waiting_for(device)
    update = rate(
        lambda: agent.update(dataset.sample(run.batch_size, generator, agent.batch_fields)), MEASURED_SECONDS, wait
    )
    observations = dataset.observations[: min(run.eval_environments, run.eval_episodes)]
    length, step = episode_cost(task)
    waves = math.ceil(run.eval_episodes / len(observations))
    hosts = max(1, min(run.eval_workers, len(observations)))
    steps = length * (waves * step * len(observations) / hosts)
    acting = [1 / rate(lambda cell=cell: agent.act(observations, **cell), MEASURED_SECONDS, wait) for cell in cells]
    return Cost(start, 1 / update, tuple(steps + waves * length * seconds for seconds in acting))


def episode_cost(task: Task) -> tuple[int, float]:
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


def estimates(comparison: Comparison, costs: Mapping[tuple[str, str], Cost]) -> dict[str, float]:
    """Seconds by name of the runs that are not complete."""
    seconds = {}
    for run in comparison.runs:
        cells = comparison.cells(run)
        if is_complete(run.folder, cells):
            continue
        cost, progress = costs[run.variant.label, run.category], read_progress(run.folder, run.run)
        left = 0 if progress.trained else progress.total - progress.step
        training = left * cost.update + math.ceil(left / run.run.eval_interval) * cost.cells[0]
        missing = missing_cells(run.folder, cells)
        acting = sum(each for cell, each in zip(cells, cost.cells, strict=True) if cell in missing)
        seconds[run.name] = cost.start + training + acting
    return seconds


def total_time(seconds: Sequence[float], workers: int) -> float:
    """Seconds on the clock when each worker takes the next run as soon as it is free."""
    free_at = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free_at, free_at[0] + each)
    return max(free_at)


def estimate_table(comparison: Comparison, seconds: Mapping[str, float], costs: Costs, workers: int) -> str:
    """The estimate by variant and category, and the total, as text."""
    lines = []
    for (label, category), cost in costs.items():
        runs = [run for run in comparison.runs if (run.variant.label, run.category) == (label, category)]
        each = [seconds[run.name] for run in runs if run.name in seconds]
        if each:
            line = {"variant": label, "category": category, "runs to do": f"{len(each)} of {len(runs)}"}
            line |= {"updates/s": f"{1 / cost.update:.0f}", "an evaluation": f"{cost.cells[0]:.1f} s"}
            lines.append(line | {"a run": duration(sum(each) / len(each)), "all of them": duration(sum(each))})
    total = duration(total_time(list(seconds.values()), workers))
    text = pd.DataFrame(lines).to_string(index=False)
    return f"{text}\nabout {total} with {workers} workers, if the machine has nothing else to do"
