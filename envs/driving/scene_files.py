"""A set of scenes on disk: a folder with the roads, one file for each log and a record of how it was made.

<folder>/generation.json        versions, seed and settings (`envs.driving.collect`, `envs.driving.navsim_export`)
<folder>/road_<family>.npz      the fields of a `Road`, or of a `PolygonRoad` for a scene of NAVSIM
<folder>/log_<index>.npz        the scenes of one log, possibly none; arrays of LogRecord

Scenes of one log overlap in time, so they are split by log: `split_of`.
"""

import functools
import zipfile
import zlib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Optional, Union

import numpy as np

from common.errors import UserError
from common.files import replacing
from envs.driving.polygons import PolygonRoad
from envs.driving.scene import Road, Scene

SPLITS = ("train", "validation", "test")
# Split of the log pairs (one of each family), repeated: 70 % train, 10 % validation, 20 % test, early ones of each.
CYCLE = ("train", "validation", "test", "train", "train", "train", "test", "train", "train", "train")
SCORE_NAMES = ("no_collision", "drivable_area", "time_to_collision", "comfort", "progress", "pdms")


@dataclass(frozen=True, eq=False)
class LogRecord:
    """The S scenes of one log with N agents at most, K plans each, as stored; arrays as in `Scene` unless noted.

    family [] text; step [S]: of the log, 0.1 s apart; agents [S, 51, N, 4], size [S, N, 2], static [S, N]: NaN and
    False where a scene has fewer; plans [S, K, 8, 3] and their scores [S, K, 6] by SCORE_NAMES; logged_plan and
    reference_plan [S, 8, 3]: what the logging driver did, what the rule-based planner chose

    Scenes exported from NAVSIM share neither road, route nor limit: family [S] is their tokens, centreline [S, m, 2]
    ends with NaN where it is shorter, speed_limit [S]; collided and annotated [S, N], lateral [S, 2]: of exported
    ones only
    """

    family: np.ndarray
    step: np.ndarray
    ego: np.ndarray
    history: np.ndarray
    agents: np.ndarray
    size: np.ndarray
    static: np.ndarray
    centreline: np.ndarray
    speed_limit: np.ndarray
    reference_progress: np.ndarray
    plans: np.ndarray
    scores: np.ndarray
    logged_plan: np.ndarray
    reference_plan: np.ndarray
    collided: Optional[np.ndarray] = None
    lateral: Optional[np.ndarray] = None
    annotated: Optional[np.ndarray] = None

    def family_of(self, index: int) -> str:
        """Which road scene number `index` is on."""
        return str(self.family[index] if self.family.ndim else self.family)

    def token(self, index: int, log: str) -> str:
        """A name of scene number `index` in the file named `log`; an exported scene has its own."""
        return self.family_of(index) if self.family.ndim else f"{log}_{self.step[index]:03d}"

    def scene(self, index: int, road: Road) -> Scene:
        """Scene number `index`, with the agents that it has."""
        present = ~np.isnan(self.agents[index, :, :, 0]).all(axis=0)
        centreline = self.centreline if self.centreline.ndim == 2 else self.centreline[index]
        collided, annotated = (
            None if each is None else each[index][present] for each in (self.collided, self.annotated)
        )
        return Scene(
            road=road,
            ego=self.ego[index],
            history=self.history[index],
            agents=self.agents[index][:, present],
            size=self.size[index][present],
            static=self.static[index][present],
            centreline=centreline[~np.isnan(centreline[:, 0])],
            speed_limit=float(self.speed_limit[index] if self.speed_limit.ndim else self.speed_limit),
            reference_progress=float(self.reference_progress[index]),
            collided=collided,
            lateral=None if self.lateral is None else self.lateral[index],
            annotated=annotated,
        )


def split_of(index: int) -> str:
    """The split of log number `index`."""
    return CYCLE[index // 2 % len(CYCLE)]


def log_path(folder: Path, index: int) -> Path:
    return folder / f"log_{index:06d}.npz"


def log_index(path: Path) -> int:
    return int(path.stem.removeprefix("log_"))


def log_paths(folder: Path, split: str) -> list[Path]:
    """The files of a split's logs, in order."""
    return [path for path in sorted(folder.glob("log_*.npz")) if split_of(log_index(path)) == split]


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Replaces `path` by a compressed npz of `arrays`; equal arrays give equal bytes."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def write_log(path: Path, record: LogRecord) -> None:
    arrays = {field.name: getattr(record, field.name) for field in fields(record)}
    write_arrays(path, {name: array for name, array in arrays.items() if array is not None})


def read_log(path: Path) -> LogRecord:
    """Raises UserError where the file is damaged."""
    arrays = read_arrays(path)
    missing = [field.name for field in fields(LogRecord) if field.default is MISSING and field.name not in arrays]
    if missing:
        raise UserError(
            f"{path}: {missing[0]} is missing: delete the file and give the command again that made the set"
        )
    return LogRecord(**{field.name: arrays[field.name] for field in fields(LogRecord) if field.name in arrays})


def road_path(folder: Path, family: str) -> Path:
    return folder / f"road_{family}.npz"


def write_road(path: Path, road: Union[Road, PolygonRoad]) -> None:
    write_arrays(path, {field.name: np.asarray(getattr(road, field.name)) for field in fields(road)})


@functools.lru_cache(maxsize=8)
def read_road(path: Path) -> Union[Road, PolygonRoad]:
    """The road of a file, read once in a process while few are in use. Raises UserError."""
    arrays = read_arrays(path)
    if "kinds" in arrays:
        return PolygonRoad(**arrays)
    return Road(arrays["raster"], arrays["intersection"], arrays["origin"], float(arrays["resolution"]))


class StoredRoad:
    """A road that stays in its file until it is asked: each exported scene has its own."""

    def __init__(self, path: Path):
        self.path = path

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or name == "path":  # asked for while it is unpickled
            raise AttributeError(name)
        return getattr(read_road(self.path), name)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz. Raises UserError where it is damaged."""
    try:
        with np.load(path) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path}: cannot be read ({error}): delete it and give the command again that made the set"
        ) from error
