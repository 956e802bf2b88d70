"""The benchmarks measure what they say: the JAX form makes the reference's updates, and the command's rows add up."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from algorithms.dipole import DIPOLEConfig
from benchmarks import against_checkout, omega_gain, soak, sweep_over_seeds
from benchmarks.throughput import SIZES, Size, build_updates, random_dataset, warm_up
from common.errors import UserError
from harness.command_line import parse_command
from harness.comparison.matrix import Row, Variant
from harness.comparison.results import Results
from harness.config import RunConfig, config_to_yaml
from harness.updates import UPDATES_PER_REPLAY
from tests.comparison_folders import LOCAL, Data, comparison_of, fill
from tests.golden.checker import TOLERANCE, recorded_draws, step_arrays
from tests.golden.dipole_family import dipole_fields
from tests.toy import toy_task

ROOT = Path(__file__).resolve().parents[1]
CASE = ROOT / "tests" / "golden" / "dipole.npz"
GRADIENT_LINE = "        self.optimizer.zero_grad()\n"
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
                state, batch, Draws(*recorded_draws(arrays, f"step{step}/")[:3]), config
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
    dataset = random_dataset(SIZES["quickstart"], device)
    dataset.masks.zero_()  # the reward alone is learnt, 0.5 on average
    config = DIPOLEConfig(actor_hidden_dims=(8,), value_hidden_dims=(8,), flow_steps=1)
    updates = JaxUpdates(config, 16, dataset, jax.devices("cpu")[0], "highest")
    assert updates.data["next_observations"].shape == (len(dataset), 5)
    np.testing.assert_array_equal(updates.data["next_observations"][:-1], updates.data["observations"][1:])
    updates.advance(1)
    first = float(updates.losses["critic/loss"])
    updates.advance(400)
    updates.wait()
    assert int(updates.state.count) == 401
    assert float(updates.losses["critic/loss"]) < first / 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
@pytest.mark.parametrize("captured", [False, True])
def test_updates_never_make_the_host_wait_for_the_gpu(algorithm, captured, tiny_size):
    device = torch.device("cuda")
    size = SIZES["quickstart"]
    updates = warm_up(build_updates(algorithm, size, random_dataset(size, device), captured))
    updates.advance(UPDATES_PER_REPLAY)  # the capture may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(30):
            updates.advance(UPDATES_PER_REPLAY)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_against_checkout_finds_the_slower_one(tmp_path, monkeypatch, capsys, tiny_size):
    """The other checkout's file does the same update after some idle counting."""
    text = (ROOT / "algorithms/baselines/iql.py").read_text()
    slow = text.replace(GRADIENT_LINE, "        sum(range(2_000_000))\n" + GRADIENT_LINE)
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


def test_the_soak_is_a_longer_quick_start_without_its_sweep(tmp_path):
    run = parse_command(DIPOLEConfig, soak.command(tmp_path)[2:]).settings.run
    assert (run.offline_steps, run.eval_interval, run.eval_workers, run.sweep) == (120_000, 500, 1, ())
    assert run.run_dir == str(tmp_path / "runs")


