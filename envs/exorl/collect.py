"""Collects episodes in ExORL's own file format, marked as locally generated; the random policies are here."""

import dataclasses
import functools
import importlib.util
import json
from importlib.metadata import version
from pathlib import Path
from typing import Callable, Dict, List

import numpy as np

from common.errors import UserError
from common.files import make_folder, remove_abandoned
from common.names import nearest_names
from envs.exorl.domains import DOMAINS, LEARNED_POLICY, LOCAL_PREFIX, POLICIES, check_domain
from envs.exorl.environment import ExORLEnvironment
from envs.exorl.source import episode_file, read_sidecar, record_episode, write_episode
from envs.generation_record import RECORD, check_counts, refuse_other_making, write_record
from envs.pool import run_jobs

GENERATOR_VERSION = 1  # raise it when the same seed no longer gives the same episodes
REPEAT_PROBABILITY = 0.7  # sticky_random: chance that a step repeats the action before it
LEARNING_LIBRARIES = ("stable-baselines3", "torch")  # what the learned policy's behaviour depends on besides
EPISODES_PER_WORKER = 10  # starting a process costs about as much as collecting this many


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
    """Episode number `index` of the set with `seed`, see `record_episode`; it depends on nothing else."""
    reset_seed, policy_seed = np.random.SeedSequence([seed, index]).spawn(2)
    generator = np.random.default_rng(policy_seed)
    actions = iter(_draw_actions(policy, steps, environment.action_space.shape[0], generator))
    return record_episode(environment, int(reset_seed.generate_state(1)[0]), steps, lambda observation: next(actions))


def _make_collector(domain: str, policy: str, seed: int, buffer: Path) -> Callable[[int], None]:
    """What writes the episode of a number: the work of one process."""
    environment, steps = ExORLEnvironment(domain, DOMAINS[domain].tasks[0]), DOMAINS[domain].episode_steps
    return lambda index: write_episode(buffer, domain, index, collect_episode(environment, policy, seed, index, steps))


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
        from envs.exorl.rnd import RNDParameters  # with stable-baselines3, which only this policy needs

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
    check_counts(episodes=episodes, workers=workers, seed=seed)
    if policy == LEARNED_POLICY and importlib.util.find_spec("stable_baselines3") is None:
        raise UserError(f"{policy}: stable-baselines3 is not installed: run `pip install -r requirements-collect.txt`")
    folder = root / domain / (LOCAL_PREFIX + policy)
    _open_set(folder, _describe(domain, policy, seed, episodes))
    missing = missing_episodes(folder, episodes)
    if policy != LEARNED_POLICY:
        make_collector = functools.partial(_make_collector, domain, policy, seed, folder / "buffer")
        run_jobs(make_collector, missing, workers, EPISODES_PER_WORKER, episodes - len(missing), f"collect {domain}")
    elif missing:
        from envs.exorl.rnd import RNDParameters, collect_rnd

        hours = collect_rnd(folder, episodes, seed, RNDParameters())
        write_record(folder / RECORD, {**read_sidecar(folder), "hours": round(hours, 6)})
    return folder
