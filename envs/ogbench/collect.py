"""Episodes by OGBench's scripted oracles, collected as the official data sets were (its generation parameters)."""

import functools
from typing import Any, Dict, List, Tuple

import gymnasium
import numpy as np
import ogbench  # noqa: F401  (registers the environments)
from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

from envs.ogbench.environment import build
from envs.ogbench.names import VERSION, official_episodes

GENERATOR_VERSION = 1  # raise it when the same seed no longer gives the same episodes

# play: open-loop plans, with noise in the plan
PLAN_NOISE = 0.1
PLAN_NOISE_SMOOTHING = 0.5
# noisy: closed loop, with noise of a level drawn per episode on the actions and, now and then, a random action
MARKOV_MIN_NORM = 0.4
MARKOV_MAX_NOISE = 0.1
MARKOV_NOISE_SCALE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])  # of x, y, z, yaw, gripper
RANDOM_ACTION_PROBABILITY = {"cube": 0.1, "scene": 0.1, "puzzle": 0.2}
SCENE_CUBE_MAX_STEP = 100
# Range of the chance, drawn per episode, that a cube's new target is on top of another cube.
STACK_PROBABILITY = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}
# pointmaze: a unit step towards the next cell, with noise
MAZE_NOISE = 0.5
STITCH_DISTANCE = 4  # cells from start to goal

CUBE_QPOS = slice(14, 17)  # of the first cube's position
SCENE_CUBE_MAX_Y = 0.29  # further right the cube is out of view
SCENE_CUBE_MIN_Y = -0.3  # further left it must be in the drawer, between these heights
SCENE_DRAWER_HEIGHTS = (0.06, 0.08)

STATE_COLUMNS = ("qpos", "qvel", "button_states")  # the last one in scene and puzzle only
DTYPES = {"terminals": bool, "button_states": np.int64}  # of the files' arrays that are not float32
MAX_ATTEMPTS = 1000  # a scene is unusable once in some hundred episodes; this many in a row are an error in the code

Episode = Dict[str, np.ndarray]


def parameters(dataset: str) -> Dict[str, Any]:
    """What the generation of a data set depends on besides its seed; JSON-able, for the record."""
    environment, _, kind = dataset.rpartition("-")
    if environment.startswith("pointmaze"):
        settings = {"policy": "breadth-first waypoints", "noise": MAZE_NOISE}
        return settings | ({"goal_distance": STITCH_DISTANCE} if kind == "stitch" else {})
    stacking = list(STACK_PROBABILITY.get(environment, (0.5, 0.5)))
    if kind == "play":
        noise = {"noise": PLAN_NOISE, "noise_smoothing": PLAN_NOISE_SMOOTHING}
        return {"policy": "plan oracle", "stack_probability": stacking, **noise}
    return {
        "policy": "Markov oracle",
        "stack_probability": stacking,
        "min_norm": MARKOV_MIN_NORM,
        "max_action_noise": MARKOV_MAX_NOISE,
        "random_action_probability": RANDOM_ACTION_PROBABILITY[environment.split("-")[0]],
    }


def make_collector(dataset: str) -> "Collector":
    """A collector of episodes of `<environment>-<kind>`, one of names.GENERATED."""
    environment, _, kind = dataset.rpartition("-")
    collector_class = PointMazeCollector if environment.startswith("pointmaze") else ManipulationCollector
    return collector_class(environment, kind, official_episodes(dataset)[1])


