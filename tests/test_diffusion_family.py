"""DQL and QSM: schedules, samplers and losses by hand, acting. Their published figures are in test_golden.py."""

import math

import pytest
import torch
from torch import nn

from algorithms.baselines import dql, qsm
from harness.algorithms import load_algorithm

torch.set_num_threads(1)

OBSERVATION_DIM, ACTION_DIM, BATCH = 5, 2, 8
SMALL = {"actor_hidden_dims": (16, 16), "value_hidden_dims": (12, 12), "diffusion_steps": 3}
LEVELS = (0.804125, 0.435178, 0.158500, 0.038852, 0.006409)  # of T = 5


def make_agent(name, fields):
    algorithm = load_algorithm(name)
    return algorithm.agent_class(algorithm.config_class(**fields), OBSERVATION_DIM, ACTION_DIM).double()


def make_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "observations": normal(BATCH, OBSERVATION_DIM),
        "actions": normal(BATCH, ACTION_DIM).tanh(),
        "rewards": normal(BATCH),
        "masks": (torch.rand(BATCH, generator=generator) > 0.3).double(),
        "next_observations": normal(BATCH, OBSERVATION_DIM),
    }


def copies(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def moved(target, online, rate):
    return [torch.lerp(old, new, rate) for old, new in zip(target, online, strict=True)]


def equal(left, right):
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


# The diffusion, by hand.


def test_posterior_mean():
    level = column(*LEVELS)
    previous = column(1, *LEVELS[:-1])
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    of_clean = dql.posterior_mean(zero, one, level, previous).flatten()
    of_x = dql.posterior_mean(one, zero, level, previous).flatten()
    assert of_clean.tolist() == pytest.approx((1, 0.728435, 0.498410, 0.312681, 0.165654), abs=1e-4)
    assert of_x.tolist() == pytest.approx((0, 0.255116, 0.405078, 0.433466, 0.392901), abs=1e-4)


def test_noised_and_clean_action_are_inverse():
    actions, noise, level = column(0.5, -0.25), column(1.0, -2.0), column(0.64, 0.36)
    x = dql.noised(actions, noise, level)
    assert x.flatten().tolist() == pytest.approx((0.8 * 0.5 + 0.6, -0.6 * 0.25 - 0.8 * 2))
    torch.testing.assert_close(dql.clean_action(x, noise, level), actions)


def sampled(agent, denoiser, noise):
    """One action of the agent's sampler with that denoiser, from the start and the levels' own noise."""
    agent.denoiser = denoiser
    arguments = (denoiser,) if isinstance(agent, dql.DQL) else ()
    return agent.sample(*arguments, torch.zeros(1, 1), column(*noise)[None, None])[0, 0]


class LevelDenoiser(nn.Module):
    """Predicts one learned number per level, whatever the state and x."""

    def __init__(self, *predictions):
        super().__init__()
        self.predictions = nn.Parameter(torch.tensor(predictions, dtype=torch.float64))

    def forward(self, observations, x, t):
        return self.predictions[t.long() - 1].expand_as(x)


def two_levels():
    """(abar_1, abar_2, beta_2) of T = 2, from the formula in the docstrings."""
    beta = [1 - math.exp(-0.1 / 2 - 9.9 * (2 * u - 1) / (2 * 2**2)) for u in (1, 2)]
    return 1 - beta[0], (1 - beta[0]) * (1 - beta[1]), beta[1]


def clipped(x):
    return max(-1.0, min(1.0, x))


def test_chain_of_dql_by_hand():
    abar_1, abar_2, beta_2 = two_levels()
    noise = [0.1, -0.2, 5.0]  # the start, the noise of level 2, and that of level 1, which the last step does not take
    predicted = [0.2, -0.3]
    clean = clipped((noise[0] - math.sqrt(1 - abar_2) * predicted[1]) / math.sqrt(abar_2))
    mean = math.sqrt(abar_1) * beta_2 / (1 - abar_2) * clean
    mean += math.sqrt(1 - beta_2) * (1 - abar_1) / (1 - abar_2) * noise[0]
    x = mean + math.sqrt(beta_2 * (1 - abar_1) / (1 - abar_2)) * noise[1]
    expected = clipped((x - math.sqrt(1 - abar_1) * predicted[0]) / math.sqrt(abar_1))
    assert abs(clean) == 1 and abs(expected) < 1, "one step should clip and the other not"
    agent = dql.DQL(dql.DQLConfig(), 1, 1)
    assert sampled(agent, LevelDenoiser(*predicted), noise).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("clip_clean", (False, True))
@pytest.mark.parametrize("clip_steps", (False, True))
@pytest.mark.parametrize("sampler", ("qam", "ancestral"))
def test_samplers_of_qsm_by_hand(sampler, clip_steps, clip_clean):
    abar_1, abar_2, beta_2 = two_levels()
    noise, predicted = [0.1, 0.9, 5.0], [0.2, -0.3]
    x = noise[0]
    clean = (x - math.sqrt(1 - abar_2) * predicted[1]) / math.sqrt(abar_2)
    assert clean > 1
    if clip_clean:
        clean = 1.0
    if sampler == "qam":
        x = clean
    elif clip_clean:
        of_x = math.sqrt(1 - beta_2) * (1 - abar_1) / (1 - abar_2)
        x = math.sqrt(abar_1) * beta_2 / (1 - abar_2) * clean + of_x * x
    else:  # the form of the online paper's code: no estimate of the clean action
        x = (x - beta_2 / math.sqrt(1 - abar_2) * predicted[1]) / math.sqrt(1 - beta_2)
    x += math.sqrt(beta_2) * noise[1]
    if clip_steps:
        assert x > 1
        x = 1.0
    x = (x - math.sqrt(1 - abar_1) * predicted[0]) / math.sqrt(abar_1)
    expected = clipped(x) if clip_clean or clip_steps else x
    agent = qsm.QSM(qsm.QSMConfig(sampler=sampler, clip_clean=clip_clean, clip_steps=clip_steps), 1, 1)
    assert sampled(agent, LevelDenoiser(*predicted), noise).item() == pytest.approx(expected, abs=1e-12)


def test_chain_of_dql_has_gradients_through_all_steps():
    denoiser = LevelDenoiser(0.01, 0.01, 0.01)  # small, so that nothing is clipped
    sampled(dql.DQL(dql.DQLConfig(), 1, 1), denoiser, [0.01] * 4).sum().backward()
    assert (denoiser.predictions.grad < 0).all()


# The losses, by hand.


def test_policy_loss_of_dql_crosses_the_critics():
    """- mean Q_1 / mean |Q_2| or the critics exchanged, by the coin; the divisor has no gradient."""
    agent, batch = make_agent("dql", SMALL), make_batch()
    noise = agent.draw(BATCH)
    actions = agent.sample(agent.denoiser, batch["observations"], noise["chain"])[:, 0]
    q = agent.critic(batch["observations"], actions).squeeze(-1)
    for coin, (i, j) in ((0.6, (0, 1)), (0.5, (1, 0))):
        noise["coin"] = torch.tensor(coin)
        _, metrics = agent.policy_loss(batch, noise)
        torch.testing.assert_close(metrics["actor/q_loss"], -q[i].mean() / q[j].abs().mean())
        last = agent.denoiser.mlp.weights[-1]
        (gradient,) = torch.autograd.grad(metrics["actor/q_loss"], last)
        (expected,) = torch.autograd.grad(-q[i].mean() / q[j].abs().mean().detach(), last, retain_graph=True)
        torch.testing.assert_close(gradient, expected)


def test_max_q_backup_takes_each_critics_best_candidate_and_then_the_smaller_critic(monkeypatch):
    agent, batch = make_agent("dql", SMALL | {"backup_candidates": 3}), make_batch()
    next_q = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 3.0]], dtype=torch.float64)[:, None].expand(2, BATCH, 3)
    monkeypatch.setattr(agent, "candidate_q", lambda observations, actions: next_q)
    target = batch["rewards"] + agent.config.discount * batch["masks"] * 4
    q = agent.critic(batch["observations"], batch["actions"]).squeeze(-1)
    expected = (q[0] - target).square().mean() + (q[1] - target).square().mean()
    torch.testing.assert_close(agent.critic_loss(batch, agent.draw(BATCH)["next_noise"])[0], expected)


