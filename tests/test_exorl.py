"""ExORL: rewards against dm_control's, files to HDF5 to Task, large ones too, local collection, wrong input."""

import dataclasses
import functools
import json
import os
import pickle
import re
import shutil
import signal
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from dm_control.rl.control import PhysicsError

from common.errors import UserError
from common.files import locked
from envs import load_environment as load_environment_of
from envs import load_task
from envs.exorl import convert as conversion
from envs.exorl.collect import collect, collect_episode
from envs.exorl.convert import convert
from envs.exorl.domains import DOMAINS, TASKS
from envs.exorl.environment import ExORLEnvironment, action_scale, load_environment
from envs.exorl.relabel import READERS, Relabeller, fast_rewards, reference_rewards
from envs.exorl.tasks import main
from envs.transitions import ACTION_LIMIT
from tests.test_strangers import Touches

STEPS = 60  # of the short episodes here
TOLERANCE = 1e-6


def write_episode(path: Path, episode: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **episode)


def short_name(index: int, steps: int = STEPS) -> str:
    return f"episode_{index:06d}_{steps}.npz"


@pytest.fixture(scope="session")
def cartpole_episodes() -> list:
    environment = ExORLEnvironment("cartpole", "swingup")
    return [collect_episode(environment, "sticky_random", 0, index, STEPS) for index in range(3)]


@pytest.fixture
def buffer(tmp_path, cartpole_episodes, short_episodes) -> Path:
    """The folder of a downloaded set of three short cartpole episodes, `<tmp_path>/cartpole/rnd/buffer`."""
    folder = tmp_path / "cartpole" / "rnd" / "buffer"
    for index, episode in enumerate(cartpole_episodes):
        write_episode(folder / short_name(index), episode)
    return folder


def zip_buffer(buffer: Path, inside: str = "rnd/buffer/") -> Path:
    """Moves the folder's files into the released zip beside it."""
    archive_path = buffer.parent.with_suffix(".zip")
    with zipfile.ZipFile(archive_path, "w") as archive:
        archive.writestr(inside.replace("buffer", "video") + "episode.mp4", b"")
        for path in sorted(buffer.iterdir()):
            archive.write(path, inside + path.name)
    shutil.rmtree(buffer.parent)
    return archive_path


def refuses(root: Path, message: str, collector: str = "rnd") -> None:
    """Conversion fails with one line that matches, and leaves no file behind."""
    with pytest.raises(UserError, match=message) as caught:
        convert(root, "cartpole", collector)
    assert "\n" not in str(caught.value)
    files = [path.name for path in (root / "cartpole").iterdir() if path.is_file()]
    assert not [name for name in files if not name.endswith(".zip")]


# ---- rewards and environment ----


def start_near_the_target(domain: str, task: str, *environments) -> None:
    """The maze's episodes start far from three of its targets, where the reward is 0 to every digit."""
    if domain == "point_mass_maze":
        x, y = {"left": -0.15, "right": 0.15}[task.split("_")[2]], {"top": 0.15, "bottom": -0.15}[task.split("_")[1]]
        for environment in environments:
            with environment.physics.reset_context():
                environment.physics.set_state(np.array([x - 0.02, y - 0.01, 0.0, 0.0]))


@functools.cache
def seed_near_the_target(domain: str, task: str) -> int:
    """A seed whose episode starts where the reward varies: jaco's falls to nothing within 15 cm of its target."""
    if domain != "jaco":
        return 3
    environment = load_environment(domain, task)
    for seed in range(300):
        environment.random_state.seed(seed)
        environment.reset()
        if environment.task.get_reward(environment.physics) > 0.1:
            return seed
    raise AssertionError("no seed found")


@pytest.mark.parametrize("domain, task", TASKS.values())
def test_relabelled_rewards_equal_the_online_ones(domain, task):
    # Drives dm_control's own environment, not ours, so that both are compared with it.
    # ExORL rescaled the actions with dm_control's wrapper (imported after envs, which keeps GLFW's warning off).
    from dm_control.suite.wrappers import action_scale

    ours, theirs = ExORLEnvironment(domain, task), load_environment(domain, task)
    seed = seed_near_the_target(domain, task)
    ours.reset(seed=seed)
    (theirs.random_state if domain == "jaco" else theirs.task.random).seed(seed)
    if domain != "jaco":  # its contacts make the last bit of a control grow into another episode
        theirs = action_scale.Wrapper(theirs, -1.0, 1.0)
    theirs.reset()
    start_near_the_target(domain, task, ours._environment, theirs)
    generator = np.random.default_rng(0)
    actions = generator.uniform(-1, 1, (STEPS, DOMAINS[domain].action_dim)).astype(np.float32)
    if "balance" not in task:
        actions[:] = actions[0]  # a constant push moves further than noise, so that rewards vary
    online, physics = [], []
    for action in actions:
        step = theirs.step(ours._scale.from_unit(action) if domain == "jaco" else action.astype(np.float64))
        observation, reward, terminated, _, _ = ours.step(action)
        online.append(step.reward)
        physics.append(theirs.physics.get_state())
        flat = np.concatenate([np.ravel(entry) for entry in step.observation.values()]).astype(np.float32)
        assert np.allclose(observation, flat, atol=TOLERANCE) and observation.dtype == np.float32
        assert reward == pytest.approx(step.reward, abs=TOLERANCE)
        assert not terminated and step.discount == 1.0
    online = np.array(online)
    relabelled = Relabeller(domain, [task])(np.array(physics), actions)[task]
    assert relabelled.dtype == np.float32
    assert np.abs(relabelled - online).max() < TOLERANCE
    if "sparse" not in task:  # a shift by one row must not pass
        assert np.abs(relabelled[1:] - online[:-1]).max() > 100 * TOLERANCE


