"""Local generation of OGBench data: the official format, bit-identical files however they were made, wrong input."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from envs.ogbench import generate as generation
from envs.ogbench.collect import (
    MAZE_NOISE,
    ManipulationCollector,
    PointMazeCollector,
    make_collector,
)
from envs.ogbench.generate import generate, main
from envs.ogbench.names import DATASETS, GENERATED, official_episodes, sidecar_file, train_file, validation_file

STITCH = "pointmaze-medium-stitch"  # its episodes are the shortest
_, STEPS = official_episodes(STITCH)
WIDTHS = {  # observations, actions, qpos, qvel, buttons
    "pointmaze-medium-navigate": (2, 2, 2, 2, None),
    "cube-double-noisy": (37, 5, 28, 26, None),
    "scene-noisy": (40, 5, 25, 24, 2),
    "puzzle-3x3-noisy": (55, 5, 23, 23, 9),
    "cube-single-play": (28, 5, 21, 20, None),
    "scene-play": (40, 5, 25, 24, 2),
}


def short_collector(dataset: str, steps: int = 30):
    environment, _, kind = dataset.rpartition("-")
    collector_class = PointMazeCollector if environment.startswith("pointmaze") else ManipulationCollector
    return collector_class(environment, kind, steps)


def load(path: Path) -> dict:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def refuses(message: str, dataset: str = STITCH, transitions: int = STEPS, **options) -> None:
    """Generation fails with one line that matches."""
    with pytest.raises(UserError, match=message) as caught:
        generate(dataset, transitions, **options)
    assert "\n" not in str(caught.value)


# ---- episodes ----


@pytest.mark.parametrize("dataset", WIDTHS)
def test_an_episode_has_the_official_format_and_depends_on_its_seed_alone(dataset):
    collector = short_collector(dataset)
    episode = collector(0, 0, 3)
    observations, actions, qpos, qvel, buttons = WIDTHS[dataset]
    shapes = {
        "observations": ((31, observations), np.float32),
        "actions": ((31, actions), np.float32),
        "terminals": ((31,), np.bool_),
        "qpos": ((31, qpos), np.float32),
        "qvel": ((31, qvel), np.float32),
    }
    if buttons:
        shapes["button_states"] = ((31, buttons), np.int64)
    assert {name: (array.shape, array.dtype.type) for name, array in episode.items()} == shapes
    assert episode["terminals"].tolist() == [False] * 30 + [True]
    assert np.abs(episode["actions"]).max() <= 1
    other = collector(0, 0, 4)
    assert not np.array_equal(other["observations"], episode["observations"])
    again = collector(0, 0, 3)
    assert all(np.array_equal(again[name], episode[name]) for name in episode)


def test_qpos_is_the_state_of_its_own_row():
    episode = short_collector("pointmaze-medium-navigate")(0, 0, 0)
    assert np.array_equal(episode["qpos"], episode["observations"])
    step = np.diff(episode["qpos"], axis=0)
    free = np.isclose(step, 0.2 * episode["actions"][:-1], atol=1e-4)  # an action moves the point by a fifth of it
    assert free.mean() > 0.9 and np.abs(step - 0.2 * episode["actions"][1:]).mean() > 0.01


def test_the_point_walks_towards_its_goals():
    collector = short_collector("pointmaze-medium-navigate", 600)
    goals = []
    set_goal = collector.simulation.set_goal

    def record_goal(goal_xy) -> None:
        goals.append(goal_xy)
        set_goal(goal_xy=goal_xy)

    collector.simulation.set_goal = record_goal
    episode = collector(0, 0, 0)
    reached = {tuple(goal) for goal in goals[2:-1]}  # a reset sets the first one twice
    distances = [np.linalg.norm(episode["qpos"] - np.array(goal), axis=1).min() for goal in reached]
    assert len(reached) >= 3 and max(distances) <= collector.simulation._goal_tol
    assert not np.isnan(collector.simulation.model.geom("target").pos).any()
    inner = episode["actions"][np.abs(episode["actions"]) < 1]
    assert 0.3 < np.std(inner) < 0.8 and MAZE_NOISE == 0.5


@pytest.mark.parametrize("size", ["medium", "large", "giant", "teleport"])
def test_a_stitch_goal_is_four_cells_away(size):
    collector = short_collector(f"pointmaze-{size}-stitch")
    for start in collector.cells:
        goal = collector._draw_goal(start)
        _, distances = collector.simulation.get_oracle_subgoal(*[collector.simulation.ij_to_xy(start)] * 2)
        assert distances[goal] == 4 or (goal == start and distances.max() < 4)


def test_scenes_whose_cube_is_out_of_view_are_done_again(monkeypatch):
    collector = short_collector("scene-play", 5)
    first = collector(0, 0, 0)
    verdicts = iter([False, True])
    monkeypatch.setattr(collector, "is_usable", lambda episode: next(verdicts))
    assert not np.array_equal(collector(0, 0, 0)["observations"], first["observations"])
    assert collector.discarded == 1
    monkeypatch.undo()
    qpos = np.repeat(first["qpos"][:1], 6, axis=0)
    for (x, y, z), usable in {
        (0.4, 0.28, 0.02): True,
        (0.4, 0.29, 0.02): False,
        (0.4, -0.31, 0.02): False,
        (0.4, -0.31, 0.07): True,
    }.items():
        qpos[3, 14:17] = x, y, z
        assert collector.is_usable({"qpos": qpos}) == usable


@pytest.mark.slow
def test_the_arm_moves_cubes_as_often_as_in_the_official_procedure():
    collector = make_collector("cube-single-play")
    targets = []
    follow = collector._follow_target
    collector._follow_target = lambda *arguments: (targets.append(1), follow(*arguments))
    episodes = [collector(0, 0, index) for index in range(3)]
    moved = np.concatenate([np.abs(np.diff(episode["qpos"][:, 14:17], axis=0)).max(1) > 1e-4 for episode in episodes])
    assert 11 <= len(targets) / 3 <= 13 and 0.35 < moved.mean() < 0.6


# ---- files ----


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a small generated set."""
    root = tmp_path_factory.mktemp("made")
    assert generate(STITCH, 12 * STEPS, seed=2, out=str(root)) == train_file(root, STITCH)
    return root


