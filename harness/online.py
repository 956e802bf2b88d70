"""The online phase of a run: its environment, the episodes played in it, the replay and the files that keep it."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import UserError
from common.files import remove_abandoned, replacing
from envs.dataset import Dataset
from envs.replay import Replay
from envs.seeding import SeededEnvironment, generators_preserved
from envs.task import Task
from envs.wrappers import single_steps, success_of
from harness import run_files
from harness.config import RunConfig
from harness.devices import EPISODE_STREAM

FIRST_SEED = 1 << 31  # evaluations' seeds are smaller


class OnlinePhase:
    """One environment in which the agent acts, one step between two updates; to be closed.

    Episode i is reset with a seed made from (the run's seed, i). What happens is in the replay, of which `save` writes
    what is new to a file of its own, replay/part_<step>.npz; a checkpoint lists these files with their hashes.
    `restore` plays the interrupted episode again from its seed with its recorded actions, and so continues exactly.
    """

    def __init__(self, run: RunConfig, task: Task, dataset: Dataset, folder: Path):
        self.run, self.task, self.folder = run, task, folder / run_files.REPLAY_FOLDER
        room = None if run.keep_offline else max(run.replay_capacity - len(dataset.valid), 0)
        self.replay = Replay(dataset, min(run.replay_capacity, run.online_steps), room, run.balanced_sampling)
        self.device = dataset.observations.device
        self.environment: Any = None  # built when the phase begins
        self.observation: np.ndarray | None = None  # [O]; None between two episodes
        self.episode = 0  # number of the episode that is played or comes next
        self.steps, self.episode_return = 0, 0.0  # of that episode so far
        self.queue: list[np.ndarray] = []  # actions [A] of the present chunk that are still to be executed
        self.last_episode: dict[str, float] = {}  # what train.csv says of the last whole episode
        self.parts: list[list] = []  # [step, number of the first transition, transitions, sha256] of each file

    def close(self) -> None:
        if self.environment is not None:
            self.environment.close()

    def step(self, agent: torch.nn.Module) -> None:
        """One environment step with an exploring action, into the replay. Raises FloatingPointError for NaNs."""
        if self.observation is None:
            self._begin_episode()
        if not self.queue:
            observations = torch.tensor(self.observation, device=self.device)[None]
            chunk = agent.act(observations, explore=True)[0].to("cpu", torch.float32).numpy()
            if not np.isfinite(chunk).all():
                raise FloatingPointError(f"act() gave an action that is not finite in online episode {self.episode}")
            self.queue = list(chunk.reshape(self.replay.chunk.actions, -1))
        transition = self._play(self.queue.pop(0))
        self.replay.add({name: torch.as_tensor(value)[None] for name, value in transition.items()})

    @generators_preserved()
    def _begin_episode(self) -> None:
        key = (self.run.seed, EPISODE_STREAM, self.episode)
        seed = int(np.random.SeedSequence(key).generate_state(1)[0]) | FIRST_SEED
        if self.environment is None:
            self.environment = SeededEnvironment(single_steps(self.task.make_env), seed)
        observation, _ = self.environment.reset(seed)
        self.observation = np.asarray(observation, dtype=np.float32)
        self.steps, self.episode_return = 0, 0.0

    @generators_preserved()
    def _play(self, action: np.ndarray) -> dict[str, np.ndarray]:
        """Steps the environment; returns the transition by the replay's columns, with the task's reward and mask."""
        observation, episode = self.observation, self.episode
        next_observation, reward, terminated, truncated, info = self.environment.step(action)
        next_observation = np.asarray(next_observation, dtype=np.float32)
        if not (np.isfinite(next_observation).all() and np.isfinite(reward)):
            raise FloatingPointError(f"online episode {episode}: observation or reward {self.steps} is not finite")
        self.observation = next_observation
        self.steps += 1
        self.episode_return += float(reward)
        if terminated or truncated:
            self.last_episode = {"exploration/return": self.episode_return, "exploration/length": self.steps}
            if not np.isnan(success_of(info)):
                self.last_episode["exploration/success"] = success_of(info)
            self.observation, self.steps, self.episode, self.queue = None, 0, episode + 1, []
        return {
            "observations": observation,
            "actions": action,
            "rewards": np.float32(reward + self.task.reward_shift),
            "masks": np.float32(not terminated),
            "next_observations": next_observation,
            "episodes": np.int64(episode),
        }

    def metrics(self) -> dict[str, float]:
        """Columns of train.csv: the return, length and success of the last whole episode, and the episodes ended."""
        return {**self.last_episode, "exploration/episodes": self.episode} if self.replay.added else {}

    # ---- Continuing ----

    def save(self, step: int) -> dict:
        """Writes the transitions since the last call to a file of their own; returns the state for a checkpoint."""
        saved = self.parts[-1][1] + self.parts[-1][2] if self.parts else 0
        count = min(self.replay.added - saved, len(self.replay))  # a small ring may have lost some
        if count:
            content = io.BytesIO()
            np.savez(content, **{name: column.numpy() for name, column in self.replay.newest(count).items()})
            self.folder.mkdir(exist_ok=True)
            with replacing(self._part(step)) as temporary:
                temporary.write_bytes(content.getbuffer())
            digest = hashlib.sha256(content.getbuffer()).hexdigest()
            self.parts.append([step, self.replay.added - count, count, digest])
        state = {"parts": self.parts, "added": self.replay.added, "episode": self.episode}
        state["queue"] = [torch.tensor(action) for action in self.queue]
        return state | {"steps": self.steps, "last_episode": self.last_episode}

    def restore(self, step: int, state: dict | None) -> None:
        """Returns to the `state` of a checkpoint after `step` updates; removes files that were written after it.

        Where the environment does not repeat the interrupted episode, its rest is lost: a new one begins, and this is
        printed. The transitions before it stay. Raises UserError where a file of the replay is absent or damaged, and
        where the state is not of that step (None: there is no checkpoint).
        """
        added = state["added"] if state else 0
        if added != max(0, step - self.run.offline_steps):
            raise UserError(
                f"{self.folder.parent / run_files.CHECKPOINT}: is of update {step}, but of {added} environment steps; "
                "put the right one back, or add --restart"
            )
        self.parts = list(state["parts"]) if state else []
        if self.folder.exists():
            remove_abandoned(self.folder)
            listed = {self._part(part[0]) for part in self.parts}
            for path in set(self.folder.parent.glob(run_files.REPLAY_PARTS)) - listed:
                path.unlink()
        if not added:
            return
        first = added - min(added, self.replay.capacity)
        kept = [part for part in self.parts if part[1] + part[2] > first]  # the others hold what the ring has lost
        self.replay.added = kept[0][1]
        for part in kept:
            self.replay.add(self._read(part))
        self.episode, self.last_episode = state["episode"], state["last_episode"]
        if state["steps"]:
            self._play_again(state["steps"])
        if self.observation is not None:
            self.queue = [action.numpy() for action in state["queue"]]

    def _part(self, step: int) -> Path:
        return self.folder / f"part_{step:09}.npz"

    def _read(self, part: list) -> dict[str, torch.Tensor]:
        """The transitions of one file. Raises UserError unless it is, byte for byte, the one that was written."""
        path = self._part(part[0])
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != part[3]:
            raise UserError(f"{path}: is absent, damaged or another run's; put the right one back, or add --restart")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _play_again(self, steps: int) -> None:
        """Brings the environment back to where it was: from the episode's seed through its `steps` recorded actions."""
        episode, last_episode = self.episode, self.last_episode
        if self._repeats(steps):
            return
        self.environment.close()
        self.environment, self.observation, self.steps = None, None, 0
        self.episode, self.last_episode = episode + 1, last_episode
        print(f"online episode {episode} cannot be repeated from its seed: its rest is lost, a new one begins")

    def _repeats(self, steps: int) -> bool:
        """Plays the present episode's recorded actions; whether all came out as recorded, bit for bit."""
        self._begin_episode()
        if steps > len(self.replay):
            return False
        recorded = self.replay.newest(steps)
        for index in range(steps):
            transition = self._play(recorded["actions"][index].numpy())
            same = all(np.array_equal(recorded[name][index].numpy(), value) for name, value in transition.items())
            if not same or self.observation is None:
                return False
        return True
