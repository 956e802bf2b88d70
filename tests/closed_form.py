"""A one-state bandit on which every policy of DIPOLE is known in closed form, to compare the samplers with.

One action in [-1, 1], a behaviour density of three bumps, a known reward, no next state (`masks` 0). Then Q is the
reward, V its expectile under the behaviour, and eq. 6 and 8 are densities on a grid. The samplers compared with them:

    score@S            the trained networks, eq. 10, S Euler steps
    exact@S            the same with the exact velocities E[a - x0 | x_t] of pi+ and pi-: nothing is learned
    resample@R         the trained networks, one of R draws of pi+ by its weight exp(omega beta Q)
    exact resample@R   the same with draws of eq. 8 and the true reward: nothing is learned

so that the sources of error can be told apart: learning (score@S against exact@S), the number of steps (exact@10
against exact@1000) and eq. 10 itself, whose guided marginals are not the noised product (exact@1000 against eq. 6).

    python -m tests.closed_form --out docs/figures
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from scipy.special import expit, ndtri
from scipy.stats import wasserstein_distance

from algorithms.dipole import DIPOLE, DIPOLEConfig
from examples.resample import ResamplingDIPOLE

GRID = np.linspace(-1, 1, 401)
# Weight, mean and standard deviation of the behaviour's bumps. The best for the linear reward is rare.
BUMPS = ((0.5, -0.6, 0.12), (0.48, 0.0, 0.12), (0.02, 0.6, 0.12))
GREEDINESS = (0.5, 1.0, 2.0)
FLOW_STEPS = (10, 100)
RESAMPLE_DRAWS = (16, 256)
CONVERGED_STEPS = 1_000  # Euler steps after which exact@S no longer changes
BATCH_SIZE = 256
CONFIG = DIPOLEConfig(
    learning_rate=2e-3,
    target_rate=0.02,
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
MULTI_MODAL = Bandit("multi-modal", lambda actions: np.sin(6 * actions))


def train(bandit: Bandit, seed: int, updates: int = 1_500) -> DIPOLE:
    agent = DIPOLE(bandit.config, observation_dim=1, action_dim=1, seed=seed)
    generator = np.random.default_rng(seed)
    for _ in range(updates):
        agent.update(bandit.batch(BATCH_SIZE, generator))
    return agent


def score_samples(agent: DIPOLE, greediness: float, flow_steps: int, count: int) -> np.ndarray:
    return agent.act(torch.zeros(count, 1), greediness=greediness, flow_steps=flow_steps)[:, 0].numpy()


def resample_samples(agent: DIPOLE, greediness: float, draws: int, count: int) -> np.ndarray:
    """The same trained networks with examples/resample.py's rule of acting, pi+ sampled in 10 Euler steps."""
    resampler = ResamplingDIPOLE.of(agent, resample_candidates=draws)
    return resampler.act(torch.zeros(count, 1), greediness=greediness, flow_steps=10)[:, 0].numpy()


def exact_velocities(densities: np.ndarray, x: np.ndarray, t: float) -> np.ndarray:
    """E[a - x0 | x_t = x] where x_t = (1 - t) x0 + t a, x0 ~ N(0, 1), a of each of the densities [D, grid]: [D, X]."""
    log_kernel = -(((x[:, None] - t * GRID) / (1 - t)) ** 2) / 2
    kernel = np.exp(log_kernel - log_kernel.max(axis=1, keepdims=True))
    actions = (densities * GRID) @ kernel.T / (densities @ kernel.T)
    return (actions - x) / (1 - t)


def exact_samples(bandit: Bandit, greediness: Sequence[float], flow_steps: int, count: int) -> np.ndarray:
    """Euler steps with the exact velocities, from the quantiles of N(0, 1) not noise: [omega, count]."""
    x = np.tile(ndtri((np.arange(count) + 0.5) / count), (len(greediness), 1))
    omega = np.array(greediness)[:, None]
    table = np.linspace(-5, 5, 501)
    densities = np.stack([bandit.positive, bandit.negative])
    for step in range(flow_steps):
        positive, negative = exact_velocities(densities, table, step / flow_steps)
        velocities = (1 + omega) * positive - omega * negative
        x = x + np.stack([np.interp(x[i], table, velocities[i]) for i in range(len(x))]) / flow_steps
    return x.clip(-1, 1)


