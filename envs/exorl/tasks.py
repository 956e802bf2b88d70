"""ExORL's tasks: `load` gives the data set and the environment; as a command it collects and converts data.

python -m envs.exorl.tasks collect cartpole --collector sticky_random --episodes 100 --workers 2 --data_dir data
python -m envs.exorl.tasks convert cartpole --collector local_sticky_random --data_dir data
"""

import contextlib
import functools
import json
import os
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence, Tuple

import h5py
import numpy as np
import torch

from common.errors import CommandParser, UserError, exit_on_user_error, one_line
from common.names import nearest_names
from common.untrusted import plain_dataset
from envs.dataset import Dataset
from envs.exorl.collect import collect, missing_episodes
from envs.exorl.convert import FORMAT, FORMAT_VERSION, convert, convert_command
from envs.exorl.domains import DOMAINS, LOCAL_PREFIX, POLICIES, data_root, parse_name
from envs.exorl.environment import ExORLEnvironment
from envs.exorl.source import collect_command, open_source, read_sidecar
from envs.task import Task, file_sha256
from envs.transitions import ACTION_LIMIT, refuse_non_finite, refuse_out_of_range

DOWNLOAD_PAGE = "https://github.com/denisyarats/exorl"
SUGGESTED_EPISODES = 100  # in the command that an error message names
EPISODES = ("episode_start", "episode_length")
ATTRIBUTES = {
    "source": str,
    "transitions": int,
    "episodes": int,
    "version": int,
    "collector": str,
    "domain": str,
    "generation": json.loads,
}


def load(name: str, data_dir: Optional[str] = None, collect_episodes: int = 0, in_memory: bool = True) -> Task:
    """Loads the task `<collector>/<domain>_<task>`, converting its episode files first if that was not done yet.

    The data lie in `<data_dir>/<domain>/`, by default under ~/.exorl/data: `<collector>.h5`, made from
    `<collector>/` or its `buffer/`, or from `<collector>.zip`. A `local_*` set that is absent is collected first when
    collect_episodes > 0. Rewards are r(s') of this task, masks are all 1 (nothing terminates), the score is the
    undiscounted return. in_memory = False leaves the observations, the largest part, in the file, mapped into memory:
    the system holds as much of them as it has room for. Raises UserError for unknown names and for data that is
    absent, broken or out of date.
    """
    collector, domain, task = parse_name(name)
    folder = data_root(data_dir) / domain / collector
    path = folder.with_name(collector + ".h5")
    _prepare(folder, path, collect_episodes)
    dataset, identity = _read(path, task, in_memory)
    return Task(
        name=f"exorl/{name}",
        dataset=dataset,
        validation=None,
        make_env=load_environment(name, {}),
        observation_dim=DOMAINS[domain].observation_dim,
        action_dim=DOMAINS[domain].action_dim,
        score_name="return",
        identity=identity,
    )


def load_environment(name: str, record: dict, data_dir: Optional[str] = None) -> Callable[[], ExORLEnvironment]:
    """The `make_env` of the task, for which no file is needed."""
    return functools.partial(ExORLEnvironment, *parse_name(name)[1:])


def _prepare(folder: Path, path: Path, collect_episodes: int) -> None:
    """Makes `path` from the episodes in `folder`, collected first where asked for; refuses a file older than them."""
    root, domain, collector = folder.parent.parent, folder.parent.name, folder.name
    policy = collector.removeprefix(LOCAL_PREFIX)
    if collect_episodes > 0 and collector != policy and policy in POLICIES and not path.exists():
        # A collection that was interrupted is finished as it was begun.
        record = read_sidecar(folder) if folder.exists() else {"episodes": collect_episodes, "seed": 0}
        if missing := missing_episodes(folder, record["episodes"]):
            print(f"collecting {len(missing)} episodes into {folder}", flush=True)
            collect(root, domain, policy, record["episodes"], record["seed"], os.cpu_count() or 1)
    with open_source(folder) as source:
        if source is None and not path.exists():
            raise _absent(folder, path)
        if not path.exists():
            convert(root, domain, collector)
        elif source is not None:
            with _open(path) as file:
                converted, fingerprint = file.attrs.get("episodes"), file.attrs.get("source_fingerprint")
            if fingerprint != source.fingerprint():
                raise UserError(
                    f"{path}: converted from {converted} episodes, but the {len(source.episodes)} episode files in "
                    f"{folder} are not the same ones: run `{convert_command(path)}`"
                )


