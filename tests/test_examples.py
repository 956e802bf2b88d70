"""The examples run, and learn what they say."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithms.dipole import DIPOLE
from envs import load_task
from examples import custom_task
from examples.shared_trunk import SharedTrunk, SharedTrunkConfig
from harness.run_folder import read_json

ROOT = Path(__file__).resolve().parents[1]


def test_own_arrays_needs_the_copied_file_only_and_learns(tmp_path):
    shutil.copy(ROOT / "algorithms" / "dipole.py", tmp_path)
    shutil.copy(ROOT / "examples" / "own_arrays.py", tmp_path)
    done = subprocess.run([sys.executable, "own_arrays.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    data, cautious, greedy = (float(number) for number in re.findall(r"mean reward (-[\d.]+)", done.stdout))
    assert data < cautious < greedy, done.stdout


def test_a_custom_tasks_policy_acts_in_the_units_of_its_environment():
    arrays, task = custom_task.logged_transitions(episodes=3), custom_task.load("reach")
    batch = task.dataset.take(torch.arange(len(arrays["rewards"])))
    assert np.array_equal(batch["observations"], arrays["observations"])
    assert np.array_equal(batch["next_observations"], arrays["next_observations"])
    assert np.allclose(0.2 * batch["actions"], arrays["actions"], atol=1e-5)
    environment = task.make_env()
    before, _ = environment.reset(seed=0)
    after = environment.step(np.array([1.0, -0.5]))[0]
    assert np.allclose(after - before, [0.2, -0.1, 0, 0])


def test_a_custom_task_trains_in_the_harness_and_beats_its_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIPOLE_SUITES", raising=False)
    custom_task.main()
    run_dir = tmp_path / "runs" / "custom_task" / "own" / "reach" / "seed_0"
    identity = read_json(run_dir / "environment.json", needed=("data",))["data"]
    score = read_json(run_dir / "result.json", needed=("score",))["score"]
    assert score > identity["episode_return_mean"]
    assert DIPOLE.load(run_dir).observation_dim == 4


def test_the_minari_page_makes_a_set_that_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "minari.md").read_text(), flags=re.DOTALL)
    exec(compile(code.replace("range(20)", "range(2)"), "minari.md", "exec"), {})
    task = load_task("minari/own/pendulum-v0")
    assert (len(task.dataset), task.observation_dim, task.action_dim) == (400, 3, 1)
    assert task.dataset.actions.abs().max() > 0.5, "torques of up to 2 are scaled to [-1, 1]"


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_shared_trunk_has_the_parameters_of_both_networks_and_learns_two_policies(layer_norm):
    config = SharedTrunkConfig(
        actor_hidden_dims=(64, 48), value_hidden_dims=(16,), actor_layer_norm=layer_norm, learning_rate=3e-3
    )
    agent, plain = (kind(config, observation_dim=3, action_dim=2) for kind in (SharedTrunk, DIPOLE))
    counts = [sum(parameter.numel() for parameter in one.flow.parameters()) for one in (agent, plain)]
    assert abs(counts[0] / counts[1] - 1) < 0.01, counts
    inputs = torch.randn(5, 3), torch.randn(5, 2), torch.full((5, 1), 0.3)
    both = agent.flow(*inputs)
    for member in (0, 1):
        torch.testing.assert_close(agent.flow(*inputs, member=member)[0], both[member])

    # One state; the reward is the first action: pi+ must lie above the data, pi- below.
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        actions = torch.rand(64, 2, generator=generator) * 2 - 1
        states = torch.zeros(64, 3)
        rewards = 5 * actions[:, 0]
        batch = {"observations": states, "actions": actions, "rewards": rewards, "next_observations": states}
        agent.update(batch | {"masks": torch.zeros(64)})
    positive, negative = (
        agent.act(torch.zeros(500, 3), greediness=omega, num_candidates=1)[:, 0].mean() for omega in (0.0, -1.0)
    )
    assert positive > 0.15 and negative < -0.15, (positive, negative)


def test_a_shared_trunk_is_trained_by_its_command(tmp_path):
    command = [sys.executable, "-m", "examples.shared_trunk", "--config", "configs/dipole/exorl.yaml"]
    command += ["--data_dir", str(tmp_path / "data"), "--run_dir", str(tmp_path / "runs"), "--device", "cpu"]
    command += ["--collect_episodes", "2", "--offline_steps", "20", "--log_interval", "10", "--eval_interval", "20"]
    command += ["--eval_episodes", "1", "--max_episode_steps", "50", "--sweep", '["greediness=0,1"]']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "runs" / "shared_trunk").rglob("result.json")
    assert read_json(result, needed=("score",))["score"] >= 0
    command = [
        sys.executable,
        "-m",
        "harness.evaluate",
        str(result.parent),
        "--episodes",
        "1",
        "--greediness",
        "0",
        "1",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "shared_trunk on exorl/" in done.stdout, done.stderr
