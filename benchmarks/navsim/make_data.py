"""A small synthetic data set in the formats that NAVSIM reads: nuPlan maps and OpenScene's logs at 2 Hz.

python -m benchmarks.navsim.make_data DATA_ROOT --logs 24

DATA_ROOT/maps as NUPLAN_MAPS_ROOT, DATA_ROOT/navsim_logs/mini/<log>.pkl. No sensor data.
"""

# ruff: noqa: B023 - its closures are called within their loop

import argparse
import pickle
from pathlib import Path

import numpy as np

from benchmarks.navsim.town import LOCATIONS, make_towns, normals

DT = 0.1
AXLE_TO_CENTRE = 1.461
EGO_LENGTH, EGO_WIDTH = 5.176, 2.297
CAMERAS = ("CAM_F0", "CAM_L0", "CAM_L1", "CAM_L2", "CAM_R0", "CAM_R1", "CAM_R2", "CAM_B0")


def token(rng) -> str:
    return rng.bytes(8).hex()


class Path_:
    """A driven path: points each 0.5 m, arc length, connectors on it, roadblocks."""

    def __init__(self, town, lane_id, rng, length, offset=0.0, wobble=0.0):
        points, self.blocks, self.pieces = [], [], []
        total, lane = 0.0, town.lanes[lane_id]
        while total < length:
            for piece in (lane, None):
                if piece is None:
                    if not lane.next:
                        length = 0.0
                        break
                    piece = town.connectors[int(rng.choice(lane.next))]
                    following = town.lanes[piece.end]
                size = np.hypot(*np.diff(piece.points, axis=0).T).sum()
                self.pieces.append((total, total + size, piece.id, hasattr(piece, "intersection")))
                if not self.blocks or self.blocks[-1] != piece.block:
                    self.blocks.append(piece.block)
                points.append(piece.points if not points else piece.points[1:])
                total += size
            else:
                lane = following
        line = np.concatenate(points)
        arc = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
        self.scale = arc[-1] / total if total else 1.0
        self.arc = np.arange(0.0, arc[-1], 0.5)
        line = np.stack([np.interp(self.arc, arc, line[:, k]) for k in (0, 1)], axis=-1)
        for _ in range(6):  # what joints leave
            line[1:-1] = 0.25 * line[:-2] + 0.5 * line[1:-1] + 0.25 * line[2:]
        phase = rng.uniform(0, 2 * np.pi)
        shift = offset + wobble * np.sin(2 * np.pi * self.arc / rng.uniform(45, 80) + phase)
        self.points = line + shift[:, None] * normals(line)
        self.arc = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(self.points, axis=0).T))])
        tangent = np.gradient(self.points, axis=0)
        self.heading = np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))
        self.curvature = np.abs(np.gradient(self.heading) / np.maximum(np.gradient(self.arc), 1e-6))

    def pose(self, s):
        return np.array([np.interp(s, self.arc, each) for each in (self.points[:, 0], self.points[:, 1], self.heading)])


class Car:
    def __init__(self, path, s, speed, length, width, kind, limit_of, factor, rng):
        self.path, self.s, self.v, self.a = path, s, speed, 0.0
        self.length, self.width, self.kind, self.factor = length, width, kind, factor
        self.token, self.held, self.limit_of = token(rng), set(), limit_of
        self.first = None

    @property
    def pose(self):
        return self.path.pose(self.s)

    def target(self):
        cap = self.limit_of(self.path, self.s) * self.factor
        ahead = (self.path.arc >= self.s) & (self.path.arc <= self.s + 35)
        bend = np.sqrt(1.8 / np.maximum(self.path.curvature[ahead], 1e-3))
        reach = np.sqrt(bend**2 + 2 * 1.2 * (self.path.arc[ahead] - self.s))
        return min(cap, reach.min() if len(reach) else cap)


