"""Evaluates a trained run over a grid of act options, such as DIPOLE's greediness; nothing is trained.

    python -m harness.evaluate RUN_DIR --greediness 0 0.5 1 2 4 --num_candidates 1 32 --episodes 50

The flags that take several values are the agent's act options; an option left out keeps the run's value. Every cell of
the grid acts in the same episodes, which training does not use, so that cells are compared episode by episode. Prints a
table and writes to the run's folder, named by the first option with several values (evaluation.csv if none has):

    greediness.csv, greediness.png    a row, and a point, for each cell
    episodes.csv                      act options, seed, return, success and length of every episode

--video_episodes n adds mp4 files of the first n episodes at the first value of every option.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import CommandParser, UserError, check_at_least, exit_on_user_error, one_line
from common.files import write_rows_csv
from envs.task import Task
from harness import run_files
from harness.agent_tools import network_evaluations, own_options
from harness.config import RunConfig
from harness.devices import choose_device, set_up_torch
from harness.episodes import add_episodes, read_episodes
from harness.evaluation import GRID_SEED, EvaluationResult, Evaluator
from harness.graphics import check_graphics, choose_graphics
from harness.grid import cells_of, parse_grid
from harness.plots import plot_sweep
from harness.run_folder import load_agent, load_run, load_trained_task
from harness.score_statistics import CONFIDENCE, interval, paired_interval
from harness.video import record

# ---- Sweeps ----


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """What an agent did with these act options: episodes seed, seed + 1, ..., and what an action cost."""

    options: dict[str, Any]
    seed: int
    result: EvaluationResult
    network_evaluations: int  # per action


def sweep(
    agent: Any,
    task: Task,
    run: RunConfig,
    grid: Mapping[str, list],
    episodes: int | None = None,
) -> list[Cell]:
    """Evaluates the agent at every cell of the grid, all on the same episodes, by default the run's number of them.

    That takes each different one once at most; more may be asked for, and is said.
    """
    episodes = task.episodes(run.eval_episodes) if episodes is None else episodes
    if episodes > task.episodes(episodes):
        print(f"{run.task} has {task.different_episodes} different episodes: intervals of {episodes} are too narrow")
    own = own_options(type(agent), agent.config)
    with Evaluator(task.make_env, min(run.eval_environments, episodes), run.eval_workers) as evaluator:
        return [
            evaluate_cell(agent, evaluator, own | cell, episodes)
            for cell in tqdm(cells_of(grid), desc="grid", leave=False, disable=None)
        ]


def evaluate_cell(agent: Any, evaluator: Evaluator, options: dict, episodes: int, seed: int = GRID_SEED) -> Cell:
    """One cell, with all of the agent's act options."""
    result = evaluator.evaluate(agent, episodes, seed, **options)
    return Cell(options, seed, result, network_evaluations(agent, **options))


def swept_option(cells: Sequence[Cell]) -> str | None:
    """The first act option with several values, None if there is none."""
    names = cells[0].options
    return next((name for name in names if len({cell.options[name] for cell in cells}) > 1), None)


def rows_of(cells: Sequence[Cell], task: Task) -> list[dict]:
    """A row of plain values for each cell.

    Columns: the act options; the task's score (mean over episodes), <score>_low and _high (95% bootstrap interval of
    the mean; NaN for one episode) and _std over episodes; length, episodes, network_evaluations per action;
    normalized_return if the task has one; and for a swept option difference, difference_low and _high: the mean
    difference, episode by episode, from the cell with the option's first value and the same other options.
    """
    name, swept = task.score_name, swept_option(cells)
    rows = []
    for cell in cells:
        scores = cell.result.scores(name)
        low, high = interval([scores])
        row = cell.options | {name: float(scores.mean()), f"{name}_low": low, f"{name}_high": high}
        row |= {f"{name}_std": float(scores.std()), "length": float(cell.result.lengths.mean())}
        row |= {"episodes": len(scores), "network_evaluations": cell.network_evaluations}
        normalized = task.normalized_return(float(cell.result.returns.mean()))
        row |= {} if normalized is None else {"normalized_return": normalized}
        if swept is not None:
            same_others = (each for each in cells if each.options | {swept: None} == cell.options | {swept: None})
            first = next(same_others).result.scores(name)
            low, high = paired_interval(scores, first)
            row |= {"difference": float((scores - first).mean()), "difference_low": low, "difference_high": high}
        rows.append(row)
    return rows


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


# ---- What a sweep prints and writes ----


def format_table(cells: Sequence[Cell], task: Task, label: str) -> str:
    """The data's own scores and the cells' as an aligned table, below a line of what all cells have in common."""
    rows, score, swept = rows_of(cells, task), task.score_name, swept_option(cells)
    digits = 3 if max(abs(row[score]) for row in rows) < 10 else 1
    same = {name: value for name, value in cells[0].options.items() if len({row[name] for row in rows}) == 1}
    common = _shown(same | {"episodes": rows[0]["episodes"], "first seed": f"{cells[0].seed:,}"})

    def columns(row: dict) -> dict[str, str]:
        texts = {"policy": label} | {name: str(row[name]) for name in cells[0].options if name not in same}
        texts[score] = f"{row[score]:.{digits}f}"
        if "normalized_return" in row:
            texts["normalized return"] = f"{row['normalized_return']:.1f}"
        texts[f"{CONFIDENCE:.0%} interval"] = f"[{row[f'{score}_low']:.{digits}f}, {row[f'{score}_high']:.{digits}f}]"
        if swept is not None:
            low, high = (f"{row[f'difference_{end}']:.{digits}f}" for end in ("low", "high"))
            is_first = row[swept] == cells[0].options[swept]
            difference = "" if is_first else f"{row['difference']:+.{digits}f} [{low}, {high}]"
            texts[f"minus {swept} {cells[0].options[swept]}"] = difference
        return texts | {
            "std": f"{row[f'{score}_std']:.{digits}f}",
            "length": f"{row['length']:.0f}",
            "network evaluations": f"{row['network_evaluations']:g}",
        }

    shown = [columns(row) for row in rows]
    data = [{"policy": name, score: f"{value:.{digits}f}"} for name, value in task.reference_scores().items()]
    table = [list(shown[0])] + [[line.get(title, "") for title in shown[0]] for line in data + shown]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in table]
    return "\n".join([common, *lines])


