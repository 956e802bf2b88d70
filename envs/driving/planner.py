"""Plans that need no learning: constant velocity, a rule-based planner like NAVSIM's PDM-Closed, and perturbed copies.

The planner follows PDM-Closed (Dauner et al., CoRL 2023; NAVSIM's pdm_closed_planner.py): 15 proposals along the
route, five fractions of the speed limit times three lateral offsets, each driven by the intelligent driver model behind
whoever is ahead under a constant-velocity forecast; the best by the score under that forecast is chosen. It is not
PDM-Closed itself: paths start on the route instead of blending into it, and there is no emergency brake.
"""

from dataclasses import replace

import numpy as np

from envs.driving.scene import FUTURE_STEPS, Scene, project
from envs.driving.score import pdms_of, relative_progress, score
from envs.driving.vehicle import DT, KNOT_STEPS, KNOTS, LENGTH, REAR_AXLE_TO_CENTRE, STEPS, WIDTH, to_frame, wrap

SPEED_FRACTIONS = (0.2, 0.4, 0.6, 0.8, 1.0)
LATERAL_OFFSETS = (0.0, -1.0, 1.0)  # metres from the centreline, in that order of preference
MAX_ACCELERATION, MAX_DECELERATION = 1.5, 3.0  # of the driver model, m/s^2
HEADWAY, MIN_GAP, EXPONENT = 1.5, 1.0, 4.0  # seconds, metres
FRONT = REAR_AXLE_TO_CENTRE + LENGTH / 2
SPEED_SCALE_STD, SPEED_SLOPE_STD, LATERAL_STD = 0.22, 0.25, 1.3  # of perturbations; the last in metres after 4 s
KNOT_TIMES = DT * KNOT_STEPS * np.arange(1, KNOTS + 1)