@pytest.mark.slow
def test_the_script_of_all_gpu_figures_runs_on_a_cpu(tmp_path):
    """Every step but CUDA's, in a few updates each."""
    environment = {**os.environ, "DEVICE": "cpu", "QUICK": "1", "OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run([ROOT / "benchmarks" / "gpu.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed: none" in done.stdout
    assert {path.stem for path in tmp_path.glob("*.csv")} == {"throughput", "against_jax"}


HEAD = "label,greediness,noise_scale,split,seed,pdms\n"  # of harness.driving.results' scores.csv
TWO_CELLS = "0.0,1,10,0.0,0.3,0.1,0.9,50\n1.0,1,10,0.0,0.3,0.1,0.9,50\n"
SWEEP_HEAD = "greediness,num_candidates,flow_steps,noise_scale,success,success_low,success_high,episodes\n"


def sweep_of(folder: Path, label: str, seed: int, rows: str, name: str = "greediness.csv", head: str = SWEEP_HEAD):
    """The path of what `harness.evaluate` leaves in a run's folder: success by greediness and noise_scale."""
    folder = folder / label / f"seed_{seed}"
    folder.mkdir(parents=True)
    run = RunConfig(task="toy/point", label=label, seed=seed)
    (folder / "config.yaml").write_text(config_to_yaml(run, DIPOLEConfig()))
    (folder / "environment.json").write_text('{"algorithm": "dipole"}')
    (folder / "checkpoint.pt").touch()
    (folder / name).write_text(head + rows)
    return folder / name


def test_a_sweep_over_seeds_is_a_line_of_means_between_the_lowest_and_the_highest(tmp_path, monkeypatch):
    cells = "0.0,1,10,{0},{1},0.1,0.9,50\n1.0,1,10,{0},{2},0.1,0.9,50\n"
    sweeps = [
        sweep_of(tmp_path, "pair", 0, cells.format("0.0", 0.5, 0.9) + cells.format("1.0", 0.2, 0.4)),
        sweep_of(tmp_path, "pair", 1, cells.format("0.0", 0.7, 0.5) + cells.format("1.0", 0.2, 0.6)),
        sweep_of(
            tmp_path, "cloning", 0, "0.0,1,10,0.0,0.3,0.1,0.9,50,-0.1\n", "b.csv", f"{SWEEP_HEAD[:-1]},difference_low\n"
        ),
        sweep_of(
            tmp_path, "one-step", 0, "1,0.0,0.8,0.1,0.9,50\n", "a.csv", SWEEP_HEAD[11:].replace("flow_steps,", "")
        ),
    ]
    drawn = []
    monkeypatch.setattr(sweep_over_seeds, "plot_lines", lambda *arguments: drawn.append(arguments))
    run_command(sweep_over_seeds, monkeypatch, *sweeps, "--against", "greediness", "--out", tmp_path / "out")
    ((x, lines, path, x_label, score, constants),) = drawn
    assert (x, x_label, score, path.name) == ([0.0, 1.0], "greediness", "success", "greediness.png")
    assert lines == {
        "pair (2 seeds), noise_scale 0": [(pytest.approx(0.6), 0.5, 0.7), (pytest.approx(0.7), 0.5, 0.9)],
        "pair (2 seeds), noise_scale 1": [(pytest.approx(0.2), 0.2, 0.2), (pytest.approx(0.5), 0.4, 0.6)],
    }
    assert constants == {"cloning (1 seed), noise_scale 0": 0.3, "one-step (1 seed), noise_scale 0": 0.8}
    rows = rows_of(tmp_path / "out" / "act_options.csv")
    assert len(rows) == 10 and [row["label"] for row in rows if row["difference_low"] == "-0.1"] == ["cloning"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--against", "omega"), "--against omega: the sweeps' act options are greediness, num_candidates"),
        (("none.csv", "--against", "greediness"), "none.csv: no such file, give the greediness.csv"),
        (("empty.csv", "--against", "greediness"), "empty.csv: is damaged"),
        (("eval.csv", "--against", "greediness"), "eval.csv: is no sweep"),
        (("task.csv", "--against", "greediness"), "the sweeps are of toy/other, toy/point: give those of one task"),
        (("grid.csv", "--against", "greediness"), "grid.csv: has other values of greediness than"),
        (("one.csv", "--against", "greediness"), "one.csv: has other values of greediness than"),
    ],
)
def test_a_sweep_over_seeds_of_what_is_not_there_is_one_sentence(tmp_path, monkeypatch, capsys, flags, message):
    sweep = sweep_of(tmp_path, "pair", 0, TWO_CELLS)
    (sweep.parent / "empty.csv").touch()
    (sweep.parent / "eval.csv").write_text("step,return\n1,2.0\n")
    shutil.copy(sweep, sweep_of(tmp_path, "other", 0, TWO_CELLS, "task.csv"))
    config = tmp_path / "other" / "seed_0" / "config.yaml"
    config.write_text(config.read_text().replace("toy/point", "toy/other"))
    sweep_of(tmp_path, "grid", 0, TWO_CELLS.replace("1.0,1", "2.0,1"), "grid.csv")
    (sweep.parent / "one.csv").write_text(SWEEP_HEAD + TWO_CELLS.splitlines()[0])
    places = {"task.csv": "other", "grid.csv": "grid"}
    flags = [tmp_path / places.get(flag, "pair") / "seed_0" / flag if "." in flag else flag for flag in flags]
    with pytest.raises(SystemExit) as stopped:
        run_command(sweep_over_seeds, monkeypatch, sweep, *flags, "--out", tmp_path / "out")
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_gain_of_omega_is_by_seed_and_of_the_best_omega(tmp_path):
    text = HEAD
    scores = {("two", 1.0): {0.0: (50, 60), 0.5: (55, 63), 1.0: (40, 70)}, ("two", 0.0): {0.0: (80, 80), 0.5: (79, 80)}}
    scores |= {("one", 1.0): {"": (30, 50)}, ("planner", ""): {"": (90,)}}
    for (label, noise), by_omega in scores.items():
        for omega, values in by_omega.items():
            for seed, value in enumerate(values):
                text += f"{label},{omega},{noise},test,{seed},{value}\n{label},{omega},{noise},validation,{seed},0\n"
    (tmp_path / "scores.csv").write_text(text)
    table = omega_gain.gains(omega_gain.read_scores(tmp_path)).set_index(["label", "noise_scale"])
    assert table.loc["two", 1.0].tolist() == [2, 55, 0.5, 4, 3, 5]
    assert table.loc["two", 0.0].tolist() == [2, 80, 0.5, -0.5, -1, 0]
    assert table.loc["one", 1.0].tolist()[:2] == [2, 40] and table.loc["one", 1.0].isna().sum() == 4
    assert len(table) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no table of harness.driving.results"),
        (f"{HEAD}a,0,,test,0,1\n", "lacks omega 0 or noise scales"),
        (f"{HEAD}a,0.5,1,test,0,1\none,,1,test,0,1\n", "lacks omega 0 or noise scales"),
        ("label,noise_scale,split\na,1,test\n", "is no table of harness.driving.results"),
    ],
)
def test_the_gain_of_omega_needs_both_options(tmp_path, text, message):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(UserError, match=f"scores.csv: {message}"):
        omega_gain.read_scores(tmp_path)


