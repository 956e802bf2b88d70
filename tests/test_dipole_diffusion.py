"""The noise-prediction form: its schedule, its sampler against formulas done by hand, and its update."""

import dataclasses
import math

import pytest
import torch

from algorithms.dipole_diffusion import (
    DIPOLEDiffusion,
    DIPOLEDiffusionConfig,
    composed_noise,
    denoising_step,
    signal_level,
    time_features,
)

ABAR_5 = [0.804125, 0.435178, 0.158500, 0.038852, 0.006409]  # T = 5: Diffusion-QL's formula, to six digits
POSTERIOR_VARIANCE_5 = [0, 0.159114, 0.426742, 0.660907, 0.807766]
POSTERIOR_CLEAN_5 = [1, 0.728435, 0.498410, 0.312681, 0.165654]  # coefficient of x0 in the posterior's mean
POSTERIOR_NOISY_5 = [0, 0.255116, 0.405078, 0.433466, 0.392901]  # coefficient of x_t
SMALL = DIPOLEDiffusionConfig(actor_hidden_dims=(16, 16), value_hidden_dims=(16, 16), num_candidates=3)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


class ExactNoise(torch.nn.Module):
    """The noise predictions of two policies that act by N(mean, std^2); std 0 is a point."""

    def __init__(self, means, stds, diffusion_steps):
        super().__init__()
        self.means, self.stds, self.diffusion_steps = means, stds, diffusion_steps

    def forward(self, observations, x, features, member=None):
        t = torch.atan2(features[:, 7:8], features[:, 15:16]) * 1e4  # of the slowest sinusoid
        level = signal_level(t.round(), self.diffusion_steps)
        predictions = [
            (1 - level).sqrt() * (x - level.sqrt() * mean) / (level * std**2 + 1 - level)
            for mean, std in zip(self.means, self.stds, strict=True)
        ]
        return torch.stack(predictions if member is None else [predictions[member]])


def sample(denoiser, count, steps, diffusion_steps, stochasticity, greediness=0.0):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, steps + 1, 1, generator=generator, dtype=torch.float64)
    fields = {"diffusion_steps": diffusion_steps, "denoising_steps": steps, "stochasticity": stochasticity}
    agent = DIPOLEDiffusion(dataclasses.replace(SMALL, **fields), 1, 1)
    agent.denoiser = denoiser
    return agent.sample(torch.zeros(count, 1, dtype=torch.float64), noise, greediness)[:, 0]


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
    now, following = torch.full_like(x, t), torch.full_like(x, t - 1)
    abar, abar_next = (signal_level(level, 5)[0].item() for level in (now, following))
    predicted = (x - math.sqrt(abar) * clean) / math.sqrt(1 - abar)  # the noise that leaves that clean action
    moved = denoising_step(
        DIPOLEDiffusionConfig(diffusion_steps=5, denoising_steps=5), x, predicted, now, following, fresh
    )

    beta = 1 - abar / abar_next
    clean_coefficient = beta * math.sqrt(abar_next) / (1 - abar)
    noisy_coefficient = math.sqrt(1 - beta) * (1 - abar_next) / (1 - abar)
    variance = beta * (1 - abar_next) / (1 - abar)
    assert variance == pytest.approx(POSTERIOR_VARIANCE_5[t - 1], abs=1e-6)
    assert clean_coefficient == pytest.approx(POSTERIOR_CLEAN_5[t - 1], abs=1e-6)
    assert noisy_coefficient == pytest.approx(POSTERIOR_NOISY_5[t - 1], abs=1e-6)
    expected = clean_coefficient * clean + noisy_coefficient * x + math.sqrt(variance) * fresh
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-9)


def test_last_step_is_the_clipped_estimate_itself():
    x, fresh = column(0.7, -3.0), column(5.0, 5.0)
    one = torch.ones_like(x)
    clean = denoising_step(SMALL, x, torch.zeros_like(x), one, 0 * one, fresh)
    torch.testing.assert_close(clean[0], x[0] / signal_level(one, 10)[0].sqrt())
    assert clean[1] == -1


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
        def forward(self, observations, x, features, member=None):
            level = signal_level(column(10), 10)
            both = torch.stack([(x - level.sqrt() * clean) / (1 - level).sqrt() for clean in (1.5, 2.5)])
            return both if member is None else both[member, None]

    actions = {omega: sample(Estimates(), 4, 1, 10, 1.0, greediness=omega) for omega in (0.0, -1.0, 1.0)}
    assert torch.equal(actions[0.0], torch.ones_like(actions[0.0]))
    assert torch.equal(actions[-1.0], torch.ones_like(actions[-1.0]))
    torch.testing.assert_close(actions[1.0], torch.full_like(actions[1.0], 0.5))


def test_losses_by_hand():
    class Copy(torch.nn.Module):
        def forward(self, observations, x, features):
            return torch.stack([x, 0 * x])  # x_t, and 0

    agent = DIPOLEDiffusion(dataclasses.replace(SMALL, diffusion_steps=5, denoising_steps=5), 1, 1)
    agent.denoiser = Copy()
    batch = {"observations": column(0, 0), "actions": column(0.5, -0.2), "valid": torch.ones(2).double()}
    _, metrics = agent.policy_loss(batch, torch.zeros(2).double(), column(1.0, 0.4), column(2, 5))  # weights 1/2
    errors = [
        (math.sqrt(abar) * action + math.sqrt(1 - abar) * eps - eps) ** 2
        for action, eps, abar in [(0.5, 1.0, ABAR_5[1]), (-0.2, 0.4, ABAR_5[4])]
    ]
    assert metrics["actor/positive_loss"].item() == pytest.approx(sum(errors) / 4, abs=1e-6)
    assert metrics["actor/negative_loss"].item() == pytest.approx((1.0**2 + 0.4**2) / 4)


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
    positive, negative = agent.denoiser(torch.zeros(4, 3), x, time_features(t))
    for greediness in (0.0, -1.0, 2.0):
        expected = (1 + greediness) * positive - greediness * negative
        torch.testing.assert_close(composed_noise(agent.denoiser, torch.zeros(4, 3), x, t, greediness), expected)


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
        ({"denoising_steps": 11}, "denoising_steps is 11; it is at most diffusion_steps"),
        ({"greediness": -2.0}, "greediness is -2; it starts at -1"),
    ],
)
def test_wrong_settings_are_refused_when_acting_too(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **fields)
    with pytest.raises(ValueError, match=message):
        DIPOLEDiffusion(SMALL, 3, 2).act(torch.zeros(1, 3), **fields)
