"""What holds for every algorithm: interface, parameters that move, exact continuation, reproducibility, copying."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import small_config
from tests.test_files_agree import path_of
from tests.toy import random_batch


def make_agent(algorithm, **changes):
    return algorithm.agent_class(small_config(algorithm, **changes), observation_dim=3, action_dim=2)


def flat_state(state, prefix="") -> dict:
    """{path: tensor or number} of a nested state."""
    if isinstance(state, dict):
        return {key: leaf for name, part in state.items() for key, leaf in flat_state(part, f"{prefix}/{name}").items()}
    if isinstance(state, (list, tuple)):
        return flat_state(dict(enumerate(state)), prefix)
    return {prefix: state}


def assert_equal_states(first, second) -> None:
    """Bit-identical tensors and equal numbers at the same places."""
    first, second = flat_state(first), flat_state(second)
    assert first.keys() == second.keys()
    for key, value in first.items():
        same = torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        assert same, f"{key} differs"


def test_update_reports_detached_scalars_under_the_same_names(algorithm):
    agent = make_agent(algorithm)
    first, second = agent.update(random_batch()), agent.update(random_batch())
    assert first.keys() == second.keys()
    for name, metric in first.items():
        assert re.fullmatch(r"(critic|value|actor)/\w+", name), name
        assert metric.ndim == 0 and not metric.requires_grad and torch.isfinite(metric), name


def test_the_same_things_have_the_same_names(algorithm):
    """Networks and the critics' metrics; `base` is the planner that dipole_lora adapts."""
    agent = make_agent(algorithm)
    networks = {
        "critic",
        "target_critic",
        "value",
        "policy",
        "target_policy",
        "flow",
        "denoiser",
        "ema_denoiser",
        "base",
    }
    assert {name for name, _ in agent.named_children()} <= networks | {"noise"}
    metrics = agent.update(random_batch()).keys()
    if hasattr(agent, "critic"):
        assert {"critic/loss", "critic/q_mean", "critic/target_mean"} <= metrics
    if hasattr(agent, "value"):
        assert {"value/loss", "value/mean", "value/advantage_std"} <= metrics


def test_every_trainable_parameter_moves(algorithm):
    agent = make_agent(algorithm)
    trainable = {name: parameter for name, parameter in agent.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    for _ in range(3):
        agent.update(random_batch())
    for name, parameter in trainable.items():
        # The networks of an ensemble share their tensors: each member must move, not one of them.
        members = range(len(parameter)) if parameter.ndim == 3 else [...]
        assert not [member for member in members if torch.equal(parameter[member], before[name][member])], name


@pytest.mark.parametrize("count", [1, 5])
def test_act_gives_actions_in_range(algorithm, count):
    actions = make_agent(algorithm).act(10 * torch.randn(count, 3))
    assert actions.shape == (count, 2) and not actions.requires_grad
    assert actions.abs().max() <= 1


def test_float64_throughout(algorithm):
    agent = make_agent(algorithm).double()
    metrics = agent.update(random_batch(dtype=torch.float64))
    assert {metric.dtype for metric in metrics.values()} == {torch.float64}
    assert agent.act(torch.zeros(2, 3).double()).dtype == torch.float64


def test_save_and_load_continue_bit_for_bit(algorithm, tmp_path):
    agent = make_agent(algorithm, seed=3)
    agent.update(random_batch())
    torch.save(agent.state_dict(), tmp_path / "state.pt")
    copy = make_agent(algorithm, seed=4)
    copy.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        agent.update(random_batch())
        copy.update(random_batch())
    assert_equal_states(agent.state_dict(), copy.state_dict())


def test_same_seed_same_trace_and_another_seed_another(algorithm):
    def trace(seed):
        agent = make_agent(algorithm, seed=seed)
        torch.manual_seed(seed + 1)  # global random state must not matter
        for _ in range(2):
            agent.update(random_batch())
        return agent.state_dict()

    assert_equal_states(trace(0), trace(0))
    first, second = trace(0)["networks"], trace(1)["networks"]
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_losses_change_nothing_and_repeat(algorithm):
    agent = make_agent(algorithm)
    agent.update(random_batch())
    before = agent.state_dict()
    before = {key: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for key, leaf in flat_state(before).items()}
    first, second = agent.losses(random_batch()), agent.losses(random_batch())
    assert_equal_states(before, flat_state(agent.state_dict()))
    assert_equal_states(first, second)
    assert not any(metric.requires_grad for metric in first.values())


def test_a_file_copied_alone_works(algorithm, tmp_path):
    """Imports in isolated mode from an empty folder, does ten updates and acts, without this repository."""
    shutil.copy(path_of(algorithm.name), tmp_path)
    agent, config = algorithm.agent_class.__name__, algorithm.config_class.__name__
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import torch
from {algorithm.name} import {agent}, {config}
agent = {agent}({small_config(algorithm)!r}, 3, 2)
columns = {{"observations": (9, 3), "actions": (9, 2), "next_observations": (9, 3), "rewards": (9,), "masks": (9,)}}
columns |= {{field: (9, 2) for field in agent.batch_fields}}
before = [parameter.clone() for parameter in agent.parameters()]
for _ in range(10):
    agent.update({{name: torch.rand(shape) for name, shape in columns.items()}})
assert any(not torch.equal(a, b) for a, b in zip(before, agent.parameters()))
assert agent.act(torch.zeros(4, 3)).shape == (4, 2)
foreign = {{"envs", "harness", "pyrallis", "gymnasium", "wandb"}} & set(sys.modules)
assert not foreign, foreign
"""
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert [path.name for path in Path(tmp_path).glob("*.py")] == [f"{algorithm.name}.py"]
