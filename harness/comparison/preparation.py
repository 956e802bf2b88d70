"""What is done before the first run starts: every data set is loaded, and the folders of the runs are checked.

Each data set is loaded in a process of its own, which is gone, with its memory, before a run starts.
"""

import concurrent.futures.process
import multiprocessing
from collections.abc import Collection, Sequence

from tqdm import tqdm

from common.errors import UserError
from harness.comparison.matrix import Comparison, PlannedRun
from harness.run_folder import check_folder, load_run_task


def check_data(comparison: Comparison, restarted: Collection[PlannedRun] = ()) -> list[str]:
    """A line about each data set of the comparison. Raises one UserError for everything that is wrong with them.

    restarted: runs that are to be removed, whatever their folders hold.
    """
    removed = {run.name for run in restarted}
    groups: dict[tuple[str, str | None], list[PlannedRun]] = {}
    for run in comparison.runs:
        groups.setdefault((run.task, run.run.data_dir), []).append(run)
    kept = [[run for run in runs if run.name not in removed] for runs in groups.values()]
    # spawn: a process that was forked would share this one's threads and, on a GPU machine, its CUDA state
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        found = pool.map(inspect_data, [runs[0] for runs in groups.values()], kept)
        try:
            found = list(tqdm(found, total=len(groups), desc="data sets", unit="set", disable=None))
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(f"{comparison.path}: the process that loads data was killed (out of memory?)") from error
    problems = list(dict.fromkeys(problem for own, _ in found for problem in own))
    if problems:
        raise UserError("\n  ".join([f"{comparison.path}: {len(problems)} problems:", *problems][len(problems) == 1 :]))
    return [line for _, line in found]


def inspect_data(first: PlannedRun, runs: Sequence[PlannedRun]) -> tuple[list[str], str]:
    """(problems, a line about the data) of the data set of a run, collecting it where its settings say so.

    The folders of `runs` on it can be written to, and hold the same settings and data where these have begun.
    """
    problems = []
    try:
        task = load_run_task(first.run)
        if task.make_env is None:
            raise UserError(f"{task.name}: has no environment, so that there is no score to compare by")
    except UserError as error:
        return [str(error)], ""
    for run in runs:
        try:
            check_folder(run.run, run.config, task.identity)
        except UserError as error:
            problems.append(str(error))
    source, digest = task.identity["source"], task.identity["sha256"][:12]
    return problems, f"{task.name}: {source}, {len(task.dataset):,} transitions, sha256 {digest}"
