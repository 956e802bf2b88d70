"""Return against greediness of a trained run, evaluated at each omega without training again.

    python -m examples.greediness_sweep runs/dipole/exorl/local_sticky_random/cartpole_swingup/seed_0

Without a folder it trains the short run of examples/custom_task.py below runs/ first. `python -m harness.evaluate` does
the same for every act option, with a table, intervals and a figure; this is what it comes down to.
"""

import os
import sys
from pathlib import Path

from algorithms.dipole import DIPOLE
from common.errors import exit_on_user_error
from envs import load_task
from examples import custom_task
from harness.evaluation import GRID_SEED, evaluate
from harness.run_folder import load_agent, load_run

EPISODES = 20


def main() -> None:
    os.environ.setdefault("DIPOLE_SUITES", "own=examples.custom_task")
    if len(sys.argv) > 1:
        run_dir = Path(sys.argv[1])
    else:
        custom_task.main()
        run_dir = Path("runs/custom_task/own/reach/seed_0")

    _, run, _ = load_run(run_dir)
    agent = load_agent(DIPOLE, run_dir, "dipole")
    task = load_task(run.task, run.data_dir)
    for label, score in task.reference_scores().items():
        print(f"{label}: {score:.2f}")
    for greediness in (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0):  # -1: the negative policy alone
        options = {"greediness": greediness, "num_candidates": 1}
        result = evaluate(agent, task.make_env, EPISODES, GRID_SEED, **options)  # the same episodes for every omega
        score = result.scores(task.score_name).mean()
        print(f"greediness {greediness:4}: {task.score_name} {score:.2f}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
