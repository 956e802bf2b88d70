"""Evaluates a run's checkpoint anew over a grid of act options, such as DIPOLE's greediness: no retraining is needed.

    python -m harness.evaluate RUN_DIR --greediness 0 0.5 1 2 4 --num_candidates 1 32 --episodes 50

The flags that take several values are the options of the agent's own `act`; an option left out is the run's. All cells
of the grid use the same episode seeds, which training's evaluations do not use. A table is printed, and greediness.csv
and greediness.png are written to the run folder (evaluation.csv for an agent without greediness). --video_episodes n
adds videos/seed_<n>.mp4 of the first n episodes at the first value of every option.
"""

import argparse
import dataclasses
import inspect
import itertools
import sys
from pathlib import Path
from typing import Any, Optional, Sequence

import numpy as np
from tqdm import tqdm

from envs import load_task
from envs.errors import UserError, exit_on_user_error
from envs.files import make_folder, write_rows_csv
from harness.algorithms import Algorithm, load_algorithm
from harness.command_line import CommandParser, decode_flag, load_config, nearest_field
from harness.devices import choose_device, set_up_torch
from harness.evaluation import GRID_SEED, EvaluationResult, Evaluator
from harness.plots import option_names, plot_sweep
from harness.run_folder import load_agent, read_json
from harness.statistics import CONFIDENCE, interval
from harness.video import check_graphics, choose_graphics, log_videos, record

REQUIRED_FILES = ("environment.json", "config.yaml", "checkpoint.pt")


# ---- The grid ----


def act_options(agent: Any, config: Any) -> tuple[str, ...]:
    """Names of the options of `agent.act` (agent or agent class): its parameters that are also fields of the config."""
    fields = {field.name for field in dataclasses.fields(config)}
    return tuple(name for name in inspect.signature(agent.act).parameters if name in fields)


def parse_grid(assignments: Sequence[str], agent: Any, config: Any) -> dict[str, list]:
    """{option: values} of assignments such as ("greediness=0,1", "num_candidates=1,16"), typed as in the config.

    Raises UserError for an option that the agent has not, a value of the wrong type and one that the config refuses.
    """
    options = act_options(agent, config)
    grid: dict[str, list] = {}
    for assignment in assignments:
        name, equals, values = assignment.partition("=")
        if name not in options:
            raise _unknown_option(name, options)
        if not equals or name in grid:
            raise UserError(f"act option {assignment!r}: write each option once, as {name}=value,value")
        grid[name] = list(dict.fromkeys(_decode(name, value.strip(), config) for value in values.split(",")))
    for cell in _cells(grid):
        try:
            dataclasses.replace(config, **cell)
        except ValueError as error:
            raise UserError(f"act options: {error}") from error
    return grid


def _decode(name: str, text: str, config: Any) -> Any:
    """The value that `--name text` has on a training command line."""
    try:
        return decode_flag(type(config), name, text)
    except UserError as error:
        raise UserError(f"act option {name}={text}: {str(error).removeprefix('command line: --')}") from error


def _unknown_option(name: str, options: Sequence[str]) -> UserError:
    known = ", ".join(options) if options else "none"
    meant = nearest_field(name, options)
    advice = f"; did you mean {meant}?" if meant else ""
    return UserError(f"{name} is not an option of this agent's act, which has: {known}{advice}")


def _cells(grid: dict[str, list]) -> list[dict]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


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
        for cell in tqdm(_cells(grid), desc="grid", leave=False, disable=None):
            options = {**defaults, **cell}
            result = evaluator.evaluate(agent, episodes, GRID_SEED, **options)
            rows.append(result_row(agent, task, options, result))
    return rows


def result_row(agent: Any, task: Any, options: dict, result: EvaluationResult) -> dict:
    """The row of `sweep` for one evaluation with these act options."""
    scores = result.scores(task.score_name)
    low, high = confidence_interval(scores)
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


