"""Minari's tasks: `load` reads any Minari data set of flat vectors and recovers the environment its metadata names."""

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import gymnasium
import minari
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, WrapperSpec, load_env_creator
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.serialization import deserialize_space, serialize_space

from common.errors import UserError, one_line, with_place
from common.names import nearest_names
from envs.dataset import Dataset
from envs.minari_names import minari_id
from envs.spaces import ActionScale, UnitEnvironment, flatten, observation_width
from envs.task import Task, file_sha256
from envs.transitions import ACTION_TOLERANCE, refuse_non_finite

DEFAULT_DATA_DIR = "~/.minari/datasets"  # minari's own
DATA_DIR_VARIABLE = "MINARI_DATASETS_PATH"  # minari's own
MAIN_FILE = "main_data.hdf5"
METADATA_FILE = "metadata.json"
SPACES, ENVIRONMENT_SPECS = ("observation_space", "action_space"), ("env_spec", "eval_env_spec")
SPEC_FIELDS = [field.name for field in dataclasses.fields(EnvSpec) if field.init]  # gymnasium 0.28 and 0.29 had more
DRAWING_WRAPPERS = ("RecordVideo", "HumanRendering", "RenderCollection")
FETCH_AGAIN = "delete this folder and fetch the data set again"
BOUNDS_TOLERANCE = 1e-6  # relative; spaces are stored as float32 or float64
# Namespaces of Farama's server that hold data sets of vectors. A file is only as official as its metadata say.
OFFICIAL_NAMESPACES = ("D4RL", "mujoco")
# The rewards of D4RL's antmaze, 0 and 1 at the goal, are learned from as -1 and 0 (IQL's and FQL's released code).
SHIFTED_NAMESPACE, REWARD_SHIFT = "D4RL/antmaze", -1.0


# ---- Spaces ----


def _are_alike(stored: spaces.Space, own: spaces.Space) -> bool:
    """Whether the environment's space has the data set's structure and bounds."""
    if isinstance(stored, spaces.Dict) and isinstance(own, spaces.Dict):
        return set(stored.spaces) == set(own.spaces) and all(_are_alike(stored[key], own[key]) for key in stored.spaces)
    return (
        type(stored) is type(own)
        and stored.shape == own.shape
        and np.allclose([own.low, own.high], [stored.low, stored.high], rtol=BOUNDS_TOLERANCE, atol=BOUNDS_TOLERANCE)
    )


# ---- The environment ----


def build_environment(record: dict, render_mode: Optional[str] = None) -> UnitEnvironment:
    """The environment that a data set names for evaluation, else the one it was collected in, as a policy sees it.

    record: see `environment_record`; render_mode: gymnasium's. Rewards are the environment's own: D4RL's reward shift
    is for learning only. Raises UserError where it cannot be built or observes something else than the data hold.
    """
    source = record["source"]
    environment = _build(record["spec"], source, record["requirements"], render_mode)
    stored = deserialize_space(record["observation_space"])
    if not _are_alike(stored, environment.observation_space):
        raise UserError(
            f"{source}: its environment observes {one_line(environment.observation_space)}, the data hold "
            f"{one_line(stored)}: create the data set with eval_env= that has the wrappers of the collection, or "
            f"install the version that it was collected in"
        )
    return UnitEnvironment(environment, source)


def environment_record(data_path: Path, metadata: dict, storage: MinariStorage) -> dict:
    """What `build_environment` needs, without the data: plain values, for JSON.

    source: metadata.json, for messages; spec: gymnasium's EnvSpec as a dict, that for evaluation where there is one;
    observation_space, action_space: of the data, as Minari writes them; requirements: packages that it asks for.
    Wrappers that cannot be built again (a logger's of the collection) are left out, which is printed.
    """
    source = str(data_path / METADATA_FILE)
    written = metadata.get("eval_env_spec") or metadata.get("env_spec")
    if written is None:
        raise UserError(
            f"{source}: env_spec and eval_env_spec are missing, so there is no environment to "
            f"evaluate in: create the data set with env= or eval_env="
        )
    return {
        "source": source,
        "spec": _readable_spec(json.loads(written), source),
        **{name: serialize_space(getattr(storage, name)) for name in SPACES},
        "requirements": list(metadata.get("requirements", ())),
    }


