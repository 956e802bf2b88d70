"""A set of scenes on disk: a folder with the roads, one file for each log and a record of how it was made.

<folder>/generation.json        versions, seed and settings (`envs.driving.collect`, `envs.driving.navsim_export`)
<folder>/road_<family>.npz      the fields of a `Road`, or of a `PolygonRoad` for a scene of NAVSIM
<folder>/log_<index>.npz        the scenes of one log, possibly none (`write_log`)

Scenes of one log overlap in time, so they are split by log: `split_of`.
"""

import functools
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, List, NamedTuple, Sequence, Tuple, Union

import numpy as np

from common.errors import UserError
from common.files import replacing
from envs.driving.polygons import PolygonRoad
from envs.driving.scene import FUTURE_STEPS, HISTORY_STEPS, Road, Scene
from envs.driving.vehicle import KNOTS

SPLITS = ("train", "validation", "test")
# Split of the log pairs (one of each family), repeated: 70 % train, 10 % validation, 20 % test, early ones of each.
CYCLE = ("train", "validation", "test", "train", "train", "train", "test", "train", "train", "train")
SCORE_NAMES = ("no_collision", "drivable_area", "time_to_collision", "comfort", "progress", "pdms")
PLANS = 16  # per scene
OF_AGENTS = ("size", "static", "collided", "annotated")  # arrays [n, ...] of a scene
SHARED = ("family", "centreline", "speed_limit")  # by all scenes of a log, but for exported ones


class Entry(NamedTuple):
    """A scene with K plans [K, 8, 3] and their scores [K, 6], what the driver did and what a planner chose [8, 3]."""

    scene: Scene
    plans: np.ndarray
    scores: np.ndarray
    logged_plan: np.ndarray
    reference_plan: np.ndarray


@dataclass(frozen=True, eq=False)
class SceneSet:
    """S scenes: plans [S, K, 8, 3], scores [S, K, 6] by SCORE_NAMES, logged and reference plans [S, 8, 3]."""

    scenes: List[Scene]
    tokens: List[str]
    plans: np.ndarray
    scores: np.ndarray
    logged_plans: np.ndarray
    reference_plans: np.ndarray


def split_of(index: int) -> str:
    """The split of log number `index`."""
    return CYCLE[index // 2 % len(CYCLE)]


def log_path(folder: Path, index: int) -> Path:
    return folder / f"log_{index:06d}.npz"


def road_path(folder: Path, family: str) -> Path:
    return folder / f"road_{family}.npz"


def log_paths(folder: Path, split: str) -> List[Path]:
    """The files of a split's logs, in order."""
    return [path for path in sorted(folder.glob("log_*.npz")) if split_of(int(path.stem.split("_")[1])) == split]


# ---- Logs ----


def stack(arrays: Sequence[Any], shape: Tuple[Any, ...], fill: Any = np.nan) -> np.ndarray:
    """Arrays of a shape as one [S, *shape]; where that is None, as long as the longest, the others filled up."""
    longest = np.max([np.shape(array) for array in arrays], axis=0) if arrays else np.zeros(len(shape), int)
    sizes = [longest[axis] if size is None else size for axis, size in enumerate(shape)]
    result = np.full((len(arrays), *sizes), fill)
    for index, array in enumerate(arrays):
        result[(index, *map(slice, np.shape(array)))] = array
    return result


def write_log(
    path: Path, entries: Sequence[Entry], family: Any, step: Any, centreline: Any, speed_limit: Any, **others: Any
) -> None:
    """Writes the scenes of one log, padded to the largest number of agents with NaN and False.

    family: of the road, of all scenes or [S]; step [S]: of the log, 0.1 s apart; centreline [m, 2] or [S, m, 2] that
    ends with NaN; speed_limit [] or [S]. others: arrays that exported scenes alone have.
    """
    scenes, plans, scores, logged, reference = ([entry[k] for entry in entries] for k in range(len(Entry._fields)))
    write_arrays(
        path,
        {
            "family": np.array(family),
            "step": np.array(step, int),
            "ego": stack([scene.ego for scene in scenes], (7,)),
            "history": stack([scene.history for scene in scenes], (len(HISTORY_STEPS), 3)),
            "agents": stack([scene.agents for scene in scenes], (FUTURE_STEPS, None, 4)),
            "size": stack([scene.size for scene in scenes], (None, 2)),
            "static": stack([scene.static for scene in scenes], (None,), False),
            "centreline": centreline,
            "speed_limit": np.array(speed_limit),
            "reference_progress": stack([scene.reference_progress for scene in scenes], ()),
            "plans": stack(plans, (PLANS, KNOTS, 3)),
            "scores": stack(scores, (PLANS, len(SCORE_NAMES))),
            "logged_plan": stack(logged, (KNOTS, 3)),
            "reference_plan": stack(reference, (KNOTS, 3)),
            **others,
        },
    )


def read_log(path: Path) -> SceneSet:
    """The scenes of a log's file. Raises UserError where it is damaged."""
    arrays = read_arrays(path)
    try:
        exported = arrays["family"].ndim > 0  # each scene with its own road, route and limit
        scenes, tokens = [], []
        for index, step in enumerate(arrays["step"]):
            one = {name: each if name in SHARED and not exported else each[index] for name, each in arrays.items()}
            family = str(one["family"])
            tokens.append(family if exported else f"{path.stem}_{step:03d}")
            scenes.append(_scene(one, StoredRoad(road_path(path.parent, family))))
        columns = (arrays[name] for name in ("plans", "scores", "logged_plan", "reference_plan"))
        return SceneSet(scenes, tokens, *columns)
    except KeyError as error:
        raise UserError(
            f"{path}: {error.args[0]} is missing: delete the file and give the command again that made the set"
        ) from error


def _scene(arrays: dict, road: Any) -> Scene:
    """The scene of its arrays, with the agents that it has."""
    needed = ("ego", "history", "agents", "size", "static", "centreline", "speed_limit", "reference_progress")
    values = {name: arrays[name] for name in needed}
    values.update({name: arrays[name] for name in ("collided", "lateral", "annotated") if name in arrays})
    present = ~np.isnan(values["agents"][..., 0]).all(axis=0)
    values.update({name: values[name][present] for name in OF_AGENTS if name in values})
    values["agents"] = values["agents"][:, present]
    values["centreline"] = values["centreline"][~np.isnan(values["centreline"][:, 0])]
    values.update({name: float(values[name]) for name in ("speed_limit", "reference_progress")})
    return Scene(road=road, **values)


def read_split(folder: Path, split: str) -> SceneSet:
    """The scenes of a split. Raises UserError where there are none."""
    parts = [read_log(path) for path in log_paths(folder, split)]
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(SceneSet)}
    scenes, tokens = (sum(columns.pop(name), []) for name in ("scenes", "tokens"))
    if not scenes:
        raise UserError(f"{folder}: no log of the {split} split has a scene: collect more logs (--logs)")
    return SceneSet(scenes, tokens, *map(np.concatenate, columns.values()))


# ---- Roads ----


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


# ---- Arrays ----


def write_arrays(path: Path, arrays: dict) -> None:
    """Replaces `path` by a compressed npz of `arrays`; equal arrays give equal bytes."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_arrays(path: Path) -> dict:
    """All arrays of an npz. Raises UserError where it is damaged."""
    try:
        with np.load(path) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path}: cannot be read ({error}): delete it and give the command again that made the set"
        ) from error
