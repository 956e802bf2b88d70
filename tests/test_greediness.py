"""The greediness figure and its CSV, from run folders made by tests/comparison_folders.py."""

import csv
import json

import numpy as np
import pytest

from benchmarks import greediness
from benchmarks.greediness import OMEGA, SHARE, SPIKE, figure_of, points_of
from common.errors import UserError
from common.files import write_rows_csv
from harness.comparison.matrix import Row, Variant, load_comparison
from harness.comparison.results import Results
from harness.score_statistics import interval
from tests.comparison_folders import LOCAL, Data, comparison_of, cube_double, fill

CARTPOLE = Data("exorl/local_x/cartpole_swingup", "cartpole", "return", LOCAL)
CUBE = Data("ogbench/cube-double-play-singletask-task1-v0", "cube", "success", cube_double(1))
SIGMOIDS = [Variant(f"sigmoid-{beta}", "dipole", {"inverse_temperature": float(beta)}) for beta in (1, 10)]
CLIPPED, UNCLIPPED = (
    Variant(label, "dipole", {"weighting": "exponential", "inverse_temperature": 10.0, "max_weight": clip})
    for label, clip in (("clipped", 100.0), ("unclipped", None))
)
ROWS = [
    Row(variant.label, variant, {"greediness": omega, "num_candidates": candidates})
    for candidates in (1, 16)
    for variant, omegas in (
        (SIGMOIDS[0], (0.0, 1.0)),
        (SIGMOIDS[1], (0.0, 1.0, 2.0)),
        (CLIPPED, (0.0,)),
        (UNCLIPPED, (0.0,)),
    )
    for omega in omegas
]
LINES = ("sigmoid, ω = 0: π+ alone", "sigmoid, ω = 1: DIPOLE")
LOSSES = (90.0, 40.0, 2.0, 8.0)  # by step 250, 500, 750, 1000: the second half is the last two


def score(run, cell):
    """Between 0 and 1; differs between any two points of the figure and between seeds."""
    beta, n = run.config.inverse_temperature, cell["num_candidates"]
    own = {"sigmoid-1": 0.1, "sigmoid-10": 0.2, "clipped": 0.3, "unclipped": 0.4}.get(run.variant.label, 0.25)
    return own + 0.01 * beta + 0.05 * cell["greediness"] + 0.002 * n + 0.001 * run.seed


def logged(run):
    """Rows of train.csv: the clipped weights are 2 in a quarter of a minibatch and 0 elsewhere, the others equal."""
    mean, std = (0.5, np.sqrt(0.75)) if run.config.max_weight and run.config.weighting == "exponential" else (0.5, 0.0)
    names = ("actor/weight_mean", "actor/weight_std", "updates_per_second")
    return [
        {"step": step, **dict(zip(names, (mean, std, 50.0), strict=True)), "actor/positive_loss": loss}
        for step, loss in zip((250, 500, 750, 1000), LOSSES, strict=True)
    ]


def made_up(comparison, data, scores=score):
    fill(comparison, data, scores)
    for planned in comparison.runs:
        if planned.folder.exists():
            write_rows_csv(logged(planned), planned.folder / "train.csv")
    return comparison


def comparison(folder, seeds):
    variants = [*SIGMOIDS, CLIPPED, UNCLIPPED]
    return comparison_of(folder, variants, ROWS, [CARTPOLE, CUBE], range(seeds), greediness=0.0)


def point(points, *key):
    return points.set_index(["panel", "task", "line", "x"]).loc[key]


def test_points_are_the_means_over_seeds_of_what_the_runs_wrote(tmp_path):
    points = points_of(Results(made_up(comparison(tmp_path, 2), [CARTPOLE, CUBE])))
    greedy = point(points, OMEGA, CARTPOLE.task, "N = 16", 2.0)  # 0.2 + 0.1 + 0.1 + 0.032
    assert greedy["values"] == pytest.approx((0.432, 0.433)) == (greedy["low"], greedy["high"])
    percent = point(points, "score at N = 1", CUBE.task, "exponential, clipped", 10.0)  # success is shown in %
    assert percent["mean"] == pytest.approx(100 * (0.3 + 0.1 + 0.002 + 0.0005))
    alone, dipole = (point(points, "score at N = 1", CARTPOLE.task, line, 1.0) for line in LINES)
    assert (alone["mean"], dipole["mean"]) == (pytest.approx(0.1125), pytest.approx(0.1625))
    assert set(points["line"][points["panel"] == OMEGA]) == {"N = 1", "N = 16"}
    alone = point(points, OMEGA, CARTPOLE.task, "N = 1", 0.0)  # of beta 10 only, which has the most values of omega
    assert alone["values"] == pytest.approx((0.302, 0.303))


