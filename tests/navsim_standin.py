"""A stand-in of NAVSIM and nuPlan: the documented names and fields that the exporter and the agent use, and no more.

Written from the interfaces of NAVSIM v1.1 and v2.2 (MetricCache, PDMObservation, PDMOccupancyMap, PDMDrivableMap,
PDMPath, MetricCacheLoader, SceneLoader, Scene, AgentInput, Trajectory, AbstractAgent, pdm_score) and of nuplan-devkit
(EgoState, StateSE2, TimePoint, InterpolatedTrajectory, SemanticMapLayer, TrackedObjectType), not copied from them.
`write` makes caches and logs of this project's own scenes. It runs on Python 3.9, as NAVSIM does.
"""

import enum
import lzma
import pickle
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
import shapely

from envs.driving.boxes import corners, overlap
from envs.driving.scene import DRIVABLE, Road, Scene
from envs.driving.score import EGO_SIZE
from envs.driving.vehicle import REAR_AXLE_TO_CENTRE, to_frame, to_world

START_US = 1_626_464_423_900_107  # microseconds; nothing begins at a round time


# What is only read is a namespace of the fields that are read.
Fields = types.SimpleNamespace

# ---- nuPlan ----


@dataclass(frozen=True)
class StateSE2:
    x: float
    y: float
    heading: float


@dataclass(frozen=True)
class StateVector2D:
    x: float
    y: float

    def magnitude(self) -> float:
        return float(np.hypot(self.x, self.y))


@dataclass(frozen=True)
class TimePoint:
    time_us: int


class InterpolatedTrajectory:
    """EgoStates by time, linear in between."""

    def __init__(self, states: List[Any]):
        self.states = states

    @property
    def end_time(self) -> TimePoint:
        return self.states[-1].time_point

    def get_state_at_times(self, times: List[TimePoint]) -> List[Any]:
        known = [state.time_point.time_us for state in self.states]
        asked = [time.time_us for time in times]
        assert min(asked) >= known[0] and max(asked) <= known[-1], "outside of the trajectory"
        poses = np.array([(each.rear_axle.x, each.rear_axle.y, each.rear_axle.heading) for each in self.states])
        poses[:, 2] = np.unwrap(poses[:, 2])
        moved = np.stack([np.interp(asked, known, column) for column in poses.T], axis=-1)
        return [Fields(rear_axle=StateSE2(*pose), time_point=time) for pose, time in zip(moved, times)]  # noqa: B905


SemanticMapLayer = enum.IntEnum(
    "SemanticMapLayer",
    {"LANE": 0, "INTERSECTION": 1, "DRIVABLE_AREA": 5, "LANE_CONNECTOR": 11, "CARPARK_AREA": 15, "ROADBLOCK": 17},
    module=__name__,
)
TrackedObjectType = enum.Enum("TrackedObjectType", ["VEHICLE", "PEDESTRIAN", "TRAFFIC_CONE"], module=__name__)
AGENT_TYPES = {TrackedObjectType.VEHICLE, TrackedObjectType.PEDESTRIAN}


@dataclass
class MapApi:
    limits: Dict[str, Optional[float]]

    def get_map_object(self, object_id: str, layer: SemanticMapLayer) -> Any:
        assert layer == SemanticMapLayer.LANE
        return Fields(speed_limit_mps=self.limits[object_id])


# ---- NAVSIM: the metric cache ----


class PDMOccupancyMap:
    def __init__(self, tokens: List[str], geometries: List[Any]):
        self.tokens, self._geometries = tokens, geometries
        self.token_to_idx = {token: index for index, token in enumerate(tokens)}

    def __getitem__(self, token: str) -> Any:
        return self._geometries[self.token_to_idx[token]]

    def query(self, geometry: Any, predicate: str) -> np.ndarray:
        return shapely.STRtree(self._geometries).query(geometry, predicate=predicate)


