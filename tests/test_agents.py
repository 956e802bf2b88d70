"""What holds for every algorithm: interface, parameters that move, exact continuation, reproducibility, copying."""

import copy
import dataclasses
import inspect
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from envs.dataset import Dataset
from harness.agent_tools import network_evaluations, restore, state_of, validation_metrics
from harness.algorithms import algorithm_names, load_algorithm
from tests.conftest import small_config
from tests.test_files_agree import path_of
from tests.toy import random_batch, toy_dataset


def make_agent(algorithm, seed=0, **changes):
    return algorithm.agent_class(small_config(algorithm, **changes), observation_dim=3, action_dim=2, seed=seed)


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
    assert first.keys() == second.keys() == validation_metrics(agent, random_batch()).keys()
    for name, metric in first.items():
        assert re.fullmatch(r"(critic|value|actor)/\w+", name), name
        assert metric.ndim == 0 and not metric.requires_grad and torch.isfinite(metric), name


def test_the_same_things_have_the_same_names(algorithm):
    """Networks, losses and the critics' metrics; `base` is the planner that dipole_lora adapts."""
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
    assert hasattr(agent, "policy_loss")
    assert hasattr(agent, "critic") == hasattr(agent, "critic_loss")
    assert hasattr(agent, "value") == hasattr(agent, "value_loss")
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


AFTER_THE_STEP = ("dipole", "dipole_diffusion", "dql")  # whose targets follow what the optimiser has just changed


def test_targets_move_by_their_rate(algorithm):
    if algorithm.name == "dipole_lora":
        pytest.skip("has no critics")
    agent = make_agent(algorithm).double()
    targets = [name for name, _ in agent.named_children() if name.startswith("target_")]
    interval = getattr(agent.config, "actor_interval", 1)  # of ReBRAC's targets too
    assert "target_critic" in targets

    def parameters(name):
        return [parameter.detach().clone() for parameter in getattr(agent, name).parameters()]

    for step in range(1, 5):
        before = {name: (parameters(name), parameters(name.removeprefix("target_"))) for name in targets}
        agent.update(random_batch(dtype=torch.float64))
        rate = agent.config.target_rate if step % interval == 0 else 0.0
        for name, (old, online) in before.items():
            new = parameters(name.removeprefix("target_")) if algorithm.name in AFTER_THE_STEP else online
            expected = [rate * each + (1 - rate) * other for each, other in zip(new, old, strict=True)]
            torch.testing.assert_close(parameters(name), expected, rtol=0, atol=1e-14 if rate else 0)


class NoSynchronisation(TorchDispatchMode):
    """Fails at every operation whose result, or its shape, the CPU must wait for."""

    FORBIDDEN = ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "unique")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        assert name not in self.FORBIDDEN, f"{name} would synchronise with the device"
        return function(*args, **(kwargs or {}))


WEIGHTINGS = ("sigmoid", "imitation", "exponential", "indicator", "none")
OPTIONS = {  # beside the defaults
    "dipole": [{"weighting": weighting, "target_candidates": 3} for weighting in WEIGHTINGS],
    "dql": [{"backup_candidates": 3, "max_gradient_norm": 0, "decay_length": 9, "decay_interval": 2}],
    "qsm": [{"sampler": "ancestral", "bc_weight": 0.0, "use_target_critic_gradient": False}],
}


def test_update_does_not_synchronise(algorithm):
    for options in ({}, *OPTIONS.get(algorithm.name, ())):
        agent = make_agent(algorithm, **options)
        with NoSynchronisation():
            agent.update(random_batch())


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("explore", [False, True])
def test_act_gives_actions_in_range(algorithm, count, explore):
    actions = make_agent(algorithm).act(10 * torch.randn(count, 3), explore=explore)
    assert actions.shape == (count, 2) and not actions.requires_grad
    assert actions.abs().max() <= 1


def test_act_options_are_config_fields_that_act_takes(algorithm):
    agent = make_agent(algorithm)
    for name in agent.act_options:
        actions = agent.act(torch.zeros(2, 3), **{name: getattr(agent.config, name)})
        assert actions.shape == (2, 2)
    parameters = inspect.signature(agent.act).parameters
    assert ("options" in parameters) == bool(agent.act_options)


def test_loss_is_pure(algorithm):
    """Equal batches and noise give the equal loss, and no state changes, not even of the random numbers."""
    agent = make_agent(algorithm)
    agent.update(random_batch())
    noise = agent.draw(16)
    before = copy.deepcopy(state_of(agent))
    (first, metrics), (second, _) = agent.loss(random_batch(), noise), agent.loss(random_batch(), noise)
    assert torch.equal(first, second) and first.requires_grad
    assert not any(metric.requires_grad for metric in metrics.values())
    assert_equal_states(before, state_of(agent))


def test_float64_throughout(algorithm):
    agent = make_agent(algorithm).double()
    metrics = agent.update(random_batch(dtype=torch.float64))
    assert {metric.dtype for metric in metrics.values()} == {torch.float64}
    assert agent.act(torch.zeros(2, 3).double()).dtype == torch.float64