@pytest.mark.parametrize("domain, task", [("cartpole", "balance_sparse"), ("cartpole", "swingup_sparse")])
def test_sparse_rewards_are_relabelled_where_they_change(domain, task):
    angles = np.linspace(0, 0.3, 50)
    physics = np.zeros((50, 4))
    physics[:, 1] = angles
    rewards = Relabeller(domain, [task])(physics, np.zeros((50, 1), np.float32))[task]
    assert rewards.tolist() == [float(np.cos(angle) >= 0.995) for angle in angles]
    assert 0 < rewards.sum() < 50


def test_the_control_that_led_to_the_state_counts():
    environment = ExORLEnvironment("cartpole", "balance")
    environment.reset(seed=0)
    action = np.array([0.8], np.float32)
    _, online, _, _, _ = environment.step(action)
    physics = environment.physics_state()[None]
    with_control = Relabeller("cartpole", ["balance"])(physics, action[None])["balance"][0]
    without_control = Relabeller("cartpole", ["balance"])(physics, np.zeros((1, 1)))["balance"][0]
    assert with_control == pytest.approx(online, abs=TOLERANCE)
    # small_control is quadratic with 0 at ±1: 1 - 0.8² = 0.36, weighed as (4 + small_control) / 5. ExORL's own
    # relabeller zeroes the control and gives the larger value.
    assert with_control / without_control == pytest.approx((4 + 0.36) / 5, abs=TOLERANCE)


@pytest.mark.parametrize("domain", READERS)
def test_the_fast_rewards_equal_the_references(domain):
    # States far from those that a random policy reaches, each unlike the one before: nothing may be left over from it.
    widths = DOMAINS[domain]
    environments = [load_environment(domain, task) for task in widths.tasks]
    model = environments[0].physics.model
    generator = np.random.default_rng(0)
    states = generator.normal(size=(500, widths.physics_dim))
    states[:, : model.nq] *= 0.4
    states[:, model.nq :] *= generator.uniform(0, 15, (500, 1))
    actions = generator.uniform(-1, 1, (500, widths.action_dim)).astype(np.float32)
    fast = fast_rewards(domain, environments, states)
    assert fast.shape == (len(widths.tasks), 500)
    assert np.abs(fast - reference_rewards(environments, states, actions)).max() < TOLERANCE
    assert (fast.std(axis=1) > 0.05).all() and fast.max() > 0.5
    relabelled = Relabeller(domain, widths.tasks)(states, actions)
    assert all(np.abs(relabelled[task] - row).max() < TOLERANCE for task, row in zip(widths.tasks, fast, strict=True))


@pytest.mark.parametrize("value", [np.nan, 1e11])
def test_fast_and_reference_refuse_the_same_states(value):
    environments = [load_environment("walker", "walk")]
    states = np.zeros((3, 18))
    states[1, 4] = value
    with pytest.raises(PhysicsError):
        reference_rewards(environments, states, np.zeros((3, 6)))
    with pytest.raises(PhysicsError, match="walker: a state holds"):
        fast_rewards("walker", environments, states)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_seed_determines_the_episode(domain):
    environment = ExORLEnvironment(domain, DOMAINS[domain].tasks[0])
    action = np.full(DOMAINS[domain].action_dim, 0.5, np.float32)

    def roll(environment: ExORLEnvironment, seed: int) -> np.ndarray:
        first, _ = environment.reset(seed=seed)
        return np.stack([first] + [environment.step(action)[0] for _ in range(5)])

    first, other = roll(environment, 7), roll(environment, 8)
    assert np.array_equal(first, roll(environment, 7))
    assert np.array_equal(first, roll(ExORLEnvironment(domain, DOMAINS[domain].tasks[0]), 7))
    assert not np.array_equal(first, other)
    assert first.shape[1] == DOMAINS[domain].observation_dim
    assert environment.action_space.shape == (DOMAINS[domain].action_dim,)
    assert environment.physics_state().shape == (DOMAINS[domain].physics_dim,)
    assert environment.observation_space.contains(first[0])


@pytest.mark.parametrize("domain, task", [TASKS["cartpole_swingup"], TASKS["jaco_reach_top_left"]])
def test_an_episode_is_truncated_where_dm_controls_ends(domain, task):
    ours, theirs, widths = ExORLEnvironment(domain, task), load_environment(domain, task), DOMAINS[domain]
    ours.reset(seed=0)
    theirs.reset()
    action, steps = np.full(widths.action_dim, 0.1, np.float32), widths.episode_steps
    assert [ours.step(action)[2:4] for _ in range(steps)] == [(False, False)] * (steps - 1) + [(False, True)]
    assert [theirs.step(action).last() for _ in range(steps)] == [False] * (steps - 1) + [True]


