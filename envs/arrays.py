"""Tasks of one's own arrays: `arrays/<path>` reads a file, `task_from_arrays` takes what is in memory.

arrays/logs/pendulum.npz                   transitions alone: trained without an environment, and so without a score
arrays/logs/pendulum.npz@Pendulum-v1       evaluated, and trained on online, in that gymnasium environment
arrays/logs/hopper.hdf5@my_envs:Hop-v0     an environment that importing the module `my_envs` registers
"""

import functools
import hashlib
import re
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

import gymnasium
import h5py
import numpy as np

from common.errors import UserError, one_line
from common.untrusted import load_npz, plain_dataset
from envs.dataset import Dataset
from envs.spaces import UnitEnvironment
from envs.task import Task, file_sha256
from envs.wrappers import Wrapped

NAME = re.compile(r"(?P<path>.+\.(npz|hdf5|h5))(@(?P<environment>.+))?")
NEEDED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("next_observations", "timeouts", "action_low", "action_high")
SYNONYMS = {"terminations": "terminals", "truncations": "timeouts"}  # gymnasium's names


def load(name: str, data_dir: Optional[str] = None, collect_episodes: int = 0) -> Task:
    """Loads `<path>[@<environment id>]`; the path of the .npz, .hdf5 or .h5 file begins at data_dir where that is set.

    The file holds the arrays of `task_from_arrays` under these names: D4RL's HDF5 files, or np.savez's. A file
    `<name>-val.npz` beside `<name>.npz` is the validation set. collect_episodes is not used.
    Raises UserError for a name of another form, a file that is absent or broken, and where file and environment
    do not fit together.
    """
    path, environment = _parse(name, data_dir)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file: give its path from here, or from the folder data_dir")
    sha256, hashed = file_sha256(path)
    identity = {"path": str(path), "sha256": sha256, "sha256_of": hashed, "source": "local file"}
    validation = path.with_name(f"{path.stem}-val{path.suffix}")
    if validation.exists():
        identity["validation_sha256"] = file_sha256(validation)[0]
    make_env = None if environment is None else functools.partial(make_gymnasium, environment)
    validation_arrays = read_arrays(validation) if validation.exists() else None
    return task_from_arrays(f"arrays/{name}", read_arrays(path), make_env, validation_arrays, identity)


def load_environment(name: str, record: dict, data_dir: Optional[str] = None) -> Optional[Callable[[], gymnasium.Env]]:
    """The `make_env` of the task `name`, for which no file is needed; None for data without an environment."""
    _, environment = _parse(name, data_dir)
    if environment is None:
        return None
    return Wrapped(functools.partial(make_gymnasium, environment), UnitEnvironment, (f"arrays/{name}",))


def make_gymnasium(environment: str, render_mode: Optional[str] = None) -> gymnasium.Env:
    """gymnasium's environment of that id. Raises UserError where it cannot be made."""
    try:
        return gymnasium.make(environment, render_mode=render_mode)
    except Exception as error:  # its own, ImportError, and whatever a constructor raises
        raise UserError(
            f"environment {environment!r} cannot be made ({one_line(error)}): install its package, or name an id that "
            f"gymnasium.make knows, with <module>:<id> for one that your module registers"
        ) from error


def _parse(name: str, data_dir: Optional[str]) -> tuple[Path, Optional[str]]:
    match = NAME.fullmatch(name)
    if match is None or ".." in Path(name).parts:
        raise UserError(
            f"task 'arrays/{name}': expected arrays/<path>.npz, .hdf5 or .h5, and @<environment id> behind it where "
            f"there is one, e.g. arrays/logs/pendulum.npz@Pendulum-v1, without .. in the path: set data_dir"
        )
    return Path(data_dir or ".").expanduser() / Path(match["path"]).expanduser(), match["environment"]


