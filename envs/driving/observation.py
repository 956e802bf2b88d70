"""What a policy sees of a scene: a vector in the ego's frame, and the scaling of such vectors."""

from dataclasses import dataclass

import numpy as np

from envs.driving.planner import Path
from envs.driving.scene import Scene, project
from envs.driving.vehicle import to_frame

POINT_DISTANCES = np.array([2.0, 5.0, 8.0, 12.0, 16.0, 20.0, 25.0, 30.0, 40.0, 50.0, 65.0, 80.0])  # metres of route
AGENTS, AGENT_NUMBERS = 8, 9
PROBES = np.arange(0.5, 8.5, 0.5)  # metres beside the route where the road is looked at
CLIP = 10.0  # standard deviations
OBSERVATION_DIM = 6 + 9 + 3 * len(POINT_DISTANCES) + 2 * len(POINT_DISTANCES) + AGENTS * AGENT_NUMBERS
UNKNOWN_TO_NAVSIM = [2, 3]  # steer and yaw rate, which its logs do not hold: always 0


def observe(scene: Scene) -> np.ndarray:
    """The vector [147], SI units and radians.

    speed, acceleration, steer, yaw rate, speed limit, distance from the centreline; the three past poses; 12 points of
    the centreline 2 to 80 m ahead as x, y, heading; the free width left and right of each, up to 8 m; of the 8 nearest
    agents, in order: present, x, y, cos and sin of the heading, velocity x, y, length, width (zeros where there is
    none).
    """
    path = Path(scene.centreline)
    arc, distance = project(scene.pose[:2], scene.centreline)
    points = path.poses(arc + POINT_DISTANCES, np.zeros(len(POINT_DISTANCES)))
    ego = np.array([*scene.ego[3:], scene.speed_limit, distance])
    parts = (
        ego,
        to_frame(scene.history, scene.pose),
        to_frame(points, scene.pose),
        _free_widths(scene, points),
        _nearest_agents(scene),
    )
    return np.concatenate([part.ravel() for part in parts])


def _free_widths(scene: Scene, points: np.ndarray) -> np.ndarray:
    """Drivable metres [2, P] to the left and right of route poses [P, 3], seen every half metre."""
    across = np.stack([-np.sin(points[:, 2]), np.cos(points[:, 2])], axis=-1)
    offsets = np.array([1.0, -1.0])[:, None, None, None] * PROBES[:, None] * across[:, None]
    drivable = scene.road.drivable_at(points[:, None, :2] + offsets)
    return PROBES[0] * np.cumprod(drivable, axis=-1).sum(axis=-1)


def _nearest_agents(scene: Scene) -> np.ndarray:
    """[8, 9], nearest first."""
    table = np.zeros((AGENTS, AGENT_NUMBERS))
    known = np.flatnonzero(scene.known)
    poses = to_frame(scene.agents[0, known, :3], scene.pose)
    nearest = np.argsort(np.hypot(poses[:, 0], poses[:, 1]), kind="stable")[:AGENTS]
    x, y, heading = poses[nearest].T
    speed, size = scene.agents[0, known[nearest], 3], scene.size[known[nearest]]
    cos, sin = np.cos(heading), np.sin(heading)
    columns = (np.ones(len(nearest)), x, y, cos, sin, speed * cos, speed * sin, *size.T)
    table[: len(nearest)] = np.stack(columns, axis=-1)
    return table


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean and standard deviation [O] of a training set's observations; a constant one is only shifted."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, observations: np.ndarray) -> "Scaling":
        std = observations.std(axis=0)
        return cls(observations.mean(axis=0), np.where(std > 1e-6, std, 1.0))

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Standardised observations [..., O] float32, clipped at CLIP standard deviations."""
        return np.clip((observations - self.mean) / self.std, -CLIP, CLIP).astype(np.float32)