def test_jacos_observation_has_exorls_order():
    # The order that policies learned from the released files depend on.
    names = ["joints_pos", "joints_torque", "joints_vel"]
    hand = ["joints_pos", "joints_vel", "pinch_site_pos", "pinch_site_rmat"]
    observation = load_environment("jaco", "reach_top_left").reset().observation
    assert list(observation) == [f"jaco_arm/{n}" for n in names] + [f"jaco_arm/jaco_hand/{n}" for n in hand]
    assert [entry.size for entry in observation.values()] == [12, 6, 6, 3, 3, 3, 9]


def test_rewards_of_exorls_own_tasks_follow_their_definitions():
    backward, forward = (ExORLEnvironment("cheetah", task) for task in ("run_backward", "run"))
    for environment in (backward, forward):
        environment.reset(seed=3)
    for action in np.random.default_rng(0).uniform(-1, 1, (50, 6)):
        rewards = [environment.step(action)[1] for environment in (backward, forward)]
        speed = backward._physics.speed()
        assert rewards == pytest.approx([np.clip(-speed / 10, 0, 1), np.clip(speed / 10, 0, 1)])

    corners = {"top_left": (-1, 1), "top_right": (1, 1), "bottom_left": (-1, -1), "bottom_right": (1, -1)}
    for corner, signs in corners.items():
        task = f"reach_{corner}"
        environment = ExORLEnvironment("point_mass_maze", task)
        environment.reset(seed=0)
        start_near_the_target("point_mass_maze", task, environment._environment)
        for action in np.random.default_rng(0).uniform(-1, 1, (20, 2)):
            observation, reward, _, _, _ = environment.step(action)
            distance = np.linalg.norm(observation[:2] - np.array([0.15 * signs[0], 0.15 * signs[1]]))
            near = 0.1 ** (max(distance - 0.015, 0) / 0.015) ** 2
            assert reward == pytest.approx(near * (np.mean(1 - action**2) + 4) / 5, abs=1e-5)
        environment = ExORLEnvironment("jaco", task)
        observation, _ = environment.reset(seed=seed_near_the_target("jaco", task))
        for action in np.random.default_rng(0).uniform(-1, 1, (20, 9)):
            observation, reward, _, _, _ = environment.step(action)
            distance = np.linalg.norm(observation[30:33] - np.array([0.09 * signs[0], 0.09 * signs[1], 0.001]))
            assert reward == pytest.approx(0.1 ** (max(distance - 0.05, 0) / 0.05) ** 2, abs=1e-5)


def test_the_maze_starts_top_left_behind_walls():
    environment = ExORLEnvironment("point_mass_maze", "reach_top_right")
    starts = np.array([environment.reset(seed=seed)[0] for seed in range(50)])
    assert (starts[:, :2] >= (-0.29, 0.15)).all() and (starts[:, :2] <= (-0.15, 0.29)).all()
    assert np.ptp(starts[:, 0]) > 0.1 and np.ptp(starts[:, 1]) > 0.1 and not starts[:, 2:].any()

    def push(start: tuple, action: tuple) -> np.ndarray:
        environment.reset()
        with environment._physics.reset_context():
            environment._physics.set_state(np.array([*start, 0.0, 0.0]))
        return [environment.step(np.array(action, np.float32))[0] for _ in range(300)][-1]

    assert push((-0.15, 0.15), (1, 0))[0] == pytest.approx(-0.02, abs=2e-3)  # wall of half thickness 1 cm, mass of 1 cm
    assert push((-0.15, 0.15), (0, -1))[1] == pytest.approx(0.02, abs=2e-3)
    assert push((-0.15, 0.25), (1, 0))[0] > 0.2  # past the wall's end
    assert push((-0.25, 0.15), (0, -1))[1] < -0.2


def test_actions_beyond_the_limits_count_as_the_limits():
    environment = ExORLEnvironment("quadruped", "walk")
    environment.reset(seed=0)
    environment.step(np.full(12, 5.0, np.float32))
    spec = load_environment("quadruped", "walk").action_spec()
    assert np.array_equal(environment._physics.control(), spec.maximum)
    assert set(spec.maximum) == {0.8, 1.0, 1.1}  # why actions are rescaled at all


def test_jacos_actions_span_its_actuators():
    scale = action_scale(load_environment("jaco", "reach_top_left"))
    ends = np.repeat([0.628, 0.838, 5.0], 3)
    assert np.allclose(scale.from_unit(np.ones(9)), ends, atol=1e-3)
    assert np.allclose(scale.from_unit(np.full(9, -0.5)), -ends / 2, atol=1e-3)


# ---- conversion and loading ----


