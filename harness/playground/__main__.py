"""Opens a local page on which a run's act options, such as DIPOLE's greediness, are moved and the effect is seen.

    pip install -r requirements-playground.txt
    python -m harness.playground RUN_DIR

The page shows the score of a few episodes at the chosen setting, the video of the first of them, and a table and a
curve of everything tried since the command began. It is served on 127.0.0.1 alone and asks nothing of the internet.
Nothing is written to the run folder: harness.evaluate does that. Ctrl-C ends it.
"""

import argparse
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.errors import CommandParser, UserError, exit_on_user_error
from harness.devices import choose_device
from harness.graphics import NoPictures, check_graphics, choose_graphics
from harness.playground.session import LoadedRun, Session
from harness.run_folder import load_agent, load_run, load_trained_task

PORT = 8090


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m harness.playground", __doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="a run folder with a checkpoint")
    parser.add_argument("--port", type=int, default=PORT, help=f"of the page on 127.0.0.1 (default: {PORT})")
    parser.add_argument("--no-browser", action="store_true", help="only print the page's address")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--data_dir", help="folder of the data sets (default: the run's)")
    return parser.parse_args(argv)


def open_run(run_dir: Path, device: str, data_dir: str | None) -> tuple[LoadedRun, str | None]:
    """The run, and why nothing can be drawn (None if it can). Raises UserError."""
    algorithm, run, config = load_run(run_dir)
    agent = load_agent(algorithm.agent_class, run_dir, algorithm.name).to(choose_device(device))
    choose_graphics()  # before the task imports MuJoCo, which reads the choice then
    task = load_trained_task(run_dir, run, data_dir, draws=True)
    if task.make_env is None:
        raise UserError(f"{run.task}: has no environment to act in")
    no_pictures = None
    try:
        check_graphics()
    except NoPictures as error:
        no_pictures = str(error)
    return LoadedRun(run_dir, algorithm, run, config, agent, task), no_pictures


def playground(argv: Sequence[str]) -> None:
    """`main` without the handling of the user's errors. Raises UserError."""
    arguments = _parse(argv)
    try:
        from harness.playground.page import serve
    except ImportError as error:
        raise UserError("nicegui is not installed; run: pip install -r requirements-playground.txt") from error
    try:
        socket.create_server(("127.0.0.1", arguments.port)).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"command line: --port {arguments.port}: {error}; give another") from error
    run, no_pictures = open_run(arguments.run_dir, arguments.device, arguments.data_dir)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: the folder is removed
    with tempfile.TemporaryDirectory(prefix="playground_") as media:
        serve(Session(run, Path(media), no_pictures), arguments.port, not arguments.no_browser)


def main() -> None:
    with exit_on_user_error():
        playground(sys.argv[1:])


if __name__ == "__main__":
    main()
