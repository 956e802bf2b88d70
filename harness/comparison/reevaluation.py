"""A planned run's reevaluation.csv: its final checkpoint evaluated at other act options, a line for each."""

import csv
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional

from tqdm import tqdm

from common.files import write_rows_csv
from envs.task import Task
from harness import run_files
from harness.comparison.matrix import PlannedRun
from harness.devices import choose_device
from harness.evaluation import EVALUATION_SEED, Evaluator
from harness.run_folder import RunFolder, is_finished, load_agent


def read_reevaluation(folder: Path) -> List[Dict[str, str]]:
    """The lines of a run's reevaluation.csv as text by column; empty where there is none yet."""
    path = folder / run_files.REEVALUATION
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def find_cell(lines: Iterable[Dict[str, str]], cell: Dict[str, Any]) -> Optional[Dict[str, str]]:
    """The line of reevaluation.csv that was evaluated with exactly these act options, None where there is none."""
    wanted = {name: str(value) for name, value in cell.items()}
    return next((line for line in lines if wanted.items() <= line.items()), None)


def current_lines(folder: Path) -> List[Dict[str, Any]]:
    """The lines of reevaluation.csv, none where they are of an older checkpoint."""
    path, checkpoint = folder / run_files.REEVALUATION, folder / run_files.CHECKPOINT
    if path.exists() and checkpoint.exists() and path.stat().st_mtime_ns < checkpoint.stat().st_mtime_ns:
        return []
    return read_reevaluation(folder)


def missing_cells(folder: Path, cells: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """The cells that reevaluation.csv does not hold; all of them where the checkpoint is newer than that file."""
    lines = current_lines(folder)
    return [cell for cell in cells if find_cell(lines, cell) is None]


def is_complete(planned: PlannedRun, cells: List[Dict[str, Any]]) -> bool:
    return is_finished(planned.folder) and not missing_cells(planned.folder, cells)


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
                write_rows_csv(lines, folder / run_files.REEVALUATION)
                options = ", ".join(f"{name} {value}" for name, value in cell.items())
                print(f"{folder}: {task.score_name} {line['score']} with {options or 'no act options'}", flush=True)
