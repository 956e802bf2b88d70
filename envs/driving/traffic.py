"""highway-env's roundabout and intersection, logged while a driver of its own kind takes the ego vehicle through.

Needs highway-env (requirements-driving.txt), which nothing else here imports. Its y axis points down on the screen; it
is mirrored here, so that vehicles keep to the right and angles are counter-clockwise.
"""

import numpy as np
from highway_env.envs.intersection_env import IntersectionEnv
from highway_env.envs.roundabout_env import RoundaboutGenericEnv
from highway_env.vehicle.behavior import IDMVehicle
from matplotlib.path import Path as Polygon
from scipy.ndimage import distance_transform_edt, gaussian_filter1d

from envs.driving.scene import DRIVABLE, MAX_LANES, Log, Road
from envs.driving.vehicle import DT, LENGTH, MAX_STEER, WHEELBASE, wrap

FAMILIES = ("roundabout", "intersection")
RESOLUTION = 0.2  # metres
MARGIN = 10.0  # metres of grid around the lanes
CLOSING, SHOULDER = 2.5, 0.3  # metres: gaps of the lanes that are filled, and what is drivable beside them
SPEED_LIMIT = 10.0  # m/s, of the planner's proposals
TARGET_SPEEDS = (6.5, 10.0)  # m/s, of the logging driver
SMOOTHING = 2.0  # metres, standard deviation: highway-env's entries meet the roundabout at an angle
SPAWN_STEPS = 10  # the intersection gets new vehicles once a second
MIRROR = np.array([1.0, -1.0])


class RoundaboutVehicle(IDMVehicle):
    """The other vehicles of the roundabout. Classes of their own, as highway-env changes a class's constants."""


class IntersectionVehicle(IDMVehicle):
    """The other vehicles of the intersection."""


class LoggingDriver(IDMVehicle):
    """The ego's driver: gentler than highway-env's, whose accelerations are out of NAVSIM's comfort bounds.

    After `place` was called it no longer drives: the vehicle is where it was placed.
    """

    COMFORT_ACC_MAX = 1.2
    COMFORT_ACC_MIN = -2.0
    ACC_MAX = 2.5
    placed = False

    def act(self, action: object = None) -> None:
        if not self.placed:
            super().act(action)

    def step(self, dt: float) -> None:
        if not self.placed:
            super().step(dt)

    def state(self) -> list:
        """Middle x, y, heading and speed, mirrored."""
        return [*self.position * MIRROR, -self.heading, self.speed]

    def place(self, rear_axle: np.ndarray, speed: float) -> None:
        """Puts the vehicle's rear axle at a pose [3] of the mirrored world, for the others to react to."""
        self.placed = True
        x, y, heading = rear_axle
        half = self.LENGTH / 2
        self.position = np.array([x + half * np.cos(heading), y + half * np.sin(heading)]) * MIRROR
        self.heading, self.speed = -heading, speed
        self.on_state_update()
        self.follow_road()


def make_environment(family: str, seed: int) -> tuple:
    """(highway-env's environment after a reset with `seed`, the ego's LoggingDriver, who has a random destination)."""
    if family == "roundabout":
        environment = RoundaboutGenericEnv({"other_vehicles_type": f"{__name__}.RoundaboutVehicle"})
        destinations = ("exr", "nxr", "wxr")
    else:
        environment = IntersectionEnv({"other_vehicles_type": f"{__name__}.IntersectionVehicle"})
        destinations = ("o1", "o2", "o3")
    environment.reset(seed=seed)
    road, ego = environment.road, environment.vehicle
    generator = environment.np_random
    driver = LoggingDriver(
        road,
        ego.position,
        ego.heading,
        ego.speed,
        target_speed=generator.uniform(*TARGET_SPEEDS),
        enable_lane_change=False,
    )
    driver.plan_route_to(destinations[generator.integers(len(destinations))])
    road.vehicles[road.vehicles.index(ego)] = driver
    environment.controlled_vehicles = [driver]
    return environment, driver