def confidence_interval(scores: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of scores [n]; equal scores give equal intervals, one gives NaN."""
    return interval([scores])


# ---- What is shown and written ----


def format_table(rows: Sequence[dict], score_name: str) -> str:
    """The rows of sweeps as an aligned table, with a column for each act option.

    A row may leave columns out, such as a score of the data; the last row has all of them.
    """
    digits = 3 if max(abs(row[score_name]) for row in rows) < 10 else 1
    columns = {name: (f"{{{name}}}", (name,)) for name in option_names(rows[-1:], score_name)}
    columns[score_name] = (f"{{{score_name}:.{digits}f}}", (score_name,))
    low, high, std = (f"{score_name}_{part}" for part in ("low", "high", "std"))
    columns["normalized return"] = ("{normalized_return:.1f}", ("normalized_return",))
    columns[f"{CONFIDENCE:.0%} interval"] = (f"[{{{low}:.{digits}f}}, {{{high}:.{digits}f}}]", (low, high))
    columns["std"] = (f"{{{std}:.{digits}f}}", (std,))
    columns |= {"length": ("{length:.0f}", ("length",)), "episodes": ("{episodes}", ("episodes",))}
    columns["network evaluations"] = ("{network_evaluations}", ("network_evaluations",))
    shown = {title: form for title, form in columns.items() if set(form[1]) <= rows[-1].keys()}
    table = [list(shown)]
    for row in rows:
        table.append([form.format(**row) if set(needed) <= row.keys() else "" for form, needed in shown.values()])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in table)


def greediness_remark(rows: Sequence[dict], score_name: str) -> Optional[str]:
    """One line where greediness was swept and made no clear difference at some setting of the other options."""
    settings: dict[tuple, list[dict]] = {}
    others = [name for name in option_names(rows, score_name) if name != "greediness"]
    for row in rows:
        settings.setdefault(tuple(row[name] for name in others), []).append(row)
    if len({row.get("greediness") for row in rows}) < 2:
        return None
    same = [
        " and ".join(f"{name} {value}" for name, value in zip(others, setting, strict=True))
        for setting, group in settings.items()
        if max(row[f"{score_name}_low"] for row in group) <= min(row[f"{score_name}_high"] for row in group)
    ]
    if not same:
        return None
    where = "" if len(same) == len(settings) else f" at {'; '.join(same)}"
    return f"Greediness makes no clear difference{where}: the {CONFIDENCE:.0%} intervals of its values overlap."


def write_report(rows: Sequence[dict], folder: Path, task: Any, shown: Optional[Sequence[dict]] = None) -> str:
    """Writes a sweep's CSV file, and its figure where greediness was swept; returns a table of `shown` (or rows).

    A sweep of other options writes evaluation.csv, so that the greediness curve in the folder stays.
    """
    sweeps_greediness = len({row.get("greediness") for row in rows}) > 1
    path = folder / ("greediness.csv" if sweeps_greediness else "evaluation.csv")
    write_rows_csv(rows, path)
    if sweeps_greediness:
        plot_sweep(rows, folder / "greediness.png", task.score_name, task.reference_scores())
    remark = greediness_remark(rows, task.score_name)
    return "\n".join(filter(None, [format_table(shown or rows, task.score_name), remark, f"written: {path}"]))


# ---- The command ----


def _parser(options: Sequence[str] = ()) -> argparse.ArgumentParser:
    parser = CommandParser("python -m harness.evaluate", __doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a run folder; with --help, its agent's options are listed")
    for name in options:
        parser.add_argument(f"--{name}", nargs="+", metavar="VALUE", help="act option: values to sweep")
    parser.add_argument("--episodes", type=int, help="of each cell of the grid (default: the run's eval_episodes)")
    parser.add_argument("--environments", type=int, help="rows of the batch (default: the run's)")
    parser.add_argument("--workers", type=int, help="processes that host the environments (default: the run's)")
    parser.add_argument(
        "--video_episodes", type=int, default=0, help="mp4 files to record, at the first value of every act option"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--data_dir", help="folder of the data sets (default: the run's)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: RUN_DIR)")
    return parser


def _parse(argv: Sequence[str], options: Sequence[str]) -> argparse.Namespace:
    arguments, unknown = _parser(options).parse_known_args(argv)
    if unknown and unknown[0].startswith("--"):
        raise _unknown_option(unknown[0].lstrip("-").split("=")[0], options)
    if unknown:
        raise UserError(f"command line: {unknown[0]!r} belongs to no flag; --help lists them")
    for name, smallest in {"episodes": 1, "environments": 1, "workers": 0, "video_episodes": 0}.items():
        value = getattr(arguments, name)
        if value is not None and value < smallest:
            raise UserError(f"command line: --{name} is {value}; it must be at least {smallest}")
    return arguments


def load_run(run_dir: Path) -> tuple[Algorithm, Any]:
    """(algorithm, config) of a run folder. Raises UserError for a folder that holds no run with a checkpoint."""
    if not run_dir.is_dir():
        raise UserError(
            f"{run_dir}: there is no such folder; give the folder of a run, <run_dir>/<label>/<task>/seed_<n>"
        )
    for name in REQUIRED_FILES:
        if not (run_dir / name).is_file():
            raise UserError(f"{run_dir}: holds no {name}; give the folder of a run that has written a checkpoint")
    algorithm = load_algorithm(read_json(run_dir / REQUIRED_FILES[0], needed=("algorithm",))["algorithm"])
    return algorithm, load_config(algorithm.config_class, run_dir / "config.yaml")


def evaluate_command(argv: Sequence[str]) -> None:
    """`main` without the handling of the user's errors. Raises UserError."""
    if not argv or argv[0].startswith("-"):
        _parser().parse_args(argv[:1] if argv[:1] in (["-h"], ["--help"]) else [])
    run_dir = Path(argv[0])
    algorithm, config = load_run(run_dir)
    options = act_options(algorithm.agent_class, config)
    arguments = _parse(argv, options)
    values = {name: getattr(arguments, name) for name in options}
    assignments = [f"{name}={','.join(given)}" for name, given in values.items() if given]
    grid = parse_grid(assignments, algorithm.agent_class, config)

    set_up_torch(config)
    folder = arguments.out or run_dir
    make_folder(folder, "--out")
    agent = load_agent(algorithm.agent_class, run_dir, algorithm.name).to(choose_device(arguments.device))
    if arguments.video_episodes:
        choose_graphics()  # before the task imports MuJoCo, which reads the choice then
    task = load_task(config.task, arguments.data_dir or config.data_dir, 0, config.in_memory)
    if arguments.video_episodes:
        check_graphics()  # before the sweep, which may take long
    episodes = arguments.episodes or config.eval_episodes
    rows = sweep(agent, task, config, grid, episodes, arguments.environments, arguments.workers)
    print(f"{algorithm.name} on {config.task}, {run_dir}")
    print(write_report(rows, folder, task))
    if arguments.video_episodes:
        first_cell = {name: rows[0][name] for name in options}
        paths, _ = record(agent, task.make_env, arguments.video_episodes, folder / "videos", **first_cell)
        print(f"videos of {first_cell or 'the agent'}: {', '.join(map(str, paths))}")
        log_videos(config, run_dir, paths)


def main() -> None:
    with exit_on_user_error():
        evaluate_command(sys.argv[1:])


if __name__ == "__main__":
    main()
