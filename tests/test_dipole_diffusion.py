"""The noise-prediction form: its schedule, its sampler against formulas done by hand, and its update."""

import dataclasses
import math

import pytest
import torch

from algorithms.dipole_diffusion import (
    DIPOLEDiffusion,
    DIPOLEDiffusionConfig,
    clean_estimate,
    composed_noise,
    denoising_losses,
    denoising_step,
    policy_weights,
    sample_denoiser,
    signal_level,
    time_features,
)

ABAR_5 = [0.804125, 0.435178, 0.158500, 0.038852, 0.006409]  # T = 5: Diffusion-QL's formula, to six digits
POSTERIOR_VARIANCE_5 = [0, 0.159114, 0.426742, 0.660907, 0.807766]
POSTERIOR_CLEAN_5 = [1, 0.728435, 0.498410, 0.312681, 0.165654]  # coefficient of x0 in the posterior's mean
POSTERIOR_NOISY_5 = [0, 0.255116, 0.405078, 0.433466, 0.392901]  # coefficient of x_t
SMALL = DIPOLEDiffusionConfig(batch_size=32, actor_hidden_dims=(16, 16), value_hidden_dims=(16, 16), num_candidates=3)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def random_batch(size=32, observation_dim=3, action_dim=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return {
        "observations": normal(size, observation_dim),
        "actions": normal(size, action_dim).clamp(-1, 1),
        "rewards": normal(size),
        "masks": (normal(size) > -1).to(dtype),
        "next_observations": normal(size, observation_dim),
    }


class ExactNoise(torch.nn.Module):
    """The noise predictions of two policies that act by N(mean, std^2); std 0 is a point."""

    def __init__(self, means, stds, diffusion_steps):
        super().__init__()
        self.means, self.stds, self.diffusion_steps = means, stds, diffusion_steps

    def forward(self, inputs, members=slice(None)):
        x, features = inputs[:, 1:2], inputs[:, 2:]
        t = torch.atan2(features[:, 7:8], features[:, 15:16]) * 1e4  # of the slowest sinusoid
        level = signal_level(t.round(), self.diffusion_steps)
        predictions = [
            (1 - level).sqrt() * (x - level.sqrt() * mean) / (level * std**2 + 1 - level)
            for mean, std in zip(self.means, self.stds, strict=True)
        ]
        return torch.stack(predictions)[members]


def sample(denoiser, count, steps, diffusion_steps, stochasticity, greediness=0.0):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, steps + 1, 1, generator=generator, dtype=torch.float64)
    states = torch.zeros(count, 1, dtype=torch.float64)
    return sample_denoiser(denoiser, states, noise, greediness, diffusion_steps, stochasticity)


def test_schedule_end_points_and_values():
    levels = signal_level(torch.arange(6, dtype=torch.float64), 5)
    assert levels[0] == 1
    assert levels[1:].tolist() == pytest.approx(ABAR_5, abs=1e-6)
    assert levels[1].item() == pytest.approx(math.exp(-0.1 / 5 - 0.5 * 9.9 / 25), rel=1e-12)
    for steps in (1, 10, 1000):
        end = signal_level(torch.tensor(float(steps), dtype=torch.float64), steps)
        assert end.item() == pytest.approx(math.exp(-0.1 - 0.5 * 9.9), rel=1e-12)


def test_schedule_is_the_product_of_the_betas():
    steps = 10
    u = torch.arange(1, steps + 1, dtype=torch.float64)
    betas = 1 - torch.exp(-0.1 / steps - 0.5 * 9.9 * (2 * u - 1) / steps**2)
    torch.testing.assert_close(signal_level(u, steps), (1 - betas).cumprod(0), rtol=1e-13, atol=0)


def test_time_features_are_sinusoids_of_the_level():
    features = time_features(column(0, 3))
    assert features.shape == (2, 16)
    assert features[0].tolist() == [0.0] * 8 + [1.0] * 8
    expected = [math.sin(3 * math.exp(-k * math.log(1e4) / 7)) for k in range(8)]
    assert features[1, :8].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("t", range(1, 6))
def test_ancestral_step_is_the_posterior_of_the_diffusion(t):
    x, clean, fresh = column(0.7, -1.3, 2.0), column(0.5, -1.0, 0.2), column(0.3, 0.0, -1.1)
    level, next_level = (signal_level(torch.full_like(x, step), 5) for step in (t, t - 1))
    moved = denoising_step(x, clean, level, next_level, fresh, stochasticity=1.0)

    abar, abar_next = level[0].item(), next_level[0].item()
    beta = 1 - abar / abar_next
    clean_coefficient = beta * math.sqrt(abar_next) / (1 - abar)
    noisy_coefficient = math.sqrt(1 - beta) * (1 - abar_next) / (1 - abar)
    variance = beta * (1 - abar_next) / (1 - abar)
    assert variance == pytest.approx(POSTERIOR_VARIANCE_5[t - 1], abs=1e-6)
    assert clean_coefficient == pytest.approx(POSTERIOR_CLEAN_5[t - 1], abs=1e-6)
    assert noisy_coefficient == pytest.approx(POSTERIOR_NOISY_5[t - 1], abs=1e-6)
    expected = clean_coefficient * clean + noisy_coefficient * x + math.sqrt(variance) * fresh
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-12)


