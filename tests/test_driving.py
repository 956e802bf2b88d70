"""Driving scenes, their encoding and the one-step task, on the small set in golden/driving/scenes.

That set is `python -m envs.driving.collect --logs 6 --out tests/golden/driving/scenes`; the tests that make scenes anew
need highway-env.
"""

import dataclasses
import importlib.util
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from envs import load_task
from envs.driving import collect, tasks
from envs.driving.bandit import DrivingBandit, load_data
from envs.driving.collect import FAMILIES
from envs.driving.curate import SOLVABLE, TRIVIAL, score_matrix
from envs.driving.encoding import Encoding
from envs.driving.observation import OBSERVATION_DIM, Scaling, observe
from envs.driving.planner import along_route, choose, constant_velocity, forecast, perturb, proposals
from envs.driving.scene import DRIVABLE, Road
from envs.driving.scene_files import log_paths, read_log, read_split, split_of
from envs.driving.score import score
from envs.driving.vehicle import DT
from envs.transitions import ACTION_LIMIT
from tests.driving_scenes import SCENES, straight_scene


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A copy of the small set, as the task writes a file beside it."""
    path = tmp_path_factory.mktemp("driving") / "scenes"
    shutil.copytree(SCENES, path)
    return path


@pytest.fixture(scope="module")
def train(folder):
    return read_split(folder, "train")


@pytest.fixture(scope="module")
def task(folder):
    return load_task("driving/bandit", str(folder))


# ---- Plans without learning ----


def test_constant_velocity_goes_straight_on():
    plan = constant_velocity(straight_scene([], speed=6.0))
    assert np.allclose(plan[:, 0], 3.0 * np.arange(1, 9))
    assert not plan[:, 1:].any()


def test_the_base_plan_keeps_speed_and_distance_along_a_bend():
    turned = np.linspace(0.0, np.pi / 2, 200)
    arc = np.stack([30 * np.sin(turned), 30 - 30 * np.cos(turned)], axis=-1)  # to the left, radius 30 m
    scene = dataclasses.replace(straight_scene([]), centreline=arc, ego=np.array([0.0, 1.0, 0.0, 5.0, 0.0, 0.0, 0.0]))
    plan = along_route(scene)
    angle = 5.0 * 0.5 * np.arange(1, 9) / 30
    inside = np.stack([29 * np.sin(angle), 29 - 29 * np.cos(angle), angle], axis=-1)
    np.testing.assert_allclose(plan, inside, atol=0.03)


def test_proposals_reach_their_speeds_and_offsets_on_an_empty_road():
    plans = proposals(straight_scene([]))
    assert plans.shape == (15, 8, 3)
    speeds = np.diff(plans[:, -2:, 0]).ravel() / 0.5
    assert speeds[4] == pytest.approx(10.0, abs=0.6)
    assert speeds[0] == pytest.approx(2.0, abs=0.3)
    assert np.allclose(plans[:5, :, 1], 0.0)
    assert np.allclose(plans[5:10, -1, 1], -1.0)
    assert np.allclose(plans[10:, -1, 1], 1.0)


def test_proposals_stop_behind_a_parked_vehicle_and_pass_one_beside_the_lane():
    blocked = proposals(straight_scene([[30.0, 0.0, 0.0, 0.0]]))
    assert (blocked[:, -1, 0] < 30.0 - 2.5 - 4.049 + 0.5).all()
    beside = proposals(straight_scene([[30.0, 4.0, 0.0, 0.0]]))
    assert beside[4, -1, 0] > 33.0


def test_the_chosen_proposal_avoids_what_others_hit():
    # A vehicle stands half way in the lane, on the left: a metre to the right there is room.
    scene = straight_scene([[30.0, 2.9, 0.0, 0.0]])
    plans = proposals(scene)
    chosen = choose(scene, plans)
    assert plans[chosen, -1, 1] <= 0.0
    assert score(scene, plans[chosen : chosen + 1]).no_collision == 1.0


def test_the_forecast_keeps_velocities_and_absence():
    scene = straight_scene([[10.0, 1.0, np.pi / 2, 2.0]])
    scene.agents[20:] = np.nan
    future = forecast(scene)
    assert np.allclose(future[50, 0], [10.0, 11.0, np.pi / 2, 2.0])


def test_perturbations_change_speed_and_drift_aside(train):
    plans = np.repeat(constant_velocity(straight_scene([]))[None], 4000, axis=0)
    moved = perturb(plans, np.random.default_rng(0))
    assert moved[:, -1, 1].std() == pytest.approx(1.3, abs=0.05)
    # The rate at knot i is 1 + factor + slope i / 8, never negative; 32 m are the sum over eight knots of 4 m.
    assert moved[:, -1, 0].std() == pytest.approx(32 * np.hypot(0.22, 0.25 * 4.5 / 8), rel=0.05)
    assert moved[:, :, 0].min() > -1.0
    assert np.abs(moved[:, 0, 1]).max() < 0.1


# ---- The set ----


def test_splits_are_by_log_and_hold_both_families_early():
    splits = [split_of(index) for index in range(20)]
    assert [splits.count(split) for split in ("train", "validation", "test")] == [14, 2, 4]
    assert splits[:6] == ["train", "train", "validation", "validation", "test", "test"]


def test_kept_scenes_are_neither_trivial_nor_unsolvable_and_hold_their_scores():
    seen = 0
    for path in sorted(SCENES.glob("log_*.npz")):
        record = read_log(path)
        for index in range(0, len(record.scenes), 3):
            scene, seen = record.scenes[index], seen + 1
            assert not np.isnan(scene.agents[0]).any()
            assert -4.05 < scene.ego[4] < 2.40 and abs(scene.ego[6]) < 0.95
            assert score(scene, constant_velocity(scene)[None]).pdms <= TRIVIAL
            assert score(scene, proposals(scene)).pdms.max() >= SOLVABLE
            np.testing.assert_allclose(score_matrix(score(scene, record.plans[index])), record.scores[index], atol=1e-9)
            reference = score(scene, record.reference_plans[index][None])
            progress = reference.raw_progress * reference.no_collision * reference.drivable_area
            assert progress == pytest.approx(scene.reference_progress, abs=1e-6)
    assert seen > 10


def test_logged_vehicles_move_as_the_scorers_do(train):
    """The initial state is one that the bicycle could have reached, and the driver's plan continues it."""
    for scene, logged in zip(train.scenes[::4], train.logged_plans[::4], strict=True):
        speed, acceleration = scene.ego[3:5]
        assert np.hypot(*logged[0, :2]) == pytest.approx(0.5 * speed + 0.125 * acceleration, abs=0.6)
        assert abs(logged[0, 1]) < 1.0
        assert (scene.road.lanes_at(scene.pose[:2]) & DRIVABLE) > 0