def same_files(root: Path, made: Path) -> bool:
    places = (train_file, validation_file, sidecar_file)
    return all(place(root, STITCH).read_bytes() == place(made, STITCH).read_bytes() for place in places)


def test_the_files_hold_whole_episodes_and_say_how_they_were_made(made):
    assert sorted(path.name for path in made.iterdir()) == [
        f"{STITCH}-v0-val.npz",
        f"{STITCH}-v0.generation.json",
        f"{STITCH}-v0.npz",
    ]
    train, validation = load(train_file(made, STITCH)), load(validation_file(made, STITCH))
    assert train["terminals"].sum() == 12 and len(train["observations"]) == 12 * (STEPS + 1)
    assert validation["terminals"].sum() == 1 and len(validation["observations"]) == STEPS + 1
    assert not np.array_equal(validation["observations"], train["observations"][: STEPS + 1])
    record = json.loads(sidecar_file(made, STITCH).read_text())
    assert record["source"] == "locally generated" and record["seed"] == 2 and record["generator_version"] == 1
    assert record["episodes"] == {"train": 12, "validation": 1}
    assert record["transitions"] == {"train": 12 * STEPS, "validation": STEPS}
    assert record["parameters"] == {"policy": "breadth-first waypoints", "noise": 0.5, "goal_distance": 4}
    assert set(record["libraries"]) >= {"ogbench", "mujoco", "numpy"} and set(record["sha256"]) == {
        "train",
        "validation",
    }


def test_the_number_of_workers_does_not_matter(tmp_path, made, capsys):
    main([STITCH, "--transitions", str(12 * STEPS), "--workers", "2", "--seed", "2", "--out", str(tmp_path)])
    assert same_files(tmp_path, made)
    assert capsys.readouterr().out.strip() == str(train_file(tmp_path, STITCH))


