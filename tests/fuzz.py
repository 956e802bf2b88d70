"""What tests/test_fuzz.py needs: sound files of every reader, seeded damage to them, and a process that reads those.

What counts as silent acceptance depends on the format. Zip files (npz, checkpoints) carry a checksum of every member,
so a damaged one must be refused or read equal. HDF5 and YAML files carry none of their values: a damaged one may also
read as something else, as long as that is sound, see `is_sound`.
"""

import io
import multiprocessing
import os
import re
import resource
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Sequence, Tuple

import minari
import numpy as np
import torch
from minari.data_collector.episode_buffer import EpisodeBuffer

from algorithms.dipole import DIPOLEConfig
from common.errors import UserError
from envs import load_task
from envs.dataset import Dataset
from envs.exorl.collect import collect
from envs.exorl.convert import convert
from envs.exorl.source import Episode, read_episode
from envs.exorl.tasks import _read as read_exorl
from envs.ogbench.collect import PointMazeCollector
from envs.ogbench.environment import OGBenchEnvironment
from envs.ogbench.tasks import _read as read_ogbench
from envs.transitions import ACTION_LIMIT
from harness.config import config_to_yaml, stored_config
from harness.run_folder import read_checkpoint
from tests.test_agents import flat_state
from tests.toy_run import toy_run

MINARI = "fuzz/pendulum-v0"
EXPECTED = ("refused", "equal", "different")
MAZE = "pointmaze-medium-navigate-singletask-v0"
SECONDS_FOR_ONE = 60  # a read that takes longer hangs
MEMORY = 8 << 30  # bytes that the reading process may take beyond what it has
NUMBERS = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1, 10**12]
EDGE = 2048  # bytes at a file's ends, where the formats have their headers


@dataclass(frozen=True)
class Sample:
    """A sound file, how it is read, and whether its format has checksums of the values."""

    path: Path
    read: Callable[[Path], Any]
    has_checksums: bool


# ---- Sound files ----


def make_samples(root: Path) -> Dict[str, Sample]:
    """A sound file for every reader, below `root`."""
    run_dir = toy_run(root / "runs", offline_steps=5, eval_interval=5, eval_episodes=1)
    exorl = root / "exorl"
    collect(exorl, "cartpole", "sticky_random", episodes=1)
    episode = exorl / "cartpole" / "local_sticky_random" / "buffer" / "episode_000000_1000.npz"
    hdf5 = convert(exorl, "cartpole", "local_sticky_random")
    main_file = _minari(root)
    environment = OGBenchEnvironment(MAZE)

    def load_minari(path: Path) -> Dataset:
        return load_task(f"minari/{MINARI}", str(root)).dataset

    return {
        "ogbench npz": Sample(_maze(root), lambda path: read_ogbench(path, MAZE, environment), True),
        "exorl npz": Sample(episode, _read_episode, True),
        "exorl hdf5": Sample(hdf5, lambda path: read_exorl(path, "swingup", True)[0], False),
        "minari hdf5": Sample(main_file, load_minari, False),
        "minari json": Sample(main_file.with_name("metadata.json"), load_minari, False),
        "yaml": Sample(run_dir / "config.yaml", lambda path: stored_config(path, DIPOLEConfig), False),
        "checkpoint": Sample(run_dir / "checkpoint.pt", lambda path: read_checkpoint(path, "dipole"), True),
    }


def _read_episode(path: Path) -> dict:
    version = path.stat().st_mtime_ns
    return read_episode("cartpole", Episode(str(path), 0, 1000, path.stat().st_size, version, lambda: path.open("rb")))


def _maze(root: Path) -> Path:
    collector = PointMazeCollector("pointmaze-medium", "navigate", 40)
    episodes = [collector(0, 0, index) for index in range(2)]
    path = root / "maze.npz"
    np.savez_compressed(path, **{name: np.concatenate([part[name] for part in episodes]) for name in episodes[0]})
    return path


