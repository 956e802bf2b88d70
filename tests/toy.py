"""A task small enough for tests: a point on a line that is rewarded for being near its goal."""

import gymnasium
import numpy as np
import torch

from envs.dataset import Dataset
from envs.task import Task
from harness.run_folder import CHECKPOINT_FORMAT

GOAL = 0.5
EPISODE_LENGTH = 10


class PointEnv(gymnasium.Env):
    """x' = x + 0.2 a + noise; reward 1 - |x - GOAL|; ten steps."""

    observation_space = gymnasium.spaces.Box(-2, 2, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.x = 0, self.np_random.uniform(-1, 1)
        return self._observation(), {}

    def step(self, action):
        self.x = float(np.clip(self.x + 0.2 * action[0] + 0.01 * self.np_random.normal(), -1, 1))
        self.steps += 1
        return self._observation(), 1 - abs(self.x - GOAL), False, self.steps == EPISODE_LENGTH, {}

    def _observation(self):
        return np.array([self.x, self.x**2, 1.0], dtype=np.float32)


def toy_dataset(episodes: int = 40, seed: int = 0) -> Dataset:
    """Episodes of uniform random actions; the reward of a row is that of its own state."""
    environment, random = PointEnv(), np.random.default_rng(seed)
    observations, actions, rewards = [], [], []
    for episode in range(episodes):
        observation, _ = environment.reset(seed=episode)
        for _ in range(EPISODE_LENGTH + 1):
            observations.append(observation)
            actions.append(random.uniform(-1, 1, 2).astype(np.float32))
            rewards.append(1 - abs(float(observation[0]) - GOAL))
            observation = environment.step(actions[-1])[0]
    rows = torch.arange(episodes * (EPISODE_LENGTH + 1))
    valid = rows[(rows + 1) % (EPISODE_LENGTH + 1) != 0]
    stacked = (torch.tensor(np.stack(observations)), torch.tensor(np.stack(actions)), torch.tensor(rewards))
    return Dataset(*stacked, torch.ones(len(rows)), valid)


def toy_task(validation: bool = False) -> Task:
    return Task(
        name="toy/point",
        dataset=toy_dataset(),
        validation=toy_dataset(episodes=8, seed=1) if validation else None,
        make_env=PointEnv,
        observation_dim=3,
        action_dim=2,
        score_name="return",
        identity={"suite": "toy", "path": "tests/toy.py", "sha256": "0", "source": "locally generated"},
    )


def random_batch(
    batch_size: int = 16, observation_dim: int = 3, action_dim: int = 2, dtype: torch.dtype = torch.float32
) -> dict:
    """A minibatch of random numbers with every column that an algorithm may ask for."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    return {
        "observations": normal(batch_size, observation_dim),
        "actions": normal(batch_size, action_dim).clamp(-0.9, 0.9),
        "next_observations": normal(batch_size, observation_dim),
        "rewards": normal(batch_size),
        "masks": (normal(batch_size) > -1).to(dtype),
        "next_actions": normal(batch_size, action_dim).clamp(-0.9, 0.9),
    }


def toy_checkpoint(algorithm: str) -> dict:
    """What checkpoint.pt of a run holds, with nothing in the agent's state."""
    loop = {"step": 0, "seconds": 0.0, "device": "cpu", "batches": torch.empty(0), "online": {}}
    sizes = {"observation_dim": 1, "action_dim": 1}
    return {"format": CHECKPOINT_FORMAT, "algorithm": algorithm, "config": {}, **sizes, "agent": {}, "loop": loop}