def test_last_step_is_the_clipped_estimate_itself():
    x, fresh = column(0.7, -3.0), column(5.0, 5.0)
    level = signal_level(torch.ones_like(x), 10)
    clean = clean_estimate(x, torch.zeros_like(x), level)
    assert clean[1] == -1
    assert torch.equal(denoising_step(x, clean, level, torch.ones_like(x), fresh, 1.0), clean)


@pytest.mark.parametrize("stochasticity", [0.0, 1.0])
@pytest.mark.parametrize("denoising_steps", [1, 3, 10])
def test_exact_noise_of_a_point_leads_to_the_point(stochasticity, denoising_steps):
    point = ExactNoise(means=(0.3, -0.4), stds=(0.0, 0.0), diffusion_steps=10)
    for greediness, expected in ((0.0, 0.3), (-1.0, -0.4), (0.5, 1.5 * 0.3 + 0.5 * 0.4)):
        actions = sample(point, 20, denoising_steps, 10, stochasticity, greediness)
        torch.testing.assert_close(actions, torch.full_like(actions, expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize("stochasticity", [0.0, 1.0])
def test_exact_noise_of_a_gaussian_leads_to_its_mean_and_variance(stochasticity):
    gaussian = ExactNoise(means=(0.2, 0.0), stds=(0.15, 1.0), diffusion_steps=1000)
    actions = sample(gaussian, 5_000, 1000, 1000, stochasticity)
    assert actions.mean().item() == pytest.approx(0.2, abs=0.01)
    assert actions.std().item() == pytest.approx(0.15, rel=0.04)


def test_the_combined_estimate_is_clipped_not_each_branch():
    """Two branches that estimate 1.5 and 2.5 combine to 0.5 at omega 1; each clipped first, both would say 1."""

    class Estimates(torch.nn.Module):
        def forward(self, inputs, members=slice(None)):
            x, level = inputs[:, 1:2], signal_level(column(10), 10)
            return torch.stack([(x - level.sqrt() * clean) / (1 - level).sqrt() for clean in (1.5, 2.5)])[members]

    actions = {omega: sample(Estimates(), 4, 1, 10, 1.0, greediness=omega) for omega in (0.0, -1.0, 1.0)}
    assert torch.equal(actions[0.0], torch.ones_like(actions[0.0]))
    assert torch.equal(actions[-1.0], torch.ones_like(actions[-1.0]))
    torch.testing.assert_close(actions[1.0], torch.full_like(actions[1.0], 0.5))


def test_losses_by_hand():
    class Copy(torch.nn.Module):
        def forward(self, inputs):
            return torch.stack([inputs[:, 1:2], 0 * inputs[:, 1:2]])  # x_t, and 0

    actions, noise, t = column(0.5, -0.2), column(1.0, 0.4), column(2, 5)
    errors = denoising_losses(Copy(), torch.zeros(2, 1, dtype=torch.float64), actions, noise, t, 5)
    for row, (action, eps, abar) in enumerate([(0.5, 1.0, ABAR_5[1]), (-0.2, 0.4, ABAR_5[4])]):
        x_t = math.sqrt(abar) * action + math.sqrt(1 - abar) * eps
        assert errors[0, row].item() == pytest.approx((x_t - eps) ** 2, abs=1e-5)
        assert errors[1, row].item() == pytest.approx(eps**2)


def test_greediness_0_is_the_positive_network_alone():
    """A negative network of other numbers changes nothing at omega 0, and everything at omega 1."""
    agent, other = (DIPOLEDiffusion(SMALL, 3, 2) for _ in range(2))
    with torch.no_grad():
        other.denoiser.biases[-1][1] += 1
    states = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))

    def actions(greediness):
        pair = []
        for one in (agent, other):
            one.noise.generator.manual_seed(7)
            pair.append(one.act(states, greediness=greediness))
        return pair

    assert torch.equal(*actions(0.0))
    assert not torch.allclose(*actions(1.0))
    x, t = torch.randn(4, 2), torch.full((4, 1), 3.0)
    inputs = torch.cat([torch.zeros(4, 3), x, time_features(t)], dim=-1)
    positive, negative = agent.denoiser(inputs)
    for greediness in (0.0, -1.0, 2.0):
        expected = (1 + greediness) * positive - greediness * negative
        torch.testing.assert_close(composed_noise(agent.denoiser, torch.zeros(4, 3), x, t, greediness), expected)


