"""OGBench's single tasks: `load` gives the data set, by ogbench's own download and relabelling, and the environment."""

import contextlib
import functools
import hashlib
import urllib.error
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import ogbench
import torch
from ogbench.relabel_utils import relabel_dataset

from common.errors import UserError, one_line
from common.files import make_folder
from common.untrusted import load_npz
from envs.dataset import Dataset
from envs.ogbench.environment import OGBenchEnvironment
from envs.ogbench.names import (
    GENERATED,
    LARGE,
    LARGE_FILES,
    VALIDATION_SHARE,
    VERSION,
    data_root,
    dataset_of,
    environment_task,
    official_episodes,
    read_sidecar,
    sidecar_file,
    train_file,
    validation_file,
)
from envs.shards import Shards
from envs.task import Task, file_sha256
from envs.transitions import ACTION_LIMIT, refuse_non_finite, refuse_out_of_range

SUGGESTED_TRANSITIONS = 1_000_000  # in the command that an error message names
NETWORK_ERRORS = (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError)
LARGE_URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
LARGE_INTERVAL = 1000  # updates on one file of a large set
HASHED_ENDS = 1 << 20  # bytes at either end of each of its files that its hash depends on
ARRAYS = ("observations", "actions", "terminals", "qpos", "qvel", "button_states")


def load(name: str, data_dir: Optional[str] = None, collect_episodes: int = 0) -> Task:
    """Loads the single task `<environment>-<kind>-singletask[-taskN]-v0`; absent files are downloaded first.

    The files, `<environment>-<kind>-v0.npz` and `-val.npz`, lie in data_dir, by default ogbench's ~/.ogbench/data; the
    second becomes the task's validation set. Reward and mask of a row are functions of its own state: the reward is
    minus the number of sub-goals not met, the mask is 0 exactly where all are met. The score is the success.
    A set of names.LARGE is a folder of that name with a file for every million transitions; see envs/shards.py.
    collect_episodes is not used: local files have the official names, so making them is a command of its own
    (envs/ogbench/generate.py). Raises UserError for unknown names and for files that are absent or broken.
    """
    dataset_name = dataset_of(name)
    root = data_root(data_dir)
    if dataset_name in LARGE:
        return _load_large(name, root / f"{dataset_name}-{VERSION}")
    paths = [train_file(root, dataset_name), validation_file(root, dataset_name)]
    _download_missing(root, dataset_name, paths)
    environment = OGBenchEnvironment(name)
    dataset, validation = (_read(path, name, environment) for path in paths)
    task = _task(
        name, environment, dataset, validation, _file_identity(root, dataset_name, paths, [dataset, validation])
    )
    environment.close()
    return task


def _task(
    name: str, environment: OGBenchEnvironment, dataset: Dataset, validation: Optional[Dataset], identity: dict
) -> Task:
    return Task(
        name=f"ogbench/{name}",
        dataset=dataset,
        validation=validation,
        make_env=load_environment(name, {}),
        observation_dim=environment.observation_space.shape[0],
        action_dim=environment.action_space.shape[0],
        score_name="success",
        identity={
            "transitions": len(dataset),
            "episodes": len(dataset.observations) - len(dataset),  # each has one row without a successor
            "validation_transitions": 0 if validation is None else len(validation),
            "dataset": dataset_of(name),
            "reward_task": int(environment.environment.unwrapped.cur_task_id),
            **identity,
        },
    )


def load_environment(name: str, record: dict, data_dir: Optional[str] = None) -> Callable[[], OGBenchEnvironment]:
    """The `make_env` of the task, for which no file is needed."""
    dataset_of(name)
    return functools.partial(OGBenchEnvironment, environment_task(name))


def generate_command(root: Path, dataset_name: str, transitions: int = SUGGESTED_TRANSITIONS) -> str:
    return f"python -m envs.ogbench.generate {dataset_name} --transitions {transitions} --out {root}"


def _download_missing(root: Path, dataset_name: str, paths: List[Path]) -> None:
    """Fetches absent files. Raises UserError that says how to get them where that fails."""
    missing = " and ".join(path.name for path in paths if not path.exists())
    if not missing:
        return
    if sidecar_file(root, dataset_name).exists():
        raise UserError(
            f"{missing}: not in {root}, where {dataset_name} was generated: run "
            f"`{generate_command(root, dataset_name)}` with that generation's own settings "
            f"({sidecar_file(root, dataset_name).name}) or, to download instead, delete what is there"
        )
    make_folder(root, "data_dir")
    try:
        ogbench.download_datasets([f"{dataset_name}-{VERSION}"], str(root))
    except NETWORK_ERRORS as error:
        generated = f", or make it with `{generate_command(root, dataset_name)}`"
        raise UserError(
            f"{missing}: not in {root}, and the download failed ({getattr(error, 'reason', error)}): copy it there "
            f'from a machine with internet, where `python -c "import ogbench; '
            f"ogbench.download_datasets(['{dataset_name}-{VERSION}'])\"` puts it into ~/.ogbench/data"
            f"{generated if dataset_name in GENERATED else ''}"
        ) from error
    finally:
        for path in paths:
            path.with_name(path.name + ".tmp").unlink(missing_ok=True)  # ogbench leaves its partial file


