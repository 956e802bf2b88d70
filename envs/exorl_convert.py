"""Converts ExORL's episode files, a folder or the released zip, into one HDF5 file with a reward column per task."""

import contextlib
import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Callable, Dict, Iterator, List, Optional, Tuple

import h5py
import numpy as np
from tqdm import tqdm

from envs.dataset import refuse_non_finite
from envs.errors import UserError
from envs.exorl_collect import read_sidecar
from envs.exorl_domains import DOMAINS, LOCAL_PREFIX, check_collector, check_domain
from envs.exorl_relabel import relabel
from envs.files import remove_abandoned, replacing

FORMAT = "exorl"
FORMAT_VERSION = 1  # raise it when a file of the old version can no longer be read as it is
EPISODE_NAME = re.compile(r"episode_(\d+)_(\d+)\.npz")
COMPRESSIONS = ("lzf", "gzip")


@dataclass(frozen=True)
class Episode:
    """One episode file: its name for messages, what its name says, its size in bytes and how to open it."""

    name: str
    index: int
    length: int  # transitions; the arrays have one row more
    size: int
    open: Callable[[], BinaryIO]


@dataclass(frozen=True)
class Source:
    """The episodes of one set, in order, and the record of their generation (None: downloaded)."""

    path: Path
    episodes: Tuple[Episode, ...]
    generation: Optional[dict]

    def fingerprint(self) -> str:
        """sha256 of the episodes' file names and sizes: tells whether the files changed, without reading them."""
        lines = "".join(f"{PurePosixPath(episode.name).name} {episode.size}\n" for episode in self.episodes)
        return hashlib.sha256(lines.encode()).hexdigest()


@contextlib.contextmanager
def open_source(folder: Path) -> Iterator[Optional[Source]]:
    """The episodes of `<root>/<domain>/<collector>`: its `buffer/`, else `<collector>.zip` beside it, else None.

    Raises UserError that names the file for a file that is wrongly named, duplicated or missing in the numbering, for
    a set without files, and where the folder's name and the record of a local generation disagree.
    """
    archive_path = folder.with_name(folder.name + ".zip")
    if (folder / "buffer").is_dir():
        generation = read_sidecar(folder)
        episodes = _order_episodes(folder / "buffer", _folder_episodes(folder / "buffer"))
        if generation is not None and len(episodes) < generation["episodes"]:
            raise UserError(
                f"{folder}: the collection stopped at {len(episodes)} of {generation['episodes']} episodes: "
                f"finish it with `{collect_command(folder, generation)}`"
            )
        yield Source(folder / "buffer", episodes, generation)
    elif archive_path.is_file():
        if folder.name.startswith(LOCAL_PREFIX):
            raise UserError(f"{archive_path}: only downloaded sets are read from a zip: unpack it to {folder}/")
        with _open_archive(archive_path) as archive:
            yield Source(archive_path, _order_episodes(archive_path, _archive_episodes(archive_path, archive)), None)
    else:
        yield None


def collect_command(folder: Path, generation: dict) -> str:
    """The command that makes, or finishes, the local set in `folder`."""
    return (
        f"python -m envs.exorl_tasks collect {folder.parent.name} --collector {generation['policy']} "
        f"--episodes {generation['episodes']} --seed {generation['seed']} --data_dir {folder.parent.parent}"
    )


def convert_command(path: Path) -> str:
    """The command that makes the HDF5 file `path` again."""
    return (
        f"python -m envs.exorl_tasks convert {path.parent.name} --collector {path.stem} --data_dir {path.parent.parent}"
    )


def _folder_episodes(buffer: Path) -> List[Episode]:
    episodes = []
    with os.scandir(buffer) as entries:
        for entry in entries:
            if not entry.name.startswith("."):  # temporary files of a running collection, file managers' notes
                opener = Path(entry.path).open
                episodes.append(_name_episode(entry.path, entry.stat().st_size, lambda opener=opener: opener("rb")))
    return episodes


def _open_archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: truncated or not a zip file ({error}): fetch it again") from error


def _archive_episodes(path: Path, archive: zipfile.ZipFile) -> List[Episode]:
    episodes = []
    for member in archive.infolist():
        inside = PurePosixPath(member.filename.replace("\\", "/"))
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(f"{path}: member {member.filename} lies outside the archive's folder: not ExORL's archive")
        if not member.is_dir() and inside.parent.name == "buffer" and not inside.name.startswith("."):
            name = f"{path}/{member.filename}"
            episodes.append(
                _name_episode(name, member.file_size, lambda member=member: io.BytesIO(archive.read(member)))
            )
    return episodes


def _name_episode(name: str, size: int, opener: Callable[[], BinaryIO]) -> Episode:
    match = EPISODE_NAME.fullmatch(PurePosixPath(name).name)
    if match is None or int(match[2]) == 0:
        raise UserError(f"{name}: not an episode, expected the name episode_<index>_<length>.npz: rename or remove it")
    return Episode(name, int(match[1]), int(match[2]), size, opener)


