"""The table of ExORL's domains and tasks, names of collectors, and where their files lie."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple

from common.errors import UserError
from common.names import nearest_names

DEFAULT_DATA_DIR = "~/.exorl/data"
LOCAL_PREFIX = "local_"  # marks a set that was generated here and is not ExORL's
OFFICIAL_COLLECTORS = ("aps", "diayn", "disagreement", "icm", "icm_apt", "proto", "random", "rnd", "smm")
LEARNED_POLICY = "rnd"  # of rnd.py
POLICIES = ("random", "sticky_random", LEARNED_POLICY)  # what collect.py can collect with


@dataclass(frozen=True)
class Domain:
    """Widths of a domain's arrays and its tasks; the first task is the one whose reward a local collection stores."""

    observation_dim: int
    action_dim: int
    physics_dim: int  # qpos, qvel and, where actuators have a state, act
    tasks: Tuple[str, ...]
    episode_steps: int = 1000  # dm_control's own time limit gives the same
    reward_dim: int = 1  # columns of `reward` in the released files; a local collection always stores one


CORNERS = ("reach_top_left", "reach_top_right", "reach_bottom_left", "reach_bottom_right")
DOMAINS = {
    "cartpole": Domain(5, 1, 4, ("swingup", "swingup_sparse", "balance", "balance_sparse")),
    "cheetah": Domain(17, 6, 18, ("run", "run_backward")),
    "jaco": Domain(42, 9, 18, CORNERS, episode_steps=250),
    "point_mass_maze": Domain(4, 2, 4, CORNERS, reward_dim=4),
    "quadruped": Domain(78, 12, 57, ("walk", "run")),
    "walker": Domain(24, 6, 18, ("stand", "walk", "run")),
}
TASKS = {f"{domain}_{task}": (domain, task) for domain in DOMAINS for task in DOMAINS[domain].tasks}


def parse_name(name: str) -> Tuple[str, str, str]:
    """(collector, domain, task) of `<collector>/<domain>_<task>`. Raises UserError with the nearest known names."""
    collector, separator, domain_task = name.partition("/")
    if not separator:
        raise UserError(f"task 'exorl/{name}': expected exorl/<collector>/<domain>_<task>, e.g. exorl/rnd/walker_walk")
    if domain_task not in TASKS:
        hint = nearest_names(domain_task, TASKS)
        raise UserError(
            f"task 'exorl/{name}': unknown domain and task {domain_task!r}{hint} (known: {', '.join(TASKS)})"
        )
    check_collector(collector)
    return (collector, *TASKS[domain_task])


def check_domain(domain: str) -> None:
    """Raises UserError with the nearest names unless the domain is known."""
    if domain not in DOMAINS:
        hint = nearest_names(domain, DOMAINS)
        raise UserError(f"unknown ExORL domain {domain!r}{hint} (known: {', '.join(DOMAINS)})")


def check_collector(collector: str) -> None:
    """Raises UserError with the nearest names unless the collector is ExORL's or its name starts with `local_`."""
    if collector not in OFFICIAL_COLLECTORS and not collector.startswith(LOCAL_PREFIX):
        known = OFFICIAL_COLLECTORS + tuple(LOCAL_PREFIX + policy for policy in POLICIES)
        hint = nearest_names(collector, known)
        raise UserError(
            f"unknown ExORL collector {collector!r}{hint} (known: {', '.join(known)}, "
            f"and any {LOCAL_PREFIX}<name> whose folder exists)"
        )


def data_root(data_dir: Optional[str]) -> Path:
    """The folder that holds <domain>/<collector>...: `data_dir`, or ExORL's default when it is None."""
    return Path(DEFAULT_DATA_DIR if data_dir is None else data_dir).expanduser()
