"""The matrix of a comparison: what a file expands to, and what is said of a wrong one."""

import dataclasses
import sys
import textwrap
from pathlib import Path

import pytest

from common.errors import UserError
from harness.algorithms import load_algorithm
from harness.command_line import parse_command
from harness.comparison.matrix import load_comparison
from harness.comparison.reevaluation import find_cell

ROOT = Path(__file__).resolve().parents[1]
MATRIX = """
    name: toy
    config: {configs}/{{algorithm}}.yaml
    tasks: {{first: [toy/point], second: [toy/point2, toy/point3]}}
    seeds: [3, 5]
    overrides: {{threads: 1, eval_episodes: 2}}
    num_candidates: [1, 4]
    algorithms:
      - dipole
      - {{label: single, evaluation_of: dipole, act: {{greediness: 0.0}}}}
      - {{algorithm: dipole, label: cloning, act: {{num_candidates: 1}}, overrides: {{weighting: none}}}}
      - iql
"""


def write_matrix(folder: Path, *changes: tuple) -> Path:
    """The matrix above with (old, new) texts replaced, and the configs that it names."""
    for algorithm in ("dipole", "iql"):
        (folder / f"{algorithm}.yaml").write_text("task: toy/point\nbatch_size: 16\n")
    text = textwrap.dedent(MATRIX).format(configs=folder)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "matrix.yaml").write_text(text)
    return folder / "matrix.yaml"


def run_named(comparison, name):
    (run,) = (run for run in comparison.runs if run.name == name)
    return run


def test_every_variant_is_trained_on_every_task_with_every_seed(tmp_path):
    comparison = load_comparison(write_matrix(tmp_path), str(tmp_path / "runs"))
    labels = ("dipole", "cloning", "iql")  # `single` is trained by nobody
    tasks = (("first", "toy/point"), ("second", "toy/point2"), ("second", "toy/point3"))
    expected = {(label, *task, seed) for label in labels for task in tasks for seed in (3, 5)}
    assert {(run.variant.label, run.category, run.task, run.seed) for run in comparison.runs} == expected
    assert len(comparison.runs) == len(expected)


def test_config_is_the_file_then_the_shared_overrides_then_the_entrys(tmp_path):
    path = write_matrix(tmp_path, ("weighting: none", "weighting: none, eval_episodes: 9"))
    comparison = load_comparison(path, str(tmp_path / "runs"))
    run = run_named(comparison, "cloning/toy/point2/seed_5")
    assert (run.run.batch_size, run.run.threads, run.run.eval_episodes, run.config.weighting) == (16, 1, 9, "none")
    assert (run.run.task, run.run.seed, run.run.label, run.run.sweep) == ("toy/point2", 5, "cloning", ())
    assert run.folder == comparison.out / "runs" / run.name
    assert comparison.out == tmp_path / "runs" / "comparisons" / "toy"


def test_a_planned_run_is_two_command_lines(tmp_path):
    """What --print_commands prints gives the very configs that the comparison planned, and its cells."""
    changes = ("weighting: none", "weighting: none, max_weight: null, actor_hidden_dims: [8, 9], data_dir: x y")
    comparison = load_comparison(write_matrix(tmp_path, changes), str(tmp_path / "runs"))
    for run in comparison.runs:
        cells = comparison.cells(run)
        train, evaluate = run.commands(cells)
        algorithm = load_algorithm(run.variant.algorithm)
        assert train[:3] == [sys.executable, "-m", algorithm.agent_class.__module__]
        settings = parse_command(algorithm.config_class, train[3:]).settings
        assert settings.config == run.config
        assert settings.run == dataclasses.replace(run.run, data_dir=settings.run.data_dir)
        assert settings.run.data_dir in (None, str(Path("x y").absolute()))
        assert evaluate[1:4] == ["-m", "harness.comparison.reevaluation", str(run.folder.absolute())]
        assert evaluate.count("--act") == len(cells)


@pytest.mark.parametrize(
    "change, message",
    [
        (("name: toy", "name: ../evil"), "name is '../evil', it must name one folder"),
        (
            ("tasks: {first: [toy/point], second: [toy/point2, toy/point3]}", "tasks: [toy/point]"),
            "tasks must be lines such as",
        ),
    ],
)
def test_a_folder_and_categories_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load_comparison(write_matrix(tmp_path, change))


def test_rows_cross_every_method_that_samples_candidates(tmp_path):
    rows = load_comparison(write_matrix(tmp_path)).rows
    assert [(row.label, row.variant.label, row.act) for row in rows] == [
        ("dipole", "dipole", {"num_candidates": 1}),
        ("dipole", "dipole", {"num_candidates": 4}),
        ("single", "dipole", {"greediness": 0.0, "num_candidates": 1}),
        ("single", "dipole", {"greediness": 0.0, "num_candidates": 4}),
        ("cloning", "cloning", {"num_candidates": 1}),
        ("iql", "iql", {}),
    ]


