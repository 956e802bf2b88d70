"""Collects exploration data with an agent that is rewarded for novelty only: RND on stable-baselines3's SAC.

Random network distillation (Burda et al., 2018) rewards a state by the error with which a trained network predicts
the output of a fixed random one there: large where the agent has seldom been. ExORL's `rnd` sets come from the same
idea on a larger DDPG (URLB, Laskin et al., 2021) and ten million steps; these are smaller and not ExORL's.
"""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Dict, Iterator, Tuple

import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import create_mlp
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import set_random_seed
from torch import nn
from tqdm import tqdm

from common.errors import UserError
from common.files import replacing
from envs.exorl.domains import DOMAINS
from envs.exorl.environment import ExORLEnvironment
from envs.exorl.source import episode_file, record_episode, write_episode
from envs.seeding import generators_preserved

CHECKPOINT = "collector.pt"


@dataclasses.dataclass(frozen=True)
class RNDParameters:
    """What the collector's behaviour depends on besides domain and seed; all of it is in the set's record.

    "URLB" marks a setting of its RND agent (rll-research/url_benchmark at 710c3eb, agent/rnd.py and rnd.yaml).
    Networks, batch and update rate are smaller here, learning rates larger: a set should take one core less than an
    hour.
    """

    hidden_dims: Tuple[int, ...] = (128, 128)  # of actor, critics, target network and predictor
    features: int = 64  # outputs of target network and predictor; URLB has 512
    batch_size: int = 256
    learning_rate: float = 3e-4  # of actor, critics and temperature
    initial_temperature: float = 0.1  # of the policy's entropy, then adjusted by SAC
    novelty_learning_rate: float = 3e-4  # of the predictor; URLB has 1e-4 for all
    discount: float = 0.99  # URLB
    target_rate: float = 0.005
    update_interval: int = 4  # environment steps for each update of agent and predictor; URLB has 2
    random_steps: int = 4000  # at the start, with uniform actions; URLB
    observation_clip: float = 5.0  # of normalised observations, in standard deviations; URLB and the paper
    replay_capacity: int = 1_000_000  # transitions


class Novelty(nn.Module):
    """The novelty of states: how badly `predictor` foretells the outputs of the fixed random network `target`.

    Observations are normalised by the running mean and variance of all batches seen (a BatchNorm without trained
    parameters, as in URLB) and clipped. A new instance draws its weights from torch's global generator.
    """

    def __init__(self, observation_dim: int, parameters: RNDParameters):
        super().__init__()
        sizes = observation_dim, parameters.features, list(parameters.hidden_dims)
        self.target, self.predictor = (nn.Sequential(*create_mlp(*sizes)) for _ in range(2))
        self.target.requires_grad_(False)
        self.observation_statistics = nn.BatchNorm1d(observation_dim, affine=False, momentum=None)
        self.error_statistics = nn.BatchNorm1d(1, affine=False, momentum=None)
        self.clip = parameters.observation_clip
        self.optimizer = torch.optim.Adam(self.predictor.parameters(), lr=parameters.novelty_learning_rate)
        self.eval()

    def errors(self, observations: torch.Tensor) -> torch.Tensor:
        """Squared prediction errors [B, 1] of `observations` [B, O], a mean over the features."""
        normalised = self.observation_statistics(observations).clamp(-self.clip, self.clip)
        return (self.predictor(normalised) - self.target(normalised)).square().mean(dim=1, keepdim=True)

    @torch.no_grad()
    def rewards(self, observations: torch.Tensor) -> torch.Tensor:
        """Intrinsic rewards [B, 1]: errors divided by their running standard deviation over all batches seen."""
        return self.errors(observations) / self.error_statistics.running_var.sqrt()

    def update(self, observations: torch.Tensor) -> None:
        """One step of the predictor and of both running statistics on a batch [B, O] of visited states."""
        self.observation_statistics.train()(observations)
        self.observation_statistics.eval()
        errors = self.errors(observations)
        self.error_statistics.train()(errors.detach())
        self.error_statistics.eval()
        self.optimizer.zero_grad()
        errors.mean().backward()
        self.optimizer.step()


class NoveltyReplayBuffer(ReplayBuffer):
    """Replay whose samples carry the novelty of the reached states as reward, computed anew at each sampling.

    Novelty falls as states are revisited, so a reward stored with its transition would be out of date.
    """

    def __init__(self, *arguments, novelty: Novelty, **options):
        super().__init__(*arguments, **options)
        self.novelty = novelty

    def sample(self, batch_size: int, env=None) -> ReplayBufferSamples:
        samples = super().sample(batch_size, env)
        self.novelty.update(samples.next_observations)
        return samples._replace(rewards=self.novelty.rewards(samples.next_observations))


