"""A driving scene as plain arrays: the road, the vehicle at the start, the other road users over 5 s and the route."""

from dataclasses import dataclass
from typing import Optional, Union

import numpy as np

from envs.driving.polygons import PolygonRoad

DRIVABLE = np.uint32(1 << 31)  # bit of a raster's cell; bits 0 to 30 say which lanes cover it
MAX_LANES = 31
HISTORY_STEPS = (15, 10, 5)  # before the scene
FUTURE_STEPS = 51  # of the agents: 0 to 5.0 s, 0.1 s apart
EGO_NAMES = ("x", "y", "heading", "speed", "acceleration", "steer", "yaw_rate")


@dataclass(frozen=True, eq=False)
class Road:
    """A map as a grid, shared by its scenes; a `PolygonRoad` answers the same questions.

    raster [nx, ny] uint32: DRIVABLE and lane bits of a cell; intersection [nx, ny] bool; origin [2]: world x, y of
    cell [0, 0]'s centre, metres; resolution: metres from cell to cell. Outside the grid nothing is drivable.
    """

    raster: np.ndarray
    intersection: np.ndarray
    origin: np.ndarray
    resolution: float

    def lanes_at(self, points: np.ndarray) -> np.ndarray:
        """The raster's bits [...] uint32 at world points [..., 2], 0 outside the grid."""
        return self._at(self.raster, points)

    def drivable_at(self, points: np.ndarray) -> np.ndarray:
        """Whether world points [..., 2] are drivable: [...] bool."""
        return (self.lanes_at(points) & DRIVABLE) > 0

    def lane_at(self, points: np.ndarray) -> np.ndarray:
        """Whether world points [..., 2] are in a lane: [...] bool."""
        return (self.lanes_at(points) & ~DRIVABLE) > 0

    def intersection_at(self, points: np.ndarray) -> np.ndarray:
        """Whether world points [..., 2] are in an intersection: [...] bool."""
        return self._at(self.intersection, points)

    def several_lanes(self, corners: np.ndarray) -> np.ndarray:
        """Whether boxes of corners [..., 4, 2] are in two lanes at least and wholly in none: [...] bool."""
        lanes = self.lanes_at(corners) & ~DRIVABLE
        touched, shared = np.bitwise_or.reduce(lanes, axis=-1), np.bitwise_and.reduce(lanes, axis=-1)
        return ((touched & (touched - np.uint32(1))) != 0) & (shared == 0)

    def _at(self, grid: np.ndarray, points: np.ndarray) -> np.ndarray:
        cells = np.rint((points - self.origin) / self.resolution).astype(np.int64)
        x, y = cells[..., 0], cells[..., 1]
        inside = (x >= 0) & (x < grid.shape[0]) & (y >= 0) & (y < grid.shape[1])
        return np.where(inside, grid[np.where(inside, x, 0), np.where(inside, y, 0)], grid.dtype.type(0))


@dataclass(frozen=True, eq=False)
class Scene:
    """One planning problem, world frame, SI units and radians, float64.

    ego [7]: EGO_NAMES at the rear axle; history [3, 3]: its poses 1.5, 1.0 and 0.5 s before
    agents [51, n, 4]: box centre x, y, heading and speed at 0, 0.1, ..., 5.0 s, NaN where absent
    size [n, 2]: length, width; static [n] bool: an object that is no vehicle
    centreline [m, 2]: the route's middle, from at or behind the ego; speed_limit: m/s
    reference_progress: metres along the centreline of the reference planner, times its multipliers
    collided [n] bool: agents that the score ignores; None: those that overlap the ego at the start
    lateral [2]: the ego's lateral velocity and acceleration at the start; None: it has none
    annotated [n] bool: agents that are known at the start; None: all that are present then. NAVSIM's scorer puts a
    track of a single later frame into all steps
    """

    road: Union[Road, PolygonRoad]
    ego: np.ndarray
    history: np.ndarray
    agents: np.ndarray
    size: np.ndarray
    static: np.ndarray
    centreline: np.ndarray
    speed_limit: float
    reference_progress: float
    collided: Optional[np.ndarray] = None
    lateral: Optional[np.ndarray] = None
    annotated: Optional[np.ndarray] = None

    @property
    def pose(self) -> np.ndarray:
        """x, y, heading [3] of the ego's rear axle at the start."""
        return self.ego[:3]

    @property
    def known(self) -> np.ndarray:
        """Which agents [n] a planner may know of: those that are there at the start and annotated then."""
        present = ~np.isnan(self.agents[0, :, 0])
        return present if self.annotated is None else present & self.annotated


@dataclass(frozen=True, eq=False)
class Log:
    """A drive of T states 0.1 s apart, from which scenes are cut; arrays as in `Scene`.

    ego [T, 7]; agents [T, N, 4], NaN while absent; size [N, 2]; centreline [m, 2] of the ego's whole route.
    """

    ego: np.ndarray
    agents: np.ndarray
    size: np.ndarray
    centreline: np.ndarray
    speed_limit: float


def project(points: np.ndarray, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(arc length, distance) [...] of the points of polyline [m, 2] that are closest to points [..., 2].

    The first of several closest ones counts; the arc length ends with the line.
    """
    start, along = line[:-1], np.diff(line, axis=0)
    length = np.hypot(along[:, 0], along[:, 1])
    before = np.concatenate([[0.0], np.cumsum(length)[:-1]])
    offset = points[..., None, :] - start
    part = np.clip((offset * along).sum(-1) / np.maximum(length, 1e-12) ** 2, 0.0, 1.0)
    gap = offset - part[..., None] * along
    distance = np.hypot(gap[..., 0], gap[..., 1])
    closest = distance.argmin(axis=-1)[..., None]
    arc = np.take_along_axis(before + part * length, closest, axis=-1)[..., 0]
    return arc, np.take_along_axis(distance, closest, axis=-1)[..., 0]