# ---- Making it (highway-env) ----


@pytest.fixture(scope="module")
def traffic():
    pytest.importorskip("highway_env")
    return collect.traffic_module()


def test_the_rear_axle_of_highway_envs_bicycle_does_not_slip(traffic):
    log = traffic.simulate("roundabout", 3, 60)
    heading, speed = log.ego[:, 2], log.ego[:, 3]
    moved = np.diff(log.ego[:, :2], axis=0)
    before = heading[:-1]
    assert np.abs(moved[:, 1] * np.cos(before) - moved[:, 0] * np.sin(before)).max() < 0.004
    assert np.median(np.abs(np.hypot(*moved.T) / DT - speed[1:])) < 0.01


def test_vehicles_keep_to_the_right(traffic):
    log = traffic.simulate("intersection", 1, 5)
    assert log.ego[0, 2] == pytest.approx(np.pi / 2)  # northward
    assert log.ego[0, 0] == pytest.approx(2.0)  # on the eastern side


def test_collecting_again_gives_the_same_bytes_and_resumes(traffic, tmp_path):
    first = collect.collect(tmp_path / "first", 2)
    written = {path.name: path.read_bytes() for path in first.iterdir()}
    collect.log_path(first, 0).unlink()
    collect.collect(first, 2)
    assert {path.name: path.read_bytes() for path in first.iterdir()} == written
    expected = json.loads((SCENES / "generation.json").read_text())
    made = json.loads(written["generation.json"])
    if made["libraries"] == expected["libraries"]:
        for index in range(2):
            fresh, stored = read_log(collect.log_path(first, index)), read_log(collect.log_path(SCENES, index))
            assert fresh.tokens == stored.tokens
            np.testing.assert_allclose(fresh.plans, stored.plans, atol=1e-6)
    with pytest.raises(UserError, match="seed there is 0, asked for 1"):
        collect.collect(first, 2, seed=1)


