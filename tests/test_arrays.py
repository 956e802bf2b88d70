"""Own arrays: transitions become rows, rows a task, and a run's record rebuilds the environment without them."""

import dataclasses
import functools
import inspect
import json
import pickle
import re
import sys
import types
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
import torch

from common.errors import UserError
from envs import load_environment, load_task
from envs.arrays import task_from_arrays
from envs.dataset import Dataset
from envs.task import Task, normalize_observations

NAMES = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")


def pendulum(episodes: int = 3, steps: int = 7) -> dict:
    """Episodes of a few steps, the second of which ends, with torques in [-2, 2]; rows in the order of time."""
    environment, random = gymnasium.make("Pendulum-v1"), np.random.default_rng(0)
    columns = {name: [] for name in NAMES}
    for episode in range(episodes):
        observation, _ = environment.reset(seed=episode)
        for step in range(steps):
            action = random.uniform(-2, 2, 1).astype(np.float32)
            following, reward, *_ = environment.step(action)
            last = step == steps - 1
            values = (observation, action, reward, following, last and episode == 1, last and episode != 1)
            for name, value in zip(NAMES, values, strict=True):
                columns[name].append(value)
            observation = following
    return {name: np.asarray(column) for name, column in columns.items()}


def everything(dataset: Dataset) -> dict:
    return {name: column.numpy() for name, column in dataset.take(torch.arange(len(dataset))).items()}


# ---- Dataset.from_transitions ----


@pytest.mark.parametrize("form", ["as recorded", "columns [N, 1]", "tensors", "without timeouts", "out of order"])
def test_every_transition_comes_back(form):
    arrays = pendulum()
    if form == "columns [N, 1]":
        arrays |= {name: arrays[name].reshape(-1, 1) for name in ("rewards", "terminals", "timeouts")}
    elif form == "tensors":
        arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
    elif form == "without timeouts":
        del arrays["timeouts"]
    elif form == "out of order":
        arrays = {name: array[::-1] for name, array in arrays.items()}
    dataset = Dataset.from_transitions(**arrays, action_low=-2, action_high=[2.0])
    batch = everything(dataset)
    rows = len(arrays["rewards"])
    assert len(dataset) == rows
    assert len(dataset.observations) == (2 * rows if form == "out of order" else rows + 3), "a successor is stored once"
    for name in ("observations", "next_observations"):
        assert np.array_equal(batch[name], arrays[name])
    assert np.allclose(2 * batch["actions"], arrays["actions"], atol=3e-5)
    assert np.allclose(batch["rewards"], np.ravel(arrays["rewards"]))
    assert np.array_equal(batch["masks"], 1.0 - np.ravel(arrays["terminals"]))


def test_without_next_observations_they_are_the_next_rows_and_a_step_at_a_time_limit_is_left_out():
    arrays = pendulum()
    kept = ~arrays["timeouts"]
    dataset = Dataset.from_transitions(**arrays | {"next_observations": None}, action_low=-2, action_high=2)
    batch = everything(dataset)
    assert np.array_equal(batch["observations"], arrays["observations"][kept])
    bootstraps = batch["masks"] == 1
    assert np.array_equal(batch["masks"], 1.0 - arrays["terminals"][kept])
    assert np.array_equal(batch["next_observations"][bootstraps], arrays["next_observations"][kept][bootstraps])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"observations": (4, np.nan)}, "observations holds a NaN or infinity at row 4"),
        ({"next_observations": (4, np.inf)}, "next_observations holds a NaN or infinity at row 4"),
        ({"rewards": (20, 1e39)}, "rewards holds a number too large for float32 at row 20"),
        ({"observations": [[0.0, 1.0], [2.0]]}, "observations are no array .*: give every row the same shape"),
        ({"next_observations": None, "timeouts": np.ones(21), "terminals": np.zeros(21)}, "no transition is left"),
        ({"rewards": (20, np.nan)}, "rewards holds a NaN or infinity at row 20"),
        ({"actions": (3, -2.1)}, "actions of 1 of 21 rows are outside -2 to 2, the first in row 3"),
        ({"terminals": (3, 2)}, "terminals must be 0 or 1, row 3"),
        ({"actions": np.zeros(21)}, r"actions have .* shape \[21\], expected numbers \[21, any\]"),
        ({"rewards": np.zeros((21, 2))}, r"rewards have .* shape \[21, 2\], expected numbers \[21\]"),
        ({"next_observations": np.zeros((21, 2))}, r"next_observations have .* \[21, 2\], expected numbers \[21, 3\]"),
        ({"observations": np.zeros((0, 3))}, r"observations have .* \[0, 3\], expected numbers \[any, any\]"),
        ({"observations": np.array([["a"]])}, "observations have type <U1 and shape .* expected numbers"),
        ({"next_observations": None, "timeouts": None}, "next_observations and timeouts are both missing"),
        ({"action_low": [-2, -2, -2]}, "give action_low and action_high as numbers or .1."),
        ({"action_high": -2}, "are not finite numbers low < high"),
    ],
)
def test_arrays_that_are_not_right_are_named(changes, message):
    arrays = pendulum() | {"action_low": -2, "action_high": 2}
    for name, change in changes.items():
        if isinstance(change, tuple):
            arrays[name] = arrays[name].astype(float)
            arrays[name][change[0]] = change[1]
        else:
            arrays[name] = change
    with pytest.raises(UserError, match=f"^mine: .*{message}") as caught:
        Dataset.from_transitions(**arrays, source="mine")
    assert "\n" not in str(caught.value)


