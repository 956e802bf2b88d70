"""Converts ExORL's episode files into one HDF5 file with a reward column per task; goes on where it was interrupted."""

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Dict, Iterator, Optional, Sequence, Tuple

import h5py
import numpy as np
from tqdm import tqdm

from common.errors import UserError
from common.files import remove_abandoned, write_text
from envs.exorl.domains import DOMAINS, check_collector, check_domain
from envs.exorl.relabel import Relabeller
from envs.exorl.source import Episode, Source, open_source, read_episode

FORMAT = "exorl"
FORMAT_VERSION = 1  # raise it when a file of the old version can no longer be read as it is
BLOCK_EPISODES = 100  # read, relabelled and written together: bounds the memory and what an interruption loses

Columns = Dict[str, Tuple[Tuple[int, ...], type]]  # shape of a row and type by the data set's name


def convert_command(path: Path) -> str:
    """The command that makes the HDF5 file `path` again."""
    return (
        f"python -m envs.exorl.tasks convert {path.parent.name} --collector {path.stem} --data_dir {path.parent.parent}"
    )


def convert(root: Path, domain: str, collector: str) -> Path:
    """Writes `<root>/<domain>/<collector>.h5` from the set's episode files and returns its path.

    Rows of all episodes follow one another, an episode of length T has T + 1: observation [R, O], action [R, A],
    reward [R] (point_mass_maze's as released: [R, 4]), discount [R] float32 and physics [R, P] float64 as ExORL stores
    them (row 0 of an episode is a dummy, row i's action led to state i), reward_<task> [R] float32 for every task of
    the domain (see relabel.py), episode_start [E] and episode_length [E] int64 (first row; transitions). Data sets
    are contiguous and uncompressed.
    The file appears when it is complete or not at all. What an interrupted conversion wrote stays in hidden files
    beside it, and the next call goes on from there as long as the episodes already read are unchanged. A second
    process waits for the first and takes its file.
    Raises UserError that names the file for absent, damaged or inconsistent episodes.
    """
    check_domain(domain)
    check_collector(collector)
    folder = root / domain / collector
    path = folder.with_name(collector + ".h5")
    with open_source(folder) as source:
        if source is None:
            raise UserError(f"no episodes to convert: neither {folder / 'buffer'} nor {folder}.zip exists")
        before = _modified(path)
        with _locked(path.parent):
            if _modified(path) == before:  # otherwise another process made it while this one waited
                remove_abandoned(path.parent)
                if source.kind == "unknown":
                    print(f"{source.describe()}: not the whole released set", flush=True)
                _Conversion(path, domain, source).run()
    return path


def _modified(path: Path) -> Optional[int]:
    return path.stat().st_mtime_ns if path.exists() else None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; the lock ends with its process, however that ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class _Conversion:
    """The making of one HDF5 file, in steps of which each may be the last before the process is killed.

    HDF5 lays the file out once, all data sets allocated, and is closed. The rows are then written at the data sets'
    places in the file, so that a kill can leave rows missing but never a damaged structure. `progress` counts the
    episodes that are safely on disk.
    """

    def __init__(self, path: Path, domain: str, source: Source):
        self.path, self.domain, self.source = path, domain, source
        self.partial = path.with_name(f".{path.name}.partial")
        self.progress = path.with_name(f".{path.name}.progress")
        self.lengths = np.array([episode.length for episode in source.episodes], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths + 1)[:-1]])
        self.reward_dim = DOMAINS[domain].reward_dim if source.generation is None else 1
        self.columns = _columns(domain, self.reward_dim)

    def run(self) -> None:
        done = self._episodes_done()
        if done == 0:
            self._lay_out()
        self._write_episodes(done)
        # HDF5 changes the file's structure here, so a kill in these milliseconds has to mean a new start.
        self.progress.unlink()
        with h5py.File(self.partial, "r+") as file:
            file.attrs.update(self._attributes())
        with open(self.partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.partial, self.path)

    def _episodes_done(self) -> int:
        """Episodes that an interrupted conversion of these same files has written; 0 = begin anew."""
        if not (self.partial.exists() and self.progress.exists()):
            return 0
        record = json.loads(self.progress.read_text())
        return record["episodes"] if record == self._record(record["episodes"]) else 0

    def _record(self, done: int) -> dict:
        return {"version": FORMAT_VERSION, "episodes": done, "source": self.source.state(done)}

    def _lay_out(self) -> None:
        self.progress.unlink(missing_ok=True)
        allocated = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        allocated.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        allocated.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        rows = int((self.lengths + 1).sum())
        with h5py.File(self.partial, "w") as file:
            for name, (shape, dtype) in self.columns.items():
                file.create_dataset(name, (rows, *shape), dtype, dcpl=allocated)
            file.create_dataset("episode_start", data=self.starts)
            file.create_dataset("episode_length", data=self.lengths)

    def _write_episodes(self, done: int) -> None:
        """Reads, relabels and writes the episodes from number `done` on, a block at a time."""
        episodes, relabeller = self.source.episodes, Relabeller(self.domain, DOMAINS[self.domain].tasks)
        with h5py.File(self.partial) as file:
            offsets = {name: file[name].id.get_offset() for name in self.columns}
        bar = tqdm(
            total=len(episodes),
            initial=done,
            desc=f"convert {self.domain}/{self.path.stem}",
            unit="episode",
            disable=None,
        )
        with bar, open(self.partial, "r+b") as out:
            for first in range(done, len(episodes), BLOCK_EPISODES):
                block = self._read(episodes[first : first + BLOCK_EPISODES])
                for task, rewards in relabeller(block["physics"], block["action"]).items():
                    block[f"reward_{task}"] = rewards
                for name, array in block.items():
                    out.seek(offsets[name] + int(self.starts[first]) * array[0].nbytes)
                    out.write(array.data)
                out.flush()
                os.fsync(out.fileno())
                end = min(first + BLOCK_EPISODES, len(episodes))
                write_text(self.progress, json.dumps(self._record(end)))
                bar.update(end - first)

    def _read(self, episodes: Sequence[Episode]) -> Dict[str, np.ndarray]:
        """The arrays of consecutive episodes, one after the other, in the file's shapes and types."""
        parts = [read_episode(self.domain, episode, self.reward_dim) for episode in episodes]
        stacked = {}
        for name in parts[0]:
            shape, dtype = self.columns[name]
            stacked[name] = np.concatenate([part[name] for part in parts], dtype=dtype, casting="same_kind")
            stacked[name] = stacked[name].reshape(-1, *shape)
        return stacked

    def _attributes(self) -> dict:
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "domain": self.domain,
            "collector": self.path.stem,
            "episodes": len(self.lengths),
            "transitions": int(self.lengths.sum()),
            "source": self.source.kind,
            "source_fingerprint": self.source.fingerprint(),
            "generation": json.dumps(self.source.generation),
        }


def _columns(domain: str, reward_dim: int) -> Columns:
    widths = DOMAINS[domain]
    return {
        "observation": ((widths.observation_dim,), np.float32),
        "action": ((widths.action_dim,), np.float32),
        "reward": (() if reward_dim == 1 else (reward_dim,), np.float32),
        "discount": ((), np.float32),
        "physics": ((widths.physics_dim,), np.float64),
        **{f"reward_{task}": ((), np.float32) for task in widths.tasks},
    }