def test_critic_loss_of_qsm_takes_the_population_deviation_off(monkeypatch):
    agent, batch = make_agent("qsm", SMALL | {"pessimism": 0.5}), make_batch()
    next_q = torch.tensor([[1.0], [3.0]], dtype=torch.float64).expand(2, BATCH)[..., None]
    monkeypatch.setattr(agent.target_critic, "forward", lambda observations, actions: next_q)
    target = batch["rewards"] + agent.config.discount * batch["masks"] * (2 - 0.5)
    q = agent.critic(batch["observations"], batch["actions"]).squeeze(-1)
    loss, _ = agent.critic_loss(batch, agent.draw(BATCH)["next_noise"])
    torch.testing.assert_close(loss, (q - target).square().mean())


def test_action_gradient_is_of_the_mean_over_the_critics():
    critic = make_agent("qsm", SMALL | {"num_critics": 3}).critic
    batch, step = make_batch(), 1e-6
    gradient = qsm.action_gradient(critic, batch["observations"], batch["actions"])
    for index in range(ACTION_DIM):
        shift = step * torch.eye(ACTION_DIM, dtype=torch.float64)[index]
        up, down = (
            critic(batch["observations"], batch["actions"] + sign * shift).mean(dim=0)[:, 0] for sign in (1, -1)
        )
        torch.testing.assert_close(gradient[:, index], (up - down) / (2 * step), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("max_norm", "factor"), ((2.5, 0.5), (5.0, 1.0), (6.0, 1.0)))
