"""The benchmarks measure what they say: the JAX form makes the reference's updates, and the command's rows add up."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from algorithms.dipole import DIPOLEConfig
from benchmarks import against_checkout, precision, precision_curve, training_run
from benchmarks.rounded_products import FORMATS, RoundedProducts, to_bf16, to_tf32
from harness.measurement.workload import SIZES, Size, random_dataset
from harness.run_folder import run_path
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


@pytest.mark.parametrize(("name", "loss"), [("iql", "critic/loss"), ("dipole_lora", "actor/imitation_loss")])
def test_training_run_extrapolates_and_sees_the_loss_fall(tmp_path, monkeypatch, capsys, name, loss):
    command = ("--algorithm", name, "--size", "quickstart", "--updates", 30, "--device", "cpu")
    run_command(training_run, monkeypatch, *command, "--csv", tmp_path / "rows.csv")
    (row,) = rows_of(tmp_path / "rows.csv")
    minutes = 1e6 / float(row["updates_per_second"]) / 60
    assert float(row["minutes_per_million"]) == pytest.approx(minutes, rel=0.02)
    assert row["loss"] == loss
    assert float(row["last_loss"]) < float(row["first_loss"])


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


def test_precision_adds_rows_of_emulated_formats(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SIZES, "published", Size(5, 2, (24, 24), 16, 24))
    command = ("--precision", "highest", "--rounded", "tf32", "bf16", "--device", "cpu")
    run_command(precision, monkeypatch, *command, "--csv", tmp_path / "rows.csv")
    rows = {(row["case"], row["precision"]): float(row["loss"]) for row in rows_of(tmp_path / "rows.csv")}
    cases = {case for case, _ in rows}
    assert {"dipole", "rebrac", "dipole_published"} <= cases and len(rows) == 3 * len(cases)
    for case in cases:  # bf16 has three bits less than tf32
        exact, tf32, bf16 = (rows[case, name] for name in ("highest", "tf32, emulated", "bf16, emulated"))
        assert 10 * exact < tf32 < bf16 < 0.05, case


# ---- Rounded products ----

LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    ("value", "nearest"),
    [
        (1 + 2**-10, 1 + 2**-10),
        (1 + 2**-11, 1 + 2**-10),  # a tie: away from zero
        (-1 - 2**-11, -1 - 2**-10),
        (1 + 2**-10 + 2**-11, 1 + 2**-9),
        (1 + 2**-11 - 2**-23, 1.0),
        (-1 - 2**-11 - 2**-23, -1 - 2**-10),
        (2 - 2**-23, 2.0),  # into the next exponent
        (2**-137, 2**-136),  # a tie at the smallest tf32 number
        (-(2**-138), -0.0),
        (0.0, 0.0),
        (-0.0, -0.0),
        (LARGEST, math.inf),
        (-LARGEST, -math.inf),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
    ],
)
def test_tf32_is_the_nearest_number_of_ten_bits(value, nearest):
    rounded = to_tf32(torch.tensor(value)).item()
    assert rounded == nearest and math.copysign(1, rounded) == math.copysign(1, nearest)


def test_tf32_agrees_with_rounding_in_float64():
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-20, 20).repeat(250)
    mantissa, exponent = np.frexp(values.numpy().astype(np.float64))  # of 1/2 to 1: eleven bits after the point
    nearest = np.ldexp(np.sign(mantissa) * np.floor(np.abs(mantissa) * 2**11 + 0.5), exponent - 11)
    np.testing.assert_array_equal(to_tf32(values).numpy(), nearest)


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0x7FC00000, -0x00000001, -0x007FFFFF])
def test_what_is_not_a_number_stays_so(bits):
    value = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    assert to_tf32(value).isnan().all() and to_bf16(value).isnan().all()


@pytest.mark.parametrize(
    ("value", "nearest"),
    [
        (1 + 2**-7, 1 + 2**-7),
        (1 + 2**-8, 1.0),  # a tie: to even
        (-1 - 3 * 2**-8, -1 - 2**-6),
        (1 + 2**-8 + 2**-23, 1 + 2**-7),
        (-(2 - 2**-23), -2.0),
        (LARGEST, math.inf),
        (-math.inf, -math.inf),
    ],
)
def test_bf16_is_the_nearest_number_of_seven_bits(value, nearest):
    assert to_bf16(torch.tensor(value)).item() == nearest


PRODUCTS = {  # by torch's name: of an addend and two operands [2, 3, 4] and [2, 4, 5], or of their first members
    "mm": lambda addend, left, right: torch.mm(left[0], right[0]),
    "addmm": lambda addend, left, right: torch.addmm(addend[0], left[0], right[0]),
    "bmm": lambda addend, left, right: torch.bmm(left, right),
    "baddbmm": lambda addend, left, right: torch.baddbmm(addend, left, right),
    "linear": lambda addend, left, right: F.linear(left[0], right[0].T, addend[0, 0]),
    "matmul of a batch by a matrix": lambda addend, left, right: left @ right[0],
}


def product_and_gradients(product, dtype: torch.dtype, convert=lambda tensor: tensor) -> list:
    """[product, gradient by its addend (None without), by its left and its right operand], the last two converted.

    The gradient of the result is 1 + 2^-12 everywhere, which neither format holds.
    """
    generator = torch.Generator().manual_seed(0)
    addend, left, right = (torch.randn(2, *size, generator=generator) for size in ((1, 5), (3, 4), (4, 5)))
    operands = [addend.to(dtype), convert(left.to(dtype)), convert(right.to(dtype))]
    operands = [operand.requires_grad_() for operand in operands]
    result = product(*operands)
    result.backward(convert(torch.full_like(result, 1 + 2**-12)))
    return [result.detach(), *(operand.grad for operand in operands)]


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_operands_are_rounded_forward_and_backward(name, number_format):
    with RoundedProducts(number_format):
        result, by_addend, by_left, by_right = product_and_gradients(PRODUCTS[name], torch.float32)
    expected, _, *expected_gradients = product_and_gradients(PRODUCTS[name], torch.float32, FORMATS[number_format])
    exact, exact_by_addend, *exact_gradients = product_and_gradients(PRODUCTS[name], torch.float32)
    assert torch.equal(result, expected) and not torch.equal(result, exact)
    for ours, rounded, unrounded in zip((by_left, by_right), expected_gradients, exact_gradients, strict=True):
        assert torch.equal(ours, rounded) and not torch.equal(ours, unrounded)
    assert by_addend is exact_by_addend is None or torch.equal(by_addend, exact_by_addend)  # it is no product


def test_bf16_products_are_those_of_bfloat16_tensors():
    """Torch adds those in float32 and rounds the sums once: at most a sum beside a tie may round to the other side."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(64, 128, generator=generator), torch.randn(128, 64, generator=generator)
    with RoundedProducts("bf16"):
        emulated = left @ right
    own = left.bfloat16() @ right.bfloat16()
    assert (emulated.bfloat16() != own).float().mean() < 0.005
    assert ((left @ right).bfloat16() != own).float().mean() > 0.2


