"""Collects scenes with scored plans from highway-env's traffic, marked as locally generated.

python -m envs.driving.collect --logs 300 --workers 2

Every log depends on the seed and its number alone, so the files are bit-identical for any number of workers and however
often the collection was interrupted; more logs can be added later. Needs requirements-driving.txt.
"""

import functools
import importlib
import importlib.util
import os
from importlib.metadata import version
from pathlib import Path
from typing import Callable, Optional, Sequence

import numpy as np

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import make_folder, remove_abandoned
from envs.driving.curate import curate
from envs.driving.scene_files import PLANS, log_path, read_road, road_path, write_log, write_road
from envs.generation_record import RECORD, check_counts, read_record, refuse_other_making, write_record
from envs.pool import run_jobs

GENERATOR_VERSION = 1  # raise it when the same seed no longer gives the same files
LOG_STEPS = 200  # 20 s
LOGS_PER_WORKER = 4  # starting a process costs about as much as so many logs
DEFAULT_DATA_DIR = "~/.driving/embedded"
FAMILIES = ("roundabout", "intersection")  # log i is of family i mod 2


def data_folder(data_dir: Optional[str]) -> Path:
    return Path(data_dir or DEFAULT_DATA_DIR).expanduser()


def collect_command(folder: Path, logs: int) -> str:
    return f"python -m envs.driving.collect --logs {logs} --workers 2 --out {folder}"


def traffic_module() -> object:
    """`envs.driving.traffic`. Raises UserError where highway-env is absent."""
    if importlib.util.find_spec("highway_env") is None:
        raise UserError(
            "highway-env, which drives the traffic, is not installed: pip install -r requirements-driving.txt"
        )
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # pygame's greeting on stdout
    return importlib.import_module("envs.driving.traffic")


def read_sidecar(folder: Path) -> dict:
    """The record of a set's generation. Raises UserError where it is absent or damaged."""
    try:
        return read_record(folder / RECORD, ("seed", "logs", "generator_version"), "collect the set again")
    except OSError as error:
        raise UserError(f"no driving scenes in {folder}: collect them with `{collect_command(folder, 300)}`") from error


def missing_logs(folder: Path, logs: int) -> list[int]:
    """The logs of 0 to `logs` - 1 that the set in `folder` lacks; a file that is there is complete."""
    return [index for index in range(logs) if not log_path(folder, index).exists()]


def log_collector(folder: Path, seed: int) -> Callable[[int], None]:
    """What writes the log of a number, of the set with `seed` whose roads are in `folder`: the work of one process."""
    traffic = traffic_module()

    def collect_log(index: int) -> None:
        family = FAMILIES[index % len(FAMILIES)]
        traffic_seed, plan_seed = np.random.SeedSequence([seed, index]).spawn(2)
        log = traffic.simulate(family, int(traffic_seed.generate_state(1)[0]), LOG_STEPS)
        entries, steps = curate(family, log, read_road(road_path(folder, family)), np.random.default_rng(plan_seed))
        write_log(log_path(folder, index), entries, family, steps, log.centreline, log.speed_limit)

    return collect_log


def _describe(seed: int, logs: int) -> dict:
    """What the files depend on; two collections with equal records, `logs` apart, agree bit for bit."""
    return {
        "source": "locally generated",
        "generator_version": GENERATOR_VERSION,
        "families": list(FAMILIES),
        "log_steps": LOG_STEPS,
        "plans": PLANS,
        "seed": seed,
        "libraries": {name: version(name) for name in ("highway-env", "numpy", "scipy", "matplotlib")},
        "logs": logs,
    }


def open_set(folder: Path, record: dict, but: Sequence[str] = ()) -> dict:
    """Makes the set's folder; returns the record of a set that is there, else {}, for `write_record` after the roads.

    Raises UserError where the set there is of another making, in other fields than those of `but`.
    """
    existing = read_sidecar(folder) if (folder / RECORD).exists() else {}
    if existing:
        refuse_other_making(folder / RECORD, existing, record, f"choose another --out or delete {folder}", but)
    make_folder(folder, "--out")
    remove_abandoned(folder)
    return existing


def collect(folder: Path, logs: int, seed: int = 0, workers: int = 1) -> Path:
    """Makes the set of `logs` logs in `folder` and returns it; logs that are there are kept.

    Raises UserError where highway-env is absent and where the folder holds a set of another making.
    """
    check_counts(logs=logs, seed=seed, workers=workers)
    traffic_module()
    record = _describe(seed, logs)
    existing = open_set(folder, record, but=("logs",))
    for family in FAMILIES:
        if not road_path(folder, family).exists():
            write_road(road_path(folder, family), traffic_module().rasterise(family))
    write_record(folder / RECORD, {**record, "logs": max(logs, existing.get("logs", 0))})
    missing = missing_logs(folder, logs)
    collector = functools.partial(log_collector, folder, seed)
    run_jobs(collector, missing, workers, LOGS_PER_WORKER, logs - len(missing), "collect driving", unit="log")
    return folder


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = CommandParser("python -m envs.driving.collect", __doc__)
    parser.add_argument("--logs", type=int, required=True, help="logs of 20 s in the whole set")
    parser.add_argument("--out", help=f"folder of the set, default {DEFAULT_DATA_DIR}")
    parser.add_argument("--workers", type=int, default=1, help="processes; the files do not depend on it")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    with exit_on_user_error():
        options = parser.parse_args(arguments)
        print(collect(data_folder(options.out), options.logs, options.seed, options.workers))


if __name__ == "__main__":
    main()
