"""The table of driving on, in highway-env's traffic: two planners without learning, and runs.

python -m harness.driving.closed_loop --data_dir DIR --episodes 20 --run RUN_DIR

prints collisions at fault, rate of leaving the road, route progress, comfort and time. Needs requirements-driving.txt.
"""

from pathlib import Path
from typing import Callable, Dict, Optional, Sequence

import numpy as np
from tqdm import tqdm

from common.errors import CommandParser, exit_on_user_error
from envs.driving.bandit import load_data
from envs.driving.closed_loop import MAX_PLANS, Drive
from envs.driving.collect import data_folder, read_sidecar
from envs.driving.planner import along_route, choose, constant_velocity, proposals
from envs.driving.scene import Scene
from envs.driving.vehicle import DT, KNOT_STEPS
from harness.driving.policies import Policy


def rule_based(scene: Scene) -> np.ndarray:
    """The plan [8, 3] that the rule-based planner chooses."""
    plans = proposals(scene)
    return plans[choose(scene, plans)]


def drive(folder: Path, seed: int, planner: Callable[[Scene], np.ndarray]) -> Dict[str, float]:
    """One episode of `planner`: collision and off_road (0 or 1), progress in metres, comfort share, seconds."""
    episode, steps = Drive(folder, seed), []
    while len(steps) < MAX_PLANS:
        steps.append(episode.step(planner(episode.scene())))
        if steps[-1]["collision"] or steps[-1]["off_road"] or steps[-1]["arrived"]:
            break
    judged = [step["comfortable"] for step in steps if "comfortable" in step]
    return {
        "collision": float(steps[-1]["collision"]),
        "off_road": float(steps[-1]["off_road"]),
        "progress": sum(step["progress"] for step in steps),
        "comfort": float(np.mean(judged)) if judged else float("nan"),
        "seconds": len(steps) * KNOT_STEPS * DT,
    }


def _policy_planner(folder: Path, run: Path) -> Callable[[Scene], np.ndarray]:
    policy = Policy(run)
    policy.check_scenes(folder)
    data = load_data(folder, policy.kind)

    def plan(scene: Scene) -> np.ndarray:
        return policy.plans(data, data.observe(scene)[None], along_route(scene)[None])[0]

    return plan


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = CommandParser("python -m harness.driving.closed_loop", __doc__)
    parser.add_argument("--data_dir", help="folder of the set, as the task's")
    parser.add_argument("--run", type=Path, action="append", default=[], help="a run's folder; may be repeated")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=10_000, help="of episode i: seed + i; even ones are roundabouts")
    with exit_on_user_error():
        options = parser.parse_args(arguments)
        folder = data_folder(options.data_dir)
        read_sidecar(folder)
        planners = {"constant velocity": constant_velocity, "PDM-Closed-like planner": rule_based}
        planners |= {str(run): _policy_planner(folder, run) for run in options.run}
        print("| planner | collision at fault | off road | metres | comfort | seconds |\n|---|---|---|---|---|---|")
        for label, planner in planners.items():
            seeds = tqdm(range(options.seed, options.seed + options.episodes), desc=label, disable=None, leave=False)
            episodes = [drive(folder, seed, planner) for seed in seeds]
            columns = {name: np.array([episode[name] for episode in episodes]) for name in episodes[0]}
            judged = columns["comfort"][~np.isnan(columns["comfort"])]
            cells = (
                f"{100 * columns['collision'].mean():.0f} %",
                f"{100 * columns['off_road'].mean():.0f} %",
                f"{columns['progress'].mean():.0f}",
                f"{100 * judged.mean():.0f} %" if len(judged) else "none",  # no episode of 4 s
                f"{columns['seconds'].mean():.1f}",
            )
            print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
