"""The table of driving on, in highway-env's traffic: two planners without learning, and runs.

python -m harness.driving.closed_loop --episodes 20 --run RUN_DIR

prints collisions at fault, rate of leaving the road, route progress, comfort and time. Needs requirements-driving.txt.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import format_rows
from envs.driving.closed_loop import MAX_PLANS, Drive
from envs.driving.planner import choose, constant_velocity, proposals
from envs.driving.scene import Scene
from envs.driving.tasks import is_exported
from envs.driving.vehicle import DT, KNOT_STEPS
from harness.driving.policies import open_runs


def rule_based(scene: Scene) -> np.ndarray:
    """The plan [8, 3] that the rule-based planner chooses."""
    plans = proposals(scene)
    return plans[choose(scene, plans)]


def drive(folder: Path, seed: int, planner: Callable[[Scene], np.ndarray]) -> dict[str, float]:
    """One episode of `planner`: collision and off_road (0 or 1), progress in metres, comfort share, seconds."""
    episode, steps = Drive(folder, seed), []
    while len(steps) < MAX_PLANS:
        steps.append(episode.step(planner(episode.scene())))
        if steps[-1]["collision"] or steps[-1]["off_road"] or steps[-1]["arrived"]:
            break
    return {
        "collision": steps[-1]["collision"],
        "off_road": steps[-1]["off_road"],
        "progress": sum(step["progress"] for step in steps),
        "comfort": pd.Series([step.get("comfortable") for step in steps], dtype=float).mean(),  # NaN before 4 s
        "seconds": len(steps) * KNOT_STEPS * DT,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = CommandParser("python -m harness.driving.closed_loop", __doc__)
    parser.add_argument("--data_dir", help="folder of the set, default the first run's")
    parser.add_argument("--run", type=Path, action="append", default=[], help="a run's folder; may be repeated")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=10_000, help="of episode i: seed + i; even ones are roundabouts")
    with exit_on_user_error():
        options = parser.parse_args(arguments)
        folder, policies = open_runs(options.run, options.data_dir)
        for policy in policies:
            if is_exported(policy.task):
                raise UserError(f"{policy.run_dir}: its task is driving/{policy.task}; NAVSIM's scenes have no traffic")
        planners = {"constant velocity": constant_velocity, "PDM-Closed-like planner": rule_based}
        planners |= {str(policy.run_dir): policy.plan for policy in policies}
        rows = []
        for label, planner in planners.items():
            seeds = tqdm(range(options.seed, options.seed + options.episodes), desc=label, disable=None, leave=False)
            mean = pd.DataFrame([drive(folder, seed, planner) for seed in seeds]).mean()
            rows.append(
                {
                    "planner": label,
                    "collision at fault": f"{mean['collision']:.0%}",
                    "off road": f"{mean['off_road']:.0%}",
                    "metres": f"{mean['progress']:.0f}",
                    "comfort": "none" if np.isnan(mean["comfort"]) else f"{mean['comfort']:.0%}",
                    "seconds": f"{mean['seconds']:.1f}",
                }
            )
        print(format_rows(rows))


if __name__ == "__main__":
    main()
