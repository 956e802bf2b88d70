"""The NAVSIM back end against a stand-in of its interfaces (navsim_standin.py), made of golden/driving/scenes.

docs/navsim.md says what was run on NAVSIM's own code; golden/driving/navsim holds scores by it (test_driving_score).
"""

import ast
import importlib
import json
import lzma
import pickle
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
from envs.driving import navsim_export, navsim_interface
from envs.driving.bandit import load_data
from envs.driving.comfort import SIGNALS, comfort_signals
from envs.driving.curate import score_matrix
from envs.driving.navsim_messages import scene_from_arrays, scene_to_arrays
from envs.driving.observation import OBSERVATION_DIM, UNKNOWN_TO_NAVSIM, observe
from envs.driving.planner import along_route, proposals
from envs.driving.polygons import ROAD
from envs.driving.scene_files import SPLITS, log_path, read_log, read_split
from envs.driving.score import score
from envs.driving.vehicle import A_Y, V_Y, to_world
from harness.algorithms import algorithm_names
from harness.driving import navsim_policy
from harness.driving.policies import Policy
from tests import navsim_standin
from tests.driving_scenes import SCENES, trained

ROOT = Path(__file__).resolve().parents[1]
LOGS = ("log_000000", "log_000001", "log_000002", "log_000003", "log_000005")  # the fifth has no scene
TOKEN = {name: zlib.crc32(name.encode()).to_bytes(8, "big").hex() for name in LOGS}
ODD = "00000000000000dd"  # a scene as the embedded ones never are
LEFT = 5.0  # metres to the left of the ego's path, where the odd scene has an agent that is annotated later