def _load_large(name: str, folder: Path) -> Task:
    """The task whose data set is what the files of `folder` hold together; its validation data are the first file's."""
    paths = [path for path in sorted(folder.glob("*.npz")) if not path.stem.endswith("-val")]
    if not paths:
        raise UserError(
            f"{folder}: has no data: fetch its {LARGE_FILES} files with `wget -r -np -nH --cut-dirs=2 -A '*.npz' -P "
            f"{folder.parent} {LARGE_URL}/{folder.name}/`"
        )
    for path in paths:
        with _damage_named(path):
            zipfile.ZipFile(path).close()  # its directory is at its end: none of them was cut off
    environment = OGBenchEnvironment(environment_task(name))  # stays open: it computes each file's rewards
    read = functools.partial(_read, name=name, environment=environment, action_limit=1.0)  # not clipped, as in QAM's
    dataset = Shards(paths, read, LARGE_INTERVAL)
    validation_path = paths[0].with_name(f"{paths[0].stem}-val.npz")
    official = len(paths) == LARGE_FILES and _episodes(dataset) == (1000, 1000)
    identity = {
        "suite": "ogbench",
        "path": str(folder),
        "sha256": sha256_of_ends(paths),
        "sha256_of": "names, sizes and ends of all files",
        "source": "official" if official else "unknown",
        "files": len(paths),
        "transitions": len(paths) * len(dataset),
        "episodes": len(paths) * _episodes(dataset)[0],
    }
    return _task(name, environment, dataset, read(validation_path) if validation_path.exists() else None, identity)


def sha256_of_ends(paths: Sequence[Path]) -> str:
    """A hash of the files' names, sizes, first and last MiB: all of them take half a minute to read."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            digest.update(file.read(HASHED_ENDS))
            file.seek(max(0, size - HASHED_ENDS))
            digest.update(file.read())
    return digest.hexdigest()


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zipfile and numpy raise many types for a damaged file
        raise UserError(
            f"{path}: truncated or not an OGBench data set ({one_line(error)}): delete it and fetch or make it again"
        ) from error


def _read(path: Path, name: str, environment: OGBenchEnvironment, action_limit: float = ACTION_LIMIT) -> Dataset:
    """The data set of one file with the rewards and masks of task `name`."""
    with _damage_named(path):
        rows = load_npz(path, ARRAYS)
    _check(path, rows, environment)
    relabel_dataset(environment_task(name), environment.environment, rows)
    columns = {
        "observations": rows["observations"],
        "actions": rows["actions"],
        "rewards": rows["rewards"],
        "masks": rows["masks"],
        "valid": np.flatnonzero(rows["terminals"] == 0),  # 1 in an episode's last row; it ends no bootstrap
    }
    return Dataset(
        has_last_actions=True,
        action_limit=action_limit,
        **{column: torch.from_numpy(array) for column, array in columns.items()},
    )


def _check(path: Path, rows: Dict[str, np.ndarray], environment: OGBenchEnvironment) -> None:
    """Refuses arrays that are absent, of shapes that are not the environment's, not finite or cut off."""
    simulation = environment.environment.unwrapped
    count = len(np.atleast_1d(rows.get("observations", ())))
    shapes = {
        "observations": (count, *environment.observation_space.shape),
        "actions": (count, *environment.action_space.shape),
        "terminals": (count,),
        "qpos": (count, simulation.model.nq),
    }
    if hasattr(simulation, "_cur_button_states"):
        shapes["button_states"] = (count, len(simulation._cur_button_states))
    for field, shape in shapes.items():
        if field not in rows:
            raise UserError(f"{path}: array {field} is missing: the file is no data set of this task's environment")
        if rows[field].shape != shape:
            raise UserError(
                f"{path}: {field} has shape {rows[field].shape}, expected {shape}: the file is damaged or of another "
                f"environment"
            )
        refuse_non_finite(str(path), field, rows[field])
    refuse_out_of_range(str(path), rows["actions"], "the file is damaged or of another environment")
    ends = rows["terminals"]
    if not np.isin(ends, (0, 1)).all() or ends.all() or not ends[-1]:
        raise UserError(
            f"{path}: terminals must be 0, or 1 at an episode's end, the last row's too: the file is damaged"
        )


def _file_identity(root: Path, dataset_name: str, paths: List[Path], sets: Sequence[Dataset]) -> dict:
    """What the files are, by their hashes and, for those generated here, the record beside them.

    OGBench publishes no hashes: files without a record count as official where their episodes are as many and as long
    as the official ones.
    """
    (sha256, hashed), (validation_sha256, _) = (file_sha256(path) for path in paths)
    sidecar = sidecar_file(root, dataset_name)
    episodes, steps = official_episodes(dataset_name)
    official = [_episodes(part) for part in sets] == [(episodes, steps), (episodes // VALIDATION_SHARE, steps)]
    generation, source = None, "official" if official else "unknown"
    if sidecar.exists():
        generation = read_sidecar(sidecar)
        if generation.get("sha256") != {"train": sha256, "validation": validation_sha256}:
            raise UserError(
                f"{sidecar}: describes other files than {paths[0].name} and {paths[1].name} beside it: delete it if "
                f"those were downloaded, otherwise generate again"
            )
        source = generation["source"]
    return {
        "suite": "ogbench",
        "path": str(paths[0]),
        "sha256": sha256,
        "sha256_of": hashed,
        "validation_sha256": validation_sha256,
        "source": source,
        "generation": generation,
    }


def _episodes(dataset: Dataset) -> Tuple[int, Optional[int]]:
    """(episodes, transitions of each, None where they differ)."""
    last = torch.ones(len(dataset.observations), dtype=torch.bool)
    last[dataset.valid] = False  # each episode has one row without a successor, its last
    lengths = torch.diff(last.nonzero()[:, 0], prepend=torch.tensor([-1])) - 1
    return len(lengths), int(lengths[0]) if (lengths == lengths[0]).all() else None
