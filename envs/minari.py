"""Minari's tasks: `load` reads any Minari data set of flat vectors and recovers the environment its metadata names."""

import functools
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import gymnasium
import h5py
import minari
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from minari import EpisodeData, MinariDataset
from minari.dataset.minari_dataset import parse_dataset_id

from common.errors import UserError, one_line
from common.names import nearest_names
from common.untrusted import check_hdf5
from envs.actions import ActionScale
from envs.dataset import Dataset
from envs.spaces import flatten, observation_width
from envs.task import Task, file_sha256
from envs.transitions import refuse_non_finite

DEFAULT_DATA_DIR = "~/.minari/datasets"  # minari's own
DATA_DIR_VARIABLE = "MINARI_DATASETS_PATH"  # minari's own
MAIN_FILE = "main_data.hdf5"
METADATA_FILE = "metadata.json"
SPACES, ENVIRONMENT_SPECS = ("observation_space", "action_space"), ("env_spec", "eval_env_spec")
LARGEST_WIDTH = 1_000_000  # numbers in one observation or action
# Namespaces of Farama's server that hold data sets of vectors. A file is only as official as its metadata say.
OFFICIAL_NAMESPACES = ("D4RL", "mujoco")
# The rewards of D4RL's antmaze, 0 and 1 at the goal, are learned from as -1 and 0 (IQL's and FQL's released code).
SHIFTED_NAMESPACE, REWARD_SHIFT = "D4RL/antmaze", -1.0


# ---- The environment ----


