"""This scorer against NAVSIM v1.1's own, plan by plan, on a set that `envs.driving.navsim_export` made.

    NAVSIM_PYTHON -m benchmarks.navsim_scores --set DIR --metric_cache DIR --logs_path DIR

Runs from this repository's folder with the Python of NAVSIM's own environment, as the export did.
"""

from pathlib import Path
from typing import Any, Iterator, Tuple

import numpy as np

from common.errors import CommandParser, exit_on_user_error
from envs.driving.curate import score_matrix
from envs.driving.navsim_export import Source
from envs.driving.navsim_interface import navsim_module, read_cache
from envs.driving.planner import constant_velocity
from envs.driving.scene_files import SCORE_NAMES, read_log
from envs.driving.score import score
from envs.driving.vehicle import DT, KNOTS, STEPS

PLANNER = "navsim.planning.simulation.planner.pdm_planner"


def navsims(cache: Any, plan: np.ndarray, simulator: Any, scorer: Any) -> np.ndarray:
    """The scores [6] by SCORE_NAMES of a plan [8, 3] by NAVSIM, as its pdm_score does it."""
    evaluate = navsim_module("navsim.evaluate.pdm_score")
    enums = navsim_module(f"{PLANNER}.utils.pdm_enums")
    start, sampling = cache.ego_state, simulator.proposal_sampling
    path = evaluate.transform_trajectory(navsim_module("navsim.common.dataclasses").Trajectory(plan), start)
    both = [evaluate.get_trajectory_as_array(each, sampling, start.time_point) for each in (cache.trajectory, path)]
    states = simulator.simulate_proposals(np.stack(both), start)
    scores = scorer.score_proposals(
        states, cache.observation, cache.centerline, cache.route_lane_ids, cache.drivable_area_map
    )
    multiplied, weighted = enums.MultiMetricIndex, enums.WeightedMetricIndex
    factors = scorer._multi_metrics[[multiplied.NO_COLLISION, multiplied.DRIVABLE_AREA], 1]
    terms = scorer._weighted_metrics[[weighted.TTC, weighted.COMFORTABLE, weighted.PROGRESS], 1]
    return np.array([*factors, *terms, scores[1]])


def compare(folder: Path, metric_cache: Path, logs_path: Path) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """(our scores, NAVSIM's) [B, 6] of each scene's own plans, the human's, the reference's, two simple ones."""
    trajectory = navsim_module("nuplan.planning.simulation.trajectory.trajectory_sampling")
    sampling = trajectory.TrajectorySampling(num_poses=STEPS, interval_length=DT)
    simulator = navsim_module(f"{PLANNER}.simulation.pdm_simulator").PDMSimulator(sampling)
    scorer = navsim_module(f"{PLANNER}.scoring.pdm_scorer").PDMScorer(sampling)
    caches = Source(metric_cache, logs_path).caches
    for path in sorted(folder.glob("log_*.npz")):
        part = read_log(path)
        for index, scene in enumerate(part.scenes):
            cache, stop = read_cache(caches, part.tokens[index]), np.zeros((KNOTS, 3))
            fixed = [constant_velocity(scene), stop, part.logged_plans[index], part.reference_plans[index]]
            plans = np.concatenate([fixed, part.plans[index]])
            yield score_matrix(score(scene, plans)), np.stack([navsims(cache, one, simulator, scorer) for one in plans])


def main() -> None:
    parser = CommandParser("python -m benchmarks.navsim_scores", __doc__)
    parser.add_argument("--set", type=Path, required=True, help="folder of the exported set")
    parser.add_argument("--metric_cache", type=Path, required=True, help="as the export's")
    parser.add_argument("--logs_path", type=Path, required=True, help="as the export's")
    with exit_on_user_error():
        options = parser.parse_args()
        scenes = list(compare(options.set, options.metric_cache, options.logs_path))
        ours, theirs = (np.concatenate(each) for each in zip(*scenes))  # noqa: B905 (Python 3.9)
        print(f"{len(ours)} plans of {len(scenes)} scenes")
        for index, name in enumerate(SCORE_NAMES):
            difference = np.abs(ours[:, index] - theirs[:, index])
            print(f"{name}: mean {ours[:, index].mean():.6f}, NAVSIM's {theirs[:, index].mean():.6f}, ", end="")
            print(f"{(difference > 1e-6).sum()} differ by more than 1e-6, the largest by {difference.max():.3g}")


if __name__ == "__main__":
    main()