@pytest.fixture(scope="module")
def navsim():
    """The stand-in of version 1 in place of NAVSIM."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in navsim_standin.modules().items():
            patch.setitem(sys.modules, name, module)
        patch.setenv("NUPLAN_MAPS_ROOT", str(SCENES))
        yield
        sys.modules.pop("envs.driving.navsim_agent", None)


def recorded(name: str, index: int = 0) -> tuple:
    """(navsim_standin.Recorded, plans [16, 8, 3], scores [16, 6]) of a golden scene."""
    log = read_log(SCENES / f"{name}.npz")
    scene = log.scenes[index]
    overlapping = navsim_standin.overlapping_tracks(scene)
    entry = navsim_standin.Recorded(
        name, TOKEN[name], scene, log.logged_plans[index], log.reference_plans[index], overlapping
    )
    return entry, log.plans[index], log.scores[index]


def odd_scene() -> tuple:
    """(Recorded, plans): one agent appears after a second, one is a barrier, another overlaps the ego at the start and
    is not forgiven, a fourth is annotated later only, and the ego slides sideways."""
    entry, plans, _ = recorded("log_000001", 1)
    scene = entry.scene
    agents = np.concatenate([scene.agents, *[scene.agents[:, :1]] * 3], axis=1)
    agents[:10, 0] = np.nan
    x, y, heading = scene.pose
    agents[:, -1] = [x + 25 * np.cos(heading), y + 25 * np.sin(heading), heading, 0.0]
    agents[:, -2] = [x + 5 * np.cos(heading), y + 5 * np.sin(heading), heading, 0.3]
    agents[:, -3, :2] = to_world(np.array([12.0, LEFT, 0.0]), scene.pose)[:2]
    agents[:, -3, 2:] = heading, 0.0
    count = agents.shape[1]
    static = np.arange(count) == count - 1
    odd = replace(
        scene,
        agents=agents,
        size=np.concatenate([scene.size, [[4.0, 1.8], [4.0, 1.8], [1.0, 2.0]]]),
        static=static,
        collided=np.zeros(count, bool),
        lateral=np.array([0.4, 0.9]),
        annotated=np.arange(count) != count - 3,
    )
    return replace(entry, token=ODD, scene=odd, collided=[], later=[f"track{count - 3}"]), plans


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


def test_what_only_later_frames_show_is_scored_and_not_seen(exported, navsim):
    entry, _ = odd_scene()
    scene, phantom = exported[ODD][0], ~entry.scene.annotated
    without = replace(
        entry.scene,
        **{name: getattr(entry.scene, name)[~phantom] for name in ("size", "static", "collided")},
        agents=entry.scene.agents[:, ~phantom],
        annotated=None,
    )
    np.testing.assert_allclose(observe(scene), observe(without), atol=1e-5)
    np.testing.assert_allclose(proposals(scene), proposals(without), atol=1e-5)
    np.testing.assert_allclose(observe(scene_from_arrays(scene_to_arrays(scene))), observe(scene))
    forward = 2.0 * np.arange(1, 9)
    through = np.stack([forward, LEFT * np.minimum(forward / 10, 1), np.arctan(LEFT / 10) * (forward < 10)], axis=-1)
    alone = {name: getattr(scene, name)[~scene.annotated] for name in ("size", "static", "collided", "annotated")}
    assert score(scene, through[None]).no_collision == 0
    assert score(replace(scene, agents=scene.agents[:, ~scene.annotated], **alone), through[None]).no_collision == 0


def test_polygons_are_the_cells_that_they_were_made_of(exported):
    entry, _, _ = recorded("log_000001")
    grid, polygons = entry.scene.road, exported[TOKEN["log_000001"]][0].road
    generator = np.random.default_rng(0)
    points = entry.scene.pose[:2] + generator.uniform(-120.0, 120.0, (20_000, 2))
    points[0] = [1e9, -1e9]
    paved = grid.drivable_at(points)
    assert 0.05 < paved.mean() < 0.95
    assert np.array_equal(polygons.drivable_at(points), paved)
    assert np.array_equal(polygons.lane_at(points), grid.lane_at(points))
    assert np.array_equal(polygons.intersection_at(points), grid.intersection_at(points) & paved)
    boxes = points[:2000, None] + generator.uniform(-2.0, 2.0, (2000, 4, 2))
    several = grid.several_lanes(boxes)
    assert 0.001 < several.mean() < 0.99 and np.array_equal(polygons.several_lanes(boxes), several)


@pytest.mark.parametrize(
    "layer, drivable, lane, intersection",
    [
        ("DRIVABLE_AREA", True, False, False),
        ("CARPARK_AREA", True, False, False),
        ("INTERSECTION", True, False, True),
        ("LANE", False, True, False),
        ("LANE_CONNECTOR", False, True, False),
    ],
)
def test_a_map_has_layers_parts_and_holes(navsim, layer, drivable, lane, intersection):
    ring = shapely.box(0.0, 0.0, 10.0, 10.0).difference(shapely.box(4.0, 4.0, 6.0, 6.0))
    shapes = [shapely.MultiPolygon([ring, shapely.box(20.0, 0.0, 30.0, 10.0)]), shapely.box(50.0, 0.0, 60.0, 10.0)]
    layers = [navsim_standin.SemanticMapLayer.ROADBLOCK, navsim_standin.SemanticMapLayer[layer]]
    cached = navsim_standin.PDMDrivableMap(["a", "b"], layers, shapes)
    road = navsim_interface.road_of(cached)
    points = np.array([[1.0, 1.0], [5.0, 5.0], [25.0, 5.0], [15.0, 5.0], [55.0, 5.0]])
    assert road.drivable_at(points).tolist() == [True, False, True, False, drivable]
    assert road.lane_at(points).tolist() == [False, False, False, False, lane]
    assert road.intersection_at(points).tolist() == [False, False, False, False, intersection]
    assert len(navsim_interface.road_of(cached, ROAD).rows) == 1 + drivable


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
    with pytest.raises(UserError, match="1 of 5 logs are missing, .*python -m envs.driving.navsim_export"):
        load_task("driving/navsim", str(again))
    kept = log_path(again, 0).stat().st_mtime_ns
    navsim_export.main(arguments(source, again))
    assert log_path(again, 0).stat().st_mtime_ns == kept
    for path in sorted(folder.glob("log_*.npz")):
        assert path.read_bytes() == (again / path.name).read_bytes()


# ---- The task ----


def test_the_set_loads_as_a_task_that_says_where_it_is_from(folder, exported):
    task = load_task("driving/navsim", str(folder))
    assert task.observation_dim == OBSERVATION_DIM - 2 and len(task.dataset) == 3 * 16
    assert task.identity["encoding"] == "navsim-basis"
    assert task.identity["source"].startswith("NAVSIM export, version ")
    assert task.identity["generation"]["metric"] == "PDMS" and task.identity["scenes"]["test"] == 1
    json.dumps(task.identity)
    environment = task.make_env()
    _, info = environment.reset(seed=0)
    assert info["token"] == TOKEN["log_000005"]
    data = load_data(folder, "navsim-basis")
    assert environment.step(data.actions["test"][0, 3])[1] == pytest.approx(data.scores["test"][0, 3, -1], abs=1e-9)


def test_scenes_of_the_two_sources_are_never_one_task(folder, tmp_path):
    with pytest.raises(UserError, match="its scenes are from NAVSIM's, use task driving/navsim, not driving/bandit"):
        load_task("driving/bandit", str(folder))
    with pytest.raises(UserError, match="its scenes are not NAVSIM's, use task driving/bandit-zscore"):
        load_task("driving/navsim-zscore", str(SCENES))
    with pytest.raises(UserError, match="no scenes from NAVSIM in .*python -m envs.driving.navsim_export"):
        load_task("driving/navsim", str(tmp_path / "none"))
    with pytest.raises(UserError, match="cannot be collected: set collect_episodes to 0"):
        load_task("driving/navsim", str(tmp_path / "none"), collect_episodes=5)


# ---- The agent ----


def own_plan(run: Path, folder: Path, scene, token: str) -> np.ndarray:
    """The plan of the run's agent by the parts that everything else here uses."""
    policy, data = Policy(run), load_data(folder, "navsim-basis")
    policy.agent.noise.generator.manual_seed(zlib.crc32(token.encode()))
    observation = data.scaling(np.delete(observe(scene), UNKNOWN_TO_NAVSIM))
    action = policy.agent.act(torch.from_numpy(observation)[None]).numpy()[0]
    return data.encoding.decode(np.clip(action, -1.0, 1.0).astype(np.float64), along_route(scene))


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    return trained("dipole", "driving/navsim", folder, tmp_path_factory.mktemp("runs"))