class MinariEnvironment(gymnasium.Env):
    """The environment that a data set names for evaluation, else the one it was collected in.

    Observations are float32 [O], flattened as the data are; actions are float32 [A] in [-1, 1], scaled to the box of
    the data set. Rewards are the environment's own: D4RL's reward shift is for learning only. Of its info only
    success is passed on, where there is one. `render_mode` is gymnasium's.
    """

    def __init__(self, data_path: Path, render_mode: Optional[str] = None):
        """data_path: the folder of metadata.json. Raises UserError where the environment cannot be built."""
        dataset = open_dataset(data_path)
        self.render_mode = render_mode
        self._space = dataset.observation_space
        self._scale = ActionScale(dataset.action_space, str(data_path))
        width = observation_width(self._space, str(data_path))
        self.environment = _recover(dataset, data_path, render_mode)
        self.observation_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, self._scale.shape, np.float32)

    def reset(self, *, seed: Optional[int] = None, options: Optional[dict] = None) -> Tuple[np.ndarray, Dict[str, Any]]:
        super().reset(seed=seed)
        observation, _ = self.environment.reset(seed=seed, options=options)
        return flatten(self._space, observation), {}

    def step(self, action: np.ndarray) -> Tuple[np.ndarray, float, bool, bool, Dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.environment.step(self._scale.from_unit(action))
        success = {"success": float(info["success"])} if "success" in info else {}
        return flatten(self._space, observation), float(reward), bool(terminated), bool(truncated), success

    def render(self) -> Any:
        return self.environment.render()

    def close(self) -> None:
        self.environment.close()


def _recover(dataset: MinariDataset, data_path: Path, render_mode: Optional[str]) -> gymnasium.Env:
    metadata = dataset.storage.metadata
    if "env_spec" not in metadata and "eval_env_spec" not in metadata:
        raise UserError(
            f"{data_path / METADATA_FILE}: env_spec and eval_env_spec are missing, so there is no environment to "
            f"evaluate in: create the data set with env= or eval_env="
        )
    options = {} if render_mode is None else {"render_mode": render_mode}
    try:
        environment = dataset.recover_environment(eval_env=True, **options)
    except (gymnasium.error.Error, ImportError) as error:
        packages = " ".join(f'"{requirement}"' for requirement in metadata.get("requirements", []))
        raise UserError(
            f"{data_path / METADATA_FILE}: its environment cannot be built ({one_line(error)}): install the package "
            f"that has it{f', `pip install {packages}`' if packages else ''}"
        ) from error
    data_spaces = (dataset.observation_space, dataset.action_space)
    for kind, own, stored in zip(
        ("observation", "action"), (environment.observation_space, environment.action_space), data_spaces, strict=True
    ):
        if spaces.flatdim(own) != spaces.flatdim(stored):
            raise UserError(
                f"{data_path / METADATA_FILE}: the environment's {kind}s have {spaces.flatdim(own)} entries, the data "
                f"set's {spaces.flatdim(stored)}: its env_spec is of another environment or version"
            )
    return environment


# ---- The data ----


def load(name: str, data_dir: Optional[str] = None, collect_episodes: int = 0) -> Task:
    """Loads the data set with the id `name`, e.g. "D4RL/pointmaze/umaze-v2", which is downloaded first if it is absent.

    It lies in `<data_dir>/<id>/data/`, by default in $MINARI_DATASETS_PATH or minari's ~/.minari/datasets. The masks
    are 0 exactly where an episode terminated; truncation bootstraps. Actions are scaled to [-1, 1]. The score is the
    undiscounted return of the environment; identity holds reference_returns where the data set names them.
    collect_episodes is not used: nothing is collected. Raises UserError for unknown ids, for data that is absent or
    broken, for other spaces than vectors, and where there is no environment.
    """
    _check_id(name)
    root = _data_root(data_dir)
    data_path = root / name / "data"
    if not (data_path / METADATA_FILE).exists():
        _download(root, name)
    minari_dataset = open_dataset(data_path)
    environment = MinariEnvironment(data_path)  # built once now: a missing package is said before the training
    environment.close()
    dataset, returns = _read(minari_dataset, name, data_path)
    return Task(
        name=f"minari/{name}",
        dataset=dataset,
        validation=None,
        make_env=functools.partial(MinariEnvironment, data_path),
        observation_dim=environment.observation_space.shape[0],
        action_dim=environment.action_space.shape[0],
        score_name="return",
        identity=_identity(name, data_path, minari_dataset.storage.metadata, len(dataset), returns),
        reward_shift=_reward_shift(name),
    )


def open_dataset(data_path: Path) -> MinariDataset:
    """The data set whose metadata.json is in data_path. Raises UserError where it cannot be read."""
    check_metadata(data_path)
    try:
        dataset = MinariDataset(data_path)
    except Exception as error:  # minari, json, h5py and gymnasium raise many types for damaged files
        raise UserError(f"{data_path}: is no readable Minari data set ({one_line(error)}): fetch it again") from error
    if dataset.storage.FORMAT != "hdf5":
        raise UserError(f"{data_path}: is stored as {dataset.storage.FORMAT}: only hdf5 is read, store it as that")
    return dataset


def check_metadata(data_path: Path) -> None:
    """Refuses metadata that would run code or allocate memory before anything else of it is looked at.

    An env_spec names what gymnasium imports and calls, with arguments: `os:system` is as good to it as an environment.
    Here it must be an environment class, and its wrappers wrapper classes, or what an installed package registered
    under that id. Raises UserError.
    """
    path = data_path / METADATA_FILE
    try:
        size = path.stat().st_size + (data_path / MAIN_FILE).stat().st_size
        metadata = json.loads(path.read_text(encoding="utf-8"))
        episodes, largest = metadata["total_episodes"], 0
        for name in SPACES:
            largest = max(largest, _largest_length(json.loads(metadata.get(name, "null"))))
        specs = [json.loads(metadata[name]) for name in ENVIRONMENT_SPECS if metadata.get(name) is not None]
        calls = [(spec["entry_point"], spec["id"], gymnasium.Env) for spec in specs]
        calls += [
            (wrapper["entry_point"], None, gymnasium.Wrapper)
            for spec in specs
            for wrapper in spec["additional_wrappers"]
        ]
        refused = [entry_point for entry_point, name, kind in calls if not _is_harmless(entry_point, name, kind)]
    except Exception as error:  # strangers' JSON may hold anything anywhere
        raise UserError(f"{data_path}: is no readable Minari data set ({one_line(error)}): fetch it again") from error
    if refused:
        raise UserError(
            f"{path}: names {str(refused[0])[:80]!r} as its environment, which is none: such a file may run any "
            f"program, fetch the data set from a source that you trust"
        )
    if not (isinstance(episodes, int) and 0 <= episodes <= size) or largest > LARGEST_WIDTH:
        raise UserError(f"{path}: claims {episodes} episodes, or entries of {largest} numbers: fetch it again")


def _largest_length(space: Any) -> int:
    """The largest product of a `shape`, or `n`, anywhere in a serialised space: what building it would allocate."""
    if isinstance(space, list):
        return max(map(_largest_length, space), default=0)
    if not isinstance(space, dict):
        return 0
    own = [math.prod(space.get("shape", ()))]
    if space.get("type") == "MultiBinary":
        own.append(math.prod(np.atleast_1d(space["n"]).tolist()))
    return max(*own, 0, *map(_largest_length, space.values()))


def _is_harmless(entry_point: Any, name: Any, kind: type) -> bool:
    """Whether gymnasium may import and call `<module>:<attribute>`; one that is not installed is named later."""
    registered = gymnasium.registry.get(name) if isinstance(name, str) else None
    if registered is not None and registered.entry_point == entry_point:
        return True
    try:
        named = load_env_creator(entry_point)
    except ImportError:
        return True
    return isinstance(named, type) and issubclass(named, kind)


def _reward_shift(name: str) -> float:
    return REWARD_SHIFT if name.startswith(f"{SHIFTED_NAMESPACE}/") else 0.0


def _read(dataset: MinariDataset, name: str, data_path: Path) -> Tuple[Dataset, np.ndarray]:
    """The data set as rows, the final observation of every episode among them, and the returns [episodes]."""
    source = str(data_path / MAIN_FILE)
    scale = ActionScale(dataset.action_space, source)
    shift = _reward_shift(name)
    columns: Dict[str, List[np.ndarray]] = {"observations": [], "actions": [], "rewards": [], "masks": [], "valid": []}
    returns, start = [], 0
    for episode in _episodes(dataset, source):
        observations = flatten(dataset.observation_space, episode.observations)
        steps = len(episode.rewards)
        _check_episode(episode, observations, scale.shape, source)
        actions = scale.to_unit(episode.actions)
        returns.append(episode.rewards.sum(dtype=np.float64))
        # The final observation has no action, reward and end of its own: it repeats the action before it, so that
        # next_actions holds no invented one.
        columns["observations"].append(observations)
        columns["actions"].append(np.concatenate([actions, actions[-1:]]))
        columns["rewards"].append(np.append(episode.rewards + shift, 0.0).astype(np.float32))
        columns["masks"].append(np.append(~episode.terminations.astype(bool), True).astype(np.float32))
        columns["valid"].append(np.arange(start, start + steps))
        start += steps + 1
    if not returns:
        raise UserError(f"{source}: holds no episode: fetch or make it again")
    arrays = {field: np.concatenate(parts) for field, parts in columns.items()}
    for field in ("observations", "actions", "rewards"):
        refuse_non_finite(source, field, arrays[field])
    return Dataset(**{field: torch.from_numpy(array) for field, array in arrays.items()}), np.asarray(returns)


def _episodes(dataset: MinariDataset, source: str) -> Iterator[EpisodeData]:
    """The episodes by their number: minari asks for episode_0, episode_1, ..., where HDF5 would sort 10 before 2."""
    try:
        check_hdf5(dataset.storage.data_path / MAIN_FILE)
        with h5py.File(dataset.storage.data_path / MAIN_FILE) as file:
            named = {f"episode_{index}" for index in range(dataset.storage.total_episodes)}
            if named ^ set(file):
                missing = f"{min(named ^ set(file))} is missing or not named"
                raise ValueError(f"{len(file)} episodes, where the metadata name {len(named)}: {missing}")
        yield from dataset.iterate_episodes(range(dataset.storage.total_episodes))
    except Exception as error:  # h5py raises many types for a damaged file
        raise UserError(f"{source}: truncated or damaged ({one_line(error)}): fetch it again") from error


def _check_episode(episode: EpisodeData, observations: np.ndarray, action_shape: tuple, source: str) -> None:
    steps = len(episode.rewards)
    shapes = {
        "observations": (observations.shape[:1], (steps + 1,)),
        "actions": (np.shape(episode.actions), (steps, *action_shape)),
        "terminations": (episode.terminations.shape, (steps,)),
        "truncations": (episode.truncations.shape, (steps,)),
    }
    for field, (found, expected) in shapes.items():
        if found != expected or steps == 0:
            raise UserError(
                f"{source}: {field} of episode_{episode.id} have shape {found}, expected {expected} with at least one "
                f"step: the file is damaged, fetch or make it again"
            )


def _identity(name: str, data_path: Path, metadata: dict, transitions: int, returns: np.ndarray) -> dict:
    sha256, hashed = file_sha256(data_path / MAIN_FILE)
    named = all(metadata.get(field) for field in ("author", "code_permalink"))
    official = named and name.split("/")[0] in OFFICIAL_NAMESPACES
    identity = {
        "suite": "minari",
        "path": str(data_path / MAIN_FILE),
        "sha256": sha256,
        "sha256_of": hashed,
        "source": "official" if official else "local file",
        "transitions": transitions,
        "episodes": len(returns),
        "dataset": name,
        "author": sorted(metadata.get("author", ())),
        "minari_version": metadata["minari_version"],
        "reward_shift": _reward_shift(name),
        "episode_return_mean": float(np.mean(returns)),
        "episode_return_best": float(np.max(returns)),
    }
    references = {"min": metadata.get("ref_min_score"), "max": metadata.get("ref_max_score")}
    if None not in references.values() and references["min"] != references["max"]:
        identity["reference_returns"] = references
    return identity


# ---- Where the data are ----


def _data_root(data_dir: Optional[str]) -> Path:
    return Path(os.path.expanduser(data_dir or os.environ.get(DATA_DIR_VARIABLE) or DEFAULT_DATA_DIR))


def _check_id(name: str) -> None:
    try:
        parse_dataset_id(name)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{name!r} is no id of a Minari data set: expected minari/<namespace>/<name>-v<number>, e.g. "
            f"minari/D4RL/pointmaze/umaze-v2"
        ) from error


def _download(root: Path, name: str) -> None:
    """Fetches the data set into `root` as a whole: it is downloaded beside its place and moved there at the end."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
            _minari_download(name, folder)
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(folder) / name, root / name)
    except Exception as error:  # each of minari's remotes has error types of its own
        local = [path.parent.parent.relative_to(root).as_posix() for path in root.glob(f"**/data/{METADATA_FILE}")]
        raise UserError(
            f"no Minari data set {name!r} in {root}{nearest_names(name, local)} and the download failed "
            f"({one_line(error)}): run `minari download {name}` where there is internet and copy the folder {name} "
            f"there, or set data_dir or {DATA_DIR_VARIABLE} to the folder that holds it"
        ) from error


def _minari_download(name: str, folder: str) -> None:
    """minari's own download, which takes its folder from the environment."""
    shared = os.environ.get(DATA_DIR_VARIABLE)
    os.environ[DATA_DIR_VARIABLE] = folder
    try:
        minari.download_dataset(name)
    finally:
        del os.environ[DATA_DIR_VARIABLE]
        if shared is not None:
            os.environ[DATA_DIR_VARIABLE] = shared
