"""Collects episodes in ExORL's own file format, marked as locally generated; the random policies are here."""

import dataclasses
import importlib.util
import json
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np
from tqdm import tqdm

from common.errors import UserError
from common.files import make_folder, remove_abandoned, replacing
from common.names import nearest_names
from envs.exorl.domains import DOMAINS, LEARNED_POLICY, LOCAL_PREFIX, POLICIES, check_domain
from envs.exorl.environment import ExORLEnvironment
from envs.generation_record import RECORD, read_record, refuse_other_making, write_record

GENERATOR_VERSION = 1  # raise it when the same seed no longer gives the same episodes
REPEAT_PROBABILITY = 0.7  # sticky_random: chance that a step repeats the action before it
LEARNING_LIBRARIES = ("stable-baselines3", "torch")  # what the learned policy's behaviour depends on besides
EPISODES_PER_WORKER = 10  # starting a process costs about as much as collecting this many


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
    if not local:
        return None
    return read_record(path, ("policy", "seed", "episodes"), "collect the set again")


def _draw_actions(policy: str, steps: int, action_dim: int, generator: np.random.Generator) -> np.ndarray:
    """Actions float32 [steps, A], uniform on [-1, 1]; sticky_random keeps the last with REPEAT_PROBABILITY."""
    actions = generator.uniform(-1.0, 1.0, (steps, action_dim)).astype(np.float32)
    if policy == "sticky_random":
        redraw = generator.random(steps) >= REPEAT_PROBABILITY
        redraw[0] = True
        actions = actions[np.maximum.accumulate(np.where(redraw, np.arange(steps), 0))]
    return actions


def collect_episode(
    environment: ExORLEnvironment, policy: str, seed: int, index: int, steps: int
) -> Dict[str, np.ndarray]:
    """Episode number `index` of the set with `seed` as ExORL stores one; it depends on nothing else.

    steps + 1 rows: observation [., O], action [., A], reward [., 1], discount [., 1] in float32, physics [., P] in
    float64. Row 0 is the initial state with a dummy action 0, reward 0 and discount 1; row i's action led to it.
    """
    reset_seed, policy_seed = np.random.SeedSequence([seed, index]).spawn(2)
    observation, _ = environment.reset(seed=int(reset_seed.generate_state(1)[0]))
    actions = _draw_actions(policy, steps, environment.action_space.shape[0], np.random.default_rng(policy_seed))
    observations, rewards, physics = [observation], [0.0], [environment.physics_state()]
    for action in actions:
        observation, reward, _, _, _ = environment.step(action)
        observations.append(observation)
        rewards.append(reward)
        physics.append(environment.physics_state())
    return as_episode(observations, actions, rewards, physics)


def as_episode(
    observations: Sequence[np.ndarray],
    actions: Sequence[np.ndarray],
    rewards: Sequence[float],
    physics: Sequence[np.ndarray],
) -> Dict[str, np.ndarray]:
    """ExORL's arrays of an episode, see `collect_episode`: `actions` lack the dummy row, the others have it."""
    return {
        "observation": np.stack(observations),
        "action": np.stack([np.zeros_like(actions[0]), *actions]),
        "reward": np.array(rewards, np.float32)[:, None],
        "discount": np.ones((len(rewards), 1), np.float32),
        "physics": np.stack(physics),
    }


def write_episode(buffer: Path, domain: str, index: int, episode: Dict[str, np.ndarray]) -> None:
    """Writes episode number `index` to the folder `buffer`, whole or not at all."""
    with replacing(buffer / episode_file(domain, index)) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **episode)


class _Collector:
    """Writes episodes by index: the work of one process."""

    def __init__(self, domain: str, policy: str, seed: int, buffer: Path):
        self.domain, self.policy, self.seed, self.buffer = domain, policy, seed, buffer
        self.environment = ExORLEnvironment(domain, DOMAINS[domain].tasks[0])

    def __call__(self, index: int) -> None:
        steps = DOMAINS[self.domain].episode_steps
        episode = collect_episode(self.environment, self.policy, self.seed, index, steps)
        write_episode(self.buffer, self.domain, index, episode)


_collector: Optional[_Collector] = None  # of a worker process, set once when it starts


def _start_worker(domain: str, policy: str, seed: int, buffer: Path) -> None:
    global _collector
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the parent, which stops its workers
    _collector = _Collector(domain, policy, seed, buffer)


def _collect_in_worker(index: int) -> None:
    _collector(index)


