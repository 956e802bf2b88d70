"""A data set and an environment of one's own as a task of the harness, without editing a file of this repository.

    DIPOLE_SUITES=own=examples.custom_task python algorithms/dipole.py --task own/reach --offline_steps 5_000

DIPOLE_SUITES names the module whose `load` makes the tasks `own/...`; every command then knows them: harness.evaluate,
harness.compare, harness.tune, all algorithms. A module that lies elsewhere is found where PYTHONPATH holds its folder.

    python -m examples.custom_task

trains on it for 300 updates below runs/. To use your own: replace `Reach` and `logged_transitions`.
"""

from typing import Optional

import gymnasium
import numpy as np

from algorithms.dipole import DIPOLE, DIPOLEConfig
from common.errors import UserError
from envs.arrays import task_from_arrays
from envs.task import Task
from harness.config import RunConfig
from harness.train import train_run

STEPS = 20  # of an episode
LARGEST_ACTION = 0.2


class Reach(gymnasium.Env):
    """A point in the plane goes to a goal: observation (position, goal), reward minus the distance, 20 steps.

    An action is a step of up to 0.2 along each axis: `task_from_arrays` scales it to the policy's [-1, 1].
    """

    observation_space = gymnasium.spaces.Box(-2, 2, (4,), np.float32)
    action_space = gymnasium.spaces.Box(-LARGEST_ACTION, LARGEST_ACTION, (2,), np.float32)
    max_episode_steps = STEPS  # so that no other limit is looked for; gymnasium.register's argument does the same

    def reset(self, *, seed: Optional[int] = None, options: Optional[dict] = None):
        super().reset(seed=seed)  # all randomness from self.np_random: an episode is then its seed
        self.steps = 0
        self.position, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        return self._observation(), {}

    def step(self, action: np.ndarray):
        self.steps += 1
        self.position = np.clip(self.position + action, -2, 2)
        reward = -float(np.linalg.norm(self.position - self.goal))
        return self._observation(), reward, False, self.steps == STEPS, {}

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.position, self.goal]).astype(np.float32)


def logged_transitions(episodes: int = 200) -> dict:
    """What you would read from your files: arrays with a row for each step, the episodes one after the other."""
    environment, random = Reach(), np.random.default_rng(0)
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    columns = {name: [] for name in names}
    for seed in range(episodes):
        observation, _ = environment.reset(seed=seed)
        terminated = truncated = False
        while not (terminated or truncated):
            action = random.uniform(-LARGEST_ACTION, LARGEST_ACTION, 2)
            following, reward, terminated, truncated, _ = environment.step(action)
            step = (observation, action, reward, following, terminated, truncated)
            for name, value in zip(names, step, strict=True):
                columns[name].append(value)
            observation = following
    return {name: np.asarray(column) for name, column in columns.items()}


def load(name: str, data_dir: Optional[str] = None, collect_episodes: int = 0) -> Task:
    """The task `own/<name>`; data_dir and collect_episodes are the run's. Raises UserError for an unknown name."""
    if name != "reach":
        raise UserError(f"task own/{name}: unknown (known: reach)")
    # A class or function of a module makes the environment, so that other processes can import it.
    return task_from_arrays(f"own/{name}", logged_transitions(), make_env=Reach)


def main() -> None:
    run = RunConfig(
        task="own/reach",
        label="custom_task",
        offline_steps=300,
        log_interval=100,
        eval_interval=150,
        eval_episodes=20,
    )
    config = DIPOLEConfig(
        learning_rate=1e-3,
        actor_hidden_dims=(64, 64),
        value_hidden_dims=(64, 64),
        flow_steps=5,
        inverse_temperature=10.0,
        greediness=1.0,
        num_candidates=4,
    )
    train_run(DIPOLE, run, config, task=load("reach"))


if __name__ == "__main__":
    main()