def _order_episodes(path: Path, episodes: List[Episode]) -> Tuple[Episode, ...]:
    if not episodes:
        # A zip that lost its end can open as the last complete npz inside it.
        raise UserError(
            f"{path}: holds no episodes (buffer/episode_<index>_<length>.npz), it is empty, truncated or another "
            "archive: fetch it again"
        )
    ordered = sorted(episodes, key=lambda episode: (episode.index, episode.name))
    for expected, episode in enumerate(ordered):
        if episode.index < expected:
            before = ordered[expected - 1]
            raise UserError(f"{episode.name}: duplicates episode {episode.index} of {before.name}: remove one")
        if episode.index > expected:
            raise UserError(
                f"{path}: episode_{expected:06d}_<length>.npz is missing, the next there is "
                f"{PurePosixPath(episode.name).name}: fetch it again"
            )
    return tuple(ordered)


def read_episode(domain: str, episode: Episode, reward_dim: int = 1) -> Dict[str, np.ndarray]:
    """The episode's arrays, length + 1 rows each: observation, action, reward, discount, physics; other keys are left.

    The reward has `reward_dim` columns: the domain's in released files, 1 in those collected here.
    Raises UserError that names the file when it is damaged, and the array when its shape is not the domain's.
    """
    widths = DOMAINS[domain]
    shapes = {
        "observation": (widths.observation_dim,),
        "action": (widths.action_dim,),
        "reward": (reward_dim,),
        "discount": (1,),
        "physics": (widths.physics_dim,),
    }
    try:
        with episode.open() as file:
            content = np.load(file, allow_pickle=False)
            if not isinstance(content, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            arrays = {key: content[key] for key in shapes if key in content}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise UserError(f"{episode.name}: truncated or not an npz of plain arrays ({error}): fetch it again") from error
    for key, shape in shapes.items():
        if key not in arrays:
            raise UserError(f"{episode.name}: array {key} is missing: not a file of ExORL's {domain}")
        expected = (episode.length + 1, *shape)
        if arrays[key].shape != expected:
            raise UserError(
                f"{episode.name}: {key} has shape {arrays[key].shape}, expected {expected} from the file's name "
                f"and the domain {domain}"
            )
        if arrays[key].dtype.kind != "f":
            raise UserError(f"{episode.name}: {key} has dtype {arrays[key].dtype}, expected floating point")
        refuse_non_finite(episode.name, key, arrays[key])
    return arrays


def convert(root: Path, domain: str, collector: str, compression: Optional[str] = None) -> Path:
    """Writes `<root>/<domain>/<collector>.h5` from the set's episode files and returns its path.

    Rows of all episodes follow one another, an episode of length T has T + 1: observation [R, O], action [R, A],
    reward [R] (point_mass_maze's as released: [R, 4]), discount [R] float32 and physics [R, P] float64 as ExORL stores
    them (row 0 of an episode is a dummy, row i's action led to state i), reward_<task> [R] float32 for every task of
    the domain (see exorl_relabel), episode_start [E] and episode_length [E] int64 (first row; transitions). Data sets
    are contiguous and uncompressed unless `compression` ("lzf" | "gzip") is given. The file appears when it is
    complete or not at all.
    Raises UserError that names the file for absent, damaged or inconsistent episodes.
    """
    check_domain(domain)
    check_collector(collector)
    folder = root / domain / collector
    path = folder.with_name(collector + ".h5")
    with open_source(folder) as source:
        if source is None:
            raise UserError(f"no episodes to convert: neither {folder / 'buffer'} nor {folder}.zip exists")
        remove_abandoned(path.parent)
        with replacing(path) as temporary, h5py.File(temporary, "w") as file:
            _write_file(file, domain, collector, source, compression)
    return path


def _write_file(file: h5py.File, domain: str, collector: str, source: Source, compression: Optional[str]) -> None:
    lengths = np.array([episode.length for episode in source.episodes], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
    rows, widths = int((lengths + 1).sum()), DOMAINS[domain]
    reward_dim = widths.reward_dim if source.generation is None else 1

    def create(name: str, shape: Tuple[int, ...], dtype: type) -> h5py.Dataset:
        if compression is None:
            return file.create_dataset(name, shape, dtype)
        # One episode a chunk; only an uncompressed file is contiguous, to be memory-mapped.
        chunks = (min(widths.episode_steps + 1, rows), *shape[1:])
        return file.create_dataset(name, shape, dtype, chunks=chunks, compression=compression, shuffle=True)

    columns = {
        "observation": create("observation", (rows, widths.observation_dim), np.float32),
        "action": create("action", (rows, widths.action_dim), np.float32),
        "reward": create("reward", (rows,) if reward_dim == 1 else (rows, reward_dim), np.float32),
        "discount": create("discount", (rows,), np.float32),
        "physics": create("physics", (rows, widths.physics_dim), np.float64),
    }
    bar = tqdm(source.episodes, desc=f"convert {domain}/{collector}", unit="episode", disable=None)
    for start, episode in zip(starts, bar, strict=True):
        for name, array in read_episode(domain, episode, reward_dim).items():
            columns[name][start : start + episode.length + 1] = array.reshape(-1, *columns[name].shape[1:])
    for task, rewards in relabel(domain, widths.tasks, columns["physics"], columns["action"]).items():
        create(f"reward_{task}", (rows,), np.float32)[:] = rewards
    file.create_dataset("episode_start", data=starts)
    file.create_dataset("episode_length", data=lengths)
    file.attrs.update(
        format=FORMAT,
        version=FORMAT_VERSION,
        domain=domain,
        collector=collector,
        episodes=len(lengths),
        transitions=int(lengths.sum()),
        source="official" if source.generation is None else "locally generated",
        source_fingerprint=source.fingerprint(),
        generation=json.dumps(source.generation),
    )
