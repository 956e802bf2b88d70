"""Evaluates a run's checkpoint anew over a grid of act options, such as DIPOLE's greediness: no retraining is needed.

    python -m harness.evaluate RUN_DIR --greediness 0 0.5 1 2 4 --num_candidates 1 32 --episodes 50

The flags that take several values are the options of the agent's own `act`; an option left out is the run's. All cells
of the grid use the same episode seeds, which training's evaluations do not use. A table is printed, and greediness.csv
and greediness.png are written to the run folder (evaluation.csv where greediness is not swept). --video_episodes n
adds videos/seed_<n>.mp4 of the first n episodes at the first value of every option.
"""

import argparse
import sys
from pathlib import Path
from typing import Sequence

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import make_folder
from harness.act_options import parse_grid, unknown_option
from harness.devices import choose_device, set_up_torch
from harness.graphics import check_graphics, choose_graphics
from harness.run_folder import load_agent, load_run, load_trained_task
from harness.sweep_report import sweep_and_report
from harness.video import log_videos, record


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
    parser.add_argument("--data_dir", help="folder of the data, if the environment is in it (default: the run's)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: RUN_DIR)")
    return parser


def _parse(argv: Sequence[str], options: Sequence[str]) -> argparse.Namespace:
    arguments, unknown = _parser(options).parse_known_args(argv)
    if unknown and unknown[0].startswith("--"):
        raise unknown_option(unknown[0].lstrip("-").split("=")[0], options)
    if unknown:
        raise UserError(f"command line: {unknown[0]!r} belongs to no flag; --help lists them")
    for name, smallest in {"episodes": 1, "environments": 1, "workers": 0, "video_episodes": 0}.items():
        value = getattr(arguments, name)
        if value is not None and value < smallest:
            raise UserError(f"command line: --{name} is {value}; it must be at least {smallest}")
    return arguments


def evaluate_command(argv: Sequence[str]) -> None:
    """`main` without the handling of the user's errors. Raises UserError."""
    if not argv or argv[0].startswith("-"):
        _parser().parse_args(argv[:1] if argv[:1] in (["-h"], ["--help"]) else [])
    run_dir = Path(argv[0])
    algorithm, run, config = load_run(run_dir)
    options = algorithm.agent_class.act_options
    arguments = _parse(argv, options)
    values = {name: getattr(arguments, name) for name in options}
    assignments = [f"{name}={','.join(given)}" for name, given in values.items() if given]
    grid = parse_grid(assignments, algorithm.agent_class, config)

    set_up_torch(run)
    agent = load_agent(algorithm.agent_class, run_dir, algorithm.name).to(choose_device(arguments.device))
    draws = bool(arguments.video_episodes)
    if draws:
        choose_graphics()  # before the task imports MuJoCo, which reads the choice then
    task = load_trained_task(run_dir, run, arguments.data_dir, draws)
    if task.make_env is None:
        raise UserError(f"{run.task}: has no environment to evaluate in")
    if draws:
        check_graphics()  # before the sweep, which may take long
    folder = arguments.out or run_dir
    make_folder(folder, "--out")
    sizes = arguments.episodes, arguments.environments, arguments.workers
    rows = sweep_and_report(agent, task, run, grid, folder, *sizes)
    if arguments.video_episodes:
        first_cell = {name: rows[0][name] for name in options}
        paths, _ = record(agent, task.make_env, arguments.video_episodes, folder / "videos", **first_cell)
        print(f"videos of {first_cell or 'the agent'}: {', '.join(map(str, paths))}")
        log_videos(run, run_dir, paths)


def main() -> None:
    with exit_on_user_error():
        evaluate_command(sys.argv[1:])


if __name__ == "__main__":
    main()
