"""Another way to a greedy policy: resample actions of pi+ by exp(omega beta Q) in place of eq. 10.

A subclass shows how to change one thing of an algorithm: DIPOLE's networks and training, with another rule of acting.
pi* ~ pi+ exp(omega beta A) (eq. 6 and 8), so of R actions of pi+ one is drawn with probabilities proportional to
exp(omega beta Q), where V and the shift k cancel. It approaches eq. 6 as R grows; docs/bandit.md measures how fast.

    python -m examples.resample runs/dipole/exorl/local_sticky_random/cartpole_swingup/seed_0
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from algorithms.baselines.dql import resample
from algorithms.dipole import DIPOLE, DIPOLEConfig, aggregated, best_candidate
from common.errors import UserError, exit_on_user_error
from envs import load_task
from harness.evaluation import GRID_SEED, evaluate

EPISODES = 10


@dataclass(frozen=True)
class ResamplingConfig(DIPOLEConfig):
    resample_candidates: int = 16  # R: draws of pi+ per resampled action

    def __post_init__(self):
        super().__post_init__()
        if self.greediness < 0:
            raise ValueError(f"greediness is {self.greediness:g}; resampling has no negative policy, set 0 or more")


class ResamplingDIPOLE(DIPOLE):
    """DIPOLE that acts by resampling; the next actions in its critics' targets still follow eq. 10."""

    act_options = (*DIPOLE.act_options, "resample_candidates")

    @torch.no_grad()
    def act(self, observations: Tensor, explore: bool = False, **options) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]; `options` replace the config's (see act_options)."""
        config = dataclasses.replace(self.config, **options)
        num_states, num_draws = len(observations), config.num_candidates * config.resample_candidates
        x0 = self.noise.normal(num_states, num_draws, self.action_dim)
        actions = self.sample(observations, x0, greediness=0.0, flow_steps=config.flow_steps)
        log_weights = self.log_weights(observations, actions, config).unflatten(1, (config.num_candidates, -1))
        uniform = self.noise.uniform(num_states, num_draws).view_as(log_weights)
        candidates = resample(actions.view(*log_weights.shape, self.action_dim), log_weights, uniform)
        return best_candidate(self.critic, observations, candidates)

    def log_weights(self, observations: Tensor, actions: Tensor, config: ResamplingConfig) -> Tensor:
        """omega beta times the target critics' value of actions [N, R, A] at observations [N, O]: [N, R]."""
        repeated = observations.repeat_interleave(actions.shape[1], dim=0)
        q = self.target_critic(repeated, actions.flatten(0, 1)).squeeze(-1)
        q = aggregated(q, config.pessimism)
        return config.greediness * config.inverse_temperature * q.view(actions.shape[:2])

    @classmethod
    def of(cls, agent: DIPOLE, **changes) -> "ResamplingDIPOLE":
        """A trained agent of algorithms/dipole.py with the other rule of acting."""
        config = ResamplingConfig(**dataclasses.asdict(agent.config) | changes)
        other = cls(config, agent.observation_dim, agent.action_dim)
        other.load_state_dict(agent.state_dict())
        other.noise.generator.set_state(agent.noise.generator.get_state())
        return other


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """1 / sum of squared normalised weights, between 1 and R: log_weights [..., R] -> [...]."""
    return 1 / torch.softmax(log_weights, dim=-1).square().sum(dim=-1)


def main() -> None:
    """Scores of a trained run at three omegas, by either rule, with one candidate per action."""
    with exit_on_user_error():
        if len(sys.argv) != 2:
            raise UserError("command line: give the folder of a run of algorithms/dipole.py")
        agent = DIPOLE.load(sys.argv[1])
        stored = torch.load(Path(sys.argv[1]) / "checkpoint.pt", map_location="cpu", weights_only=True)["config"]
        task = load_task(stored["task"], stored["data_dir"])
        for rule in (agent, ResamplingDIPOLE.of(agent)):
            for greediness in (0.0, 1.0, 4.0):
                options = {"greediness": greediness, "num_candidates": 1}
                result = evaluate(rule, task.make_env, EPISODES, GRID_SEED, **options)
                score = result.scores(task.score_name).mean()
                print(f"{type(rule).__name__:<17} omega {greediness:g}: {task.score_name} {score:.4g}")


if __name__ == "__main__":
    main()
