"""The published maths: three float64 updates equal the reference implementations' figures."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.golden.checker import TOLERANCE, check_case

CASES = sorted((Path(__file__).parent / "golden").glob("*.npz"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_updates_equal_the_reference(path):
    differences = check_case(path)
    assert all(difference <= TOLERANCE for difference in differences.values()), differences


def run_checker(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.golden", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])


def test_command_finds_a_changed_figure(tmp_path):
    """The checker's exit code tells a right file from one with a single loss moved by 1e-8."""
    case = CASES[0].parent / "dipole"
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
