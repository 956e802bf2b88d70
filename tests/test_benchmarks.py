"""The benchmarks measure what they say: the JAX form makes the reference's updates, and the command's rows add up."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithms.dipole import DIPOLEConfig
from benchmarks import against_checkout, precision, training_run
from harness.measurement.workload import SIZES, Size, random_dataset
from tests.golden.checker import TOLERANCE, recorded_draws, step_arrays
from tests.golden.dipole_family import dipole_fields

ROOT = Path(__file__).resolve().parents[1]
CASE = ROOT / "tests" / "golden" / "dipole.npz"
LOSS_LINE = "        loss, metrics = self._loss(batch)\n"
RECORDED = {"critic/value_net": "critic", "value/value_net": "value"}
RECORDED |= {"actor_flow_pos/mlp": "positive", "actor_flow_neg/mlp": "negative"}


def networks_of(arrays: dict, prefix: str) -> dict:
    """{network: {Flax name: array}} from the case's arrays of that prefix."""
    names = RECORDED | {"target_critic/value_net": "target"}
    return {ours: step_arrays(arrays, f"{prefix}/{theirs}/") for theirs, ours in names.items()}


def test_the_jax_form_makes_the_recorded_updates():
    jax = pytest.importorskip("jax")
    from benchmarks.jax_dipole import Draws, start, update

    case = json.loads(CASE.with_suffix(".json").read_text())
    config = DIPOLEConfig(**dipole_fields(case["config"]))
    with np.load(CASE) as stored:
        arrays = dict(stored)
    with jax.enable_x64(True):
        networks = jax.tree.map(jax.numpy.asarray, networks_of(arrays, "init"))
        target = networks.pop("target")
        state = start(networks, target)
        for step in range(case["steps"]):
            batch = step_arrays(arrays, f"step{step}/batch/")
            state, losses = jax.jit(update, static_argnums=3)(
                state, batch, Draws(*recorded_draws(arrays, step)[:3]), config
            )
            recorded = {
                "critic/loss": "critic_loss",
                "value/loss": "value_loss",
                "actor/positive_loss": "positive_loss",
                "actor/negative_loss": "negative_loss",
                "actor/weight_mean": "weight_mean",
            }
            assert losses.keys() == recorded.keys()
            for ours, theirs in recorded.items():
                assert abs(losses[ours] - arrays[f"step{step}/info/{theirs}"]) <= TOLERANCE, (step, ours)
        final = networks_of(arrays, "final")
        for name, network in (state.networks | {"target": state.target_critic}).items():
            assert network.keys() == final[name].keys()
            for parameter, array in network.items():
                np.testing.assert_allclose(array, final[name][parameter], atol=TOLERANCE, rtol=0, err_msg=name)


