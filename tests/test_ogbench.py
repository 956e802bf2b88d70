"""OGBench: rewards against the environments' own, data against ogbench's loader, wrong input, seeds."""

import functools
import http.client
import json
import math
import pickle
import re
import tempfile
import urllib.error
from pathlib import Path

import numpy as np
import ogbench
import pytest
import torch
from ogbench.relabel_utils import relabel_dataset

from common.errors import UserError
from envs import load_environment, load_task
from envs.ogbench.collect import ManipulationCollector, PointMazeCollector
from envs.ogbench.environment import OGBenchEnvironment
from envs.ogbench.generate import generate
from envs.ogbench.names import DATASETS, LARGE, official_episodes, sidecar_file, task_names, train_file, validation_file
from envs.transitions import ACTION_LIMIT
from harness.evaluation import evaluate

STEPS = 60  # of the short episodes here
EPISODES = 3
MAZE, CUBE, SCENE, PUZZLE = "pointmaze-medium-navigate", "cube-single-play", "scene-play", "puzzle-3x3-play"
SLIDE_LIMITS = np.array([[-0.16, 0.0], [0.0, 0.2]])  # lower and upper of scene's drawer and window
CUBE_XY, BUTTON_COUNTS = slice(14, 16), {SCENE: 2, PUZZLE: 9}


def collect_episodes(dataset: str, episodes: int = EPISODES, steps: int = STEPS) -> dict:
    """Arrays of the official format, from shorter episodes."""
    environment, _, kind = dataset.rpartition("-")
    collector_class = PointMazeCollector if environment.startswith("pointmaze") else ManipulationCollector
    collector = collector_class(environment, kind, steps)
    parts = [collector(0, 0, index) for index in range(episodes)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="session")
def arrays() -> dict:
    """Arrays by data set, made once."""
    return {dataset: collect_episodes(dataset) for dataset in (MAZE, CUBE, SCENE, PUZZLE)}


def write_files(root: Path, dataset: str, train: dict, validation: dict) -> None:
    np.savez_compressed(train_file(root, dataset), **train)
    np.savez_compressed(validation_file(root, dataset), **validation)


@pytest.fixture
def folder(tmp_path, arrays) -> Path:
    """A folder with the files of the maze: as far as a reader can tell, official ones."""
    write_files(tmp_path, MAZE, arrays[MAZE], {name: array[: STEPS + 1] for name, array in arrays[MAZE].items()})
    return tmp_path


def maze_task(number: int = 1) -> str:
    return f"ogbench/{MAZE}-singletask-task{number}-v0"


def refuses(root: Path, message: str, task: str = "") -> None:
    """Loading fails with one line that matches."""
    with pytest.raises(UserError, match=message) as caught:
        load_task(task or maze_task(), str(root))
    assert "\n" not in str(caught.value)


@pytest.fixture
def no_network(monkeypatch):
    """Every download fails as it does without a network, at once."""

    def refuse(url):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


# ---- rewards, masks and data ----


def states_around_goals(dataset: str, arrays: dict, simulation) -> dict:
    """Stored states, two thirds of them moved towards the goal, so that every count of met sub-goals occurs."""
    rows = {name: np.concatenate([arrays[name]] * 2) for name in arrays}
    count = len(rows["qpos"])
    generator = np.random.default_rng(0)
    near = generator.random(count) < 0.67
    distance = generator.uniform(-1, 1, (count, 2)).astype(np.float32)
    if dataset == MAZE:
        rows["qpos"][near] = (np.array(simulation.cur_goal_xy) + 1.5 * distance)[near]
        return rows
    if dataset in (CUBE, SCENE):
        target = simulation._data.mocap_pos[0]
        rows["qpos"][near, 14:17] = target
        rows["qpos"][near, CUBE_XY] += 0.05 * distance[near]
    if dataset == SCENE:
        slides = np.array([simulation._target_drawer_pos, simulation._target_window_pos])
        moved = np.clip(slides + 0.05 * distance[near], *SLIDE_LIMITS)  # beyond them the simulation is unstable
        rows["qpos"][near, -2:] = moved
    if dataset in BUTTON_COUNTS:
        pressed = generator.random((count, BUTTON_COUNTS[dataset])) < 0.9
        chosen = near[:, None] & pressed
        rows["button_states"] = np.where(chosen, simulation._target_button_states, rows["button_states"])
    return rows


