"""The NAVSIM back end against a stand-in of its interfaces (navsim_standin.py), made of golden/driving/scenes.

No data of NAVSIM is here: that the interfaces are as the stand-in has them is read from NAVSIM's source, not run.
"""

import ast
import csv
import importlib
import json
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch

from common.errors import UserError
from envs import load_task
from envs.driving import navsim_export, navsim_interface, navsim_policy, navsim_results
from envs.driving.bandit import load_data, read_split
from envs.driving.comfort import SIGNALS, comfort_signals
from envs.driving.curate import score_matrix
from envs.driving.observation import OBSERVATION_DIM, observe
from envs.driving.planner import along_route
from envs.driving.scene import DRIVABLE, MAX_LANES, Road
from envs.driving.scene_files import SPLITS, log_path, read_log, read_road, road_path
from envs.driving.score import score
from envs.driving.vehicle import A_Y, V_Y
from harness.algorithms import algorithm_names, load_algorithm
from harness.driving.policies import Policy, sample_plans
from harness.run_folder import run_path
from tests import navsim_standin
from tests.conftest import small_config

ROOT = Path(__file__).resolve().parents[1]
SCENES = ROOT / "tests" / "golden" / "driving" / "scenes"
LOGS = ("log_000000", "log_000001", "log_000002", "log_000003", "log_000005")  # the fifth has no scene
TOKEN = {name: zlib.crc32(name.encode()).to_bytes(8, "big").hex() for name in LOGS}
ODD = "00000000000000dd"  # a scene as the embedded ones never are


