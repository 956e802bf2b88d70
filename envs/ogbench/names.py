"""OGBench's data sets by name: which exist, which the scripted oracles can make, and how an unknown name is refused."""

import os
import re
from pathlib import Path
from typing import Optional

from common.errors import UserError
from common.names import nearest_names
from envs.generation_record import read_record

DEFAULT_DATA_DIR = "~/.ogbench/data"  # ogbench's own
VERSION = "v0"
TASKS_PER_ENVIRONMENT = 5
VALIDATION_SHARE = 10  # one validation episode, beyond the training ones, for so many of them

_MAZE_KINDS = ("navigate", "stitch")
_ENVIRONMENTS = {
    **{f"pointmaze-{size}": _MAZE_KINDS for size in ("medium", "large", "giant", "teleport")},
    **{f"antmaze-{size}": (*_MAZE_KINDS, "explore") for size in ("medium", "large", "teleport")},
    "antmaze-giant": _MAZE_KINDS,
    **{f"humanoidmaze-{size}": _MAZE_KINDS for size in ("medium", "large", "giant")},
    **{f"antsoccer-{size}": _MAZE_KINDS for size in ("arena", "medium")},
    **{f"cube-{number}": ("play", "noisy") for number in ("single", "double", "triple", "quadruple")},
    "scene": ("play", "noisy"),
    **{f"puzzle-{size}": ("play", "noisy") for size in ("3x3", "4x4", "4x5", "4x6")},
}
# Data sets with low-dimensional states, `<environment>-<kind>`, as OGBench released them.
DATASETS = tuple(f"{environment}-{kind}" for environment, kinds in _ENVIRONMENTS.items() for kind in kinds)
# (episodes, transitions of each) of the official training files, the first entry that a data set's name matches; the
# validation files hold a tenth as many episodes beyond them. From the generation commands of OGBench's repository.
_OFFICIAL_EPISODES = {
    "(point|ant)maze-giant-navigate": (500, 2000),
    "(point|ant)maze-.*-navigate": (1000, 1000),
    "(point|ant)maze-.*-stitch": (5000, 200),
    "antmaze-.*-explore": (10_000, 500),
    "humanoidmaze-giant-navigate": (1000, 4000),
    "humanoidmaze-giant-stitch": (10_000, 400),
    "humanoidmaze-.*-navigate": (1000, 2000),
    "humanoidmaze-.*-stitch": (5000, 400),
    "antsoccer-arena-navigate": (1000, 1000),
    "antsoccer-arena-stitch": (5000, 200),
    "antsoccer-medium-navigate": (4000, 1000),
    "antsoccer-medium-stitch": (8000, 500),
    "(cube-triple|puzzle-4x5)-.*": (3000, 1000),
    "(cube-quadruple|puzzle-4x6)-.*": (5000, 1000),
    "(cube|scene|puzzle).*": (1000, 1000),
}
# Sets of as many files as LARGE_FILES, each of the official size of (1000, 1000); their tasks are those of the set
# without the suffix. One file is read at a time (QAM's repository, which takes them for two of its domains).
LARGE_SUFFIX, LARGE_FILES = "-100m", 100
LARGE = tuple(f"{name}-play{LARGE_SUFFIX}" for name in ("cube-quadruple", "puzzle-4x4", "puzzle-4x5", "puzzle-4x6"))
_NEEDS_EXPERTS = ("antmaze", "humanoidmaze", "antsoccer")
GENERATED = tuple(name for name in DATASETS if not name.startswith(_NEEDS_EXPERTS))

# What OGBench has besides, by the beginning of its ids, and why it is not read here.
NOT_SUPPORTED = {
    "visual-": "its observations are images, and the networks here take vectors",
    "powderworld-": "its observations are images and its actions discrete",
}

GENERATED_FAMILIES = "cube-*, scene-*, puzzle-* and pointmaze-*"


def task_names() -> tuple:
    """The ids of all single tasks, `<data set>-singletask[-taskN]-v0`; without taskN the environment's default."""
    suffixes = ("", *(f"-task{number}" for number in range(1, TASKS_PER_ENVIRONMENT + 1)))
    return tuple(f"{name}-singletask{suffix}-{VERSION}" for name in (*DATASETS, *LARGE) for suffix in suffixes)


def dataset_of(task_name: str) -> str:
    """The data set `<environment>-<kind>` of a single task. Raises UserError that says why not, or the nearest ids."""
    for beginning, reason in NOT_SUPPORTED.items():
        if task_name.startswith(beginning):
            raise UserError(f"OGBench task {task_name!r} is not supported: {reason}")
    if task_name.removesuffix(f"-{VERSION}") in (*DATASETS, *LARGE):
        raise UserError(
            f"OGBench task {task_name!r} is goal-conditioned, which is not supported: name one of its single tasks, "
            f"ogbench/{task_name.removesuffix(f'-{VERSION}')}-singletask-task1-{VERSION} to -task5-{VERSION}"
        )
    if task_name not in task_names():
        nearest = nearest_names(f"ogbench/{task_name}", [f"ogbench/{known}" for known in task_names()])
        raise UserError(
            f"unknown OGBench task {task_name!r}{nearest} (expected "
            f"ogbench/<data set>-singletask[-taskN]-{VERSION} with N from 1 to {TASKS_PER_ENVIRONMENT} and a data set "
            f"of states, e.g. ogbench/cube-single-play-singletask-task1-{VERSION})"
        )
    return re.sub(r"-singletask.*$", "", task_name)


def environment_task(task_name: str) -> str:
    """The name by which OGBench knows a task's environment and rewards."""
    return task_name.replace(f"{LARGE_SUFFIX}-singletask", "-singletask")


def official_episodes(dataset: str) -> tuple:
    """(episodes, transitions of each) of the official training file of a data set."""
    return next(size for pattern, size in _OFFICIAL_EPISODES.items() if re.fullmatch(pattern, dataset))


def check_can_be_generated(dataset: str) -> None:
    """Raises UserError for an unknown data set and for one whose policies are not in the ogbench package."""
    if dataset not in DATASETS:
        raise UserError(
            f"unknown OGBench data set {dataset!r}{nearest_names(dataset, DATASETS)} "
            f"(can be generated: {GENERATED_FAMILIES})"
        )
    if dataset not in GENERATED:
        raise UserError(
            f"{dataset} cannot be generated here: its policies are SAC experts that OGBench's authors trained, which "
            f"are not in the ogbench package: download {dataset}-{VERSION}.npz and {dataset}-{VERSION}-val.npz"
        )


def data_root(data_dir: Optional[str]) -> Path:
    """The folder of the npz files: data_dir, by default ogbench's own."""
    return Path(os.path.expanduser(data_dir or DEFAULT_DATA_DIR))


def train_file(root: Path, dataset: str) -> Path:
    return root / f"{dataset}-{VERSION}.npz"


def validation_file(root: Path, dataset: str) -> Path:
    return root / f"{dataset}-{VERSION}-val.npz"


def sidecar_file(root: Path, dataset: str) -> Path:
    """The record beside files that were generated here; downloaded files have none."""
    return root / f"{dataset}-{VERSION}.generation.json"


def read_sidecar(path: Path) -> dict:
    """The record of a generation. Raises UserError where it is not one."""
    return read_record(path, ("generator_version",), "delete it, and generate the data set again")
