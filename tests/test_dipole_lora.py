"""Two adapters on one frozen base: what moves, what is saved, what is refused, and eq. 10 by hand."""

import dataclasses
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from algorithms import _planner, dipole_diffusion
from algorithms._planner import Planner, make_planner
from algorithms.dipole import DIPOLE, DIPOLEConfig, policy_weights
from algorithms.dipole_diffusion import DIPOLEDiffusion, DIPOLEDiffusionConfig
from algorithms.dipole_lora import DIPOLELoRA, DIPOLELoRAConfig, fingerprint, signal_level
from common.errors import UserError
from harness.agent_tools import network_evaluations, restore, state_of
from harness.config import RunConfig
from harness.run_folder import run_path
from harness.train import train_run
from tests.test_agents import assert_equal_states
from tests.toy import random_batch, toy_task

ROOT = Path(__file__).resolve().parents[1]
SCENES = ROOT / "tests" / "golden" / "driving" / "scenes"
PLANNER = {"planner_width": 16, "planner_heads": 2}
PRETRAIN = DIPOLELoRAConfig(**PLANNER)
FINETUNE = DIPOLELoRAConfig(stage="finetune", adapter_rank=3, inverse_temperature=2.0, shift=0.3, **PLANNER)
STATES = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def new_base(seed: int = 0, config: DIPOLELoRAConfig = PRETRAIN) -> Planner:
    return Planner(config, 3, 2, torch.Generator().manual_seed(seed))


def finetuning(seed: int = 0, **changes) -> DIPOLELoRA:
    return DIPOLELoRA(dataclasses.replace(FINETUNE, **changes), 3, 2, seed, base=new_base())


def scored_batch(dtype: torch.dtype = torch.float32) -> dict:
    batch = random_batch(dtype=dtype)
    rewards = batch["rewards"]
    return batch | {"state_values": rewards.flip(0) / 2, "state_deviations": 0.5 + rewards.abs()}


def trained(updates: int = 3, **changes) -> DIPOLELoRA:
    agent = finetuning(**changes)
    for _ in range(updates):
        agent.update(scored_batch())
    return agent


def acted(agent, **options) -> torch.Tensor:
    """Actions in STATES from noise of a fixed seed."""
    agent.noise.generator.manual_seed(5)
    return agent.act(STATES, **options)