def test_arrays_in_memory_may_have_gymnasiums_names_and_others_besides():
    arrays = pendulum() | {"action_low": -2, "action_high": 2}
    renamed = {"terminals": "terminations", "timeouts": "truncations"}
    theirs = {renamed.get(name, name): array for name, array in arrays.items()} | {"infos/goal": np.zeros(3)}
    task = task_from_arrays("own/a", theirs, validation=theirs)
    assert len(task.dataset) == len(task.validation) == len(task_from_arrays("own/a", arrays).dataset)
    with pytest.raises(UserError, match="^own/a: has terminations and terminals, which mean the same: leave one out"):
        task_from_arrays("own/a", theirs | {"terminals": arrays["terminals"]})
    del theirs["rewards"]
    with pytest.raises(UserError, match="^own/a: has no array rewards .it has .*terminations"):
        task_from_arrays("own/a", theirs)


# ---- arrays/<path> ----


def save(path, arrays: dict):
    """An npz file, or D4RL's HDF5 with the groups that its files have besides."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip" if np.ndim(array) else None)
        file["infos/qpos"] = np.zeros(3)
        file["metadata/algorithm"] = b"SAC"


@pytest.mark.parametrize("suffix", ["npz", "hdf5"])
@pytest.mark.parametrize("environment", ["", "@Pendulum-v1"])
def test_a_file_is_a_task(tmp_path, suffix, environment):
    arrays = pendulum()
    bounds = {} if environment else {"action_low": -2.0, "action_high": [2.0]}
    save(tmp_path / f"logs.{suffix}", arrays | bounds)
    save(tmp_path / f"logs-val.{suffix}", pendulum(episodes=2))
    task = load_task(f"arrays/logs.{suffix}{environment}", str(tmp_path))
    assert (task.observation_dim, task.action_dim, task.score_name) == (3, 1, "return")
    assert np.allclose(2 * everything(task.dataset)["actions"], arrays["actions"], atol=3e-5)
    assert len(task.validation) == 14
    returns = arrays["rewards"].reshape(3, 7).sum(axis=1)
    assert task.reference_scores() == pytest.approx(
        {"data: mean episode": returns.mean(), "data: best episode": returns.max()}
    )
    assert (task.identity["episodes"], task.identity["source"]) == (3, "local file")
    assert json.loads(json.dumps([task.identity, task.record()])) == [task.identity, task.record()]
    assert (task.record()["action_low"], task.record()["action_high"]) == ([-2.0], [2.0])
    if not environment:
        assert task.make_env is None
        return
    ours, theirs = pickle.loads(pickle.dumps(task.make_env))(), gymnasium.make("Pendulum-v1")
    assert np.array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    for action in (0.5, -1.0, 7.0):  # a policy's action is half of, or all of, the torque
        assert np.array_equal(ours.step(np.array([action]))[0], theirs.step(np.array([2 * min(action, 1)]))[0])


def test_gymnasiums_names_are_understood(tmp_path):
    arrays = pendulum()
    renamed = {"terminations": arrays.pop("terminals"), "truncations": arrays.pop("timeouts")}
    np.savez(tmp_path / "a.npz", **arrays, **renamed)
    task = load_task("arrays/a.npz@Pendulum-v1", str(tmp_path))
    assert everything(task.dataset)["masks"].sum() == 20 and task.identity["episodes"] == 3


@pytest.mark.parametrize(
    "name, message",
    [
        ("a.npy", "expected arrays/<path>.npz, .hdf5 or .h5"),
        ("../a.npz", "without .. in the path"),
        ("absent.npz", "absent.npz: there is no such file"),
        ("broken.npz", "broken.npz: is truncated or no file of plain arrays"),
        ("broken.hdf5", "broken.hdf5: is truncated or no file of plain arrays"),
        ("dones.npz", r"has no array terminals \(it has .*dones.*\): name the arrays .* terminals are true ends"),
        ("a.npz@Pendulum-v9", "environment 'Pendulum-v9' cannot be made"),
        ("a.npz@no_module:Pendulum-v1", "environment 'no_module:Pendulum-v1' cannot be made"),
        (
            "a.npz@MountainCarContinuous-v0",
            r"observations have shape \(21, 3\) in the data and \(2,\) in the environment",
        ),
        ("a.npz@CartPole-v1", "action space Discrete is not supported"),
        ("nan.npz@Pendulum-v1", "arrays/nan.npz@Pendulum-v1: rewards holds a NaN or infinity at row 5"),
        ("a.npz", "actions of .* of 21 rows are outside -1 to 1"),
    ],
)
def test_a_file_that_is_not_right_is_named(tmp_path, name, message):
    arrays = pendulum()
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez(tmp_path / "nan.npz", **arrays | {"rewards": np.where(np.arange(21) == 5, np.nan, arrays["rewards"])})
    np.savez(tmp_path / "dones.npz", dones=arrays.pop("terminals"), **arrays)
    for suffix in ("npz", "hdf5"):
        (tmp_path / f"broken.{suffix}").write_bytes(b"PK no such thing")
    with pytest.raises(UserError, match=message) as caught:
        load_task(f"arrays/{name}", str(tmp_path))
    assert "\n" not in str(caught.value)


# ---- Own suites ----


def own_task(**changes) -> Task:
    """As a module of one's own makes it, by Task itself: Pendulum's rows, episodes of 7 transitions each."""
    arrays = pendulum() | {"action_low": -2, "action_high": 2}
    return dataclasses.replace(task_from_arrays("mine/x", arrays, validation=arrays), **changes)


def own_suite(monkeypatch, task: Task) -> None:
    """DIPOLE_SUITES with a module that loads `task`."""
    module = types.ModuleType("own_module")
    module.load = lambda name, data_dir=None, collect_episodes=0: task
    monkeypatch.setitem(sys.modules, "own_module", module)
    monkeypatch.setenv("DIPOLE_SUITES", "mine=own_module")


def rescaled() -> gymnasium.Env:
    return gymnasium.wrappers.RescaleAction(gymnasium.make("Pendulum-v1"), -1, 1)


def make(name: str) -> functools.partial:
    return functools.partial(gymnasium.make, name)


def spoiled(field: str, row: int) -> Task:
    task = own_task()
    getattr(task.validation, field)[row] = np.nan
    return task


@pytest.mark.parametrize(
    "task, message",
    [
        (own_task(make_env=make("Pendulum-v1")), r"actions are Box\(-2.0, 2.0, \(1,\), float32\), the data's"),
        (spoiled("rewards", 4), "validation rewards hold a NaN or infinity at row 4"),
        (spoiled("observations", 7), "validation observations hold a NaN or infinity at row 7"),
    ],
)
def test_a_task_of_ones_own_that_would_train_to_wrong_numbers_is_refused(monkeypatch, task, message):
    own_suite(monkeypatch, task)
    with pytest.raises(UserError, match=f"task mine/x: .*{message}"):
        load_task("mine/x")


def test_a_task_of_ones_own_may_hold_anything_where_nothing_reads_it(monkeypatch):
    own_suite(monkeypatch, spoiled("rewards", 7))  # the row of an episode's last state
    assert load_task("mine/x").validation is not None


def test_a_module_that_python_does_not_find_is_named(monkeypatch):
    monkeypatch.setenv("DIPOLE_SUITES", "mine=no_such.my_tasks")
    with pytest.raises(UserError, match="'no_such.my_tasks', .*: add its folder to PYTHONPATH"):
        load_task("mine/x")


# ---- What a run keeps ----


def test_the_record_rebuilds_the_environment_without_the_data(tmp_path):
    np.savez(tmp_path / "a.npz", **pendulum())
    task = normalize_observations(load_task("arrays/a.npz@Pendulum-v1", str(tmp_path)))
    record, identity = json.loads(json.dumps([task.record(), task.identity]))
    (tmp_path / "a.npz").unlink()
    again = load_environment(task.name, record, identity)
    assert again.dataset is None and again.record() == record
    assert again.reference_scores() == task.reference_scores()
    before, after = task.make_env(), again.make_env()
    assert np.array_equal(before.reset(seed=1)[0], after.reset(seed=1)[0])
    assert np.array_equal(before.step(np.array([0.3]))[0], after.step(np.array([0.3]))[0])


def test_an_own_suite_without_its_own_way_is_loaded_again_and_compared(monkeypatch):
    own_suite(monkeypatch, own_task(make_env=rescaled))
    task = load_task("mine/x")
    again = load_environment("mine/x", task.record(), task.identity)
    assert np.array_equal(again.make_env().reset(seed=2)[0], rescaled().reset(seed=2)[0])
    with pytest.raises(UserError, match="the data set has changed since the run"):
        load_environment("mine/x", task.record(), task.identity | {"sha256": "1"})


@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_normalised_observations_are_the_same_in_any_unit(unit):
    arrays = pendulum()
    for name in ("observations", "next_observations"):
        arrays[name] = np.hstack([unit * arrays[name] + 5 * unit, np.full((21, 1), 3.0)])
    task = normalize_observations(task_from_arrays("own/x", arrays | {"action_low": -2, "action_high": 2}))
    plain = normalize_observations(task_from_arrays("own/x", pendulum() | {"action_low": -2, "action_high": 2}))
    assert np.allclose(task.dataset.observations[:, :3], plain.dataset.observations, atol=1e-4)
    assert (task.dataset.observations[:, 3] == 0).all() and task.environment["observation_std"][3] == 1
    assert torch.equal(task.dataset.valid, plain.dataset.valid)
    assert np.allclose(plain.dataset.observations.mean(0), 0, atol=1e-5)
    assert np.allclose(plain.dataset.observations.std(0, correction=0), 1, atol=1e-5)


def test_a_normalised_environment_still_says_how_it_draws(tmp_path):
    np.savez(tmp_path / "a.npz", **pendulum())
    task = normalize_observations(load_task("arrays/a.npz@Pendulum-v1", str(tmp_path)))
    assert "render_mode" in inspect.signature(task.make_env).parameters
    assert task.make_env(render_mode="rgb_array").render_mode == "rgb_array"


# ---- The page ----


def test_the_pages_examples_make_files_that_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[1] / "docs" / "own_data.md").read_text(encoding="utf-8")
    names = {}
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)), "own_data.md", "exec"), names)
    assert len(names["task"].dataset) == 1000 and names["task"].make_env is None
    assert len(load_task("arrays/logs.npz@Pendulum-v1").dataset) == 1000
    episodes = load_task("arrays/episodes.npz@Pendulum-v1")
    assert (len(episodes.dataset), episodes.identity["episodes"]) == (1000, 5)
    log = load_task("arrays/log.npz")
    assert len(log.dataset) == 100 and log.record()["action_high"] == [100.0]
    assert sorted(log.dataset.actions[:, 0].unique().tolist()) == pytest.approx([-0.4, 0.4])
