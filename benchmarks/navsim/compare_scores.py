"""This scorer on an exported set against NAVSIM v1.1's own, plan by plan: README.md says how to run it.

PYTHONPATH=REPOSITORY NAVSIM_PYTHON -m benchmarks.navsim.compare_scores SET METRIC_CACHE LOGS OUT.npz
"""

import sys
from pathlib import Path

import numpy as np

from envs.driving.navsim_export import Source
from envs.driving.navsim_interface import navsim_module, read_cache
from envs.driving.planner import constant_velocity
from envs.driving.scene_files import read_log
from envs.driving.score import score
from envs.driving.vehicle import KNOTS

NAMES = ("NC", "DAC", "TTC", "C", "EP", "PDMS", "raw progress")
KINDS = ("constant", "human", "reference", "stop", "smooth", "drawn")
SMOOTH = 6  # plans per scene


def navsims(cache, plan, simulator, scorer):
    """([7] by NAMES, states [41, 11], the reference's progress) by NAVSIM, as its pdm_score does it."""
    evaluate = navsim_module("navsim.evaluate.pdm_score")
    enums = navsim_module("navsim.planning.simulation.planner.pdm_planner.utils.pdm_enums")
    start, sampling = cache.ego_state, simulator.proposal_sampling
    path = evaluate.transform_trajectory(navsim_module("navsim.common.dataclasses").Trajectory(plan), start)
    both = [evaluate.get_trajectory_as_array(each, sampling, start.time_point) for each in (cache.trajectory, path)]
    states = simulator.simulate_proposals(np.stack(both), start)
    scores = scorer.score_proposals(
        states, cache.observation, cache.centerline, cache.route_lane_ids, cache.drivable_area_map
    )
    multi, weighted = scorer._multi_metrics, scorer._weighted_metrics[:, 1]
    numbers = [
        multi[enums.MultiMetricIndex.NO_COLLISION, 1],
        multi[enums.MultiMetricIndex.DRIVABLE_AREA, 1],
        weighted[enums.WeightedMetricIndex.TTC],
        weighted[enums.WeightedMetricIndex.COMFORTABLE],
        weighted[enums.WeightedMetricIndex.PROGRESS],
        scores[1],
        scorer._progress_raw[1],
    ]
    return np.array(numbers), states[1], scorer._progress_raw[0] * multi[:, 0].prod()


def ours(scene, plans):
    """([B, 7] by NAMES, states [B, 41, 11]) of plans [B, 8, 3] by this project's scorer."""
    found = score(scene, plans)
    columns = (found.no_collision, found.drivable_area, found.time_to_collision, found.comfort)
    return np.stack([*columns, found.progress, found.pdms, found.raw_progress], axis=-1), found.states


def smooth_plans(scene, generator):
    """Plans [SMOOTH, 8, 3] of a random constant acceleration and curvature with a drift of both."""
    plans = []
    for _ in range(SMOOTH):
        a, b = generator.normal(0, 1.0), generator.normal(0, 0.3)
        k0, k1 = generator.normal(0, 0.02), generator.normal(0, 0.01)
        x = y = heading = 0.0
        speed, knots = max(abs(scene.ego[3]) + generator.normal(0, 0.5), 0.0), []
        for step in range(1, 41):
            time = 0.1 * step
            speed = max(0.0, speed + 0.1 * (a + b * time))
            heading += 0.1 * speed * np.clip(k0 + k1 * time, -0.15, 0.15)
            x, y = x + 0.1 * speed * np.cos(heading), y + 0.1 * speed * np.sin(heading)
            if step % 5 == 0:
                knots.append([x, y, heading])
        plans.append(knots)
    return np.array(plans)


def compare(folder, metric_cache, logs):
    """A row for each plan of each scene of the exported set in `folder`."""
    sampling = navsim_module("nuplan.planning.simulation.trajectory.trajectory_sampling").TrajectorySampling(
        num_poses=40, interval_length=0.1
    )
    planner = "navsim.planning.simulation.planner.pdm_planner"
    simulator = navsim_module(f"{planner}.simulation.pdm_simulator").PDMSimulator(sampling)
    scorer = navsim_module(f"{planner}.scoring.pdm_scorer").PDMScorer(sampling)
    source, generator = Source(metric_cache, logs), np.random.default_rng(3)
    for path in sorted(folder.glob("log_*.npz")):
        part = read_log(path)
        for index, (token, scene) in enumerate(zip(part.tokens, part.scenes)):  # noqa: B905 (Python 3.9)
            cache = read_cache(source.caches, token)
            fixed = [constant_velocity(scene), part.logged_plans[index], part.reference_plans[index]]
            plans = np.concatenate([fixed, np.zeros((1, KNOTS, 3)), smooth_plans(scene, generator), part.plans[index]])
            kinds = [*KINDS[:4], *["smooth"] * SMOOTH, *["drawn"] * len(part.plans[index])]
            mine, states = ours(scene, plans)
            for plan, kind, numbers, driven in zip(plans, kinds, mine, states):  # noqa: B905
                theirs, their_states, reference = navsims(cache, plan, simulator, scorer)
                yield {
                    "token": token,
                    "kind": kind,
                    "plan": plan,
                    "ours": numbers,
                    "navsim": theirs,
                    "state": np.abs(driven - their_states).max(axis=0),
                    "reference": (scene.reference_progress, reference),
                }


def report(rows):
    """Prints how many plans differ in what."""
    mine, theirs, kind = rows["ours"], rows["navsim"], rows["kind"]
    difference = np.abs(mine - theirs)
    print(f"{len(mine)} plans of {len(set(rows['token']))} scenes")
    print("largest difference by state:", np.array2string(rows["state"].max(axis=0), precision=2))
    print("largest difference of the reference progress:", np.abs(np.subtract(*rows["reference"].T)).max())
    for index, name in enumerate(NAMES):
        means = f"mean {mine[:, index].mean():.6f}, NAVSIM's {theirs[:, index].mean():.6f}"
        print(
            f"{name}: {(difference[:, index] > 1e-6).sum()} > 1e-6, largest {difference[:, index].max():.3g}, {means}"
        )
    for name in KINDS:
        chosen = kind == name
        print(f"{name}: {chosen.sum()} plans, PDMS {mine[chosen, 5].mean():.4f}, {theirs[chosen, 5].mean():.4f}")


def main():
    rows = list(compare(*map(Path, sys.argv[1:4])))
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    np.savez_compressed(sys.argv[4], **columns)
    report(columns)


if __name__ == "__main__":
    main()
