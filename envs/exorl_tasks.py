"""ExORL's tasks: `load` gives the data set and the environment; as a command it collects and converts data.

python -m envs.exorl_tasks collect cartpole --collector sticky_random --episodes 100 --workers 2 --data_dir data
python -m envs.exorl_tasks convert cartpole --collector local_sticky_random --data_dir data
"""

import argparse
import functools
import json
import os
from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple

import h5py
import numpy as np
import torch

from envs.dataset import Dataset, refuse_non_finite
from envs.errors import UserError
from envs.exorl_collect import collect, missing_episodes, read_sidecar
from envs.exorl_convert import (
    COMPRESSIONS,
    FORMAT,
    FORMAT_VERSION,
    collect_command,
    convert,
    convert_command,
    open_source,
)
from envs.exorl_domains import DOMAINS, LOCAL_PREFIX, POLICIES, data_root, parse_name
from envs.exorl_environment import ExORLEnvironment
from envs.names import nearest_names
from envs.task import Task, file_sha256

DOWNLOAD_PAGE = "https://github.com/denisyarats/exorl"
SUGGESTED_EPISODES = 100  # in the command that an error message names


def load(name: str, data_dir: Optional[str] = None, collect_episodes: int = 0) -> Task:
    """Loads the task `<collector>/<domain>_<task>`, converting its episode files first if that was not done yet.

    The data lie in `<data_dir>/<domain>/`, by default under ~/.exorl/data: `<collector>.h5`, made from
    `<collector>/buffer/` or `<collector>.zip`. A `local_*` set that is absent is collected first when
    collect_episodes > 0. Rewards are r(s') of this task, masks are all 1 (nothing terminates), the score is the
    undiscounted return. Raises UserError for unknown names and for data that is absent, broken or out of date.
    """
    collector, domain, task = parse_name(name)
    folder = data_root(data_dir) / domain / collector
    path = folder.with_name(collector + ".h5")
    _prepare(folder, path, collect_episodes)
    dataset, identity = _read(path, task)
    return Task(
        name=f"exorl/{name}",
        dataset=dataset,
        validation=None,
        make_env=functools.partial(ExORLEnvironment, domain, task),
        observation_dim=DOMAINS[domain].observation_dim,
        action_dim=DOMAINS[domain].action_dim,
        score_name="return",
        identity=identity,
    )


def _prepare(folder: Path, path: Path, collect_episodes: int) -> None:
    """Makes `path` from the episodes in `folder`, collected first where asked for; refuses a file older than them."""
    root, domain, collector = folder.parent.parent, folder.parent.name, folder.name
    policy = collector.removeprefix(LOCAL_PREFIX)
    if collect_episodes > 0 and collector != policy and policy in POLICIES and not path.exists():
        # A collection that was interrupted is finished as it was begun.
        record = read_sidecar(folder) if folder.exists() else {"episodes": collect_episodes, "seed": 0}
        if missing_episodes(folder, record["episodes"]):
            collect(root, domain, policy, record["episodes"], record["seed"], os.cpu_count() or 1)
    with open_source(folder) as source:
        if source is None and not path.exists():
            raise _absent(folder, path)
        fingerprint = None if source is None else source.fingerprint()
        episodes = 0 if source is None else len(source.episodes)
    if not path.exists():
        convert(root, domain, collector)
    with _open(path) as file:
        if fingerprint is not None and file.attrs["source_fingerprint"] != fingerprint:
            raise UserError(
                f"{path}: converted from {file.attrs['episodes']} episodes, but the {episodes} episode files in "
                f"{folder} are not the same ones: run `{convert_command(path)}`"
            )


def _absent(folder: Path, path: Path) -> UserError:
    domain, collector = folder.parent.name, folder.name
    looked = f"no data for {domain} by {collector}: looked for {path}, {folder}/buffer/ and {folder}.zip"
    if not collector.startswith(LOCAL_PREFIX):
        return UserError(
            f"{looked}; get it from {DOWNLOAD_PAGE} with its `./download.sh {domain} {collector}` and put the zip, or "
            f"the unpacked folder that holds buffer/, there"
        )
    policy = collector.removeprefix(LOCAL_PREFIX)
    if policy not in POLICIES:
        hint = nearest_names(policy, POLICIES)
        return UserError(f"{looked}; {policy!r} is no policy that can be collected{hint} ({', '.join(POLICIES)})")
    command = collect_command(folder, {"policy": policy, "episodes": SUGGESTED_EPISODES, "seed": 0})
    return UserError(f"{looked}; collect it with `{command}`, or set collect_episodes")