class RNDCollector:
    """SAC that seeks novelty, and the episodes it makes while it learns. Nothing here sees the task's reward.

    Every episode starts from its own random state, given by seed and index, so that the networks and the episodes so
    far are all that the next one depends on. It sets the global generators.
    """

    def __init__(self, domain: str, seed: int, parameters: RNDParameters):
        self.seed, self.parameters = seed, parameters
        self.environment = ExORLEnvironment(domain, DOMAINS[domain].tasks[0])
        set_random_seed(seed)
        self.novelty = Novelty(DOMAINS[domain].observation_dim, parameters)
        self.agent = SAC(
            "MlpPolicy",
            self.environment,
            learning_rate=parameters.learning_rate,
            buffer_size=parameters.replay_capacity,
            batch_size=parameters.batch_size,
            tau=parameters.target_rate,
            gamma=parameters.discount,
            ent_coef=f"auto_{parameters.initial_temperature}",
            policy_kwargs={"net_arch": list(parameters.hidden_dims)},
            replay_buffer_class=NoveltyReplayBuffer,
            replay_buffer_kwargs={"novelty": self.novelty},
            device="cpu",
        )
        self.agent.set_logger(Logger(folder=None, output_formats=[]))
        self.next_episode = 0
        self.steps = 0

    def collect_episode(self, steps: int) -> Dict[str, np.ndarray]:
        """The next episode as ExORL stores one, learning on the way."""
        sequence = np.random.SeedSequence([self.seed, self.next_episode])
        reset_seed, policy_seed = (int(child.generate_state(1)[0]) for child in sequence.spawn(2))
        set_random_seed(policy_seed)
        self.agent.action_space.seed(policy_seed)
        self.next_episode += 1
        return record_episode(self.environment, reset_seed, steps, self._act, self._learn)

    def _act(self, observation: np.ndarray) -> np.ndarray:
        if self.steps < self.parameters.random_steps:
            return self.agent.action_space.sample()
        return self.agent.predict(observation, deterministic=False)[0]

    def _learn(self, *transition: np.ndarray) -> None:
        self._remember(*transition)
        if self.steps > self.parameters.random_steps and self.steps % self.parameters.update_interval == 0:
            self.agent.train(gradient_steps=1, batch_size=self.parameters.batch_size)

    def _remember(self, observation: np.ndarray, action: np.ndarray, next_observation: np.ndarray) -> None:
        # Nothing terminates; the reward is computed at sampling.
        self.agent.replay_buffer.add(
            observation, next_observation, action, np.zeros(1, np.float32), np.zeros(1, np.float32), [{}]
        )
        self.steps += 1

    def remember_episode(self, episode: Dict[str, np.ndarray]) -> None:
        """Puts a finished episode of this collector back into its replay."""
        observations = episode["observation"]
        for row in range(1, len(observations)):
            self._remember(observations[row - 1], episode["action"][row], observations[row])

    def state_dict(self) -> dict:
        """What cannot be had from the episode files: tensors and numbers only."""
        return {
            "next_episode": self.next_episode,
            "agent": self.agent.get_parameters(),
            "log_ent_coef": self.agent.log_ent_coef.detach().clone(),
            "novelty": self.novelty.state_dict(),
            "novelty_optimizer": self.novelty.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.next_episode = state["next_episode"]
        self.agent.set_parameters(state["agent"])
        self.agent.log_ent_coef.data.copy_(state["log_ent_coef"])
        self.novelty.load_state_dict(state["novelty"])
        self.novelty.optimizer.load_state_dict(state["novelty_optimizer"])


def _save(collector: RNDCollector, hours: float, path: Path) -> None:
    with replacing(path) as temporary:
        torch.save({"collector": collector.state_dict(), "hours": hours}, temporary)


def _continue(collector: RNDCollector, domain: str, buffer: Path, path: Path) -> float:
    """Brings a new collector to where the one that wrote `path` stopped, if there is one. Returns the hours it took."""
    if not path.exists():
        if any(buffer.iterdir()):
            raise UserError(f"{path}: missing, so the episodes in {buffer} cannot be continued: delete {buffer.parent}")
        _save(collector, 0.0, path)
        return 0.0
    saved = torch.load(path, weights_only=True)
    collector.load_state_dict(saved["collector"])
    for index in range(collector.next_episode):
        file = buffer / episode_file(domain, index)
        if not file.exists():
            raise UserError(f"{file}: missing, and the collector learned from it: delete {buffer.parent}")
        with np.load(file) as episode:
            collector.remember_episode({name: episode[name] for name in ("observation", "action")})
    return saved["hours"]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small gain nothing from more threads, and with one the sums do not depend on the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def collect_rnd(folder: Path, episodes: int, seed: int, parameters: RNDParameters) -> float:
    """Fills `<folder>/buffer/` up to `episodes` episodes and returns the hours this took, earlier calls included.

    After every episode the collector's networks are saved beside `buffer/`; replay is the episode files themselves.
    So an interrupted collection continues with the episode it was in, and gives the same files as an uninterrupted
    one. Raises UserError where episodes are there, but not what continues them.
    """
    domain, buffer, path = folder.parent.name, folder / "buffer", folder / CHECKPOINT
    with generators_preserved(), _one_thread():  # stable-baselines3 draws from the global generators
        collector = RNDCollector(domain, seed, parameters)
        hours = _continue(collector, domain, buffer, path)
        bar = {"desc": f"collect {domain}", "unit": "episode", "total": episodes, "initial": collector.next_episode}
        for index in tqdm(range(collector.next_episode, episodes), disable=None, **bar):
            start = time.perf_counter()
            write_episode(buffer, domain, index, collector.collect_episode(DOMAINS[domain].episode_steps))
            hours += (time.perf_counter() - start) / 3600
            _save(collector, hours, path)
    return hours