@pytest.fixture(scope="module")
def navsim():
    """The stand-in of version 1 in place of NAVSIM."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in navsim_standin.modules().items():
            patch.setitem(sys.modules, name, module)
        yield
        sys.modules.pop("envs.driving.navsim_agent", None)


def recorded(name: str, index: int = 0) -> tuple:
    """(navsim_standin.Recorded, plans [16, 8, 3], scores [16, 6]) of a golden scene."""
    log = read_log(SCENES / f"{name}.npz")
    scene = log.scene(index, read_road(road_path(SCENES, str(log.family))))
    overlapping = navsim_standin.overlapping_tracks(scene)
    entry = navsim_standin.Recorded(
        name, TOKEN[name], scene, log.logged_plan[index], log.reference_plan[index], overlapping
    )
    return entry, log.plans[index], log.scores[index]


def odd_scene() -> tuple:
    """(Recorded, plans): one agent appears after a second, one is a barrier, another overlaps the ego at the start and
    is not forgiven, and the ego slides sideways."""
    entry, plans, _ = recorded("log_000001", 1)
    scene = entry.scene
    agents = np.concatenate([scene.agents, scene.agents[:, :1], scene.agents[:, :1]], axis=1)
    agents[:10, 0] = np.nan
    x, y, heading = scene.pose
    agents[:, -1] = [x + 25 * np.cos(heading), y + 25 * np.sin(heading), heading, 0.0]
    agents[:, -2] = [x + 5 * np.cos(heading), y + 5 * np.sin(heading), heading, 0.3]
    count = agents.shape[1]
    static = np.arange(count) == count - 1
    size = np.concatenate([scene.size, [[4.0, 1.8], [1.0, 2.0]]])
    odd = replace(
        scene, agents=agents, size=size, static=static, collided=np.zeros(count, bool), lateral=np.array([0.4, 0.9])
    )
    return replace(entry, token=ODD, scene=odd, collided=[]), plans


@pytest.fixture(scope="module")
def source(tmp_path_factory, navsim) -> Path:
    """Caches and logs of a scene of each log and of the odd one."""
    folder = tmp_path_factory.mktemp("navsim")
    navsim_standin.write(folder, [*(recorded(name)[0] for name in LOGS), odd_scene()[0]])
    return folder


def arguments(source: Path, out: Path) -> list:
    return ["--metric_cache", str(source / "cache"), "--logs_path", str(source / "logs"), "--out", str(out)]


@pytest.fixture(scope="module")
def folder(source) -> Path:
    navsim_export.main(arguments(source, source / "set"))
    return source / "set"


@pytest.fixture(scope="module")
def exported(folder) -> dict:
    """{token: (scene, logged plan, reference plan)} of the exported set."""
    sets = [read_split(folder, split) for split in SPLITS]
    return {
        token: (part.scenes[index], part.logged_plans[index], part.reference_plans[index])
        for part in sets
        for index, token in enumerate(part.tokens)
    }


# ---- The exporter ----


@pytest.mark.parametrize("name", LOGS)
def test_exported_scenes_are_their_originals(exported, name):
    entry, plans, scores = recorded(name)
    scene, logged, reference = exported[TOKEN[name]]
    assert scene.reference_progress == pytest.approx(entry.scene.reference_progress, abs=1e-6)
    np.testing.assert_allclose(observe(scene), observe(entry.scene), atol=1e-5)  # NAVSIM's past poses are float32
    np.testing.assert_allclose(score_matrix(score(scene, plans)), scores, atol=1e-9)
    np.testing.assert_allclose(logged, entry.logged, atol=1e-5)
    np.testing.assert_allclose(reference, entry.reference, atol=1e-9)


def test_what_only_navsims_scenes_have_is_scored(exported):
    entry, plans = odd_scene()
    scene = exported[ODD][0]
    order = np.argsort(np.isnan(entry.scene.agents[0, :, 0]), kind="stable")  # later ones come last
    np.testing.assert_allclose(scene.agents[..., :3], entry.scene.agents[:, order, :3], atol=1e-9)
    assert np.array_equal(scene.static, entry.scene.static[order])
    assert np.array_equal(scene.lateral, entry.scene.lateral) and not scene.collided.any()
    found, expected = (
        score(scene, plans),
        score(replace(entry.scene, reference_progress=scene.reference_progress), plans),
    )
    np.testing.assert_allclose(score_matrix(found), score_matrix(expected), atol=1e-9)
    np.testing.assert_allclose(found.states, expected.states, atol=1e-9)
    assert (found.states[:, 0, [V_Y, A_Y]] == [0.4, 0.9]).all() and not found.states[:, 1:, [V_Y, A_Y]].any()
    lateral, none = comfort_signals(found.states), comfort_signals(score(replace(scene, lateral=None), plans).states)
    assert np.ptp(lateral[..., SIGNALS.index("lat_acc")]) > 0.1
    assert not np.allclose(lateral[..., SIGNALS.index("jerk")], none[..., SIGNALS.index("jerk")], atol=1e-3)
    forgiven = score(replace(scene, collided=None), plans)
    assert (forgiven.no_collision > found.no_collision).any()  # the overlap at the start counts
    assert np.isfinite(observe(scene)).all()
    assert observe(scene)[75:].reshape(8, 9)[:, 0].sum() == min(8, len(scene.size) - 1)


def on_road(road: Road, points: np.ndarray) -> np.ndarray:
    return (road.lanes_at(points) & DRIVABLE) > 0


def in_intersection(road: Road, points: np.ndarray) -> np.ndarray:
    return road.intersection_at(points) & on_road(road, points)  # the stand-in's is its paved part, as NAVSIM's is


def number_of_lanes(road: Road, points: np.ndarray) -> np.ndarray:
    return np.bitwise_count(road.lanes_at(points) & ~DRIVABLE).astype(int)


def test_another_lie_of_the_grid_moves_verdicts_at_the_border_only(navsim):
    entry, plans, _ = recorded("log_000001")
    scene, shift = entry.scene, np.array([0.07, 0.11])
    road = Road(scene.road.raster, scene.road.intersection, scene.road.origin + shift, scene.road.resolution)
    ego, history, agents = scene.ego.copy(), scene.history.copy(), scene.agents.copy()
    ego[:2], history[:, :2], agents[..., :2] = ego[:2] + shift, history[:, :2] + shift, agents[..., :2] + shift
    moved = replace(scene, road=road, ego=ego, history=history, agents=agents, centreline=scene.centreline + shift)
    cache = navsim_standin.cache_of(replace(entry, scene=moved), navsim_standin.drivable_map(road), Path("none"))
    line = navsim_interface.centreline_of(cache.centerline)
    found, left_out = navsim_interface.road_of(cache.drivable_area_map, line, ego[:2], 60.0)
    assert left_out == 0
    generator = np.random.default_rng(0)
    points = ego[:2] + generator.uniform(-59.0, 59.0, (20_000, 2))
    assert 0 < (on_road(found, points) != on_road(road, points)).mean() < 0.02
    turn = np.linspace(0.0, 2 * np.pi, 8, endpoint=False)
    around = points + 0.3 * np.stack([np.cos(turn), np.sin(turn)], axis=-1)[:, None]
    border = np.ptp(road.lanes_at(around).astype(int), axis=0) + np.ptp(
        road.intersection_at(around).astype(int), axis=0
    )
    for looked_at in (on_road, number_of_lanes, in_intersection):
        assert border[looked_at(found, points) != looked_at(road, points)].all()
    before, after = score(scene, plans), score(replace(moved, road=found), plans)
    assert np.mean(before.drivable_area == after.drivable_area) > 0.9
    np.testing.assert_allclose(before.raw_progress, after.raw_progress, atol=1e-6)


def test_lanes_share_bits_where_no_vehicle_touches_both(navsim):
    lanes = [shapely.box(4.0 * k, 0.0, 4.0 * k + 4.0, 50.0) for k in range(6)]
    bits = navsim_interface.lane_bits(lanes)
    for first in range(6):
        for second in range(first):
            if lanes[first].distance(lanes[second]) <= 5.7:
                assert bits[first] != bits[second]
    assert max(bits) < 4


def test_the_lanes_farthest_from_the_route_have_no_bit_where_there_are_too_many(navsim):
    layers = navsim_standin.SemanticMapLayer
    lanes = [shapely.box(-20.0, 0.1 * k, 20.0, 0.1 * k + 1.0) for k in range(40)]
    drivable = navsim_standin.PDMDrivableMap([str(k) for k in range(40)], [layers.LANE] * 40, lanes)
    route = np.array([[-20.0, 0.0], [20.0, 0.0]])
    road, left_out = navsim_interface.road_of(drivable, route, np.zeros(2), 15.0)
    assert left_out == 40 - MAX_LANES
    # At y = 0.05 there is the nearest lane alone, at y = 4.85 only the farthest, which has none.
    nearest, farthest = road.lanes_at(np.array([[0.0, 0.1], [0.0, 4.8]]))
    assert nearest != 0 and farthest == 0
    assert not (road.raster & DRIVABLE).any()  # lanes alone are not what NAVSIM drives on


def test_the_speed_limit_is_of_a_lane_on_the_route(navsim):
    layers = navsim_standin.SemanticMapLayer
    square = shapely.box(-5.0, -5.0, 5.0, 5.0)
    tokens, types = ["off", "on", "block"], [layers.LANE, layers.LANE, layers.ROADBLOCK]
    entry, _, _ = recorded("log_000001")
    cache = navsim_standin.cache_of(entry, navsim_standin.PDMDrivableMap(tokens, types, [square] * 3), Path("none"))
    cache.ego_state.rear_axle = navsim_standin.StateSE2(0.0, 0.0, 0.0)
    cache.route_lane_ids = ["on"]
    for limits, expected in (
        ({"off": 5.0, "on": 9.0}, 9.0),
        ({"off": 5.0, "on": None}, 5.0),
        ({"off": None, "on": None}, 15.0),
    ):
        assert navsim_interface.speed_limit_of(cache, navsim_standin.MapApi(limits)) == expected


def test_an_interrupted_export_continues_to_the_same_files(source, folder, tmp_path):
    again = tmp_path / "set"
    shutil.copytree(folder, again)
    log_path(again, 3).unlink()
    with pytest.raises(UserError, match="1 of 5 logs are missing, the export was interrupted"):
        load_task("driving/navsim", str(again))
    kept = log_path(again, 0).stat().st_mtime_ns
    navsim_export.main(arguments(source, again))
    assert log_path(again, 0).stat().st_mtime_ns == kept
    for path in sorted(folder.glob("log_*.npz")):
        assert path.read_bytes() == (again / path.name).read_bytes()


# ---- The task ----


def test_the_set_loads_as_a_task_that_says_where_it_is_from(folder, exported):
    task = load_task("driving/navsim", str(folder))
    assert task.observation_dim == OBSERVATION_DIM and len(task.dataset) == 3 * 16
    assert task.identity["source"].startswith("NAVSIM export, version ")
    assert task.identity["generation"]["metric"] == "PDMS" and task.identity["scenes"]["test"] == 1
    json.dumps(task.identity)
    environment = task.make_env()
    _, info = environment.reset(seed=0)
    assert info["token"] == TOKEN["log_000005"]
    data = load_data(folder, "basis")
    assert environment.step(data.actions["test"][0, 3])[1] == pytest.approx(data.scores["test"][0, 3, -1], abs=1e-9)


def test_scenes_of_the_two_sources_are_never_one_task(folder, tmp_path):
    with pytest.raises(UserError, match="its scenes are from NAVSIM, use task driving/navsim, not driving/bandit"):
        load_task("driving/bandit", str(folder))
    with pytest.raises(UserError, match="its scenes are not NAVSIM's, use task driving/bandit-zscore"):
        load_task("driving/navsim-zscore", str(SCENES))
    with pytest.raises(UserError, match="no scenes from NAVSIM in .*python -m envs.driving.navsim_export"):
        load_task("driving/navsim", str(tmp_path / "none"))
    with pytest.raises(UserError, match="cannot be collected: set collect_episodes to 0"):
        load_task("driving/navsim", str(tmp_path / "none"), collect_episodes=5)


# ---- The agent ----


def trained(name: str, folder: Path, run_dir: Path) -> Path:
    """The folder of a run of a few updates on the exported set."""
    algorithm = load_algorithm(name)
    config = small_config(
        algorithm,
        task="driving/navsim",
        data_dir=str(folder),
        run_dir=str(run_dir),
        device="cpu",
        offline_steps=2,
        log_interval=2,
        checkpoint_interval=2,
        eval_interval=2,
        eval_episodes=1,
    )
    algorithm.train([config])
    return run_path(config)


def own_plan(run: Path, folder: Path, scene, token: str) -> np.ndarray:
    """The plan of the run's agent by the parts that everything else here uses."""
    policy, data = Policy(run), load_data(folder, "basis")
    policy.agent.noise.generator.manual_seed(zlib.crc32(token.encode()))
    action = policy.agent.act(torch.from_numpy(data.scaling(observe(scene)))[None]).numpy()[0]
    return data.encoding.decode(np.clip(action, -1.0, 1.0).astype(np.float64), along_route(scene))