@pytest.mark.parametrize("zipped", [None, "rnd/buffer/", "buffer/"])
def test_conversion_keeps_the_arrays(tmp_path, buffer, cartpole_episodes, zipped):
    write_episode(buffer / short_name(1), {**cartpole_episodes[1], "skill": np.zeros((STEPS + 1, 2))})
    if zipped is not None:
        zip_buffer(buffer, zipped)
    path = convert(tmp_path, "cartpole", "rnd")
    with h5py.File(path) as file:
        for key in ("observation", "action", "reward", "discount", "physics"):
            expected = np.concatenate([episode[key] for episode in cartpole_episodes])
            stored = file[key][:]
            assert stored.dtype == expected.dtype
            assert np.array_equal(stored, expected.reshape(stored.shape))
        assert file["physics"].dtype == np.float64
        assert file["episode_start"][:].tolist() == [0, STEPS + 1, 2 * (STEPS + 1)]
        assert file["episode_length"][:].tolist() == [STEPS] * 3
        assert {name for name in file if name.startswith("reward_")} == {
            f"reward_{task}" for task in DOMAINS["cartpole"].tasks
        }
        assert "skill" not in file
    assert sorted(p.name for p in path.parent.iterdir() if p.is_file() and p.suffix != ".zip") == ["rnd.h5"]


def test_the_mazes_released_reward_has_four_columns(tmp_path, monkeypatch):
    shorter = dataclasses.replace(DOMAINS["point_mass_maze"], episode_steps=STEPS)
    monkeypatch.setitem(DOMAINS, "point_mass_maze", shorter)
    environment = ExORLEnvironment("point_mass_maze", "reach_top_left")
    episode = collect_episode(environment, "random", 0, 0, STEPS)
    columns = np.arange(4 * (STEPS + 1), dtype=np.float32).reshape(-1, 4)
    path = tmp_path / "point_mass_maze" / "rnd" / "buffer" / short_name(0)
    write_episode(path, {**episode, "reward": columns})
    task = load_task("exorl/rnd/point_mass_maze_reach_top_left", str(tmp_path))
    with h5py.File(task.identity["path"]) as file:
        assert np.array_equal(file["reward"][:], columns)
        assert np.abs(file["reward_reach_top_left"][1:] - episode["reward"][1:, 0]).max() < TOLERANCE
    write_episode(path, episode)
    with pytest.raises(UserError, match=r"reward has shape \(61, 1\) .* expected \(61, 4\)"):
        convert(tmp_path, "point_mass_maze", "rnd")


def test_episodes_are_sorted_by_number(tmp_path, cartpole_episodes, short_episodes):
    buffer = tmp_path / "cartpole" / "rnd" / "buffer"
    for index in range(11):  # as text, 10 comes before 2
        discount = np.full((STEPS + 1, 1), index, np.float32)
        write_episode(buffer / f"episode_{index}_{STEPS}.npz", {**cartpole_episodes[0], "discount": discount})
    with h5py.File(convert(tmp_path, "cartpole", "rnd")) as file:
        assert file["discount"][:: STEPS + 1].tolist() == list(range(11))


def test_the_task_holds_what_the_environment_gave(tmp_path, buffer, cartpole_episodes):
    task = load_task("exorl/rnd/cartpole_swingup", str(tmp_path))
    assert (task.name, task.score_name, task.validation) == ("exorl/rnd/cartpole_swingup", "return", None)
    assert (task.observation_dim, task.action_dim) == (5, 1)
    dataset = task.dataset
    assert len(dataset) == 3 * STEPS and dataset.masks.min() == 1
    batch = dataset.take(torch.arange(len(dataset)), fields=("next_actions",))
    batch = {name: tensor.numpy() for name, tensor in batch.items()}
    episodes = cartpole_episodes

    def stack(key: str, rows: slice) -> np.ndarray:
        return np.concatenate([episode[key][rows] for episode in episodes])

    # Transition i is (obs[i-1], action[i], reward[i], obs[i]).
    assert np.array_equal(batch["observations"], stack("observation", slice(None, -1)))
    assert np.array_equal(batch["next_observations"], stack("observation", slice(1, None)))
    assert np.allclose(batch["actions"], stack("action", slice(1, None)), atol=1.1e-5)
    assert np.abs(batch["rewards"] - stack("reward", slice(1, None))[:, 0]).max() < TOLERANCE
    expected = np.concatenate([np.concatenate([e["action"][2:], e["action"][-1:]]) for e in episodes])
    assert np.allclose(batch["next_actions"], expected, atol=1.1e-5)

    returns = [episode["reward"].sum() for episode in episodes]
    assert task.identity["episode_return_mean"] == pytest.approx(np.mean(returns), abs=1e-4)
    assert task.identity["episode_return_best"] == pytest.approx(np.max(returns), abs=1e-4)
    assert task.identity["transitions"] == 3 * STEPS
    assert task.identity["score_range"] == [0.0, STEPS]  # a reward of 1 at every step of an episode
    assert json.loads(json.dumps(task.identity)) == task.identity
    environment = pickle.loads(pickle.dumps(task.make_env))()
    assert environment.reset(seed=0)[0].shape == (5,)