@pytest.mark.slow
def test_two_workers_write_the_bytes_of_one(traffic, tmp_path):
    alone = collect.collect(tmp_path / "alone", 8, workers=1)
    beside = collect.collect(tmp_path / "beside", 8, workers=2)
    for path in alone.iterdir():
        assert path.read_bytes() == (beside / path.name).read_bytes(), path.name


def test_without_highway_env_collecting_says_what_to_install_and_the_rest_works(folder, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "highway_env" else find(name))
    monkeypatch.setitem(sys.modules, "highway_env", None)  # an import of it fails
    load_task("driving/bandit", str(folder)).make_env().reset(seed=0)
    with pytest.raises(SystemExit) as exit_:
        collect.main(["--logs", "2", "--out", str(tmp_path / "new")])
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: highway-env") and message.count("\n") == 1
    assert "pip install -r requirements-driving.txt" in message
    assert not (tmp_path / "new").exists()


# ---- What a policy sees and gives ----


def test_an_observation_is_that_of_the_scene():
    scene = straight_scene([[20.0, 1.0, np.pi / 2, 3.0], [10.0, -2.0, 0.0, 5.0]], speed=7.0)
    scene.ego[4:] = 0.5, 0.1, 0.2
    scene.road.raster[:, 211:] = 0  # nothing beyond 2.1 m to the left
    vector = observe(scene)
    assert len(vector) == OBSERVATION_DIM
    assert np.allclose(vector[:6], [7.0, 0.5, 0.1, 0.2, 10.0, 0.0])
    assert np.allclose(vector[6:15].reshape(3, 3)[:, 0], [-10.5, -7.0, -3.5])
    route = vector[15:51].reshape(12, 3)
    assert np.allclose(route[:, 0], [2, 5, 8, 12, 16, 20, 25, 30, 40, 50, 65, 80])
    assert np.allclose(route[:, 1:], 0.0)
    assert np.allclose(vector[51:75].reshape(2, 12), [[2.0], [4.0]])  # left and right
    agents = vector[75:].reshape(8, 9)
    assert np.allclose(agents[0], [1, 10, -2, 1, 0, 5, 0, 5, 2])
    assert np.allclose(agents[1], [1, 20, 1, 0, 1, 0, 3, 5, 2])
    assert not agents[2:].any()


def test_an_observation_does_not_depend_on_where_the_scene_lies(train):
    scene = train.scenes[0]
    turned, shift = 0.5 * np.pi, np.array([30.0, -10.0])  # a right angle turns the grid onto itself

    def moved(points):
        return np.stack([-points[..., 1], points[..., 0]], axis=-1) + shift

    def moved_poses(poses):
        return np.concatenate([moved(poses[..., :2]), poses[..., 2:3] + turned, poses[..., 3:]], axis=-1)

    road = scene.road
    corner = moved(road.origin + [0.0, road.resolution * (road.raster.shape[1] - 1)])
    grid = Road(np.rot90(road.raster), np.rot90(road.intersection), corner, road.resolution)
    other = dataclasses.replace(
        scene,
        road=grid,
        ego=moved_poses(scene.ego),
        history=moved_poses(scene.history),
        agents=moved_poses(scene.agents),
        centreline=moved(scene.centreline),
    )
    difference = np.abs(observe(other) - observe(scene))
    assert np.delete(difference, slice(51, 75)).max() < 1e-6
    assert difference[51:75].max() <= 0.5  # a probe at a cell's edge may fall to either side