def agent_of(run: Path, source: Path, monkeypatch, version: int = 1, **options):
    """A NavsimAgent in the stand-in of a version of NAVSIM."""
    for name, module in navsim_standin.modules(version).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "envs.driving.navsim_agent", raising=False)
    agent_class = importlib.import_module("envs.driving.navsim_agent").NavsimAgent
    given = {"checkpoint_path": str(run / "checkpoint.pt"), "metric_cache_path": str(source / "cache")}
    return agent_class(**{**given, "python": sys.executable, **options})


def inputs_of(source: Path, token: str) -> tuple:
    """AgentInput and Scene of a token, as NAVSIM's scripts have them."""
    tokens = {"num_history_frames": 4, "num_future_frames": 10, "frame_interval": 1, "tokens": [token]}
    no_sensors = navsim_standin.SensorConfig(False)
    loader = navsim_standin.SceneLoader(source / "logs", None, navsim_standin.SceneFilter(**tokens), no_sensors)
    return loader.get_agent_input_from_token(token), loader.get_scene_from_token(token)


@pytest.mark.parametrize("version, metric", [(1, "PDMS"), (2, "EPDMS")])
def test_the_agent_plans_as_the_run_does(run, source, folder, exported, monkeypatch, version, metric):
    agent = agent_of(run, source, monkeypatch, version)
    assert agent.requires_scene and f"({metric}," in agent.name() and not agent.get_sensor_config().include
    if version == 2:
        assert agent.trajectory_sampling == navsim_standin.TrajectorySampling(8, 0.5)
    agent.initialize()
    for token in (TOKEN["log_000001"], ODD, TOKEN["log_000001"]):  # two scenes of one log
        poses = agent.compute_trajectory(*inputs_of(source, token)).poses
        assert poses.shape == (8, 3) and np.isfinite(poses).all()
        noise = token if version == 1 else "log_000001"
        np.testing.assert_allclose(poses, own_plan(run, folder, exported[token][0], noise), rtol=1e-5, atol=1e-5)
    agent.close()