class Collector:
    """Collects whole episodes of one data set; an episode depends on its seed alone.

    A sub-class has `start(reset_seed)` -> observation and `act(observation)` -> action [A], and sees what a step gave
    in `finish_step`. The oracles and the mazes draw from numpy's global generator, which each episode seeds;
    `self.generator` is the episode's own.
    """

    environment_options: Dict[str, Any] = {}

    def __init__(self, environment: str, kind: str, steps: int):
        self.name, self.kind = environment, kind
        options = {"terminate_at_goal": False, "max_episode_steps": steps + 1, **self.environment_options}
        self.environment = build(functools.partial(gymnasium.make, f"{environment}-{VERSION}", **options))
        self.simulation = self.environment.unwrapped
        self.generator = np.random.default_rng(0)
        self.discarded = 0  # unusable episodes so far

    def __call__(self, *seed: int) -> Episode:
        """The episode of `seed` in OGBench's format: a row per state, the last one with an action that goes nowhere.

        observations [R, O], actions [R, A], qpos, qvel (before the action) float32, terminals bool, True in the last
        row alone, and for buttons button_states int64 [R, buttons]. R is the transitions + 1.
        """
        for attempt in range(MAX_ATTEMPTS):
            episode = self._collect(np.random.SeedSequence([*seed, attempt]))
            if self.is_usable(episode):
                return episode
            self.discarded += 1
        raise RuntimeError(f"{self.name}: no usable episode of seed {seed} in {MAX_ATTEMPTS} attempts")

    def _collect(self, seeds: np.random.SeedSequence) -> Episode:
        reset_seed, oracle_seed = seeds.generate_state(2).tolist()
        np.random.seed(oracle_seed)  # noqa: NPY002  (what the oracles and the mazes use)
        self.generator = np.random.default_rng(seeds.spawn(1)[0])
        observation = self.start(reset_seed)
        rows: List[Dict[str, Any]] = []
        done = False
        while not done:
            action = np.clip(self.act(observation), -1.0, 1.0)
            next_observation, _, terminated, truncated, info = self.environment.step(action)
            done = terminated or truncated
            row = {"observations": observation, "actions": action, "terminals": done}
            rows.append(row | {name: info[f"prev_{name}"] for name in STATE_COLUMNS if f"prev_{name}" in info})
            observation = next_observation
            self.finish_step(info)
        return {name: np.array([row[name] for row in rows], dtype=DTYPES.get(name, np.float32)) for name in rows[0]}

    def is_usable(self, episode: Episode) -> bool:
        return True


class ManipulationCollector(Collector):
    """cube-*, scene and puzzle-*: the arm does one random thing after another, led by the oracle of each."""

    environment_options = {"mode": "data_collection"}

    def __init__(self, environment: str, kind: str, steps: int):
        super().__init__(environment, kind, steps)
        self.family = environment.split("-")[0]
        self.oracles = self._make_oracles()

    def _make_oracles(self) -> Dict[str, Any]:
        """An oracle for each thing that can be a target in this environment."""
        closed = {"gripper_always_closed": self.family == "puzzle"}
        if self.kind == "play":
            common = {"env": self.environment, "noise": PLAN_NOISE, "noise_smoothing": PLAN_NOISE_SMOOTHING}
            cube, button = CubePlanOracle(**common), ButtonPlanOracle(**common, **closed)
            drawer, window = DrawerPlanOracle(**common), WindowPlanOracle(**common)
        else:
            common = {"env": self.environment, "min_norm": MARKOV_MIN_NORM}
            patience = {"max_step": SCENE_CUBE_MAX_STEP} if self.family == "scene" else {}
            cube, button = CubeMarkovOracle(**common, **patience), ButtonMarkovOracle(**common, **closed)
            drawer, window = DrawerMarkovOracle(**common), WindowMarkovOracle(**common)
        return {"cube": cube, "button": button, "drawer": drawer, "window": window}

    def start(self, reset_seed: int) -> np.ndarray:
        observation, self.info = self.environment.reset(seed=reset_seed)
        self.stack_probability = self.generator.uniform(*STACK_PROBABILITY.get(self.name, (0.5, 0.5)))
        if self.kind == "noisy":
            self.action_noise = self.generator.uniform(0.0, MARKOV_MAX_NOISE)
        self._follow_target(observation, self.info)
        return observation

    def _follow_target(self, observation: np.ndarray, info: Dict[str, Any]) -> None:
        self.oracle = self.oracles[info["privileged/target_task"]]
        self.oracle.reset(observation, info)

    def act(self, observation: np.ndarray) -> np.ndarray:
        if self.kind == "play":
            return self.oracle.select_action(observation, self.info)
        if self.generator.random() < RANDOM_ACTION_PROBABILITY[self.family]:
            return self.generator.uniform(-1.0, 1.0, len(MARKOV_NOISE_SCALE))
        action = self.oracle.select_action(observation, self.info)
        return action + self.generator.normal(0.0, self.action_noise * MARKOV_NOISE_SCALE)

    def finish_step(self, info: Dict[str, Any]) -> None:
        self.info = info
        if self.oracle.done:
            # The first action for the new target still sees the old one's info, as in the official procedure.
            self._follow_target(*self.simulation.set_new_target(p_stack=self.stack_probability))

    def is_usable(self, episode: Episode) -> bool:
        """False where scene's cube went where the camera would not see it: such episodes are not in official data."""
        if self.family != "scene":
            return True
        _, y, z = episode["qpos"][:, CUBE_QPOS].T
        low, high = SCENE_DRAWER_HEIGHTS
        lost_left = (y <= SCENE_CUBE_MIN_Y) & ((z < low) | (z > high))
        return not ((y >= SCENE_CUBE_MAX_Y) | lost_left).any()


