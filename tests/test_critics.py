"""Several critics, their pessimism, and chunks that are not valid, in every algorithm that has critics.

The figures of the QAM repository's FQL, IFQL, ReBRAC and QSM are golden cases (tests/test_golden.py).
"""

import pytest
import torch

from algorithms.dipole import aggregated
from harness.agent_tools import state_of, validation_metrics
from harness.algorithms import algorithm_names, load_algorithm
from tests.test_agents import assert_equal_states, make_agent
from tests.toy import random_batch

VARIANTS = {name: (name, {}) for name in algorithm_names() if name != "dipole_lora"}  # which has no critics
VARIANTS |= {
    "iql_ddpgbc": ("iql", {"extraction": "ddpgbc"}),
    "rebrac": ("rebrac", {"actor_interval": 1, "actor_bc_weight": 0.5, "critic_bc_weight": 0.1}),
    "dipole": ("dipole", {"target_greediness": 1.0, "target_candidates": 3}),
    "ifql_mean": ("ifql", {"critic_reduction": "mean"}),
}
# Terms about the data's actions: all that a chunk which is not valid leaves out.
CLONING = {
    **dict.fromkeys(("dipole", "dipole_diffusion"), ("actor/positive_loss", "actor/negative_loss")),
    **dict.fromkeys(("fql", "ifql", "ifql_mean"), ("actor/flow_loss",)),
    **dict.fromkeys(("rebrac", "dql", "qsm"), ("actor/bc_loss",)),
    "iql": ("actor/loss",),
    "iql_ddpgbc": ("actor/loss",),
}
VALID = torch.tensor([1.0, 1, 0, 1, 1, 1, 0, 1] * 2).double()


def build(variant, **changes):
    name, fields = VARIANTS[variant]
    return make_agent(load_algorithm(name), **fields | changes).double()


def updated(agent, updates=3, **columns):
    """The agent's metrics of the last of some updates on one minibatch with other columns."""
    for _ in range(updates):
        metrics = agent.update(random_batch(dtype=torch.float64) | columns)
    return metrics


def test_aggregation_by_hand():
    q = torch.tensor([[1.0, 5.0], [3.0, 5.0], [8.0, 2.0]]).double()
    assert aggregated(q, None).tolist() == [1, 2]
    assert aggregated(q, 0.0).tolist() == [4, 4]
    torch.testing.assert_close(aggregated(q, 0.5), torch.tensor([4 - 0.5 * (26 / 3) ** 0.5, 4 - 0.5 * 2**0.5]).double())
    assert aggregated(q[:1], 0.5).tolist() == [1, 5]


@pytest.mark.parametrize("variant", VARIANTS)
def test_of_two_critics_the_minimum_is_one_standard_deviation_below_the_mean(variant):
    """For DIPOLE that is the released code: rho 1 in value and weight, 0 in the target."""
    smallest, deviation, mean = (build(variant, pessimism=pessimism) for pessimism in (None, 1.0, 0.0))
    expected, metrics, others = updated(smallest), updated(deviation), updated(mean)
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, atol=1e-10, rtol=1e-10)
    for name, parameter in smallest.state_dict().items():
        torch.testing.assert_close(deviation.state_dict()[name], parameter, atol=1e-10, rtol=1e-10)
    assert any(abs(others[name] - expected[name]) > 1e-4 for name in expected), "pessimism is not read"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("critics", [1, 5])
