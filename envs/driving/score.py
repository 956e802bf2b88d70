"""The PDM score of plans in a scene: sub-scores and their composition, by NAVSIM's version 1 formula.

PDMS = NC DAC (5 EP + 5 TTC + 2 C) / 12, with no at-fault collision (NC), drivable area compliance (DAC), ego progress
(EP), time to collision (TTC) and comfort (C). Rules: NAVSIM's pdm_scorer.py, branch v1.1 (Apache-2.0), written anew
from their definition. `epdms` combines the terms of version 2, which a scene alone does not give. All are in [0, 1].
"""

from dataclasses import dataclass
from typing import Mapping

import numpy as np

from envs.driving.boxes import corners, overlap
from envs.driving.comfort import comfort_verdicts
from envs.driving.scene import Scene, project
from envs.driving.vehicle import (
    A_Y,
    DT,
    HEADING,
    LENGTH,
    REAR_AXLE_TO_CENTRE,
    V_X,
    V_Y,
    WIDTH,
    X,
    Y,
    initial_state,
    simulate,
    wrap,
)

STOPPED_SPEED = 0.05  # m/s, of ego and agents
AHEAD, BEHIND = np.deg2rad(30.0), np.deg2rad(150.0)  # bearings from the rear axle
STATIC_SCORE = 0.5  # NC after hitting a static object
TTC_OFFSETS = np.array([0, 3, 6, 9])  # steps that the ego is moved ahead
TTC_STOPPED_SPEED = 0.005  # m/s
TTC_LAST_STEP = {1: 40, 2: 31}  # by NAVSIM's version
PROGRESS_THRESHOLD = 5.0  # metres; where the better of the pair made no more, progress is full
MULTIPLIERS = (  # of EPDMS, by the columns of NAVSIM's result files
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "traffic_light_compliance",
)
WEIGHTS = {"ego_progress": 5.0, "time_to_collision_within_bound": 5.0, "lane_keeping": 2.0, "history_comfort": 2.0}
TWO_FRAMES, TWO_FRAMES_WEIGHT = "two_frame_extended_comfort", 2.0
EGO_SIZE = np.array([LENGTH, WIDTH])
NEVER = -1  # instead of a step


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of B plans, each [B] unless noted.

    collision_step and ttc_step: first step that fails, NEVER where none does; comfort_terms [B, 6] bool;
    raw_progress: metres along the centreline; states [B, 41, 11]: what was simulated.
    """

    no_collision: np.ndarray
    drivable_area: np.ndarray
    time_to_collision: np.ndarray
    comfort: np.ndarray
    progress: np.ndarray
    pdms: np.ndarray
    collision_step: np.ndarray
    ttc_step: np.ndarray
    comfort_terms: np.ndarray
    raw_progress: np.ndarray
    states: np.ndarray


def score(scene: Scene, plans: np.ndarray) -> Scores:
    """Scores of plans [B, 8, 3] in the ego's frame, each scored as the pair {reference planner, plan} of version 1."""
    states = simulate(plans, start_of(scene))
    motion = Motion(scene, states)
    no_collision, collision_step = motion.no_collision()
    drivable_area = 1.0 - motion.off_road.any(axis=1)
    time_to_collision, ttc_step = motion.time_to_collision(TTC_LAST_STEP[1])
    comfort_terms = comfort_verdicts(states)
    comfort = comfort_terms.all(axis=1).astype(np.float64)
    raw_progress = motion.raw_progress()
    multiplier = no_collision * drivable_area
    progress = relative_progress(raw_progress, multiplier, scene.reference_progress)
    return Scores(
        no_collision=no_collision,
        drivable_area=drivable_area,
        time_to_collision=time_to_collision,
        comfort=comfort,
        progress=progress,
        pdms=pdms_of(multiplier, progress, time_to_collision, comfort),
        collision_step=collision_step,
        ttc_step=ttc_step,
        comfort_terms=comfort_terms,
        raw_progress=raw_progress,
        states=states,
    )


def pdms_of(multiplier: np.ndarray, progress: np.ndarray, ttc: np.ndarray, comfort: np.ndarray) -> np.ndarray:
    """PDMS [B] of NC times DAC, EP, TTC and C."""
    return multiplier * (5 * progress + 5 * ttc + 2 * comfort) / 12