def test_scaling_gives_mean_0_and_deviation_1_and_leaves_constants():
    values = np.random.default_rng(0).normal(3.0, 2.0, (500, 4))
    values[:, 1] = 7.0
    scaled = Scaling.fit(values)(values)
    assert np.allclose(scaled.mean(axis=0), 0.0, atol=1e-6)
    assert np.allclose(scaled.std(axis=0), [1, 0, 1, 1], atol=1e-4)


@pytest.fixture(params=["basis", "zscore"])
def encoded(request, train):
    """(encoding of the training plans by a kind, its name, their bases [S, 16, 8, 3], their actions [S, 16, A])."""
    bases = np.stack([along_route(scene) for scene in train.scenes])[:, None].repeat(16, axis=1)
    encoding = Encoding.fit(train.plans.reshape(-1, 8, 3), bases.reshape(-1, 8, 3), request.param)
    return encoding, request.param, bases, encoding.encode(train.plans, bases)


def test_training_plans_are_within_the_limits_and_reach_them(encoded):
    encoding, kind, _, actions = encoded
    assert np.allclose(np.abs(actions).max(axis=(0, 1)), ACTION_LIMIT)
    assert encoding.action_dim == actions.shape[-1] and (kind == "basis" or actions.shape[-1] == 24)


def test_an_encoding_decodes_its_own_plans_exactly(encoded):
    encoding, _, bases, _ = encoded
    actions = np.random.default_rng(0).uniform(-0.99, 0.99, (50, encoding.action_dim))
    base = bases[0, :1].repeat(50, axis=0)
    np.testing.assert_allclose(encoding.encode(encoding.decode(actions, base), base), actions, atol=1e-12)


def test_the_zscore_decodes_every_plan_exactly_and_the_basis_closely(encoded, train):
    encoding, kind, bases, actions = encoded
    decoded = encoding.decode(actions, bases)
    if kind == "zscore":
        return np.testing.assert_allclose(decoded, train.plans, atol=1e-12)
    assert encoding.action_dim < 16
    left = (decoded - train.plans).reshape(-1, 24) / encoding.std
    residuals = ((train.plans - bases).reshape(-1, 24) - encoding.mean) / encoding.std
    whole = (np.abs(actions) < ACTION_LIMIT).all(axis=-1).ravel()  # not drawn back in any coefficient
    assert whole.mean() > 0.85
    assert 0.0 < left[whole].var() / residuals.var() < 0.005
    assert (actions.reshape(-1, encoding.action_dim).std(axis=0) > 0.2).all()
    coefficients = residuals @ encoding.inverse  # whitened: of unit variance, without correlation
    assert np.allclose(coefficients.T @ coefficients / len(coefficients), np.eye(encoding.action_dim), atol=1e-9)


# ---- The task ----


def test_the_dataset_holds_one_step_episodes_of_one_scene_each(folder, task):
    data = load_data(folder, "basis")
    scenes, plans = data.scores["train"].shape[:2]
    dataset = task.dataset
    assert len(dataset) == scenes * plans
    batch = dataset.take(torch.arange(len(dataset)), ("state_values", "state_deviations", "next_actions"))
    assert torch.equal(batch["observations"], batch["next_observations"])
    assert torch.equal(batch["observations"].view(scenes, plans, -1)[:, 0], torch.tensor(data.observations["train"]))
    assert torch.equal(batch["actions"].view(scenes, plans, -1), torch.tensor(data.actions["train"]))
    assert not batch["masks"].any()
    rewards = batch["rewards"].view(scenes, plans)
    assert torch.allclose(rewards, torch.tensor(data.scores["train"][..., -1], dtype=torch.float32))
    assert torch.allclose(
        batch["state_values"].view(scenes, plans), rewards.mean(dim=1, keepdim=True).expand_as(rewards)
    )
    deviations = rewards.std(dim=1, keepdim=True)  # torch's, as in HDP-navsim: of the sample
    assert torch.allclose(batch["state_deviations"].view(scenes, plans), deviations.expand_as(rewards), atol=1e-6)


