"""What looks at driving policies: the closed loop, the table of sub-scores and the pictures."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algorithms.dipole import DIPOLE
from common.errors import UserError
from envs import load_task
from envs.driving import closed_loop
from envs.driving.bandit import load_data
from envs.driving.planner import along_route, constant_velocity
from envs.driving.scene_files import SCORE_NAMES, read_split
from envs.driving.vehicle import simulate
from harness.average import average
from harness.comparison.matrix import load_comparison
from harness.comparison.results import with_checkpoint
from harness.driving import closed_loop as closed_loop_table
from harness.driving import navsim_policy, results, show, table
from harness.driving.policies import Policy
from harness.evaluate import evaluate_command
from harness.run_folder import load_run
from harness.train import train_run
from tests.driving_scenes import SCENES, trained

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("driving") / "scenes"
    shutil.copytree(SCENES, path)
    return path


@pytest.fixture(scope="module")
def run(folder) -> Path:
    """A finished run of few updates that asks for more episodes than there are scenes."""
    sizes = {"num_candidates": 1, "flow_steps": 2}
    return trained("dipole", "driving/bandit", folder, folder.parent / "runs", eval_episodes=1000, **sizes)


# ---- Episodes ----


def test_an_evaluation_takes_every_scene_once_unless_more_are_asked_for(folder, run, capsys):
    scenes = len(read_split(folder, "test").scenes)
    result = json.loads((run / "result.json").read_text())
    assert result["episodes"] == scenes and result["score_name"] == "return" and 0.0 <= result["score"] <= 1.0
    with open(run / "eval.csv", newline="") as file:
        assert {float(row["episodes"]) for row in csv.DictReader(file)} == {scenes}
    evaluate_command([str(run)])
    assert f"episodes {scenes}, first seed" in capsys.readouterr().out
    evaluate_command([str(run), "--episodes", str(scenes + 1)])
    said = f"driving/bandit has {scenes} different episodes: intervals of {scenes + 1} are too narrow"
    assert said in capsys.readouterr().out
    _, settings, config = load_run(run)
    train_run(DIPOLE, settings, config)  # finished, but checked
    said = f"driving/bandit has {scenes} different episodes: an evaluation takes each of them once"
    assert said in capsys.readouterr().out
    tasks = {name: load_task(f"driving/{name}", str(folder)) for name in ("bandit", "bandit-validation", "closed_loop")}
    assert tasks["bandit-validation"].episodes(1000) == len(read_split(folder, "validation").scenes)
    assert tasks["bandit"].episodes(1) == 1 and tasks["closed_loop"].episodes(1000) == 1000


@pytest.fixture
def drive(folder):
    pytest.importorskip("highway_env")
    return lambda seed: closed_loop.Drive(folder, seed)


# ---- Closed loop ----


def test_a_step_drives_the_first_half_second_of_the_plan(drive):
    episode = drive(3)
    scene = episode.scene()
    assert scene.agents.shape[0] == 1 and scene.history.shape == (3, 3)
    plan = constant_velocity(scene)
    expected = simulate(plan[None], episode.states[-1])[0, 1:6]
    before = {vehicle: state[:2] for vehicle, state in episode.frames[-1].items()}
    happened = episode.step(plan)
    assert np.array_equal(episode.states[-5:], expected)
    assert happened["progress"] == pytest.approx(np.hypot(*(expected[-1, :2] - scene.pose[:2])), abs=0.3)
    assert np.array_equal(episode.scene().ego[:4], expected[-1, :4])
    moved = [np.hypot(*np.subtract(state[:2], before[v])) for v, state in episode.frames[-1].items() if v in before]
    assert max(moved) > 1.0
    middle = expected[-1, :2] + 2.5 * np.array([np.cos(expected[-1, 2]), np.sin(expected[-1, 2])])
    assert np.allclose(episode.driver.state()[:2], middle)  # the others see the ego where it is


def test_the_traffic_brakes_for_an_ego_in_its_way(drive):
    speeds = []
    for stands in (True, False):
        episode = drive(1)
        vehicle, (x, y, heading, speed) = max(episode.frames[-1].items(), key=lambda item: item[1][3])
        if stands:
            episode.driver.place(np.array([x + 20 * np.cos(heading), y + 20 * np.sin(heading), heading]), 0.0)
        for step in range(20):
            episode.traffic.advance(episode.environment, step)
        speeds.append(vehicle.speed)
    assert speed > 7.0 and speeds[0] < 4.0 < speeds[1]


def test_driving_straight_into_a_roundabout_leaves_the_road_and_ends_the_episode(folder, drive):
    data = load_data(folder, "basis")
    environment = load_task("driving/closed_loop", str(folder)).make_env()
    first, _ = environment.reset(seed=10_000)
    again, _ = environment.reset(seed=10_000)
    assert np.array_equal(first, again) and first.shape == environment.observation_space.shape
    rewards, over = [], False
    while not over:
        scene = environment.drive.scene()
        straight = data.encoding.encode(constant_velocity(scene), along_route(scene)).astype(np.float32)
        _, reward, over, truncated, info = environment.step(straight)
        rewards.append(reward)
        assert not truncated
    assert info["off_road"] and info["success"] == 0.0 and rewards[-1] == 0.0
    driven = environment.drive.states
    assert sum(rewards) == pytest.approx(np.hypot(*(driven[-6, :2] - driven[closed_loop.WARM_UP, :2])), abs=3.0)


def test_the_closed_loop_reports_planners_and_runs(folder, run, drive, capsys, monkeypatch):
    monkeypatch.setattr(closed_loop_table, "MAX_PLANS", 2)
    closed_loop_table.main(["--data_dir", str(folder), "--episodes", "2", "--run", str(run)])
    lines = capsys.readouterr().out.splitlines()
    labels = [line.split("|")[1].strip() for line in lines[2:]]
    assert labels == ["constant velocity", "PDM-Closed-like planner", str(run)]
    assert all(line.rstrip(" |").endswith("1.0") for line in lines[2:4])  # seconds of two plans


# ---- Table ----


def test_the_table_has_the_scores_of_planners_data_and_runs(folder, run, capsys):
    table.main(["--data_dir", str(folder), "--run", str(run), "--greediness", "0", "1", "--samples", "2"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("|")[1].strip(): [float(cell) for cell in line.split("|")[2:-1]] for line in lines[2:]}
    labels = [f"dipole, greediness {omega} (seed_0)" for omega in (0, 1)]
    assert list(rows)[-2:] == labels
    scenes = read_split(folder, "test")
    straight = table.scores_of(scenes, np.stack([constant_velocity(scene) for scene in scenes.scenes])[:, None], "")
    assert rows["constant velocity"] == pytest.approx(100 * straight.mean(axis=(0, 1)), abs=0.051)
    assert rows["data: best of 16"][-1] >= rows["data: mean plan"][-1]
    assert len(rows) == 7


def test_the_best_plan_is_taken_whole(folder):
    scenes = read_split(folder, "test")
    found = table.planner_scores(scenes)
    best, own = found["data: best of 16"], found[table.DATA]
    assert best.shape == (len(scenes.scenes), 1, len(SCORE_NAMES))
    for one, scores in zip(best[:, 0], own, strict=True):
        assert one[-1] == scores[:, -1].max() and (one == scores).all(axis=1).any()


# ---- Results of a comparison ----

RUNS = "compared/comparisons/tiny/runs"
MATRIX = """
name: tiny
run_dir: {run_dir}
tasks: {{driving: [driving/bandit]}}
seeds: [0, 1]
overrides:
  data_dir: {data_dir}
  device: cpu
  offline_steps: 2
  learning_rate: 0.1
  log_interval: 2
  checkpoint_interval: 1
  keep_checkpoints: true
  eval_interval: 2
  eval_episodes: 2
  batch_size: 8
  actor_hidden_dims: [8]
  value_hidden_dims: [8]
  flow_steps: 1
