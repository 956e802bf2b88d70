"""What a run needs to know of a task: data, environment, sizes, the name of its score and where the data came from."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

import gymnasium
import torch

from common.errors import UserError
from envs.dataset import Dataset
from envs.wrappers import NORMALIZATION, SPARSE, wrapped

WHOLE_FILE_LIMIT = 1 << 30  # bytes; a larger file is hashed by sample, which takes a second instead of minutes
SAMPLE_BLOCKS = 256
SAMPLE_BLOCK_SIZE = 1 << 20  # bytes
CONSTANT = 1e-6  # a standard deviation below this share of the mean is rounding: such an observation is only centred
# Of an identity: the data, validation data where there is a file, and the environment where a file decides it (Minari).
DATA_HASHES = ("sha256", "validation_sha256", "environment_sha256")
RECORDED = ("observation_dim", "action_dim", "score_name", "reward_shift", "max_episode_steps", "different_episodes")


@dataclass(frozen=True)
class Task:
    """One task: a data set to learn from and an environment to be evaluated in, and to learn in online.

    The environment's reward and termination of a step mean what the data's reward and mask of a row mean: r(s') and
    no termination for ExORL, r(s) and an end at the goal for OGBench, D4RL's own for Minari. So an online transition
    is (reward + reward_shift, mask = not terminated) for every suite, and truncation bootstraps.

    identity is JSON-able: suite, path, sha256, source ("official" | "locally generated" | "unknown" | ...),
    transitions, episodes and what the suite adds. environment is JSON-able too: what the suite needs, besides the
    name, to make the environment where the data are not (`envs.load_environment`).
    """

    name: str
    dataset: Optional[Dataset]  # None only where a task was loaded from a run's record
    validation: Optional[Dataset]
    make_env: Optional[Callable[[], gymnasium.Env]]  # picklable; None: data without an environment, and so no score
    observation_dim: int
    action_dim: int
    score_name: str  # "return" | "success": the key of the evaluation's results that is the score
    identity: dict
    different_episodes: Optional[int] = None  # that there are: seed s begins number s modulo them; None: no end
    reward_shift: float = 0.0  # what the data set's rewards hold beyond the environment's; added online too
    max_episode_steps: Optional[int] = None  # where the environment itself names no limit, see envs/checks.py
    environment: dict = field(default_factory=dict)

    def record(self) -> dict:
        """What a run keeps of its task, JSON-able, so that its policy acts where the data are not.

        action_low, action_high [A]: what the policy's -1 and 1 are to the simulator that the suite builds;
        observation_mean, observation_std [O] where observations are normalised; and what the suite needs.
        """
        bounds = {"action_low": [-1.0] * self.action_dim, "action_high": [1.0] * self.action_dim}
        return {name: getattr(self, name) for name in RECORDED} | bounds | self.environment

    def changed(self, change: Callable[[Dataset], Dataset], record: dict, **fields: Any) -> "Task":
        """The task with `change` of each of its data sets, what `record` asks for around its environment, and `fields`.

        `record` becomes part of the task's own.
        """
        return dataclasses.replace(
            self,
            dataset=self.dataset.map(change),
            validation=self.validation and self.validation.map(change),
            make_env=wrapped(self.make_env, record),
            environment=self.environment | record,
            **fields,
        )

    def episodes(self, asked: int) -> int:
        """As many as asked for, at most each once: repeated ones would make intervals of a mean too narrow."""
        return min(asked, self.different_episodes or asked)

    def reference_scores(self) -> Dict[str, float]:
        """Scores of the data set itself by label, to set beside a policy's: empty where the suite knows none."""
        labels = {"episode_return_mean": "data: mean episode", "episode_return_best": "data: best episode"}
        if self.score_name != "return":
            return {}
        return {label: self.identity[key] for key, label in labels.items() if key in self.identity}

    def normalized_return(self, episode_return: float) -> Optional[float]:
        """D4RL's score of a return: 0 and 100 at the two reference_returns in identity; None where there are none."""
        references = self.identity.get("reference_returns")
        if references is None:
            return None
        return 100.0 * (episode_return - references["min"]) / (references["max"] - references["min"])


def refuse_non_finite_rows(task: Task) -> None:
    """Raises UserError that names the array and the row where a transition of the task would read a NaN or infinity."""
    for label, dataset in (("", task.dataset), ("validation ", task.validation)):
        if dataset is None:
            continue
        reads = torch.zeros(len(dataset.observations), dtype=torch.bool)
        reads[dataset.valid] = True
        for name in ("actions", "rewards", "masks", "observations"):
            if name == "observations":
                reads[dataset.valid + 1] = True
            bad = reads & ~getattr(dataset, name).reshape(len(reads), -1).isfinite().all(1)
            if bad.any():
                raise UserError(
                    f"task {task.name}: {label}{name} hold a NaN or infinity at row {bad.int().argmax()}: mend the data"
                )


def normalize_observations(task: Task) -> Task:
    """The task with (observation - mean) / std in its data sets and its environment, [O] each over the data set's rows.

    Both are in the task's record. An observation that never changes is centred and keeps its unit.
    """
    observations = task.dataset.observations
    blocks = observations.split(100_000)  # in double precision: a sum of ten million float32 has few digits left
    mean = sum(block.double().sum(0) for block in blocks) / len(observations)
    std = (sum((block.double() - mean).square().sum(0) for block in blocks) / len(observations)).sqrt()
    std = torch.where(std > CONSTANT * mean.abs(), std, 1.0)
    record = {name: value.float().tolist() for name, value in zip(NORMALIZATION, (mean, std), strict=True)}
    return task.changed(
        lambda part: part.replaced(observations=(part.observations - mean.float()) / std.float()), record
    )


def sparse(task: Task) -> Task:
    """The task with reward -1 wherever it is not 0, in its data sets and its environment; masks stay (QAM's code).

    For rewards that count what is missing, as OGBench's minus the number of sub-goals not met. Raises UserError for a
    task that has positive ones, or whose data's rewards are not the environment's.
    """
    if task.reward_shift or bool((task.dataset.rewards[task.dataset.valid] > 0).any()):
        raise UserError(
            f"config: sparse is for tasks whose reward is 0 at the goal and negative elsewhere, as those of ogbench; "
            f"{task.name} has other rewards: set it to false"
        )
    return task.changed(lambda part: part.replaced(rewards=torch.where(part.rewards != 0, -1.0, 0.0)), {SPARSE: True})


def file_sha256(path: Path) -> Tuple[str, str]:
    """(hexadecimal sha256, what was hashed: "whole file" or "sample") of a data file.

    Above WHOLE_FILE_LIMIT the sample is the file's size in decimal followed by SAMPLE_BLOCKS blocks of 1 MiB at even
    distances, the first and the last among them. It tells versions of a data set apart; it does not detect every
    changed byte, which is why the second value is recorded beside it.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= WHOLE_FILE_LIMIT:
            return hashlib.file_digest(file, "sha256").hexdigest(), "whole file"
        digest = hashlib.sha256(str(size).encode())
        for block in range(SAMPLE_BLOCKS):
            file.seek((size - SAMPLE_BLOCK_SIZE) * block // (SAMPLE_BLOCKS - 1))
            digest.update(file.read(SAMPLE_BLOCK_SIZE))
    return digest.hexdigest(), "sample"