def test_the_converted_file_is_enough_and_is_not_made_again(tmp_path, buffer):
    load_task("exorl/rnd/cartpole_balance", str(tmp_path))
    path = tmp_path / "cartpole" / "rnd.h5"
    before = path.stat().st_mtime_ns
    shutil.rmtree(buffer.parent)
    assert load_task("exorl/rnd/cartpole_swingup", str(tmp_path)).identity["episodes"] == 3
    assert path.stat().st_mtime_ns == before


def test_the_environment_needs_no_data(tmp_path, buffer):
    task = load_task("exorl/rnd/cartpole_swingup", str(tmp_path))
    shutil.rmtree(tmp_path / "cartpole")
    again = load_environment_of(task.name, json.loads(json.dumps(task.record())), task.identity)
    assert (again.dataset, again.reference_scores()) == (None, task.reference_scores())
    for first, second in zip(task.make_env().reset(seed=4), again.make_env().reset(seed=4), strict=True):
        assert np.array_equal(first, second)


def test_the_default_folder_is_exorls(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/.exorl/data/walker/rnd.h5")):
        load_task("exorl/rnd/walker_walk")


# ---- wrong input ----


@pytest.mark.parametrize(
    "name, message",
    [
        ("exorl/rnd", "expected exorl/<collector>/<domain>_<task>"),
        ("exorl/rnd/walker_wlak", "unknown domain and task 'walker_wlak', did you mean walker_walk"),
        ("exorl/rndd/walker_walk", "unknown ExORL collector 'rndd', did you mean rnd"),
        (
            "exorl/rnd/walker_walk",
            "looked for .*rnd.h5, .*rnd/buffer/ and .*rnd.zip; get it from .*download.sh walker rnd",
        ),
        ("exorl/local_random/walker_walk", "collect walker --collector random --episodes 100 --seed 0 --data_dir"),
        ("exorl/local_stiky_random/walker_walk", "no policy that can be collected, did you mean sticky_random"),
    ],
)
def test_unknown_or_absent_data_is_named(tmp_path, name, message):
    with pytest.raises(UserError, match=message) as caught:
        load_task(name, str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["cut", "one bit", "a single array", "a pickle"])
def test_a_damaged_episode_is_named_and_never_executed(tmp_path, buffer, cartpole_episodes, content):
    path, trace = buffer / short_name(1), tmp_path / "executed"
    sound = bytearray(path.read_bytes())
    if content == "cut":
        path.write_bytes(sound[:-200])
    elif content == "one bit":
        sound[len(sound) // 2] ^= 1
        path.write_bytes(sound)
    elif content == "a single array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    else:
        write_episode(path, {**cartpole_episodes[1], "reward": np.array([Touches(trace)])})
    refuses(tmp_path, f"{short_name(1)}: truncated or not an npz of plain arrays")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["episode_000003.npz", "walker_000003_60.npz"])
def test_a_wrong_name_is_named(tmp_path, buffer, name):
    (buffer / name).write_bytes(b"")
    refuses(tmp_path, f"{name}: not an episode")


@pytest.mark.parametrize("inside", [None, "rnd/buffer/", "rnd/", ""])
def test_a_part_of_a_set_is_read_with_whatever_lies_beside_it(tmp_path, buffer, cartpole_episodes, inside, capsys):
    """Every tenth episode, the last part, without buffer/, with what file managers leave: all that is whole counts."""
    (buffer / short_name(0)).unlink()
    (buffer / short_name(2)).rename(buffer / short_name(9990))
    for name in ("Thumbs.db", "notes.txt", f"._{short_name(1)}"):
        (buffer / name).write_bytes(b"\0")
    if inside is None:
        for path in list(buffer.iterdir()):
            path.rename(buffer.parent / path.name)
        buffer.rmdir()
    else:
        with zipfile.ZipFile(zip_buffer(buffer, inside), "a") as archive:
            archive.writestr(f"__MACOSX/{inside}._{short_name(1)}", b"\0")
    task = load_task("exorl/rnd/cartpole_swingup", str(tmp_path))
    assert "2 episodes, not the whole" in capsys.readouterr().out
    assert (task.identity["source"], task.identity["transitions"]) == ("unknown", 2 * STEPS)
    expected = np.concatenate([episode["observation"] for episode in cartpole_episodes[1:]])
    assert np.array_equal(task.dataset.observations, expected)


def test_a_set_as_large_as_the_released_counts_as_official(tmp_path, buffer, monkeypatch, capsys):
    monkeypatch.setattr("envs.exorl.source.RELEASED_TRANSITIONS", 3 * STEPS + 1)
    monkeypatch.setattr("envs.exorl.source.SIZE_TOLERANCE", 1)
    assert load_task("exorl/rnd/cartpole_swingup", str(tmp_path)).identity["source"] == "official"
    assert "not the whole" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"observation": np.zeros((STEPS, 5))},
            r"observation has shape \(60, 5\) .* expected \(61, 5\) from the file's",
        ),
        ({"physics": np.zeros((STEPS + 1, 18))}, r"physics has shape \(61, 18\) .* expected \(61, 4\)"),
        ({"action": np.zeros((STEPS + 1, 1), int)}, "action has shape .* and type int64"),
        ({"action": np.full((STEPS + 1, 1), np.nan)}, "action holds a NaN or infinity at row 0"),
        ({"physics": np.full((STEPS + 1, 4), 1e11)}, r"physics holds a value beyond 1e\+10"),
        ({"reward": None}, "array reward is missing"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, buffer, cartpole_episodes, changes, message):
    episode = {**cartpole_episodes[1], **changes}
    write_episode(buffer / short_name(1), {key: array for key, array in episode.items() if array is not None})
    refuses(tmp_path, f"{short_name(1)}: {message}")


