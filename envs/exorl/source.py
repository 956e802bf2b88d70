"""ExORL's episode files, in a folder or the released zip: which ones there are, their arrays, the making of one."""

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
from common.files import replacing
from common.untrusted import load_npz
from envs.exorl.domains import DOMAINS, LOCAL_PREFIX
from envs.exorl.environment import ExORLEnvironment
from envs.generation_record import RECORD, read_record
from envs.transitions import refuse_non_finite

EPISODE_NAME = re.compile(r"episode_(\d{1,9})_(\d{1,9})\.npz")
RELEASED_TRANSITIONS, SIZE_TOLERANCE = 10_000_000, 100_000  # of each of ExORL's sets; its page says 10M
LARGEST_STATE = 1e10  # of a coordinate: MuJoCo's mjMAXVAL, beyond which it refuses a state

# ---- The set ----


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

    @property
    def kind(self) -> str:
        """What an identity calls the set: made here, as large as the released ones, or neither."""
        if self.generation is not None:
            return "locally generated"
        transitions = sum(episode.length for episode in self.episodes)
        return "official" if abs(transitions - RELEASED_TRANSITIONS) <= SIZE_TOLERANCE else "unknown"


@contextlib.contextmanager
def open_source(folder: Path) -> Iterator[Optional[Source]]:
    """The episodes of `<root>/<domain>/<collector>`: its `buffer/` or itself, else `<collector>.zip`, else None.

    Other files than episode_<index>_<length>.npz are left alone, and any part of a released set is read.
    Raises UserError that names the file for an npz of another name, for a set without episodes, and where the folder's
    name and the record of a local generation disagree.
    """
    archive_path = folder.with_name(folder.name + ".zip")
    buffer = folder / "buffer"
    if not buffer.is_dir() and folder.is_dir() and any(map(_is_npz, os.listdir(folder))):
        buffer = folder
    if buffer.is_dir():
        generation = read_sidecar(folder)
        episodes = _order_episodes(buffer, _folder_episodes(buffer))
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
            yield Source(archive_path, _order_episodes(archive_path, _archive_episodes(archive_path, archive)), None)
    else:
        yield None


def read_sidecar(folder: Path) -> Optional[dict]:
    """The record of a set's generation, None when `folder` has none.

    Raises UserError when the folder's name and the record's presence disagree: `local_*` if and only if generated here.
    """
    path = folder / RECORD
    local = folder.name.startswith(LOCAL_PREFIX)
    if local and not path.is_file():
        raise UserError(
            f"{folder}: its name says locally generated, but {RECORD} is missing: make the set with "
            "`python -m envs.exorl.tasks collect`, or rename a folder of downloaded data to its collector's name"
        )
    if not local and path.exists():
        raise UserError(
            f"{path}: the set is locally generated, but its folder's name does not start with {LOCAL_PREFIX}: "
            f"rename the folder to {LOCAL_PREFIX}{folder.name}"
        )
    return read_record(path, ("policy", "seed", "episodes"), "collect the set again") if local else None


def collect_command(folder: Path, generation: dict) -> str:
    """The command that makes, or finishes, the local set in `folder`."""
    return (
        f"python -m envs.exorl.tasks collect {folder.parent.name} --collector {generation['policy']} "
        f"--episodes {generation['episodes']} --seed {generation['seed']} --data_dir {folder.parent.parent}"
    )


def _folder_episodes(buffer: Path) -> List[Episode]:
    paths = [path for path in buffer.iterdir() if _is_npz(path.name) and path.is_file()]
    return [_name_episode(str(path), path.stat().st_size, lambda path=path: path.open("rb")) for path in paths]


def _open_archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises many types for a damaged file
        raise UserError(f"{path}: truncated or not a zip file ({one_line(error)}): fetch it again") from error


def _archive_episodes(path: Path, archive: zipfile.ZipFile) -> List[Episode]:
    """Members are read in memory, never unpacked, wherever their names lead."""
    members = [member for member in archive.infolist() if _is_npz(PurePosixPath(member.filename).name)]
    return [
        _name_episode(
            f"{path}/{member.filename}", member.file_size, lambda member=member: io.BytesIO(archive.read(member))
        )
        for member in members
    ]


