"""NAVSIM's objects as this project's arrays: what `navsim_export` and `navsim_agent` have in common.

Runs inside NAVSIM's own environment (Python 3.9, numpy 1.23), against the interface of version 1.1: the fields of
MetricCache (ego_state, trajectory, observation, centerline, route_lane_ids, drivable_area_map), AgentInput and Scene.
Written from github.com/autonomousvision/navsim (branch v1.1, Apache-2.0) and nuplan-devkit; not run on NAVSIM's data.
"""

import importlib
import inspect
from typing import Any, List, Sequence, Tuple

import numpy as np

from common.errors import UserError
from envs.driving.scene import DRIVABLE, MAX_LANES, Road
from envs.driving.vehicle import DT, KNOT_STEPS, LENGTH, STEPS, WIDTH, to_frame, to_world

METRICS = ("PDMS", "EPDMS")  # the scores of versions 1 and 2, which are never compared
RESOLUTION = 0.2  # metres from cell to cell
MAP_RADIUS = 100.0  # metres around the ego whose map NAVSIM caches
STRONGEST_ACCELERATION = 2.4  # m/s^2, beyond which no plan is comfortable
FALLBACK_SPEED_LIMIT = 15.0  # m/s, PDM-Closed's own where the map has none
SHORTEST_STEP = 0.05  # metres: points of a route that are closer have no reliable heading between them
HISTORY_FRAMES = 4  # 1.5, 1.0, 0.5 and 0 s before
ROAD_TYPES = ("ROADBLOCK", "INTERSECTION", "DRIVABLE_AREA", "CARPARK_AREA")  # what NAVSIM's scorer drives on
LANE_TYPES = ("LANE", "LANE_CONNECTOR")


def navsim_module(name: str) -> Any:
    """A module of NAVSIM's environment. Raises UserError where NAVSIM is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("navsim", "nuplan", "shapely"):
            raise
        raise UserError(
            f"{error.name} is not installed here: install NAVSIM (github.com/autonomousvision/navsim, branch v1.1, its "
            "docs/install.md) in an environment of its own and run this command with that environment's Python"
        ) from error


def metric() -> str:
    """Which score the installed NAVSIM gives, one of METRICS: version 2's pdm_score has a traffic_agents_policy."""
    pdm_score = navsim_module("navsim.evaluate.pdm_score").pdm_score
    return METRICS["traffic_agents_policy" in inspect.signature(pdm_score).parameters]


def pose_of(state: Any) -> np.ndarray:
    """x, y, heading [3] of a nuPlan StateSE2."""
    return np.array([state.x, state.y, state.heading], np.float64)


# ---- The ego ----


def ego_of(state: Any) -> Tuple[np.ndarray, np.ndarray]:
    """(EGO_NAMES [7], lateral velocity and acceleration [2]) of a nuPlan EgoState, at the rear axle."""
    dynamic = state.dynamic_car_state
    velocity, acceleration = dynamic.rear_axle_velocity_2d, dynamic.rear_axle_acceleration_2d
    moving = (velocity.x, acceleration.x, state.tire_steering_angle, dynamic.angular_velocity)
    return np.array([*pose_of(state.rear_axle), *moving], np.float64), np.array(
        [velocity.y, acceleration.y], np.float64
    )


def history_of(agent_input: Any, pose: np.ndarray) -> np.ndarray:
    """World poses [3, 3] of 1.5, 1.0 and 0.5 s before, from an AgentInput, whose own are in the frame of `pose`."""
    statuses = agent_input.ego_statuses
    if len(statuses) != HISTORY_FRAMES:
        raise UserError(f"a scene has {len(statuses)} frames of history: set num_history_frames to {HISTORY_FRAMES}")
    poses = np.stack([np.asarray(status.ego_pose, np.float64) for status in statuses[:-1]])
    return to_world(poses, pose)