def _absent(folder: Path, path: Path) -> UserError:
    domain, collector = folder.parent.name, folder.name
    looked = f"no data for {domain} by {collector}: looked for {path}, {folder}/buffer/ and {folder}.zip"
    if not collector.startswith(LOCAL_PREFIX):
        return UserError(
            f"{looked}; get it from {DOWNLOAD_PAGE} with its `./download.sh {domain} {collector}` and put the zip, or "
            f"the unpacked folder with its episodes, there"
        )
    policy = collector.removeprefix(LOCAL_PREFIX)
    if policy not in POLICIES:
        hint = nearest_names(policy, POLICIES)
        return UserError(f"{looked}; {policy!r} is no policy that can be collected{hint} ({', '.join(POLICIES)})")
    command = collect_command(folder, {"policy": policy, "episodes": SUGGESTED_EPISODES, "seed": 0})
    return UserError(f"{looked}; collect it with `{command}`, or set collect_episodes")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """The converted file. Raises UserError, also for errors within the block, that says how to make it again."""
    again = f"run `{convert_command(path)}`"
    try:
        with h5py.File(path, "r") as file:
            found = (file.attrs.get("format"), file.attrs.get("version"))
            if found != (FORMAT, FORMAT_VERSION):
                raise UserError(
                    f"{path}: format {found[0]} version {found[1]}, this code reads {FORMAT} version {FORMAT_VERSION}: "
                    f"{again}"
                )
            yield file
    except UserError:
        raise
    except Exception as error:  # h5py raises many types for a damaged file
        raise UserError(f"{path}: is damaged or no HDF5 file ({one_line(error)}): {again}") from error


def _read(path: Path, task: str, in_memory: bool) -> Tuple[Dataset, dict]:
    """The data set of `task` and its identity. Physics stays on disk."""
    again, reward_name = f"run `{convert_command(path)}`", f"reward_{task}"
    with _open(path) as file:
        if reward_name not in file:
            raise UserError(f"{path}: has no column {reward_name}: {again}")
        columns = {name: plain_dataset(file, name) for name in ("observation", "action", reward_name, *EPISODES)}
        observations = columns["observation"][:] if in_memory else _map(path, columns["observation"])
        actions, rewards, starts, lengths = (columns[name][:] for name in ("action", reward_name, *EPISODES))
        attributes = {name: kind(file.attrs[name]) for name, kind in ATTRIBUTES.items()}
    _check_episodes(path, starts, lengths, len(observations), attributes)
    for name, array in {"observation": observations, "action": actions, reward_name: rewards}.items():
        refuse_non_finite(str(path), name, array)
    refuse_out_of_range(str(path), actions, f"{again} on episodes of ExORL's")
    sha256, hashed = file_sha256(path)
    returns = [rewards[s + 1 : s + 1 + n].sum(dtype=np.float64) for s, n in zip(starts, lengths, strict=True)]
    identity = {
        "suite": "exorl",
        "path": str(path),
        "sha256": sha256,
        "sha256_of": hashed,
        **{name: attributes[name] for name in ("source", "transitions", "episodes")},
        "format_version": attributes["version"],
        **{name: attributes[name] for name in ("collector", "domain")},
        "reward_task": task,
        "score_range": [0.0, float(DOMAINS[attributes["domain"]].episode_steps)],  # a step's reward is in [0, 1]
        "episode_return_mean": float(np.mean(returns)),
        "episode_return_best": float(np.max(returns)),
        "generation": attributes["generation"],
    }
    return _align(observations, actions, rewards, starts, lengths), identity


