"""Evaluates a finished run's agent at cells of act options: the second half of a comparison's run.

    python -m harness.comparison.reevaluation RUN_DIR --act greediness=0.0,num_candidates=1 --act greediness=1.0

writes a line for each --act into the run's reevaluation.csv (options that are left out are the run's own), and the
single episodes into episodes.csv. Cells that are there are left alone; a run that is trained on has none.
"""

import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import CommandParser, UserError, exit_on_user_error, one_line
from common.files import locked, write_rows_csv
from envs.task import Task
from harness import run_files
from harness.agent_tools import own_options
from harness.comparison.matrix import Cell, PlannedRun
from harness.devices import choose_device, set_up_torch
from harness.episodes import add_episodes
from harness.evaluate import evaluate_cell
from harness.evaluation import EVALUATION_SEED, Evaluator
from harness.grid import parse_grid
from harness.run_folder import busy, finished_result, load_agent, load_run, load_trained_task


def read_reevaluation(folder: Path) -> list[dict[str, str]]:
    """The lines of a run's reevaluation.csv as text by column; empty where there is none yet."""
    path = folder / run_files.REEVALUATION
    try:
        lines = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines())) if path.exists() else []
        for line in lines:
            float(line["score"]), int(line["episodes"])
    except (UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: is damaged ({one_line(error)}); delete it, and the comparison writes it again"
        ) from error
    return lines


def find_cell(lines: Iterable[dict[str, str]], cell: Cell) -> dict[str, str] | None:
    """The line of reevaluation.csv that was evaluated with exactly these act options, None where there is none."""
    wanted = {name: str(value) for name, value in cell.items()}
    return next((line for line in lines if wanted.items() <= line.items()), None)


def missing_cells(folder: Path, cells: list[Cell]) -> list[Cell]:
    """The cells that reevaluation.csv does not hold."""
    lines = read_reevaluation(folder)
    return [cell for cell in cells if find_cell(lines, cell) is None]


def is_complete(run: PlannedRun, cells: list[Cell]) -> bool:
    """Whether the run has made all planned updates and holds all cells."""
    return finished_result(run.folder, run.run.total_updates) is not None and not missing_cells(run.folder, cells)


def reevaluate(folder: Path, cells: list[Cell], task: Task | None = None) -> None:
    """Evaluates the final checkpoint at the missing cells, on the episodes of training's own evaluations.

    So the cell of the run's own options repeats the run's last evaluation, and two cells differ by their options, not
    by their episodes. Each line is written at once; a score has the nine digits that it has in eval.csv. Raises
    UserError for a folder without a run, and where the data are other ones by now.
    """
    algorithm, run, config = load_run(folder)
    cells = missing_cells(folder, cells)
    if not cells:
        print(f"{folder}: every cell is evaluated")
        return
    set_up_torch(run)
    task = task or load_trained_task(folder, run)
    with locked(folder / run_files.LOCK, busy(folder)):
        lines: list[dict[str, Any]] = read_reevaluation(folder)
        agent = load_agent(algorithm.agent_class, folder, algorithm.name).to(choose_device(run.device))
        episodes = task.episodes(run.eval_episodes)
        environments = min(run.eval_environments, episodes)
        with Evaluator(task.make_env, environments, run.eval_workers) as evaluator:
            for cell in tqdm(cells, desc="re-evaluation", unit="cell", disable=None):
                done = evaluate_cell(agent, evaluator, cell, episodes, EVALUATION_SEED)
                scores = done.result.scores(task.score_name)
                line = cell | {"score": f"{scores.mean():.9g}", "score_std": f"{scores.std():.9g}"}
                line |= {"episodes": episodes, "network_evaluations": done.network_evaluations}
                lines.append(line)
                add_episodes(folder, cell, done.result, EVALUATION_SEED)
                write_rows_csv(lines, folder / run_files.REEVALUATION)
                options = ", ".join(f"{name} {value}" for name, value in cell.items())
                print(f"{folder}: {task.score_name} {line['score']} with {options or 'no act options'}", flush=True)


def main() -> None:
    parser = CommandParser("python -m harness.comparison.reevaluation", __doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path)
    parser.add_argument("--act", action="append", metavar="OPTION=VALUE,...", required=True, help="a cell, repeatable")
    with exit_on_user_error():
        options = parser.parse_args(sys.argv[1:])
        algorithm, _, config = load_run(options.run_dir)
        own = own_options(algorithm.agent_class, config)
        cells = []
        for text in options.act:
            grid = parse_grid([part for part in text.split(",") if part], algorithm.agent_class, config)
            cells.append(own | {name: values[0] for name, values in grid.items()})
        reevaluate(options.run_dir, cells)


if __name__ == "__main__":
    main()
