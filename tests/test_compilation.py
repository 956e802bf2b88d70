"""Compiled updates: eager ones up to rounding, by a choice that is recorded; eager ones where torch cannot compile."""

import copy

import pytest
import torch

from algorithms.dipole import DIPOLE, EnsembleMLP
from common.errors import UserError
from harness.agent_tools import eager, pure_functions, state_of, validation_metrics
from harness.compilation import (
    COMPILE_SECONDS,
    SAVED_SECONDS,
    compile_functions,
    decompositions,
    is_amd_zen_5,
    is_wanted,
    try_to_compile,
)
from tests.golden.checker import check_case, tolerance
from tests.test_agents import assert_equal_states, make_agent
from tests.test_golden import CASES
from tests.test_run import assert_same_run, environment_of
from tests.toy import random_batch
from tests.toy_run import toy_folder, toy_run


@pytest.fixture(autouse=True)
def no_cache_of_other_agents():
    """torch keeps what it compiled with the function's code, of which the tests compile many agents' forms."""
    yield
    torch.compiler.reset()


@pytest.fixture
def standing_in(monkeypatch):
    """In place of torch.compile, for tests of what surrounds it: functions as they are, their calls counted by name."""
    calls = {}

    def stand_in(function, **options):
        assert options["fullgraph"] and options["dynamic"] is False

        def counted(*arguments):
            calls[function.__name__] = calls.get(function.__name__, 0) + 1
            return function(*arguments)

        return counted

    monkeypatch.setattr(torch, "compile", stand_in)
    return calls


# ---- The same numbers ----


FORMS = {
    torch.ops.aten.gelu.default: ((2, 5, 4), lambda x: (x,), {"approximate": "tanh"}),
    torch.ops.aten.gelu_backward.default: ((2, 5, 4), lambda x: (x.flip(0), x), {"approximate": "tanh"}),
    torch.ops.aten.bmm.default: ((2, 5, 4), lambda x: (x, x[:, :1].mT), {}),
    torch.ops.aten.baddbmm.default: ((2, 5, 5), lambda x: (x[:, :1], x, x.mT), {"beta": 0.5, "alpha": 2.0}),
}