class PointMazeCollector(Collector):
    """pointmaze-*: from cell to cell along a shortest path; at a goal, navigate draws the next one, stitch stays."""

    def __init__(self, environment: str, kind: str, steps: int):
        super().__init__(environment, kind, steps)
        self.cells = [tuple(cell) for cell in np.argwhere(self.simulation.maze_map == 0).tolist()]
        self.junctions = [cell for cell in self.cells if not self._is_corridor(*cell)]
        self.waypoints: Dict[Tuple, np.ndarray] = {}

    def _is_corridor(self, i: int, j: int) -> bool:
        """Free ahead and behind, walls on both sides."""
        maze = self.simulation.maze_map
        rows, columns = (maze[i - 1, j], maze[i + 1, j]), (maze[i, j - 1], maze[i, j + 1])
        return (rows, columns) in (((0, 0), (1, 1)), ((1, 1), (0, 0)))

    def _choose(self, cells: List[Tuple[int, int]]) -> Tuple[int, int]:
        return cells[self.generator.integers(len(cells))]

    def _draw_goal(self, start: Tuple[int, int]) -> Tuple[int, int]:
        if self.kind == "navigate":
            return self._choose(self.junctions)
        start_xy = self.simulation.ij_to_xy(start)
        _, distances = self.simulation.get_oracle_subgoal(start_xy, start_xy)
        # Where teleports cut the maze apart, no cell may be that far: the goal is the start then, as officially.
        return self._choose([cell for cell in self.cells if distances[cell] == STITCH_DISTANCE] or [start])

    def start(self, reset_seed: int) -> np.ndarray:
        start = self._choose(self.cells)
        task = {"init_ij": start, "goal_ij": self._draw_goal(start)}
        observation, _ = self.environment.reset(seed=reset_seed, options={"task_info": task})
        return observation

    def _waypoint(self, position: np.ndarray) -> np.ndarray:
        """Centre [2] of the next cell on the way to the goal; OGBench would search the maze anew for each step."""
        simulation = self.simulation
        cells = (simulation.xy_to_ij(position), simulation.xy_to_ij(simulation.cur_goal_xy))
        if cells not in self.waypoints:
            self.waypoints[cells], _ = simulation.get_oracle_subgoal(position, simulation.cur_goal_xy)
        return self.waypoints[cells]

    def act(self, observation: np.ndarray) -> np.ndarray:
        position = self.simulation.get_xy()
        direction = self._waypoint(position) - position
        direction = direction / (np.linalg.norm(direction) + 1e-6)
        return direction + self.generator.normal(0.0, MAZE_NOISE, 2)

    def finish_step(self, info: Dict[str, Any]) -> None:
        if self.kind == "navigate" and info["success"]:
            # Given as a position: from a cell OGBench's set_goal moves the goal's marker to NaN.
            goal = self.simulation.ij_to_xy(self._choose(self.junctions))
            self.simulation.set_goal(goal_xy=self.simulation.add_noise(goal))