def route_line(driver: IDMVehicle, step: float = 1.0) -> np.ndarray:
    """The middle [m, 2] of the lanes on the driver's route, from the beginning of its present lane, mirrored."""
    network = driver.road.network
    index, route, points = driver.lane_index, list(driver.route), []
    while True:
        lane = network.get_lane(index)
        longitudinal = np.arange(0.0, lane.length, step)
        points += [lane.position(s, 0.0) for s in longitudinal]
        end = lane.position(lane.length, 0.0)
        following = network.next_lane(index, route=route, position=end, np_random=driver.road.np_random)
        if len(route) == 0 or following == index:
            break
        index = following
    line = np.stack([*points, end]) * MIRROR
    apart = np.hypot(*np.diff(line, axis=0).T) > step / 4
    return gaussian_filter1d(line[np.concatenate([[True], apart])], SMOOTHING / step, axis=0, mode="nearest")


def simulate(family: str, seed: int, steps: int) -> Log:
    """A log of up to `steps` states, which ends early where the ego has a collision. It depends on nothing else."""
    environment, driver = make_environment(family, seed)
    centreline = route_line(driver)
    ego, frames = [], []
    for step in range(steps):
        if driver.crashed:
            break
        ego.append(driver.state())
        frames.append(frame(environment, driver))
        advance(environment, step)
    return Log(rear_axle_states(np.array(ego)), *table(frames), centreline, SPEED_LIMIT)


def frame(environment: object, driver: LoggingDriver) -> dict:
    """{vehicle: centre x, y, heading, speed} of all but the driver, mirrored."""
    others = [vehicle for vehicle in environment.road.vehicles if vehicle is not driver]
    return {v: (*v.position * MIRROR, wrap(-v.heading), v.speed) for v in others}


