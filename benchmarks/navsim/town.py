"""A synthetic town as a nuPlan map: lanes, roadblocks, connectors, intersections, written as nuPlan's map.gpkg.

The layers and columns are those that nuplan-devkit v1.2 reads (common/maps/nuplan_map).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import shapely

WIDTH = 3.5
SHOULDER = 0.7  # that the outermost lane is wider
STUB = 17.0
LOCATIONS = {  # UTM zone of the real location, an origin that is like the real ones, left-hand traffic
    "us-nv-las-vegas-strip": ("EPSG:32611", (664396.5, 3997650.3), False, "9.15.1915"),
    "us-ma-boston": ("EPSG:32619", (331220.0, 4690660.0), False, "9.12.1817"),
    "us-pa-pittsburgh-hazelwood": ("EPSG:32617", (587640.9, 4475600.3), False, "9.17.1937"),
    "sg-one-north": ("EPSG:32648", (365000.0, 143000.0), True, "9.17.1964"),
}


def normals(points):
    tangent = np.gradient(points, axis=0)
    tangent /= np.hypot(*tangent.T)[:, None]
    return np.stack([-tangent[:, 1], tangent[:, 0]], axis=-1)


def strip(points, left, right):
    """The polygon between the offsets `left` and `right` (both to the left of the line)."""
    n = normals(points)
    polygon = shapely.Polygon(np.concatenate([points + left * n, (points + right * n)[::-1]]))
    return polygon if polygon.is_valid else polygon.buffer(0)


@dataclass
class Lane:
    id: int
    points: np.ndarray
    polygon: object
    limit: float
    block: int
    index: int  # from 1, the leftmost
    next: list = field(default_factory=list)  # ids of connectors


@dataclass
class Connector:
    id: int
    points: np.ndarray
    polygon: object
    limit: float
    block: int  # roadblock connector
    start: int = 0
    end: int = 0
    intersection: int = 0


@dataclass
class Block:
    id: int
    polygon: object
    lanes: list
    start: int = 0
    end: int = 0
    points: np.ndarray = None


@dataclass
class BlockConnector:
    id: int
    polygon: object
    start: int
    end: int
    intersection: int
    connectors: list = field(default_factory=list)


class Town:
    def __init__(self, seed: int, origin, mirrored: bool):
        rng = np.random.default_rng(seed)
        self.lanes, self.connectors, self.blocks, self.block_connectors = {}, {}, {}, {}
        self.intersections, self.carparks = {}, {}
        self.roads = []  # centre lines with half widths, for pavements
        turn = rng.uniform(0, 2 * np.pi)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        nodes = {}
        for i in range(3):
            for j in range(3):
                at = np.array([130.0 * i, 120.0 * j]) + rng.uniform(-14, 14, 2)
                nodes[i, j] = rotation @ at
        self.mirror, self.origin = mirrored, np.asarray(origin, float)
        next_id = {"lane": 20001, "connector": 30001, "block": 20001, "block_connector": 60001, "intersection": 20001}

        def new(kind):
            next_id[kind] += 1
            return next_id[kind] - 1

        arms = {node: [] for node in nodes}  # (block in or None, block out or None, edge points)
        edges = [((i, j), (i + 1, j)) for i in range(2) for j in range(3)]
        edges += [((i, j), (i, j + 1)) for i in range(3) for j in range(2)]
        for a, b in edges:
            start, end = nodes[a], nodes[b]
            along = (end - start) / np.hypot(*(end - start))
            across = np.array([-along[1], along[0]])
            start, end = start + STUB * along, end - STUB * along
            length = np.hypot(*(end - start))
            s = np.linspace(0.0, length, int(round(length)) + 1)
            bend = rng.uniform(-9.0, 9.0)
            centre = start + s[:, None] * along + (bend * np.sin(np.pi * s / length) ** 2)[:, None] * across
            count = int(rng.integers(1, 3))
            limit = float(rng.choice([8.94, 11.18, 13.41, np.nan], p=[0.25, 0.35, 0.3, 0.1]))
            self.roads.append((centre, count * WIDTH + SHOULDER))
            for (tail, head), line in (((a, b), centre), ((b, a), centre[::-1])):
                n = normals(line)
                block = Block(new("block"), strip(line, 0.0, -count * WIDTH - SHOULDER), [], points=line)
                for index in range(count):
                    offset = -(index + 0.5) * WIDTH
                    lane = Lane(
                        new("lane"),
                        line + offset * n,
                        strip(line, -index * WIDTH, -(index + 1) * WIDTH - (SHOULDER if index == count - 1 else 0)),
                        limit,
                        block.id,
                        index + 1,
                    )
                    self.lanes[lane.id] = lane
                    block.lanes.append(lane.id)
                self.blocks[block.id] = block
                edge = count * WIDTH + SHOULDER
                arms[tail].append(("out", block, line[0], line[0] - edge * n[0]))
                arms[head].append(("in", block, line[-1], line[-1] - edge * n[-1]))
        for ends in arms.values():
            area = new("intersection")
            hull = shapely.MultiPoint([point for end in ends for point in end[2:]]).convex_hull
            self.intersections[area] = hull
            for kind, block_in, *_ in ends:
                for other_kind, block_out, *_ in ends:
                    if kind != "in" or other_kind != "out":
                        continue
                    self._connect(block_in, block_out, area, new)
            inside = [c.polygon.buffer(0.7) for c in self.connectors.values() if c.intersection == area]
            self.intersections[area] = shapely.union_all([hull, *inside])
            self.intersections[area] = self.intersections[area].difference(
                shapely.union_all([end[1].polygon for end in ends])
            )
            if self.intersections[area].geom_type != "Polygon":
                self.intersections[area] = max(self.intersections[area].geoms, key=lambda each: each.area)
        block = self.blocks[20003]  # a car park beside a road, outside of its edge, which is drivable
        count = len(block.lanes)
        piece = block.points[30:65]
        n = normals(piece)
        outer = -count * WIDTH - SHOULDER
        self.carparks[7] = shapely.Polygon(
            np.concatenate([piece + outer * n, (piece + (outer - 9.0) * n)[::-1]])
        ).buffer(0)

    def _connect(self, block_in, block_out, area, new):
        first, last = self.lanes[block_in.lanes[0]], self.lanes[block_out.lanes[0]]
        t_in = first.points[-1] - first.points[-2]
        t_out = last.points[1] - last.points[0]
        t_in, t_out = t_in / np.hypot(*t_in), t_out / np.hypot(*t_out)
        angle = np.arctan2(t_in[0] * t_out[1] - t_in[1] * t_out[0], t_in @ t_out)
        if abs(angle) > 2.5:
            return  # no turning round
        if abs(angle) < 0.6:
            pairs = [(k, min(k, len(block_out.lanes) - 1)) for k in range(len(block_in.lanes))]
        elif angle > 0:
            pairs = [(0, 0)]
        else:
            pairs = [(len(block_in.lanes) - 1, len(block_out.lanes) - 1)]
        joined = BlockConnector(new("block_connector"), None, block_in.id, block_out.id, area)
        for k_in, k_out in pairs:
            lane_in, lane_out = self.lanes[block_in.lanes[k_in]], self.lanes[block_out.lanes[k_out]]
            p0, p3 = lane_in.points[-1], lane_out.points[0]
            reach = np.hypot(*(p3 - p0)) * (0.40 if abs(angle) > 0.6 else 0.33)
            p1, p2 = p0 + reach * t_in, p3 - reach * t_out
            t = np.linspace(0, 1, max(8, int(np.hypot(*(p3 - p0)))))[:, None]
            points = (1 - t) ** 3 * p0 + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * p3
            connector = Connector(
                new("connector"),
                points,
                strip(points, WIDTH / 2, -WIDTH / 2),
                lane_in.limit if lane_in.limit == lane_in.limit else 8.94,
                joined.id,
                lane_in.id,
                lane_out.id,
                area,
            )
            self.connectors[connector.id] = connector
            lane_in.next.append(connector.id)
            joined.connectors.append(connector.id)
        joined.polygon = shapely.union_all([self.connectors[k].polygon for k in joined.connectors])
        if joined.polygon.geom_type != "Polygon":
            joined.polygon = joined.polygon.convex_hull
        self.block_connectors[joined.id] = joined

    # ---- world coordinates ----

    def world(self, points):
        points = np.asarray(points, float)
        sign = np.array([1.0, -1.0 if self.mirror else 1.0])
        return points * sign + self.origin

    def world_polygon(self, polygon):
        return shapely.transform(polygon, self.world)

    def world_heading(self, heading):
        return -heading if self.mirror else heading


def write_map(town: Town, folder: Path, location: str, crs: str, version: str) -> None:
    path = folder / location / version / "map.gpkg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)

    def line(points):
        return shapely.LineString(town.world(points))

    def layer(items, geometry, **columns):
        """Rows of items: columns are names of their fields, or numbers that all have; geometry gives a row's."""
        values = [
            {name: getattr(one, of) if isinstance(of, str) and of else of for name, of in columns.items()}
            for one in items
        ]
        return [{**row, "geometry": geometry(one)} for row, one in zip(values, items)]  # noqa: B905 (Python 3.9)

    def area(one):
        return town.world_polygon(one.polygon)

    lanes, connectors = list(town.lanes.values()), list(town.connectors.values())
    sides = {"left_boundary_fid": 1, "right_boundary_fid": 1}
    of_lane = {"fid": "id", "lane_fid": "id", "lane_group_fid": "block", "lane_index": "index"}
    of_lane |= {"speed_limit_mps": "limit", **sides, "from_edge_fid": 0, "to_edge_fid": 0}
    of_connector = {"lane_group_connector_fid": "block", "intersection_fid": "intersection"}
    ends = {"fid": "id", "exit_lane_fid": "start", "entry_lane_fid": "end", **of_connector}
    ends |= {"speed_limit_mps": "limit", "traffic_light_stop_line_fids": ""}
    of_block = {"fid": "id", "from_lane_group_fid": "start", "to_lane_group_fid": "end"}
    of_block |= {"intersection_fid": "intersection"}
    widths = layer(connectors, area, lane_connector_fid="id", **of_connector, **sides)
    paths = [(lane.id, -1, lane.points) for lane in lanes] + [(-1, one.id, one.points) for one in connectors]
    some = town.world_polygon(shapely.box(-300, -300, -295, -295))
    layers = {
        "lanes_polygons": layer(lanes, area, **of_lane),
        "lane_groups_polygons": layer(town.blocks.values(), area, fid="id", lane_group_fid="id", **sides),
        "intersections": [
            {"fid": k, "intersection_type_fid": 1, "geometry": town.world_polygon(p)}
            for k, p in town.intersections.items()
        ],
        "lane_connectors": layer(connectors, lambda one: line(one.points), **ends),
        "gen_lane_connectors_scaled_width_polygons": [{"fid": k, **row} for k, row in enumerate(widths, start=1)],
        "lane_group_connectors": layer(town.block_connectors.values(), area, **of_block),
        "baseline_paths": [
            {"fid": k, "lane_fid": lane, "lane_connector_fid": one, "path_type_fid": 0, "geometry": line(points)}
            for k, (lane, one, points) in enumerate(paths, start=1)
        ],
        "carpark_areas": [{"fid": k, "geometry": town.world_polygon(p)} for k, p in town.carparks.items()],
        "boundaries": layer(lanes[:1], lambda one: line(one.points), fid=1, boundary_type_fid=2),
        "stop_polygons": [{"fid": 1, "stop_polygon_type_fid": 1, "geometry": some}],
        **{name: [{"fid": 1, "geometry": some}] for name in ("crosswalks", "walkways", "generic_drivable_areas")},
        "road_segments": [
            {"fid": k, "geometry": town.world_polygon(shapely.union_all([strip(points, width, -width)]))}
            for k, (points, width) in enumerate(town.roads, start=1)
        ],
    }
    for name, rows in layers.items():
        frame = geopandas.GeoDataFrame(rows, geometry="geometry", crs=crs).to_crs("EPSG:4326")
        pyogrio.write_dataframe(frame, path, layer=name, driver="GPKG", layer_options={"FID": "fid"})
        back = pyogrio.read_dataframe(path, layer=name, fid_as_index=True)
        assert list(back.index) == [row["fid"] for row in rows], (name, list(back.index)[:3])
    meta = pd.DataFrame({"key": ["projectedCoordSystem", "name"], "value": [crs, location]})
    pyogrio.write_dataframe(meta, path, layer="meta", driver="GPKG")


def make_towns(folder: Path) -> dict:
    towns, index = {}, {}
    for seed, (location, (crs, origin, mirrored, version)) in enumerate(LOCATIONS.items()):
        town = Town(100 + seed, origin, mirrored)
        write_map(town, folder, location, crs, version)
        towns[location] = town
        index[location] = {"version": version, "layers": {}}
    (folder / "nuplan-maps-v1.0.json").write_text(json.dumps(index))
    return towns


if __name__ == "__main__":
    import sys

    made = make_towns(Path(sys.argv[1]))
    for name, town in made.items():
        print(name, len(town.lanes), "lanes", len(town.connectors), "connectors", len(town.blocks), "roadblocks")
