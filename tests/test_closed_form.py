"""DIPOLE on the one-state bandit of closed_form.py against eq. 6 and 8.

Thresholds: measured over seeds 0 to 2 the distance of pi+ is 0.05 to 0.06 where the behaviour's is 0.26, and resampling
among 256 draws is at most 0.82 times as far from eq. 6 at omega 2 as among 16.
"""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from tests.closed_form import (
    GREEDINESS,
    GRID,
    LINEAR,
    MULTI_MODAL,
    distance,
    draw,
    exact_resample_samples,
    exact_samples,
    expectile_of,
    markdown,
    measure,
    resample_samples,
    score_samples,
    train,
)


@pytest.fixture(scope="module")
def agent():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield train(LINEAR, seed=0)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("bandit", [LINEAR, MULTI_MODAL])
@pytest.mark.parametrize("greediness", [0.5, 2.0])
def test_eq_6_is_eq_7(bandit, greediness):
    weight = bandit.positive_weight
    ratio = (bandit.behaviour * weight) ** (1 + greediness) / (bandit.behaviour * (1 - weight)) ** greediness
    np.testing.assert_allclose(bandit.target(greediness), ratio / ratio.sum(), rtol=1e-9)
    np.testing.assert_allclose(bandit.target(0.0), bandit.positive, rtol=1e-12)


def test_expectile_balances_both_sides():
    values, probabilities = np.array([0.0, 1.0, 4.0]), np.array([0.5, 0.3, 0.2])
    v = expectile_of(values, probabilities, 0.7)
    above, below = (probabilities @ np.maximum(sign * (values - v), 0) for sign in (1, -1))
    assert 0.7 * above == pytest.approx(0.3 * below, rel=1e-9)


def test_the_value_network_learns_the_expectile(agent):
    exact = expectile_of(LINEAR.reward(GRID), LINEAR.behaviour, LINEAR.config.expectile)
    with torch.no_grad():
        assert agent.value(torch.zeros(1, 1)).item() == pytest.approx(exact, abs=0.08)


def test_positive_policy_is_eq_8_and_the_behaviour_is_not(agent):
    control = wasserstein_distance(GRID, GRID, LINEAR.behaviour, LINEAR.positive)
    assert control > 0.25
    assert distance(score_samples(agent, 0.0, flow_steps=100, count=2_000), LINEAR.positive) < 0.4 * control


def test_mean_reward_rises_with_greediness_on_the_linear_reward(agent):
    rewards = [LINEAR.reward(score_samples(agent, omega, 10, 1_000)).mean() for omega in (0.0, *GREEDINESS)]
    assert np.diff(rewards).min() > 0.05, rewards


def test_resampling_approaches_eq_6_with_the_number_of_draws(agent):
    target = LINEAR.target(2.0)
    few, many = (distance(resample_samples(agent, 2.0, draws, count=300), target) for draws in (16, 256))
    assert many < 0.9 * few


@pytest.mark.parametrize("greediness", [1.0, 2.0])
def test_resampling_without_learning_approaches_eq_6(greediness):
    target = LINEAR.target(greediness)
    few, many = (distance(exact_resample_samples(LINEAR, greediness, draws, 2_000), target) for draws in (16, 256))
    assert many < 0.05 < few


@pytest.mark.parametrize("bandit", [LINEAR, MULTI_MODAL])
def test_exact_velocities_reach_eq_8_and_not_eq_6(bandit):
    positive, negative, guided = exact_samples(bandit, (0.0, -1.0, 2.0), flow_steps=100, count=500)
    assert distance(positive, bandit.positive) < 0.01
    assert distance(negative, bandit.negative) < 0.01
    assert 0.05 < distance(guided, bandit.target(2.0)) < 0.15, "guided marginals are not the noised product"
    coarse = exact_samples(bandit, (0.0,), flow_steps=10, count=500)[0]
    assert distance(coarse, bandit.positive) > 2 * distance(positive, bandit.positive)


def test_measurements_and_figure(tmp_path):
    """The command's parts on a set of two samplers, without training."""
    samples = {
        (f"{sampler}@{size}", omega): np.linspace(-1, 1, 50)
        for sampler, sizes in (("score", (10, 100)), ("exact", (10, 100)), ("resample", (16, 256)))
        for size in sizes
        for omega in (0.0, *GREEDINESS)
        if not (sampler == "resample" and omega == 0)
    }
    uniform = dataclasses.replace(LINEAR, name="uniform")
    rows = measure(uniform, samples, seed=3)
    assert len(rows) == len(samples) and rows[0]["mean_reward"] == 0
    target = uniform.target(0.0)
    assert rows[0]["reward_error"] == pytest.approx(-target @ GRID, abs=1e-4)
    assert markdown(rows).count("| score@10 |") == 1
    draw({"one": (uniform, samples), "two": (MULTI_MODAL, samples)}, tmp_path / "bandit.png")
    assert (tmp_path / "bandit.png").stat().st_size > 10_000