def _minari(root: Path) -> Path:
    episodes = [
        EpisodeBuffer(
            id=index,
            observations=np.arange(18.0).reshape(6, 3) + index,
            actions=np.linspace(-2, 2, 5)[:, None],
            rewards=np.arange(5.0),
            terminations=np.zeros(5, bool),
            truncations=np.arange(5) == 4,
        )
        for index in range(3)
    ]
    previous = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root)  # the only way to tell minari where to write
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # minari wants authors and links
            minari.create_dataset_from_buffers(MINARI, episodes, env="Pendulum-v1")
    finally:
        del os.environ["MINARI_DATASETS_PATH"]
        os.environ.update({} if previous is None else {"MINARI_DATASETS_PATH": previous})
    return root / MINARI / "data" / "main_data.hdf5"


# ---- Damage ----


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """`content` with one to three seeded changes."""
    for _ in range(random.integers(1, 4)):
        change = CHANGES[random.integers(len(CHANGES))]
        content = change(content, random) or b"\0"
    return content


def _position(content: bytes, random: np.random.Generator) -> int:
    """A position in the content: in half of the cases near one of its ends."""
    if random.random() < 0.5:
        return int(random.integers(len(content)))
    offset = int(random.integers(min(EDGE, len(content))))
    return offset if random.random() < 0.5 else len(content) - 1 - offset


