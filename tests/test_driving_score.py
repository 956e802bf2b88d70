"""The PDM scorer: every figure of NAVSIM's own modules in golden/driving/, and cases worked out by hand."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs.driving.boxes import corners, overlap
from envs.driving.comfort import LOWER, SIGNALS, UPPER, comfort_signals, comfort_verdicts
from envs.driving.curate import score_matrix
from envs.driving.polygons import ROAD, PolygonRoad
from envs.driving.scene import DRIVABLE, Road, Scene, project
from envs.driving.scene_files import log_path, read_log
from envs.driving.score import TTC_LAST_STEP, TWO_FRAMES, Motion, Scores, epdms, progress_of, score, start_of
from envs.driving.vehicle import (
    HEADING,
    STATE_NAMES,
    WIDTH,
    curvature_profile,
    reference_path,
    simulate,
    speed_profile,
    to_frame,
    to_world,
    track,
    wrap,
)
from tests.driving_scenes import straight_scene

GOLDEN = Path(__file__).parent / "golden" / "driving"
SCENES = range(10)


@pytest.fixture(scope="module")
def tracker() -> dict:
    with np.load(GOLDEN / "tracker.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def scoring() -> dict:
    with np.load(GOLDEN / "scoring.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def scored(scoring) -> list[tuple[Scene, Scores]]:
    scenes = [golden_scene(scoring, index) for index in SCENES]
    return [(scene, score(scene, scoring[f"s{index:02d}_plans"])) for index, scene in enumerate(scenes)]


def golden_scene(scoring: dict, index: int) -> Scene:
    part = {name[4:]: value for name, value in scoring.items() if name.startswith(f"s{index:02d}_")}
    road = Road(part["raster"], part["intersection"], part["origin"], float(scoring["resolution"]))
    names = ("ego", "agents", "size", "static", "centreline")
    return Scene(
        road=road,
        history=np.zeros((3, 3)),
        speed_limit=10.0,
        reference_progress=float(scoring["ref_progress"][index]),
        **{name: part[name] for name in names},
    )


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def states_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    difference = actual - expected
    difference[..., HEADING] = wrap(difference[..., HEADING])
    return float(np.abs(difference).max())


# ---- NAVSIM's figures ----


def test_references_profiles_and_states_of_48_plans_are_navsims(tracker):
    assert tuple(tracker["state_names"]) == STATE_NAMES
    reference = reference_path(tracker["poses"], np.zeros(3))
    speeds = speed_profile(reference)
    assert_close(reference, tracker["reference"], 1e-8)
    assert_close(speeds, tracker["velocity_profile"], 1e-8)
    assert_close(curvature_profile(reference, speeds), tracker["curvature_profile"], 1e-8)
    assert states_difference(track(reference, tracker["initial_state"]), tracker["states"]) < 1e-8


def test_comfort_signals_and_verdicts_of_48_plans_are_navsims(tracker):
    assert tuple(tracker["comfort_names"]) == SIGNALS
    assert np.array_equal(tracker["comfort_lo"], LOWER)
    assert np.array_equal(tracker["comfort_hi"], UPPER)
    for version in (1, 2):
        assert_close(comfort_signals(tracker["states"], version), tracker[f"signals_v{version}"], 1e-7)
        assert np.array_equal(comfort_verdicts(tracker["states"], version), tracker[f"comfort_v{version}"])


def test_the_box_and_the_axle_are_navsims(tracker):
    box = corners(np.array([1.461, 0.0, 0.0]), 5.176, 2.297)
    names = list(tracker["vehicle_names"])
    vehicle = dict(zip(names, tracker["vehicle"], strict=True))
    assert box[0, 0] == pytest.approx(next(v for k, v in vehicle.items() if "front" in k))
    assert box[1, 0] == pytest.approx(-next(v for k, v in vehicle.items() if "rear" in k and v < 1.4))


def test_states_and_area_flags_of_320_plans_are_navsims(scoring, scored):
    for index, (scene, scores) in enumerate(scored):
        assert states_difference(scores.states, scoring["states"][index]) < 1e-8
        motion = Motion(scene, scores.states)
        assert np.array_equal(motion.off_road, scoring["off_road"][index])
        assert np.array_equal(scene.road.several_lanes(motion.corners), scoring["multi_lane"][index])


@pytest.mark.parametrize("index", range(2))
def test_scores_in_exported_scenes_are_those_of_navsims_own_code(index):
    record = read_log(log_path(GOLDEN / "navsim", index))
    token, scene = record.tokens[0], record.scenes[0]
    with np.load(GOLDEN / "navsim" / "scores.npz") as file:
        chosen = file["token"] == token
        plans, scores, progress = file["plan"][chosen], file["scores"][chosen], file["reference_progress"][chosen]
    np.testing.assert_allclose(score_matrix(score(scene, plans)), scores, atol=1e-6)
    assert scene.reference_progress == pytest.approx(progress[0], abs=1e-4) and progress[0] > 5
    reference = Motion(scene, simulate(record.reference_plans, start_of(scene)))
    assert progress_of(reference)[0] == pytest.approx(progress[0], rel=0.01)  # every half second of its path


@pytest.mark.parametrize("name", ["epdms_rows", "epdms_synthetic"])
def test_epdms_of_its_terms_is_navsims(name):
    """epdms_rows: published, without two-frame comfort; epdms_synthetic: of NAVSIM v2.2 in both stages, with it."""
    with open(GOLDEN / "navsim" / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    terms = {key: np.array([float(row[key]) for row in rows]) for key in rows[0] if key != "planner"}
    assert (TWO_FRAMES in terms) == (name == "epdms_synthetic") and len(np.unique(terms["score"])) > 5
    np.testing.assert_allclose(epdms(terms), terms["score"], atol=1e-12)
    del terms["lane_keeping"]
    with pytest.raises(KeyError, match="lane_keeping"):
        epdms(terms)


@pytest.mark.parametrize("room", [0.001, -0.001])  # metres
def test_the_drivable_area_ends_where_its_polygon_does(scoring, room):
    scene, half = golden_scene(scoring, 0), WIDTH / 2 + room
    corners = to_world(
        np.array([[-9, half, 0], [-9, -half, 0], [90, -half, 0], [90, half, 0], [-9, half, 0]]), scene.pose
    )
    road = PolygonRoad(np.concatenate([corners[:, :2], [[np.nan, np.nan]]]), np.array([6]), np.array([ROAD], np.uint8))
    straight = np.stack([2.0 * np.arange(1, 9), np.zeros(8), np.zeros(8)], axis=-1)[None]
    ego = np.array([*scene.pose, 4.0, 0.0, 0.0, 0.0])
    assert score(replace(scene, road=road, ego=ego), straight).drivable_area == (room > 0)


@pytest.mark.parametrize(
    "field, column",
    [
        ("no_collision", "nc"),
        ("drivable_area", "dac"),
        ("time_to_collision", "ttc_v1"),
        ("comfort", "comfort_v1"),
        ("comfort_terms", "comfort6_v1"),
        ("collision_step", "nc_step"),
        ("ttc_step", "ttc_step_v1"),
    ],
)
def test_verdicts_of_320_plans_are_navsims(scoring, scored, field, column):
    assert np.array_equal([getattr(scores, field) for _, scores in scored], scoring[column])


def test_version_2_verdicts_of_320_plans_are_navsims(scoring, scored):
    for index, (scene, scores) in enumerate(scored):
        assert np.array_equal(comfort_verdicts(scores.states, 2), scoring["comfort6_v2"][index])
        verdicts, steps = Motion(scene, scores.states).time_to_collision(TTC_LAST_STEP[2])
        assert np.array_equal(verdicts, scoring["ttc_v2"][index])
        assert np.array_equal(steps, scoring["ttc_step_v2"][index])


def test_progress_and_pdms_of_320_plans_are_navsims(scoring, scored):
    assert_close(np.stack([scores.raw_progress for _, scores in scored]), scoring["raw_progress"], 1e-6)
    assert_close(np.stack([scores.progress for _, scores in scored]), scoring["ep_v1"], 1e-6)
    assert_close(np.stack([scores.pdms for _, scores in scored]), scoring["pdms_v1"], 1e-8)


def test_the_reference_plans_give_the_reference_progress(scoring, scored):
    for index, (scene, _) in enumerate(scored):
        own = score(scene, scoring[f"s{index:02d}_ref_plan"][None])
        progress = own.raw_progress * own.no_collision * own.drivable_area
        assert_close(progress, scoring["ref_progress"][[index]], 1e-6)


def test_a_plan_scores_the_same_alone_and_among_others(scoring, scored):
    scene, scores = scored[5]
    alone = score(scene, scoring["s05_plans"][7:8])
    assert_close(alone.pdms, scores.pdms[7:8], 1e-12)
    assert_close(alone.states, scores.states[7:8], 1e-9)


# ---- By hand ----


def open_scene(agents, static: bool = False, speed: float = 10.0) -> Scene:
    """A drivable square of 80 m on either side; agents [n, 4] drive on along x."""
    return straight_scene(agents, speed, static, width=80.0)


def straight_plan(speed: float) -> np.ndarray:
    plan = np.zeros((1, 8, 3))
    plan[0, :, 0] = speed * 0.5 * np.arange(1, 9)
    return plan


def test_constant_speed_on_an_empty_road_is_perfect():
    scores = score(open_scene(()), straight_plan(10.0))
    assert_close(scores.raw_progress, 40.0, 1e-6)
    assert_close(scores.pdms, 1.0, 1e-6)


def test_half_the_reference_progress_costs_5_of_24():
    scene = open_scene((), speed=5.0)
    assert_close(score(scene, straight_plan(5.0)).pdms, 1 - 5 / 24, 1e-6)


@pytest.mark.parametrize(
    "agent, static, expected",
    [
        ([30.0, 0.0, 0.0, 0.0], False, 0.0),  # a parked vehicle on the way
        ([30.0, 0.0, 0.0, 0.0], True, 0.5),  # a static object on the way
        ([30.0, 2.1, 0.0, 0.0], False, 0.0),  # grazed at its side, though stopped
        ([30.0, 2.2, 0.0, 0.0], False, 1.0),  # passed
        ([-15.0, 0.0, 0.0, 20.0], False, 1.0),  # drives into the ego's rear
        ([-15.0, 0.0, 0.0, 20.0], True, 0.5),  # a static object counts as stopped, whatever its speed
        ([60.0, 0.0, np.pi, -12.0], False, 0.0),  # comes head-on, in its own frame backwards
    ],
)
def test_fault_of_one_collision(agent, static, expected):
    scene = open_scene([agent], static)
    assert score(scene, straight_plan(10.0)).no_collision == expected


def test_a_lateral_contact_is_the_egos_fault_only_in_several_lanes_or_off_the_road():
    # The other vehicle, as fast, drifts into the ego's side, between its rear axle and its front edge.
    scene = open_scene([[0.5, 4.0, 0.0, 10.0]])
    scene.agents[:, 0, 1] -= 0.1 * np.arange(51)
    assert score(scene, straight_plan(10.0)).no_collision == 1.0
    left, right = np.uint32(1), np.uint32(2)
    scene.road.raster[:, 200:] = DRIVABLE | left
    scene.road.raster[:, :200] = DRIVABLE | right
    assert score(scene, straight_plan(10.0)).no_collision == 0.0


def test_time_to_collision_fails_before_the_collision_does():
    scores = score(open_scene([[30.0, 0.0, 0.0, 0.0]]), straight_plan(10.0))
    gap = 30.0 - 2.5 - 4.049
    assert scores.collision_step == np.ceil(gap / 1.0)
    assert scores.ttc_step == np.ceil(gap / 1.0 - 9)


def test_an_agent_that_overlaps_at_the_start_is_ignored():
    scene = open_scene([[3.0, 0.0, 0.0, 0.0]])
    scores = score(scene, straight_plan(10.0))
    assert (scores.no_collision, scores.time_to_collision) == (1.0, 1.0)


def test_leaving_the_grid_is_leaving_the_road():
    assert score(open_scene(()), straight_plan(28.0)).drivable_area == 1.0
    assert score(open_scene((), speed=30.0), straight_plan(30.0)).drivable_area == 0.0


def test_boxes_overlap_where_one_holds_a_point_of_the_other():
    generator = np.random.default_rng(0)
    first = np.concatenate([generator.uniform(-3, 3, (200, 2)), generator.uniform(-4, 4, (200, 1))], axis=1)
    size, other_size = generator.uniform(0.2, 4, (200, 2)), np.array([3.0, 1.5])
    found = overlap(first, size, np.zeros(3), other_size)
    grid = np.stack(np.meshgrid(np.linspace(-0.5, 0.5, 61), np.linspace(-0.5, 0.5, 61)), -1).reshape(-1, 2)
    for pose, box, verdict in zip(first, size, found, strict=True):
        points = np.concatenate([grid * box, np.zeros((len(grid), 1))], axis=1)
        inside = (np.abs(to_world(points, pose)[:, :2]) <= other_size / 2 + 1e-9).all(axis=1)
        assert verdict or not inside.any()
        slightly_smaller = overlap(pose, box - 0.15, np.zeros(3), other_size - 0.15)
        assert inside.any() or not slightly_smaller


def test_touching_boxes_overlap_and_a_segment_is_a_box():
    unit = np.array([1.0, 1.0])
    assert overlap(np.zeros(3), unit, np.array([1.0, 0.0, 0.0]), unit)
    assert not overlap(np.zeros(3), unit, np.array([1.001, 0.0, 0.0]), unit)
    assert overlap(np.array([0.5, 0.0, 0.0]), unit * [0, 1], np.array([1.0, 0.0, 0.0]), unit)
    assert not overlap(np.zeros(3), unit, np.full(3, np.nan), unit)


def test_projection_on_a_line_with_a_corner():
    line = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0]])
    arc, distance = project(np.array([[4.0, 3.0], [12.0, 7.0], [-5.0, 0.0], [10.0, 15.0]]), line)
    assert_close(arc, np.array([4.0, 17.0, 0.0, 20.0]), 1e-12)
    assert_close(distance, np.array([3.0, 2.0, 5.0, 5.0]), 1e-12)


def test_frames_are_inverse_to_each_other():
    poses = np.random.default_rng(1).normal(size=(20, 3))
    pose = np.array([3.0, -2.0, 2.5])
    assert_close(to_frame(to_world(poses, pose), pose), poses, 1e-12)
    assert_close(to_world(np.array([2.0, 1.0, 0.0]), np.array([1.0, 1.0, np.pi / 2])), [0.0, 3.0, np.pi / 2], 1e-12)
