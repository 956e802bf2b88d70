"""The baselines of the fql repository: published figures, parameters and targets, acting."""

from pathlib import Path

import pytest
import torch

from common.errors import UserError
from harness.agent_tools import validation_metrics
from harness.algorithms import load_algorithm
from tests.golden import fql_family

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
CASES = ("iql_awr", "iql_ddpgbc", "fql", "ifql", "rebrac")
OBSERVATION_DIM, ACTION_DIM, BATCH = 5, 2, 8
SMALL = {"actor_hidden_dims": (16, 16, 16), "value_hidden_dims": (16, 16), "actor_layer_norm": True}
VARIANTS = {
    "iql": ("iql", {}),
    "iql-ddpgbc": ("iql", {"extraction": "ddpgbc", "value_layer_norm": False}),
    "ifql": ("ifql", {"num_candidates": 3, "flow_steps": 2}),
    "fql": ("fql", {"flow_steps": 2}),
    "fql-min": ("fql", {"flow_steps": 2, "pessimism": None, "normalise_q_loss": True}),
    "rebrac": ("rebrac", {"actor_interval": 1}),
    "rebrac-delayed": ("rebrac", {"actor_bc_weight": 0.5, "critic_bc_weight": 0.3}),
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    """(algorithm name, config fields) of each variant in turn."""
    name, fields = VARIANTS[request.param]
    return name, SMALL | fields


def make_agent(name, fields):
    algorithm = load_algorithm(name)
    return algorithm.agent_class(algorithm.config_class(**fields), OBSERVATION_DIM, ACTION_DIM).double()


def make_batch(seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "observations": normal(BATCH, OBSERVATION_DIM),
        "actions": normal(BATCH, ACTION_DIM).tanh(),
        "rewards": normal(BATCH),
        "masks": (normal(BATCH) > -1).double(),
        "next_observations": normal(BATCH, OBSERVATION_DIM),
        "next_actions": normal(BATCH, ACTION_DIM).tanh(),
    }


@pytest.mark.parametrize("name, field", [("iql", "const_std"), ("rebrac", "tanh_squash")])
def test_refuses_a_case_of_another_policy(name, field):
    with pytest.raises(UserError, match=f"config.{field} of the case is False"):
        fql_family.ADAPTERS[name].config_fields({"agent_name": name, field: False})


def test_adapters_name_every_parameter_of_deeper_networks(variant):
    name, fields = variant
    agent = make_agent(name, fields)
    named = fql_family.ADAPTERS[name].parameters(agent)
    assert sum(view.numel() for view in named.values()) == sum(each.numel() for each in agent.parameters())


def test_ifql_takes_the_candidate_that_the_smaller_critic_prefers():
    agent = make_agent("ifql", SMALL)
    observations = make_batch(1)["observations"]
    state = agent.noise.generator.get_state()
    chosen = agent.act(observations, num_candidates=4, flow_steps=3)
    agent.noise.generator.set_state(state)
    candidates = agent.noise.normal(BATCH, 4, ACTION_DIM)
    for row in range(BATCH):
        rows = observations[row].expand(4, -1)
        x = candidates[row]
        for step in range(3):
            x = x + agent.flow(rows, x, torch.full((4, 1), step / 3).double())[0] / 3
        x = x.clamp(-1, 1)
        q = agent.critic(rows, x).squeeze(-1).min(dim=0).values
        torch.testing.assert_close(chosen[row], x[q.argmax()].detach())


def test_fql_options_follow_their_formulas():
    fields = SMALL | {"flow_steps": 2, "pessimism": None, "normalise_q_loss": True}
    agent, batch = make_agent("fql", fields), make_batch(1)
    noise = agent.draw(BATCH)
    _, metrics = agent.loss(batch, noise)

    def q(critic, observations, actions):
        return critic(batch[observations], actions).squeeze(-1)

    def policy(observations, z):
        return agent.policy(batch[observations], z)[0].clamp(-1, 1)

    next_q = (
        q(agent.target_critic, "next_observations", policy("next_observations", noise["next_z"][:, 0]))
        .min(dim=0)
        .values
    )
    errors = q(agent.critic, "observations", batch["actions"]) - (batch["rewards"] + 0.99 * batch["masks"] * next_q)
    torch.testing.assert_close(metrics["critic/loss"], errors.square().mean().detach())
    policy_q = q(agent.critic, "observations", policy("observations", noise["z"])).mean(dim=0)
    torch.testing.assert_close(metrics["actor/q_loss"], (-policy_q.mean() / policy_q.abs().mean()).detach())


def test_rebrac_validates_at_the_present_parameters():
    """The metrics are the same whether the present update moves the policy or not."""
    agent = make_agent("rebrac", SMALL | {"critic_bc_weight": 0.3})
    before = validation_metrics(agent, make_batch(9))
    agent.updates += 1
    assert validation_metrics(agent, make_batch(9)) == before