def test_an_empty_buffer_is_named(tmp_path):
    (tmp_path / "cartpole" / "rnd" / "buffer").mkdir(parents=True)
    refuses(tmp_path, "cartpole/rnd/buffer: holds no episodes")


def test_a_truncated_zip_is_named(tmp_path, buffer):
    archive_path = zip_buffer(buffer)
    archive_path.write_bytes(archive_path.read_bytes()[:-50])
    refuses(tmp_path, "rnd.zip: holds no episodes .* empty, truncated or another archive")
    archive_path.write_bytes(archive_path.read_bytes()[:500])
    refuses(tmp_path, "rnd.zip: truncated or not a zip file")


def test_a_source_that_changed_is_noticed(tmp_path, buffer, cartpole_episodes):
    load_task("exorl/rnd/cartpole_swingup", str(tmp_path))
    write_episode(buffer / short_name(3), cartpole_episodes[0])
    with pytest.raises(UserError, match=r"converted from 3 episodes, but the 4 .* convert cartpole --collector rnd"):
        load_task("exorl/rnd/cartpole_swingup", str(tmp_path))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda file: file.attrs.update(version=99), "version 99, this code reads exorl version 1: run `python -m"),
        (lambda file: file.__delitem__("reward_swingup"), "has no column reward_swingup: run `python -m"),
        (
            lambda file: file["observation"].__setitem__((4, 2), np.nan),
            "rnd.h5: observation holds a NaN or infinity at row 4",
        ),
        (
            lambda file: file["reward_swingup"].__setitem__(5, np.inf),
            "rnd.h5: reward_swingup holds a NaN or infinity at row 5",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, buffer, change, message):
    with h5py.File(convert(tmp_path, "cartpole", "rnd"), "r+") as file:
        change(file)
    with pytest.raises(UserError, match=message):
        load_task("exorl/rnd/cartpole_swingup", str(tmp_path))


