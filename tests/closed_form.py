"""A one-state bandit on which every policy of DIPOLE is known in closed form, to compare the samplers with.

One action in [-1, 1], a behaviour density of three bumps, a known reward, no next state (`masks` 0). Then Q is the
reward, V its expectile under the behaviour, and eq. 6 and 8 are densities on a grid. The samplers compared with them:

    score@S       the trained networks, eq. 10, S Euler steps
    resample@R    the same trained networks, one of R draws of pi+ by its weight exp(omega beta Q)
    exact@S       eq. 10 and S Euler steps with the exact velocities E[a - x0 | x_t] of pi+ and pi-: nothing is learned

so that three sources of error can be told apart: learning (score@S against exact@S), the number of steps (exact@10
against exact@1000) and eq. 10 itself, whose guided marginals are not the noised product (exact@1000 against eq. 6).

    python -m tests.closed_form --out docs/figures
"""

import dataclasses
from dataclasses import dataclass
from typing import Callable, Sequence

import numpy as np
import torch
from scipy.special import expit, ndtri
from scipy.stats import wasserstein_distance

from algorithms.dipole import DIPOLE, DIPOLEConfig

GRID = np.linspace(-1, 1, 401)
BUMPS = ((0.3, -0.6, 0.15), (0.4, 0.0, 0.15), (0.3, 0.6, 0.15))  # weight, mean and standard deviation of the behaviour
GREEDINESS = (0.5, 1.0, 2.0)
CONVERGED_STEPS = 1_000  # Euler steps at which exact@S no longer changes
CONFIG = DIPOLEConfig(
    batch_size=256,
    learning_rate=3e-3,
    target_rate=0.05,
    actor_hidden_dims=(64, 64, 64),
    value_hidden_dims=(64, 64),
    inverse_temperature=5.0,
    expectile=0.7,
    num_candidates=1,
    flow_steps=1,  # of the next actions while training, which masks 0 makes irrelevant
)


def normalised(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()


def expectile_of(values: np.ndarray, probabilities: np.ndarray, expectile: float) -> float:
    """The v with sum of p |expectile - 1[x < v]| (x - v) = 0, by iterating the weighted mean that it is."""
    v = float(probabilities @ values)
    for _ in range(100):
        v = float(np.average(values, weights=probabilities * np.abs(expectile - (values < v))))
    return v


@dataclass(frozen=True)
class Bandit:
    """One state; all densities are probabilities on GRID."""

    name: str
    reward: Callable[[np.ndarray], np.ndarray]
    config: DIPOLEConfig = CONFIG

    @property
    def behaviour(self) -> np.ndarray:
        bumps = (weight / width * np.exp(-0.5 * ((GRID - mean) / width) ** 2) for weight, mean, width in BUMPS)
        return normalised(sum(bumps))

    @property
    def positive_weight(self) -> np.ndarray:
        """sigma(beta A) with A = r minus its expectile under the behaviour: sigma is not shift-invariant."""
        rewards = self.reward(GRID)
        value = expectile_of(rewards, self.behaviour, self.config.expectile)
        return expit(self.config.inverse_temperature * (rewards - value))

    @property
    def positive(self) -> np.ndarray:
        """pi+ of eq. 8."""
        return normalised(self.behaviour * self.positive_weight)

    @property
    def negative(self) -> np.ndarray:
        """pi- of eq. 8."""
        return normalised(self.behaviour * (1 - self.positive_weight))

    def target(self, greediness: float) -> np.ndarray:
        """pi* of eq. 6."""
        return normalised(self.positive * np.exp(greediness * self.config.inverse_temperature * self.reward(GRID)))

    def batch(self, size: int, generator: np.random.Generator) -> dict:
        actions = generator.choice(GRID, size=(size, 1), p=self.behaviour)
        states = torch.zeros(size, 1)
        return {
            "observations": states,
            "actions": torch.tensor(actions, dtype=torch.float32),
            "rewards": torch.tensor(self.reward(actions[:, 0]), dtype=torch.float32),
            "masks": torch.zeros(size),
            "next_observations": states,
        }


LINEAR = Bandit("linear", lambda actions: actions)
MULTI_MODAL = Bandit("multi-modal", lambda actions: np.cos(8 * actions - 1) / 2 + actions / 4)


def train(bandit: Bandit, seed: int, updates: int = 1_500) -> DIPOLE:
    agent = DIPOLE(dataclasses.replace(bandit.config, seed=seed), observation_dim=1, action_dim=1)
    generator = np.random.default_rng(seed)
    for _ in range(updates):
        agent.update(bandit.batch(bandit.config.batch_size, generator))
    return agent


def score_samples(agent: DIPOLE, greediness: float, flow_steps: int, count: int) -> np.ndarray:
    return agent.act(torch.zeros(count, 1), greediness=greediness, flow_steps=flow_steps)[:, 0].numpy()


def resample_samples(agent: DIPOLE, greediness: float, draws: int, count: int, flow_steps: int = 10) -> np.ndarray:
    """The same networks and noise under `composition: resample`."""
    config = dataclasses.replace(agent.config, composition="resample", resample_candidates=draws)
    resampler = DIPOLE(config, agent.observation_dim, agent.action_dim)
    resampler.load_state_dict(agent.state_dict())
    return resampler.act(torch.zeros(count, 1), greediness=greediness, flow_steps=flow_steps)[:, 0].numpy()


def exact_velocities(densities: np.ndarray, x: np.ndarray, t: float) -> np.ndarray:
    """E[a - x0 | x_t = x] where x_t = (1 - t) x0 + t a, x0 ~ N(0, 1), a of each of the densities [D, grid]: [D, X]."""
    log_kernel = -(((x[:, None] - t * GRID) / (1 - t)) ** 2) / 2
    kernel = np.exp(log_kernel - log_kernel.max(axis=1, keepdims=True))
    actions = (densities * GRID) @ kernel.T / (densities @ kernel.T)
    return (actions - x) / (1 - t)


def exact_samples(bandit: Bandit, greediness: Sequence[float], flow_steps: int, count: int) -> np.ndarray:
    """Euler steps with the exact velocities from the quantiles of N(0, 1), so without sampling error: [omega, count]."""
    x = np.tile(ndtri((np.arange(count) + 0.5) / count), (len(greediness), 1))
    omega = np.array(greediness)[:, None]
    table = np.linspace(-5, 5, 501)
    densities = np.stack([bandit.positive, bandit.negative])
    for step in range(flow_steps):
        positive, negative = exact_velocities(densities, table, step / flow_steps)
        velocities = (1 + omega) * positive - omega * negative
        x = x + np.stack([np.interp(*row) for row in zip(x, [table] * len(x), velocities)]) / flow_steps
    return x.clip(-1, 1)


def distance(samples: np.ndarray, density: np.ndarray) -> float:
    """Wasserstein distance, in units of the action."""
    return wasserstein_distance(samples, GRID, v_weights=density)


def reward_error(bandit: Bandit, samples: np.ndarray, density: np.ndarray) -> float:
    """Mean reward of the samples minus that of the density."""
    return float(bandit.reward(samples).mean() - density @ bandit.reward(GRID))