def run_command(module, monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", *map(str, arguments)])
    module.main()


def rows_of(path: Path) -> list:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def tiny_size(monkeypatch):
    """`--size quickstart` with networks of eight units."""
    monkeypatch.setitem(SIZES, "quickstart", Size(5, 1, (8,), 16, 8))


def test_against_jax_holds_the_spread_of_both_speeds_and_of_their_ratio(tmp_path, monkeypatch, capsys, tiny_size):
    jax = pytest.importorskip("jax")
    from benchmarks import against_jax

    command = ("--size", "quickstart", "--rounds", 3, "--seconds", 0.01, "--device", "cpu")
    run_command(against_jax, monkeypatch, *command, "--csv", tmp_path / "rows.csv")
    assert f"jax {jax.__version__}" in capsys.readouterr().out
    (row,) = rows_of(tmp_path / "rows.csv")
    for name in ("updates_per_second", "jax_updates_per_second", "ratio"):
        low, middle, high = (float(row[f"{name}_{part}"]) for part in ("min", "median", "max"))
        assert 0 < low <= middle <= high
    most = float(row["updates_per_second_max"]) / float(row["jax_updates_per_second_min"])
    least = float(row["updates_per_second_min"]) / float(row["jax_updates_per_second_max"])
    assert least * 0.99 <= float(row["ratio_min"]) and float(row["ratio_max"]) <= most * 1.01


def test_jax_updates_train_on_the_data_set(tiny_size):
    jax = pytest.importorskip("jax")
    from benchmarks.against_jax import JaxUpdates

    device = torch.device("cpu")
    dataset = training_run.learnable_dataset(SIZES["quickstart"], device)
    config = DIPOLEConfig(actor_hidden_dims=(8,), value_hidden_dims=(8,), batch_size=16, flow_steps=1)
    updates = JaxUpdates(config, dataset, jax.devices("cpu")[0], "highest")
    assert updates.data["next_observations"].shape == (len(dataset), 5)
    np.testing.assert_array_equal(updates.data["next_observations"][:-1], updates.data["observations"][1:])
    updates.advance(1)
    first = float(updates.losses["critic/loss"])
    updates.advance(400)
    updates.wait()
    assert int(updates.state.count) == 401
    assert float(updates.losses["critic/loss"]) < first / 2


def test_training_run_extrapolates_and_sees_the_loss_fall(tmp_path, monkeypatch, capsys):
    command = ("--algorithm", "iql", "--size", "quickstart", "--updates", 30, "--device", "cpu")
    run_command(training_run, monkeypatch, *command, "--csv", tmp_path / "rows.csv")
    (row,) = rows_of(tmp_path / "rows.csv")
    minutes = 1e6 / float(row["updates_per_second"]) / 60
    assert float(row["minutes_per_million"]) == pytest.approx(minutes, rel=0.02)
    assert float(row["last_critic_loss"]) < float(row["first_critic_loss"])


def test_training_run_fails_where_nothing_is_learnt(monkeypatch, capsys):
    def spoilt(size, device):
        dataset = random_dataset(size, device)
        dataset.rewards.fill_(float("nan"))
        return dataset

    monkeypatch.setattr(training_run, "learnable_dataset", spoilt)
    with pytest.raises(SystemExit) as ended:
        run_command(training_run, monkeypatch, "--algorithm", "iql", "--size", "quickstart", "--updates", 3)
    assert ended.value.code == 1


def test_precision_measures_relative_to_the_largest_value():
    pairs = [(np.array([1.0, -2.0]), np.array([1.1, -2.0])), (np.array(4.0), np.array(4.4))]
    assert precision.relative_difference(pairs) == pytest.approx(0.4 / 4.4)
    assert precision.relative_difference([(np.array([0.0, 0.5]), np.zeros(2))]) == 0.5


def test_float32_is_near_recorded_and_made_figures(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "published", Size(5, 2, (24, 24), 16, 24))
    for case in (CASE, precision.write_published_case(tmp_path)):
        row = precision.measure(case, "highest", torch.device("cpu"))
        assert 0 < row["loss"] < 1e-5 and 0 < row["parameter"] < 1e-3, row
    assert torch.get_float32_matmul_precision() == "highest"


def test_against_checkout_finds_the_slower_one(tmp_path, monkeypatch, capsys, tiny_size):
    """The other checkout's file does the same update after some idle counting."""
    text = (ROOT / "algorithms/baselines/iql.py").read_text()
    slow = text.replace(LOSS_LINE, "        sum(range(2_000_000))\n" + LOSS_LINE)
    assert slow != text
    (tmp_path / "algorithms/baselines").mkdir(parents=True)
    (tmp_path / "algorithms/baselines/iql.py").write_text(slow)
    command = ("--algorithm", "iql", "--size", "quickstart", "--rounds", 2, "--updates", 2)
    run_command(against_checkout, monkeypatch, tmp_path, *command, "--csv", tmp_path / "rows.csv")
    (row,) = rows_of(tmp_path / "rows.csv")
    assert float(row["ratio_min"]) > 2


def test_against_checkout_names_a_missing_file(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(against_checkout, monkeypatch, tmp_path, "--algorithm", "iql", "--size", "quickstart")
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1) and "iql.py" in error


@pytest.mark.slow
def test_the_script_of_all_gpu_figures_runs_on_a_cpu(tmp_path):
    """Every step but CUDA's, in a few updates each."""
    environment = {**os.environ, "DEVICE": "cpu", "QUICK": "1", "OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run([ROOT / "benchmarks" / "gpu.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed: none" in done.stdout
    tables = {"throughput", "seeds", "million", "waiting", "waiting_eager", "against_jax", "precision"}
    assert {path.stem for path in tmp_path.glob("*.csv")} == tables