def episode_file(domain: str, index: int) -> str:
    return f"episode_{index:06d}_{DOMAINS[domain].episode_steps}.npz"


def missing_episodes(folder: Path, episodes: int) -> List[int]:
    """The episodes of 0 to `episodes` - 1 that the set in `folder` lacks; a file that is there is complete."""
    domain = folder.parent.name
    return [index for index in range(episodes) if not (folder / "buffer" / episode_file(domain, index)).exists()]


def _describe(domain: str, policy: str, seed: int, episodes: int) -> dict:
    """What the episodes depend on; two collections with equal records, `episodes` apart, agree bit for bit."""
    record = {
        "source": "locally generated",
        "generator_version": GENERATOR_VERSION,
        "domain": domain,
        "policy": policy,
        "repeat_probability": REPEAT_PROBABILITY if policy == "sticky_random" else 0.0,
        "seed": seed,
        "reward_task": DOMAINS[domain].tasks[0],
        "libraries": {name: version(name) for name in ("dm_control", "mujoco", "numpy")},
        "episodes": episodes,
    }
    if policy == LEARNED_POLICY:
        from envs.exorl.rnd import RNDParameters

        record["parameters"] = dataclasses.asdict(RNDParameters())
        record["libraries"] |= {name: version(name) for name in LEARNING_LIBRARIES}
    return json.loads(json.dumps(record))  # as it is read back: tuples become lists


def _open_set(folder: Path, record: dict) -> None:
    """Creates the set's folder with its record, or checks that the existing set is of the same making."""
    if folder.exists():
        existing = read_sidecar(folder)
        fix = f"choose another --data_dir or delete {folder}"
        refuse_other_making(folder / RECORD, existing, record, fix, ignored=("episodes",))
        record = {**existing, **record, "episodes": max(record["episodes"], existing["episodes"])}
    make_folder(folder, "data_dir")
    write_record(folder / RECORD, record)
    (folder / "buffer").mkdir(exist_ok=True)
    for place in (folder, folder / "buffer"):
        remove_abandoned(place)


def _collect_learned(folder: Path, episodes: int, seed: int) -> None:
    from envs.exorl.rnd import RNDParameters, collect_rnd

    hours = collect_rnd(folder, episodes, seed, RNDParameters())
    write_record(folder / RECORD, {**read_sidecar(folder), "hours": round(hours, 6)})


def collect(root: Path, domain: str, policy: str, episodes: int, seed: int = 0, workers: int = 1) -> Path:
    """Makes `<root>/<domain>/local_<policy>/` with `episodes` episodes and returns it; episodes there are kept.

    The files are bit-identical for any number of workers and however often the collection was interrupted. The
    learned policy needs its episodes in order, so that it takes one worker whatever `workers` says.
    Raises UserError for an unknown domain or policy, where the folder holds a set of another making, and where the
    learned policy's library is missing.
    """
    check_domain(domain)
    if policy not in POLICIES:
        raise UserError(f"unknown policy {policy!r}{nearest_names(policy, POLICIES)} (known: {', '.join(POLICIES)})")
    for name, value, least in (("episodes", episodes, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if value < least:
            raise UserError(f"{name}: expected at least {least}, got {value}")
    if policy == LEARNED_POLICY and importlib.util.find_spec("stable_baselines3") is None:
        raise UserError(f"{policy}: stable-baselines3 is not installed: run `pip install -r requirements-collect.txt`")
    folder = root / domain / (LOCAL_PREFIX + policy)
    _open_set(folder, _describe(domain, policy, seed, episodes))
    buffer = folder / "buffer"
    missing = missing_episodes(folder, episodes)
    if policy == LEARNED_POLICY:
        if missing:
            _collect_learned(folder, episodes, seed)
        return folder
    job = (domain, policy, seed, buffer)
    workers = min(workers, -(-len(missing) // EPISODES_PER_WORKER))
    bar = {"desc": f"collect {domain}", "unit": "episode", "total": episodes, "initial": episodes - len(missing)}
    if workers <= 1:
        collector = _Collector(*job) if missing else None
        for index in tqdm(missing, disable=None, **bar):
            collector(index)
        return folder
    # spawn: a fork would copy this process's threads' locks, torch's among them.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=job)
    try:
        for _ in tqdm(executor.map(_collect_in_worker, missing), disable=None, **bar):
            pass
    finally:
        executor.shutdown(cancel_futures=True)
    return folder