class PDMDrivableMap(PDMOccupancyMap):
    def __init__(self, tokens: List[str], map_types: List[SemanticMapLayer], geometries: List[Any]):
        super().__init__(tokens, geometries)
        self.map_types = map_types


@dataclass
class PDMObservation:
    occupancy_maps: List[PDMOccupancyMap]
    unique_objects: Dict[str, Any]
    collided_track_ids: List[str]
    red_light_token: str = "red_light"

    def __getitem__(self, time_idx: int) -> PDMOccupancyMap:
        return self.occupancy_maps[time_idx]


class MetricCacheLoader:
    def __init__(self, cache_path: Path):
        (listing,) = (cache_path / "metadata").glob("*.csv")
        paths = listing.read_text().splitlines()[1:]
        self.metric_cache_paths = {path.split("/")[-2]: path for path in paths}

    @property
    def tokens(self) -> List[str]:
        return list(self.metric_cache_paths)

    def get_from_token(self, token: str) -> Any:
        with lzma.open(self.metric_cache_paths[token], "rb") as file:
            return pickle.load(file)


# ---- NAVSIM: logs and agents ----


@dataclass
class Trajectory:
    poses: np.ndarray

    def __post_init__(self) -> None:
        assert self.poses.shape == (8, 3)


@dataclass
class TrajectorySampling:
    num_poses: int
    interval_length: float


@dataclass
class NavsimScene:
    scene_metadata: Any
    map_api: MapApi
    future: np.ndarray  # [8, 3] of the human driver
    past: np.ndarray  # [4, 3], in the frame of the last
    frames: List[Any]

    def get_future_trajectory(self, num_trajectory_frames: int) -> Trajectory:
        return Trajectory(self.future[:num_trajectory_frames].astype(np.float32))


@dataclass
class SceneFilter:
    num_history_frames: int
    num_future_frames: int
    frame_interval: int
    has_route: bool = True
    tokens: Optional[List[str]] = None


@dataclass
class SensorConfig:
    include: bool

    @classmethod
    def build_no_sensors(cls) -> "SensorConfig":
        return cls(False)


class SceneLoader:
    def __init__(self, data_path: Path, sensor_blobs_path: Any, scene_filter: SceneFilter, sensor_config: SensorConfig):
        assert not sensor_config.include and scene_filter.num_history_frames == 4
        self.scenes: Dict[str, NavsimScene] = {}
        for path in sorted(data_path.glob("*.pkl")):
            log = pickle.loads(path.read_bytes())
            self.scenes.update({token: scene for token, scene in log.items() if token in scene_filter.tokens})

    def get_tokens_list_per_log(self) -> Dict[str, List[str]]:
        result: Dict[str, List[str]] = {}
        for token, scene in self.scenes.items():
            result.setdefault(scene.scene_metadata.log_name, []).append(token)
        return result

    def get_scene_from_token(self, token: str) -> NavsimScene:
        return self.scenes[token]

    def get_agent_input_from_token(self, token: str) -> Any:
        return Fields(ego_statuses=[Fields(ego_pose=pose.astype(np.float32)) for pose in self.scenes[token].past])


class AbstractAgent:
    def __init__(self, requires_scene: bool = False):
        self.requires_scene = requires_scene


class AbstractAgentV2:
    def __init__(self, trajectory_sampling: TrajectorySampling, requires_scene: bool = False):
        self.trajectory_sampling, self.requires_scene = trajectory_sampling, requires_scene


def pdm_score_v1(metric_cache, model_trajectory, future_sampling, simulator, scorer):
    """Its signature says that it is version 1."""


def pdm_score_v2(metric_cache, model_trajectory, future_sampling, simulator, scorer, traffic_agents_policy):
    """Its signature says that it is version 2."""


