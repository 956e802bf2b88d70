"""What the code computed before the redesign (tests/frozen/) stays what it computes."""

import csv
import io
import json
import lzma
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.agent_tools import restore
from harness.algorithms import load_algorithm

ROOT = Path(__file__).resolve().parents[1]
FROZEN = Path(__file__).parent / "frozen"
CASES = json.loads((FROZEN / "updates.json").read_text())
TOLERANCE = 1e-10
# Of the quick start's figures: other instruction sets of one processor changed them by 7e-6. A weight that is
# counted as saturated is one of 256.
RELATIVE_TOLERANCE, ONE_ROW = 1e-3, 1 / 256


@pytest.fixture(scope="module")
def checkpoints() -> dict:
    return torch.load(io.BytesIO(lzma.decompress((FROZEN / "checkpoints.pt.xz").read_bytes())), weights_only=True)


def frozen_agent(case: dict, stored: dict, folder: Path) -> torch.nn.Module:
    """The agent of a recorded checkpoint, in float64."""
    algorithm = load_algorithm(case["algorithm"])
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in case["config"].items()}
    if "target_aggregation" in fields:
        fields["pessimism"] = {"mean": 0.0, "min": None}[fields.pop("target_aggregation")]
    if stored["base"] is not None:
        torch.save(stored["base"], folder / "checkpoint.pt")
        fields["base"] = str(folder)
    agent = algorithm.agent_class(algorithm.config_class(**fields), observation_dim=3, action_dim=2)
    restore(agent.double(), stored["state"])
    return agent


@pytest.mark.parametrize("name", CASES)
def test_twenty_updates_from_a_stored_checkpoint(name, checkpoints, tmp_path):
    case = CASES[name]
    agent = frozen_agent(case, checkpoints["cases"][name], tmp_path)

    def assert_equal(ours, theirs, what: str) -> None:
        torch.testing.assert_close(
            torch.as_tensor(ours),
            torch.tensor(theirs, dtype=torch.float64),
            atol=TOLERANCE,
            rtol=TOLERANCE,
            msg=f"{name}: {what}",
        )

    for step in range(20):
        metrics = agent.update(checkpoints["batches"][step % 5])
        for metric, values in case["metrics"].items():
            assert_equal(metrics[metric], values[step], f"{metric} of update {step}")
    networks = agent.state_dict()
    assert networks.keys() - {"base_sha256"} == case["sums"].keys()
    for parameter in case["sums"]:
        value = networks[parameter].double()
        assert_equal(torch.stack([value.sum(), value.square().sum()]), case["sums"][parameter], parameter)
    for options, actions in zip(({}, {"explore": True}), case["actions"], strict=True):
        assert_equal(agent.act(checkpoints["states"], **options), actions, f"actions with {options}")


def rows_of(path: Path) -> list:
    with open(path, newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_the_quick_start_begins_as_it_did(tmp_path):
    """Through the command line, on two of its episodes: which numbers MuJoCo collects differs by processor."""
    shutil.copytree(FROZEN / "quickstart" / "buffer", tmp_path / "data" / "cartpole" / "rnd" / "buffer")
    command = [sys.executable, "algorithms/dipole.py", "--config", str(FROZEN / "quickstart" / "settings.yaml")]
    command += ["--data_dir", str(tmp_path / "data"), "--run_dir", str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "runs").rglob("train.csv")
    ours, theirs = rows_of(log), rows_of(FROZEN / "quickstart" / "train.csv")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for our_row, their_row in zip(ours, theirs, strict=True):
        for name, value in their_row.items():
            slack = ONE_ROW if name == "actor/weight_saturated" else 0.0
            assert math.isclose(our_row[name], value, rel_tol=RELATIVE_TOLERANCE, abs_tol=slack), (our_row, name, value)