def show_and_write(cells: Sequence[Cell], task: Task, run: RunConfig, folder: Path) -> None:
    """Prints the table of a sweep and writes its files to `folder`."""
    rows, swept = rows_of(cells, task), swept_option(cells)
    paths = [folder / (f"{swept}.csv" if swept else run_files.SWEEP), folder / run_files.EPISODES]
    write_rows_csv(rows, paths[0])
    for cell in cells:
        add_episodes(folder, cell.options, cell.result, cell.seed)
    if swept is not None:
        paths.append(folder / f"{swept}.png")
        others = [name for name in cells[0].options if name != swept]
        title = f"{run.label} on {run.task}, seed {run.seed}"
        plot_sweep(rows, paths[-1], task.score_name, task.reference_scores(), swept, others, title)
    print(format_table(cells, task, run.label))
    print(f"written: {', '.join(map(str, paths))}")


def sweep_after_training(agent: Any, run: RunConfig, config: Any, task: Task, folder: Path) -> list[Cell]:
    """Sweeps the act options that `run.sweep` names with the trained agent; prints the table, writes to the folder."""
    grid = parse_grid(run.sweep, type(agent), config)
    print(f"evaluating {run.label} at {len(cells_of(grid))} settings: {', '.join(run.sweep)}", flush=True)
    cells = sweep(agent, task, run, grid)
    updates = f"{run.offline_steps:,} updates" + (f", {run.online_steps:,} online" if run.online_steps else "")
    print(f"\n{run.task} ({task.identity['source']}), {updates}, seed {run.seed}")
    show_and_write(cells, task, run, folder)
    if (folder / run_files.LEARNING_CURVE).exists():
        print(f"learning curve: {folder / run_files.LEARNING_CURVE}")
    return cells


# ---- The command ----


def _parser(options: Sequence[str] = ()) -> argparse.ArgumentParser:
    parser = CommandParser("python -m harness.evaluate", __doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a run folder; with --help, its agent's options are listed")
    for name in options:
        parser.add_argument(f"--{name}", nargs="+", metavar="VALUE", help="act option: values to sweep")
    parser.add_argument("--episodes", type=int, help="of each cell of the grid (default: the run's eval_episodes)")
    parser.add_argument(
        "--video_episodes", type=int, default=0, help="mp4 files to record, at the first value of every act option"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--data_dir", help="folder of the data, if the environment is in it (default: the run's)")
    return parser


def evaluate_command(argv: Sequence[str]) -> None:
    """`main` without the handling of the user's errors. Raises UserError."""
    if not argv or argv[0].startswith("-"):
        _parser().parse_args([flag for flag in argv[:1] if flag in ("-h", "--help")])  # the help, or what is missing
    run_dir = Path(argv[0])
    algorithm, run, config = load_run(run_dir)
    arguments = _parser(algorithm.agent_class.act_options).parse_args(argv)
    check_at_least(arguments, episodes=1, video_episodes=0)
    given = {name: getattr(arguments, name) for name in algorithm.agent_class.act_options}
    assignments = [f"{name}={','.join(values)}" for name, values in given.items() if values]
    grid = parse_grid(assignments, algorithm.agent_class, config)

    if not os.access(run_dir, os.W_OK):
        raise UserError(f"{run_dir}: cannot be written to, where the results go; copy the folder and evaluate the copy")
    read_episodes(run_dir)  # refuses a damaged file now instead of after the evaluation
    set_up_torch(run)
    agent = load_agent(algorithm.agent_class, run_dir, algorithm.name).to(choose_device(arguments.device))
    draws = arguments.video_episodes > 0
    if draws:
        choose_graphics()  # before the task imports MuJoCo, which reads the choice then
    task = load_trained_task(run_dir, run, arguments.data_dir, draws)
    if task.make_env is None:
        raise UserError(f"{run.task}: has no environment to evaluate in")
    if draws:
        check_graphics()  # before the sweep, which may take long
    try:
        cells = sweep(agent, task, run, grid, arguments.episodes)
    except FloatingPointError as error:  # an act option that is too large, of an agent whose training was checked
        raise UserError(f"{run_dir}: {one_line(error)}") from error
    print(f"{algorithm.name} on {run.task}, {run_dir}")
    show_and_write(cells, task, run, run_dir)
    if draws:
        options = cells[0].options
        paths, _ = record(agent, task.make_env, arguments.video_episodes, run_dir / "videos", **options)
        print(f"videos of {_shown(options) or 'the agent'}: {', '.join(map(str, paths))}")


def main() -> None:
    with exit_on_user_error():
        evaluate_command(sys.argv[1:])


if __name__ == "__main__":
    main()