class OwnPlanner(nn.Module):
    """A base that knows nothing of the algorithm file."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3 + 2 + 1, 8), nn.Linear(8, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, observations, x, t):
        return self.second(self.dropout(self.first(torch.cat([observations, x, t], dim=-1)).relu()))


# ---- What moves ----


@pytest.mark.parametrize("process", ["flow", "diffusion"])
def test_the_base_never_moves_and_both_adapters_do(process):
    agent = finetuning(process=process)
    sums = fingerprint(new_base())
    start = {name: parameter.detach().clone() for name, parameter in agent.named_parameters()}
    for _ in range(3):
        agent.update(scored_batch())
    adapters = {name for name in start if ".lora_" in name}
    layers = 2 * 4  # four layers in each of two blocks
    assert len([name for name in adapters if ".positive." in name]) == 2 * layers
    assert len([name for name in adapters if ".negative." in name]) == 2 * layers
    for name, parameter in agent.named_parameters():
        if name in adapters:
            assert not torch.equal(parameter, start[name]), name
        else:
            assert torch.equal(parameter, start[name]) and parameter.grad is None and not parameter.requires_grad, name
    assert torch.equal(agent.base_sha256, sums)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_adapters_of_a_base_of_fewer_bits_are_float32_and_move(dtype):
    """In bfloat16 most entries of an adapter would stay: a step is smaller than the rounding of the weight."""
    agent = DIPOLELoRA(FINETUNE, 3, 2, base=new_base().to(dtype))
    assert {parameter.dtype for name, parameter in agent.base.named_parameters() if ".lora_" not in name} == {dtype}
    assert {parameter.dtype for parameter in agent.trained.values()} == {torch.float32}
    start = {name: parameter.detach().clone() for name, parameter in agent.trained.items()}
    for _ in range(3):
        metrics = agent.update(scored_batch())
    assert all(metric.isfinite() for metric in metrics.values())
    for name, parameter in agent.trained.items():
        assert (parameter != start[name]).float().mean() > 0.9, name
    assert acted(agent, greediness=1.0).dtype == torch.float32


def test_the_two_adapters_do_not_share_their_gradient():
    """The gradient of each is that of its own term of eq. 9, done here with one adapter at a time."""
    agent, batch = trained().double(), scored_batch(torch.float64)
    noise = agent.draw(len(batch["actions"]))
    x0, t = noise["noise"], noise["t"]
    x, target = (1 - t) * x0 + t * batch["actions"], batch["actions"] - x0
    positive_weights = torch.sigmoid(2.0 * (batch["rewards"] - batch["state_values"]) + 0.3)
    expected = {}
    for adapter, weights in (("positive", positive_weights), ("negative", 1 - positive_weights)):
        own = {name: parameter for name, parameter in agent.trained.items() if f".{adapter}." in name}
        errors = (agent.adapted(adapter, batch["observations"], x, t) - target).square().mean(dim=-1)
        expected |= dict(zip(own, torch.autograd.grad((weights * errors).mean(), list(own.values())), strict=True))
    agent.optimizer.zero_grad()
    agent.loss(batch, noise)[0].backward()
    assert expected.keys() == agent.trained.keys()
    for name, parameter in agent.trained.items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-14, msg=name)


def test_weights_are_those_of_dipole():
    batch = scored_batch()
    advantage = batch["rewards"] - batch["state_values"]
    for weighting in ("sigmoid", "exponential", "indicator", "none"):
        config = DIPOLEConfig(weighting=weighting, inverse_temperature=2.0, shift=0.3)
        expected = policy_weights(config, advantage)
        agent = finetuning(weighting=weighting)
        metrics = agent.update(batch)
        torch.testing.assert_close(metrics["actor/weight_mean"], expected[0].mean())
        assert agent.adapters == ("positive", "negative")[: len(expected)]
        assert ("actor/negative_loss" in metrics) == (len(expected) == 2)
    assert finetuning().batch_fields == ("state_values",)


def test_a_z_score_is_the_advantage_over_the_groups_deviation():
    batch, agent = scored_batch(), finetuning(z_score=True)
    assert agent.batch_fields == ("state_values", "state_deviations")
    z = (batch["rewards"] - batch["state_values"]) / (batch["state_deviations"] + 1e-6)
    metrics = agent.update(batch)
    torch.testing.assert_close(metrics["actor/weight_mean"], torch.sigmoid(2.0 * z + 0.3).mean())
    torch.testing.assert_close(metrics["actor/advantage_std"], z.std(correction=0))
    same = batch | {"rewards": batch["state_values"], "state_deviations": torch.zeros(16)}
    torch.testing.assert_close(agent.update(same)["actor/weight_mean"], torch.tensor(0.3).sigmoid())
    with pytest.raises(ValueError, match="state_deviations must be"):
        agent.update({name: column for name, column in batch.items() if name != "state_deviations"})


WHOLE = dict(stage="finetune_all", weighting="exponential", max_weight=None, z_score=True, inverse_temperature=1.0)


def test_the_whole_decoder_trains_by_exp_z():
    """As HDP-navsim trains its own: mean(exp(z) |f - y|^2), by every weight of the one base."""
    agent, batch = finetuning(**WHOLE).double(), scored_batch(torch.float64)
    assert agent.trained.keys() == {f"base.{name}" for name, _ in new_base().named_parameters()}
    assert torch.equal(agent.base_sha256, fingerprint(new_base()))
    noise = agent.draw(16)
    x = (1 - noise["t"]) * noise["noise"] + noise["t"] * batch["actions"]
    errors = new_base().double()(batch["observations"], x, noise["t"]) - batch["actions"] + noise["noise"]
    z = (batch["rewards"] - batch["state_values"]) / (batch["state_deviations"] + 1e-6)
    loss, metrics = agent.loss(batch, noise)
    torch.testing.assert_close(loss, (z.exp() * errors.square().mean(dim=-1)).mean(), rtol=1e-10, atol=0)
    assert "actor/negative_loss" not in metrics
    agent.update(batch)
    start = new_base().double().state_dict()
    assert not [name for name, value in agent.base.named_parameters() if torch.equal(value, start[name])]
    alone = finetuning(**WHOLE | {"weighting": "sigmoid", "shift": 0.0}).double()  # pi+ without pi-
    expected = (z.sigmoid() * errors.square().mean(dim=-1)).mean()
    torch.testing.assert_close(alone.loss(batch, noise)[0], expected, rtol=1e-10, atol=0)


def test_only_the_seed_decides_the_adapters():
    def adapters(seed, global_seed):
        torch.manual_seed(global_seed)
        return {name: parameter.detach() for name, parameter in trained(seed=seed).trained.items()}

    assert_equal_states(adapters(0, 1), adapters(0, 2))
    first, second = adapters(0, 1), adapters(1, 1)
    assert all(not torch.equal(first[name], second[name]) for name in first)


# ---- Eq. 10 ----


@pytest.mark.parametrize("process", ["flow", "diffusion"])
def test_before_training_every_greediness_acts_as_the_base(process):
    config = dataclasses.replace(PRETRAIN, process=process)
    pretrained = DIPOLELoRA(config, 3, 2)
    pretrained.base.load_state_dict(new_base().state_dict())
    agent, expected = finetuning(process=process), acted(pretrained)
    for greediness in (-1.0, 0.0, 0.5, 3.0):
        torch.testing.assert_close(acted(agent, greediness=greediness), expected, rtol=0, atol=1e-5)
    assert torch.equal(acted(agent, greediness=0.0), expected)


def test_prediction_is_the_linear_rule_of_two_bases_with_the_adapters_merged():
    """W + (alpha / rank) B A written into two full copies of the base, which know no adapters."""
    agent = trained().double()
    x, t = torch.randn(5, 2).double(), torch.rand(5, 1).double()
    copies = {}
    for adapter in ("positive", "negative"):
        copy = new_base().double()
        for name, module in copy.named_modules():
            prefix = f"base.{name}.lora_"
            if f"{prefix}A.{adapter}.weight" in agent.trained:
                a, b = (agent.trained[f"{prefix}{part}.{adapter}.weight"] for part in "AB")
                module.weight.data += FINETUNE.adapter_alpha / FINETUNE.adapter_rank * b @ a
        copies[adapter] = copy(STATES.double(), x, t)
    assert (copies["positive"] - copies["negative"]).abs().max() > 1e-4
    for greediness in (-1.0, 0.0, 0.5, 2.0):
        expected = (1 + greediness) * copies["positive"] - greediness * copies["negative"]
        prediction = agent.predict(STATES.double(), x, t, greediness)
        torch.testing.assert_close(prediction, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("greediness", [0.0, -1.0, 2.0])
def test_samplers_are_those_of_the_other_two_files(greediness):
    """The same draws through their samplers, whose networks are stand-ins that ask this agent."""

    class Stack(nn.Module):
        def __init__(self, agent, time_of):
            super().__init__()
            self.agent, self.time_of = [agent], time_of

        def forward(self, states, x, t, member=None):
            (agent,) = self.agent
            both = torch.stack([agent.predict(states, x, self.time_of(t), omega) for omega in (0.0, -1.0)])
            return both if member is None else both[member, None]

    def level(features):  # of the slowest of its sinusoids
        return (torch.atan2(features[:, 7:8], features[:, 15:16]) * 1e4).round()

    states, draws = STATES.double(), torch.Generator().manual_seed(1)
    flow, other = trained().double(), DIPOLE(DIPOLEConfig(), 3, 2)
    noise = torch.randn(5, 2, generator=draws, dtype=torch.float64)
    flow.noise.normal = lambda *shape: noise
    other.flow = Stack(flow, lambda t: t)
    expected = other.sample(states, noise[:, None], greediness, 4)[:, 0]
    actions = flow.act(states, greediness=greediness, sampling_steps=4)
    torch.testing.assert_close(actions, expected, rtol=0, atol=1e-10)

    class NearlyNoise(OwnPlanner):  # x is mostly noise; other predictions end at the bounds, where all samplers agree
        def forward(self, observations, x, t):
            return x + 0.1 * super().forward(observations, x, t)

    torch.manual_seed(0)
    config = dataclasses.replace(FINETUNE, process="diffusion", stochasticity=0.7, target_modules=("first", "second"))
    diffusion = DIPOLELoRA(config, 3, 2, base=NearlyNoise())
    other = DIPOLEDiffusion(DIPOLEDiffusionConfig(stochasticity=0.7), 3, 2)
    for _ in range(3):
        diffusion.update(scored_batch())
    diffusion.double()
    noises = torch.randn(5, 5, 2, generator=draws, dtype=torch.float64)
    diffusion.noise.normal = lambda *shape: noises
    other.denoiser = Stack(diffusion, level)
    expected = other.sample(states, noises[:, None], greediness)[:, 0]
    assert (expected.abs() < 1).any()
    actions = diffusion.act(states, greediness=greediness, sampling_steps=4)
    torch.testing.assert_close(actions, expected, rtol=0, atol=1e-10)


class Gaussian(nn.Module):
    """The noise prediction of actions from N(MEAN, DEVIATION^2), in closed form; remembers where it was asked."""

    MEAN, DEVIATION, LEVELS = 0.3, 0.2, 64

    def __init__(self):
        super().__init__()
        self.unused, self.asked = nn.Parameter(torch.zeros(1)), []

    def forward(self, observations, x, t):
        self.asked.append((float(t[0]), x))
        level = signal_level(t, self.LEVELS)
        return (1 - level).sqrt() * (x - level.sqrt() * self.MEAN) / self.variance(level)

    def variance(self, level):
        return level * self.DEVIATION**2 + 1 - level

    def exact(self, start, t: float):
        """Where the flow without noise takes `start` from the top level to level t."""
        top, level = (signal_level(torch.tensor(each).double(), self.LEVELS) for each in (self.LEVELS, t))
        standard = (start - top.sqrt() * self.MEAN) / self.variance(top).sqrt()
        return level.sqrt() * self.MEAN + self.variance(level).sqrt() * standard


def gaussian_sampler(second_order: bool) -> DIPOLELoRA:
    fields = {
        "process": "diffusion",
        "diffusion_steps": Gaussian.LEVELS,
        "stochasticity": 0.0,
        "second_order": second_order,
    }
    return DIPOLELoRA(DIPOLELoRAConfig(**fields), 3, 2, base=Gaussian()).double()


@pytest.mark.parametrize("order", [1, 2])
def test_the_order_of_the_samplers(order):
    """The error half way, at a level that every number of steps meets, falls by 2^order when the steps double."""
    errors = []
    for steps in (8, 16, 32, 64):
        agent = gaussian_sampler(second_order=order == 2)
        agent.act(STATES.double(), sampling_steps=steps)
        asked = dict(agent.base.asked)
        half = Gaussian.LEVELS / 2
        errors.append(float((asked[half] - agent.base.exact(asked[Gaussian.LEVELS], half)).abs().max()))
    ratios = [coarse / fine for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert all(0.85 * 2**order < ratio < 1.2 * 2**order for ratio in ratios[1:]), (errors, ratios)


def test_dpm_solver_is_the_published_update():
    """DPM-Solver++(2M) as its paper writes it, in log SNRs and exponentials, on the same Gaussian."""
    agent, steps = gaussian_sampler(second_order=True), 8
    actions = agent.act(STATES.double(), sampling_steps=steps)
    asked, model = list(agent.base.asked), Gaussian()
    x, past = asked[0][1], None
    for step, (level, seen) in enumerate(asked):
        torch.testing.assert_close(x, seen, rtol=1e-10, atol=1e-12)
        ts = torch.tensor([level + Gaussian.LEVELS / steps, level, level - Gaussian.LEVELS / steps]).double()
        alpha, sigma = signal_level(ts, Gaussian.LEVELS).sqrt(), (1 - signal_level(ts, Gaussian.LEVELS)).sqrt()
        clean = (x - sigma[1] * model(None, x, ts[1:2, None])) / alpha[1]
        if step == steps - 1:
            torch.testing.assert_close(actions, clean, rtol=1e-10, atol=1e-12)
            break
        lambdas = (alpha / sigma).log()
        h, ratio = lambdas[2] - lambdas[1], (lambdas[1] - lambdas[0]) / (lambdas[2] - lambdas[1])
        data = clean if past is None else (1 + 1 / (2 * ratio)) * clean - past / (2 * ratio)
        x, past = sigma[2] / sigma[1] * x - alpha[2] * torch.expm1(-h) * data, clean
    assert (actions.abs() < 1).all()


def test_dpm_solver_of_one_or_two_steps_is_ddim():
    """Its first and last step are of first order."""

    def actions(second_order, steps):
        agent = gaussian_sampler(second_order)
        agent.noise.generator.manual_seed(5)
        return agent.act(STATES.double(), sampling_steps=steps)

    for steps in (1, 2):
        torch.testing.assert_close(actions(True, steps), actions(False, steps), rtol=1e-12, atol=1e-12)
    assert (actions(True, 3) - actions(False, 3)).abs().max() > 1e-4


def test_cost_of_an_action():
    agent = finetuning()
    assert network_evaluations(agent) == 10
    assert network_evaluations(agent, greediness=0.5, sampling_steps=4) == 8


# ---- What is saved ----


def test_save_and_load_continue_bit_for_bit(tmp_path):
    agent = trained(seed=3)
    torch.save(state_of(agent), tmp_path / "state.pt")
    copy = finetuning(seed=4)
    restore(copy, torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        agent.update(scored_batch())
        copy.update(scored_batch())
    assert_equal_states(state_of(agent), state_of(copy))
    assert torch.equal(acted(agent, greediness=1.0), acted(copy, greediness=1.0))


def test_a_checkpoint_holds_adapters_but_no_base(tmp_path):
    wide = dataclasses.replace(PRETRAIN, planner_width=128)
    base = new_base(config=wide)
    torch.save(base.state_dict(), tmp_path / "base.pt")
    agent = DIPOLELoRA(dataclasses.replace(FINETUNE, planner_width=128, adapter_rank=1), 3, 2, base=base)
    agent.update(scored_batch())
    state = state_of(agent)
    torch.save(state, tmp_path / "adapters.pt")
    names = state["networks"].keys() - {"base_sha256"}
    assert names and all(re.search(r"\.lora_[AB]\.(positive|negative)\.weight$", name) for name in names)
    sizes = {name: (tmp_path / f"{name}.pt").stat().st_size for name in ("base", "adapters")}
    assert sizes["adapters"] < 0.2 * sizes["base"], sizes  # with both moments of Adam


def test_adapters_of_another_base_or_other_layers_are_refused():
    state = trained().state_dict()
    other = DIPOLELoRA(FINETUNE, 3, 2, base=new_base(seed=1))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="base has another sha256 than the one that the checkpoint was trained from"):
        other.load_state_dict(state)
    assert_equal_states(other.state_dict(), before)
    with pytest.raises(ValueError, match="target_modules: the adapters of the checkpoint are of other layers"):
        finetuning(target_modules=("mlp_input",)).load_state_dict(state)


def test_every_number_of_the_base_is_in_its_fingerprint():
    base = new_base()
    first = fingerprint(base)
    for parameter in base.parameters():
        parameter.data.view(-1)[-1] += 1e-3
        assert not torch.equal(fingerprint(base), first)
        parameter.data.copy_(new_base().state_dict()[next(n for n, p in base.named_parameters() if p is parameter)])
    assert fingerprint(base).tolist() == first.tolist() == fingerprint(new_base()).tolist()


# ---- From run to run ----


def train(tmp_path, label: str = "dipole_lora", **fields) -> Path:
    """A run of six updates on the toy task with scored actions; returns its folder."""
    steps = {"offline_steps": 6, "log_interval": 3, "checkpoint_interval": 3, "eval_interval": 6, "eval_episodes": 2}
    run = RunConfig(task="toy/point", label=label, run_dir=str(tmp_path / "runs"), device="cpu", threads=1, **steps)
    task = toy_task()
    task.dataset.columns |= {"state_values": task.dataset.rewards / 2, "state_deviations": task.dataset.rewards.abs()}
    result = train_run(DIPOLELoRA, run, DIPOLELoRAConfig(**PLANNER, **fields), task=task)
    assert result["step"] == 6
    return run_path(run)


@pytest.fixture
def base_run(tmp_path) -> Path:
    """The folder of a pre-training run on the toy task."""
    return train(tmp_path, label="base")


def test_pretraining_then_finetuning_through_the_harness(base_run, tmp_path):
    pretrained = DIPOLELoRA.load(base_run)
    config = DIPOLELoRAConfig(stage="finetune", base=str(base_run), adapter_rank=2, **PLANNER)
    agent = DIPOLELoRA(config, 3, 2)
    assert torch.equal(agent.base_sha256, fingerprint(pretrained.base))
    assert torch.equal(acted(agent), acted(pretrained))
    folder = train(tmp_path, stage="finetune", base=str(base_run), adapter_rank=2)
    first, second = DIPOLELoRA.load(folder), DIPOLELoRA.load(folder, base=DIPOLELoRA.load(base_run).base)
    assert torch.equal(acted(first, greediness=1.0), acted(second, greediness=1.0))
    assert not torch.equal(acted(first, greediness=1.0), acted(agent, greediness=1.0))
    for path in (base_run, base_run / "checkpoint.pt"):
        planner = make_planner(dataclasses.replace(config, base=str(path)), 3, 2, torch.Generator())
        assert torch.equal(planner.output.weight, pretrained.base.output.weight)


def test_a_planner_that_was_tuned_whole_is_saved_whole_and_is_a_base(base_run, tmp_path):
    whole = train(tmp_path, label="whole", base=str(base_run), **WHOLE)
    agent = DIPOLELoRA.load(whole)
    start = DIPOLELoRA.load(base_run).base.state_dict()
    assert not any(torch.equal(value, start[name]) for name, value in agent.base.state_dict().items())
    adapted = DIPOLELoRA(DIPOLELoRAConfig(stage="finetune", base=str(whole), **PLANNER), 3, 2)
    assert torch.equal(adapted.base_sha256, fingerprint(agent.base))
    assert torch.equal(acted(adapted), acted(agent))


def test_a_base_that_was_trained_on_is_refused(base_run, tmp_path):
    folder = train(tmp_path, stage="finetune", base=str(base_run), adapter_rank=2)
    checkpoint = torch.load(base_run / "checkpoint.pt", weights_only=True)
    checkpoint["agent"]["networks"]["base.output.bias"] += 1
    torch.save(checkpoint, base_run / "checkpoint.pt")
    with pytest.raises(ValueError, match="base has another sha256"):
        DIPOLELoRA.load(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda run: run.joinpath("checkpoint.pt").unlink(), r"cannot be loaded|can be loaded .*No such file"),
        (lambda run: run.joinpath("checkpoint.pt").write_bytes(b"x"), "is no run of dipole_lora.py that can be loaded"),
    ],
)
def test_an_absent_or_damaged_base_is_one_sentence_before_anything_is_written(base_run, tmp_path, change, message):
    change(base_run)
    with pytest.raises(UserError, match=message) as raised:
        train(tmp_path, stage="finetune", base=str(base_run))
    assert "\n" not in str(raised.value) and str(base_run) in str(raised.value)
    assert not (tmp_path / "runs" / "dipole_lora").exists()


def test_a_base_of_another_kind_is_refused(base_run, tmp_path):
    def refusal(observation_dim=3, base=base_run, **fields):
        config = DIPOLELoRAConfig(**PLANNER | {"stage": "finetune", "base": str(base)} | fields)
        with pytest.raises(ValueError) as raised:
            DIPOLELoRA(config, observation_dim, 2)
        return str(raised.value)

    assert "has observations and actions of (3, 2) numbers, not (4, 2)" in refusal(observation_dim=4)
    assert re.match(r"planner_width of the planner in .* is 16; set planner_width to that", refusal(planner_width=32))
    assert re.match(r"process of the planner in .* is flow", refusal(process="diffusion"))
    adapted = train(tmp_path, stage="finetune", base=str(base_run), adapter_rank=2)
    assert "has adapters; name the folder of a run with stage pretrain" in refusal(base=adapted)
    dipole = DIPOLE(DIPOLEConfig(), 3, 2)
    sizes = {"observation_dim": 3, "action_dim": 2, "agent": {"networks": dipole.state_dict()}}
    torch.save({"config": dataclasses.asdict(dipole.config), **sizes}, base_run / "checkpoint.pt")
    assert "is no run of dipole_lora.py that can be loaded" in refusal()


# ---- Modules of one's own ----


def test_any_module_of_the_described_signature_is_a_base():
    base = OwnPlanner()
    agent = DIPOLELoRA(dataclasses.replace(FINETUNE, target_modules=("first", "second")), 3, 2, base=base)
    assert not any(module.training for module in base.modules())
    before = acted(agent, greediness=1.0)
    for _ in range(3):
        metrics = agent.update(scored_batch())
    assert metrics["actor/policy_distance"] > 0
    assert not torch.equal(acted(agent, greediness=1.0), before)
    assert torch.equal(acted(agent, greediness=1.0), acted(agent, greediness=1.0))


@pytest.mark.parametrize("layer", ["linear1", "out_proj"])
def test_layers_that_are_not_called_are_refused(layer):
    """torch's encoder reads the weights of linear1 (its fast path) and of out_proj (attention) and calls neither."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.output = nn.Linear(6, 8), nn.Linear(8, 2)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, observations, x, t):
            tokens = self.embedding(torch.cat([observations, x, t], dim=-1))[:, None]
            return self.output(self.layer(tokens)[:, 0])

    agent = DIPOLELoRA(dataclasses.replace(FINETUNE, target_modules=("output", layer)), 3, 2, base=Encoder())
    for use in (lambda: agent.update(scored_batch()), lambda: agent.act(STATES)):
        with pytest.raises(ValueError, match=rf"target_modules: layer\S*{layer} is read, not called"):
            use()