def test_measures_of_the_log_are_of_its_last_half_and_of_the_rows_title(tmp_path):
    variant = Variant("beta-8", "dipole", {"inverse_temperature": 8.0})
    data = Data("exorl/local_x/cartpole_swingup", "cartpole", "return", LOCAL)
    comparison = comparison_of(tmp_path, [variant], [Row("beta-8", variant, {})], [data], [0])
    fill(comparison, [data], lambda run, cell: 1.0)
    log = "step,value/advantage_std,actor/weight_saturated,actor/positive_loss\n"
    log += "250,9,9,9\n500,9,9,9\n750,0.5,0.2,1\n1000,0.7,0.4,3\n"
    (comparison.runs[0].folder / "train.csv").write_text(
        log.replace("\n", ",1\n").replace("loss,1", "loss,updates_per_second")
    )
    found = omega_gain.logged(Results(comparison).runs[0], {"beta-8": "beta 8"})
    assert found == {
        "label": "beta 8",
        "beta_advantage_std": 8 * 0.6,
        "saturated": pytest.approx(0.3),
        "loss_spike": 1.5,
    }


DUO = SimpleNamespace(label="duo", agent_class=None, algorithm="duo")


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_differs_by_seed_cancels_or_adds_up(sign, monkeypatch):
    """Velocities 2 and 1 with the errors e and sign e of seeds 0 and 1: in the difference they cancel, or are 2 e."""
    errors = {0: 0.3, 1: -0.3}
    runs = [SimpleNamespace(run=seed, planned=SimpleNamespace(variant=DUO, folder=Path(str(seed)))) for seed in errors]

    def load(agent_class, folder, algorithm):
        seed = int(folder.name)
        velocities = torch.tensor([2.0 + errors[seed], 1.0 + sign * errors[seed]])
        return SimpleNamespace(flow=lambda observations, x, t: velocities[:, None, None].expand(2, *x.shape))

    monkeypatch.setattr(omega_gain, "load_agent", load)
    monkeypatch.setattr(omega_gain, "load_run_task", lambda run: SimpleNamespace(validation=toy_task().dataset))
    found = omega_gain.by_seed(runs, {"duo": "Duo"})
    variance = 0.0 if sign == 1 else 2 * 0.6**2  # of 2 e over two seeds, with the divisor 1
    assert found == {
        "label": "Duo",
        "spread_seeds": 2,
        "spread_share": pytest.approx(variance / (1.0 + variance / 2), rel=1e-4, abs=1e-6),
        "spread_left": pytest.approx(1.0 - sign, rel=1e-4, abs=1e-6),
    }