def test_an_interrupted_generation_goes_on(tmp_path, made, monkeypatch):
    collected = []
    write = generation._write_npz

    def interrupt_at_the_third(path, arrays) -> None:
        if len(collected) == 3:
            raise KeyboardInterrupt
        collected.append(path)
        write(path, arrays)

    monkeypatch.setattr(generation, "_write_npz", interrupt_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        generate(STITCH, 12 * STEPS, seed=2, out=str(tmp_path))
    assert not train_file(tmp_path, STITCH).exists() and len(collected) == 3
    monkeypatch.setattr(generation, "_write_npz", lambda path, arrays: (collected.append(path), write(path, arrays)))
    generate(STITCH, 12 * STEPS, seed=2, out=str(tmp_path))
    assert len(collected) == len(set(collected)) == 13 and same_files(tmp_path, made)


def test_finished_files_are_not_made_again(made, monkeypatch):
    monkeypatch.setattr(generation, "run_jobs", None)
    before = train_file(made, STITCH).stat().st_mtime_ns
    generate(STITCH, 12 * STEPS, seed=2, out=str(made))
    assert train_file(made, STITCH).stat().st_mtime_ns == before


def test_an_interruption_while_the_files_are_written_leaves_none(tmp_path, made, monkeypatch):
    def interrupt(path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "file_sha256", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(STITCH, 12 * STEPS, seed=2, out=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [f"{STITCH}-v0.episodes"]
    monkeypatch.undo()
    generate(STITCH, 12 * STEPS, seed=2, out=str(tmp_path))
    assert same_files(tmp_path, made)


# ---- wrong input ----


@pytest.mark.parametrize(
    "dataset, options, message",
    [
        ("cube-singel-play", {}, "unknown OGBench data set 'cube-singel-play', did you mean cube-single-play"),
        (STITCH, {"transitions": 450}, "transitions: expected a multiple of 200, an episode of .*, got 450"),
        (STITCH, {"transitions": 0}, "transitions: expected a multiple of 200"),
        (STITCH, {"seed": -1}, "seed: expected at least 0, got -1"),
        (STITCH, {"workers": 0}, "workers: expected at least 1, got 0"),
        *(
            (name, {}, f"{name} cannot be generated here: its policies are SAC experts")
            for name in DATASETS
            if name not in GENERATED
        ),
    ],
)
def test_what_cannot_be_made_is_named(tmp_path, dataset, options, message):
    refuses(message, dataset, out=str(tmp_path / "a"), **options)
    assert list(tmp_path.iterdir()) == []


def test_files_of_another_making_are_kept(tmp_path, made):
    refuses("generation.json: seed there is 2, asked for 3: choose another --out", seed=3, out=str(made))
    refuses("generation.json: episodes there is .*12.*choose another --out", seed=2, out=str(made))
    train_file(tmp_path, STITCH).write_bytes(b"official")
    refuses("-v0.npz: exists and was not generated here: choose another --out", out=str(tmp_path))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"official"]


def test_unfinished_episodes_of_another_making_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "_write_files", lambda generation: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(STITCH, STEPS, seed=1, out=str(tmp_path))
    monkeypatch.undo()
    refuses("episodes/generation.json: seed there is 1, asked for 2: finish that generation", seed=2, out=str(tmp_path))
    generate(STITCH, 2 * STEPS, seed=1, out=str(tmp_path))
    assert load(train_file(tmp_path, STITCH))["terminals"].sum() == 2


def test_a_full_disk_leaves_nothing_broken(tmp_path, made, monkeypatch):
    def refuse(file, **arrays) -> None:
        file.write(b"some bytes")
        raise OSError(28, "No space left on device")

    for writer, left in (("savez", "generation.json"), ("savez_compressed", f"{STITCH}-v0.episodes")):
        with monkeypatch.context() as patch:
            patch.setattr(np, writer, refuse)
            with pytest.raises(OSError, match="No space left"):
                generate(STITCH, 12 * STEPS, seed=2, out=str(tmp_path))
        folder = tmp_path / f"{STITCH}-v0.episodes" if writer == "savez" else tmp_path
        assert [path.name for path in folder.iterdir()] == [left]
    generate(STITCH, 12 * STEPS, seed=2, out=str(tmp_path))
    assert same_files(tmp_path, made)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    refuses("file/below.*: cannot be created .Not a directory.; set --out", out=str(tmp_path / "file" / "below"))
