"""ExORL's episode files, a folder or the released zip: which ones there are, in order, and their arrays."""

import contextlib
import hashlib
import io
import itertools
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np

from common.errors import UserError, one_line
from common.untrusted import load_npz
from envs.exorl.collect import read_sidecar
from envs.exorl.domains import DOMAINS, LOCAL_PREFIX
from envs.transitions import refuse_non_finite

EPISODE_NAME = re.compile(r"episode_(\d{1,9})_(\d{1,9})\.npz")
RELEASED_TRANSITIONS, SIZE_TOLERANCE = 10_000_000, 100_000  # of each of ExORL's sets; its page says 10M
LARGEST_STATE = 1e10  # of a coordinate: MuJoCo's mjMAXVAL, beyond which it refuses a state
LARGEST_EPISODE = 64 << 20  # bytes; quadruped's, the largest of ExORL's, have 1 MB


@dataclass(frozen=True)
class Episode:
    """One episode file: its name for messages, what its name says, size in bytes, version and how to open it."""

    name: str
    index: int
    length: int  # transitions; the arrays have one row more
    size: int
    version: int  # changes when the content does: time of a file's last change, checksum of a zip's member
    open: Callable[[], BinaryIO]


@dataclass(frozen=True)
class Source:
    """The episodes of one set, in order, and the record of their generation (None: downloaded)."""

    path: Path
    episodes: Tuple[Episode, ...]
    generation: Optional[dict]

    def describe(self) -> str:
        """How many episodes there are, and which of the numbering."""
        first, last = self.episodes[0].index, self.episodes[-1].index
        gaps = last - first + 1 - len(self.episodes)
        return f"{self.path}: {len(self.episodes)} episodes, number {first} to {last}" + (
            f" without {gaps} between them" if gaps else ""
        )

    def fingerprint(self) -> str:
        """sha256 of the episodes' file names and sizes: tells whether the files changed, without reading them."""
        lines = "".join(f"{PurePosixPath(episode.name).name} {episode.size}\n" for episode in self.episodes)
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def kind(self) -> str:
        """What an identity calls the set: made here, as large as the released ones, or neither."""
        if self.generation is not None:
            return "locally generated"
        transitions = sum(episode.length for episode in self.episodes)
        return "official" if abs(transitions - RELEASED_TRANSITIONS) <= SIZE_TOLERANCE else "unknown"

    def state(self, count: int) -> str:
        """sha256 of all episodes' file names, and of the sizes and versions of the first `count`.

        Tells whether what was written from those still holds, though others were mended since.
        """
        names = [PurePosixPath(episode.name).name for episode in self.episodes]
        read = [f"{episode.size} {episode.version}" for episode in self.episodes[:count]]
        return hashlib.sha256("\n".join(names + read).encode()).hexdigest()


@contextlib.contextmanager
def open_source(folder: Path) -> Iterator[Optional[Source]]:
    """The episodes of `<root>/<domain>/<collector>`: its `buffer/` or itself, else `<collector>.zip`, else None.

    Other files than episode_<index>_<length>.npz are left alone, and any part of a released set is read.
    Raises UserError that names the file for an npz of another name, an episode of another length than the domain's or
    twice the same number, for a set without episodes, and where the folder's name and the record of a local generation
    disagree.
    """
    archive_path, domain = folder.with_name(folder.name + ".zip"), folder.parent.name
    buffer = folder / "buffer"
    if not buffer.is_dir() and folder.is_dir() and any(map(_is_npz, os.listdir(folder))):
        buffer = folder
    if buffer.is_dir():
        generation = read_sidecar(folder)
        episodes = _order_episodes(buffer, domain, _folder_episodes(buffer))
        if generation is not None and len(episodes) < generation["episodes"]:
            raise UserError(
                f"{folder}: the collection stopped at {len(episodes)} of {generation['episodes']} episodes: "
                f"finish it with `{collect_command(folder, generation)}`"
            )
        yield Source(buffer, episodes, generation)
    elif archive_path.is_file():
        if folder.name.startswith(LOCAL_PREFIX):
            raise UserError(f"{archive_path}: only downloaded sets are read from a zip: unpack it to {folder}/")
        with _open_archive(archive_path) as archive:
            members = _archive_episodes(archive_path, archive)
            yield Source(archive_path, _order_episodes(archive_path, domain, members), None)
    else:
        yield None


