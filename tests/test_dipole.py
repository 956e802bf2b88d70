"""What is DIPOLE's own: its weights, its composition, the options of acting, safety inside a CUDA graph."""

import dataclasses

import pytest
import torch

from algorithms.baselines.dql import resample
from algorithms.dipole import DIPOLE, DIPOLEConfig, policy_weights
from examples.resample import ResamplingConfig, ResamplingDIPOLE, effective_sample_size
from harness.agent_tools import state_of
from harness.algorithms import load_algorithm
from tests.test_agents import make_agent as agent_of
from tests.toy import random_batch

SMALL = DIPOLEConfig(actor_hidden_dims=(16, 16), value_hidden_dims=(16, 16), num_candidates=4)


def make_agent(**changes) -> DIPOLE:
    return DIPOLE(dataclasses.replace(SMALL, **changes), observation_dim=3, action_dim=2)


def test_weights_by_hand():
    advantage = torch.tensor([-1.0, 0.0, 2.0])
    sigmoid = 1 / (1 + torch.exp(-(3 * advantage + 0.5)))

    def weights(weighting, max_weight=100.0):
        config = DIPOLEConfig(weighting=weighting, inverse_temperature=3.0, shift=0.5, max_weight=max_weight)
        return policy_weights(config, advantage)

    torch.testing.assert_close(weights("sigmoid"), torch.stack([sigmoid, 1 - sigmoid]))
    torch.testing.assert_close(weights("imitation"), torch.stack([sigmoid, torch.ones(3)]))
    exponential = torch.exp(torch.tensor([[-3.0, 0.0, 6.0]]))
    torch.testing.assert_close(weights("exponential", None), exponential)
    torch.testing.assert_close(weights("exponential"), exponential.clamp(max=100.0))
    assert weights("indicator").tolist() == [[0, 1, 1], [1, 1, 1]]
    assert weights("none").tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("max_weight", [2.0, None])
def test_metrics_describe_the_weights(max_weight):
    options = {"advantage": "group", "inverse_temperature": 3.0, "greediness": 0.0}
    agent = make_agent(weighting="exponential", max_weight=max_weight, **options)
    batch = random_batch() | {"state_values": torch.linspace(-1, 1, 16)}
    weights = torch.exp(3.0 * (batch["rewards"] - batch["state_values"])).clamp(max=max_weight or float("inf"))
    assert weights.amax() == 2.0 or (max_weight is None and weights.amax() > 2.0)
    metrics = agent.update(batch)
    torch.testing.assert_close(metrics["actor/weight_mean"], weights.mean())
    torch.testing.assert_close(metrics["actor/weight_std"], weights.std(correction=0))
    torch.testing.assert_close(metrics["actor/weight_max"], weights.amax())


@pytest.mark.parametrize("name", ["dipole", "dipole_diffusion"])
def test_group_advantage_is_the_reward_above_the_group_and_needs_no_critic(name):
    agent = agent_of(load_algorithm(name), advantage="group", inverse_temperature=3.0, shift=0.5)
    assert agent.batch_fields == ("state_values",)
    batch = random_batch() | {"state_values": torch.linspace(-1, 1, 16)}
    weights = torch.sigmoid(3.0 * (batch["rewards"] - batch["state_values"]) + 0.5)
    torch.testing.assert_close(agent.update(batch)["actor/weight_mean"], weights.mean())
    assert make_agent().batch_fields == ()


def test_saturated_weights_are_counted():
    """sigma(beta A + k) within 0.01 of 0 or 1, |beta A + k| above 4.6, with A the reward above the state's value."""
    agent = make_agent(advantage="group", inverse_temperature=2.0, shift=1.0)
    advantage = torch.tensor([1.7, 1.9, -2.7, -2.9] * 4)  # logits 4.4, 4.8, -4.4, -4.8
    batch = random_batch() | {"state_values": torch.zeros(16), "rewards": advantage}
    assert agent.update(batch)["actor/weight_saturated"] == 0.5


def test_sampling_follows_a_known_flow():
    """A constant velocity moves x by it in any number of steps, and the end is clipped."""

    class Constant(torch.nn.Module):
        def forward(self, observations, x, t, member):
            return torch.tensor([0.5, 3.0]).expand(1, len(x), 2)

    agent, x0 = make_agent(), torch.tensor([[[0.1, 0.0], [0.2, -4.0]]])
    agent.flow = Constant()
    for steps in (1, 7):
        moved = agent.sample(torch.zeros(1, 3), x0, greediness=0.0, flow_steps=steps)
        torch.testing.assert_close(moved, torch.tensor([[[0.6, 1.0], [0.7, -1.0]]]))