def _readable_spec(written: dict, source: str) -> dict:
    """An env_spec with the fields that the installed gymnasium knows, that draws nothing and can be built."""
    spec = {name: value for name, value in written.items() if name in SPEC_FIELDS}
    spec["kwargs"] = {name: value for name, value in spec.get("kwargs", {}).items() if name != "render_mode"}
    spec["additional_wrappers"] = []
    for wrapper in written.get("additional_wrappers", ()):
        if wrapper["kwargs"] is not None and _is_installed(wrapper["entry_point"]):
            spec["additional_wrappers"] += [wrapper] if wrapper["name"] not in DRAWING_WRAPPERS else []
        else:
            print(f"{source}: its environment is built without the wrapper {wrapper['name']}, which cannot be rebuilt")
    return spec


def _is_installed(entry_point: str) -> bool:
    try:
        load_env_creator(entry_point)
    except (ImportError, AttributeError):
        return False
    return True


def _build(spec: dict, source: str, requirements: List[str], render_mode: Optional[str] = None) -> gymnasium.Env:
    """The environment of a `_readable_spec`. Raises UserError where it would be a program or cannot be built."""
    _refuse_programs([spec], source)
    wrappers = tuple(WrapperSpec(**wrapper) for wrapper in spec["additional_wrappers"])
    options = {} if render_mode is None else {"render_mode": render_mode}
    try:
        return gymnasium.make(EnvSpec(**{**spec, "additional_wrappers": wrappers}), **options)
    except Exception as error:  # whatever the constructor of an environment of another version raises
        packages = " ".join(f'"{requirement}"' for requirement in requirements)
        install = f"`pip install {packages}`" if packages else "install the package that has it"
        raise UserError(
            f"{source}: its environment cannot be built ({with_place(error)}): {install}, in the version of the "
            f"collection"
        ) from error


def _compare_actions(record: dict, environment: gymnasium.Env, metadata: dict) -> None:
    """Raises UserError unless an action in [-1, 1] means the same in the data and in the environment.

    The data's box and the environment's may differ where the collection's wrappers rescaled the same actuators.
    """
    stored = deserialize_space(record["action_space"])
    if _are_alike(stored, environment.action_space):
        return
    if stored.shape == environment.action_space.shape and metadata.get("env_spec") is not None:
        collection = _build(_readable_spec(json.loads(metadata["env_spec"]), record["source"]), record["source"], [])
        boxes = (collection.unwrapped.action_space, environment.unwrapped.action_space)
        same = _are_alike(stored, collection.action_space) and _are_alike(*boxes)
        collection.close()
        if same:
            return
    raise UserError(
        f"{record['source']}: its environment takes other actions, {one_line(environment.action_space)}, than the data "
        f"hold, {one_line(stored)}: create the data set with eval_env= that has the wrappers of the collection"
    )


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
    storage, metadata = open_storage(data_path)
    width = observation_width(storage.observation_space, str(data_path / METADATA_FILE))
    scale = ActionScale(storage.action_space, str(data_path / METADATA_FILE))
    record = environment_record(data_path, metadata, storage)
    environment = build_environment(record).env
    _compare_actions(record, environment, metadata)
    environment.close()
    bounds = environment.action_space
    shift = REWARD_SHIFT if name.startswith(f"{SHIFTED_NAMESPACE}/") else 0.0
    dataset, returns = _read(storage, scale, shift)
    return Task(
        name=f"minari/{name}",
        dataset=dataset,
        validation=None,
        make_env=functools.partial(build_environment, record),
        observation_dim=width,
        action_dim=scale.shape[0],
        score_name="return",
        identity=_identity(name, data_path, metadata, record, returns)
        | {"transitions": len(dataset), "reward_shift": shift},
        reward_shift=shift,
        environment=record | {"action_low": bounds.low.tolist(), "action_high": bounds.high.tolist()},
    )