def start_of(scene: Scene) -> np.ndarray:
    """The state [11] in which simulations of the scene start."""
    start = initial_state(scene.pose, *scene.ego[3:])
    if scene.lateral is not None:
        start[[V_Y, A_Y]] = scene.lateral
    return start


def progress_of(motion: "Motion") -> np.ndarray:
    """Raw progress [B] times the multipliers NC and DAC: of the reference planner, a scene's reference_progress."""
    return motion.raw_progress() * motion.no_collision()[0] * (1.0 - motion.off_road.any(axis=1))


def relative_progress(raw: np.ndarray, multiplier: np.ndarray, reference: float) -> np.ndarray:
    """EP [B] of version 1: raw progress times multiplier over the larger of it and the reference's."""
    own = raw * multiplier
    best = np.maximum(own, reference)
    near = (multiplier > 0).astype(np.float64)
    return np.where(best > PROGRESS_THRESHOLD, own / np.maximum(best, PROGRESS_THRESHOLD), near)


def epdms(terms: Mapping[str, np.ndarray]) -> np.ndarray:
    """EPDMS [...] in [0, 1] of its terms [...] by the names of NAVSIM's columns; further ones are ignored.

    NC DAC DDC TLC (5 EP + 5 TTC + 2 LK + 2 HC) / 14, as version 2 scores one frame; with TWO_FRAMES among the terms
    (... + 2 EC) / 16, as its scripts do in the end. Raises KeyError where a term is missing. The human filter sets
    terms to 1 before: where the human driver's are 0.
    """
    weights = {**WEIGHTS, TWO_FRAMES: TWO_FRAMES_WEIGHT} if TWO_FRAMES in terms else WEIGHTS
    multiplier = np.prod([terms[name] for name in MULTIPLIERS], axis=0)
    weighted = sum(weight * np.asarray(terms[name]) for name, weight in weights.items())
    return multiplier * weighted / sum(weights.values())