def collect_command(folder: Path, generation: dict) -> str:
    """The command that makes, or finishes, the local set in `folder`."""
    return (
        f"python -m envs.exorl.tasks collect {folder.parent.name} --collector {generation['policy']} "
        f"--episodes {generation['episodes']} --seed {generation['seed']} --data_dir {folder.parent.parent}"
    )


def _folder_episodes(buffer: Path) -> List[Episode]:
    episodes = []
    with os.scandir(buffer) as entries:
        for entry in entries:
            if _is_npz(entry.name) and entry.is_file():
                found, opener = entry.stat(), Path(entry.path).open
                size, version = found.st_size, found.st_mtime_ns
                episodes.append(_name_episode(entry.path, size, version, lambda opener=opener: opener("rb")))
    return episodes


def _open_archive(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises many types for a damaged file
        raise UserError(f"{path}: truncated or not a zip file ({one_line(error)}): fetch it again") from error
    with open(path, "rb") as file:
        file.seek(min((member.header_offset for member in archive.infolist()), default=0))
        if archive.infolist() and file.read(4) != zipfile.stringFileHeader:
            raise UserError(
                f"{path}: its directory does not tell where its files lie, as in a zip over 4 GB that a Mac's Finder "
                f"made: unpack it there and put the folder here, or make it again with `zip -r`"
            )
    return archive


def _archive_episodes(path: Path, archive: zipfile.ZipFile) -> List[Episode]:
    episodes = []
    for member in archive.infolist():
        inside = PurePosixPath(member.filename.replace("\\", "/"))
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(f"{path}: member {member.filename} lies outside the archive's folder: not ExORL's archive")
        if not member.is_dir() and _is_npz(inside.name):
            name = f"{path}/{member.filename}"
            size, version = member.file_size, member.CRC
            episodes.append(_name_episode(name, size, version, lambda member=member: io.BytesIO(archive.read(member))))
    return episodes


def _is_npz(name: str) -> bool:
    """Whether a file may be an episode; hidden ones are a running collection's, and a Mac's notes on each file."""
    return name.endswith(".npz") and not name.startswith(".")


def _name_episode(name: str, size: int, version: int, opener: Callable[[], BinaryIO]) -> Episode:
    match = EPISODE_NAME.fullmatch(PurePosixPath(name).name)
    if match is None or int(match[2]) == 0:
        raise UserError(f"{name}: not an episode, expected the name episode_<index>_<length>.npz: rename or remove it")
    if size > LARGEST_EPISODE:  # read whole into memory, from a zip on the word of its directory
        raise UserError(f"{name}: {size} bytes are more than any episode of ExORL has: remove it")
    return Episode(name, int(match[1]), int(match[2]), size, version, opener)


def _order_episodes(path: Path, domain: str, episodes: List[Episode]) -> Tuple[Episode, ...]:
    if not episodes:
        # A zip that lost its end can open as the last complete npz inside it.
        raise UserError(
            f"{path}: holds no episodes (buffer/episode_<index>_<length>.npz), it is empty, truncated or another "
            "archive: fetch it again"
        )
    ordered = sorted(episodes, key=lambda episode: (episode.index, episode.name))
    steps = DOMAINS[domain].episode_steps
    for before, episode in itertools.pairwise([None, *ordered]):
        if before is not None and episode.index == before.index:
            raise UserError(f"{episode.name}: duplicates episode {episode.index} of {before.name}: remove one")
        if episode.length != steps:  # nothing terminates in these domains, so every episode has its full length
            raise UserError(
                f"{episode.name}: an episode of {episode.length} transitions by its name, {domain}'s have {steps}: "
                "cut short or of another domain, fetch or make it again"
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
            arrays = load_npz(file, shapes)
    except Exception as error:  # zipfile and numpy raise many types for a damaged file
        raise UserError(
            f"{episode.name}: truncated or not an npz of plain arrays ({one_line(error)}): fetch it again"
        ) from error
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
    if (np.abs(arrays["physics"]) > LARGEST_STATE).any():
        raise UserError(f"{episode.name}: physics holds a value beyond {LARGEST_STATE:g}: damaged, fetch it again")
    return arrays