def load_environment(name: str, record: dict, data_dir: Optional[str] = None) -> Callable[..., UnitEnvironment]:
    """The `make_env` of the task `name` from its record, for which no data are needed."""
    return functools.partial(build_environment, record)


def open_storage(data_path: Path) -> Tuple[MinariStorage, dict]:
    """(the data, what metadata.json holds) of the data set in data_path. Raises UserError where it cannot be read.

    An env_spec names what gymnasium imports and calls, with arguments: `os:system` is as good to it as an environment.
    Here it must be an environment class, and its wrappers wrapper classes, or what an installed package registered
    under that id.
    """
    try:
        metadata = MinariStorage.read_raw_metadata(data_path)
        specs = [json.loads(metadata[name]) for name in ENVIRONMENT_SPECS if metadata.get(name) is not None]
        _refuse_programs(specs, str(data_path / METADATA_FILE))
        storage = MinariStorage.read(data_path)
    except UserError:
        raise
    except Exception as error:  # minari, json, h5py and gymnasium raise many types for damaged files
        raise UserError(f"{data_path}: is no readable Minari data set ({one_line(error)}): {FETCH_AGAIN}") from error
    if storage.FORMAT != "hdf5":
        raise UserError(f"{data_path}: is stored as {storage.FORMAT}: only hdf5 is read, store it as that")
    return storage, metadata


def _refuse_programs(specs: List[dict], source: str) -> None:
    """Raises UserError where gymnasium would import and call something else than an environment or a wrapper."""
    calls = [(spec["entry_point"], spec["id"], gymnasium.Env) for spec in specs]
    wrappers = [wrapper for spec in specs for wrapper in spec.get("additional_wrappers", ())]
    calls += [(wrapper["entry_point"], None, gymnasium.Wrapper) for wrapper in wrappers]
    for entry_point, name, kind in calls:
        if not _is_harmless(entry_point, name, kind):
            raise UserError(
                f"{source}: names {str(entry_point)[:80]!r} as its environment, which is none: such a file may run any "
                f"program, fetch the data set from a source that you trust"
            )


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


def _read(storage: MinariStorage, scale: ActionScale, shift: float) -> Tuple[Dataset, np.ndarray]:
    """The data set as rows, the final observation of every episode among them, and the returns [episodes].

    Episodes without a step, which a collector leaves when it is closed after a reset, are left out.
    """
    source = str(storage.data_path / MAIN_FILE)
    columns: Dict[str, List[np.ndarray]] = {"observations": [], "actions": [], "rewards": [], "masks": [], "valid": []}
    returns, start, outside = [], 0, 0
    for episode in _episodes(storage, source):
        steps = len(episode["rewards"])
        if steps == 0:
            continue
        observations = flatten(storage.observation_space, episode["observations"])
        rewards = np.asarray(episode["rewards"])
        if rewards.shape[1:] == (1,):  # of an environment that gives them in a vector
            rewards = rewards[:, 0]
        _check_episode(episode, observations, rewards, scale.shape, source)
        actions = scale.to_unit(episode["actions"])
        outside += int((np.abs(actions) > 1 + ACTION_TOLERANCE).any(axis=1).sum())
        actions = actions.clip(-1.0, 1.0)
        returns.append(rewards.sum(dtype=np.float64))
        # The final observation has no action, reward and end of its own: it repeats the action before it, so that
        # next_actions holds no invented one.
        columns["observations"].append(observations)
        columns["actions"].append(np.concatenate([actions, actions[-1:]]))
        columns["rewards"].append(np.append(rewards + shift, 0.0).astype(np.float32))
        columns["masks"].append(np.append(~episode["terminations"].astype(bool), True).astype(np.float32))
        columns["valid"].append(np.arange(start, start + steps))
        start += steps + 1
    if not returns:
        raise UserError(f"{source}: holds no episode: fetch or make it again")
    if outside:
        print(
            f"{source}: actions of {outside} of {start - len(returns)} steps are outside the action space and are "
            f"clipped to it"
        )
    arrays = {field: np.concatenate(parts) for field, parts in columns.items()}
    for field in ("observations", "actions", "rewards"):
        refuse_non_finite(source, field, arrays[field])
    return Dataset(**{field: torch.from_numpy(array) for field, array in arrays.items()}), np.asarray(returns)


