"""harness.compare as a command on a small real task: killed in the middle, it continues to the same results."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envs import load_task
from harness.comparison.matrix import load_comparison
from harness.loggers import read_rows

ROOT = Path(__file__).resolve().parents[1]
TASK = "exorl/local_sticky_random/cartpole_swingup"
pytestmark = pytest.mark.slow  # each process imports torch anew


@pytest.fixture
def matrix(tmp_path) -> Path:
    """Two runs of IQL that take some seconds, and one that cannot begin."""
    load_task(TASK, str(tmp_path / "data"), collect_episodes=1)
    path = tmp_path / "matrix.yaml"
    path.write_text(
        f"name: small\ntasks: {{cartpole: [{TASK}]}}\n"
        f"seeds: [0, 1]\noverrides: {{data_dir: {tmp_path}/data, offline_steps: 1500, eval_interval: 1500, "
        "eval_episodes: 1, log_interval: 50, checkpoint_interval: 100, batch_size: 16, actor_hidden_dims: [8], "
        "value_hidden_dims: [8]}\nalgorithms: [iql]\n"
    )
    return path


def start(matrix: Path, run_dir: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "harness.compare", "--config", str(matrix), "--run_dir", str(run_dir)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, "--workers", "2"], cwd=ROOT, start_new_session=True, **pipe)


def wait_for_updates(comparison) -> None:
    """Waits until the first run has logged and has not ended."""
    run, deadline = comparison.runs[0], time.monotonic() + 240
    while not (rows := read_rows(run.folder / "train.csv")) or not 100 <= int(rows[-1]["step"]) < 1400:
        assert time.monotonic() < deadline, "no run got going"
        time.sleep(0.05)


def results(comparison) -> list:
    return [(run.folder / "reevaluation.csv").read_text() for run in comparison.runs]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_and_continued_it_ends_as_if_it_had_not_been(matrix, tmp_path, number):
    whole = start(matrix, tmp_path / "whole")
    printed = whole.communicate()[0]
    assert whole.returncode == 0, printed
    assert "2 runs, 1 rows of the report, nothing wrong" in printed and "report.md" in printed

    comparison = load_comparison(matrix, str(tmp_path / "killed"))
    first = start(matrix, tmp_path / "killed")
    wait_for_updates(comparison)
    os.kill(first.pid, number)  # the command alone: its runs notice
    printed = first.communicate()[0]
    assert first.returncode == (128 + signal.SIGTERM if number == signal.SIGTERM else -signal.SIGKILL), printed
    assert not (comparison.runs[0].folder / "result.json").exists()
    while "stopped after" not in (comparison.runs[0].folder / "log.txt").read_text():
        time.sleep(0.05)

    second = start(matrix, tmp_path / "killed")
    printed = second.communicate()[0]
    assert second.returncode == 0, printed
    steps = re.search(r"continuing after (\d+) of", (comparison.runs[0].folder / "log.txt").read_text())
    assert steps and int(steps[1]) >= 100
    assert results(comparison) == results(load_comparison(matrix, str(tmp_path / "whole")))