def set_state(simulation, rows: dict, row: int) -> None:
    buttons = [rows["button_states"][row].copy()] if "button_states" in rows else []
    simulation.set_state(rows["qpos"][row].astype(np.float64), rows["qvel"][row].astype(np.float64), *buttons)
    if hasattr(simulation, "post_step"):  # the arm's environments keep the success of the state they are in
        simulation.pre_step()
        simulation.post_step()


@pytest.mark.parametrize("dataset, number", [(MAZE, 2), (CUBE, 1), (SCENE, 1), (PUZZLE, 4)])
def test_rewards_and_masks_are_the_environments_own(arrays, dataset, number):
    task = f"{dataset}-singletask-task{number}-v0"
    environment = OGBenchEnvironment(task)
    environment.reset(seed=0)
    simulation = environment.environment.unwrapped
    rows = states_around_goals(dataset, arrays[dataset], simulation)
    relabel_dataset(task, environment.environment, rows)
    environment.reset(seed=1)
    found = []
    for row in range(len(rows["qpos"])):
        set_state(simulation, rows, row)
        environment.environment._elapsed_steps = 0
        _, reward, terminated, _, info = environment.step(rows["actions"][row])
        assert info["success"] == terminated
        found.append((reward, 1.0 - terminated))
    rewards, masks = np.array(found).T
    assert len(found) > 300
    assert np.array_equal(rewards, rows["rewards"]) and np.array_equal(masks, rows["masks"])
    assert 0.02 < np.mean(masks == 0) < 0.9 and len(np.unique(rewards)) > 1
    assert np.array_equal(masks == 0, rewards == 0)


@pytest.mark.parametrize("dataset", [MAZE, CUBE, SCENE, PUZZLE])
def test_the_data_are_those_of_ogbenchs_loader(tmp_path, arrays, dataset):
    write_files(tmp_path, dataset, arrays[dataset], {k: v[STEPS + 1 :] for k, v in arrays[dataset].items()})
    name = f"{dataset}-singletask-task2-v0"
    task = load_task(f"ogbench/{name}", str(tmp_path))
    environment, train, validation = ogbench.make_env_and_datasets(name, dataset_dir=str(tmp_path))
    assert len(task.dataset) == EPISODES * STEPS and len(task.validation) == (EPISODES - 1) * STEPS
    for ours, theirs in ((task.dataset, train), (task.validation, validation)):
        batch = ours.take(torch.arange(len(ours)))
        theirs["actions"] = np.clip(theirs["actions"], -np.float32(ACTION_LIMIT), np.float32(ACTION_LIMIT))
        for field, tensor in batch.items():
            assert np.array_equal(tensor.numpy(), theirs[field]) and tensor.dtype == torch.float32, field
    assert (task.observation_dim, task.action_dim) == (train["observations"].shape[1], train["actions"].shape[1])
    assert (task.name, task.score_name) == (f"ogbench/{name}", "success")
    environment.close()