@pytest.mark.parametrize("cut", [2, -200])
def test_a_file_that_is_no_whole_hdf5_is_refused(tmp_path, buffer, cut):
    path = convert(tmp_path, "cartpole", "rnd")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="rnd.h5: is damaged or no HDF5 file") as caught:
        load_task("exorl/rnd/cartpole_swingup", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_killed_conversion_leaves_no_file_and_the_next_one_makes_it(tmp_path, buffer):
    process = os.fork()
    if process == 0:
        try:
            conversion._read = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
            convert(tmp_path, "cartpole", "rnd")
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    assert sorted(path.suffix for path in (tmp_path / "cartpole").iterdir()) == ["", ".tmp"]
    task = load_task("exorl/rnd/cartpole_balance", str(tmp_path))
    assert task.identity["episodes"] == 3 and len(task.dataset) == 3 * STEPS
    assert sorted(path.name for path in (tmp_path / "cartpole").iterdir()) == ["rnd", "rnd.h5"]


def test_a_second_process_waits_and_takes_the_firsts_file(tmp_path, buffer, monkeypatch):
    path, waiting = tmp_path / "cartpole" / "rnd.h5", threading.Event()

    def announce(folder):
        waiting.set()
        return locked(folder)

    monkeypatch.setattr(conversion, "_write", None)
    with locked(path.parent):
        monkeypatch.setattr(conversion, "locked", announce)
        second = threading.Thread(target=convert, args=(tmp_path, "cartpole", "rnd"))
        second.start()
        assert waiting.wait(10)
        time.sleep(0.05)
        assert second.is_alive()
        path.write_bytes(b"made by the first")
    second.join(10)
    assert not second.is_alive() and path.read_bytes() == b"made by the first"


# ---- at scale ----


def test_loading_copies_nothing_large(tmp_path, monkeypatch):
    monkeypatch.setattr("envs.transitions.ROWS_AT_ONCE", 1000)
    episodes, steps = 50, 1000
    rows, generator = episodes * (steps + 1), np.random.default_rng(0)
    path = tmp_path / "walker" / "rnd.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["observation"] = generator.normal(size=(rows, 24)).astype(np.float32)
        file["action"] = generator.uniform(-1.0005, 1.0005, (rows, 6)).astype(np.float32)
        file["reward_walk"] = generator.random(rows, np.float32)
        file["episode_start"] = np.arange(episodes) * (steps + 1)
        file["episode_length"] = np.full(episodes, steps)
        file.attrs.update(format="exorl", version=1, source="official", episodes=episodes, transitions=episodes * steps)
        file.attrs.update(collector="rnd", domain="walker", generation=json.dumps(None))

    def peak(in_memory: bool) -> float:
        """Bytes per row that numpy held at most while the data set was loaded; torch's are asserted on."""
        tracemalloc.start()
        try:
            dataset = load_task("exorl/rnd/walker_walk", str(tmp_path), in_memory=in_memory).dataset
            assert len(dataset) == episodes * steps and dataset.masks.untyped_storage().nbytes() == 4
            assert dataset.actions.max() == torch.tensor(ACTION_LIMIT)
            return tracemalloc.get_traced_memory()[1] / rows
        finally:
            tracemalloc.stop()

    load_task("exorl/rnd/walker_walk", str(tmp_path))  # imports are not counted
    monkeypatch.setattr(torch.Tensor, "clamp", None)  # it would copy the actions
    columns = 4 * (24 + 6 + 1) + 8 + 1  # with `valid` and what it is made of
    allowed = 2  # 100 kB: the blocks of the finite check, h5py's objects
    assert columns <= peak(in_memory=True) < columns + allowed
    assert columns - 4 * 24 <= peak(in_memory=False) < columns - 4 * 24 + allowed


def test_mapped_and_loaded_data_are_the_same(tmp_path, buffer):
    loaded = load_task("exorl/rnd/cartpole_balance", str(tmp_path))
    path = Path(loaded.identity["path"])
    before = path.read_bytes()
    mapped = load_task("exorl/rnd/cartpole_balance", str(tmp_path), in_memory=False)
    assert mapped.identity == loaded.identity
    expected, found = (
        task.dataset.sample(500, torch.Generator().manual_seed(0), fields=("next_actions",))
        for task in (loaded, mapped)
    )
    assert list(expected) == list(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    mapped.dataset.observations.zero_()  # stays in memory
    assert path.read_bytes() == before


def test_only_exorls_files_are_mapped(tmp_path):
    with pytest.raises(UserError, match="in_memory: false is for exorl data sets only, not for minari/D4RL/pen"):
        load_task("minari/D4RL/pen/human-v2", str(tmp_path), in_memory=False)


# ---- the documented reader ----


def test_the_documented_reader_gives_transitions(tmp_path, buffer, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "exorl.md").read_text()
    lines = re.search(r"\n\n((?:    .*\n)*    import h5py.*\n(?:    .*\n)+)", text)[1].replace("\n    ", "\n")
    path = convert(tmp_path, "cartpole", "rnd")
    monkeypatch.chdir(path.parent)
    names = {}
    exec(lines.strip().replace("reward_walk", "reward_balance"), names)
    observations, actions, rewards, next_observations = names["transition"]
    dataset = load_task("exorl/rnd/cartpole_balance", str(tmp_path)).dataset
    everything = dataset.take(torch.arange(len(dataset)))
    rows = [names["rows"].tolist().index(row) for row in names["batch"]]
    assert len(rows) == 1024 and len(names["rows"]) == 3 * STEPS
    assert np.array_equal(observations, everything["observations"][rows])
    assert np.allclose(actions, everything["actions"][rows], atol=1.1e-5)
    assert np.array_equal(rewards, everything["rewards"][rows])
    assert np.array_equal(next_observations, everything["next_observations"][rows])


# ---- local collection ----


@pytest.fixture
def short_episodes(monkeypatch):
    """Local collection in this process makes episodes of STEPS steps."""
    monkeypatch.setitem(DOMAINS, "cartpole", dataclasses.replace(DOMAINS["cartpole"], episode_steps=STEPS))


def files_of(folder: Path) -> dict:
    return {path.name: path.read_bytes() for path in sorted((folder / "buffer").iterdir())}


@pytest.mark.parametrize("domain", DOMAINS)
def test_collected_episodes_have_exorls_arrays(domain):
    widths = DOMAINS[domain]
    episode = collect_episode(ExORLEnvironment(domain, widths.tasks[0]), "random", 0, 0, 10)
    assert {key: (array.shape, array.dtype.name) for key, array in episode.items()} == {
        "observation": ((11, widths.observation_dim), "float32"),
        "action": ((11, widths.action_dim), "float32"),
        "reward": ((11, 1), "float32"),
        "discount": ((11, 1), "float32"),
        "physics": ((11, widths.physics_dim), "float64"),
    }
    assert not episode["action"][0].any() and episode["reward"][0] == 0 and (episode["discount"] == 1).all()
    assert episode["action"][1:].any(axis=1).all()


def test_sticky_actions_repeat():
    environment = ExORLEnvironment("cheetah", "run")
    sticky = collect_episode(environment, "sticky_random", 0, 0, 1000)["action"][1:]
    uniform = collect_episode(environment, "random", 0, 0, 1000)["action"][1:]
    repeats = (sticky[1:] == sticky[:-1]).all(axis=1).mean()
    assert repeats == pytest.approx(0.7, abs=5 * (0.7 * 0.3 / 1000) ** 0.5)
    assert not (uniform[1:] == uniform[:-1]).all(axis=1).any()
    assert np.abs(uniform.mean()) < 0.05 and uniform.var() == pytest.approx(1 / 3, abs=0.03)


def test_collection_does_not_depend_on_interruptions(tmp_path, short_episodes):
    whole = collect(tmp_path / "whole", "cartpole", "random", 3, seed=5)
    begun = collect(tmp_path / "begun", "cartpole", "random", 1, seed=5)
    kept = (begun / "buffer" / short_name(0)).stat().st_mtime_ns
    assert collect(tmp_path / "begun", "cartpole", "random", 3, seed=5) == begun
    assert files_of(whole) == files_of(begun)
    assert (begun / "buffer" / short_name(0)).stat().st_mtime_ns == kept
    assert files_of(collect(tmp_path / "other", "cartpole", "random", 3, seed=6)) != files_of(whole)


def test_collection_does_not_depend_on_workers(tmp_path, monkeypatch):
    one = collect(tmp_path / "one", "cartpole", "sticky_random", 2)
    monkeypatch.setattr("envs.exorl.collect.EPISODES_PER_WORKER", 1)
    two = collect(tmp_path / "two", "cartpole", "sticky_random", 2, workers=2)
    assert files_of(one) == files_of(two)
    assert list(files_of(one)) == ["episode_000000_1000.npz", "episode_000001_1000.npz"]


def test_an_absent_local_set_is_collected_when_asked_for(tmp_path, short_episodes):
    name = "exorl/local_sticky_random/cartpole_swingup"
    task = load_task(name, str(tmp_path), collect_episodes=2)
    assert task.identity["episodes"] == 2 and task.identity["source"] == "locally generated"
    assert task.identity["generation"]["policy"] == "sticky_random"
    assert task.identity["generation"]["generator_version"] == 1
    assert task.identity["collector"] == "local_sticky_random"
    with h5py.File(task.identity["path"]) as file:  # the reward that was stored is the stated task's
        stored = file["reward"][:].reshape(2, -1)[:, 1:]
        relabelled = file["reward_" + task.identity["generation"]["reward_task"]][:].reshape(2, -1)[:, 1:]
    assert np.abs(stored - relabelled).max() < TOLERANCE
    assert load_task(name, str(tmp_path), collect_episodes=9).identity["episodes"] == 2


def test_an_unfinished_collection_is_refused_and_finished_when_asked_for(tmp_path, short_episodes):
    folder = collect(tmp_path, "cartpole", "random", 3, seed=4)
    (folder / "buffer" / short_name(2)).unlink()
    with pytest.raises(UserError, match="stopped at 2 of 3 episodes: .* --episodes 3 --seed 4 --data_dir"):
        load_task("exorl/local_random/cartpole_swingup", str(tmp_path))
    task = load_task("exorl/local_random/cartpole_swingup", str(tmp_path), collect_episodes=1)
    assert task.identity["episodes"] == 3 and task.identity["generation"]["seed"] == 4


def test_a_set_of_another_seed_is_not_mixed(tmp_path, short_episodes):
    folder = collect(tmp_path, "cartpole", "random", 1, seed=4)
    before = files_of(folder)
    with pytest.raises(UserError, match="generation.json: seed there is 4, asked for 5"):
        collect(tmp_path, "cartpole", "random", 2, seed=5)
    assert files_of(folder) == before


def test_a_local_name_and_its_record_go_together(tmp_path, buffer):
    buffer.parent.rename(buffer.parent.with_name("local_mine"))
    refuses(tmp_path, "local_mine: its name says locally generated, but generation.json is missing", "local_mine")
    renamed = buffer.parent.with_name("local_mine").rename(buffer.parent)
    (renamed / "generation.json").write_text("{}")
    refuses(tmp_path, "rnd/generation.json: the set is locally generated, but its folder's name does not start")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("cartpol", "random", 1), "unknown ExORL domain 'cartpol', did you mean cartpole"),
        (("cartpole", "sticky", 1), "unknown policy 'sticky', did you mean sticky_random"),
        (("cartpole", "random", 0), "episodes: expected at least 1, got 0"),
        (("cartpole", "random", 1, -1), "seed: expected at least 0, got -1"),
        (("cartpole", "random", 1, 0, 0), "workers: expected at least 1, got 0"),
    ],
)
def test_a_collection_that_makes_no_sense_is_refused(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        collect(tmp_path, *arguments)
    assert not list(tmp_path.iterdir())


# ---- the command ----


def test_the_command_collects_and_converts(tmp_path, short_episodes, capsys):
    data = ["--data_dir", str(tmp_path)]
    main(["collect", "cartpole", "--collector", "sticky_random", "--episodes", "2", "--seed", "3", *data])
    main(["convert", "cartpole", "--collector", "local_sticky_random", *data])
    folder = tmp_path / "cartpole" / "local_sticky_random"
    assert capsys.readouterr().out.split() == [str(folder), f"{folder}.h5"]
    task = load_task("exorl/local_sticky_random/cartpole_balance", str(tmp_path))
    assert task.identity["generation"]["seed"] == 3


def test_a_data_dir_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created.*data_dir"):
        load_task("exorl/local_random/cartpole_swingup", str(tmp_path / "file"), collect_episodes=1)