def modules(version: int = 1) -> Dict[str, types.ModuleType]:
    """The stand-in's modules by name, for sys.modules."""
    contents = {
        "nuplan.common.maps.maps_datatypes": {"SemanticMapLayer": SemanticMapLayer},
        "nuplan.common.actor_state.tracked_objects_types": {"AGENT_TYPES": AGENT_TYPES},
        "navsim.common.dataclasses": {name: globals()[name] for name in ("SceneFilter", "SensorConfig", "Trajectory")},
        "navsim.common.dataloader": {"MetricCacheLoader": MetricCacheLoader, "SceneLoader": SceneLoader},
        "navsim.evaluate.pdm_score": {"pdm_score": {1: pdm_score_v1, 2: pdm_score_v2}[version]},
        "navsim.agents.abstract_agent": {"AbstractAgent": {1: AbstractAgent, 2: AbstractAgentV2}[version]},
        "nuplan.planning.simulation.trajectory.trajectory_sampling": {"TrajectorySampling": TrajectorySampling},
    }
    result = {}
    for name, values in contents.items():
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            package = ".".join(parts[:length])
            result.setdefault(package, types.ModuleType(package))
        vars(result[name]).update(values)
    return result


# ---- Caches and logs of this project's scenes ----


@dataclass
class Recorded:
    """A scene with what its log adds: the plans [8, 3] of its driver and of the reference planner."""

    log_name: str
    token: str
    scene: Scene
    logged: np.ndarray
    reference: np.ndarray
    collided: List[str] = field(default_factory=list)
    later: List[str] = field(default_factory=list)  # tracks that no frame before the next one annotates


def drivable_map(road: Road) -> PDMDrivableMap:
    """The road's cells as polygons: one roadblock, the lanes, an intersection. Lanes and it have ids of their own."""
    drivable = (road.raster & DRIVABLE) > 0
    masks = [("block", SemanticMapLayer.ROADBLOCK, drivable)]
    for bit in range(31):
        masks.append((f"lane{bit}", SemanticMapLayer.LANE, (road.raster & np.uint32(1 << bit)) > 0))
    masks.append(("lane0", SemanticMapLayer.INTERSECTION, road.intersection & drivable))  # an id may be a lane's too
    masks = [entry for entry in masks if entry[2].any()]
    tokens, layers, cells = (list(column) for column in zip(*masks))  # noqa: B905
    return PDMDrivableMap(tokens, layers, [outline(mask, road) for mask in cells])


def outline(mask: np.ndarray, road: Road) -> Any:
    """The union of the mask's cells."""
    half, boxes = road.resolution / 2, []
    for index in np.flatnonzero(mask.any(axis=1)):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask[index].astype(int), [0]])))
        x = road.origin[0] + road.resolution * index
        first, last = road.origin[1] + road.resolution * edges.reshape(-1, 2).T - half
        boxes += [shapely.box(x - half, low, x + half, high) for low, high in zip(first, last)]  # noqa: B905
    return shapely.union_all(boxes)


def observation_of(scene: Scene, collided: List[str]) -> PDMObservation:
    """The scene's agents as boxes, agent n by the name track<n>."""
    present = ~np.isnan(scene.agents[..., 0])
    maps = []
    for step in range(len(scene.agents)):
        indices = np.flatnonzero(present[step])
        boxes = [shapely.Polygon(corners(scene.agents[step, n, :3], *scene.size[n])) for n in indices]
        maps.append(PDMOccupancyMap([f"track{n}" for n in indices], boxes))
    objects = {}
    for n in range(len(scene.size)):
        _, _, heading, speed = scene.agents[present[:, n].argmax(), n]
        kind, velocity = TrackedObjectType.TRAFFIC_CONE, None  # which agents alone have
        if not scene.static[n]:
            kind, velocity = TrackedObjectType.VEHICLE, StateVector2D(speed * np.cos(heading), speed * np.sin(heading))
        objects[f"track{n}"] = Fields(tracked_object_type=kind, velocity=velocity)
    return PDMObservation(maps, objects, collided)


