"""Tasks: their data and their environments. `load_task(name)` is the one way in."""

import importlib
from typing import TYPE_CHECKING, Optional

from envs.errors import UserError
from envs.names import nearest_names

if TYPE_CHECKING:
    from envs.task import Task

# First part of a task's name -> module with `load(name, data_dir, collect_episodes)`; imported when asked for,
# so that one suite's simulator is not needed for another's data.
SUITES = {
    "driving": "envs.driving.tasks",
    "exorl": "envs.exorl_tasks",
    "minari": "envs.minari_tasks",
    "ogbench": "envs.ogbench_tasks",
}
MAPPABLE = ("exorl",)  # suites whose files can be read where they lie; the others' are compressed


def load_task(name: str, data_dir: Optional[str] = None, collect_episodes: int = 0, in_memory: bool = True) -> "Task":
    """Loads the data set and the environment of task `name`, `<suite>/<name within the suite>`.

    data_dir replaces the suite's own data folder. collect_episodes > 0 makes a locally generated set that is
    absent by collecting that many episodes first; 0 stops with the command that would. in_memory = False leaves the
    observations on disk, mapped into memory (ExORL only).
    Raises UserError for an unknown name, and for data that is absent or broken.
    """
    suite, _, rest = name.partition("/")
    if suite not in SUITES:
        hint = nearest_names(suite, SUITES)
        raise UserError(f"task {name!r}: unknown suite {suite!r}{hint} (known: {', '.join(sorted(SUITES))})")
    if not in_memory and suite not in MAPPABLE:
        raise UserError(f"in_memory: false is for {', '.join(MAPPABLE)} data sets only, not for {name}: set it to true")
    load = importlib.import_module(SUITES[suite]).load
    if in_memory:
        return load(rest, data_dir, collect_episodes)
    return load(rest, data_dir, collect_episodes, in_memory=False)