class Motion:
    """Simulated states [B, 41, 11] in a scene, with what several sub-scores need of them."""

    def __init__(self, scene: Scene, states: np.ndarray):
        self.scene = scene
        self.axle = states[..., [X, Y, HEADING]]
        self.speed = np.hypot(states[..., V_X], states[..., V_Y])
        heading = states[..., HEADING]
        self.forward = np.stack([np.cos(heading), np.sin(heading)], axis=-1)  # [B, 41, 2]
        self.centre = self._ahead(np.float64(REAR_AXLE_TO_CENTRE))
        self.corners = corners(self.centre, LENGTH, WIDTH)  # [B, 41, 4, 2]
        self.off_road = ~scene.road.drivable_at(self.corners).all(axis=-1)
        self.ignored = scene.collided  # [n]
        if self.ignored is None:  # all plans start in the same place
            overlapping = overlap(self.centre[:, :1], EGO_SIZE, scene.agents[0, :, :3], scene.size)
            self.ignored = overlapping.any(axis=0)

    def _ahead(self, distance: np.ndarray) -> np.ndarray:
        """Poses [B, 41, 3] at `distance`, a number or [B, 41], before the rear axle."""
        moved = self.axle.copy()
        moved[..., :2] += distance[..., None] * self.forward
        return moved

    def _wide(self, plan: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Whether the ego is in several lanes or off the road in these plans and steps [E]."""
        return self.off_road[plan, step] | self.scene.road.several_lanes(self.corners[plan, step])

    def _bearing(self, plan: np.ndarray, step: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Angles [...] in [0, pi] between the ego's heading and the direction from its rear axle to points [..., 2]."""
        axle = self.axle[plan, step]
        direction = np.arctan2(points[..., 1] - axle[..., 1], points[..., 0] - axle[..., 0])
        return np.abs(wrap(direction - axle[..., 2]))

    def _contacts(self, poses: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Whether ego boxes of centre poses [B, K, 3] overlap agent n at steps `times` [K]: [B, K, n] bool."""
        agents, size = self.scene.agents[times], self.scene.size
        reach = np.hypot(*EGO_SIZE) / 2 + np.hypot(size[:, 0], size[:, 1]) / 2
        offset_x, offset_y = poses[..., None, 0] - agents[..., 0], poses[..., None, 1] - agents[..., 1]
        near = (offset_x**2 + offset_y**2 <= reach**2) & ~self.ignored
        plan, event, agent = np.nonzero(near)
        near[plan, event, agent] = overlap(poses[plan, event], EGO_SIZE, agents[event, agent, :3], size[agent])
        return near

    def no_collision(self) -> tuple[np.ndarray, np.ndarray]:
        """NC [B] in {0, 0.5, 1} and the step [B] of the first at-fault collision. Each agent's first contact decides.

        At fault is the moving ego that hits what was stopped when first seen, or, of what is not behind it, touches
        with its front edge or while it is in several lanes or off the road.
        """
        scene = self.scene
        steps = np.arange(self.axle.shape[1])
        contacts = self._contacts(self.centre, steps)
        plan, agent = np.nonzero(contacts.any(axis=1))
        step = contacts[plan, :, agent].argmax(axis=-1)
        present = ~np.isnan(scene.agents[..., 0])
        first_speed = scene.agents[present.argmax(axis=0), np.arange(len(scene.size)), 3]
        stopped = (np.abs(first_speed) <= STOPPED_SPEED) | scene.static
        front = self._ahead(np.float64(REAR_AXLE_TO_CENTRE + LENGTH / 2))[plan, step]
        poses = scene.agents[step, agent, :3]
        front_hits = overlap(front, EGO_SIZE * [0.0, 1.0], poses, scene.size[agent])
        behind = self._bearing(plan, step, poses) > BEHIND
        at_fault = stopped[agent] | (~behind & (front_hits | self._wide(plan, step)))
        at_fault &= self.speed[plan, step] > STOPPED_SPEED
        plan, agent, step = plan[at_fault], agent[at_fault], step[at_fault]
        result = np.ones(len(self.axle))
        np.minimum.at(result, plan, np.where(scene.static[agent], STATIC_SCORE, 0.0))
        return result, _first(plan, step, len(result))

    def time_to_collision(self, last_step: int) -> tuple[np.ndarray, np.ndarray]:
        """TTC [B] in {0, 1} over steps 0 to `last_step`, and the step [B] that fails first.

        The ego box of a step is moved straight ahead at its speed by up to 0.9 s. Each agent's first overlap decides:
        it fails if the agent is ahead, or not behind while the ego is in several lanes, off the road or in an
        intersection.
        """
        scene = self.scene
        steps = np.repeat(np.arange(last_step + 1), len(TTC_OFFSETS))
        offsets = np.tile(TTC_OFFSETS, last_step + 1)
        moved = self.centre[:, steps]
        moved[..., :2] += (self.speed[:, steps] * offsets * DT)[..., None] * self.forward[:, steps]
        contacts = self._contacts(moved, steps + offsets)
        contacts &= (self.speed[:, steps] >= TTC_STOPPED_SPEED)[..., None]
        plan, agent = np.nonzero(contacts.any(axis=1))
        event = contacts[plan, :, agent].argmax(axis=-1)
        step = steps[event]
        bearing = self._bearing(plan, step, scene.agents[step + offsets[event], agent, :2])
        wide = self._wide(plan, step) | scene.road.intersection_at(self.axle[plan, step, :2])
        fails = (bearing < AHEAD) | (wide & (bearing <= BEHIND))
        result = np.ones(len(self.axle))
        result[plan[fails]] = 0.0
        return result, _first(plan[fails], step[fails], len(result))

    def raw_progress(self) -> np.ndarray:
        """Metres [B] along the centreline from the box centre's start to its end, not negative."""
        arc, _ = project(self.centre[:, [0, -1], :2], self.scene.centreline)
        return np.maximum(arc[:, 1] - arc[:, 0], 0.0)


def _first(plan: np.ndarray, step: np.ndarray, plans: int) -> np.ndarray:
    """The smallest step of each plan [plans], NEVER where it has none; plan and step [E] list them."""
    unset = np.iinfo(np.int64).max
    first = np.full(plans, unset)
    np.minimum.at(first, plan, step)
    return np.where(first == unset, NEVER, first)