def overlapping_tracks(scene: Scene) -> List[str]:
    """The agents that overlap the ego at the start, which this project's own scenes ignore."""
    x, y, heading = scene.pose
    centre = np.array([x + REAR_AXLE_TO_CENTRE * np.cos(heading), y + REAR_AXLE_TO_CENTRE * np.sin(heading), heading])
    hit = overlap(centre, EGO_SIZE, scene.agents[0, :, :3], scene.size)
    return [f"track{n}" for n in np.flatnonzero(hit)]


def cache_of(recorded: Recorded, drivable: PDMDrivableMap, path: Path) -> Any:
    """The MetricCache of a scene."""
    scene = recorded.scene
    x, y, heading, speed, acceleration, steer, yaw_rate = scene.ego
    lateral = np.zeros(2) if scene.lateral is None else scene.lateral
    ego = Fields(
        rear_axle=StateSE2(x, y, heading),
        dynamic_car_state=Fields(
            rear_axle_velocity_2d=StateVector2D(speed, lateral[0]),
            rear_axle_acceleration_2d=StateVector2D(acceleration, lateral[1]),
            angular_velocity=yaw_rate,
        ),
        tire_steering_angle=steer,
        time_point=TimePoint(START_US),
    )
    knots = to_world(np.concatenate([np.zeros((1, 3)), recorded.reference]), scene.pose)
    times = [TimePoint(START_US + 500_000 * k) for k in range(len(knots))]
    states = [Fields(rear_axle=StateSE2(*knot), time_point=time) for knot, time in zip(knots, times)]  # noqa: B905
    line = [StateSE2(*point, 0.0) for point in np.repeat(scene.centreline, 2, axis=0)]  # lanes share their ends
    return Fields(
        file_path=path,
        trajectory=InterpolatedTrajectory(states),
        ego_state=ego,
        observation=observation_of(scene, recorded.collided),
        centerline=Fields(discrete_path=line),
        route_lane_ids=[token for token in drivable.tokens if token.startswith("lane")],
        drivable_area_map=drivable,
    )


def write(folder: Path, records: List[Recorded]) -> None:
    """<folder>/cache and <folder>/logs, as NAVSIM's scripts and download make them."""
    paths, logs, maps = ["file_name"], {}, {}
    for recorded in records:
        key = id(recorded.scene.road.raster)
        if key not in maps:
            maps[key] = drivable_map(recorded.scene.road)
        path = folder / "cache" / recorded.log_name / "unknown" / recorded.token / "metric_cache.pkl"
        path.parent.mkdir(parents=True)
        path.write_bytes(lzma.compress(pickle.dumps(cache_of(recorded, maps[key], path)), preset=0))
        paths.append(str(path))
        past = np.concatenate([to_frame(recorded.scene.history, recorded.scene.pose), np.zeros((1, 3))])
        api = MapApi({token: recorded.scene.speed_limit for token in maps[key].tokens})
        metadata = Fields(log_name=recorded.log_name, initial_token=recorded.token, num_history_frames=4)
        present = np.flatnonzero(~np.isnan(recorded.scene.agents[0, :, 0]))
        now = [f"track{n}" for n in present if f"track{n}" not in recorded.later]
        shown = ([], [], [], now, now + recorded.later)
        frames = [Fields(annotations=Fields(track_tokens=tracks)) for tracks in shown]
        scene = NavsimScene(metadata, api, recorded.logged, past, frames)
        logs.setdefault(recorded.log_name, {})[recorded.token] = scene
    (folder / "cache" / "metadata").mkdir()
    (folder / "cache" / "metadata" / "standin_metadata_node_0.csv").write_text("\n".join(paths) + "\n")
    (folder / "logs").mkdir()
    for name, scenes in logs.items():
        (folder / "logs" / f"{name}.pkl").write_bytes(pickle.dumps(scenes))
