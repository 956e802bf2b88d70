"""Driving on: a new plan every half second, in highway-env's traffic, which reacts. Its reward is not PDMS."""

from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.driving.bandit import data_path, read_data
from envs.driving.collect import FAMILIES, traffic_module
from envs.driving.comfort import comfort_verdicts
from envs.driving.curate import scene_at
from envs.driving.observation import OBSERVATION_DIM
from envs.driving.planner import along_route
from envs.driving.scene import HISTORY_STEPS, Log, Scene, project
from envs.driving.scene_files import read_road, road_path
from envs.driving.score import Motion
from envs.driving.vehicle import (
    A_X,
    HEADING,
    KNOT_STEPS,
    STEER,
    STEPS,
    V_X,
    YAW_RATE,
    X,
    Y,
    initial_state,
    simulate,
)

WARM_UP = HISTORY_STEPS[0]  # steps that the logging driver takes before the first plan: its past is observed
MAX_PLANS = 30  # 15 s
ROUTE_END = 10.0  # metres before the end of the route where an episode is over


class Drive:
    """One episode: the traffic, the ego's states and the others' frames so far. Plans are [8, 3], not actions."""

    def __init__(self, folder: Path, seed: int):
        self.traffic = traffic_module()
        family = FAMILIES[seed % len(FAMILIES)]
        self.road = read_road(road_path(folder, family))
        self.environment, self.driver = self.traffic.make_environment(family, seed)
        self.centreline = self.traffic.route_line(self.driver)
        self.frames, middles = [self.traffic.frame(self.environment, self.driver)], [self.driver.state()]
        for _ in range(WARM_UP):
            self._advance()
            middles.append(self.driver.state())
        ego = self.traffic.rear_axle_states(np.array(middles))
        self.states = np.stack([initial_state(row[:3], *row[3:]) for row in ego])  # [T, 11], as many as frames
        self.driver.place(ego[-1, :3], ego[-1, 3])

    def _advance(self) -> None:
        self.traffic.advance(self.environment, len(self.frames) - 1)
        self.frames.append(self.traffic.frame(self.environment, self.driver))

    def scene(self, step: int = -1) -> Scene:
        """The scene that begins at state number `step`, by default now: of the others what has happened since."""
        ego = self.states[:, [X, Y, HEADING, V_X, A_X, STEER, YAW_RATE]]
        log = Log(ego, *self.traffic.table(self.frames), self.centreline, self.traffic.SPEED_LIMIT)
        return scene_at(log, step % len(ego), self.road)

    def step(self, plan: np.ndarray) -> Dict[str, Any]:
        """Drives the first half second of a plan [8, 3] while the others react; returns what happened in it.

        collision: at fault, by the rules of the score's NC; off_road; progress: metres of the route; comfortable: the
        verdict on the last 4 s, absent before there are as many since the first plan; arrived: the route is over.
        """
        begin = len(self.states) - 1
        driven = simulate(plan[None], self.states[-1])[0, 1 : KNOT_STEPS + 1]
        for state in driven:
            self._advance()
            self.driver.place(state[[X, Y, HEADING]], state[V_X])
        self.states = np.concatenate([self.states, driven])
        motion = Motion(self.scene(begin), self.states[None, begin:])
        arc, _ = project(self.states[-1, [X, Y]], self.centreline)
        length = np.hypot(*np.diff(self.centreline, axis=0).T).sum()
        happened = {
            "collision": bool(motion.no_collision()[0][0] < 1),
            "off_road": bool(motion.off_road.any()),
            "progress": float(motion.raw_progress()[0]),
            "arrived": bool(arc > length - ROUTE_END),
        }
        if len(self.states) - WARM_UP > STEPS:
            happened["comfortable"] = bool(comfort_verdicts(self.states[None, -STEPS - 1 :]).all())
        return happened


class DrivingClosedLoop(gymnasium.Env):
    """An episode of at most 15 s: an action is a plan, of which the first half second is driven.

    Observations and actions are those of the one-step task. The reward is the metres of route driven in the step, 0 in
    one that collides at fault or leaves the road, which ends the episode, as does the end of the route. It is not PDMS.
    info holds what `Drive.step` returns, and success: neither has happened.
    """

    def __init__(self, folder: Path, kind: str):
        self.folder = folder
        self.data = read_data(data_path(folder, kind), kind)
        self.encoding = self.data.encoding
        self.observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATION_DIM,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (self.encoding.action_dim,), np.float32)

    def reset(self, *, seed: Optional[int] = None, options: Optional[dict] = None) -> Tuple[np.ndarray, Dict[str, Any]]:
        super().reset(seed=seed)
        self.drive = Drive(self.folder, int(self.np_random.integers(1 << 31)) if seed is None else seed)
        self.plans = 0
        return self.data.observe(self.drive.scene()), {}

    def step(self, action: np.ndarray) -> Tuple[np.ndarray, float, bool, bool, Dict[str, Any]]:
        base = along_route(self.drive.scene())
        happened = self.drive.step(self.encoding.decode(np.clip(action, -1.0, 1.0).astype(np.float64), base))
        self.plans += 1
        failed = happened["collision"] or happened["off_road"]
        reward = 0.0 if failed else happened["progress"]
        info = {**happened, "success": float(not failed)}
        over = failed or happened["arrived"]
        return self.data.observe(self.drive.scene()), reward, over, self.plans >= MAX_PLANS and not over, info