def exact_resample_samples(bandit: Bandit, greediness: float, draws: int, count: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    actions = generator.choice(GRID, size=(count, draws), p=bandit.positive)
    log_weights = greediness * bandit.config.inverse_temperature * bandit.reward(actions)
    chosen = (log_weights + generator.gumbel(size=actions.shape)).argmax(axis=1)
    return actions[np.arange(count), chosen]


def distance(samples: np.ndarray, density: np.ndarray) -> float:
    """Wasserstein distance, in units of the action."""
    return float(wasserstein_distance(samples, GRID, v_weights=density))


def reward_error(bandit: Bandit, samples: np.ndarray, density: np.ndarray) -> float:
    """Mean reward of the samples minus that of the density."""
    return float(bandit.reward(samples).mean() - density @ bandit.reward(GRID))


def exact_rows(bandit: Bandit, count: int = 4_000) -> dict:
    """(sampler, omega) -> samples of the samplers that learn nothing, and of the behaviour as the control."""
    samples = {("behaviour", 0.0): np.interp((np.arange(count) + 0.5) / count, bandit.behaviour.cumsum(), GRID)}
    for steps in (*FLOW_STEPS, CONVERGED_STEPS):
        exact = exact_samples(bandit, (0.0, *GREEDINESS), steps, count)
        samples |= {(f"exact@{steps}", omega): row for omega, row in zip((0.0, *GREEDINESS), exact, strict=True)}
    for draws in RESAMPLE_DRAWS:
        for omega in GREEDINESS:
            samples[f"exact resample@{draws}", omega] = exact_resample_samples(bandit, omega, draws, count)
    return samples


def learned_rows(agent: DIPOLE, count: int = 4_000, resample_count: int = 1_000) -> dict:
    """(sampler, omega) -> samples of the samplers of a trained agent."""
    samples = {}
    for omega in (0.0, *GREEDINESS):
        for steps in FLOW_STEPS:
            samples[f"score@{steps}", omega] = score_samples(agent, omega, steps, count)
    for omega in GREEDINESS:
        for draws in RESAMPLE_DRAWS:
            samples[f"resample@{draws}", omega] = resample_samples(agent, omega, draws, resample_count)
    return samples


def measure(bandit: Bandit, samples: dict, seed: Optional[int]) -> List[dict]:
    """One row of bandit.csv per sampler and omega; the seed of what nothing was trained for is empty."""
    return [
        {
            "reward": bandit.name,
            "seed": seed,
            "omega": omega,
            "sampler": sampler,
            "distance": round(distance(values, bandit.target(omega)), 4),
            "reward_error": round(reward_error(bandit, values, bandit.target(omega)), 4),
            "mean_reward": round(float(bandit.reward(values).mean()), 4),
        }
        for (sampler, omega), values in samples.items()
    ]


def markdown(rows: List[dict]) -> str:
    """A table per reward of `distance (range over seeds), signed reward error`, means over seeds."""

    def cell(name: str, sampler: str, omega: float) -> str:
        found = [r for r in rows if (r["reward"], r["sampler"], r["omega"]) == (name, sampler, omega)]
        if not found:
            return ""
        distances = [row["distance"] for row in found]
        spread = f" ({min(distances):.2f}-{max(distances):.2f})" if len(found) > 1 else ""
        return f"{np.mean(distances):.2f}{spread}, {np.mean([row['reward_error'] for row in found]):+.2f}"

    omegas = (0.0, *GREEDINESS)
    lines = []
    for name in dict.fromkeys(row["reward"] for row in rows):
        lines += [f"\n{name} reward", "", "| sampler | " + " | ".join(f"omega {omega:g}" for omega in omegas) + " |"]
        lines += ["|---" * (len(omegas) + 1) + "|"]
        for sampler in dict.fromkeys(row["sampler"] for row in rows):
            lines.append(f"| {sampler} | " + " | ".join(cell(name, sampler, omega) for omega in omegas) + " |")
    return "\n".join(lines)


def draw(panels: Dict[str, Tuple[Bandit, dict]], path: Path) -> None:
    """One row per omega, three columns per reward: eq. 10 learned, eq. 10 exact, resample; eq. 6 (8 at 0) in grey.

    Curves are cut at 1.6 times the height of the grey density.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    few, many = {"color": "#D55E00", "linestyle": "--"}, {"color": "#0072B2", "linestyle": "-"}
    columns = [("score@10", "score@100"), ("exact@10", "exact@100"), ("resample@16", "resample@256")]
    figure, axes = pyplot.subplots(4, 6, figsize=(15, 8.5), sharex=True, constrained_layout=True)
    bins = np.linspace(-1, 1, 51)
    density_per_probability = 1 / (GRID[1] - GRID[0])
    for block, (bandit, samples) in enumerate(panels.values()):
        for row, omega in enumerate((0.0, *GREEDINESS)):
            target = bandit.target(omega) * density_per_probability
            for column, names in enumerate(columns):
                axis = axes[row, 3 * block + column]
                if (names[0], omega) not in samples:  # at omega 0 resampling is pi+ itself: show the problem instead
                    axis.fill_between(GRID, bandit.behaviour * density_per_probability, color="#CC79A7", alpha=0.4)
                    axis.plot(GRID, bandit.reward(GRID), color="black", linewidth=1)
                    axis.set_title("behaviour (filled), reward (line)", fontsize=9)
                    continue
                axis.fill_between(GRID, target, color="0.8")
                for name, style in zip(names, (few, many), strict=True):
                    heights, _ = np.histogram(samples[name, omega], bins=bins, density=True)
                    axis.plot((bins[1:] + bins[:-1]) / 2, heights, linewidth=1.4, label=name, **style)
                axis.set_ylim(0, 1.6 * target.max())
                axis.set_title(f"{bandit.name}, omega {omega:g}, eq. {6 if omega else 8} in grey", fontsize=9)
                axis.legend(fontsize=7, frameon=False, loc=("upper left", "upper right")[block])
    for axis in axes.flat:
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
    figure.supxlabel("action (densities; curves are cut at 1.6 times the height of the grey one)", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of bandit.png and bandit.csv")
    parser.add_argument("--updates", type=int, default=4_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the figure shows the first")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, panels = [], {}
    for bandit in (LINEAR, MULTI_MODAL):
        exact = exact_rows(bandit)
        rows += measure(bandit, exact, seed=None)
        for seed in arguments.seeds:
            learned = learned_rows(train(bandit, seed, arguments.updates))
            rows += measure(bandit, learned, seed)
            panels.setdefault(bandit.name, (bandit, exact | learned))
    arguments.out.mkdir(parents=True, exist_ok=True)
    with open(arguments.out / "bandit.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(panels, arguments.out / "bandit.png")
    print(markdown(rows))


if __name__ == "__main__":
    main()
