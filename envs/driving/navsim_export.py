"""Exports NAVSIM's scenes, with scored plans, as a set that the task driving/navsim loads.

python -m envs.driving.navsim_export --metric_cache DIR --logs_path DIR --out DIR

Runs from this repository's folder with the Python of NAVSIM's own environment, version 1.1, and needs its metric cache
(run_metric_caching.py), its logs and its maps, but no sensor data. Of each log that is cached it writes the scenes to
one file; a log whose file is there is kept, so that the same command continues an interrupted export.
"""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from common.errors import CommandParser, UserError, exit_on_user_error
from envs.driving.collect import open_set
from envs.driving.curate import (
    CHOSEN_SHARE,
    CONSTANT_SHARE,
    LOGGED_SHARE,
    PROPOSAL_SHARE,
    draw_plans,
    score_matrix,
)
from envs.driving.navsim_interface import (
    HISTORY_FRAMES,
    METRICS,
    check_maps,
    metric,
    navsim_module,
    open_caches,
    read_cache,
    scene_of,
    trajectory_of,
)
from envs.driving.planner import constant_velocity, proposals
from envs.driving.scene import Scene
from envs.driving.scene_files import (
    CYCLE,
    PLANS,
    SPLITS,
    Entry,
    log_path,
    road_path,
    split_of,
    stack,
    write_log,
    write_road,
)
from envs.driving.score import Motion, progress_of, score, start_of
from envs.driving.vehicle import KNOTS, track
from envs.generation_record import RECORD, write_record

EXPORTER_VERSION = 2  # raise it when the same cache no longer gives the same files
FUTURE_FRAMES = 10  # of a scene, every half second; 5 s, as the metric cache interpolates
LIBRARIES = ("navsim", "nuplan-devkit", "numpy", "scipy", "shapely")


class Source:
    """NAVSIM's caches and logs, which are read one scene at a time.

    tokens: those of each log that has a cached scene; without_log: how many cached scenes no log holds. Raises
    UserError for a cache of another version.
    """

    def __init__(self, metric_cache: Path, logs_path: Path, limit: Optional[int] = None):
        loaders = navsim_module("navsim.common.dataloader")
        types = navsim_module("navsim.common.dataclasses")
        check_maps()
        self.caches = open_caches(metric_cache)
        tokens = sorted(self.caches.tokens)[:limit]
        if hasattr(read_cache(self.caches, tokens[0]), "map_parameters"):
            raise UserError(f"{metric_cache}: was made by version 2 of NAVSIM; make it with branch v1.1")
        scene_filter = types.SceneFilter(
            num_history_frames=HISTORY_FRAMES, num_future_frames=FUTURE_FRAMES, frame_interval=1, tokens=tokens
        )
        no_sensors = types.SensorConfig.build_no_sensors()
        self.scenes = loaders.SceneLoader(
            data_path=logs_path, sensor_blobs_path=None, scene_filter=scene_filter, sensor_config=no_sensors
        )
        by_log = self.scenes.get_tokens_list_per_log()
        self.tokens = {name: sorted(by_log[name]) for name in sorted(by_log)}
        self.without_log = len(tokens) - sum(map(len, self.tokens.values()))

    def scene(self, token: str) -> Tuple[Scene, np.ndarray, np.ndarray]:
        """(scene, plan [8, 3] of the cached PDM-Closed trajectory, plan [8, 3] of the human driver)."""
        cache, recorded = read_cache(self.caches, token), self.scenes.get_scene_from_token(token)
        scene = scene_of(cache, self.scenes.get_agent_input_from_token(token), recorded)
        poses, reference = trajectory_of(cache.trajectory, cache.ego_state.time_point, scene.pose)
        motion = Motion(scene, track(poses[None], start_of(scene)))
        scene = replace(scene, reference_progress=float(progress_of(motion)[0]))
        return scene, reference, np.asarray(recorded.get_future_trajectory(KNOTS).poses, np.float64)


