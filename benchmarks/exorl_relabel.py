"""Relabelling speed: dm_control's loop over states against the direct MuJoCo path, all tasks of a domain at once.

python -m benchmarks.exorl_relabel
"""

import time
from collections.abc import Callable

import numpy as np

from envs.exorl.collect import collect_episode
from envs.exorl.domains import DOMAINS
from envs.exorl.environment import ExORLEnvironment, load_environment
from envs.exorl.fast_relabel import READERS, fast_rewards
from envs.exorl.relabel import reference_rewards

STATES = 10_000
RUNS = 5  # the best counts: CPU time, so that other work on the machine matters less


def states_per_second(label: Callable[[], np.ndarray]) -> float:
    seconds = []
    for _ in range(RUNS):
        start = time.process_time()
        label()
        seconds.append(time.process_time() - start)
    return STATES / min(seconds)


def main() -> None:
    for domain in READERS:
        tasks = DOMAINS[domain].tasks
        environments = [load_environment(domain, task) for task in tasks]
        episode = collect_episode(ExORLEnvironment(domain, tasks[0]), "random", 0, 0, STATES // 10)
        states, actions = (np.tile(episode[name], (10, 1))[:STATES] for name in ("physics", "action"))
        loop = states_per_second(lambda: reference_rewards(environments, states, actions))  # noqa: B023
        fast = states_per_second(lambda: fast_rewards(domain, environments, states))  # noqa: B023
        print(f"{domain}: loop {loop:.0f} states/s, direct {fast:.0f} states/s, ratio {fast / loop:.1f}", flush=True)


if __name__ == "__main__":
    main()
