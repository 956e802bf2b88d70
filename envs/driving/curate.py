"""From a log to scenes worth learning from, each with scored plans.

As in NAVSIM's curation, scenes that driving straight on solves and scenes that no proposal solves are left out. So are
scenes that begin in a state out of the comfort bounds: highway-env's vehicles turn on the spot where lanes meet at an
angle.
"""

from dataclasses import replace
from typing import List, Optional, Tuple

import numpy as np

from envs.driving.comfort import LOWER, SIGNALS, UPPER
from envs.driving.planner import choose, constant_velocity, perturb, proposals
from envs.driving.scene import FUTURE_STEPS, HISTORY_STEPS, Log, Road, Scene
from envs.driving.scene_files import PLANS, SCORE_NAMES, Entry
from envs.driving.score import Scores, score
from envs.driving.vehicle import KNOT_STEPS, KNOTS, to_frame

# From one scene of a log to the next; most of the intersection's are trivial, so that they are looked for more often.
SCENE_STEPS = {"roundabout": 10, "intersection": 5}
AGENT_RADIUS = 80.0  # metres around the ego
TRIVIAL, SOLVABLE = 0.8, 0.8  # PDMS: constant velocity at most, the best proposal at least
# How often a plan is drawn: the chosen proposal, the logging driver's, each proposal, constant velocity.
CHOSEN_SHARE, LOGGED_SHARE, PROPOSAL_SHARE, CONSTANT_SHARE = 4.0, 4.0, 1.0, 0.3
PERTURBED = 0.7  # share of the plans


def curate(family: str, log: Log, road: Road, generator: np.random.Generator) -> Tuple[List[Entry], List[int]]:
    """(scenes of a log, SCENE_STEPS apart, that are neither trivial nor unsolvable, their steps)."""
    entries, steps = [], []
    for step in range(HISTORY_STEPS[0], len(log.ego) - FUTURE_STEPS + 1, SCENE_STEPS[family]):
        scene = scene_at(log, step, road)
        logged = to_frame(log.ego[step + KNOT_STEPS * np.arange(1, KNOTS + 1), :3], scene.pose)
        entry = _judge(scene, logged, generator)
        if entry is not None:
            entries.append(entry)
            steps.append(step)
    return entries, steps


def scene_at(log: Log, step: int, road: Road) -> Scene:
    """The scene at `step` of a log, with the agents that are then present and near, as long as the log goes on.

    Its reference progress is 0.
    """
    future = log.agents[step : step + FUTURE_STEPS]
    distance = np.hypot(*(future[0, :, :2] - log.ego[step, :2]).T)
    near = distance <= AGENT_RADIUS  # false where absent, NaN
    return Scene(
        road=road,
        ego=log.ego[step],
        history=log.ego[step - np.array(HISTORY_STEPS), :3],
        agents=future[:, near],
        size=log.size[near],
        static=np.zeros(int(near.sum()), bool),
        centreline=log.centreline,
        speed_limit=log.speed_limit,
        reference_progress=0.0,
    )


def _judge(scene: Scene, logged: np.ndarray, generator: np.random.Generator) -> Optional[Entry]:
    """The scene as it is stored, None where it is left out. The generator is drawn from for kept scenes only."""
    if not starts_in_comfort(scene):
        return None
    candidates = np.concatenate([proposals(scene), constant_velocity(scene)[None], logged[None]])
    chosen = choose(scene, candidates[:-2])
    alone = score(scene, candidates[chosen : chosen + 1])
    reference = float((alone.raw_progress * alone.no_collision * alone.drivable_area)[0])
    scene = replace(scene, reference_progress=reference)
    pdms = score(scene, candidates).pdms
    if pdms[-2] > TRIVIAL or pdms[:-2].max() < SOLVABLE:
        return None
    shares = np.full(len(candidates), PROPOSAL_SHARE)
    shares[-2:] = CONSTANT_SHARE, LOGGED_SHARE
    shares[chosen] += CHOSEN_SHARE
    plans = draw_plans(candidates, shares, generator)
    return Entry(scene, plans, score_matrix(score(scene, plans)), logged, candidates[chosen])


def draw_plans(candidates: np.ndarray, shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """PLANS of the candidates [C, 8, 3], each drawn as often as its share [C] says and PERTURBED of them perturbed."""
    plans = candidates[generator.choice(len(candidates), PLANS, p=shares / shares.sum())]
    perturbed = generator.random(PLANS) < PERTURBED
    return np.where(perturbed[:, None, None], perturb(plans, generator), plans)


def starts_in_comfort(scene: Scene) -> bool:
    """Whether acceleration and yaw rate at the start are within the bounds that a plan is judged by."""
    start = {"lon_acc": scene.ego[4], "yaw_rate": scene.ego[6]}
    return all(LOWER[SIGNALS.index(name)] < value < UPPER[SIGNALS.index(name)] for name, value in start.items())


def score_matrix(scores: Scores) -> np.ndarray:
    """[B, 6] by SCORE_NAMES."""
    return np.stack([getattr(scores, name) for name in SCORE_NAMES], axis=-1)