def export_log(source: Source, name: str, index: int, folder: Path, seed: int) -> None:
    """Writes the roads and the file of one log, with plans drawn as for the embedded scenes from its candidates."""
    generator, tokens = np.random.default_rng(np.random.SeedSequence([seed, index])), source.tokens[name]
    entries = []
    for token in tokens:
        scene, reference, logged = source.scene(token)
        candidates = np.concatenate([proposals(scene), reference[None], logged[None], constant_velocity(scene)[None]])
        shares = np.full(len(candidates), PROPOSAL_SHARE)
        shares[-3:] = CHOSEN_SHARE, LOGGED_SHARE, CONSTANT_SHARE
        plans = draw_plans(candidates, shares, generator)
        write_road(road_path(folder, token), scene.road)
        entries.append(Entry(scene, plans, score_matrix(score(scene, plans)), logged, reference))
    scenes = [entry.scene for entry in entries]
    write_log(
        log_path(folder, index),
        entries,
        family=tokens,
        step=np.arange(len(tokens)),
        centreline=stack([scene.centreline for scene in scenes], (None, 2)),
        speed_limit=[scene.speed_limit for scene in scenes],
        collided=stack([scene.collided for scene in scenes], (None,), False),
        lateral=np.stack([scene.lateral for scene in scenes]),
        annotated=stack([scene.annotated for scene in scenes], (None,), False),
    )


def _version(package: str) -> Optional[str]:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe(source: Source, seed: int) -> Dict[str, Any]:
    """What the set depends on; its metric keeps it apart from scenes that NAVSIM's version 2 scores."""
    return {
        "source": f"NAVSIM export, version {_version('navsim') or 'unknown'}",
        "metric": metric(),
        "generator_version": EXPORTER_VERSION,
        "seed": seed,
        "plans": PLANS,
        "libraries": {name: _version(name) for name in LIBRARIES},
        "scenes": sum(map(len, source.tokens.values())),
        "scenes_without_log": source.without_log,
        "logs": len(source.tokens),
        "log_names": list(source.tokens),
    }


def export(metric_cache: Path, logs_path: Path, folder: Path, limit: Optional[int] = None, seed: int = 0) -> Path:
    """Writes the set and returns its folder. Raises UserError where NAVSIM is absent, of version 2 or lacks data."""
    if metric() != METRICS[0]:
        raise UserError(
            f"the NAVSIM installed here scores by {metric()} and caches 4 s of the others: plans are scored by "
            f"{METRICS[0]} here, which needs 5 s: export with NAVSIM's branch v1.1"
        )
    source = Source(metric_cache, logs_path, limit)
    names = list(source.tokens)
    if {split_of(index) for index in range(len(names))} != set(SPLITS):
        least = next(n for n in range(len(CYCLE) * 2) if {split_of(index) for index in range(n)} == set(SPLITS))
        raise UserError(
            f"{metric_cache}: its scenes are of {len(names)} logs in {logs_path}, a set that is split by log needs "
            f"{least}: cache more logs"
        )
    record = describe(source, seed)
    open_set(folder, record)
    write_record(folder / RECORD, record)
    for index, name in enumerate(tqdm(names, desc="export NAVSIM", unit="log", disable=None)):
        if not log_path(folder, index).exists():
            export_log(source, name, index, folder, seed)
    if source.without_log:
        print(f"{source.without_log} cached scenes are not in the logs of {logs_path} and were left out")
    return folder


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = CommandParser("python -m envs.driving.navsim_export", __doc__)
    parser.add_argument("--metric_cache", type=Path, required=True, help="folder that run_metric_caching.py wrote")
    parser.add_argument("--logs_path", type=Path, required=True, help="folder of the logs, navsim_logs/<split>")
    parser.add_argument("--out", type=Path, required=True, help="folder of the set, later the task's data_dir")
    parser.add_argument("--limit", type=int, help="scenes at most, in the order of their tokens")
    parser.add_argument("--seed", type=int, default=0, help="of the plans that are drawn")
    with exit_on_user_error():
        options = parser.parse_args(arguments)
        paths = (options.metric_cache, options.logs_path, options.out)
        print(export(*(path.expanduser() for path in paths), options.limit, options.seed))


if __name__ == "__main__":
    main()