algorithms:
  - {{algorithm: dipole, label: cloning, overrides: {{weighting: none, greediness: 0.0}}}}
  - {{algorithm: dipole, name: DIPOLE}}
  - {{label: dipole-3, evaluation_of: dipole, act: {{greediness: 3.0}}}}
"""


@pytest.fixture(scope="module")
def comparison(folder) -> Path:
    """A file whose four runs of two updates are finished."""
    path = folder.parent / "tiny.yaml"
    path.write_text(MATRIX.format(data_dir=folder, run_dir=folder.parent / "compared"))
    for planned in load_comparison(path).runs:
        train_run(DIPOLE, planned.run, planned.config)
    return path


def test_the_results_of_a_comparison_are_its_runs_scores(folder, comparison, tmp_path, capsys):
    values = ["--greediness", "0.5", "2", "--noise_scale", "1", "0"]
    results.main(["--comparison", str(comparison), "--samples", "2", *values, "--out", str(tmp_path)])
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "greediness.png").read_bytes()[:4] == PNG
    with open(tmp_path / "scores.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    names = ("label", "greediness", "noise_scale", "split", "seed")
    learned = {tuple(line[name] for name in names): line for line in lines if line["seed"]}
    asked = 2 + 2 * 2 + 2  # settings of cloning, which has one policy, of dipole, and of dipole-3
    assert len(learned) == asked * 2 * 2 and len(lines) - len(learned) == 2 * (len(table.BASELINES) + 1)
    scenes = read_split(folder, "validation")
    for scale in (1.0, 0.0):
        policy = Policy(folder.parent / RUNS / "dipole/driving/bandit/seed_1")
        options = {"greediness": 2.0, "noise_scale": scale}
        plans = policy.sample(scenes, policy.data.observations["validation"], 2, **options)
        expected = 100 * table.scores_of(scenes, plans, "").mean(axis=(0, 1))
        found = [float(learned["DIPOLE", "2.0", str(scale), "validation", "1"][name]) for name in SCORE_NAMES]
        assert found == pytest.approx(expected, abs=1e-4)


def test_results_of_a_kept_checkpoint_are_those_of_its_agent(folder, comparison, tmp_path, capsys):
    for planned in load_comparison(comparison).runs[1:]:
        average(planned.folder, 2)
    options = ["--samples", "2", "--greediness", "2", "--checkpoint", "average_1_2", "--out", str(tmp_path)]
    results.main(["--comparison", str(comparison), *options])
    left_out = "left out: cloning/driving/bandit/seed_0 keeps no checkpoint average_1_2\n"
    assert left_out in capsys.readouterr().out
    assert "runs of 2 updates, checkpoint average_1_2." in (tmp_path / "table.md").read_text()
    scores = pd.read_csv(tmp_path / "scores.csv").set_index(["label", "split", "seed"])
    policy = Policy(folder.parent / RUNS / "dipole/driving/bandit/seed_1/checkpoints/average_1_2")
    scenes = read_split(folder, "test")
    plans = policy.sample(scenes, policy.data.observations["test"], 2, greediness=2.0)
    expected = 100 * table.scores_of(scenes, plans, "").mean(axis=(0, 1))
    assert list(scores.loc["DIPOLE", "test", 1.0][list(SCORE_NAMES)]) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(SystemExit) as raised:
        results.main(["--comparison", str(comparison), "--checkpoint", "3", "--out", str(tmp_path / "none")])
    assert raised.value.code == 2 and "no run has 3 there; name one that is" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def lines(label, test, validation=None, **setting):
    """Lines of seeds whose scores all equal their PDMS."""
    return [
        results.line(np.full((1, 1, len(SCORE_NAMES)), value / 100), label=label, split=split, seed=seed, **setting)
        for split, values in (("test", test), ("validation", validation or test))
        for seed, value in enumerate(values)
    ]


def test_the_repositorys_comparison_is_like_for_like(monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    comparison = load_comparison("configs/compare/driving.yaml")
    assert len(comparison.seeds) == 5 and list(comparison.tasks.values()) == [("driving/bandit",)]
    for field in ("offline_steps", "batch_size", "eval_episodes", "data_dir"):
        assert len({getattr(run.run, field) for run in comparison.runs}) == 1
    assert len({run.config.actor_hidden_dims for run in comparison.runs}) == 1
    dipole = [row for row in comparison.rows if row.variant.algorithm == "dipole"]
    assert all(row.act["flow_steps"] == 10 for row in dipole)  # training's own is 1
    for row in comparison.rows:  # omega and the noise are chosen for each method alike, by harness.driving.results
        assert not {"greediness", "noise_scale"} & row.act.keys()


def test_settings_are_chosen_in_the_validation_scenes_for_each_row():
    low = lines("dipole", [50, 52, 54, 56, 58], [60, 60, 60, 60, 60], greediness=0.5, noise_scale=1.0)
    high = lines("dipole", [70, 70, 70, 70, 70], [59, 59, 59, 59, 59], greediness=0.5, noise_scale=0.0)
    scores = pd.DataFrame([*high, *lines("cloning", [40, 41, 42, 43, 44], noise_scale=0.5), *lines("iql", [9.0]), *low])
    assert results.chosen(scores) == {"dipole": (0.5, 1.0), "cloning": (None, 0.5), "iql": (None, None)}
    rows = [row.split("|") for row in results.table(scores, "dipole").splitlines()[2:]]
    assert [row[1].strip() for row in rows] == ["cloning, noise 0.5", "iql", "dipole, omega 0.5, noise 1"]
    assert [row[-2].strip()[:6] for row in rows] == ["12.0 [", "45.0", ""] and "70.0" not in str(rows)
    points = results.curve_table("dipole", scores, results.Setting(0.5, 1.0)).splitlines()[4:]
    assert points[0].startswith("| 0.5 | 0 | 59.0 [59.0, 59.0] | 70.0") and points[1].startswith(
        "| 0.5 | 1 (chosen) | 60.0 [60.0, 60.0] | 54.0 ["
    )


@pytest.mark.parametrize(
    "reference, values, constant, text",
    [
        ([50, 52, 54, 56, 58], [40, 40, 40, 40, 40], False, "14.0 [1"),
        ([50, 52, 54, 56, 58], [96.0], True, "-42.0 [-4"),  # a planner
        ([5, 5, 5, 5, 5], [4, 4, 4, 4, 4], False, "1.0 [1.0, 1.0]"),
        ([50, 52, 54, 56, 58], [40, 42, 44, 46], False, "11.0"),  # seeds too few for an interval
        ([50, 52, 54, 56, 58], [44.0], False, "10.0"),
        ([50, 52], [40.0], True, "11.0"),
    ],
)
def test_a_lead_is_a_difference_of_means_with_its_interval(reference, values, constant, text):
    found = results.lead_cell(np.array(reference, float), np.array(values, float), constant)
    assert found == text if "[" not in text else found.startswith(text)


@pytest.mark.parametrize("values, text", [([1.0, 3.0], "2.0 (1.0, 3.0)"), ([3.0], "3.0")])
def test_few_seeds_are_shown_one_by_one(values, text):
    assert results.pdms_cell(np.array(values)) == text


def test_a_row_has_the_seeds_that_are_finished(folder, comparison, tmp_path):
    more = tmp_path / "more.yaml"
    later = "  - {algorithm: dipole, label: later}\n"
    more.write_text(comparison.read_text().replace("seeds: [0, 1]", "seeds: [0, 1, 2]") + later)
    found = results.read_results(load_comparison(more))
    runs = with_checkpoint(found.runs, "")
    points = results.points_to_sample(found.comparison.rows, runs, {})
    written = pd.DataFrame(results.lines_of(points, {"test": read_split(folder, "test")}, 1))
    assert written.groupby("label")["seed"].nunique().loc[lambda counts: counts > 0].to_dict() == {
        "cloning": 2,
        "DIPOLE": 2,
        "dipole-3, greediness 3.0": 2,
    }


def test_results_are_refused_before_a_run_is_finished_and_for_other_scenes(folder, comparison, tmp_path, refused):
    out = tmp_path / "out"
    other = tmp_path / "other.yaml"
    other.write_text(comparison.read_text().replace("name: tiny", "name: other"))
    unfinished = refused(results.main, "--comparison", other, "--out", out)
    assert "no run is finished: run `python -m harness.compare --config" in unfinished
    log = folder / "log_000005.npz"
    content = log.read_bytes()
    shutil.copy(folder / "log_000003.npz", log)
    try:
        assert "its scenes (" in refused(results.main, "--comparison", comparison, "--out", out)
    finally:
        log.write_bytes(content)
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--samples", "0"), "--samples is 0; it must be at least 1"),
        (("--greediness", "0", "nan"), "greediness"),
        (("--noise_scale", "-1"), "noise_scale is -1"),
        (("--reference", "Dipole"), "--reference Dipole: the rows are cloning; DIPOLE; dipole-3"),
    ],
)
def test_results_that_cannot_be_are_refused_before_the_work(comparison, tmp_path, refused, flags, message):
    assert message in refused(results.main, "--comparison", comparison, "--out", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_results_say_what_they_leave_out_and_leave_no_older_figure(folder, comparison, tmp_path, capsys):
    more = tmp_path / "more.yaml"
    more.write_text(comparison.read_text() + "  - {algorithm: dipole, label: later}\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / "greediness.png").touch()
    flags = ["--greediness", "0", "0", "--samples", "1", "--out", str(out)]
    results.main(["--comparison", str(more), *flags])
    assert "left out: 2 of the 2 seeds of later, which are not finished\n" in capsys.readouterr().out
    assert not (out / "greediness.png").exists()
    assert pd.read_csv(out / "scores.csv").value_counts(["label", "seed", "split"]).max() == 1


# ---- Pictures ----


def test_pictures_of_the_sets_own_plans_and_of_a_runs_are_beside_these(folder, run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    token = read_split(folder, "train").tokens[0]
    show.main([token, "--data_dir", str(folder)])
    show.main(["0", "--run", str(run)])  # in the scenes that the run has learned from
    show.main(["0", "--run", str(run), "--data_dir", str(folder), "--out", "own.png"])
    paths = [folder / f"scene_{token}.png", run / "scene_0.png", tmp_path / "own.png"]
    assert capsys.readouterr().out.splitlines() == [str(paths[0]), str(paths[1]), "own.png"]
    assert all(path.read_bytes()[:4] == PNG for path in paths) and list(tmp_path.iterdir()) == paths[2:]


def test_what_is_shown_are_the_candidates_and_the_chosen_plan(folder, run):
    scenes = read_split(folder, "test")
    scene, plans, chosen, title = show.plans_to_show(folder, scenes.tokens[2], None, 16)
    assert np.array_equal(plans, scenes.plans[2]) and np.array_equal(chosen[0], scenes.reference_plans[2])
    assert scenes.tokens[2] in title and np.array_equal(scene.ego, scenes.scenes[2].ego)
    _, sampled, chosen, title = show.plans_to_show(folder, "2", Policy(run), 4)
    assert sampled.shape == (4, 8, 3) and chosen.shape == (1, 8, 3) and title.endswith("dipole")
    assert len(np.unique([*sampled[:, -1, 0], chosen[0, -1, 0]])) == 5


@pytest.fixture
def refused(capsys):
    """Runs a command that exits with code 2; returns the one line that it prints."""

    def of(command, *arguments) -> str:
        with pytest.raises(SystemExit) as exit_:
            command(list(map(str, arguments)))
        message = capsys.readouterr().err.strip()
        assert exit_.value.code == 2 and message.count("\n") == 0
        return message

    return of


def test_mistakes_are_one_sentence_each(folder, run, tmp_path, refused):
    assert "scene log_9: not in" in refused(show.main, "log_9", "--data_dir", folder)
    assert "holds no environment.json" in refused(show.main, "0", "--run", tmp_path)
    assert "no driving scenes in" in refused(table.main, "--data_dir", tmp_path)
    assert "no driving scenes in" in refused(table.main, "--run", run, "--data_dir", tmp_path)
    with pytest.raises(UserError, match="its task is driving/bandit; give one of driving/navsim"):
        navsim_policy.open_policy(run / "checkpoint.pt")