def refusal(capsys, action, *arguments) -> str:
    """The one line that `action` prints before it exits with code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        action(*arguments)
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.count("\n") == 1, error
    return error


def test_what_stops_the_agent_is_said_and_ends_the_script(run, source, monkeypatch, capsys, tmp_path):
    def started(**options):
        agent_of(run, source, monkeypatch, **options).initialize()

    assert "agent.checkpoint_path is not set" in refusal(capsys, lambda: started(checkpoint_path=None))
    assert "no/python: cannot be started (No such file" in refusal(capsys, lambda: started(python="no/python"))
    wrong = refusal(capsys, lambda: started(python=shutil.which("false")))
    assert "has ended with code 1" in wrong and "agent.python must be the Python of this project's" in wrong
    (tmp_path / "metadata").mkdir()
    assert "has no metadata/*.csv" in refusal(capsys, lambda: started(metric_cache_path=str(tmp_path)))
    own = refusal(capsys, lambda: started(data_dir=str(tmp_path)))  # the policy's process says it
    assert f"no driving scenes in {tmp_path}" in own
    with monkeypatch.context() as patch:
        patch.delenv("NUPLAN_MAPS_ROOT")
        assert "NUPLAN_MAPS_ROOT is not set" in refusal(capsys, started)

    agent = agent_of(run, source, monkeypatch)
    agent.initialize()
    agent._process.kill()
    agent._process.wait()
    assert "has ended with code -9" in refusal(capsys, agent.compute_trajectory, *inputs_of(source, ODD))


@pytest.mark.parametrize("name", [name for name in algorithm_names() if name != "dipole"])
def test_every_algorithms_checkpoint_plans(folder, exported, tmp_path, name):
    run = trained(name, "driving/navsim", folder, tmp_path)
    scene = exported[ODD][0]
    plan = navsim_policy.plan(navsim_policy.open_policy(run / "checkpoint.pt"), scene, ODD)
    assert plan.shape == (8, 3) and np.isfinite(plan).all()
    assert np.array_equal(plan, own_plan(run, folder, scene, ODD))


def test_a_run_of_other_scenes_is_refused(folder, tmp_path):
    run = trained("fql", "driving/navsim", folder, tmp_path)
    other = tmp_path / "set"
    shutil.copytree(folder, other)
    shutil.copy(log_path(other, 0), log_path(other, 2))
    with pytest.raises(
        UserError, match="its scenes .* are not those of .*: set data_dir to the set that it was trained on"
    ):
        navsim_policy.open_policy(run / "checkpoint.pt", str(other))
    with pytest.raises(UserError, match="its task is driving/navsim, which the scenes in .* are not of"):
        Policy(run, str(SCENES))


# ---- Versions ----


def test_the_exporter_refuses_version_2(source, tmp_path, monkeypatch, capsys):
    assert navsim_interface.metric() == "PDMS"
    for name, module in navsim_standin.modules(version=2).items():
        monkeypatch.setitem(sys.modules, name, module)
    assert navsim_interface.metric() == "EPDMS"
    assert "scores by EPDMS" in refusal(capsys, navsim_export.main, arguments(source, tmp_path / "set"))
    assert not (tmp_path / "set").exists()


# ---- NAVSIM's environment ----


def test_without_navsim_a_sentence_says_what_to_install_where(tmp_path):
    command = [sys.executable, "-m", "envs.driving.navsim_export", *arguments(tmp_path, tmp_path / "set")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert (
        "navsim is not installed here: install NAVSIM (github.com/autonomousvision/navsim, branch v1.1" in result.stderr
    )
    assert not (tmp_path / "set").exists()


def test_too_few_logs_and_wrong_folders_are_refused(source, folder, tmp_path):
    with pytest.raises(UserError, match="has no metadata/.*csv"):
        navsim_export.export(tmp_path, source / "logs", tmp_path / "set")
    with pytest.raises(UserError, match="are of 2 logs in .* split by log needs 5"):
        navsim_export.export(source / "cache", source / "logs", tmp_path / "set", limit=2)
    with pytest.raises(UserError, match="seed there is 0, asked for 1"):
        navsim_export.export(source / "cache", source / "logs", folder, seed=1)
    assert not (tmp_path / "set").exists()


def copied(source: Path, target: Path) -> Path:
    """A copy of caches and logs whose listing names the copied caches."""
    for part in ("cache", "logs"):
        shutil.copytree(source / part, target / part)
    listing = next((target / "cache" / "metadata").glob("*.csv"))
    listing.write_text(listing.read_text().replace(str(source), str(target)))
    return target


def test_an_export_that_cannot_be_made_leaves_nothing(source, tmp_path, monkeypatch, capsys):
    broken = copied(source, tmp_path / "source")
    listing = next((broken / "cache" / "metadata").glob("*.csv"))
    first = min(listing.read_text().splitlines()[1:], key=lambda path: path.split("/")[-2])
    out = tmp_path / "set"

    def said(reason: str) -> None:
        assert reason in refusal(capsys, navsim_export.main, arguments(broken, out))
        assert not out.exists()

    listed = listing.read_text()
    listing.write_text(listed.splitlines()[0])
    said("has no metadata/*.csv that lists scenes")
    listing.write_text(listed)
    content = Path(first).read_bytes()
    Path(first).write_bytes(content[:100])
    said(f"{first}: cannot be read")
    cache = pickle.loads(lzma.decompress(content))
    cache.map_parameters = "of version 2"
    Path(first).write_bytes(lzma.compress(pickle.dumps(cache)))
    said("was made by version 2 of NAVSIM; make it with branch v1.1")
    Path(first).write_bytes(lzma.compress(b"cnavsim.only_in_version_2\nSomething\n."))
    said("cannot be read by the NAVSIM installed here (No module named 'navsim.only")
    Path(first).unlink()
    said("cannot be read by the NAVSIM installed here ([Errno 2]")
    Path(first).write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setenv("NUPLAN_MAPS_ROOT", str(tmp_path / "none"))
        said("set it to the folder of nuPlan's maps")
    log = pickle.loads((broken / "logs" / "log_000001.pkl").read_bytes())
    del log[ODD]
    (broken / "logs" / "log_000001.pkl").write_bytes(pickle.dumps(log))
    navsim_export.main(arguments(broken, out))
    assert "1 cached scenes are not in the logs of" in capsys.readouterr().out
    assert json.loads((out / "generation.json").read_text())["scenes_without_log"] == 1


def imported_files(path: Path, seen: set) -> set:
    """This repository's files that importing `path` imports, with it."""
    if path in seen:
        return seen
    seen.add(path)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("common", "envs"):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                file = ROOT.joinpath(*name.split(".")).with_suffix(".py")
                for each in (file, *(parent / "__init__.py" for parent in file.parents if ROOT in parent.parents)):
                    if each.is_file():
                        imported_files(each, seen)
    return seen


def test_what_runs_in_navsims_environment_is_python_39_and_needs_what_is_there():
    files = imported_files(ROOT / "envs" / "driving" / "navsim_agent.py", set())
    for part in ("envs/driving/navsim_export.py", "benchmarks/navsim_scores.py"):
        files |= imported_files(ROOT / part, set())
    assert {"navsim_agent.py", "score.py", "curate.py", "files.py", "errors.py"} <= {path.name for path in files}
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
            foreign = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"common", "envs"}
            assert foreign <= {"numpy", "scipy", "matplotlib", "tqdm"}, path.name
