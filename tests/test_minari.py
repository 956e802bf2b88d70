"""Minari: data sets made here to rows and environment, and what is refused. Nothing is downloaded."""

import copy
import json
import os
import pickle
import re
import shutil

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces
from minari.data_collector.episode_buffer import EpisodeBuffer

from algorithms.dipole import Noise
from common.errors import UserError
from envs import load_environment, load_task
from envs.spaces import ActionScale
from envs.transitions import ACTION_LIMIT
from harness.evaluation import evaluate

EPISODES = 12  # HDF5 sorts episode_10 and episode_11 before episode_2
ACTION_HIGH = 2.0  # Pendulum's torque
NAME = "toy/pendulum-v0"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # minari wants authors and links


class GoalEnv(gymnasium.Env):
    """An environment with a Dict of observations, whose keys are not in order, and a success; ten steps at most."""

    observation_space = spaces.Dict(
        [(key, spaces.Box(-9, 9, (n,), np.float64)) for key, n in (("observation", 2), ("achieved_goal", 1))]
    )
    action_space = spaces.Box(np.float32([-1, 0]), np.float32([3, 10]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return {"observation": np.array([1.0, 2.0]), "achieved_goal": np.array([3.0])}, {}

    def step(self, action):
        self.steps += 1
        observation = {"observation": np.array([4.0, 5.0]), "achieved_goal": action[:1].astype(np.float64)}
        return observation, float(action[1]), False, self.steps == 10, {"success": self.steps > 5, "heavy": [1]}


gymnasium.register("MinariTestGoal-v0", entry_point=f"{__name__}:GoalEnv", max_episode_steps=10)


def pendulum_episode(index: int) -> dict:
    """Episode `index` has 3 + index steps, observations and rewards that name it; even ones terminate."""
    steps = 3 + index
    ends = np.arange(1, steps + 1) == steps
    return {
        "observations": 100.0 * index + np.arange(3 * (steps + 1)).reshape(-1, 3),
        "actions": np.linspace(-ACTION_HIGH, ACTION_HIGH, steps)[:, None],
        "rewards": index + np.arange(steps) / 100,
        "terminations": ends & (index % 2 == 0),
        "truncations": ends & (index % 2 == 1),
    }


def unit_episode(index: int) -> dict:
    """Three steps of pendulum_episode(0) with actions in [-1, 1]."""
    return pendulum_episode(0) | {"actions": np.float32([[-1], [0], [1]])}


def goal_episode(index: int) -> dict:
    observations = {"observation": np.full((3, 2), index), "achieved_goal": np.full((3, 1), -index)}
    no = np.zeros(2, bool)
    actions, rewards = np.array([[-1.0, 0.0], [3.0, 5.0]]), np.array([0.0, 1.0])
    parts = {"actions": actions, "rewards": rewards, "terminations": no, "truncations": ~no}
    return {"observations": observations, **parts}


def create(root, monkeypatch, name=NAME, env="Pendulum-v1", episode=pendulum_episode, count=EPISODES, **options):
    """A Minari data set below root, made by minari itself; returns its main file."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    buffers = [EpisodeBuffer(**episode(index)) for index in range(count)]
    minari.create_dataset_from_buffers(name, buffers, env=env, **options)
    return root / name / "data" / "main_data.hdf5"


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    """Tests see a machine without internet."""
    monkeypatch.setattr(minari, "download_dataset", lambda name: (_ for _ in ()).throw(ConnectionError("no\nnetwork")))
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)


def edit_metadata(main_file, **changes):
    path = main_file.with_name("metadata.json")
    metadata = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))


def refuses(message: str, name: str = NAME, data_dir=None) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_task(f"minari/{name}", data_dir)
    assert "\n" not in str(caught.value)


# ---- the data ----


def test_rows_are_the_episodes_in_numeric_order(tmp_path, monkeypatch):
    create(tmp_path, monkeypatch)
    task = load_task(f"minari/{NAME}")
    data, start = task.dataset, 0
    for index in range(EPISODES):
        episode = pendulum_episode(index)
        steps = len(episode["rewards"])
        rows, transitions = slice(start, start + steps + 1), slice(start, start + steps)
        assert torch.equal(data.observations[rows], torch.tensor(episode["observations"], dtype=torch.float32))
        expected = (episode["actions"] / ACTION_HIGH).clip(-ACTION_LIMIT, ACTION_LIMIT)
        assert np.allclose(data.actions[transitions], expected, atol=1e-7)
        assert torch.equal(data.actions[start + steps], data.actions[start + steps - 1])
        assert np.allclose(data.rewards[transitions], episode["rewards"])
        terminated = 1 - episode["terminations"]
        assert data.masks[transitions].tolist() == terminated.tolist(), "truncation bootstraps, termination does not"
        start += steps + 1
    assert len(data.observations) == start and len(data) == start - EPISODES
    last = data.take(torch.tensor([2]))  # of the first episode
    assert last["masks"].item() == 0
    assert last["next_observations"][0].tolist() == pendulum_episode(0)["observations"][-1].tolist()
    assert (task.observation_dim, task.action_dim, task.score_name) == (3, 1, "return")


def test_identity_says_what_the_file_is(tmp_path, monkeypatch):
    path = create(tmp_path / "elsewhere", monkeypatch, author="A")
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    task = load_task(f"minari/{NAME}", str(tmp_path / "elsewhere"))
    identity = json.loads(json.dumps(task.identity))
    returns = [pendulum_episode(index)["rewards"].sum() for index in range(EPISODES)]
    assert identity["path"] == str(path) and len(identity["sha256"]) == 64
    assert (identity["suite"], identity["source"], identity["author"]) == ("minari", "local file", ["A"])
    assert (identity["transitions"], identity["episodes"]) == (len(task.dataset), EPISODES)
    assert identity["episode_return_mean"] == pytest.approx(np.mean(returns))
    assert identity["episode_return_best"] == pytest.approx(np.max(returns))
    assert "reference_returns" not in identity and task.normalized_return(1.0) is None


def test_reference_scores_normalise_returns(tmp_path, monkeypatch):
    name = "D4RL/pendulum/expert-v0"
    reference = {"ref_min_score": -1200.0, "ref_max_score": -200.0}
    create(tmp_path, monkeypatch, name, author="A", code_permalink="https://example.org", **reference)
    task = load_task(f"minari/{name}")
    assert task.identity["source"] == "official", "as far as its metadata say"
    values = np.array([-1200.0, -700.0, -200.0])
    assert [task.normalized_return(value) for value in values] == [0, 50, 100]
    assert np.allclose(
        task.normalized_return(values), 100 * minari.get_normalized_score(minari.load_dataset(name), values)
    )


def test_antmaze_takes_its_published_reward_shift(tmp_path, monkeypatch):
    for name, shift in (("D4RL/antmaze/toy-v1", -1), ("D4RL/antmazes/toy-v1", 0)):
        create(tmp_path, monkeypatch, name, "MinariTestGoal-v0", goal_episode, 2)
        task = load_task(f"minari/{name}")
        assert task.dataset.rewards[task.dataset.valid].tolist() == [shift, 1 + shift] * 2
        assert task.identity["reward_shift"] == shift
        assert task.reward_shift == shift
        assert task.identity["episode_return_best"] == 1, "returns are the environment's"
        assert task.make_env().reset(seed=0) and evaluate(Still(), task.make_env, 1, 0).returns[0] > 0


def test_dicts_of_vectors_are_joined_by_key(tmp_path, monkeypatch):
    create(tmp_path, monkeypatch, env="MinariTestGoal-v0", episode=goal_episode)
    task = load_task(f"minari/{NAME}")
    rows = task.dataset.observations.reshape(EPISODES, 3, 3)
    assert rows[4].tolist() == [[-4, 4, 4]] * 3, "achieved_goal, then observation, as gymnasium flattens them"
    assert np.allclose(task.dataset.actions[:2], [[-ACTION_LIMIT, -ACTION_LIMIT], [ACTION_LIMIT, 0]])
    environment = task.make_env()
    flattened = gymnasium.wrappers.FlattenObservation(minari.load_dataset(NAME).recover_environment())
    assert environment.reset(seed=0)[0].tolist() == [3, 1, 2]
    assert flattened.observation_space.shape == environment.observation_space.shape == (3,)


# ---- the environment ----


class Still(torch.nn.Module):
    act_options = ()

    def __init__(self, action_dim=2):
        super().__init__()
        self.action_dim, self.noise = action_dim, Noise(0)

    def act(self, observations):
        return torch.zeros(len(observations), self.action_dim)

    def network_evaluations(self):
        return 0


def test_environment_scales_actions_and_reports_success(tmp_path, monkeypatch):
    create(tmp_path, monkeypatch, env="MinariTestGoal-v0", episode=goal_episode)
    environment = load_task(f"minari/{NAME}").make_env()
    environment.reset(seed=0)
    for action, expected in (([-1, -1], (-1, 0)), ([1, 0], (3, 5)), ([0, 7], (1, 10))):
        observation, reward, terminated, truncated, info = environment.step(np.float32(action))
        assert (observation[0], reward) == expected, "clipped to [-1, 1], then scaled to the box"
        assert observation.dtype == np.float32 and (terminated, truncated, info["success"]) == (False, False, False)
    result = evaluate(Still(), load_task(f"minari/{NAME}").make_env, 2, 0)
    assert result.successes.tolist() == [1, 1] and result.lengths.tolist() == [10, 10]


def test_environment_is_the_one_for_evaluation_and_seeded(tmp_path, monkeypatch):
    short = copy.deepcopy(gymnasium.spec("Pendulum-v1"))
    short.max_episode_steps = 7
    create(tmp_path, monkeypatch, eval_env=short)
    make_env = pickle.loads(pickle.dumps(load_task(f"minari/{NAME}").make_env))
    ours, own = make_env(), gymnasium.make("Pendulum-v1")
    assert ours.reset(seed=3)[0].tolist() == own.reset(seed=3)[0].tolist()
    for step in range(7):
        action = np.float32([0.3])
        observation, reward, _, truncated, info = ours.step(action)
        assert observation.tolist() == own.step(ACTION_HIGH * action)[0].tolist() and info == {}
        assert truncated == (step == 6)


@pytest.mark.parametrize(
    "low, high, dtype", [(0, 255, np.uint8), (-3, 3, np.int64), (0, 1, np.int32), (5, 65540, np.int32)]
)
def test_integer_actions_come_back_and_share_the_interval_equally(low, high, dtype):
    scale = ActionScale(spaces.Box(low, high, (1,), dtype), "box")
    integers = np.arange(low, high + 1, dtype=dtype)[:, None]
    unit = scale.to_unit(integers)
    assert np.array_equal(scale.from_unit(unit), integers) and scale.from_unit(unit).dtype == dtype
    assert np.array_equal(scale.from_unit(unit.clip(-ACTION_LIMIT, ACTION_LIMIT)), integers), "as a data set holds them"
    grid = (np.arange(8 * len(integers)) + 0.5)[:, None] / (4 * len(integers)) - 1
    assert np.unique(scale.from_unit(grid), return_counts=True)[1].tolist() == [8] * len(integers)
    assert [scale.from_unit(np.array([edge])).item() for edge in (-1.0, 1.0)] == [low, high]


def test_the_environment_for_evaluation_may_have_the_actuators_without_the_rescaling(tmp_path, monkeypatch):
    rescaled = gymnasium.wrappers.RescaleAction(gymnasium.make("Pendulum-v1"), -1.0, 1.0)
    create(tmp_path, monkeypatch, env=rescaled, eval_env="Pendulum-v1", episode=unit_episode)
    task, own = load_task(f"minari/{NAME}"), gymnasium.make("Pendulum-v1")
    assert np.allclose(task.dataset.actions[:3, 0], [-ACTION_LIMIT, 0, ACTION_LIMIT])
    environment = task.make_env()
    environment.reset(seed=3), own.reset(seed=3)
    full_torque = own.step(np.float32([ACTION_HIGH]))[0]
    assert environment.step(np.float32([1.0]))[0].tolist() == full_torque.tolist()


class Colder(gymnasium.Env):
    """The observations of Pendulum-v1 with other bounds, and its actions."""

    observation_space = spaces.Box(-3, 3, (3,), np.float32)
    action_space = spaces.Box(-ACTION_HIGH, ACTION_HIGH, (1,), np.float32)


class Stronger(Colder):
    observation_space = spaces.Box(np.float32([-1, -1, -8]), np.float32([1, 1, 8]))
    action_space = spaces.Box(-5, 5, (1,), np.float32)


class Named(Colder):
    observation_space = spaces.Dict({"state": spaces.Box(-3, 3, (3,), np.float32)})


for kind in (Colder, Stronger, Named):
    gymnasium.register(f"MinariTest{kind.__name__}-v0", entry_point=f"{__name__}:{kind.__name__}", max_episode_steps=5)


@pytest.mark.parametrize(
    "eval_env, message",
    [
        ("MinariTestColder-v0", r"its environment observes Box\(-3.0, 3.0, .*, the data hold Box\(.-1"),
        (
            "MinariTestNamed-v0",
            r"observes Dict.*, the data hold Box.*: create the data set with eval_env=",
        ),
        ("MinariTestStronger-v0", r"takes other actions, Box\(-5.0, 5.0, .*, than the data hold, Box\(-2.0"),
    ],
)
def test_an_environment_that_is_not_the_datas_is_refused(tmp_path, monkeypatch, eval_env, message):
    create(tmp_path, monkeypatch)
    metadata = tmp_path / NAME / "data" / "main_data.hdf5"
    edit_metadata(metadata, eval_env_spec=gymnasium.spec(eval_env).to_json())
    refuses(message)


def test_the_environment_needs_its_record_only(tmp_path, monkeypatch):
    create(tmp_path, monkeypatch, env="MinariTestGoal-v0", episode=goal_episode)
    task = load_task(f"minari/{NAME}")
    record = json.loads(json.dumps(task.record()))
    shutil.rmtree(tmp_path / "toy")
    ours = load_environment(task.name, record, task.identity).make_env()
    assert ours.reset(seed=0)[0].tolist() == [3, 1, 2]
    assert ours.step(np.float32([1, 1]))[1] == 10
    record["spec"]["entry_point"] = "os:system"
    with pytest.raises(UserError, match="names 'os:system' as its environment, which is none"):
        load_environment(task.name, record, task.identity).make_env()


def test_identity_covers_what_the_metadata_decide(tmp_path, monkeypatch):
    path = create(tmp_path, monkeypatch)
    short = copy.deepcopy(gymnasium.spec("Pendulum-v1"))
    short.max_episode_steps = 7
    hashes = [load_task(f"minari/{NAME}").identity["environment_sha256"]]
    for changes in ({"description": "the same"}, {"eval_env_spec": short.to_json()}):
        edit_metadata(path, **changes)
        hashes.append(load_task(f"minari/{NAME}").identity["environment_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_episode_always_ends(tmp_path, monkeypatch, capsys):
    endless = copy.deepcopy(gymnasium.spec("Pendulum-v1"))
    endless.max_episode_steps = None
    longest = len(pendulum_episode(EPISODES - 1)["rewards"])
    create(tmp_path, monkeypatch, eval_env=endless)

    def length(**options):
        task = load_task(f"minari/{NAME}", **options)
        return evaluate(Still(1), task.make_env, 1, 0).lengths.tolist()

    assert length() == [longest]
    assert (
        f"names no time limit; its episodes end after {longest} steps, as the data's longest" in capsys.readouterr().out
    )
    assert length(max_episode_steps=4) == [4] and "time limit" not in capsys.readouterr().out
    create(tmp_path, monkeypatch, "toy/limited-v0")
    assert evaluate(Still(1), load_task("minari/toy/limited-v0").make_env, 1, 0).lengths == [200], "the spec's own"
    assert evaluate(Still(1), load_task("minari/toy/limited-v0", max_episode_steps=4).make_env, 1, 0).lengths == [4]


def old_spec(spec):
    """With the keys that gymnasium 0.28 and 0.29 wrote, and a picture on the screen."""
    return spec | {"autoreset": True, "apply_api_compatibility": False, "kwargs": {"render_mode": "human"}}


def logged(spec):
    """With a wrapper without its arguments, and one of a program that is not installed."""
    wrappers = [
        {"name": "Logger", "entry_point": "gymnasium.wrappers:Autoreset", "kwargs": None},
        {"name": "Monitor", "entry_point": "absent_package:Monitor", "kwargs": {}},
    ]
    return spec | {"additional_wrappers": wrappers}


@pytest.mark.parametrize("change", [old_spec, logged])
def test_specs_of_other_versions_and_loggers_are_built(tmp_path, monkeypatch, capsys, change):
    path = create(tmp_path, monkeypatch)
    edit_metadata(path, env_spec=json.dumps(change(json.loads(gymnasium.spec("Pendulum-v1").to_json()))))
    environment = load_task(f"minari/{NAME}").make_env()
    assert environment.reset(seed=0)[0].tolist() == gymnasium.make("Pendulum-v1").reset(seed=0)[0].tolist()
    assert environment.unwrapped.render_mode is None
    printed = capsys.readouterr().out
    expected = ["Logger", "Monitor"] if change is logged else []
    assert re.findall("built without the wrapper ([^,]+), which cannot be rebuilt", printed) == expected


class Broken(Colder):
    def __init__(self):
        assert False  # noqa: B011  (as FrankaKitchen with another MuJoCo)


gymnasium.register("MinariTestBroken-v0", entry_point=f"{__name__}:Broken")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kwargs": {"unknown_argument": 1}}, "cannot be built .TypeError: .*unknown_argument.*: install the package"),
        (
            {"id": "MinariTestBroken-v0", "entry_point": f"{__name__}:Broken"},
            r"cannot be built .AssertionError: .*: install",
        ),
        (
            {"entry_point": "absent_package.maze:PointMaze", "requirements": ["gymnasium-robotics>=1.2.3"]},
            'cannot be built .*absent_package.*`pip install "gymnasium-robotics>=1.2.3"`',
        ),
    ],
)
def test_an_environment_that_cannot_be_built_is_one_sentence(tmp_path, monkeypatch, changes, message):
    path = create(tmp_path, monkeypatch, requirements=changes.get("requirements", []))
    edit_metadata(path, env_spec=json.dumps(json.loads(gymnasium.spec("Pendulum-v1").to_json()) | changes))
    refuses(message)


# ---- wrong input ----


def test_absent_data_sets_are_explained(tmp_path, monkeypatch):
    create(tmp_path, monkeypatch)
    refuses(
        rf"'toy/pendulun-v0' in {tmp_path}, did you mean {NAME}\? and the download failed \(no network\): run "
        r"`minari download toy/pendulun-v0` .* copy .* or set data_dir or MINARI_DATASETS_PATH",
        "toy/pendulun-v0",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy"], "nothing half-downloaded remains"
    monkeypatch.setenv("MINARI_DATASETS_PATH", "unused")
    refuses(f"in {tmp_path / 'new'} and the download failed", "D4RL/door/human-v2", str(tmp_path / "new"))
    assert os.environ["MINARI_DATASETS_PATH"] == "unused"
    for name in ("door-human", "../x-v0", ""):
        refuses("is no id of a Minari data set.* .expected minari/<namespace>", name)


@pytest.mark.parametrize("meanwhile", [False, True])
def test_download_puts_the_whole_set_in_place(tmp_path, monkeypatch, meanwhile):
    """Also where another process fetched it meanwhile."""
    create(tmp_path / "server", monkeypatch)
    monkeypatch.delenv("MINARI_DATASETS_PATH")

    def download(name):
        shutil.copytree(tmp_path / "server" / name, minari.storage.get_dataset_path(name))
        if meanwhile:
            shutil.copytree(tmp_path / "server" / name, tmp_path / "local" / name)

    monkeypatch.setattr(minari, "download_dataset", download)
    task = load_task(f"minari/{NAME}", str(tmp_path / "local"))
    assert task.identity["path"].startswith(str(tmp_path / "local" / NAME)) and task.identity["episodes"] == EPISODES
    assert [path.name for path in (tmp_path / "local").iterdir()] == ["toy"]
    assert "MINARI_DATASETS_PATH" not in os.environ


def flat(low, high, shape):
    return spaces.Box(low, high, shape, np.float32)


@pytest.mark.parametrize(
    "observation_space, action_space, message",
    [
        (spaces.Discrete(3), flat(-1, 1, (1,)), "observation space Discrete is not supported"),
        (flat(0, 1, (4, 3)), flat(-1, 1, (1,)), r"observation space Box\(4, 3\) is not supported"),
        (spaces.Dict({"a": spaces.Discrete(2)}), flat(-1, 1, (1,)), "observation space Discrete is not supported"),
        (flat(0, 1, (3,)), spaces.Discrete(3), "action space Discrete is not supported"),
        (flat(0, 1, (3,)), flat(-np.inf, np.inf, (1,)), "no finite bounds"),
        (flat(0, 1, (2,)), flat(-1, 1, (1,)), r"observes Box.*\(3,\), float32\), the data hold Box.*\(2,\)"),
    ],
)
def test_other_spaces_are_refused(tmp_path, monkeypatch, observation_space, action_space, message):
    from minari.serialization import serialize_space

    path = create(tmp_path, monkeypatch)
    serialised = {"observation_space": observation_space, "action_space": action_space}
    edit_metadata(path, **{key: serialize_space(space) for key, space in serialised.items()})
    refuses(message)


def cut_file(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_episode(path):
    with h5py.File(path, "a") as file:
        del file["episode_5"]


def change(field, edit):
    def damage(path):
        with h5py.File(path, "a") as file:
            array = file["episode_11"][field][:]
            del file["episode_11"][field]
            file["episode_11"][field] = edit(array)

    return damage


def with_nan(array):
    array[-1] = np.nan
    return array


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut_file, r"main_data.hdf5: truncated or damaged \("),
        (drop_episode, "main_data.hdf5: truncated or damaged .*episode_5"),
        (lambda path: path.unlink(), "is no readable Minari data set"),
        (lambda path: path.with_name("metadata.json").write_text("{"), "is no readable Minari data set"),
        (lambda path: edit_metadata(path, env_spec=None), "env_spec and eval_env_spec are missing"),
        (change("observations", with_nan), "observations holds a NaN or infinity at row 113"),
        (change("actions", with_nan), "actions holds a NaN"),
        (change("rewards", with_nan), "rewards holds a NaN"),
        (change("observations", lambda array: array[1:]), r"of episode_11 have shapes \(14, .*expected \(15,"),
        (change("actions", lambda array: array[1:]), r"of episode_11 have shapes \(15, \(13, 1\)"),
        (change("terminations", lambda array: array[1:]), "of episode_11 have shapes"),
        (change("rewards", lambda array: np.stack([array] * 2, axis=1)), "several objectives are not supported"),
    ],
)
def test_broken_data_sets_are_explained(tmp_path, monkeypatch, damage, message):
    damage(create(tmp_path, monkeypatch))
    refuses(message)


@pytest.mark.parametrize(
    "name, today",
    [
        ("d4rl/halfcheetah-medium-v2", "mujoco/halfcheetah/medium-v0"),
        ("D4RL/hopper-expert-v2", "mujoco/hopper/expert-v0"),
        ("antmaze-umaze-diverse-v2", "D4RL/antmaze/umaze-diverse-v1"),
        ("d4rl/maze2d-large-dense-v1", "D4RL/pointmaze/large-dense-v2"),
        ("minari/pointmaze-umaze-v1", "D4RL/pointmaze/umaze-v2"),
        ("minari/door-human", "D4RL/door/human-v2"),
        ("minari/D4RL/kitchen/mixed-v1", "D4RL/kitchen/mixed-v2"),
    ],
)
def test_older_names_point_to_todays(tmp_path, name, today):
    with pytest.raises(UserError, match=f"did you mean minari/{today}\\?"):
        load_task(name, str(tmp_path))


def test_a_part_of_a_download_is_named(tmp_path, monkeypatch):
    (tmp_path / NAME / "data").mkdir(parents=True)
    (tmp_path / NAME / "data" / "main_data.hdf5").write_bytes(b"half")
    refuses(rf"^{tmp_path / NAME}: holds a part of a data set only .* delete this folder", data_dir=str(tmp_path))
    main_file = create(tmp_path / "whole", monkeypatch)
    cut_file(main_file)
    refuses("delete this folder and fetch the data set again", data_dir=str(tmp_path / "whole"))


class Counted(GoalEnv):
    """GoalEnv with a number among its observations, and its reward in a vector."""

    observation_space = spaces.Dict({"observation": spaces.Box(-9, 9, (2,)), "clock": spaces.Box(0, 99, ())})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"observation": np.float32([1, 2]), "clock": np.float32(0)}, {}

    def step(self, action):
        *_, reward, terminated, truncated, info = super().step(action)
        observation = {"observation": np.float32([4, 5]), "clock": np.float32(self.steps)}
        return observation, np.array([reward]), terminated, truncated, {"is_success": True}


gymnasium.register("MinariTestCounted-v0", entry_point=f"{__name__}:Counted", max_episode_steps=10)


def counted_episode(index: int) -> dict:
    observations = {"observation": np.float32([[index, 7]] * 3), "clock": np.float32([0, 1, 2])}
    whole = goal_episode(index)
    return whole | {"observations": observations, "rewards": whole["rewards"][:, None]}


def test_numbers_in_a_dict_empty_episodes_and_rewards_in_vectors_are_read(tmp_path, monkeypatch):
    main_file = create(tmp_path, monkeypatch, env="MinariTestCounted-v0", episode=counted_episode, count=3)
    with h5py.File(main_file, "a") as file:  # as a collector that is closed after a reset leaves it
        for name in ("actions", "rewards", "terminations", "truncations"):
            array = file["episode_1"].pop(name)[:]
            file["episode_1"][name] = array[:0]
    task = load_task(f"minari/{NAME}")
    rows = [[0, 0, 7], [1, 0, 7], [2, 0, 7], [0, 2, 7], [1, 2, 7], [2, 2, 7]]
    assert task.dataset.observations.tolist() == rows, "clock, then observation"
    assert task.dataset.rewards[task.dataset.valid].tolist() == [0, 1, 0, 1] and task.identity["episodes"] == 2
    result = evaluate(Still(), task.make_env, 1, 0)
    assert result.successes.tolist() == [1] and result.returns.tolist() == [50]