def test_the_agent_plans_as_the_run_does(source, folder, exported, tmp_path):
    run = trained("dipole", folder, tmp_path)
    agent_class = importlib.import_module("envs.driving.navsim_agent").NavsimAgent
    agent = agent_class(str(run / "checkpoint.pt"), str(source / "cache"), python=sys.executable)
    assert agent.requires_scene and "PDMS" in agent.name() and not agent.get_sensor_config().include
    agent.initialize()
    loader = navsim_export.Source(source / "cache", source / "logs", None).scenes
    for token in (TOKEN["log_000005"], ODD, TOKEN["log_000005"]):
        inputs = loader.get_agent_input_from_token(token), loader.get_scene_from_token(token)
        poses = agent.compute_trajectory(*inputs).poses
        assert poses.shape == (8, 3) and np.isfinite(poses).all()
        np.testing.assert_allclose(poses, own_plan(run, folder, exported[token][0], token), rtol=1e-5, atol=1e-5)
    agent.close()
    agent = agent_class(str(run / "checkpoint.pt"), str(source / "cache"), python=shutil.which("false"))
    with pytest.raises(UserError, match="navsim_policy .* has ended with code 1"):
        agent.initialize()


@pytest.mark.parametrize("name", [name for name in algorithm_names() if name != "dipole"])
def test_every_algorithms_checkpoint_plans(folder, exported, tmp_path, name):
    run = trained(name, folder, tmp_path)
    planner = navsim_policy.ScenePlanner(run / "checkpoint.pt")
    scene = exported[ODD][0]
    plan = planner.plan(scene, ODD)
    assert plan.shape == (8, 3) and np.isfinite(plan).all()
    assert np.array_equal(plan, own_plan(run, folder, scene, ODD))