def _is_npz(name: str) -> bool:
    """Whether a file may be an episode; hidden ones are a running collection's, and a Mac's notes on each file."""
    return name.endswith(".npz") and not name.startswith(".")


def _name_episode(name: str, size: int, opener: Callable[[], BinaryIO]) -> Episode:
    match = EPISODE_NAME.fullmatch(PurePosixPath(name).name)
    if match is None:
        raise UserError(f"{name}: not an episode, expected the name episode_<index>_<length>.npz: rename or remove it")
    return Episode(name, int(match[1]), int(match[2]), size, opener)


def _order_episodes(path: Path, episodes: List[Episode]) -> Tuple[Episode, ...]:
    if not episodes:
        # A zip that lost its end can open as the last complete npz inside it.
        raise UserError(
            f"{path}: holds no episodes (buffer/episode_<index>_<length>.npz), it is empty, truncated or another "
            "archive: fetch it again"
        )
    return tuple(sorted(episodes, key=lambda episode: (episode.index, episode.name)))


# ---- One episode ----


def read_episode(domain: str, episode: Episode, reward_dim: int = 1) -> Dict[str, np.ndarray]:
    """The episode's arrays, length + 1 rows each: observation, action, reward, discount, physics; other keys are left.

    The reward has `reward_dim` columns: the domain's in released files, 1 in those collected here.
    Raises UserError that names the file when it is damaged, and the array when its shape is not the domain's.
    """
    widths = DOMAINS[domain]
    columns = {
        "observation": widths.observation_dim,
        "action": widths.action_dim,
        "reward": reward_dim,
        "discount": 1,
        "physics": widths.physics_dim,
    }
    try:
        with episode.open() as file:
            arrays = load_npz(file, columns)
    except Exception as error:  # zipfile and numpy raise many types for a damaged file
        raise UserError(
            f"{episode.name}: truncated or not an npz of plain arrays ({one_line(error)}): fetch it again"
        ) from error
    for key, width in columns.items():
        if key not in arrays:
            raise UserError(f"{episode.name}: array {key} is missing: not a file of ExORL's {domain}")
        array, expected = arrays[key], (episode.length + 1, width)
        if array.shape != expected or array.dtype.kind != "f":
            raise UserError(
                f"{episode.name}: {key} has shape {array.shape} and type {array.dtype}, expected {expected} from the "
                f"file's name and the domain {domain}, and floating point"
            )
        refuse_non_finite(episode.name, key, array)
    if (np.abs(arrays["physics"]) > LARGEST_STATE).any():
        raise UserError(f"{episode.name}: physics holds a value beyond {LARGEST_STATE:g}: damaged, fetch it again")
    return arrays


def record_episode(
    environment: ExORLEnvironment,
    seed: int,
    steps: int,
    act: Callable[[np.ndarray], np.ndarray],
    learn: Callable[[np.ndarray, np.ndarray, np.ndarray], None] = lambda *transition: None,
) -> Dict[str, np.ndarray]:
    """An episode as ExORL stores one, of the actions [A] that `act` gives for observations [O].

    steps + 1 rows: observation [., O], action [., A], reward [., 1], discount [., 1] in float32, physics [., P] in
    float64. Row 0 is the initial state with a dummy action 0, reward 0 and discount 1; row i's action led to it.
    learn is told of each transition (observation, action, next observation).
    """
    observation, _ = environment.reset(seed=seed)
    no_action = np.zeros(environment.action_space.shape, np.float32)
    rows = [(observation, no_action, [0.0], [1.0], environment.physics_state())]
    for _ in range(steps):
        action, before = act(observation), observation
        observation, reward, _, _, _ = environment.step(action)
        learn(before, action, observation)
        rows.append((observation, action, [reward], [1.0], environment.physics_state()))
    names = ("observation", "action", "reward", "discount", "physics")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    return {name: np.array(column, np.float64 if name == "physics" else np.float32) for name, column in columns.items()}


def episode_file(domain: str, index: int) -> str:
    return f"episode_{index:06d}_{DOMAINS[domain].episode_steps}.npz"


def write_episode(buffer: Path, domain: str, index: int, episode: Dict[str, np.ndarray]) -> None:
    """Writes episode number `index` to the folder `buffer`, whole or not at all."""
    with replacing(buffer / episode_file(domain, index)) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **episode)