@pytest.mark.parametrize("operation", FORMS, ids=str)
def test_the_forms_given_to_inductor_are_torchs_operations(operation):
    shape, arguments, options = FORMS[operation]
    tensors = arguments(torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(decompositions()[operation](*tensors, **options), operation(*tensors, **options))


class OneNetwork(torch.nn.Module):
    """The least that compiles: both heads of a network with layer norm, and a loss."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.critic = EnsembleMLP(2, (3, 8, 8, 1), True, torch.Generator().manual_seed(0)).to(dtype)

    def loss(self, states):
        return self.critic(states).square().mean()


@pytest.mark.parametrize(
    "dtype, onednn, error", [(torch.float64, True, 1e-14), (torch.float32, True, 1e-5), (torch.float32, False, 1e-5)]
)
def test_a_compiled_network_has_torchs_loss_and_gradient(monkeypatch, dtype, onednn, error):
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr("harness.compilation.onednn_is_faster", lambda: onednn)
    plain, compiled = OneNetwork(dtype), OneNetwork(dtype)
    compile_functions(compiled)
    states = torch.randn(4, 3, dtype=dtype)
    losses = [agent.loss(states) for agent in (plain, compiled)]
    torch.testing.assert_close(*losses, atol=error, rtol=0)
    with torch.profiler.profile() as profile:
        for loss in losses:
            loss.backward()
    for mine, theirs in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=error, rtol=0)
    used = any(event.key == "dipole::onednn_product" for event in profile.key_averages())
    assert used == (onednn and dtype == torch.float32)  # it has no float64


@pytest.mark.parametrize(
    "description, expected",
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n", True),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n", False),  # Zen 4: MKL is as fast, and batched
        ("AMD64 Family 26 Model 68 Stepping 0, AuthenticAMD", True),  # Windows
        ("vendor_id\t: GenuineIntel\ncpu family\t: 26\n", False),
        ("", False),
    ],
)
def test_onednn_multiplies_from_zen_5_on(description, expected):
    assert is_amd_zen_5(description) == expected


@pytest.mark.slow
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_compiled_updates_equal_the_reference(path):
    differences = check_case(path, compiled=True)
    assert all(difference <= tolerance(name) for name, difference in differences.items()), differences


@pytest.mark.slow
def test_twenty_compiled_updates_are_the_eager_ones_up_to_rounding(algorithm):
    """In float32, from the same start with the same numbers; and so are the actions."""
    agent, compiled = make_agent(algorithm), make_agent(algorithm)
    assert try_to_compile(compiled, random_batch(), rows=[4]) == ""
    for _ in range(20):
        metrics, theirs = agent.update(random_batch()), compiled.update(random_batch())
        for name, metric in metrics.items():
            torch.testing.assert_close(theirs[name], metric, rtol=1e-4, atol=1e-5, msg=name)
    for name, parameter in agent.state_dict().items():
        if name.endswith("query_key_value.bias"):
            continue  # no key's bias changes attention: its gradient is rounding, which Adam scales up to whole steps
        torch.testing.assert_close(compiled.state_dict()[name], parameter, rtol=1e-3, atol=1e-4, msg=name)
    states = torch.randn(4, 3)
    torch.testing.assert_close(compiled.act(states), agent.act(states), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_compiled_run_continues_bit_for_bit(tmp_path):
    toy_run(tmp_path / "parts", compile="true", offline_steps=40, eval_interval=20)
    parts = toy_run(tmp_path / "parts", compile="true")
    assert_same_run(toy_run(tmp_path / "whole", compile="true"), parts)


# ---- Whether ----


@pytest.mark.parametrize(
    "choice, device, enough, was_compiled, wanted",
    [
        ("true", "cpu", False, False, True),
        ("true", "cuda", False, False, True),
        ("false", "cpu", True, True, False),
        ("auto", "cpu", True, False, True),
        ("auto", "cpu", False, False, False),
        ("auto", "cpu", False, True, True),  # as the run began
        ("auto", "cuda", True, True, False),  # what it saves there is not measured
    ],
)
def test_auto_compiles_where_the_updates_that_are_left_pay_for_it(choice, device, enough, was_compiled, wanted):
    break_even = round(COMPILE_SECONDS / SAVED_SECONDS)
    updates_left = break_even + 1 if enough else break_even - 1
    assert is_wanted(choice, torch.device(device), updates_left, was_compiled) == wanted


def test_compiling_leaves_no_trace_and_its_choice_is_recorded_and_its_change_said(tmp_path, standing_in, capsys):
    """A run continues as it was compiled, unless its option says otherwise; all with the numbers of the plain run."""
    plain = toy_run(tmp_path / "plain", compile="false", offline_steps=80)
    assert not standing_in
    stretches = []
    for steps, choice in ((20, "true"), (40, "auto"), (60, "false"), (80, "auto")):
        folder = toy_run(tmp_path / "changed", compile=choice, offline_steps=steps)
        environment = environment_of(folder)
        stretches.append([(each["from_step"], each["compiled"]) for each in environment["stretches"]])
        printed = capsys.readouterr().out
        assert (f"(compile: {choice})" in printed) == environment["compiled"] == (steps < 60)
        assert ("from update 40 on with compiled False instead of True; numbers may" in printed) == (steps == 60)
    assert stretches == [[(0, True)], [(0, True)], [(0, True), (40, False)], [(0, True), (40, False)]]
    assert standing_in["loss"] == 42 and standing_in["choose"] > 0  # two tries, and every update until the 40th
    assert_same_run(plain, folder)


def test_validation_is_not_compiled(standing_in):
    agent = make_agent_of_dipole()
    compile_functions(agent)
    agent.update(random_batch())
    before = dict(standing_in)
    validation_metrics(agent, random_batch())
    assert standing_in == before and before["loss"] == 1
    with eager(agent):
        assert not set(pure_functions(agent)) & set(vars(agent))
    assert set(pure_functions(agent)) <= set(vars(agent))


# ---- Where torch cannot ----


def make_agent_of_dipole(agent_class=DIPOLE):
    from harness.algorithms import load_algorithm
    from tests.conftest import small_config

    return agent_class(small_config(load_algorithm("dipole")), 3, 2)


class Untraceable(DIPOLE):
    """Has a loss with what dynamo cannot trace."""

    def loss(self, batch, noise):
        torch._dynamo.graph_break()
        return super().loss(batch, noise)


def test_an_agent_that_torch_cannot_compile_stays_as_it_was():
    agent = make_agent_of_dipole(Untraceable)
    agent.update(random_batch())
    before = copy.deepcopy(state_of(agent))
    assert "graph_break" in try_to_compile(agent, random_batch())
    assert_equal_states(before, state_of(agent))
    assert not set(pure_functions(agent)) & set(vars(agent))


@pytest.mark.parametrize(
    "agent_class, reason", [(Untraceable, "graph_break"), (DIPOLE, "no-such-g++ is not installed")]
)
def test_auto_goes_on_eagerly_and_says_so_in_one_line(tmp_path, monkeypatch, capsys, agent_class, reason):
    if agent_class is DIPOLE:
        monkeypatch.setenv("CXX", "no-such-g++")
    plain = toy_run(tmp_path / "plain", agent_class, compile="false")
    monkeypatch.setattr("harness.compilation.SAVED_SECONDS", COMPILE_SECONDS)  # so that it pays
    capsys.readouterr()
    folder = toy_run(tmp_path / "auto", agent_class)
    said = [line for line in capsys.readouterr().out.splitlines() if "not compiled" in line]
    assert len(said) == 1 and reason in said[0]
    assert environment_of(folder)["compiled"] is False
    assert_same_run(plain, folder)
    with pytest.raises(UserError, match=r"config: compile is true, but .*set (it|compile) to auto"):
        toy_run(tmp_path / "true", agent_class, compile="true")
    assert not (toy_folder(tmp_path / "true") / "config.yaml").exists()