def test_share_and_spike_are_of_the_second_half_of_the_log(tmp_path):
    points = points_of(Results(made_up(comparison(tmp_path, 2), [CARTPOLE, CUBE])))
    assert point(points, SHARE, CUBE.task, "exponential, clipped", 10.0)["mean"] == pytest.approx(0.25)
    assert point(points, SHARE, CUBE.task, "exponential, no clip", 10.0)["mean"] == 1.0
    assert point(points, SPIKE, CUBE.task, "sigmoid", 1.0)["values"] == (8.0 / 5.0,) * 2


def test_bars_are_intervals_from_five_seeds_on(tmp_path):
    points = points_of(Results(made_up(comparison(tmp_path, 5), [CARTPOLE, CUBE])))
    one = point(points, OMEGA, CARTPOLE.task, "N = 1", 0.0)
    assert (one["low"], one["high"]) == interval([np.array(one["values"])]) and one["low"] > min(one["values"])


def test_a_seed_that_diverged_is_counted_and_one_that_is_not_finished_is_left_out(tmp_path):
    plan = comparison(tmp_path, 3)

    def some(run, cell):
        return None if run.variant.label == "unclipped" and run.seed > 0 else score(run, cell)

    made_up(plan, [CARTPOLE, CUBE], some)
    gone = next(run.folder for run in plan.runs if run.name == f"unclipped/{CARTPOLE.task}/seed_1")
    gone.mkdir(parents=True)
    (gone / "divergence.json").write_text(json.dumps({"update": 3}))
    (gone / "error.txt").write_text("it diverged")
    points = points_of(Results(plan))
    for panel in ("score at N = 1", "score at N = 16", SHARE, SPIKE):
        one = point(points, panel, CARTPOLE.task, "exponential, no clip", 10.0)
        assert (one["seeds"], len(one["values"]), one["diverged"]) == (1, 1, 1)
    assert point(points, SPIKE, CUBE.task, "exponential, no clip", 10.0)["diverged"] == 0


def test_the_figure_shows_the_points(tmp_path):
    points = points_of(Results(made_up(comparison(tmp_path, 2), [CARTPOLE, CUBE])))
    axes = figure_of(points).axes
    assert len(axes) == 5 * 2  # omega, N = 1, N = 16, share, spike; two tasks
    drawn = dict(zip(axes[0].get_legend_handles_labels()[1], axes[0].get_legend_handles_labels()[0], strict=True))
    x, y = drawn["N = 16"].lines[0].get_data()
    np.testing.assert_array_equal(x, [0.0, 1.0, 2.0])
    np.testing.assert_allclose(y, [point(points, OMEGA, CARTPOLE.task, "N = 16", omega)["mean"] for omega in (0, 1, 2)])
    assert {one.get_yscale() for one in axes[6:]} == {"log"}


def test_the_command_writes_the_figure_and_the_numbers_behind_it(tmp_path, monkeypatch, capsys):
    path = tmp_path / "small.yaml"
    path.write_text(
        f"name: small\nrun_dir: {tmp_path}\nseeds: [0, 1]\n"
        f"tasks: {{cartpole: [{CARTPOLE.task}]}}\nnum_candidates: [1, 16]\n"
        "overrides: {offline_steps: 1_000, greediness: 0.0}\nalgorithms:\n"
        "  - dipole\n  - {label: greedy, evaluation_of: dipole, act: {greediness: 1.0}}\n"
        "  - {algorithm: dipole, label: eq4, overrides: {weighting: exponential, max_weight: null}}\n"
    )
    comparison = load_comparison(path)
    with pytest.raises(UserError, match="no finished run"):
        points_of(Results(comparison))
    made_up(comparison, [CARTPOLE])
    monkeypatch.setattr("sys.argv", ["greediness", "--config", str(path)])
    greediness.main()
    assert "written: " in capsys.readouterr().out
    assert (comparison.out / "greediness.png").read_bytes().startswith(b"\x89PNG")
    with open(comparison.out / "greediness.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [tuple(row.values()) for row in rows[:1]] == [
        (OMEGA, CARTPOLE.task, "N = 1", "0", "0.352 0.353", "0", "2", "0.3525", "0.352", "0.353")
    ]
    assert {row["line"] for row in rows if row["panel"] == SPIKE} == {"sigmoid", "exponential, no clip"}