def test_save_and_load_continue_bit_for_bit(algorithm, tmp_path):
    agent = make_agent(algorithm, seed=3)
    agent.update(random_batch())
    torch.save(state_of(agent), tmp_path / "state.pt")
    other = make_agent(algorithm, seed=4)
    restore(other, torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        agent.update(random_batch())
        other.update(random_batch())
    assert_equal_states(state_of(agent), state_of(other))


def test_a_users_own_loop_saves_and_loads_as_any_module_of_torch(algorithm):
    """state_dict has torch's signature and holds tensors only; a deep copy acts as the agent does."""
    agent = make_agent(algorithm)
    agent.update(random_batch())
    state = agent.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    other = make_agent(algorithm, seed=1)
    keys = other.load_state_dict(state, strict=True)
    assert not keys.unexpected_keys
    other.noise.generator.set_state(agent.noise.generator.get_state())
    twin = copy.deepcopy(agent)
    actions = agent.act(torch.ones(4, 3))
    assert torch.equal(other.act(torch.ones(4, 3)), actions)
    assert torch.equal(twin.act(torch.ones(4, 3)), actions)


def test_same_seed_same_trace_and_another_seed_another(algorithm):
    def trace(seed):
        agent = make_agent(algorithm, seed=seed)
        torch.manual_seed(seed + 1)  # global random state must not matter
        for _ in range(2):
            agent.update(random_batch())
        return state_of(agent)

    assert_equal_states(trace(0), trace(0))
    first, second = trace(0)["networks"], trace(1)["networks"]
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_validation_changes_nothing_and_repeats(algorithm):
    agent = make_agent(algorithm)
    agent.update(random_batch())
    before = copy.deepcopy(state_of(agent))
    first, second = validation_metrics(agent, random_batch()), validation_metrics(agent, random_batch())
    network_evaluations(agent)
    assert_equal_states(before, state_of(agent))
    assert_equal_states(first, second)


def test_network_evaluations_are_those_of_the_formulas(algorithm):
    """Steps, policies, candidates and critics, as the algorithm files counted them by hand before November 2026."""
    agent = make_agent(
        algorithm, **({"num_candidates": 4} if "num_candidates" in algorithm.agent_class.act_options else {})
    )
    name, config = algorithm.name, agent.config
    pairs = {"greediness": (0.0, 1.0), "num_candidates": (1, 4), "flow_steps": (3, 10), "denoising_steps": (2, 10)}
    if name == "dipole_lora":  # a planner in pre-training has one policy
        pairs = {"sampling_steps": (3, 10)}
    options = [{}] + [{key: value} for key, values in pairs.items() if key in agent.act_options for value in values]
    for option in options:
        count = option.get("num_candidates", getattr(config, "num_candidates", 1))
        steps = {
            "dipole": option.get("flow_steps", 10),
            "ifql": option.get("flow_steps", 10),
            "dipole_diffusion": option.get("denoising_steps", 10),
            "dipole_lora": option.get("sampling_steps", 10),
            "dql": getattr(config, "diffusion_steps", 0),
            "qsm": getattr(config, "diffusion_steps", 0),
        }.get(name, 1)
        policies = 2 if option.get("greediness", 0.0) not in (0, -1) else 1
        selection = 2 * count if count > 1 else 0
        assert network_evaluations(agent, **option) == count * steps * policies + selection, option


def test_noise_scale_multiplies_the_start_noise_of_acting(algorithm):
    """At 1 it changes nothing, and at 0 the samples of a state are one, where a chain adds no noise of its own."""
    if "noise_scale" not in algorithm.agent_class.act_options:
        assert algorithm.name in ("iql", "rebrac")  # whose policies take no noise when acting
        return
    fields = {each.name for each in dataclasses.fields(algorithm.config_class)}
    fixed = {name: value for name, value in {"num_candidates": 1, "stochasticity": 0.0}.items() if name in fields}

    def actions(**options):
        return make_agent(algorithm, **fixed).act(torch.zeros(64, 3), **options)

    plain, half, none = actions(), actions(noise_scale=0.5), actions(noise_scale=0.0)
    assert torch.equal(actions(noise_scale=1.0), plain) and not torch.equal(half, plain)
    if algorithm.name not in ("dql", "qsm"):
        assert (half.std(dim=0) < plain.std(dim=0)).all() and (none == none[0]).all()


WRONG_BATCHES = {
    "rewards of shape [B, 1]": ({"rewards": torch.zeros(16, 1)}, r"^rewards must be torch.float32 \[N\].*\[16, 1\]"),
    "masks of shape [B, 1]": ({"masks": torch.ones(16, 1)}, r"^masks must be .*\[N\].*\[16, 1\]"),
    "valid of shape [B, 1]": ({"valid": torch.ones(16, 1)}, r"^valid must be .*\[N\].*\[16, 1\]"),
    "float64": ({"rewards": torch.zeros(16).double()}, r"^rewards must be torch.float32 .*, not torch.float64"),
    "a numpy array": ({"actions": np.zeros((16, 2), np.float32)}, r"^actions must be .*\[N, 2\].*, not ndarray"),
    "a wrong width": ({"actions": torch.zeros(16, 4)}, r"^actions must be .*\[N, 2\].*\[16, 4\]"),
    "another number of rows": ({"masks": torch.ones(15)}, r"^masks must be .*\[15\].*N = 16"),
    "a column that is missing": ({"next_observations": None}, r"^next_observations must be .*, not NoneType"),
    "wrong observations": ({"observations": torch.zeros(16, 5)}, r"^observations must be .*\[N, 3\].*\[16, 5\]"),
}


@pytest.mark.parametrize("name", WRONG_BATCHES)
def test_a_wrong_minibatch_is_one_sentence_that_names_the_column(algorithm, name):
    changes, message = WRONG_BATCHES[name]
    if algorithm.name == "dipole_lora" and not changes.keys() & {"actions", "observations", "rewards", "valid"}:
        pytest.skip("it takes no next observations and no masks")
    with pytest.raises(ValueError, match=message):
        make_agent(algorithm).update(random_batch() | changes)


@pytest.mark.parametrize("states", [torch.zeros(3), torch.zeros(2, 4), torch.zeros(2, 3).double(), np.zeros((2, 3))])
def test_wrong_states_are_one_sentence(algorithm, states):
    with pytest.raises(ValueError, match=r"^observations must be torch.float32 \[N, 3\] on cpu, not "):
        make_agent(algorithm).act(states)


def test_every_file_copied_alone_works(tmp_path):
    """Imports in isolated mode from an empty folder, does ten updates, acts, saves and loads, all alone."""
    script = "import dataclasses, os, sys, torch\nsys.path.insert(0, '')"
    for name in algorithm_names():
        algorithm, folder = load_algorithm(name), tmp_path / name
        folder.mkdir()
        shutil.copy(path_of(name), folder)
        if name == "dipole_lora":  # its own planner; without it the file adapts others' (test_dipole_lora.py)
            (folder / "algorithms").mkdir()
            shutil.copy(path_of(name).parent / "_planner.py", folder / "algorithms")
        agent, config = algorithm.agent_class.__name__, algorithm.config_class.__name__
        script += f"""
sys.path[0] = {str(folder)!r}
os.chdir(sys.path[0])
assert not {{"algorithms", *{algorithm_names()!r}}} & set(sys.modules)
from {name} import {agent}, {config}
agent = {agent}({small_config(algorithm)!r}, 3, 2)
columns = {{"observations": (9, 3), "actions": (9, 2), "next_observations": (9, 3), "rewards": (9,), "masks": (9,)}}
columns |= {{field: (9, 2) for field in agent.batch_fields}}
before = [parameter.clone() for parameter in agent.parameters()]
for _ in range(10):
    agent.update({{name: torch.rand(shape) for name, shape in columns.items()}})
assert any(not torch.equal(a, b) for a, b in zip(before, agent.parameters()))
torch.manual_seed(0)
checkpoint = {{"config": dataclasses.asdict(agent.config), "observation_dim": 3, "action_dim": 2}}
torch.save(checkpoint | {{"agent": {{"networks": agent.state_dict()}}}}, "checkpoint.pt")
loaded = {agent}.load(".")
loaded.noise.generator.set_state(agent.noise.generator.get_state())
assert torch.equal(agent.act(torch.zeros(4, 3)), loaded.act(torch.zeros(4, 3)))
foreign = {{"envs", "harness", "common", "pyrallis", "gymnasium", "wandb", "yaml"}} & set(sys.modules)
assert not foreign, foreign
for module in {{{name!r}, "algorithms", "algorithms._planner"}} & set(sys.modules):
    del sys.modules[module]  # the next file finds it neither here nor on its path
"""
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert [path.stem for path in sorted(tmp_path.glob("*/*.py"))] == sorted(algorithm_names())


@pytest.mark.parametrize("filler", [0.0, 0.7, float("nan")])
def test_what_a_loader_fills_into_an_episodes_last_row_reaches_no_update(algorithm, filler):
    """Nobody reads a row without a transition; ReBRAC with a critic penalty reads next actions."""
    penalty = {"critic_bc_weight": 0.5} if algorithm.name == "rebrac" else {}

    def trained(fill):
        data = toy_dataset(episodes=6)
        last = torch.ones(len(data.actions), dtype=torch.bool)
        last[data.valid] = False
        filled = [column.clone() for column in (data.actions, data.rewards, data.masks)]
        for column in filled if fill is not None else ():
            column[last] = fill
        data = Dataset(data.observations, *filled, data.valid)
        agent = make_agent(algorithm, **penalty)
        batches = torch.Generator().manual_seed(0)
        for _ in range(3):
            metrics = agent.update(data.sample(64, batches, agent.batch_fields))
        return {name: float(metric) for name, metric in metrics.items()}

    assert trained(filler) == trained(None)