# ---- Files ----


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays that NEEDED and OPTIONAL name, by these names. Raises UserError for an absent or broken file."""
    known = (*NEEDED, *OPTIONAL, *SYNONYMS)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                names = list(file)
            arrays = load_npz(path, known)
        else:
            with h5py.File(path) as file:
                names, arrays = list(file), {name: plain_dataset(file, name)[()] for name in known if name in file}
    except Exception as error:  # zipfile, numpy and h5py raise many types for a damaged file
        raise UserError(
            f"{path}: is truncated or no file of plain arrays ({one_line(error)}): save it again"
        ) from error
    return known_arrays(str(path), dict.fromkeys(names) | arrays)


# ---- Arrays ----


def known_arrays(source: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays that NEEDED and OPTIONAL name, by these names, without others. Raises UserError for a missing one."""
    found = {SYNONYMS.get(name, name): array for name, array in arrays.items()}
    twice = [f"{name} and {own}" for name, own in SYNONYMS.items() if name in arrays and own in arrays]
    if twice:
        raise UserError(f"{source}: has {', '.join(twice)}, which mean the same: leave one out")
    missing = [name for name in NEEDED if found.get(name) is None]
    if missing:
        raise UserError(
            f"{source}: has no array {' and no '.join(missing)} (it has {', '.join(arrays) or 'none'}): name the "
            f"arrays {', '.join(NEEDED + OPTIONAL[:2])}; terminals are true ends, timeouts ends at a time limit"
        )
    return {name: found[name] for name in (*NEEDED, *OPTIONAL) if name in found}


def task_from_arrays(
    name: str,
    arrays: Mapping[str, Any],
    make_env: Optional[Callable[..., gymnasium.Env]] = None,
    validation: Optional[Mapping[str, Any]] = None,
    identity: Optional[dict] = None,
    score_name: str = "return",
) -> Task:
    """A task of the arrays that `Dataset.from_transitions` takes, by its names, and of an environment or none.

    A Dict of observations is flattened by the order of its keys, which the data's must have. Actions are scaled to
    [-1, 1]: the environment's by its action space, the data's by action_low and action_high, which are the action
    space's where the arrays name none. make_env is a class or a function of a module, so that other processes can
    import it. validation: further arrays of the same form, whose losses are logged. identity: what is known of the
    arrays' file; without it a hash of their content tells them from others.
    Raises UserError where arrays and environment do not fit together.
    """
    arrays = known_arrays(name, arrays)
    bounds = {"action_low": -1.0, "action_high": 1.0}
    if make_env is not None:
        make_env = Wrapped(make_env, UnitEnvironment, (f"task {name}",))
        built = make_env()
        built.close()
        bounds = {"action_low": built.scale.low, "action_high": built.scale.high}
        for kind, space in (("observations", built.observation_space), ("actions", built.action_space)):
            if np.shape(arrays[kind])[1:] != space.shape:
                raise UserError(
                    f"task {name}: {kind} have shape {np.shape(arrays[kind])} in the data and {space.shape} in the "
                    f"environment: give the environment that the data were recorded in"
                )
    scaling = bounds | {bound: arrays[bound] for bound in bounds if bound in arrays}
    if make_env is None:
        bounds = scaling
    dataset = _dataset(name, scaling | arrays)
    identity = identity or {"path": name, "sha256": _sha256(arrays), "source": "own arrays"}
    return Task(
        name=name,
        dataset=dataset,
        validation=None
        if validation is None
        else _dataset(f"{name}, validation", scaling | known_arrays(f"{name}, validation", validation)),
        make_env=make_env,
        observation_dim=dataset.observations.shape[1],
        action_dim=dataset.actions.shape[1],
        score_name=score_name,
        identity={"suite": name.split("/")[0], **identity, "transitions": len(dataset), **_episodes(arrays)},
        environment={
            bound: np.broadcast_to(value, dataset.actions.shape[1]).tolist() for bound, value in bounds.items()
        },
    )


def _dataset(source: str, arrays: Mapping[str, Any]) -> Dataset:
    return Dataset.from_transitions(**{"next_observations": None, **arrays}, source=source)


def _sha256(arrays: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(name.encode() + (b"" if array is None else np.ascontiguousarray(array).tobytes()))
    return digest.hexdigest()


def _episodes(arrays: Mapping[str, Any]) -> dict:
    """The number of whole episodes and their mean and best return, where timeouts tell where they end."""
    if arrays.get("timeouts") is None:
        return {}
    ends = np.ravel(arrays["terminals"]).astype(bool) | np.ravel(arrays["timeouts"]).astype(bool)
    sums = np.cumsum(np.ravel(arrays["rewards"]), dtype=np.float64)[ends]
    returns = np.diff(sums, prepend=0.0)
    if len(returns) == 0:
        return {}
    mean, best = float(returns.mean()), float(returns.max())
    return {"episodes": len(returns), "episode_return_mean": mean, "episode_return_best": best}
