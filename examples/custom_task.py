"""A data set and an environment of one's own as a task of the harness, without editing a file of this repository.

    DIPOLE_SUITES=own=examples.custom_task python algorithms/dipole.py --task own/reach --offline_steps 5_000

DIPOLE_SUITES names the module whose `load` makes the tasks `own/...`; every command then knows them: harness.evaluate,
harness.compare, harness.tune, all algorithms. A module that lies elsewhere is found where PYTHONPATH holds its folder.

    python -m examples.custom_task

trains on it for 300 updates below runs/. To use your own: replace `Reach` and `logged_episodes`.
"""

import hashlib
import os
from typing import List, Optional

import gymnasium
import numpy as np
import torch

from algorithms.dipole import DIPOLEConfig, train
from common.errors import UserError
from envs.dataset import Dataset
from envs.task import Task

STEPS = 20  # of an episode
ACTION_SIZE = 0.2


class Reach(gymnasium.Env):
    """A point in the plane goes to a goal: observation (position, goal), reward minus the distance, 20 steps.

    Actions are in [-1, 1], as every algorithm gives them; scale them here if your simulator's are not.
    """

    observation_space = gymnasium.spaces.Box(-2, 2, (4,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: Optional[int] = None, options: Optional[dict] = None):
        super().reset(seed=seed)  # all randomness from self.np_random: an episode is then its seed
        self.steps = 0
        self.position, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        return self._observation(), {}

    def step(self, action: np.ndarray):
        self.steps += 1
        self.position = np.clip(self.position + ACTION_SIZE * action, -2, 2)
        reward = -float(np.linalg.norm(self.position - self.goal))
        return self._observation(), reward, False, self.steps == STEPS, {}

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.position, self.goal]).astype(np.float32)


def logged_episodes(count: int = 200) -> List[dict]:
    """What you would read from your files: an episode has T + 1 observations, T actions and T rewards."""
    environment, random = Reach(), np.random.default_rng(0)
    episodes = []
    for seed in range(count):
        episode = {"observations": [environment.reset(seed=seed)[0]], "actions": [], "rewards": [], "terminated": False}
        truncated = False
        while not (episode["terminated"] or truncated):
            action = random.uniform(-1, 1, 2).astype(np.float32)
            observation, reward, episode["terminated"], truncated, _ = environment.step(action)
            for name, value in (("observations", observation), ("actions", action), ("rewards", reward)):
                episode[name].append(value)
        episodes.append(episode)
    return episodes


def as_dataset(episodes: List[dict]) -> Dataset:
    """Rows one after the other, each episode's last observation among them: the next observation is the next row."""
    observations, actions, rewards, masks, valid = [], [], [], [], []
    for episode in episodes:
        steps = len(episode["actions"])
        valid += range(len(observations), len(observations) + steps)  # the rows that have a successor
        observations += episode["observations"]
        actions += [*episode["actions"], episode["actions"][-1]]  # the last row's action and reward are never used
        rewards += [*episode["rewards"], 0.0]
        masks += [1.0] * (steps - 1) + [0.0 if episode["terminated"] else 1.0, 1.0]  # a time limit bootstraps
    columns = (np.asarray(observations), np.asarray(actions), np.asarray(rewards), np.asarray(masks), np.asarray(valid))
    return Dataset(*map(torch.from_numpy, columns))


def load(name: str, data_dir: Optional[str] = None, collect_episodes: int = 0) -> Task:
    """The task `own/<name>`; data_dir and collect_episodes are the config's. Raises UserError for an unknown name."""
    if name != "reach":
        raise UserError(f"task own/{name}: unknown (known: reach)")
    episodes = logged_episodes()
    returns = [sum(episode["rewards"]) for episode in episodes]
    dataset = as_dataset(episodes)
    return Task(
        name=f"own/{name}",
        dataset=dataset,
        validation=None,  # or a Dataset: its losses are logged
        make_env=Reach,  # a class or function of a module, so that other processes can import it
        observation_dim=4,
        action_dim=2,
        score_name="return",  # or "success": info["success"] at an episode's last step
        identity={
            "suite": "own",
            "path": __file__,
            "sha256": hashlib.sha256(dataset.observations.numpy().tobytes()).hexdigest(),  # a run refuses other data
            "source": "locally generated",
            "transitions": len(dataset),
            "episodes": len(episodes),
            "episode_return_mean": float(np.mean(returns)),  # drawn beside the policy's score
            "episode_return_best": float(max(returns)),
        },
    )


def main() -> None:
    os.environ["DIPOLE_SUITES"] = "own=examples.custom_task"
    config = DIPOLEConfig(
        task="own/reach",
        label="custom_task",
        offline_steps=300,
        log_interval=100,
        eval_interval=150,
        eval_episodes=20,
        learning_rate=1e-3,
        actor_hidden_dims=(64, 64),
        value_hidden_dims=(64, 64),
        flow_steps=5,
        inverse_temperature=10.0,
        greediness=1.0,
        num_candidates=4,
    )
    train([config])


if __name__ == "__main__":
    main()