def _episodes(storage: MinariStorage, source: str) -> Iterator[dict]:
    """The episodes by their number: minari asks for episode_0, episode_1, ..., where HDF5 would sort 10 before 2."""
    try:
        yield from storage.get_episodes(range(storage.total_episodes))
    except Exception as error:  # h5py raises many types for a damaged file
        raise UserError(f"{source}: truncated or damaged ({one_line(error)}): {FETCH_AGAIN}") from error


def _check_episode(
    episode: dict, observations: np.ndarray, rewards: np.ndarray, action_shape: tuple, source: str
) -> None:
    """Raises UserError where the arrays of an episode do not belong together."""
    steps = len(rewards)
    found = len(observations), np.shape(episode["actions"]), rewards.shape, episode["terminations"].shape
    expected = steps + 1, (steps, *action_shape), (steps,), (steps,)
    if found != expected:
        raise UserError(
            f"{source}: observations, actions, rewards and terminations of episode_{episode['id']} have shapes "
            f"{found}, expected {expected} (several objectives are not supported): fetch or make it again"
        )


def _identity(name: str, data_path: Path, metadata: dict, record: dict, returns: np.ndarray) -> dict:
    scored_in = json.dumps({key: value for key, value in record.items() if key != "source"}, sort_keys=True)
    sha256, hashed = file_sha256(data_path / MAIN_FILE)
    named = all(metadata.get(field) for field in ("author", "code_permalink"))
    official = named and name.split("/")[0] in OFFICIAL_NAMESPACES
    identity = {
        "suite": "minari",
        "path": str(data_path / MAIN_FILE),
        "sha256": sha256,
        "sha256_of": hashed,
        "environment_sha256": hashlib.sha256(scored_in.encode()).hexdigest(),  # spaces and env_spec: metadata.json's
        "source": "official" if official else "local file",
        "episodes": len(returns),
        "dataset": name,
        "author": sorted(metadata.get("author", ())),
        "minari_version": metadata["minari_version"],
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
            f"{name!r} is no id of a Minari data set{_renamed(name)} (expected minari/<namespace>/<name>-v<number>, "
            f"e.g. minari/D4RL/pointmaze/umaze-v2)"
        ) from error


def _renamed(name: str) -> str:
    """`, did you mean ...?` for an id of D4RL or of Minari before version 0.5."""
    today = minari_id(name)
    return f", did you mean minari/{today}?" if today not in (None, name) else ""


def _download(root: Path, name: str) -> None:
    """Fetches the data set into `root` as a whole: it is downloaded beside its place and moved there at the end."""
    folder = root / name
    if folder.exists():
        raise UserError(
            f"{folder}: holds a part of a data set only (no data/{METADATA_FILE}), as a download that broke off leaves "
            f"it: delete this folder and give the same command again"
        )
    shared = os.environ.get(DATA_DIR_VARIABLE)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
            os.environ[DATA_DIR_VARIABLE] = temporary  # where minari's own download puts it
            minari.download_dataset(name)
            folder.parent.mkdir(parents=True, exist_ok=True)
            if not folder.exists():  # another process may have fetched it meanwhile
                os.replace(Path(temporary) / name, folder)
    except Exception as error:  # each of minari's remotes has error types of its own
        local = [path.parent.parent.relative_to(root).as_posix() for path in root.glob(f"**/data/{METADATA_FILE}")]
        raise UserError(
            f"no Minari data set {name!r} in {root}{_renamed(name) or nearest_names(name, local)} and the download "
            f"failed ({one_line(error)}): run `minari download {name}` where there is internet and copy the folder "
            f"{name} there, or set data_dir or {DATA_DIR_VARIABLE} to the folder that holds it"
        ) from error
    finally:
        os.environ.pop(DATA_DIR_VARIABLE, None)
        if shared is not None:
            os.environ[DATA_DIR_VARIABLE] = shared