def _flip_bits(content: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(random.integers(1, 9)):
        changed[_position(content, random)] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _truncate(content: bytes, random: np.random.Generator) -> bytes:
    return content[: _position(content, random)]


def _splice(content: bytes, random: np.random.Generator) -> bytes:
    """Some bytes of one place written over those of another."""
    source, target, length = _position(content, random), _position(content, random), int(random.integers(1, 512))
    piece = content[source : source + length]
    return content[:target] + piece + content[target + len(piece) :]


def _insert(content: bytes, random: np.random.Generator) -> bytes:
    source, target, length = _position(content, random), _position(content, random), int(random.integers(1, 512))
    return content[:target] + content[source : source + length] + content[target:]


def _delete(content: bytes, random: np.random.Generator) -> bytes:
    start = _position(content, random)
    return content[:start] + content[start + int(random.integers(1, 512)) :]


def _set_number(content: bytes, random: np.random.Generator) -> bytes:
    """A number that sizes and offsets go wrong with, written over a place, as 1 to 8 bytes."""
    start, length = _position(content, random), int(2 ** random.integers(4))
    number = NUMBERS[random.integers(len(NUMBERS))] & (256**length - 1)
    return content[:start] + number.to_bytes(length, "little") + content[start + length :]


def _set_digits(content: bytes, random: np.random.Generator) -> bytes:
    """A decimal number in place of the next one in the text."""
    found = list(re.finditer(rb"\d+", content))
    if not found:
        return content
    match = found[random.integers(len(found))]
    return content[: match.start()] + str(NUMBERS[random.integers(len(NUMBERS))]).encode() + content[match.end() :]


CHANGES = (_flip_bits, _truncate, _splice, _insert, _delete, _set_number, _set_digits)


def repacked(content: bytes, random: np.random.Generator) -> bytes:
    """A zip file with one damaged member and checksums that are right again."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(result, "w") as out:
        members = archive.infolist()
        chosen = members[random.integers(len(members))]
        for member in members:
            data = archive.read(member)
            out.writestr(member.filename, damaged(data, random) if member is chosen and data else data)
    return result.getvalue()


# ---- Reading ----


def outcome(sample: Sample, content: bytes, expected: Any, checked: bool) -> str:
    """What reading the content in the sample's place gives: "refused", "equal", "different", or what is wrong."""
    sample.path.write_bytes(content)
    try:
        value = sample.read(sample.path)
    except UserError as error:
        return "refused" if "\n" not in str(error) else f"more than one line: {error}"
    except BaseException:
        return traceback.format_exc()
    if is_equal(value, expected):
        return "equal"
    if checked:
        return "accepted although its checksums are wrong"
    return "different" if is_sound(value, expected) else f"accepted, but not sound: {value}"


def leaves(value: Any) -> Dict[str, Any]:
    """{name: tensor, array or plain value} of what a reader returns."""
    if isinstance(value, Dataset):
        names = ("observations", "actions", "rewards", "masks", "valid")
        return {name: getattr(value, name) for name in names}
    return flat_state(value if isinstance(value, dict) else {**vars(value[0]), **vars(value[1])})


def is_equal(value: Any, expected: Any) -> bool:
    first, second = leaves(value), leaves(expected)
    return first.keys() == second.keys() and all(
        np.array_equal(leaf, second[name]) if isinstance(leaf, (torch.Tensor, np.ndarray)) else leaf == second[name]
        for name, leaf in first.items()
    )


def is_sound(value: Any, expected: Any) -> bool:
    """Whether a value of a format without checksums can be used: finite and of the original's rows and widths.

    A config is sound that is written and read back equal; arrays in a zip that was packed anew are finite and have the
    original's shapes; of a checkpoint that was packed anew the harness reads what it needs.
    """
    if isinstance(value, Dataset):
        parts, originals = leaves(value), leaves(expected)
        # Another end of an episode, where nothing says otherwise, makes other transitions of the same rows.
        same_shapes = all(parts[name].shape == originals[name].shape for name in parts if name != "valid")
        finite = all(bool(torch.isfinite(part).all()) for part in parts.values())
        return same_shapes and finite and bool((value.actions.abs() <= ACTION_LIMIT).all())
    if isinstance(value, tuple):  # a run's two configs
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(config_to_yaml(*value))
            file.flush()
            return stored_config(Path(file.name), DIPOLEConfig) == value
    if "agent" in value:
        return isinstance(value["agent"], dict) and isinstance(value["loop"]["step"], int)
    return all(array.shape == expected[name].shape and np.isfinite(array).all() for name, array in value.items())


def count_outcomes(samples: Dict[str, Sample], cases: Sequence[Tuple[str, bool, int]]) -> Dict[str, Counter]:
    """Reads the damaged files of all cases (name, packed anew?, seed) in a process of its own, counted by name.

    A process that dies or hangs is an outcome too, "died" or "hung", and another reads on. Everything that should not
    be is printed with its case.
    """
    counts: Dict[str, Counter] = {name: Counter() for name in samples}
    content = {name: sample.path.read_bytes() for name, sample in samples.items()}
    expected = {name: sample.read(sample.path) for name, sample in samples.items()}
    left = list(cases)
    while left:
        ours, theirs = multiprocessing.Pipe()
        # fork: the process has all modules and samples from here at once, and this one has a single thread.
        process = multiprocessing.get_context("fork").Process(
            target=_read_cases, args=(theirs, samples, content, expected, left)
        )
        process.start()
        theirs.close()
        for done, (name, _, _) in enumerate(list(left), start=1):
            answered = ours.poll(SECONDS_FOR_ONE)
            try:
                found = ours.recv() if answered else "hung"
            except EOFError:
                found = "died"
            counts[name][found if found in EXPECTED else "wrong"] += 1
            if found not in EXPECTED:
                print(left[done - 1], found)
            if found in ("hung", "died"):
                break
        left = left[done:]
        process.kill()
        process.join()
        for name, sample in samples.items():
            sample.path.write_bytes(content[name])
    return counts


def _read_cases(connection: Any, samples: dict, content: dict, expected: dict, cases: Sequence[tuple]) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    warnings.simplefilter("ignore")
    for name, packed_anew, seed in cases:
        random = np.random.default_rng(seed)
        damage = repacked if packed_anew else damaged
        checked = samples[name].has_checksums and not packed_anew
        connection.send(outcome(samples[name], damage(content[name], random), expected[name], checked))
        samples[name].path.write_bytes(content[name])
