"""What is tried with every data set of a comparison before its first run starts: loading it, opening folders, updates.

Each data set is loaded in a process of its own, which is gone, with its memory and GPU context, before a run starts.
"""

import concurrent.futures.process
import dataclasses
import multiprocessing
import time
from typing import Any, Collection, Dict, List, Optional, Sequence, Tuple

import torch
from tqdm import tqdm

from common.errors import UserError
from envs import load_task
from harness.comparison.estimate import Cost, measure
from harness.comparison.matrix import Comparison, PlannedRun
from harness.comparison.problems import noting
from harness.comparison.reevaluation import is_complete
from harness.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class DataCheck:
    """What came of loading one data set."""

    problems: Tuple[str, ...]
    described: str  # one line about the data, empty where they could not be loaded
    costs: Dict[str, Cost]  # by label of the variants that were measured


def check_data(
    comparison: Comparison, threads: int, restarted: Collection[str] = ()
) -> Tuple[List[str], List[str], Dict[Tuple[str, str], Cost]]:
    """(problems, a line about each data set, costs by (label, category)) of all data sets of the comparison.

    A variant is measured on the first task of each category, where it has runs that are not complete. restarted: names
    of the runs that are to be removed, whatever their folders hold.
    """
    groups: Dict[Tuple[str, Optional[str]], List[PlannedRun]] = {}
    for run in comparison.runs:
        groups.setdefault((run.task, run.config.data_dir), []).append(run)
    problems, lines, costs = [], [], {}
    for runs in tqdm(groups.values(), desc="data sets", unit="set", disable=None):
        category = runs[0].category
        measured = [
            (run, comparison.cells(run))
            for run in _one_of_each_variant(
                run for run in runs if run.name in restarted or not is_complete(run, comparison.cells(run))
            )
            if (run.variant.label, category) not in costs
        ]
        opened = [run for run in runs if run.name not in restarted and run.folder.exists()]
        # spawn: a process that was forked would share this one's threads and, on a GPU machine, its CUDA state
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                found = pool.submit(inspect_data, runs[0].config, opened, measured, threads, time.time()).result()
            except concurrent.futures.process.BrokenProcessPool:
                problems.append(f"{runs[0].task}: the process that loaded its data was killed (often: out of memory)")
                continue
        problems += found.problems
        lines += [found.described] if found.described else []
        costs |= {(label, category): cost for label, cost in found.costs.items()}
    return problems, lines, costs


def _one_of_each_variant(runs: Any) -> List[PlannedRun]:
    first: Dict[str, PlannedRun] = {}
    for run in runs:
        first.setdefault(run.variant.label, run)
    return list(first.values())


def inspect_data(
    config: Any,
    opened: Sequence[PlannedRun],
    measured: Sequence[Tuple[PlannedRun, List[Dict[str, Any]]]],
    threads: int,
    submitted: float,
) -> DataCheck:
    """Loads the data set of a config (collecting it where that says so), opens folders of runs on it, measures others.

    submitted: time.time() when the process was asked for, so that the cost of its start can be told.
    """
    torch.set_num_threads(threads)
    problems: List[str] = []
    try:
        task = load_task(config.task, config.data_dir, config.collect_episodes, config.in_memory)
    except UserError as error:
        return DataCheck((str(error),), "", {})
    start = time.time() - submitted
    for run in opened:
        with noting(problems):
            RunFolder(run.config, task.identity)
    identity = task.identity
    described = (
        f"{task.name}: {identity['source']}, {len(task.dataset):,} transitions, sha256 {identity['sha256'][:12]}"
    )
    costs = {run.variant.label: measure(run, cells, task, start) for run, cells in ([] if problems else measured)}
    return DataCheck(tuple(problems), described, costs)