def test_a_run_of_other_scenes_is_refused(folder, tmp_path):
    run = trained("fql", folder, tmp_path)
    other = tmp_path / "set"
    shutil.copytree(folder, other)
    shutil.copy(log_path(other, 0), log_path(other, 2))
    with pytest.raises(UserError, match="is not the set that .* was trained on"):
        navsim_policy.ScenePlanner(run / "checkpoint.pt", str(other))
    with pytest.raises(UserError, match="its task is driving/navsim, which the scenes in .* are not of"):
        sample_plans(Policy(run), SCENES, "test", 1)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("driving/navsim", "driving/bandit"))
    with pytest.raises(UserError, match="its task is driving/bandit; give a run of driving/navsim"):
        navsim_policy.ScenePlanner(run / "checkpoint.pt")


# ---- Versions ----


def test_version_2_is_recognised_and_refused(source, tmp_path, monkeypatch, capsys):
    agent_class = importlib.import_module("envs.driving.navsim_agent").NavsimAgent
    assert navsim_interface.metric() == "PDMS"
    for name, module in navsim_standin.modules(version=2).items():
        monkeypatch.setitem(sys.modules, name, module)
    assert navsim_interface.metric() == "EPDMS"
    with pytest.raises(SystemExit) as exit_:
        navsim_export.main(arguments(source, tmp_path / "set"))
    assert exit_.value.code == 2 and "scores by EPDMS" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
    with pytest.raises(UserError, match="scores by EPDMS, this agent plans for PDMS"):
        agent_class("none", "none")


