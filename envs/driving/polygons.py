"""A map as polygons, as NAVSIM's scorer has it: which points are in which, by the even-odd rule."""

import functools
from dataclasses import dataclass

import numpy as np
from matplotlib.path import Path

ROAD, LANE, INTERSECTION = 1, 2, 4  # what a polygon is; an intersection is road too


@dataclass(frozen=True, eq=False)
class PolygonRoad:
    """The map of one scene; its questions are those of `scene.Road`.

    points [V, 2]: rings that return to their first point, each ended by NaN, world, metres; rows [P]: how many of them
    each polygon has, for its outline and its holes; kinds [P] uint8: sums of ROAD, LANE and INTERSECTION.
    """

    points: np.ndarray
    rows: np.ndarray
    kinds: np.ndarray

    @functools.cached_property
    def _rings(self) -> list:
        """(number of its polygon, outline, lower and upper corner) of each ring."""
        ends = np.flatnonzero(np.isnan(self.points[:, 0]))
        polygons = np.repeat(np.arange(len(self.rows)), self.rows)[ends]
        rings = np.split(self.points, ends + 1)
        return [(n, Path(r[:-1]), r[:-1].min(axis=0), r[:-1].max(axis=0)) for n, r in zip(polygons, rings)]  # noqa: B905

    def inside(self, points: np.ndarray, kind: int) -> np.ndarray:
        """Whether world points [..., 2] are in each polygon: [..., P] bool, false in those of another kind."""
        flat = points.reshape(-1, 2)
        found = np.zeros((len(flat), len(self.rows)), bool)
        for polygon, ring, low, high in self._rings:
            if self.kinds[polygon] & kind:
                near = np.flatnonzero(((flat >= low) & (flat <= high)).all(axis=1))
                found[near, polygon] ^= ring.contains_points(flat[near])
        return found.reshape(*points.shape[:-1], len(self.rows))

    def drivable_at(self, points: np.ndarray) -> np.ndarray:
        """Whether world points [..., 2] are in a polygon that may be driven on: [...] bool."""
        return self.inside(points, ROAD).any(axis=-1)

    def lane_at(self, points: np.ndarray) -> np.ndarray:
        """Whether world points [..., 2] are in a lane: [...] bool."""
        return self.inside(points, LANE).any(axis=-1)

    def intersection_at(self, points: np.ndarray) -> np.ndarray:
        """Whether world points [..., 2] are in an intersection: [...] bool."""
        return self.inside(points, INTERSECTION).any(axis=-1)

    def several_lanes(self, corners: np.ndarray) -> np.ndarray:
        """Whether boxes of corners [..., 4, 2] are in two lanes at least and wholly in none: [...] bool."""
        inside = self.inside(corners, LANE)  # [..., 4, P]
        return (inside.any(axis=-2).sum(axis=-1) > 1) & ~inside.all(axis=-2).any(axis=-1)