def test_negative_network_is_not_evaluated_without_greediness():
    agent = make_agent()
    with torch.no_grad():
        for parameter in agent.flow.parameters():
            parameter[1] = torch.nan
    assert torch.isfinite(agent.act(torch.zeros(2, 3), greediness=0)).all()
    assert not torch.isfinite(agent.act(torch.zeros(2, 3), greediness=0.5)).all()


def test_resample_draws_by_weight():
    generator = torch.Generator().manual_seed(0)
    log_weights = torch.tensor([0.1, 0.2, 0.7]).log().expand(20_000, 3)
    actions = torch.arange(3.0).view(1, 3, 1).expand(20_000, 3, 1)
    drawn = resample(actions, log_weights, torch.rand(20_000, 3, generator=generator)).squeeze(-1)
    shares = torch.bincount(drawn.long(), minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.7]), atol=0.01, rtol=0)


def test_effective_sample_size_by_hand():
    weights = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [2, 1, 1, 0]])
    torch.testing.assert_close(effective_sample_size(weights.log()), torch.tensor([4.0, 1.0, 16 / 6]))


def test_resampling_follows_the_critics_at_large_greediness_and_pi_plus_at_none():
    agent = ResamplingDIPOLE.of(make_agent(inverse_temperature=50.0), resample_candidates=64, num_candidates=1)
    observations = torch.randn(32, 3)
    actions = agent.sample(observations, torch.randn(32, 64, 2), greediness=0.0, flow_steps=10)
    sizes = {}
    for greediness in (0.0, 4.0):
        config = dataclasses.replace(agent.config, greediness=greediness)
        sizes[greediness] = effective_sample_size(agent.log_weights(observations, actions, config)).mean().item()
    assert sizes[0.0] == pytest.approx(64) and 1 <= sizes[4.0] < 32

    def value(greediness):
        acted = agent.act(observations, greediness=greediness)
        return agent.target_critic(observations, acted).amin(dim=0).mean()

    assert value(100.0) > value(0.0)


def test_best_candidate_is_the_one_the_smallest_critic_values_most():
    """Acting with 64 candidates beats acting with one, by the agent's own smallest critic."""
    agent = make_agent()
    observations = torch.randn(32, 3)

    def smallest(actions):
        return agent.critic(observations, actions).amin(dim=0).mean()

    assert smallest(agent.act(observations, num_candidates=64)) > smallest(agent.act(observations, num_candidates=1))


@pytest.mark.parametrize("name", ["dipole", "dipole_diffusion"])
@pytest.mark.parametrize("weighting, policies", [("sigmoid", 2), ("indicator", 2), ("exponential", 1), ("none", 1)])
def test_only_the_policies_of_the_weighting_exist(name, weighting, policies):
    agent = agent_of(load_algorithm(name), weighting=weighting)
    assert len((agent.flow if name == "dipole" else agent.denoiser).weights[0]) == policies
    assert ("actor/negative_loss" in agent.update(random_batch())) == (policies == 2)


@pytest.mark.parametrize(
    "config_class, changes",
    [
        (DIPOLEConfig, {"greediness": -1.5}),
        (DIPOLEConfig, {"target_greediness": 0.5, "weighting": "none"}),
        (DIPOLEConfig, {"greediness": 1.0, "weighting": "exponential"}),
        (ResamplingConfig, {"greediness": -0.5}),
    ],
)
def test_a_greediness_without_policies_is_refused_by_name(config_class, changes):
    field, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=f"^{field} is {value:g}"):
        config_class(**changes)


def test_acting_refuses_what_the_config_refuses():
    with pytest.raises(ValueError, match="^greediness is 1, but weighting none trains one policy; set greediness to 0"):
        make_agent(weighting="none").act(torch.zeros(1, 3), greediness=1.0)


def test_load_gives_the_agent_of_a_run_back(tmp_path):
    agent = make_agent()
    agent.update(random_batch())
    run_fields = {"task": "toy/point", "composition": "score"}  # a stored config has the run's, and earlier versions'
    checkpoint = {"config": dataclasses.asdict(agent.config) | run_fields, "observation_dim": 3, "action_dim": 2}
    del checkpoint["config"]["num_critics"]  # an earlier version's run has no such field
    torch.save(checkpoint | {"agent": state_of(agent)}, tmp_path / "checkpoint.pt")
    observations = torch.randn(4, 3)
    loaded = DIPOLE.load(tmp_path)
    loaded.noise.generator.set_state(agent.noise.generator.get_state())
    assert torch.equal(loaded.act(observations), agent.act(observations))
