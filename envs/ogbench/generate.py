"""Makes OGBench data sets locally, in the official format and by the official procedure, marked as locally generated.

python -m envs.ogbench.generate cube-single-play --transitions 100000 --workers 2 --seed 0 --out ~/.ogbench/data
"""

import functools
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import make_folder, remove_abandoned, replacing
from envs.generation_record import RECORD, check_counts, refuse_other_making, write_record
from envs.ogbench.collect import GENERATOR_VERSION, Episode, make_collector, parameters
from envs.ogbench.names import (
    DEFAULT_DATA_DIR,
    GENERATED_FAMILIES,
    VALIDATION_SHARE,
    VERSION,
    check_can_be_generated,
    data_root,
    official_episodes,
    read_sidecar,
    sidecar_file,
    train_file,
    validation_file,
)
from envs.pool import run_jobs
from envs.task import file_sha256

SPLITS = ("train", "validation")  # in this order they are part of an episode's seed
EPISODES_PER_WORKER = 2  # starting a process takes as long as collecting about this many


@dataclass(frozen=True)
class Generation:
    """What is asked for; `record` is what the episodes depend on, with their numbers."""

    dataset: str
    episodes: Dict[str, int]  # by split
    seed: int
    root: Path

    @property
    def folder(self) -> Path:
        """Finished episodes, until the two files are written."""
        return self.root / f"{self.dataset}-{VERSION}.episodes"

    @property
    def jobs(self) -> List[Tuple[str, int]]:
        return [(split, index) for split in SPLITS for index in range(self.episodes[split])]

    def shard(self, split: str, index: int) -> Path:
        return self.folder / f"{split}_{index:06d}.npz"

    @property
    def record(self) -> dict:
        _, steps = official_episodes(self.dataset)
        return {
            "source": "locally generated",
            "generator_version": GENERATOR_VERSION,
            "dataset": self.dataset,
            "seed": self.seed,
            "episode_steps": steps,
            "parameters": parameters(self.dataset),
            "libraries": {name: version(name) for name in ("ogbench", "mujoco", "gymnasium", "numpy", "scipy")},
            "episodes": self.episodes,
            "transitions": {split: count * steps for split, count in self.episodes.items()},
        }


def _write_npz(path: Path, arrays: Episode) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _make_worker(generation: Generation) -> Callable[[Tuple[str, int]], None]:
    """What collects and writes the episode of a job: the work of one process."""
    collector = make_collector(generation.dataset)

    def work(job: Tuple[str, int]) -> None:
        split, index = job
        _write_npz(generation.shard(split, index), collector(generation.seed, SPLITS.index(split), index))

    return work


def generate(dataset: str, transitions: int, seed: int = 0, workers: int = 1, out: Optional[str] = None) -> Path:
    """Makes `<dataset>-v0.npz`, `-val.npz` and the record of their making in folder `out`; returns the first.

    The files hold as many whole episodes as `transitions` says and a tenth of that, at least one, beyond them for
    validation. They are bit-identical for any number of workers and however often the generation was interrupted.
    Raises UserError for a data set that cannot be made, and where `out` holds files of another making.
    """
    check_can_be_generated(dataset)
    _, steps = official_episodes(dataset)
    if transitions < steps or transitions % steps:
        raise UserError(f"transitions: expected a multiple of {steps}, an episode of {dataset}, got {transitions}")
    check_counts(seed=seed, workers=workers)
    train = transitions // steps
    episodes = {"train": train, "validation": max(1, train // VALIDATION_SHARE)}
    generation = Generation(dataset, episodes, seed, data_root(out).absolute())
    path = train_file(generation.root, dataset)
    if not _is_finished(generation):
        _open_folder(generation)
        missing = [job for job in generation.jobs if not generation.shard(*job).exists()]
        done = len(generation.jobs) - len(missing)
        run_jobs(functools.partial(_make_worker, generation), missing, workers, EPISODES_PER_WORKER, done, dataset)
        _write_files(generation)
    shutil.rmtree(generation.folder, ignore_errors=True)
    return path


def _is_finished(generation: Generation) -> bool:
    """Whether both files are there, of this making. Files of any other making are refused."""
    paths = [place(generation.root, generation.dataset) for place in (train_file, validation_file)]
    existing = [path for path in paths if path.exists()]
    if not existing:
        return False
    sidecar = sidecar_file(generation.root, generation.dataset)
    if not sidecar.is_file():
        raise UserError(f"{existing[0]}: exists and was not generated here: choose another --out")
    fix = f"choose another --out or delete {existing[0]}"
    refuse_other_making(sidecar, read_sidecar(sidecar), generation.record, fix)
    return len(existing) == len(paths)


def _open_folder(generation: Generation) -> None:
    """Creates the folder of finished episodes, or checks that those in it are of the same making."""
    path = generation.folder / RECORD
    if path.exists():
        fix = f"finish that generation first, choose another --out or delete {generation.folder}"
        counts = ("episodes", "transitions")  # an episode does not depend on how many there are
        refuse_other_making(path, read_sidecar(path), generation.record, fix, counts)
    make_folder(generation.folder, "--out")
    write_record(path, generation.record)
    for folder in (generation.root, generation.folder):
        remove_abandoned(folder)


def _concatenated(generation: Generation, split: str) -> Episode:
    """All episodes of a split, in order, as one set of arrays."""
    parts = []
    for index in range(generation.episodes[split]):
        with np.load(generation.shard(split, index), allow_pickle=False) as episode:
            parts.append(dict(episode))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _write_files(generation: Generation) -> None:
    """Writes the two files and their record; they take their places together, the record first, at the end."""
    root, dataset = generation.root, generation.dataset
    with (
        replacing(train_file(root, dataset)) as train,
        replacing(validation_file(root, dataset)) as validation,
        replacing(sidecar_file(root, dataset)) as sidecar,
    ):
        for split, path in zip(SPLITS, (train, validation), strict=True):
            with open(path, "wb") as file:
                np.savez_compressed(file, **_concatenated(generation, split))
        hashes = {"train": file_sha256(train)[0], "validation": file_sha256(validation)[0]}
        write_record(sidecar, {**generation.record, "sha256": hashes})


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """The command."""
    parser = CommandParser("python -m envs.ogbench.generate", __doc__)
    parser.add_argument("dataset", help=f"e.g. cube-single-play; {GENERATED_FAMILIES}")
    parser.add_argument(
        "--transitions", type=int, required=True, help="of the training file; official: 1000000 or more"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes; the files do not depend on it")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    parser.add_argument("--out", help=f"folder of the files, default {DEFAULT_DATA_DIR}, where training looks for them")
    with exit_on_user_error():
        options = parser.parse_args(arguments)
        print(generate(options.dataset, options.transitions, options.seed, options.workers, options.out))


if __name__ == "__main__":
    main()