class Path:
    """A polyline [m, 2] with headings, at any arc length and lateral offset; straight on beyond its ends."""

    def __init__(self, line: np.ndarray):
        steps = np.diff(line, axis=0)
        lengths = np.hypot(steps[:, 0], steps[:, 1])
        self.line, self.arc = line, np.concatenate([[0.0], np.cumsum(lengths)])
        headings = np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))
        self.middles, self.headings = (self.arc[:-1] + self.arc[1:]) / 2, headings

    def heading_at(self, arc: np.ndarray) -> np.ndarray:
        """Headings [...] at arc lengths [...], linear between the middles of the segments."""
        return np.interp(arc, self.middles, self.headings)

    def poses(self, arc: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Poses [..., 3] at arc lengths [...] and lateral offsets [...], positive to the left."""
        inside = np.clip(arc, 0.0, self.arc[-1])
        heading = self.heading_at(arc)
        cos, sin, beyond = np.cos(heading), np.sin(heading), arc - inside
        x = np.interp(inside, self.arc, self.line[:, 0]) + beyond * cos - offset * sin
        y = np.interp(inside, self.arc, self.line[:, 1]) + beyond * sin + offset * cos
        return np.stack([x, y, heading], axis=-1)


def forecast(scene: Scene) -> np.ndarray:
    """The scene's agents [51, n, 4] if each kept its velocity from step 0 on; what is not known then stays absent."""
    now = np.where(scene.known[:, None], scene.agents[0], np.nan)
    seconds = DT * np.arange(FUTURE_STEPS)[:, None]
    future = np.repeat(now[None], FUTURE_STEPS, axis=0)
    future[..., 0] += seconds * now[:, 3] * np.cos(now[:, 2])
    future[..., 1] += seconds * now[:, 3] * np.sin(now[:, 2])
    return future


def constant_velocity(scene: Scene) -> np.ndarray:
    """The plan [8, 3] straight ahead at the present speed."""
    plan = np.zeros((KNOTS, 3))
    plan[:, 0] = scene.ego[3] * KNOT_TIMES
    return plan


def along_route(scene: Scene) -> np.ndarray:
    """The plan [8, 3] along the route at the present speed and distance from the centreline."""
    path = Path(scene.centreline)
    arc, _ = project(scene.pose[:2], scene.centreline)
    middle = path.poses(arc, np.zeros(()))
    offset = to_frame(scene.pose, middle)[1]
    arcs = arc + np.maximum(scene.ego[3], 0.0) * KNOT_TIMES
    return to_frame(path.poses(arcs, np.full(KNOTS, offset)), scene.pose)


def proposals(scene: Scene) -> np.ndarray:
    """The 15 plans [15, 8, 3], in the ego's frame; the full speed limit without offset is number 4."""
    path, agents = Path(scene.centreline), forecast(scene)
    offsets = np.repeat(LATERAL_OFFSETS, len(SPEED_FRACTIONS))
    targets = np.tile(SPEED_FRACTIONS, len(LATERAL_OFFSETS)) * scene.speed_limit
    rear, ahead_speed, lateral, reach = _along_path(path, agents, scene.size)
    near = np.abs(lateral[:, None] - offsets[:, None]) <= reach[:, None] + WIDTH / 2  # [51, 15, n]
    start, _ = project(scene.pose[:2], scene.centreline)
    arc, speed = np.full(len(targets), start), np.full(len(targets), max(scene.ego[3], 0.0))
    arcs = []
    for step in range(STEPS):
        gap = rear[step] - (arc[:, None] + FRONT)
        leading = near[step] & (rear[step] + LENGTH > arc[:, None] + REAR_AXLE_TO_CENTRE)
        gap = np.where(leading, gap, np.inf)
        acceleration = _driver_model(speed, targets, gap, ahead_speed[step])
        arc = arc + DT * speed
        speed = np.maximum(speed + DT * acceleration, 0.0)
        arcs.append(arc)
    knots = np.stack(arcs[KNOT_STEPS - 1 :: KNOT_STEPS], axis=1)
    return to_frame(path.poses(knots, offsets[:, None]), scene.pose)


def _along_path(path: Path, agents: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, ...]:
    """Agents [51, n, 4] as seen from the path, each [51, n]: arc length of the rear end, speed along the path, lateral
    offset of the centre, half the extent across the path. What is absent is infinitely far ahead."""
    arc, _ = project(agents[..., :2], path.line)
    heading = path.heading_at(arc)
    base = path.poses(arc, np.zeros_like(arc))
    lateral = -(agents[..., 0] - base[..., 0]) * np.sin(heading) + (agents[..., 1] - base[..., 1]) * np.cos(heading)
    cos, sin = np.cos(agents[..., 2] - heading), np.sin(agents[..., 2] - heading)
    along = (np.abs(cos) * size[:, 0] + np.abs(sin) * size[:, 1]) / 2
    across = (np.abs(sin) * size[:, 0] + np.abs(cos) * size[:, 1]) / 2
    absent = np.isnan(agents[..., 0])
    return tuple(
        np.where(absent, value, found)
        for value, found in ((np.inf, arc - along), (0.0, agents[..., 3] * cos), (np.inf, lateral), (0.0, across))
    )


def _driver_model(speed: np.ndarray, target: np.ndarray, gap: np.ndarray, ahead_speed: np.ndarray) -> np.ndarray:
    """Accelerations [P] of the intelligent driver model (Treiber et al., 2000) for gaps [P, n] to agents [n]."""
    closing = speed[:, None] * (speed[:, None] - ahead_speed) / (2 * np.sqrt(MAX_ACCELERATION * MAX_DECELERATION))
    desired = MIN_GAP + np.maximum(speed[:, None] * HEADWAY + closing, 0.0)
    interaction = ((desired / np.maximum(gap, 0.1)) ** 2).max(axis=1, initial=0.0)
    acceleration = MAX_ACCELERATION * (1 - (speed / target) ** EXPONENT - interaction)
    return np.clip(acceleration, -MAX_DECELERATION, MAX_ACCELERATION)


def choose(scene: Scene, plans: np.ndarray) -> int:
    """Which of plans [B, 8, 3] scores best among them if all agents keep their velocities; the first of equals."""
    scores = score(replace(scene, agents=forecast(scene), reference_progress=0.0), plans)
    multiplier = scores.no_collision * scores.drivable_area
    best = float((scores.raw_progress * multiplier).max())  # progress is measured by the best of the plans
    progress = relative_progress(scores.raw_progress, multiplier, best)
    return int(np.argmax(pdms_of(multiplier, progress, scores.time_to_collision, scores.comfort)))


def perturb(plans: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Plans [B, 8, 3] driven at another speed that changes over time, drifting to one side quadratically in time."""
    knots = np.concatenate([np.zeros((len(plans), 1, 3)), plans], axis=1)
    factor = 1 + SPEED_SCALE_STD * generator.standard_normal((len(plans), 1))
    slope = SPEED_SLOPE_STD * generator.standard_normal((len(plans), 1))
    drift = LATERAL_STD * generator.standard_normal((len(plans), 1))
    part = KNOT_TIMES / KNOT_TIMES[-1]
    lengths = np.hypot(*np.moveaxis(np.diff(knots[..., :2], axis=1), -1, 0))
    rates = np.maximum(factor + slope * part, 0.0)
    arcs = np.cumsum(rates * lengths, axis=1)
    moved = np.stack([_resample(knots[index], arcs[index]) for index in range(len(knots))])
    offset = drift * part**2
    turn = np.arctan2(np.diff(offset, axis=1, prepend=0.0), np.maximum(np.diff(arcs, axis=1, prepend=0.0), 1.0))
    moved[..., 0] -= offset * np.sin(moved[..., 2])
    moved[..., 1] += offset * np.cos(moved[..., 2])
    moved[..., 2] = wrap(moved[..., 2] + turn)
    return moved


def _resample(knots: np.ndarray, arc: np.ndarray) -> np.ndarray:
    """Poses [8, 3] of the plan with knots [9, 3] at arc lengths [8], straight on beyond its end."""
    lengths = np.hypot(*np.diff(knots[:, :2], axis=0).T)
    total = np.concatenate([[0.0], np.cumsum(lengths)])
    poses = np.stack([np.interp(arc, total, column) for column in (*knots[:, :2].T, np.unwrap(knots[:, 2]))], axis=-1)
    beyond = np.maximum(arc - total[-1], 0.0)
    poses[:, 0] += beyond * np.cos(poses[:, 2])
    poses[:, 1] += beyond * np.sin(poses[:, 2])
    return poses
