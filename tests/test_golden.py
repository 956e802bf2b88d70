"""The published maths: three float64 updates equal the reference implementations' figures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from harness.algorithms import load_algorithm
from tests.golden.checker import ADAPTERS, TOLERANCE, check_case, tolerance
from tests.plain_dipole import PlainDipole, write_case

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(GOLDEN.glob("*.npz")) + sorted(GOLDEN.glob("protocol_b/*_*.npz"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_updates_equal_the_reference(path):
    differences = check_case(path)
    assert all(difference <= tolerance(name) for name, difference in differences.items()), differences
    if path.parent.name == "protocol_b":
        assert sum(name.startswith("acting/") for name in differences) == (8 if path.stem.startswith("fql") else 4)
    assert any("critic_loss" in name for name in differences)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    (
        ("dql", {"max_q_backup": True, "grad_norm": -1}, {"backup_candidates": 10, "max_gradient_norm": 0}),
        ("dql", {"lr_decay": True, "lr_maxt": 7}, {"decay_length": 7, "decay_interval": 1}),
        ("qsm", {"clip_sampler_before": True}, {"sampler": "ancestral", "clip_clean": True, "clip_steps": True}),
        ("qsm", {"clip_sampler_after": False}, {"sampler": "qam", "clip_clean": False, "clip_steps": False}),
        (
            "qsm",
            {"use_target_critic_grad": False, "num_qs": 5},
            {"use_target_critic_gradient": False, "num_critics": 5},
        ),
    ),
)
def test_adapters_follow_a_case_with_other_settings(name, changes, expected):
    case = json.loads((GOLDEN / f"{name}.json").read_text())["config"] | changes
    fields = ADAPTERS[name].config_fields(case)
    assert {field: fields[field] for field in expected} == expected
    load_algorithm(name).config_class(**fields)


@pytest.mark.parametrize(
    ("name", "changes"),
    (
        ("dql", {"beta_schedule": "cosine"}),
        ("qsm", {"actor_loss_type": "dac"}),
        ("qsm", {"beta_schedule": "cosine"}),
        ("qsm", {"best_of_n": 4}),
        ("iql_awr", {"const_std": False}),
        ("rebrac", {"tanh_squash": False}),
    ),
)
def test_adapters_refuse_what_the_port_does_not_have(name, changes):
    case = json.loads((GOLDEN / f"{name}.json").read_text())["config"] | changes
    with pytest.raises(UserError, match=next(iter(changes))):
        ADAPTERS[name.removesuffix("_awr")].config_fields(case)


def run_checker(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.golden", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])


def test_command_finds_a_changed_figure(tmp_path):
    """The checker's exit code tells a right file from one with a single loss moved by 1e-8."""
    case = GOLDEN / "dipole"
    with np.load(case.with_suffix(".npz")) as stored:
        arrays = dict(stored)
    arrays["step1/info/value_loss"] = arrays["step1/info/value_loss"] + 1e-8
    np.savez(tmp_path / "dipole_moved.npz", **arrays)
    (tmp_path / "dipole_moved.json").write_text(case.with_suffix(".json").read_text())
    assert run_checker(case.with_suffix(".npz")).returncode == 0
    moved = run_checker(case.with_suffix(".npz"), tmp_path / "dipole_moved.npz")
    assert moved.returncode == 1
    assert "step1/value_loss" in moved.stdout


def test_command_names_a_missing_file(tmp_path):
    missing = run_checker(tmp_path / "dipole_none.npz")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "dipole_none.npz" in missing.stderr


OTHER_SETTINGS = {
    "as_recorded": {},
    "deep_with_actor_norm_only": {
        "actor_hidden_dims": [24, 16, 20],
        "value_hidden_dims": [12, 20, 8, 8],
        "actor_layer_norm": True,
        "layer_norm": False,
        "flow_steps": 4,
    },
    "greedy_targets_of_four_candidates": {"cfg_fortrain": 2.5, "num_samples_fortrain": 4, "q_agg": "mean"},
    "negative_policy_targets": {"cfg_fortrain": 0.0, "num_samples_fortrain": 2},
    "shifted_and_steep": {"k": -1.2, "beta": 5.0, "expectile": 0.7, "tau": 0.05, "lr": 1e-2, "cfg_fortrain": 0.4},
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_dipole_equals_a_plain_implementation_elsewhere(name, tmp_path):
    """Settings that the reference's recorded case does not have, against tests/plain_dipole.py."""
    recorded = json.loads((GOLDEN / "dipole.json").read_text())["config"]
    path = tmp_path / f"dipole_{name}"
    write_case(path, recorded | OTHER_SETTINGS[name], observation_dim=5, action_dim=2, batch_size=9, seed=1)
    differences = check_case(path.with_suffix(".npz"))
    assert all(difference <= TOLERANCE for difference in differences.values()), differences


def test_the_plain_implementation_equals_the_reference():
    """From the recorded start, with the recorded minibatches and noise, to the recorded end."""
    case = json.loads((GOLDEN / "dipole.json").read_text())
    with np.load(GOLDEN / "dipole.npz") as stored:
        arrays = {name: torch.tensor(array) for name, array in stored.items()}
    agent = PlainDipole(case["config"], case["obs_dim"], case["action_dim"], np.random.default_rng(0))
    agent.parameters = {name: arrays[f"init/{name}"] for name in agent.parameters}
    for step in range(case["steps"]):
        batch = {name: arrays[f"step{step}/batch/{name}"] for name in ("observations", "actions", "next_observations")}
        batch |= {name: arrays[f"step{step}/batch/{name}"] for name in ("rewards", "masks")}
        noise = [arrays[f"step{step}/noise/{name}"] for name in ("0_normal", "1_normal", "2_uniform")]
        agent.update(batch, *noise)
    for name, parameter in agent.parameters.items():
        torch.testing.assert_close(parameter, arrays[f"final/{name}"], atol=TOLERANCE, rtol=0)