def table(frames: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """(agents [T, N, 4], size [N, 2]) of T frames, in the order in which the vehicles appear, NaN while absent."""
    columns: dict = {}
    for vehicle in (vehicle for each in frames for vehicle in each):
        columns.setdefault(vehicle, len(columns))
    agents = np.full((len(frames), len(columns), 4), np.nan)
    for step, each in enumerate(frames):
        for vehicle, state in each.items():
            agents[step, columns[vehicle]] = state
    return agents, np.array([(vehicle.LENGTH, vehicle.WIDTH) for vehicle in columns]).reshape(-1, 2)


def advance(environment: object, step: int) -> None:
    """Drives all vehicles on by 0.1 s; step counts from 0."""
    road = environment.road
    road.act()
    road.step(DT)
    if isinstance(environment, IntersectionEnv) and (step + 1) % SPAWN_STEPS == 0:
        environment._clear_vehicles()
        environment._spawn_vehicle(spawn_probability=environment.config["spawn_probability"])


def rear_axle_states(centre: np.ndarray) -> np.ndarray:
    """EGO_NAMES [T, 7] from highway-env's x, y, heading, speed [T, 4] of a bicycle with its middle half way.

    That bicycle's rear axle is LENGTH / 2 behind its middle and never slips, as the scorer's. Rates are those of the
    step before. The acceleration is the middle's: the axle's also holds how fast highway-env turns its wheels, at once.
    """
    half = IDMVehicle.LENGTH / 2
    x, y, heading, speed = centre.T
    yaw_rate = np.diff(np.unwrap(heading), prepend=heading[0]) / DT
    rear_speed = np.sign(speed) * np.sqrt(np.maximum(speed**2 - (half * yaw_rate) ** 2, 0.0))
    acceleration = np.diff(speed, prepend=speed[0]) / DT
    steer = np.clip(np.arctan2(WHEELBASE * yaw_rate, np.maximum(rear_speed, 0.0)), -MAX_STEER, MAX_STEER)
    position = (x - half * np.cos(heading), y - half * np.sin(heading))
    return np.stack([*position, wrap(heading), rear_speed, acceleration, steer, yaw_rate], axis=-1)


# ---- The road as a grid ----


def rasterise(family: str) -> Road:
    """The family's road.

    In the raster every lane reaches a vehicle's length beyond its ends, so that a vehicle on the seam between two
    segments of one lane is within one lane, and single successors share their predecessor's bit.
    """
    environment, _ = make_environment(family, seed=0)
    network = environment.road.network
    lanes = network.lanes_dict()
    points = np.concatenate([_outline(lane) for lane in lanes.values()])
    origin = np.floor(points.min(axis=0)) - MARGIN
    shape = tuple(np.ceil((points.max(axis=0) + MARGIN - origin) / RESOLUTION).astype(int))
    paved, raster = np.zeros(shape, np.uint32), np.zeros(shape, np.uint32)
    for index, bit in _lane_bits(lanes).items():
        _fill(paved, _outline(lanes[index]), origin, DRIVABLE)
        _fill(raster, _outline(lanes[index], LENGTH), origin, np.uint32(1 << bit))
    road = distance_transform_edt(paved == 0) * RESOLUTION <= CLOSING
    road = (distance_transform_edt(road) * RESOLUTION > CLOSING) | (paved > 0)
    road = distance_transform_edt(~road) * RESOLUTION <= SHOULDER
    raster[road] |= DRIVABLE
    raster[~road] = 0
    intersection = np.zeros(shape, bool)
    if family == "intersection":
        reach = abs(lanes[("o0", "ir0", 0)].end[1])  # where the lanes branch
        x, y = (origin[axis] + RESOLUTION * np.arange(shape[axis]) for axis in (0, 1))
        intersection = (np.abs(x) <= reach)[:, None] & (np.abs(y) <= reach)
    return Road(raster, intersection, origin, RESOLUTION)


def _outline(lane: object, longer: float = 0.0) -> np.ndarray:
    """The polygon [m, 2] of a lane, `longer` metres longer at either end, mirrored."""
    longitudinal = np.linspace(-longer, lane.length + longer, int(lane.length + 2 * longer) * 2 + 2)
    half = lane.width / 2
    left = [lane.position(s, half) for s in longitudinal]
    right = [lane.position(s, -half) for s in longitudinal[::-1]]
    return np.array(left + right) * MIRROR


def _lane_bits(lanes: dict) -> dict:
    """A bit for each lane index; a lane that alone follows a lane which leads nowhere else shares its bit."""
    successors = {index: [other for other in lanes if other[0] == index[1]] for index in lanes}
    predecessors = {index: [other for other in lanes if other[1] == index[0]] for index in lanes}
    bits: dict = {}
    for index in sorted(lanes):
        first = index
        while len(predecessors[first]) == 1 and len(successors[predecessors[first][0]]) == 1:
            first = predecessors[first][0]
        bits[index] = bits.setdefault(first, len(set(bits.values())))
    if max(bits.values()) >= MAX_LANES:
        raise ValueError(f"{max(bits.values()) + 1} lanes do not fit into the {MAX_LANES} bits of a raster")
    return bits


def _fill(raster: np.ndarray, outline: np.ndarray, origin: np.ndarray, bit: np.uint32) -> None:
    """Sets `bit` in the cells of the raster whose centres are within the polygon `outline` [m, 2]."""
    low = np.floor((outline.min(axis=0) - origin) / RESOLUTION).astype(int)
    high = np.ceil((outline.max(axis=0) - origin) / RESOLUTION).astype(int) + 1
    x, y = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]), indexing="ij")
    centres = np.stack([x, y], axis=-1) * RESOLUTION + origin
    inside = Polygon(outline).contains_points(centres.reshape(-1, 2)).reshape(x.shape)
    raster[low[0] : high[0], low[1] : high[1]][inside] |= bit