def test_cells_are_the_rows_of_a_run_and_its_own_options_once(tmp_path):
    comparison = load_comparison(write_matrix(tmp_path, ("seeds: [3, 5]", "seeds: [3]")))
    options = {"greediness": 0.0, "num_candidates": 32, "flow_steps": 10, "noise_scale": 1.0}  # dipole's defaults
    run = run_named(comparison, "dipole/toy/point/seed_3")
    # The rows of `single` are the same cells as dipole's, whose greediness is 0 too.
    assert comparison.cells(run) == [options, options | {"num_candidates": 1}, options | {"num_candidates": 4}]
    assert comparison.cells(run_named(comparison, "iql/toy/point/seed_3")) == [{}]


def test_find_cell_wants_all_options_equal():
    lines = [{"greediness": "0.0", "num_candidates": "16", "score": "1"}]
    assert find_cell(lines, {"greediness": 0.0, "num_candidates": 16}) == lines[0]
    assert find_cell(lines, {"greediness": 0.0, "num_candidates": 1}) is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "num_candidates: [1, 4]",
            "num_candidate: [1, 4]",
            "num_candidate is not a field of a comparison, did",
        ),
        ("seeds: [3, 5]", "seeds: [3, 3]", "seeds [3, 3] holds a value twice"),
        ("seeds: [3, 5]", "seeds: [3, x]", "seeds must be a list such as [10, 10], not [3, x]"),
        ("seeds: [3, 5]", "seeds: [-1]", "config: seed is -1, it must be at least 0"),
        ("- iql", "- iqll", "there is no algorithm 'iqll', did you mean iql?"),
        ("- iql", "- dipole", "line 12: the label dipole is taken by an entry above it"),
        ("- iql", "- {algorithm: iql, label: a/b}", "label is 'a/b', it must name one folder"),
        ("- iql", "- {label: b}", "an entry has either `algorithm` or `evaluation_of`"),
        (
            "- iql",
            "- {algorithm: iql, lable: b}",
            "lable is not a field of an entry of algorithms, did you mean label",
        ),
        ("evaluation_of: dipole", "evaluation_of: dipol", "evaluation_of 'dipol' is no label of a trained entry"),
        ("evaluation_of: dipole", "evaluation_of: dipole, overrides: {seed: 1}", "with evaluation_of trains nothing"),
        ("greediness: 0.0", "temperature: 0.0", "temperature is not a field of DIPOLEConfig"),
        ("greediness: 0.0", "batch_size: 3", "batch_size is not an option of dipole's act, which has greediness, num_"),
        ("greediness: 0.0", "flow_steps: 0", "single, flow_steps 0, N = 1: config: flow_steps is 0, it must"),
        ("weighting: none", "weighting: nothing", "weighting must be one of sigmoid"),
        ("weighting: none", "seed: 1", "seed cannot be overridden, the comparison itself sets it"),
        ("threads: 1,", "thread: 1,", "thread is not a field of DIPOLEConfig, did you mean threads?"),
        (
            "[toy/point]",
            "[toy/point, toy/point]",
            "toy/point2', 'toy/point3'] holds a value twice",
        ),
        ("{algorithm}.yaml", "{algorithm}-x.yaml", "dipole-x.yaml: cannot be read"),
        ("name: toy", "name: toy\nvariant: online", "--variant online is in no settings file of dipole for toy"),
        ("seeds: [3, 5]\n", "", "has no seeds"),
        ("seeds: [3, 5]", "seeds: []", "asks for no run"),
    ],
)
def test_a_mistake_is_named(tmp_path, old, new, message):
    with pytest.raises(UserError) as error:
        load_comparison(write_matrix(tmp_path, (old, new)))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "runs", "rows"),
    [
        ("ablations", 45, 9),
        ("cube-single", 30, 32),
        ("driving", 45, 10),
        ("exorl", 576, 14),
        ("greediness", 72, 26),
        ("lora", 15, 5),
        ("online", 6, 2),
        ("ogbench", 1680, 12),
        ("protocol_b", 3000, 5),
        ("quickstart", 33, 22),
        ("walker", 15, 18),
    ],
)
def test_the_repositorys_matrices_are_right_in_every_field(name, runs, rows, monkeypatch):
    monkeypatch.chdir(ROOT)
    comparison = load_comparison(f"configs/compare/{name}.yaml")
    assert comparison.name == name and comparison.description
    assert (len(comparison.runs), len(comparison.rows)) == (runs, rows)
    assert len({row.policy for row in comparison.rows}) == rows
    assert len({row.title for row in comparison.rows}) == rows, "two rows would look the same"
