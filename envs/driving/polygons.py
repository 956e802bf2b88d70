"""A map as polygons, as NAVSIM's scorer has it: which points are in which, by the even-odd rule."""

import functools
from dataclasses import dataclass

import numpy as np

ROAD, LANE, INTERSECTION = 1, 2, 4  # what a polygon is; an intersection is road too
STRIP = 1.0  # metres: edges are looked up by the strips along x that they cross


class Polygons:
    """P polygons and the strips in which their E edges lie.

    points [V, 2]: rings that return to their first point, each ended by NaN; rows [P]: how many of them each polygon
    has, for its outline and its holes.
    """

    def __init__(self, points: np.ndarray, rows: np.ndarray):
        edges = np.concatenate([points[:-1], points[1:]], axis=1)
        polygon = np.repeat(np.arange(len(rows)), rows)[:-1]
        kept = ~np.isnan(edges).any(axis=1) & (edges[:, 1] != edges[:, 3])  # a level edge is never crossed
        self.count, self.edges, self.polygon = len(rows), edges[kept], polygon[kept]
        low, high = np.sort(self.edges[:, [1, 3]], axis=1).T
        self.low = low.min(initial=np.inf)
        first, last = (np.floor((value - self.low) / STRIP).astype(np.int64) for value in (low, high))
        spans = last - first + 1
        edge, strip = _spread(first, spans)
        order = np.argsort(strip, kind="stable")
        self.by_strip = edge[order]
        self.begin = np.searchsorted(strip[order], np.arange(last.max(initial=-1) + 3))

    def contain(self, points: np.ndarray) -> np.ndarray:
        """Whether points [..., 2] are in each polygon: [..., P] bool."""
        x, y = points.reshape(-1, 2).T
        empty = len(self.begin) - 2  # a strip above all edges, for what is below them too
        strip = np.floor((y - self.low) / STRIP)
        strip = np.where((strip >= 0) & (strip < empty), strip, empty).astype(np.int64)
        point, place = _spread(self.begin[strip], self.begin[strip + 1] - self.begin[strip])
        edge = self.by_strip[place]
        start_y, end_y = self.edges[edge, 1], self.edges[edge, 3]
        level = (start_y > y[point]) != (end_y > y[point])
        point, edge = point[level], edge[level]
        start_x, start_y, end_x, end_y = self.edges[edge].T
        crossed = x[point] < start_x + (y[point] - start_y) * (end_x - start_x) / (end_y - start_y)
        crossings = np.bincount(
            point[crossed] * self.count + self.polygon[edge[crossed]], minlength=len(x) * self.count
        )
        return (crossings % 2 == 1).reshape(*points.shape[:-1], self.count)


def _spread(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(index, value) [sum of count] of the ranges that begin at first [N] and have count [N] values."""
    index = np.repeat(np.arange(len(count)), count)
    return index, np.arange(len(index)) + np.repeat(first - np.cumsum(count) + count, count)


@dataclass(frozen=True, eq=False)
class PolygonRoad:
    """The map of one scene; its questions are those of `scene.Road`.

    points [V, 2], rows [P]: polygons as `Polygons` has them, world, metres; kinds [P] uint8: sums of ROAD, LANE and
    INTERSECTION.
    """

    points: np.ndarray
    rows: np.ndarray
    kinds: np.ndarray

    @functools.cached_property
    def _roads(self) -> Polygons:
        return self._of(ROAD)

    @functools.cached_property
    def _lanes(self) -> Polygons:
        return self._of(LANE)

    @functools.cached_property
    def _intersections(self) -> Polygons:
        return self._of(INTERSECTION)

    def _of(self, kind: int) -> Polygons:
        chosen = (self.kinds & kind) > 0
        return Polygons(self.points[np.repeat(chosen, self.rows)], self.rows[chosen])

    def drivable_at(self, points: np.ndarray) -> np.ndarray:
        """Whether world points [..., 2] are in a polygon that may be driven on: [...] bool."""
        return self._roads.contain(points).any(axis=-1)

    def lane_at(self, points: np.ndarray) -> np.ndarray:
        """Whether world points [..., 2] are in a lane: [...] bool."""
        return self._lanes.contain(points).any(axis=-1)

    def intersection_at(self, points: np.ndarray) -> np.ndarray:
        """Whether world points [..., 2] are in an intersection: [...] bool."""
        return self._intersections.contain(points).any(axis=-1)

    def several_lanes(self, corners: np.ndarray) -> np.ndarray:
        """Whether boxes of corners [..., 4, 2] are in two lanes at least and wholly in none: [...] bool."""
        inside = self._lanes.contain(corners)  # [..., 4, P]
        return (inside.any(axis=-2).sum(axis=-1) > 1) & ~inside.all(axis=-2).any(axis=-1)