def test_updates_move_every_parameter_and_the_target_by_its_rate():
    agent = DIPOLEDiffusion(SMALL, 3, 2).double()
    start = {name: parameter.clone() for name, parameter in agent.named_parameters()}
    for _ in range(3):
        before = [parameter.clone() for parameter in agent.target_critic.parameters()]
        metrics = agent.update(random_batch(dtype=torch.float64))
        for old, target, online in zip(
            before, agent.target_critic.parameters(), agent.critic.parameters(), strict=True
        ):
            torch.testing.assert_close(target, old + SMALL.target_rate * (online - old), rtol=0, atol=1e-12)
    assert all(metric.dtype == torch.float64 and metric.isfinite() for metric in metrics.values())
    for name, parameter in agent.named_parameters():
        members_moved = (parameter != start[name]).flatten(start_dim=1).any(dim=1)
        assert members_moved.all(), f"{name}: {members_moved.tolist()}"


@pytest.mark.parametrize("weighting, policies", [("sigmoid", 2), ("indicator", 2), ("exponential", 1), ("none", 1)])
def test_weightings_train_as_many_policies_as_they_have(weighting, policies):
    agent = DIPOLEDiffusion(dataclasses.replace(SMALL, weighting=weighting), 3, 2)
    assert policy_weights(weighting, torch.zeros(4), 1.0, 0.0, 100.0).shape == (policies, 4)
    assert ("actor/negative_loss" in agent.update(random_batch())) == (policies == 2)
    assert agent.act(torch.zeros(4, 3)).shape == (4, 2)


def test_validation_losses_leave_training_alone():
    agent, undisturbed = DIPOLEDiffusion(SMALL, 3, 2), DIPOLEDiffusion(SMALL, 3, 2)
    first, second = agent.losses(random_batch()), agent.losses(random_batch())
    assert first == second
    for one in (agent, undisturbed):
        one.update(random_batch())
    for ours, theirs in zip(agent.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_saved_state_continues_bit_for_bit(tmp_path):
    agent = DIPOLEDiffusion(SMALL, 3, 2)
    agent.update(random_batch())
    checkpoint = {
        "agent": agent.state_dict(),
        "config": dataclasses.asdict(agent.config),
        "observation_dim": 3,
        "action_dim": 2,
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    loaded = DIPOLEDiffusion.load(tmp_path)
    for one in (agent, loaded):
        one.update(random_batch())
    for ours, theirs in zip(agent.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(agent.act(torch.zeros(2, 3)), loaded.act(torch.zeros(2, 3)))


def test_cost_of_an_action():
    agent = DIPOLEDiffusion(SMALL, 3, 2)
    assert agent.network_evaluations() == 3 * 10 + 2 * 3
    assert agent.network_evaluations(greediness=1.0, num_candidates=1, denoising_steps=5) == 10


def test_act_gives_each_state_noise_of_its_own_and_stays_in_range():
    agent = DIPOLEDiffusion(SMALL, 3, 2)
    shapes = []
    normal = agent.noise.normal
    agent.noise.normal = lambda *shape: shapes.append(shape) or normal(*shape)
    actions = agent.act(torch.zeros(6, 3), greediness=3.0, denoising_steps=4)
    assert actions.shape == (6, 2) and actions.abs().max() <= 1
    assert len(actions.unique(dim=0)) > 1
    assert [shape[0] for shape in shapes] == [6]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"denoising_steps": 11}, "denoising_steps is 11; it must be from 1 to diffusion_steps, 10"),
        ({"diffusion_steps": 0}, "diffusion_steps is 0; it must be at least 1"),
        ({"stochasticity": 1.5}, "stochasticity is 1.5"),
        ({"greediness": -2.0}, "greediness is -2"),
        ({"weighting": "none", "greediness": 1.0}, "trains a single policy; set greediness to 0"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **fields)
    if "denoising_steps" in fields or fields.get("greediness") == -2.0:
        with pytest.raises(ValueError, match=message):
            DIPOLEDiffusion(SMALL, 3, 2).act(torch.zeros(1, 3), **fields)


def test_group_advantage_is_the_reward_above_the_group():
    config = dataclasses.replace(SMALL, advantage="group", inverse_temperature=3.0, shift=0.5)
    agent, batch = DIPOLEDiffusion(config, 3, 2), random_batch()
    batch["state_values"] = torch.linspace(-1, 1, len(batch["rewards"]))
    weights = torch.sigmoid(3.0 * (batch["rewards"] - batch["state_values"]) + 0.5)
    assert agent.batch_fields == ("state_values",)
    torch.testing.assert_close(agent.update(batch)["actor/weight_mean"], weights.mean())