def trajectory_of(trajectory: Any, start: Any, pose: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """(world poses [41, 3] each 0.1 s, plan [8, 3]) of a nuPlan InterpolatedTrajectory from the TimePoint `start`."""
    last = trajectory.end_time.time_us
    times = [min(start.time_us + round(step * DT * 1e6), last) for step in range(STEPS + 1)]
    states = trajectory.get_state_at_times([type(start)(time) for time in times])
    poses = np.stack([pose_of(state.rear_axle) for state in states])
    poses[:, 2] = np.unwrap(poses[:, 2])
    return poses, to_frame(poses[KNOT_STEPS::KNOT_STEPS], pose)


# ---- The others ----


def agents_of(observation: Any, steps: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray, List[str]]:
    """(agents [steps, N, 4], size [N, 2], static [N], tokens) of a PDMObservation, NaN where an agent is absent.

    The speed of an agent's first appearance is the annotated one, by which NAVSIM calls it stopped; later ones are how
    far it moved since the step before.
    """
    agent_types = navsim_module("nuplan.common.actor_state.tracked_objects_types").AGENT_TYPES
    maps = [observation[step] for step in range(steps)]
    tokens = list(dict.fromkeys(token for each in maps for token in each.tokens))
    tokens = [token for token in tokens if observation.red_light_token not in token]
    column = {token: index for index, token in enumerate(tokens)}
    agents, size = np.full((steps, len(tokens), 4), np.nan), np.zeros((len(tokens), 2))
    for step, each in enumerate(maps):
        for token in each.tokens:
            if token in column:
                agents[step, column[token], :3], size[column[token]] = _box_of(each[token])
    objects = [observation.unique_objects[token] for token in tokens]
    static = np.array([each.tracked_object_type not in agent_types for each in objects], bool)
    first_speeds = [each.velocity.magnitude() if each.tracked_object_type in agent_types else 0.0 for each in objects]
    agents[..., 3] = np.where(np.isnan(agents[..., 0]), np.nan, np.array(first_speeds, np.float64))
    moved = np.hypot(*np.moveaxis(np.diff(agents[..., :2], axis=0), -1, 0)) / DT
    agents[1:, :, 3] = np.where(np.isnan(moved), agents[1:, :, 3], moved)
    return agents, size, static, tokens


def _box_of(polygon: Any) -> Tuple[np.ndarray, np.ndarray]:
    """(centre pose [3], length and width [2]) of an OrientedBox's polygon: front left, rear left, rear right, ..."""
    points = np.asarray(polygon.exterior.coords)[:4]
    along, across = points[0] - points[1], points[1] - points[2]
    pose = np.array([*points.mean(axis=0), np.arctan2(along[1], along[0])])
    return pose, np.array([np.hypot(*along), np.hypot(*across)])


# ---- The road ----


def centreline_of(path: Any) -> np.ndarray:
    """The points [m, 2] of a PDMPath, without those that repeat the one before."""
    points = np.array([(state.x, state.y) for state in path.discrete_path], np.float64)
    kept = [0]
    for index in range(1, len(points)):
        if np.hypot(*(points[index] - points[kept[-1]])) >= SHORTEST_STEP:
            kept.append(index)
    return points[kept]


def speed_limit_of(cache: Any, map_api: Any) -> float:
    """m/s of the lane under the rear axle, one on the route where there is one; PDM-Closed's fallback for none."""
    drivable, axle = cache.drivable_area_map, cache.ego_state.rear_axle
    under = drivable.query(navsim_module("shapely").Point(axle.x, axle.y), predicate="intersects")
    lanes = [(drivable.tokens[index], drivable.map_types[index]) for index in under]
    lanes = [(token, layer) for token, layer in lanes if layer.name in LANE_TYPES]
    for token, layer in sorted(lanes, key=lambda lane: lane[0] not in cache.route_lane_ids):
        limit = map_api.get_map_object(token, layer).speed_limit_mps
        if limit:
            return float(limit)
    return FALLBACK_SPEED_LIMIT


def reach_of(speed: float) -> float:
    """Metres around the ego that a scene keeps: NAVSIM's map, and all that 4 s of acceleration reach."""
    seconds = STEPS * DT
    return max(MAP_RADIUS, abs(speed) * seconds + STRONGEST_ACCELERATION * seconds**2 / 2 + LENGTH)


def road_of(drivable: Any, centreline: np.ndarray, centre: np.ndarray, reach: float) -> Tuple[Road, int]:
    """(the road, lanes left out) of a PDMDrivableMap within `reach` metres of `centre` [2], along x and y.

    A cell is in a polygon if its middle is. Lanes share a bit where no vehicle touches both; for what then needs more
    than MAX_LANES bits, the lanes farthest from the route have none.
    """
    shapely = navsim_module("shapely")
    first = np.floor((centre - reach) / RESOLUTION)
    count = int(np.ceil(2 * reach / RESOLUTION)) + 1
    origin = first * RESOLUTION
    x, y = (RESOLUTION * (first[axis] + np.arange(count)) for axis in (0, 1))
    square = shapely.box(x[0], y[0], x[-1], y[-1])
    polygons = drivable._geometries  # as by its scorer: an id may be that of a lane and of an intersection
    near = [index for index in range(len(polygons)) if polygons[index].intersects(square)]
    raster, intersection = np.zeros((count, count), np.uint32), np.zeros((count, count), bool)
    for index in near:
        if drivable.map_types[index].name in ROAD_TYPES:
            _fill(raster, polygons[index], x, y, DRIVABLE)
        if drivable.map_types[index].name == "INTERSECTION":
            _fill(intersection, polygons[index], x, y, np.bool_(True))
    route = shapely.LineString(centreline)
    lanes = [polygons[index] for index in near if drivable.map_types[index].name in LANE_TYPES]
    lanes.sort(key=lambda polygon: polygon.distance(route))
    bits = lane_bits(lanes)
    for index, bit in enumerate(bits):
        if bit < MAX_LANES:
            _fill(raster, lanes[index], x, y, np.uint32(1 << bit))
    return Road(raster, intersection, origin, RESOLUTION), sum(bit >= MAX_LANES for bit in bits)


def lane_bits(polygons: Sequence[Any]) -> List[int]:
    """A number for each lane, the smallest that no lane before it has which the corners of one vehicle can touch."""
    near = np.hypot(LENGTH, WIDTH) + 2 * RESOLUTION  # rounding to cells moves corners
    bits: List[int] = []
    for index, polygon in enumerate(polygons):
        taken = {bits[other] for other in range(index) if polygons[other].distance(polygon) <= near}
        bits.append(next(bit for bit in range(len(taken) + 1) if bit not in taken))
    return bits


def _fill(grid: np.ndarray, polygon: Any, x: np.ndarray, y: np.ndarray, bit: Any) -> None:
    """Sets `bit` in the cells of the grid whose middles, at coordinates x and y, are within the polygon."""
    shapely = navsim_module("shapely")
    low_x, low_y, high_x, high_y = polygon.bounds
    columns = slice(*np.searchsorted(x, [low_x, high_x]))
    rows = slice(*np.searchsorted(y, [low_y, high_y]))
    shapely.prepare(polygon)
    inside = shapely.contains_xy(polygon, x[columns, None], y[None, rows])
    grid[columns, rows][inside] |= bit
