"""Converts ExORL's episode files into one HDF5 file with a reward column per task."""

import json
from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple

import h5py
import numpy as np
from tqdm import tqdm

from common.errors import UserError
from common.files import locked, remove_abandoned, replacing
from envs.exorl.domains import DOMAINS, check_collector, check_domain
from envs.exorl.relabel import Relabeller
from envs.exorl.source import Episode, Source, open_source, read_episode

FORMAT = "exorl"
FORMAT_VERSION = 1  # raise it when a file of the old version can no longer be read as it is
BLOCK_EPISODES = 100  # read, relabelled and written together: bounds the memory


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
    The file appears when it is complete or not at all. A second process waits for the first and takes its file.
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
        with locked(path.parent):
            if _modified(path) == before:  # otherwise another process made it while this one waited
                remove_abandoned(path.parent)
                if source.kind == "unknown":
                    print(f"{source.path}: {len(source.episodes)} episodes, not the whole released set", flush=True)
                with replacing(path) as temporary, h5py.File(temporary, "w") as file:
                    _write(file, path, source)
    return path


def _modified(path: Path) -> Optional[int]:
    return path.stat().st_mtime_ns if path.exists() else None


def _write(file: h5py.File, path: Path, source: Source) -> None:
    """Reads, relabels and writes the episodes, a block at a time."""
    domain, episodes = path.parent.name, source.episodes
    lengths = np.array([episode.length for episode in episodes], np.int64)
    starts = np.cumsum(lengths + 1) - (lengths + 1)
    reward_dim = DOMAINS[domain].reward_dim if source.generation is None else 1
    columns = _columns(domain, reward_dim)
    for name, (shape, dtype) in columns.items():
        file.create_dataset(name, (int((lengths + 1).sum()), *shape), dtype)
    file["episode_start"], file["episode_length"] = starts, lengths
    relabeller = Relabeller(domain, DOMAINS[domain].tasks)
    blocks = [episodes[first : first + BLOCK_EPISODES] for first in range(0, len(episodes), BLOCK_EPISODES)]
    row = 0
    for block in tqdm(blocks, desc=f"convert {domain}/{path.stem}", unit="block", disable=None):
        arrays = _read(domain, block, reward_dim)
        for task, rewards in relabeller(arrays["physics"], arrays["action"]).items():
            arrays[f"reward_{task}"] = rewards
        rows = slice(row, row + len(arrays["action"]))
        for name, array in arrays.items():
            file[name][rows] = array.reshape(-1, *columns[name][0])
        row = rows.stop
    file.attrs.update(
        format=FORMAT,
        version=FORMAT_VERSION,
        domain=domain,
        collector=path.stem,
        episodes=len(lengths),
        transitions=int(lengths.sum()),
        source=source.kind,
        source_fingerprint=source.fingerprint(),
        generation=json.dumps(source.generation),
    )


def _read(domain: str, episodes: Sequence[Episode], reward_dim: int) -> Dict[str, np.ndarray]:
    """The arrays of consecutive episodes, one after the other."""
    parts = [read_episode(domain, episode, reward_dim) for episode in episodes]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _columns(domain: str, reward_dim: int) -> Dict[str, Tuple[Tuple[int, ...], type]]:
    """Shape of a row and type by the data set's name."""
    widths = DOMAINS[domain]
    return {
        "observation": ((widths.observation_dim,), np.float32),
        "action": ((widths.action_dim,), np.float32),
        "reward": (() if reward_dim == 1 else (reward_dim,), np.float32),
        "discount": ((), np.float32),
        "physics": ((widths.physics_dim,), np.float64),
        **{f"reward_{task}": ((), np.float32) for task in widths.tasks},
    }