@pytest.mark.parametrize("name", PRODUCTS)
def test_float64_products_are_left_alone(name):
    exact = product_and_gradients(PRODUCTS[name], torch.float64)
    with RoundedProducts("bf16"):
        ours = product_and_gradients(PRODUCTS[name], torch.float64)
    assert all(one is other is None or torch.equal(one, other) for one, other in zip(ours, exact, strict=True))


def test_products_that_are_not_emulated_are_refused():
    tokens = torch.randn(1, 2, 8, 4)
    with RoundedProducts("tf32"):
        with pytest.raises(NotImplementedError, match="attention"):
            F.scaled_dot_product_attention(tokens, tokens, tokens)
        with torch.inference_mode(), pytest.raises(NotImplementedError, match="linear"):
            F.linear(tokens, tokens[0, 0])


# ---- Learning curves by precision ----


@pytest.fixture
def products_in_training(monkeypatch) -> dict:
    """{(label, seed): 1 + 2^-10 times 1, as a product in that run's training}; runs only write an eval.csv."""
    seen = {}

    def train(configs):
        for config in configs:
            factor = torch.tensor([[1 + 2**-10]])
            seen[config.label, config.seed] = (factor @ torch.ones(1, 1)).item()
            scores = [100.0 * config.seed, 100.0 * config.seed + len(config.label) + 1]
            run_path(config).mkdir(parents=True)
            (run_path(config) / "eval.csv").write_text(f"step,return\n5,{scores[0]}\n10,{scores[1]}\n")

    monkeypatch.setattr(precision_curve, "train", train)
    return seen