def test_clip_gradients_scales_all_by_one_factor(max_norm, factor):
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([0.0, -4.0])
    qsm.clip_gradients(parameters, max_norm)
    assert parameters[0].grad.tolist() == [3 * factor]
    assert parameters[1].grad.tolist() == [0, -4 * factor]


# The agents.


def test_ema_policy_moves_by_its_rate_on_the_schedules_updates():
    agent, moving = make_agent("dql", SMALL | {"ema_start": 2, "ema_interval": 2, "ema_rate": 0.1}), []
    for step in range(6):
        before = copies(agent.ema_denoiser)
        agent.update(make_batch(step))
        after = copies(agent.ema_denoiser)
        if not equal(after, before):
            moving.append(step)
            assert equal(after, moved(before, copies(agent.denoiser), torch.tensor(0.1, dtype=torch.float64)))
    assert moving == [2, 4]


def test_learning_rates_follow_the_cosine():
    agent = make_agent("dql", SMALL | {"decay_length": 4, "decay_interval": 2, "actor_learning_rate": 1e-3})
    rates = []
    for step in range(9):
        agent.update(make_batch(step))
        rates.append([float(o.param_groups[0]["lr"]) for o in (agent.actor_optimizer, agent.critic_optimizer)])
    factors = [(1 + math.cos(math.pi * (step // 2) / 4)) / 2 for step in range(9)]
    assert factors[0] == 1 and factors[8] == 0
    assert [rate[0] for rate in rates] == pytest.approx([1e-3 * factor for factor in factors], abs=1e-15)
    assert [rate[1] for rate in rates] == pytest.approx([3e-4 * factor for factor in factors], abs=1e-15)


def test_actions_of_an_unclipped_sampler_are_in_range():
    agent = make_agent("qsm", SMALL | {"clip_steps": False})
    observations = torch.randn(20, OBSERVATION_DIM, dtype=torch.float64)
    assert agent.sample(observations, agent.noise.normal(20, 1, 4, ACTION_DIM)).abs().max() > 1
    assert agent.act(observations).abs().max() <= 1


def test_dql_draws_candidates_by_the_softmax_of_the_smaller_target_critic(monkeypatch):
    agent, count = make_agent("dql", SMALL), 4_000
    candidates = torch.tensor([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]], dtype=torch.float64).expand(count, 3, 2)
    q = torch.tensor([[0.5, 0.2, 0.3], [0.6, 9.0, 0.3]], dtype=torch.float64).log()[:, None].expand(2, count, 3)

    monkeypatch.setattr(agent.target_critic, "forward", lambda observations, actions: q.flatten(1))
    monkeypatch.setattr(agent, "sample", lambda denoiser, observations, noise: candidates)
    actions = agent.act(torch.zeros(count, OBSERVATION_DIM).double(), num_candidates=3)[:, 0]
    shares = [(actions == value).double().mean().item() for value in (0.1, 0.2, 0.3)]
    assert shares == pytest.approx((0.5, 0.2, 0.3), abs=0.03)


def test_qsm_takes_the_candidate_that_the_smallest_critic_values_most(monkeypatch):
    agent = make_agent("qsm", SMALL | {"num_critics": 3})
    observations, candidates = make_batch()["observations"], torch.rand(BATCH, 5, ACTION_DIM, dtype=torch.float64)
    for parameter in agent.target_critic.parameters():
        parameter.data.neg_()  # the target critics would choose otherwise
    monkeypatch.setattr(agent, "sample", lambda observations, noise: candidates)
    actions = agent.act(observations, num_candidates=5)
    for row in range(BATCH):
        q = agent.critic(observations[row].expand(5, -1), candidates[row])
        best = q[..., 0].min(dim=0).values.argmax()
        assert torch.equal(actions[row], candidates[row, best])
