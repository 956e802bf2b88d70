"""One run of a comparison, in a process of its own: the training, then the re-evaluations of its final checkpoint.

workers.py starts `python -m harness.comparison.planned_run NAME` with a pickled (PlannedRun, cells) on stdin. The
process stops as at SIGTERM, with a checkpoint, when stdin is closed: so it does not outlive the one that started it.
"""

import os
import pickle
import signal
import sys
import threading
from typing import Any, Dict, List

from common.errors import exit_on_user_error
from envs import load_task
from harness.comparison.matrix import PlannedRun
from harness.comparison.reevaluation import reevaluate
from harness.run import run


def complete_run(planned: PlannedRun, cells: List[Dict[str, Any]]) -> None:
    """Trains and re-evaluates whatever of it is not done yet. Raises UserError."""
    config = planned.config
    task = load_task(config.task, config.data_dir, config.collect_episodes, config.in_memory)
    agent = planned.variant.load().agent_class(config, task.observation_dim, task.action_dim)
    run([agent], task)
    reevaluate(planned, cells, task)


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