def test_adapters_that_only_sampling_would_skip_are_refused():
    class Skips(OwnPlanner):
        def forward(self, observations, x, t):
            if torch.is_grad_enabled():
                return super().forward(observations, x, t)
            hidden = torch.cat([observations, x, t], dim=-1) @ self.first.weight.T
            return self.second((hidden + self.first.bias).relu())

    agent = DIPOLELoRA(dataclasses.replace(FINETUNE, target_modules=("first", "second")), 3, 2, base=Skips())
    agent.update(scored_batch())
    with pytest.raises(ValueError, match="first is read, not called"):
        agent.act(STATES)


class DiT(nn.Module):
    """Blocks of self-attention, attention to the observation and an MLP, with the layer names of a DiT decoder."""

    class Block(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.attn, self.mlp, self.cross_attn = nn.Module(), nn.Module(), nn.Module()
            self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
            for name in ("proj_q", "proj_k", "proj_v", "proj"):
                setattr(self.cross_attn, name, nn.Linear(width, width))
            self.adaLN = nn.Linear(width, width)  # of the time; not adapted

        def forward(self, plan, context, time):
            plan = plan + self.adaLN(time)
            query, key, value = self.attn.qkv(plan).chunk(3, dim=-1)
            plan = plan + self.attn.proj(nn.functional.scaled_dot_product_attention(query, key, value))
            inputs = self.cross_attn.proj_q(plan), self.cross_attn.proj_k(context), self.cross_attn.proj_v(context)
            plan = plan + self.cross_attn.proj(nn.functional.scaled_dot_product_attention(*inputs))
            return plan + self.mlp.fc2(self.mlp.fc1(plan).relu())

    def __init__(self, width: int = 8):
        super().__init__()
        self.embed, self.context, self.time = nn.Linear(1, width), nn.Linear(1, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList(DiT.Block(width) for _ in range(2))
        self.final = nn.Linear(width, 1)

    def forward(self, observations, x, t):
        plan, context, time = self.embed(x[..., None]), self.context(observations[..., None]), self.time(t[..., None])
        for block in self.blocks:
            plan = block(plan, context, time)
        return self.final(plan)[..., 0]


def test_the_projections_of_a_dit_are_adapted_and_train():
    """Those that HDP-navsim adapts: of self-attention, MLP and cross-attention, in each block, and nothing else."""
    targets = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    targets += tuple(f"cross_attn.{name}" for name in ("proj_q", "proj_k", "proj_v", "proj"))
    config = DIPOLELoRAConfig(stage="finetune", process="diffusion", target_modules=targets, learning_rate=1e-2)
    torch.manual_seed(0)
    agent = DIPOLELoRA(config, 3, 2, base=DiT())
    adapted = {name.removeprefix("base.").split(".lora_")[0] for name in agent.trained}
    assert adapted == {f"blocks.{block}.{target}" for block in range(2) for target in targets}
    assert (config.adapter_rank, config.adapter_alpha) == (64, 16.0)
    start = {name: parameter.detach().clone() for name, parameter in agent.named_parameters()}
    losses = []
    for _ in range(200):
        metrics = agent.update(scored_batch())
        losses.append(float(metrics["actor/positive_loss"] + metrics["actor/negative_loss"]))
    for name, parameter in agent.named_parameters():
        assert torch.equal(parameter, start[name]) == (name not in agent.trained), name
    assert sum(losses[-50:]) < 0.9 * sum(losses[:50])


def test_bases_that_do_not_fit_are_refused():
    def refusal(base, **changes):
        with pytest.raises(ValueError) as raised:
            DIPOLELoRA(dataclasses.replace(FINETUNE, **changes), 3, 2, base=base)
        return str(raised.value)

    assert refusal(OwnPlanner(), target_modules=("fist",)) == (
        "target_modules: the base has no linear layer 'fist'; choose among first, second"
    )
    assert "stage finetune needs one" in refusal(None)
    used = OwnPlanner()
    DIPOLELoRA(dataclasses.replace(FINETUNE, target_modules=("first",)), 3, 2, base=used)
    assert "the base has no linear layer 'first'; choose among first.base_layer" in refusal(
        used, target_modules=("first",)
    )
    flat = OwnPlanner()
    flat.second = nn.Linear(8, 1)
    agent = DIPOLELoRA(dataclasses.replace(FINETUNE, target_modules=("first",)), 3, 2, base=flat)
    for use in (lambda: agent.update(scored_batch()), lambda: agent.act(STATES[:1].expand(16, 3))):
        with pytest.raises(ValueError, match=re.escape("base predicts [16, 1] for actions [16, 2]")):
            use()


def test_the_copied_file_alone_adapts_a_module(tmp_path):
    """In isolated mode from an empty folder; the example of docs/dipole_lora.md."""
    shutil.copy(ROOT / "algorithms" / "dipole_lora.py", tmp_path)
    page = (ROOT / "docs" / "dipole_lora.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
{example}
print(tuple(actions.shape), sorted(metrics))
assert not {{"envs", "harness", "pyrallis"}} & set(sys.modules)
try:
    DIPOLELoRA(DIPOLELoRAConfig(stage="finetune"), 6, 2)
except ValueError as error:
    print(error)
"""
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith("(4, 2) ['actor/"), done.stderr
    assert "base: stage finetune needs one" in done.stdout


# ---- The command ----


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"base": "runs"}, "base is runs, but stage pretrain trains one; set stage to finetune"),
        ({"process": "diffusion", "sampling_steps": 11}, "sampling_steps is 11; it is at most diffusion_steps"),
        ({"stage": "finetune", "weighting": "none", "greediness": 1.0}, "trains one policy; set greediness to 0"),
        ({"stage": "finetune", "greediness": -2.0}, "greediness is -2; it starts at -1"),
        ({"greediness": 1.0}, "greediness is 1; stage pretrain has one policy, set it to 0"),
        ({"stage": "finetune_all", "greediness": 1.0}, "greediness is 1; stage finetune_all has one policy"),
        ({"second_order": True, "stochasticity": 0.0}, "second_order is true; it needs process diffusion"),
        ({"second_order": True, "process": "diffusion"}, "second_order is true; it needs .* stochasticity 0"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DIPOLELoRAConfig(**fields)


def test_a_planner_in_pretraining_acts_with_one_greediness():
    with pytest.raises(ValueError, match="greediness is 1; stage pretrain has one policy"):
        DIPOLELoRA(PRETRAIN, 3, 2).act(STATES, greediness=1.0)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"token_sizes": (2, 2)}, "token_sizes sum to 4, but an observation has 3 numbers"),
        ({"planner_width": 18, "planner_heads": 4}, "planner_width is 18; make it a multiple of planner_heads"),
    ],
)
def test_planners_that_cannot_be_built_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DIPOLELoRA(dataclasses.replace(PRETRAIN, **fields), 3, 2)


def test_the_planner_has_the_time_features_of_the_diffusion():
    """The planner's file is no algorithm's, so that `python -m tests.sync_blocks` does not copy into it."""
    assert inspect.getsource(_planner.time_features) == inspect.getsource(dipole_diffusion.time_features)
    for name in ("TIME_FEATURES", "FREQUENCY_RANGE"):
        assert getattr(_planner, name) == getattr(dipole_diffusion, name)


def test_tokens_of_one_size_in_a_row_share_an_embedding():
    planner = Planner(dataclasses.replace(PRETRAIN, token_sizes=(1, 2, 2, 1)), 6, 2, torch.Generator())
    assert [tuple(embedding.weight.shape) for embedding in planner.embeddings] == [(16, 1), (16, 2), (16, 1)]
    assert planner.positions.shape == (5, 16)
    assert planner(torch.zeros(7, 6), torch.zeros(7, 2), torch.zeros(7, 1)).shape == (7, 2)


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "algorithms/dipole_lora.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_both_stages_by_their_commands(tmp_path):
    """On the driving scenes of the tests, from pre-training to a fine-tuned planner's checkpoint."""
    shutil.copytree(SCENES, tmp_path / "scenes")
    short = ["--data_dir", str(tmp_path / "scenes"), "--run_dir", str(tmp_path / "runs"), "--batch_size", "16"]
    short += ["--offline_steps", "4", "--log_interval", "2", "--eval_interval", "4", "--eval_episodes", "2"]
    short = ["--task", "driving/bandit", *short]
    done = command("--variant", "base", *short)
    base = tmp_path / "runs" / "dipole_lora_base" / "driving" / "bandit" / "seed_0"
    assert done.returncode == 0 and (base / "result.json").exists(), done.stderr
    second = [*short, "--base", str(base)]
    done = command(*second)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "dipole_lora" / "driving" / "bandit" / "seed_0"
    assert (folder / "greediness.csv").exists()  # of the settings' sweep
    assert (folder / "checkpoint.pt").exists() and "actor/policy_distance" in (folder / "train.csv").read_text()
