"""One run of a comparison, in a process of its own: the training, then the re-evaluations of its final checkpoint.

workers.py starts `python -m harness.comparison.planned_run NAME` with a pickled (PlannedRun, cells) on stdin. The
process stops as at SIGTERM, with a checkpoint, when stdin is closed: so it does not outlive the one that started it.
"""

import os
import pickle
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Dict, List

from tqdm import tqdm

from envs import load_task
from envs.errors import exit_on_user_error
from envs.files import write_rows_csv
from envs.task import Task
from harness.comparison.matrix import REEVALUATION, PlannedRun, find_cell, read_reevaluation
from harness.devices import choose_device
from harness.evaluation import EVALUATION_SEED, Evaluator
from harness.run import run
from harness.run_folder import RunFolder, load_agent


def complete_run(planned: PlannedRun, cells: List[Dict[str, Any]]) -> None:
    """Trains and re-evaluates whatever of it is not done yet. Raises UserError."""
    config = planned.config
    task = load_task(config.task, config.data_dir, config.collect_episodes, config.in_memory)
    agent = planned.variant.load().agent_class(config, task.observation_dim, task.action_dim)
    run([agent], task)
    reevaluate(planned, cells, task)


def is_complete(planned: PlannedRun, cells: List[Dict[str, Any]]) -> bool:
    return (planned.folder / "result.json").exists() and not missing_cells(planned.folder, cells)


def missing_cells(folder: Path, cells: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """The cells that reevaluation.csv does not hold; all of them where the checkpoint is newer than that file."""
    return [cell for cell in cells if find_cell(current_lines(folder), cell) is None]


def current_lines(folder: Path) -> List[Dict[str, Any]]:
    """The lines of reevaluation.csv, none where they are of an older checkpoint."""
    path, checkpoint = folder / REEVALUATION, folder / "checkpoint.pt"
    if path.exists() and checkpoint.exists() and path.stat().st_mtime_ns < checkpoint.stat().st_mtime_ns:
        return []
    return read_reevaluation(folder)


def reevaluate(planned: PlannedRun, cells: List[Dict[str, Any]], task: Task) -> None:
    """Evaluates the final checkpoint at the missing cells, on the episodes of training's own evaluations.

    So the cell of the run's own options repeats the run's last evaluation, and the difference between two cells is not
    one of episodes. Each line is written at once. A score has the nine digits that it has in eval.csv.
    """
    config, folder = planned.config, planned.folder
    with RunFolder(config, task.identity).lock():
        missing = missing_cells(folder, cells)
        if not missing:
            return
        lines = current_lines(folder)
        agent_class, algorithm = planned.variant.load().agent_class, planned.variant.algorithm
        agent = load_agent(agent_class, folder, algorithm).to(choose_device(config.device))
        environments = min(config.eval_environments, config.eval_episodes)
        with Evaluator(task.make_env, environments, config.eval_workers) as evaluator:
            for cell in tqdm(missing, desc="re-evaluation", unit="cell", disable=None):
                scores = evaluator.evaluate(agent, config.eval_episodes, EVALUATION_SEED, **cell).scores(
                    task.score_name
                )
                line = {
                    **cell,
                    "score": f"{scores.mean():.9g}",
                    "score_std": f"{scores.std():.9g}",
                    "episodes": config.eval_episodes,
                    "network_evaluations": agent.network_evaluations(**cell),
                }
                lines.append(line)
                write_rows_csv(lines, folder / REEVALUATION)
                options = ", ".join(f"{name} {value}" for name, value in cell.items())
                print(f"{folder}: {task.score_name} {line['score']} with {options or 'no act options'}", flush=True)


def stop_when_closed(descriptor: int) -> None:
    """Sends SIGTERM to this process when the pipe's other end is closed."""
    os.read(descriptor, 1)  # not through sys.stdin, whose lock a thread must not hold when Python ends
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    if sys.stdin.isatty():
        sys.exit("error: harness.compare starts this; run `python -m harness.compare --config FILE --only NAME`")
    planned, cells = pickle.load(sys.stdin.buffer)
    threading.Thread(target=stop_when_closed, args=(sys.stdin.fileno(),), daemon=True).start()
    with exit_on_user_error():
        complete_run(planned, cells)


if __name__ == "__main__":
    main()