@pytest.mark.parametrize(
    "official, source",
    [
        ((EPISODES, STEPS), "official"),
        ((EPISODES + 1, STEPS), "unknown"),
        ((EPISODES, STEPS - 1), "unknown"),
        ((EPISODES // 2, 2 * STEPS), "unknown"),  # as many transitions
    ],
)
def test_files_without_a_record_count_as_official_where_their_episodes_do(folder, monkeypatch, official, source):
    monkeypatch.setattr("envs.ogbench.tasks.official_episodes", lambda dataset: official)
    monkeypatch.setattr("envs.ogbench.tasks.VALIDATION_SHARE", EPISODES)  # the folder has one validation episode
    task = load_task(maze_task(3), str(folder))
    identity = task.identity
    assert (identity["suite"], identity["source"], identity["generation"]) == ("ogbench", source, None)
    assert (identity["transitions"], identity["episodes"]) == (EPISODES * STEPS, EPISODES)
    assert (identity["dataset"], identity["reward_task"], identity["validation_transitions"]) == (MAZE, 3, STEPS)
    assert identity["path"] == str(train_file(folder, MAZE)) and len(identity["sha256"]) == 64
    assert json.loads(json.dumps(identity)) == identity


def test_the_official_sizes_are_the_published_ones():
    """Millions of transitions by OGBench's table of data sets."""
    millions = {name: math.prod(official_episodes(name)) / 1e6 for name in DATASETS}
    assert {name for name, size in millions.items() if size == 5} == {
        *(f"antmaze-{size}-explore" for size in ("medium", "large", "teleport")),
        *(f"{environment}-{kind}" for environment in ("cube-quadruple", "puzzle-4x6") for kind in ("play", "noisy")),
    }
    assert {name.rpartition("-")[0] for name, size in millions.items() if size == 4} == {
        "humanoidmaze-giant",
        "antsoccer-medium",
    }
    assert {name.rpartition("-")[0] for name, size in millions.items() if size == 3} == {"cube-triple", "puzzle-4x5"}
    assert {name.rpartition("-")[0] for name, size in millions.items() if size == 2} == {
        "humanoidmaze-medium",
        "humanoidmaze-large",
    }
    assert set(millions.values()) == {1, 2, 3, 4, 5}


def test_the_environment_needs_no_data(folder):
    task = load_task(maze_task(3), str(folder))
    for path in folder.iterdir():
        path.unlink()
    again = load_environment(task.name, json.loads(json.dumps(task.record())), task.identity)
    assert (again.dataset, again.score_name) == (None, "success")
    assert np.array_equal(task.make_env().reset(seed=4)[0], again.make_env().reset(seed=4)[0])


def test_generated_files_say_so(tmp_path):
    dataset = "pointmaze-medium-stitch"
    generate(dataset, 400, seed=5, out=str(tmp_path))
    identity = load_task(f"ogbench/{dataset}-singletask-v0", str(tmp_path)).identity
    assert identity["source"] == "locally generated" and identity["reward_task"] == 1
    assert identity["generation"]["seed"] == 5 and identity["generation"]["generator_version"] == 1
    np.savez(validation_file(tmp_path, dataset), **collect_episodes(dataset))
    refuses(tmp_path, r"generation.json: describes other files than", f"ogbench/{dataset}-singletask-v0")
    sidecar_file(tmp_path, dataset).write_text("{}")
    refuses(tmp_path, r"generation.json: not a record of a generation", f"ogbench/{dataset}-singletask-v0")


def test_every_task_name_is_one_of_ogbenchs():
    import gymnasium

    registered = set(gymnasium.registry)
    for dataset in DATASETS:
        environment = dataset.rpartition("-")[0]
        assert {f"{environment}-singletask{task}-v0" for task in ("", "-task1", "-task5")} <= registered
    assert len(set(task_names())) == (len(DATASETS) + len(LARGE)) * 6


# ---- wrong input ----


@pytest.mark.parametrize(
    "name, message",
    [
        ("ogbench/cube-singel-play-singletask-v0", "did you mean ogbench/cube-single-play-singletask-v0"),
        ("ogbench/Cube-Single-Play-singletask-v0", "did you mean ogbench/cube-single-play-singletask-v0"),
        ("ogbench/cube-single-play-v0", "goal-conditioned, which is not supported: name one of its single tasks"),
        ("ogbench/cube-single-play-singletask-task6-v0", "did you mean ogbench/cube-single-play-singletask-task"),
        ("ogbench/", "expected ogbench/<data set>-singletask"),
        ("cube-single-play-singletask-v0", r"unknown suite .*, did you mean ogbench/cube-single-play-singletask-v0\?"),
    ],
)
def test_an_unknown_task_is_named(tmp_path, name, message):
    refuses(tmp_path, message, name)


def test_absent_files_are_named_with_the_ways_to_get_them(tmp_path, no_network, monkeypatch):
    monkeypatch.setattr("envs.ogbench.tasks.OGBenchEnvironment", None)  # not built before the files are there
    root = tmp_path / "not" / "yet"
    message = f"{CUBE}-v0.npz and {CUBE}-v0-val.npz: not in {root}, and the download failed .Name or service not known"
    ways = f".*machine with internet.*python -m envs.ogbench.generate {CUBE} --transitions 1000000 --out {root}`$"
    refuses(root, message + ways, f"ogbench/{CUBE}-singletask-v0")
    refuses(root, "download_datasets.*into ~/.ogbench/data$", "ogbench/antmaze-large-navigate-singletask-v0")
    assert list(root.iterdir()) == []


def test_an_absent_validation_file_is_named(folder, no_network):
    validation_file(folder, MAZE).unlink()
    before = sorted(folder.iterdir())
    refuses(folder, f"^{MAZE}-v0-val.npz: not in ")
    assert sorted(folder.iterdir()) == before


def test_the_default_folder_is_ogbenchs(tmp_path, no_network, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=re.escape(f"not in {tmp_path}/.ogbench/data")):
        load_task(maze_task())


def test_files_of_a_generation_are_not_completed_by_a_download(folder, monkeypatch):
    validation_file(folder, MAZE).unlink()
    sidecar_file(folder, MAZE).write_text(json.dumps({"generator_version": 1}))
    monkeypatch.setattr("urllib.request.urlopen", None)
    refuses(folder, f"^{MAZE}-v0-val.npz: not in .* was generated: run `python -m envs.ogbench.generate")


class Response:
    """A download that fails after some bytes."""

    length = 100

    def __init__(self, error: Exception):
        self.error = error

    def __iter__(self):
        yield b"some bytes"
        raise self.error


@pytest.mark.parametrize(
    "error, message",
    [
        (http.client.IncompleteRead(b""), "the download failed"),
        (ConnectionResetError("reset by peer"), "the download failed .reset by peer"),
    ],
)
def test_a_download_that_breaks_off_leaves_nothing(tmp_path, monkeypatch, error, message):
    monkeypatch.setattr("urllib.request.urlopen", lambda url: Response(error))
    refuses(tmp_path / "data", message)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("content", ["cut", "empty", "one byte", "a pickle"])
def test_a_damaged_file_is_named_and_never_executed(folder, arrays, content):
    path = train_file(folder, MAZE)
    sound = bytearray(path.read_bytes())
    if content == "cut":
        path.write_bytes(sound[:-200])
    elif content == "empty":
        path.write_bytes(b"")
    elif content == "one byte":
        sound[len(sound) // 3] ^= 255
        path.write_bytes(sound)
    else:
        np.savez(path, **{**arrays[MAZE], "actions": np.array([{"a": 1}], dtype=object)})
    refuses(folder, f"{path.name}: truncated or not an OGBench data set .*: delete it and fetch or make it again")


@pytest.mark.parametrize(
    "field, change, message",
    [
        ("observations", lambda a: a[:, :1], r"observations has shape \(183, 1\), expected \(183, 2\)"),
        ("actions", lambda a: a[:-1], r"actions has shape \(182, 2\), expected \(183, 2\)"),
        ("qpos", lambda a: np.tile(a, 3), r"qpos has shape \(183, 6\), expected \(183, 2\)"),
        ("actions", lambda a: a * np.nan, "actions holds a NaN or infinity at row 0"),
        ("terminals", np.zeros_like, "terminals must be 0, or 1 at an episode's end, the last row's too"),
        ("terminals", np.ones_like, "terminals must be 0, or 1 at an episode's end"),
        ("terminals", lambda a: 2 * a, "terminals must be 0, or 1 at an episode's end"),
        ("qpos", None, "array qpos is missing"),
        ("button_states", None, "array button_states is missing"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, arrays, field, change, message):
    dataset = PUZZLE if field == "button_states" else MAZE
    changed = dict(arrays[dataset])
    array = changed.pop(field)
    if change is not None:
        changed[field] = change(array)
    write_files(tmp_path, dataset, changed, arrays[dataset])
    refuses(tmp_path, message, f"ogbench/{dataset}-singletask-v0")


# ---- environments ----


@pytest.mark.parametrize("dataset", [MAZE, CUBE, "pointmaze-teleport-navigate"])
def test_the_seed_determines_the_episode(dataset):
    task = f"{dataset}-singletask-task1-v0"
    environment = OGBenchEnvironment(task)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, *environment.action_space.shape)).astype(np.float32)

    def roll(environment: OGBenchEnvironment, seed: int) -> np.ndarray:
        first, info = environment.reset(seed=seed)
        assert info == {} and environment.observation_space.contains(first)
        steps = [environment.step(action) for action in actions]
        assert all(set(step[4]) == {"success"} for step in steps)
        return np.stack([first] + [step[0] for step in steps])

    first = roll(environment, 7)
    other = roll(environment, 8)
    np.random.uniform()  # noqa: NPY002  (as other work in this process does)
    assert np.array_equal(first, roll(environment, 7)) and first.dtype == np.float32
    assert np.array_equal(first, roll(pickle.loads(pickle.dumps(OGBenchEnvironment))(task), 7))
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("dataset", [MAZE, CUBE])
def test_an_action_beyond_the_bounds_counts_as_the_bound(dataset):
    environment = OGBenchEnvironment(f"{dataset}-singletask-v0")
    action = np.ones(environment.action_space.shape, np.float32)
    reached = []
    for scale in (1, 5):
        environment.reset(seed=0)
        reached.append(environment.step(scale * action)[0].tolist())
    assert reached[0] == reached[1]


def test_a_maze_leaves_no_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = OGBenchEnvironment(f"{MAZE}-singletask-v0")
    environment.reset(seed=0)
    assert list(tmp_path.iterdir()) == [] and tempfile.tempdir == str(tmp_path)


def test_the_arms_action_space_is_one_object(recwarn):
    environment = OGBenchEnvironment(f"{CUBE}-singletask-v0")
    environment.reset(seed=0)
    simulation = environment.environment.unwrapped
    assert simulation.action_space is simulation.action_space
    assert not [warning for warning in recwarn if "precision lowered" in str(warning.message)]


class Towards:
    """Acts with the observation's first numbers plus noise of its own."""

    def __init__(self, action_dim: int):
        self.action_dim = action_dim
        self.noise = torch.nn.Module()

    def act(self, observations: torch.Tensor) -> torch.Tensor:
        noise = self.noise.normal(len(observations), self.action_dim)
        return torch.tanh(observations[:, : self.action_dim] * 0.1 + noise)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [MAZE, CUBE, "pointmaze-teleport-navigate"])
def test_evaluation_is_the_same_for_any_number_of_workers(dataset):
    make_env = functools.partial(OGBenchEnvironment, f"{dataset}-singletask-v0")
    agent = Towards(make_env().action_space.shape[0])
    results = [evaluate(agent, make_env, episodes=3, seed=3, workers=workers) for workers in (0, 1, 2)]
    for result in results:
        assert result.successes is not None
        assert np.array_equal(result.returns, results[0].returns)
        assert np.array_equal(result.lengths, results[0].lengths)