def _open(path: Path) -> h5py.File:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as HDF5 ({reason}): run `{convert_command(path)}`") from error
    found = (file.attrs.get("format"), file.attrs.get("version"))
    if found != (FORMAT, FORMAT_VERSION):
        file.close()
        raise UserError(
            f"{path}: format {found[0]} version {found[1]}, this code reads {FORMAT} version {FORMAT_VERSION}: "
            f"run `{convert_command(path)}`"
        )
    return file


def _read(path: Path, task: str) -> Tuple[Dataset, dict]:
    """The data set of `task` and its identity. Physics stays on disk."""
    reward_name = f"reward_{task}"
    with _open(path) as file:
        if reward_name not in file:
            raise UserError(f"{path}: has no column {reward_name}: run `{convert_command(path)}`")
        arrays = {name: file[name][:] for name in ("observation", "action", reward_name)}
        starts, lengths = file["episode_start"][:], file["episode_length"][:]
        attributes = dict(file.attrs)
    for name, array in arrays.items():
        refuse_non_finite(str(path), name, array)
    sha256, hashed = file_sha256(path)
    rewards = arrays[reward_name]
    returns = [rewards[s + 1 : s + 1 + n].sum(dtype=np.float64) for s, n in zip(starts, lengths, strict=True)]
    identity = {
        "suite": "exorl",
        "path": str(path),
        "sha256": sha256,
        "sha256_of": hashed,
        "source": attributes["source"],
        "transitions": int(attributes["transitions"]),
        "episodes": int(attributes["episodes"]),
        "format_version": int(attributes["version"]),
        "collector": attributes["collector"],
        "domain": attributes["domain"],
        "reward_task": task,
        "episode_return_mean": float(np.mean(returns)),
        "episode_return_best": float(np.max(returns)),
        "generation": json.loads(attributes["generation"]),
    }
    return _align(arrays["observation"], arrays["action"], rewards, starts, lengths), identity


def _align(
    observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> Dataset:
    """ExORL's rows, whose action and reward led *to* their state, as a Dataset, whose rows say what came next.

    Transition i is (observation[i-1], action[i], reward[i], observation[i]), so row r takes action and reward of r+1.
    An episode's last state has neither: it repeats the action before it, so that next_actions holds no invented one.
    """
    last = starts + lengths
    is_transition = np.ones(len(observations), bool)
    is_transition[last] = False
    shifted_actions = np.concatenate([actions[1:], actions[-1:]])
    shifted_actions[last] = actions[last]
    shifted_rewards = np.append(rewards[1:], np.float32(0))
    shifted_rewards[last] = 0
    columns: Dict[str, np.ndarray] = {
        "observations": observations,
        "actions": shifted_actions,
        "rewards": shifted_rewards,
        "masks": np.ones(len(observations), np.float32),
        "valid": np.flatnonzero(is_transition),
    }
    return Dataset(**{name: torch.from_numpy(column) for name, column in columns.items()})


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """The command: `collect` makes a local set, `convert` turns episode files into the HDF5 file."""
    from harness.command_line import exit_on_user_error

    parser = argparse.ArgumentParser(prog="python -m envs.exorl_tasks", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="collect episodes with a random policy")
    collecting.add_argument("domain", help=", ".join(DOMAINS))
    collecting.add_argument("--collector", required=True, help=f"policy: {', '.join(POLICIES)}")
    collecting.add_argument("--episodes", type=int, required=True, help="episodes in the whole set")
    collecting.add_argument("--workers", type=int, default=1, help="processes; the files do not depend on it")
    collecting.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    converting = commands.add_parser("convert", help="turn episode files into one HDF5 file")
    converting.add_argument("domain", help=", ".join(DOMAINS))
    converting.add_argument("--collector", required=True, help="name of the set's folder or zip, e.g. rnd")
    converting.add_argument("--compression", choices=COMPRESSIONS, help="chunked and compressed; default: neither")
    for command in (collecting, converting):
        command.add_argument("--data_dir", help="folder of the data, default ~/.exorl/data")
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        root = data_root(options.data_dir)
        if options.command == "collect":
            policy = options.collector.removeprefix(LOCAL_PREFIX)
            print(collect(root, options.domain, policy, options.episodes, options.seed, options.workers))
        else:
            print(convert(root, options.domain, options.collector, options.compression))


if __name__ == "__main__":
    main()
