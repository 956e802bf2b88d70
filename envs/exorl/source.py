"""ExORL's episode files, a folder or the released zip: which ones there are, in order, and their arrays."""

import contextlib
import hashlib
import io
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np

from common.errors import UserError, one_line
from common.untrusted import check_npz
from envs.exorl.collect import read_sidecar
from envs.exorl.domains import DOMAINS, LOCAL_PREFIX
from envs.transitions import refuse_non_finite

EPISODE_NAME = re.compile(r"episode_(\d{1,9})_(\d{1,9})\.npz")
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

    def fingerprint(self) -> str:
        """sha256 of the episodes' file names and sizes: tells whether the files changed, without reading them."""
        lines = "".join(f"{PurePosixPath(episode.name).name} {episode.size}\n" for episode in self.episodes)
        return hashlib.sha256(lines.encode()).hexdigest()

    def state(self, count: int) -> str:
        """sha256 of all episodes' file names, and of the sizes and versions of the first `count`.

        Tells whether what was written from those still holds, though others were mended since.
        """
        names = [PurePosixPath(episode.name).name for episode in self.episodes]
        read = [f"{episode.size} {episode.version}" for episode in self.episodes[:count]]
        return hashlib.sha256("\n".join(names + read).encode()).hexdigest()


@contextlib.contextmanager
def open_source(folder: Path) -> Iterator[Optional[Source]]:
    """The episodes of `<root>/<domain>/<collector>`: its `buffer/`, else `<collector>.zip` beside it, else None.

    Raises UserError that names the file for a file that is wrongly named, of another length than the domain's episodes,
    duplicated or missing in the numbering, for a set without files, and where the folder's name and the record of a
    local generation disagree.
    """
    archive_path, domain = folder.with_name(folder.name + ".zip"), folder.parent.name
    if (folder / "buffer").is_dir():
        generation = read_sidecar(folder)
        episodes = _order_episodes(folder / "buffer", domain, _folder_episodes(folder / "buffer"))
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
            if not entry.name.startswith("."):  # temporary files of a running collection, file managers' notes
                found, opener = entry.stat(), Path(entry.path).open
                size, version = found.st_size, found.st_mtime_ns
                episodes.append(_name_episode(entry.path, size, version, lambda opener=opener: opener("rb")))
    return episodes


def _open_archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises many types for a damaged file
        raise UserError(f"{path}: truncated or not a zip file ({one_line(error)}): fetch it again") from error


def _archive_episodes(path: Path, archive: zipfile.ZipFile) -> List[Episode]:
    episodes = []
    for member in archive.infolist():
        inside = PurePosixPath(member.filename.replace("\\", "/"))
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(f"{path}: member {member.filename} lies outside the archive's folder: not ExORL's archive")
        if not member.is_dir() and inside.parent.name == "buffer" and not inside.name.startswith("."):
            name = f"{path}/{member.filename}"
            size, version = member.file_size, member.CRC
            episodes.append(_name_episode(name, size, version, lambda member=member: io.BytesIO(archive.read(member))))
    return episodes


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
    for expected, episode in enumerate(ordered):
        if episode.index < expected:
            before = ordered[expected - 1]
            raise UserError(f"{episode.name}: duplicates episode {episode.index} of {before.name}: remove one")
        if episode.index > expected:
            raise UserError(
                f"{path}: episode_{expected:06d}_<length>.npz is missing, the next there is "
                f"{PurePosixPath(episode.name).name}: fetch it again"
            )
        steps = DOMAINS[domain].episode_steps
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
            check_npz(file, shapes)
            content = np.load(file, allow_pickle=False)
            arrays = {key: content[key] for key in shapes if key in content}
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
