"""What a run needs to know of a task: data, environment, sizes, the name of its score and where the data came from."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Optional, Tuple

import gymnasium

from envs.dataset import Dataset

WHOLE_FILE_LIMIT = 1 << 30  # bytes; a larger file is hashed by sample, which takes a second instead of minutes
SAMPLE_BLOCKS = 256
SAMPLE_BLOCK_SIZE = 1 << 20  # bytes


@dataclass(frozen=True)
class Task:
    """One task: a data set to learn from and an environment to be evaluated in, and to learn in online.

    The environment's reward and termination of a step mean what the data's reward and mask of a row mean: r(s') and
    no termination for ExORL, r(s) and an end at the goal for OGBench, D4RL's own for Minari. So an online transition
    is (reward + reward_shift, mask = not terminated) for every suite, and truncation bootstraps.

    identity is JSON-able: suite, path, sha256, source ("official" | "locally generated"), transitions, episodes
    and what the suite adds.
    """

    name: str
    dataset: Dataset
    validation: Optional[Dataset]
    make_env: Callable[[], gymnasium.Env]  # picklable
    observation_dim: int
    action_dim: int
    score_name: str  # "return" | "success": the key of the evaluation's results that is the score
    identity: dict
    different_episodes: Optional[int] = None  # that there are: seed s begins number s modulo them; None: no end
    reward_shift: float = 0.0  # what the data set's rewards hold beyond the environment's; added online too

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