class Traffic:
    def __init__(self, town, rng, cars=22, walkers=14):
        self.town, self.rng = town, rng
        self.holders = {k: [] for k in town.intersections}
        self.conflicts = {}
        limit = {lane.id: (11.0 if np.isnan(lane.limit) else lane.limit) for lane in town.lanes.values()}
        limit.update({c.id: min(c.limit, 11.0) for c in town.connectors.values()})

        def limit_of(path, s):
            for start, end, identity, _ in path.pieces:
                if start * path.scale <= s <= end * path.scale:
                    return limit[identity]
            return 9.0

        self.limit_of = limit_of
        self.cars, taken = [], []
        lanes = list(town.lanes)
        while len(self.cars) < cars:
            lane = int(rng.choice(lanes))
            s = rng.uniform(8, 75)
            ego = not self.cars
            path = Path_(town, lane, rng, 700.0, wobble=rng.uniform(0.05, 0.25) if ego else rng.uniform(0, 0.2))
            at = path.pose(s)[:2]
            if any(np.hypot(*(at - other)) < 14 for other in taken):
                continue
            taken.append(at)
            if ego:
                car = Car(
                    path, s, rng.uniform(2, 9), EGO_LENGTH, EGO_WIDTH, "ego", limit_of, rng.uniform(0.75, 1.0), rng
                )
            elif rng.random() < 0.12:
                path = Path_(town, lane, rng, 700.0, offset=-1.1)
                car = Car(path, s, 3.0, 1.8, 0.7, "bicycle", lambda *_: 4.5, rng.uniform(0.8, 1.1), rng)
            else:
                long = rng.random() < 0.1
                size = (rng.uniform(8, 12), 2.6) if long else (rng.uniform(4.0, 5.2), rng.uniform(1.7, 2.05))
                car = Car(path, s, rng.uniform(0, 8), *size, "vehicle", limit_of, rng.uniform(0.6, 1.05), rng)
            self.cars.append(car)
        self.still, self.walkers = [], []
        for points, half in town.roads:
            for side in (1.0, -1.0):
                n = normals(points) * side
                heading = np.arctan2(*np.gradient(points, axis=0)[len(points) // 2][::-1])
                k = int(rng.integers(12, len(points) - 12))
                heading = np.arctan2(*(points[k + 1] - points[k])[::-1]) + (0 if side < 0 else np.pi)
                roll = rng.random()
                out = lambda d: points[k] + (half + d) * n[k]  # noqa: E731
                if roll < 0.5:  # parked at the kerb, with noise in its speed
                    self.still.append(
                        ("vehicle", out(1.3), heading, rng.uniform(4, 5), 1.9, rng.choice([0.0, 0.02, 0.09]))
                    )
                elif roll < 0.65:
                    self.still.append(("barrier", out(0.1), heading, 2.0, 0.5, 0))
                elif roll < 0.85:
                    for step in range(3):
                        at = points[k + 3 * step] + (half - 0.4) * n[k + 3 * step]
                        self.still.append(("traffic_cone", at, 0.0, 0.4, 0.4, 0))
                elif roll < 0.95:
                    self.still.append(("czone_sign", out(0.4), heading, 0.6, 1.0, 0))
                else:
                    self.still.append(("generic_object", out(0.5), heading, 1.2, 0.8, 0))
        for p in town.carparks.values():
            centre = np.array(p.centroid.coords[0])
            self.still.append(("vehicle", centre, 0.3, 4.6, 1.9, 0.0))
        self.still = [(*each, token(rng)) for each in self.still]
        for _ in range(walkers):
            points, half = town.roads[int(rng.integers(len(town.roads)))]
            side = rng.choice([-1.0, 1.0])
            k, crossing = rng.uniform(10, len(points) - 10), rng.random() < 0.25
            self.walkers.append(
                dict(
                    points=points,
                    half=half,
                    side=side,
                    k=k,
                    crossing=crossing,
                    start=rng.uniform(0, 25),
                    at=0.0,
                    speed=rng.uniform(0.9, 1.7) * rng.choice([-1, 1]),
                    token=token(rng),
                    kind="pedestrian",
                )
            )

    def walker_pose(self, w):
        n = normals(w["points"])
        k = int(np.clip(w["k"], 0, len(w["points"]) - 2))
        along = w["points"][k + 1] - w["points"][k]
        along = along / np.hypot(*along)
        base = w["points"][k] + (w["k"] - k) * along
        if w["crossing"]:
            position = base + w["side"] * (w["half"] + 2.0 - w["at"]) * n[k]
            direction = -w["side"] * n[k]
            speed = abs(w["speed"]) if 0 < w["at"] < 2 * w["half"] + 4 else 0.0
        else:
            position = base + w["side"] * (w["half"] + 2.0) * n[k]
            direction, speed = along * np.sign(w["speed"]), abs(w["speed"])
        return np.array([*position, np.arctan2(direction[1], direction[0])]), speed

    def clash(self, a, b):
        key = (min(a, b), max(a, b))
        if key not in self.conflicts:
            first, second = self.town.connectors[a], self.town.connectors[b]
            self.conflicts[key] = first.start != second.start and first.polygon.intersects(second.polygon)
        return self.conflicts[key]

    def step(self, time):
        poses = np.array([car.pose for car in self.cars])
        walking = [self.walker_pose(w) for w in self.walkers]
        others = np.concatenate([poses[:, :2], [pose[:2] for pose, _ in walking]])
        radius = np.array([car.length / 2 for car in self.cars] + [0.4] * len(walking))
        half_width = np.array([car.width / 2 for car in self.cars] + [0.4] * len(walking))
        speeds = np.array([car.v for car in self.cars] + [0.0] * len(walking))
        # Who may enter an intersection: first come, first served among those whose connectors cross.
        requests = []
        for car in self.cars:
            for start, end, identity, is_connector in car.path.pieces:
                start, end = start * car.path.scale, end * car.path.scale
                if not is_connector:
                    continue
                if car.s - car.length > end:
                    car.held.discard(identity)
                elif start - 22 < car.s + car.length / 2 and identity not in car.held:
                    requests.append((start - car.s, car, identity))
                    break
        for _, car, identity in sorted(requests, key=lambda each: each[0]):
            if not any(
                self.clash(identity, held)
                for other in self.cars
                if other is not car
                for held in other.held
                if self.town.connectors[held].intersection == self.town.connectors[identity].intersection
            ):
                car.held.add(identity)
        for index, car in enumerate(self.cars):
            gap, leader_speed = 200.0, car.v
            inside = (car.path.arc > car.s + 0.2) & (car.path.arc < car.s + 45)
            ahead, arcs = car.path.points[inside], car.path.arc[inside]
            if len(ahead):
                distance = np.hypot(*(ahead[:, None] - others[None]).transpose(2, 0, 1))
                near = distance < (car.width / 2 + half_width + 0.35)
                near[:, index] = False
                for other in np.flatnonzero(near.any(axis=0)):
                    free = arcs[near[:, other].argmax()] - car.s - car.length / 2 - min(radius[other], 2.5)
                    if car.kind == "ego":
                        free -= AXLE_TO_CENTRE
                    if free < gap:
                        gap, leader_speed = max(free, 0.1), speeds[other]
            for start, _, identity, is_connector in car.path.pieces:
                start = start * car.path.scale
                front = car.s + car.length / 2 + (AXLE_TO_CENTRE if car.kind == "ego" else 0)
                if is_connector and identity not in car.held and -3 < start - front < gap:
                    gap, leader_speed = max(start - front, 0.1), 0.0
                    break
            if car.path.arc[-1] - car.s < 30:
                gap, leader_speed = min(gap, car.path.arc[-1] - car.s), 0.0
            target = max(car.target(), 0.5)
            wanted = 2.0 + max(0.0, 1.3 * car.v + car.v * (car.v - leader_speed) / (2 * np.sqrt(1.4 * 2.0)))
            a = 1.4 * (1 - (car.v / target) ** 4 - (wanted / gap) ** 2)
            a = np.clip(a, -5.0 if gap < 4 else -2.8, 1.4)
            car.a += 0.25 * (a - car.a)
        for car in self.cars:
            car.v = max(0.0, car.v + DT * car.a)
            car.s = min(car.s + DT * car.v, car.path.arc[-1] - 1.0)
        for w in self.walkers:
            if w["crossing"]:
                if time > w["start"]:
                    w["at"] = min(w["at"] + DT * abs(w["speed"]), 2 * w["half"] + 4)
            else:
                w["k"] = float(np.clip(w["k"] + DT * w["speed"], 3, len(w["points"]) - 4))


def command_of(heading, later):
    turn = (later - heading + np.pi) % (2 * np.pi) - np.pi
    return np.array([turn > 0.35, abs(turn) <= 0.35, turn < -0.35, 0]).astype(int)


def make_log(town, location, number, seconds, rng):
    """The frames of a log at 2 Hz."""
    started = f"2021.{6 + number % 5:02d}.{1 + number % 27:02d}.{10 + number % 9}.15.{number:02d}"
    log_name = f"{started}_veh-{30 + number}_{number:05d}_{number + 300:05d}"
    traffic = Traffic(town, rng)
    ego = traffic.cars[0]
    for _ in range(30):
        traffic.step(0.0)
    states, time0 = [], 1_622_600_000_000_000 + number * 3_600_000_000 + int(rng.integers(1_000_000))
    scene_tokens = [token(rng) for _ in range(10)]
    route = [str(block) for block in ego.path.blocks]
    history = []
    for step in range(int(seconds / DT)):
        history.append((ego.pose, ego.v, ego.a))
        if step % 5 == 0:
            cars = [(car, car.pose.copy(), car.v) for car in traffic.cars[1:]]
            walking = [(w, *traffic.walker_pose(w)) for w in traffic.walkers]
            lights = []
            for area in town.intersections:
                held = {
                    town.connectors[h].start
                    for car in traffic.cars
                    for h in car.held
                    if town.connectors[h].intersection == area
                }
                if area % 2 == 0:
                    lights += [
                        (c.id, bool(held and c.start not in held))
                        for c in town.connectors.values()
                        if c.intersection == area
                    ]
            states.append((step, cars, walking, lights))
        traffic.step(step * DT)
    headings = np.unwrap([pose[2] for pose, *_ in history])
    frames, ghost_until = [], -1
    hidden = {}
    sizes = {}
    for k, (step, cars, walking, lights) in enumerate(states):
        pose, speed, acceleration = history[step]
        around = slice(max(step - 2, 0), step + 3)
        rate = float(np.polyfit(np.arange(len(headings[around])) * DT, headings[around], 1)[0])
        sign = -1.0 if town.mirror else 1.0
        heading = town.world_heading(pose[2])
        x, y = town.world(pose[:2])
        boxes, names, velocities, tracks = [], [], [], []

        def add(name, centre, yaw, length, width, velocity, track):
            if np.hypot(*(np.asarray(centre) - pose[:2])) > 78:
                return
            if hidden.get(track, -1) >= k:
                return
            if rng.random() < 0.015:
                hidden[track] = k + int(rng.integers(0, 4))  # not seen for a while
                return
            grown = sizes.setdefault(track, rng.uniform(0.98, 1.02, 2)) * rng.uniform(0.985, 1.015, 2)
            wx, wy = town.world(np.asarray(centre) + rng.normal(0, 0.02, 2))
            dx, dy = wx - x, wy - y
            cos, sin = np.cos(heading), np.sin(heading)
            yaw = town.world_heading(yaw + rng.normal(0, 0.008)) - heading
            vx, vy = velocity * np.cos(yaw), velocity * np.sin(yaw)
            boxes.append(
                [
                    dx * cos + dy * sin,
                    -dx * sin + dy * cos,
                    0.8,
                    length * grown[0],
                    width * grown[1],
                    1.6,
                    (yaw + np.pi) % (2 * np.pi) - np.pi,
                ]
            )
            names.append(name)
            velocities.append([vx, vy, 0.0])
            tracks.append(track)

        for car, at, v in cars:
            add(car.kind, at[:2], at[2], car.length, car.width, v, car.token)
        for w, at, v in walking:
            add("pedestrian", at[:2], at[2], 0.7, 0.7, v, w["token"])
        for kind, at, yaw, length, width, v, name in traffic.still:
            add(kind, at, yaw, length, width, v if kind == "vehicle" else 0.0, name)
        if rng.random() < 0.08:  # a track of one frame
            away = rng.uniform(10, 40) * np.array([np.cos(a := rng.uniform(0, 6.28)), np.sin(a)])
            add("pedestrian", pose[:2] + away, 0.0, 0.6, 0.6, 0.5, token(rng))
        if number % 6 == 4 and k % 20 == 6:  # a false box on the ego's own
            ghost, ghost_until = token(rng), k + 3
        if k <= ghost_until:
            forward = np.array([np.cos(pose[2]), np.sin(pose[2])])
            add("generic_object", pose[:2] + 3.4 * forward, pose[2], 0.5, 0.5, 0.0, ghost)
        half = heading / 2
        later = headings[min(step + 40, len(headings) - 1)] * sign
        frames.append(
            {
                "token": token(rng),
                "frame_idx": k,
                "timestamp": int(time0 + step * 100_000 + rng.integers(-2500, 2500)),
                "log_name": log_name,
                "log_token": f"{number:016x}",
                "scene_name": f"{log_name}-{k // 40:04d}",
                "scene_token": scene_tokens[k // 40],
                "map_location": location,
                "roadblock_ids": list(route),
                "vehicle_name": f"veh-{30 + number}",
                "can_bus": np.zeros(18),
                "lidar_path": f"{log_name}/MergedPointCloud/{token(rng)}.pcd",
                "lidar2ego_translation": np.zeros(3),
                "lidar2ego_rotation": np.array([1.0, 0, 0, 0]),
                "ego2global_translation": np.array([x, y, 606.7]),
                "ego2global_rotation": np.array([np.cos(half), 0.0, 0.0, np.sin(half)]),
                "ego_dynamic_state": [
                    speed,
                    0.01 * rng.normal(),
                    acceleration + 0.05 * rng.normal(),
                    sign * rate * speed + 0.05 * rng.normal(),
                ],
                "traffic_lights": lights,
                "driving_command": command_of(heading, later),
                "cams": {
                    name: {
                        "data_path": f"{log_name}/{name}/{token(rng)}.jpg",
                        "sensor2lidar_rotation": np.eye(3),
                        "sensor2lidar_translation": np.zeros(3),
                        "cam_intrinsic": np.eye(3),
                        "distortion": np.zeros(5),
                    }
                    for name in CAMERAS
                },
                "anns": {
                    "gt_boxes": np.array(boxes, np.float64).reshape(-1, 7),
                    "gt_names": np.array(names),
                    "gt_velocity_3d": np.array(velocities, np.float64).reshape(-1, 3),
                    "instance_tokens": [token(rng) for _ in names],
                    "track_tokens": tracks,
                },
            }
        )
    if number % 8 == 7:  # a part without a route, which NAVSIM leaves out
        for frame in frames[:14]:
            frame["roadblock_ids"] = []
    return log_name, frames


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--logs", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=34.0)
    options = parser.parse_args()
    towns = make_towns(options.root / "maps")
    folder = options.root / "navsim_logs" / "mini"
    folder.mkdir(parents=True, exist_ok=True)
    (options.root / "sensor_blobs" / "mini").mkdir(parents=True, exist_ok=True)
    for number in range(options.logs):
        location = list(LOCATIONS)[number % 4]
        rng = np.random.default_rng([7, number])
        name, frames = make_log(towns[location], location, number, options.seconds, rng)
        with open(folder / f"{name}.pkl", "wb") as file:
            pickle.dump(frames, file)
        speeds = [frame["ego_dynamic_state"][0] for frame in frames]
        print(
            name, location, len(frames), "frames, speed", np.round(np.percentile(speeds, [0, 50, 100]), 1), flush=True
        )


if __name__ == "__main__":
    main()