def result_file(path: Path, columns: tuple, rows: list) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("", "token", "valid", *columns), *([k, *row] for k, row in enumerate(rows))])
    return path


def test_official_results_are_labelled_and_never_mixed(tmp_path, capsys):
    first = result_file(
        tmp_path / "v1.csv",
        ("comfort", "score"),
        [("0a", True, 1.0, 0.5), ("0b", False, "", ""), ("average", False, 1.0, 0.5)],
    )
    second = result_file(
        tmp_path / "v2.csv",
        ("history_comfort", "score"),
        [("0a", True, 1.0, 0.25), ("average_all_frames", True, 1.0, 0.25)],
    )
    navsim_results.main([str(first)])
    assert capsys.readouterr().out.splitlines()[::2] == [
        "| result | PDMS | scenes | failed |",
        f"| {first} | 50.0 | 2 | 1 |",
    ]
    navsim_results.main([str(second)])
    assert capsys.readouterr().out.splitlines()[::2] == [
        "| result | EPDMS | scenes | failed |",
        f"| {second} | 25.0 | 1 | 0 |",
    ]
    other = result_file(tmp_path / "other.csv", ("loss",), [("0a", True, 1.0)])
    for paths, reason in (
        ((first, second), "are different scores"),
        ((other,), "is no result"),
        ((tmp_path,), "cannot"),
    ):
        with pytest.raises(SystemExit) as exit_:
            navsim_results.main([str(path) for path in paths])
        error = capsys.readouterr().err
        assert exit_.value.code == 2 and reason in error and error.count("\n") == 1


# ---- NAVSIM's environment ----


def test_without_navsim_a_sentence_says_what_to_install_where(tmp_path):
    command = [sys.executable, "-m", "envs.driving.navsim_export", *arguments(tmp_path, tmp_path / "set")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert (
        "navsim is not installed here: install NAVSIM (github.com/autonomousvision/navsim, branch v1.1" in result.stderr
    )
    assert not (tmp_path / "set").exists()


def test_too_few_logs_and_wrong_folders_are_refused(source, tmp_path):
    with pytest.raises(UserError, match="set --metric_cache"):
        navsim_export.export(tmp_path, source / "logs", tmp_path / "set")
    with pytest.raises(UserError, match="are of 2 logs in .* split by log needs 5"):
        navsim_export.export(source / "cache", source / "logs", tmp_path / "set", limit=2)
    with pytest.raises(UserError, match="seed there is 0, asked for 1"):
        navsim_export.export(source / "cache", source / "logs", source / "set", seed=1)
    assert not (tmp_path / "set").exists()


def imported_files(path: Path, seen: set) -> set:
    """This repository's files that importing `path` imports, with it."""
    if path in seen:
        return seen
    seen.add(path)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "envs":
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                file = ROOT.joinpath(*name.split(".")).with_suffix(".py")
                for each in (file, *(parent / "__init__.py" for parent in file.parents if ROOT in parent.parents)):
                    if each.is_file():
                        imported_files(each, seen)
    return seen


def test_what_runs_in_navsims_environment_is_python_39_and_needs_what_is_there():
    files = imported_files(ROOT / "envs" / "driving" / "navsim_agent.py", set())
    assert {"navsim_export.py", "score.py", "curate.py", "files.py", "errors.py"} <= {path.name for path in files}
    for path in sorted({*files, ROOT / "tests" / "navsim_standin.py"}):
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
        for node in ast.walk(tree):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call):
                newer = [word.arg for word in node.keywords if word.arg in ("strict", "slots", "kw_only")]
                assert not newer, where
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
                assert node.attr not in ("bitwise_count", "concat", "astype", "vecdot", "trapezoid"), where  # numpy 2
            annotation = getattr(node, "annotation", None) or getattr(node, "returns", None)
            for part in ast.walk(annotation) if annotation else ():
                assert not isinstance(part, ast.BinOp), where  # X | Y
        for node in tree.body if path in files else ():
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            foreign = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"envs"}
            assert foreign <= {"numpy", "scipy", "tqdm"}, path.name
