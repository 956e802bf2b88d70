"""NAVSIM's objects as this project's arrays: what `navsim_export` and `navsim_agent` have in common.

Runs inside NAVSIM's own environment (Python 3.9, numpy 1.23): the fields of MetricCache (ego_state, trajectory,
observation, centerline, route_lane_ids, drivable_area_map), AgentInput and Scene, as versions 1.1 and 2.2 of
github.com/autonomousvision/navsim (Apache-2.0) and nuplan-devkit 1.2 have them. docs/navsim.md says what was run.
"""

import importlib
import inspect
import os
from pathlib import Path
from typing import Any, List, Tuple

import numpy as np

from common.errors import UserError, one_line
from envs.driving.polygons import INTERSECTION, LANE, ROAD, PolygonRoad
from envs.driving.scene import FUTURE_STEPS, Scene
from envs.driving.vehicle import DT, KNOT_STEPS, STEPS, to_frame, to_world

METRICS = ("PDMS", "EPDMS")  # the scores of versions 1 and 2, which are never compared
FALLBACK_SPEED_LIMIT = 15.0  # m/s, PDM-Closed's own where the map has none
SHORTEST_STEP = 0.05  # metres: points of a route that are closer have no reliable heading between them
HISTORY_FRAMES = 4  # 1.5, 1.0, 0.5 and 0 s before
KINDS = {  # of the map's layers: what NAVSIM's scorer drives on, and the lanes that it counts
    "ROADBLOCK": ROAD,
    "DRIVABLE_AREA": ROAD,
    "CARPARK_AREA": ROAD,
    "INTERSECTION": ROAD | INTERSECTION,
    "LANE": LANE,
    "LANE_CONNECTOR": LANE,
}
ALL_KINDS = ROAD | LANE | INTERSECTION
MAPS_ROOT = "NUPLAN_MAPS_ROOT"


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


def check_maps() -> None:
    """Raises UserError where the variable by which NAVSIM finds its maps is not set to a folder."""
    folder = os.environ.get(MAPS_ROOT)
    if not folder or not Path(folder).is_dir():
        raise UserError(f"{MAPS_ROOT} is {folder or 'not set'}: set it to the folder of nuPlan's maps")


def open_caches(folder: Path) -> Any:
    """NAVSIM's MetricCacheLoader of the folder that run_metric_caching.py wrote. Raises UserError."""
    listing = next(iter(sorted((folder / "metadata").glob("*.csv"))), None)
    caches = listing and navsim_module("navsim.common.dataloader").MetricCacheLoader(folder)
    if not caches or not caches.tokens:
        raise UserError(
            f"{folder}: has no metadata/*.csv that lists scenes; give the folder of a finished run_metric_caching.py"
        )
    return caches


def read_cache(caches: Any, token: str) -> Any:
    """The MetricCache of a scene. Raises UserError where it is absent, damaged or of another version of NAVSIM."""
    try:
        return caches.get_from_token(token)
    except Exception as error:  # of a file that is gone or cut, and of a pickle of another version's classes
        path = caches.metric_cache_paths[token]
        raise UserError(
            f"{path}: cannot be read by the NAVSIM installed here ({one_line(error)}); make the metric cache again"
        ) from error


def scene_of(cache: Any, agent_input: Any, recorded: Any, steps: int = FUTURE_STEPS, kinds: int = ALL_KINDS) -> Scene:
    """The scene of a MetricCache, an AgentInput and a NAVSIM Scene, with `steps` of the others; no progress yet.

    What is known of the others is what the current frame annotates: a cache puts a track that a single frame of its
    window shows, also a later one, into all steps. kinds: the polygons of the map that are kept.
    """
    ego, lateral = ego_of(cache.ego_state)
    agents, size, static, tokens = agents_of(cache.observation, steps)
    frame = recorded.frames[recorded.scene_metadata.num_history_frames - 1]
    current, collided = set(frame.annotations.track_tokens), set(cache.observation.collided_track_ids)
    return Scene(
        road=road_of(cache.drivable_area_map, kinds),
        ego=ego,
        history=history_of(agent_input, ego[:3]),
        agents=agents,
        size=size,
        static=static,
        centreline=centreline_of(cache.centerline),
        speed_limit=speed_limit_of(cache, recorded.map_api),
        reference_progress=0.0,
        collided=np.array([token in collided for token in tokens], bool),
        lateral=lateral,
        annotated=np.array([token in current for token in tokens], bool),
    )


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
    lanes = [(token, layer) for token, layer in lanes if KINDS.get(layer.name) == LANE]
    for token, layer in sorted(lanes, key=lambda lane: lane[0] not in cache.route_lane_ids):
        limit = map_api.get_map_object(token, layer).speed_limit_mps
        if limit:
            return float(limit)
    return FALLBACK_SPEED_LIMIT


def road_of(drivable: Any, kinds: int = ALL_KINDS) -> PolygonRoad:
    """The polygons of a PDMDrivableMap that are of one of `kinds`, those that its scorer looks at."""
    shapely = navsim_module("shapely")
    of_map = np.array([KINDS.get(layer.name, 0) for layer in drivable.map_types], np.uint8)
    chosen = np.flatnonzero(of_map & kinds)
    shapes, polygon = shapely.get_parts([drivable._geometries[index] for index in chosen], return_index=True)
    rings, shape = shapely.get_rings(shapes, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    rows = np.full((len(points) + len(rings), 2), np.nan)
    rows[np.arange(len(points)) + ring] = points  # a row of NaN ends each ring
    sizes = np.bincount(polygon[shape], np.bincount(ring, minlength=len(rings)) + 1, minlength=len(chosen))
    return PolygonRoad(rows, sizes.astype(np.int64), of_map[chosen])