def _check_episodes(path: Path, starts: np.ndarray, lengths: np.ndarray, rows: int, attributes: dict) -> None:
    """Raises UserError unless the episodes follow one another over all rows and are as many as the attributes say."""
    counts = (path.parent.name, len(lengths), int(lengths.sum()))
    follow = np.concatenate([[0], np.cumsum(lengths + 1)])
    named = (attributes["domain"], attributes["episodes"], attributes["transitions"])
    if not np.array_equal(follow, [*starts.tolist(), rows]) or named != counts:
        raise UserError(
            f"{path}: is damaged (its episodes do not follow one another, or are not the {attributes['episodes']} of "
            f"{attributes['domain']} that it names): run `{convert_command(path)}`"
        )


def _map(path: Path, column: h5py.Dataset) -> np.ndarray:
    """The data set as an array that reads the file where it is touched; what is written to it stays in memory."""
    return np.memmap(path, column.dtype, "c", column.id.get_offset(), column.shape)


def _align(
    observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> Dataset:
    """ExORL's rows, whose action and reward led *to* their state, as a Dataset, whose rows say what came next.

    Transition i is (observation[i-1], action[i], reward[i], observation[i]), so row r takes action and reward of r+1.
    An episode's last state has neither: it repeats the action before it, so that next_actions holds no invented one.
    `actions` and `rewards` are changed in place: at ten million rows a copy is felt.
    """
    last = starts + lengths
    _shift(actions)
    actions[last] = actions[last - 1]
    _shift(rewards)
    rewards[last] = 0
    np.clip(actions, -ACTION_LIMIT, ACTION_LIMIT, out=actions)  # in place, where the data set would make a copy
    is_transition = np.ones(len(observations), bool)
    is_transition[last] = False
    columns = [torch.from_numpy(array) for array in (observations, actions, rewards)]
    masks = torch.ones(()).expand(len(observations))  # one number, whatever the rows
    return Dataset(*columns, masks, torch.from_numpy(np.flatnonzero(is_transition)))


def _shift(column: np.ndarray) -> None:
    """Moves every row [R, ...] one up in place; the last stays."""
    flat, width = column.reshape(-1), column[0].size
    flat[:-width] = flat[width:]  # along one axis numpy moves overlapping memory without a copy of all of it


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """The command: `collect` makes a local set, `convert` turns episode files into the HDF5 file."""
    parser = CommandParser("python -m envs.exorl.tasks", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="collect episodes with a random or novelty-seeking policy")
    collecting.add_argument("domain", help=", ".join(DOMAINS))
    collecting.add_argument("--collector", required=True, help=f"policy: {', '.join(POLICIES)}")
    collecting.add_argument("--episodes", type=int, required=True, help="episodes in the whole set")
    collecting.add_argument(
        "--workers", type=int, default=1, help="processes; the files do not depend on it; rnd takes one"
    )
    collecting.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    converting = commands.add_parser("convert", help="turn episode files into one HDF5 file")
    converting.add_argument("domain", help=", ".join(DOMAINS))
    converting.add_argument("--collector", required=True, help="name of the set's folder or zip, e.g. rnd")
    for command in (collecting, converting):
        command.add_argument("--data_dir", help="folder of the data, default ~/.exorl/data")
    with exit_on_user_error():
        options = parser.parse_args(arguments)
        root = data_root(options.data_dir)
        if options.command == "collect":
            policy = options.collector.removeprefix(LOCAL_PREFIX)
            print(collect(root, options.domain, policy, options.episodes, options.seed, options.workers))
        else:
            print(convert(root, options.domain, options.collector))


if __name__ == "__main__":
    main()
