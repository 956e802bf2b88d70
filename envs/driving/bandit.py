"""The one-step task: see a scene, give a plan, get its PDMS. The environment, and the data as actions and rewards.

Actions are encoded plans (`envs.driving.encoding`), observations are standardised, both by the training scenes. The
reward of a stored action is the score of what it decodes to, so that the environment gives the same.
"""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import gymnasium
import numpy as np
from gymnasium import spaces
from tqdm import tqdm

from envs.driving.curate import score_matrix
from envs.driving.encoding import Encoding
from envs.driving.observation import UNKNOWN_TO_NAVSIM, Scaling, observe
from envs.driving.planner import along_route
from envs.driving.scene import Scene
from envs.driving.scene_files import SCORE_NAMES, SPLITS, SceneSet, read_arrays, read_split, write_arrays
from envs.driving.score import score

CACHE_VERSION = 1  # raise it when the same scenes no longer give the same cache
NAVSIM_KIND = "navsim-"  # begins the kinds of scenes from NAVSIM, whose observation lacks what its logs do not hold


@dataclass(frozen=True, eq=False)
class BanditData:
    """One kind of encoding of a set, everything by split: observations [S, O] as seen by a policy, actions [S, K, A],
    and scores [S, K, 6] by SCORE_NAMES of the plans that the actions decode to. sha256: the set's fingerprint."""

    kind: str
    sha256: str
    scaling: Scaling
    encoding: Encoding
    observations: Dict[str, np.ndarray]
    actions: Dict[str, np.ndarray]
    scores: Dict[str, np.ndarray]

    def observe(self, scene: Scene) -> np.ndarray:
        """What a policy sees of a scene: [O] float32."""
        return self.scaling(observed(scene, self.kind))


def observed(scene: Scene, kind: str) -> np.ndarray:
    """The observation of a kind of encoding [O], before scaling."""
    return np.delete(observe(scene), UNKNOWN_TO_NAVSIM) if kind.startswith(NAVSIM_KIND) else observe(scene)


def fingerprint(folder: Path) -> str:
    """Hexadecimal sha256 of the names and contents of a set's log and road files."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("log_*.npz"), *folder.glob("road_*.npz")]):
        digest.update(path.name.encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def data_path(folder: Path, kind: str) -> Path:
    return folder / f"bandit_{kind}.npz"


def load_data(folder: Path, kind: str) -> BanditData:
    """The set in `folder` encoded by `kind`, from <folder>/bandit_<kind>.npz, which is made where it is out of date."""
    path = data_path(folder, kind)
    key = f"{CACHE_VERSION} {fingerprint(folder)}"
    if not path.exists() or str(read_arrays(path).get("key")) != key:
        write_arrays(path, {"key": np.array(key), **_encode(folder, kind)})
    return read_data(path, kind)


def read_data(path: Path, kind: str) -> BanditData:
    """What `load_data` wrote."""
    arrays = read_arrays(path)

    def part(prefix: str) -> Dict[str, np.ndarray]:
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    by_split = (part(f"{name}/") for name in ("observations", "actions", "scores"))
    _, sha256 = str(arrays["key"]).split()
    return BanditData(kind, sha256, Scaling(**part("scaling/")), Encoding(**part("encoding/")), *by_split)


def _encode(folder: Path, kind: str) -> Dict[str, np.ndarray]:
    """The arrays of a BanditData: moments and basis of the training scenes, then all splits encoded and scored."""
    sets = {split: read_split(folder, split) for split in SPLITS}
    seen = {split: np.stack([observed(scene, kind) for scene in part.scenes]) for split, part in sets.items()}
    bases_of = {split: np.stack([along_route(scene) for scene in part.scenes]) for split, part in sets.items()}
    scaling = Scaling.fit(seen["train"])
    plans = sets["train"].plans
    bases = np.broadcast_to(bases_of["train"][:, None], plans.shape)
    encoding = Encoding.fit(
        plans.reshape(-1, *plans.shape[2:]), bases.reshape(-1, *plans.shape[2:]), kind.removeprefix(NAVSIM_KIND)
    )
    arrays = {f"scaling/{name}": value for name, value in vars(scaling).items()}
    arrays |= {f"encoding/{name}": value for name, value in vars(encoding).items()}
    for split, part in sets.items():
        actions = encoding.encode(part.plans, bases_of[split][:, None]).astype(np.float32)
        decoded = encoding.decode(actions.astype(np.float64), bases_of[split][:, None])
        pairs = zip(part.scenes, decoded, strict=True)
        bar = tqdm(pairs, desc=f"score {split} plans", total=len(decoded), unit="scene", disable=None, leave=False)
        arrays[f"observations/{split}"] = scaling(seen[split])
        arrays[f"actions/{split}"] = actions
        arrays[f"scores/{split}"] = np.stack([score_matrix(score(scene, each)) for scene, each in bar])
    return arrays


@functools.lru_cache(maxsize=2)
def _shared(folder: Path, kind: str, split: str, modified: int) -> Tuple[Encoding, np.ndarray, SceneSet]:
    """What the environments of a process share: encoding, observations [S, O], scenes. modified: of the data file."""
    data = read_data(data_path(folder, kind), kind)
    return data.encoding, data.observations[split], read_split(folder, split)


class DrivingBandit(gymnasium.Env):
    """One scene of a split and one plan: reset shows scene number seed modulo their count, step scores the plan.

    Observations float32 [O], actions float32 [A] in [-1, 1]. The reward is PDMS; info holds the sub-scores by name
    and the scene's token. A reset without a seed draws a scene.
    """

    def __init__(self, folder: Path, kind: str, split: str):
        modified = data_path(folder, kind).stat().st_mtime_ns
        self.encoding, self.observations, self.scene_set = _shared(folder, kind, split, modified)
        self.observation_space = spaces.Box(-np.inf, np.inf, self.observations.shape[1:], np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (self.encoding.action_dim,), np.float32)
        self.index = 0

    def reset(self, *, seed: Optional[int] = None, options: Optional[dict] = None) -> Tuple[np.ndarray, Dict[str, Any]]:
        super().reset(seed=seed)
        count = len(self.scene_set.scenes)
        self.index = int(self.np_random.integers(count)) if seed is None else seed % count
        return self.observations[self.index], {"token": self.scene_set.tokens[self.index]}

    def step(self, action: np.ndarray) -> Tuple[np.ndarray, float, bool, bool, Dict[str, Any]]:
        scene = self.scene_set.scenes[self.index]
        plan = self.encoding.decode(np.clip(action, -1.0, 1.0).astype(np.float64), along_route(scene))
        scores = score_matrix(score(scene, plan[None]))[0]
        info = {"token": self.scene_set.tokens[self.index], **dict(zip(SCORE_NAMES, scores.tolist(), strict=True))}
        return self.observations[self.index], info["pdms"], True, False, info