def test_precision_curve_trains_in_each_precision_and_gives_curves(tmp_path, monkeypatch, capsys, products_in_training):
    command = ("--device", "cpu", "--seeds", 1, 2, "--updates", 10, "--out", tmp_path)
    run_command(precision_curve, monkeypatch, *command)
    labels = ("float32", "tf32_emulated", "bf16_emulated")
    nearest = {"float32": 1 + 2**-10, "tf32_emulated": 1 + 2**-10, "bf16_emulated": 1.0}
    assert products_in_training == {(label, seed): nearest[label] for label in labels for seed in (1, 2)}
    rows = rows_of(tmp_path / "curve.csv")
    assert [(row["precision"], row["updates"]) for row in rows] == [
        (label.replace("_", ", "), updates) for label in labels for updates in ("5", "10")
    ]
    first, last = rows[:2]
    assert [float(first[name]) for name in ("mean", "low", "high", "seed_1", "seed_2")] == [150, 100, 200, 100, 200]
    assert float(last["mean"]) == 158
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out
    assert "| precision | after 10 updates | mean of the last 2 evaluations | difference from float32 |" in table
    assert "| float32 | 158 (108 to 208) | 154 (104 to 204) |  |" in table
    assert "| tf32, emulated | 164 (114 to 214) | 157 (107 to 207) | 3 (3 to 3) |" in table


def test_on_a_gpu_the_curves_are_those_of_torchs_own_switch():
    ways = precision_curve.precisions_on(torch.device("cuda"))
    assert [(way.label, way.matmul_precision, way.emulated) for way in ways] == [
        ("float32", "highest", False),
        ("tf32", "high", False),
    ]


def test_precision_curve_draws_runs_as_far_as_all_of_them_are(tmp_path, monkeypatch, capsys, products_in_training):
    command = ("--device", "cpu", "--seeds", 1, 2, "--updates", 10, "--out", tmp_path)
    run_command(precision_curve, monkeypatch, *command)
    cut = next((tmp_path / "runs" / "bf16_emulated").rglob("seed_2/eval.csv"))
    cut.write_text(cut.read_text().rsplit("10,", 1)[0])
    products_in_training.clear()
    run_command(precision_curve, monkeypatch, *command, "--report_only")
    assert products_in_training == {} and [row["updates"] for row in rows_of(tmp_path / "curve.csv")] == ["5"] * 3
    cut.unlink()
    with pytest.raises(SystemExit) as ended:
        run_command(precision_curve, monkeypatch, *command, "--report_only")
    assert ended.value.code == 2 and "not every run has an evaluation" in capsys.readouterr().err
    assert len(rows_of(tmp_path / "curve.csv")) == 3, "the earlier table is kept"


@pytest.mark.parametrize(
    ("flags", "named"), [(("--seeds", 1, 1), "--seeds"), (("--updates", 0), "offline_steps"), (("--out",), "--out")]
)
def test_precision_curve_names_a_wrong_flag(tmp_path, monkeypatch, capsys, flags, named, products_in_training):
    with pytest.raises(SystemExit) as ended:
        run_command(precision_curve, monkeypatch, "--device", "cpu", "--out", tmp_path / "new", *flags)
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1) and named in error
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_precision_curve_of_whole_runs_continues(tmp_path, monkeypatch, capsys):
    """One update per run: enough for an evaluation of each."""
    command = ("--device", "cpu", "--updates", 1, "--episodes", 1, "--data_dir", tmp_path / "data", "--out", tmp_path)
    run_command(precision_curve, monkeypatch, *command, "--seeds", 0)
    first = rows_of(tmp_path / "curve.csv")
    assert [row["updates"] for row in first] == ["1", "1", "1"]
    assert len({row["seed_0"] for row in first}) == 3, "precisions that change nothing"
    capsys.readouterr()
    run_command(precision_curve, monkeypatch, *command, "--seeds", 0, 1)
    assert capsys.readouterr().out.count("not trained again") == 3
    assert [row["seed_0"] for row in rows_of(tmp_path / "curve.csv")] == [row["seed_0"] for row in first]


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