def test_any_number_of_critics(variant, critics):
    agent = build(variant, num_critics=critics, pessimism=0.5)
    before = agent.critic.weights[0].detach().clone()
    assert len(before) == critics == len(agent.target_critic.weights[0])
    assert all(torch.isfinite(metric) for metric in updated(agent).values())
    assert all((agent.critic.weights[0] != before).flatten(1).any(dim=1))
    assert all(torch.isfinite(parameter).all() for parameter in agent.parameters())
    assert agent.act(torch.zeros(2, 3).double()).shape == (2, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_valid_weights_of_one_change_nothing(variant):
    agent, other = build(variant), build(variant)
    expected, metrics = updated(agent), updated(other, valid=torch.ones(16).double())
    if variant == "qsm":  # which averages each chunk first
        torch.testing.assert_close(metrics, expected)
        return
    assert metrics == expected
    assert_equal_states(state_of(agent), state_of(other))


@pytest.mark.parametrize("variant", VARIANTS)
def test_rewards_of_invalid_chunks_are_not_learned(variant):
    """They enter the critics' loss only, so nothing that an update changes depends on them; those of others count."""
    batch, invalid = random_batch(dtype=torch.float64), VALID == 0
    agents = [build(variant) for _ in range(3)]
    updated(agents[0], valid=VALID)
    updated(agents[1], valid=VALID, rewards=batch["rewards"] + 5 * invalid, masks=batch["masks"] * ~invalid)
    updated(agents[2], valid=VALID, rewards=batch["rewards"] + 5 * ~invalid)
    assert_equal_states(state_of(agents[0]), state_of(agents[1]))
    assert not torch.equal(agents[0].critic.weights[0], agents[2].critic.weights[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_actions_of_invalid_chunks_are_not_cloned(variant):
    agent, batch = build(variant), random_batch(dtype=torch.float64) | {"valid": VALID}
    noise = agent.draw(16)
    for rows, equal in ((VALID == 0, True), (VALID == 1, False)):
        other = batch | {"actions": torch.where(rows[:, None], -batch["actions"], batch["actions"])}
        ours, theirs = (agent.loss(each, noise)[1] for each in (batch, other))
        for name in CLONING[variant]:
            same = torch.isclose(ours[name], theirs[name], atol=1e-12, rtol=0)
            assert same == equal, (name, equal)


def test_an_invalid_chunk_counts_one_in_qsms_losses():
    agent, batch = build("qsm"), random_batch(dtype=torch.float64)
    noise = agent.draw(16)
    metrics = agent.loss(batch | {"valid": torch.zeros(16).double()}, noise)[1]
    assert metrics["actor/bc_loss"] == metrics["actor/score_loss"] == 1 and metrics["critic/loss"] == 0
    assert agent.loss(batch, noise)[1]["actor/bc_loss"] != 1


@pytest.mark.parametrize("variant", ["dipole", "dipole_diffusion"])
@pytest.mark.parametrize("rho", [0.0, 0.5, None])
def test_dipoles_critic_loss_for_many_critics(variant, rho):
    """rho 0: E v [sum_j (Q_j - ybar)^2 + K var_k(y)]; otherwise every critic's target is the aggregated one."""
    agent = build(variant, num_critics=4, target_pessimism=rho)
    with torch.no_grad():  # targets that differ from the online critics
        for parameter in agent.target_critic.parameters():
            parameter.mul_(1.3)
    batch, targets = random_batch(dtype=torch.float64) | {"valid": VALID}, []
    hook = agent.target_critic.register_forward_hook(lambda module, inputs, output: targets.append(output.squeeze(-1)))
    loss = agent.loss(batch, agent.draw(16))[1]["critic/loss"]
    hook.remove()
    q = agent.critic(batch["observations"], batch["actions"]).squeeze(-1).detach()
    y = batch["rewards"] + agent.config.discount * batch["masks"] * targets[1]  # after those of the data's actions
    if rho == 0:
        ours = (q - y.mean(dim=0)).square().sum(dim=0) + 4 * y.var(dim=0, correction=0)
    elif rho is None:
        ours = (q - y.amin(dim=0)).square().sum(dim=0)
    else:
        ours = (q - (y.mean(dim=0) - rho * y.std(dim=0, correction=0))).square().sum(dim=0)
    torch.testing.assert_close(loss, (VALID * ours).mean())


@pytest.mark.parametrize("aggregation, value_rho", [("min", 0.5), ("mean", 0.0)])
def test_dipoles_value_and_weights_share_their_pessimism_unless_the_value_takes_the_mean(aggregation, value_rho):
    agent = build("dipole", num_critics=4, pessimism=0.5, value_aggregation=aggregation)
    batch = random_batch(dtype=torch.float64)
    q = agent.target_critic(batch["observations"], batch["actions"]).squeeze(-1)
    value = agent.value(batch["observations"])[0, :, 0].detach()
    metrics = agent.loss(batch, agent.draw(16))[1]
    lower = q.mean(dim=0) - 0.5 * q.std(dim=0, correction=0)
    torch.testing.assert_close(metrics["value/advantage_mean"], (lower - value).mean())
    error = q.mean(dim=0) - value_rho * q.std(dim=0, correction=0) - value
    loss = (torch.where(error < 0, 0.1, 0.9) * error.square()).mean()
    torch.testing.assert_close(metrics["value/loss"], loss)


def test_fqls_options_follow_their_formulas():
    agent = build("fql", pessimism=None, normalise_q_loss=True)
    batch, noise = random_batch(dtype=torch.float64), agent.draw(16)
    metrics = agent.loss(batch, noise)[1]

    def actions(observations, z):
        return agent.policy(batch[observations], z)[0].clamp(-1, 1)

    next_actions = actions("next_observations", noise["next_z"][:, 0])
    next_q = agent.target_critic(batch["next_observations"], next_actions)[..., 0].amin(dim=0)
    errors = agent.critic(batch["observations"], batch["actions"])[..., 0]
    errors = errors - (batch["rewards"] + agent.config.discount * batch["masks"] * next_q)
    torch.testing.assert_close(metrics["critic/loss"], errors.square().mean().detach())
    q = agent.critic(batch["observations"], actions("observations", noise["z"]))[..., 0].mean(dim=0)
    torch.testing.assert_close(metrics["actor/q_loss"], (-q.mean() / q.abs().mean()).detach())


def test_fql_chooses_by_the_critics_mean_in_targets_and_acting():
    agent = build("fql", num_critics=3, target_candidates=4, num_candidates=4)
    states, z = torch.randn(5, 3).double(), torch.randn(5, 4, 2).double()
    actions = torch.stack([agent.policy(states, z[:, c])[0].clamp(-1, 1) for c in range(4)], dim=1)
    q = torch.stack([agent.critic(states, actions[:, c]).mean(dim=0)[:, 0] for c in range(4)], dim=1)
    best = actions[torch.arange(5), q.argmax(dim=1)]
    assert len(set(q.argmax(dim=1).tolist())) > 1
    torch.testing.assert_close(agent.best_action(states, z), best)
    assert agent.draw(16)["next_z"].shape == (16, 4, 2)


@pytest.mark.parametrize("actor_interval, target_interval", [(1, 2), (2, 2)])
def test_rebracs_policy_and_targets_move_in_their_intervals(actor_interval, target_interval):
    agent = build("rebrac", actor_interval=actor_interval, target_interval=target_interval)
    for step in range(1, 7):
        before = agent.target_critic.weights[0].clone()
        updated(agent, updates=1)
        assert bool(agent.policy.weights[0].grad.any()) == (step % actor_interval == 0), "Adam goes on all the same"
        assert torch.equal(agent.target_critic.weights[0], before) == (step % target_interval != 0)


def test_rebrac_validates_at_the_present_parameters():
    """The metrics are the same whether the present update moves the policy or not."""
    agent = build("rebrac", actor_interval=2)
    before = validation_metrics(agent, random_batch(dtype=torch.float64))
    agent.updates += 1
    assert validation_metrics(agent, random_batch(dtype=torch.float64)) == before


def test_rebracs_penalties_by_hand():
    """The next action is noisy within its clip, and far from the data's costs the target; so does the policy's own."""
    agent = build("rebrac", critic_bc_weight=0.3, actor_bc_weight=0.5, actor_interval=1)
    batch, noise = random_batch(dtype=torch.float64), agent.draw(16)
    (name,) = noise
    noise[name] = 3 * noise[name]  # some of it beyond the clip
    metrics = agent.loss(batch, noise)[1]
    with torch.no_grad():
        actions = agent.target_policy(batch["next_observations"])[0].tanh() + (0.2 * noise[name]).clamp(-0.5, 0.5)
        actions = actions.clamp(-1, 1)
        next_q = agent.target_critic(batch["next_observations"], actions).amin(dim=0)[:, 0]
        next_q = next_q - 0.3 * (actions - batch["next_actions"]).square().sum(dim=1)
        target = batch["rewards"] + agent.config.discount * batch["masks"] * next_q
        q = agent.critic(batch["observations"], batch["actions"])[..., 0]
    torch.testing.assert_close(metrics["critic/loss"], (q - target).square().mean())
    torch.testing.assert_close(metrics["actor/loss"], metrics["actor/q_loss"] + 0.5 * metrics["actor/bc_loss"])


def test_rebrac_evaluates_with_noise_only_if_told():
    state = torch.zeros(1, 3).double()
    for noisy in (False, True):
        agent = build("rebrac", noisy_evaluation=noisy)
        assert torch.equal(agent.act(state), agent.act(state)) != noisy