@pytest.mark.parametrize("name", ["bandit", "bandit-zscore"])
def test_the_environment_gives_the_stored_rewards(folder, name):
    task = load_task(f"driving/{name}", str(folder))
    environment = pickle.loads(pickle.dumps(task.make_env))()
    data = load_data(folder, task.identity["encoding"])
    for index in range(0, len(data.observations["test"]), 3):
        for plan in (0, 7):
            observation, _ = environment.reset(seed=index + 10 * len(data.observations["test"]))
            assert np.array_equal(observation, data.observations["test"][index])
            _, reward, terminated, truncated, info = environment.step(data.actions["test"][index, plan])
            assert (terminated, truncated) == (True, False)
            assert reward == info["pdms"] == pytest.approx(data.scores["test"][index, plan, -1], abs=1e-9)
            assert info["comfort"] == data.scores["test"][index, plan, 3]


def test_the_zscores_rewards_are_those_of_the_plans_as_collected(folder):
    stored = np.concatenate([read_log(path).scores for path in log_paths(folder, "train")])
    encoded = load_data(folder, "zscore").scores["train"]
    assert np.mean(np.abs(stored - encoded).max(axis=-1) < 1e-4) > 0.99  # float32 actions may turn a verdict


def test_validation_tasks_share_the_data_and_evaluate_elsewhere(folder, task):
    other = load_task("driving/bandit-validation", str(folder))
    assert torch.equal(other.dataset.actions, task.dataset.actions)
    tokens = {}
    for name, environment in (("test", task.make_env()), ("validation", other.make_env())):
        tokens[name] = {environment.reset(seed=seed)[1]["token"] for seed in range(60)}
        assert len(tokens[name]) == task.identity["scenes"][name]
    assert not tokens["test"] & tokens["validation"]
    assert {split_of(int(token.split("_")[1])) for token in tokens["test"]} == {"test"}


def test_the_data_file_is_made_again_where_the_set_has_changed(tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(SCENES, folder)
    before = load_data(folder, "basis")
    collect.log_path(folder, 1).write_bytes(collect.log_path(folder, 0).read_bytes())
    after = load_data(folder, "basis")
    assert len(after.observations["train"]) != len(before.observations["train"])


def test_identity_says_that_the_data_are_locally_generated(task):
    assert task.identity["source"] == "locally generated"
    assert task.identity["generation"]["libraries"]["highway-env"]
    assert 0.2 < task.identity["episode_return_mean"] < 0.8
    json.dumps(task.identity)


def test_a_log_without_one_of_its_arrays_is_one_sentence(tmp_path):
    with np.load(log_paths(SCENES, "train")[0]) as file:
        arrays = {name: file[name] for name in file.files if name != "plans"}
    np.savez(tmp_path / "log_000000.npz", **arrays)
    with pytest.raises(UserError, match="log_000000.npz: plans.* is missing: delete the file"):
        read_log(tmp_path / "log_000000.npz")


def test_unknown_absent_interrupted_and_damaged_sets_are_one_sentence_each(tmp_path):
    with pytest.raises(UserError, match="driving/bandid: unknown.*bandit"):
        tasks.load("bandid")
    with pytest.raises(UserError, match="no driving scenes in .*python -m envs.driving.collect --logs 300"):
        tasks.load("bandit", str(tmp_path / "none"))
    folder = tmp_path / "scenes"
    shutil.copytree(SCENES, folder)
    collect.log_path(folder, 3).write_bytes(collect.log_path(SCENES, 3).read_bytes()[:-200])
    with pytest.raises(UserError, match="log_000003.npz: cannot be read"):
        tasks.load("bandit", str(folder))
    collect.log_path(folder, 3).unlink()
    with pytest.raises(UserError, match="1 of 6 logs are missing.*--logs 6"):
        tasks.load("bandit", str(folder))
    for path in log_paths(folder, "test"):
        shutil.copy(collect.log_path(SCENES, 4), path)  # without scenes
    shutil.copy(collect.log_path(SCENES, 3), collect.log_path(folder, 3))
    with pytest.raises(UserError, match="no log of the test split has a scene"):
        tasks.load("bandit", str(folder))
    assert tuple(json.loads((folder / "generation.json").read_text())["families"]) == FAMILIES


def test_environments_of_a_process_share_their_scenes(folder, task):
    first, second = task.make_env(), task.make_env()
    assert isinstance(first, DrivingBandit)
    assert first.scene_set is second.scene_set
