"""Tasks: their data and their environments. `load_task(name)` is the one way in."""

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Dict, Iterable, Optional

from common.errors import UserError
from common.names import nearest_names
from envs.minari_names import minari_id
from envs.ogbench.names import task_names

# Gymnasium and torch come with a task, not with this package: envs.driving runs in NAVSIM's environment, without them.
if TYPE_CHECKING:
    from envs.task import Task

# First part of a task's name -> module with `load(name, data_dir, collect_episodes)`; imported when asked for,
# so that one suite's simulator is not needed for another's data.
SUITES = {
    "arrays": "envs.arrays",
    "driving": "envs.driving.tasks",
    "exorl": "envs.exorl.tasks",
    "minari": "envs.minari",
    "ogbench": "envs.ogbench.tasks",
}
OWN_SUITES = "DIPOLE_SUITES"  # environment variable: "<suite>=<module>,...", suites of one's own beside those
CHECKED = ("arrays", "minari")  # their environments are others' code, tried before training as one's own are
GRAPHICS_VARIABLE = "MUJOCO_GL"  # MuJoCo's own, read when it is imported
MAPPABLE = ("exorl",)  # suites whose files can be read where they lie; the others' are compressed


def load_task(
    name: str,
    data_dir: Optional[str] = None,
    collect_episodes: int = 0,
    in_memory: bool = True,
    max_episode_steps: Optional[int] = None,
    draws: bool = False,
) -> "Task":
    """Loads the data set and the environment of task `name`, `<suite>/<name within the suite>`.

    data_dir replaces the suite's own data folder. collect_episodes > 0 makes a locally generated set that is
    absent by collecting that many episodes first; 0 stops with the command that would. in_memory = False leaves the
    observations on disk, mapped into memory (ExORL only). max_episode_steps ends episodes of the environment earlier,
    see envs/checks.py. Unless the caller draws, MuJoCo is imported without OpenGL, whose driver may be missing.
    Raises UserError for an unknown name, for data that is absent or broken, and for an environment that does not fit.
    """
    from envs.checks import checked_task
    from envs.task import refuse_non_finite_rows

    suite, _, rest = name.partition("/")
    known = suites()
    if suite not in known:
        raise UserError(
            f"task {name!r}: unknown suite {suite!r}{_meant(name, known)} (known: {', '.join(sorted(known))}; one of "
            "your own is named by the environment variable DIPOLE_SUITES)"
        )
    if not in_memory and suite not in MAPPABLE:
        raise UserError(f"in_memory: false is for {', '.join(MAPPABLE)} data sets only, not for {name}: set it to true")
    load = _module_of(suite, known[suite], draws).load
    task = load(rest, data_dir, collect_episodes, **({} if in_memory else {"in_memory": False}))
    if suite not in SUITES:
        refuse_non_finite_rows(task)
    if suite in CHECKED or suite not in SUITES or max_episode_steps is not None:
        task = checked_task(task, max_episode_steps)
    return task


def load_environment(
    name: str, record: dict, identity: dict, data_dir: Optional[str] = None, draws: bool = False
) -> "Task":
    """The task of a run without its data, to act and to be evaluated in: its data sets are None.

    record and identity: the task's own `record()` and `identity`, which the run kept. The data are needed where they
    hold the environment (driving's scenes) or where a suite of one's own has no `load_environment(name, record,
    data_dir)` in its module, which returns what make_env is; they are refused unless they are those of the identity.
    Raises UserError as `load_task` does.
    """
    from envs.task import DATA_HASHES, RECORDED, Task
    from envs.wrappers import wrapped

    suite, _, rest = name.partition("/")
    known = suites()
    module = _module_of(suite, known[suite], draws) if suite in known else None
    if hasattr(module, "load_environment"):
        make_env = module.load_environment(rest, record, data_dir)
    else:
        task = load_task(name, data_dir, draws=draws)
        if any(task.identity.get(hash) != identity.get(hash) for hash in DATA_HASHES):
            raise UserError(f"{task.identity.get('path')}: the data set has changed since the run: restore it")
        make_env = task.make_env
    return Task(
        name=name,
        dataset=None,
        validation=None,
        make_env=wrapped(make_env, record),
        **{field: record[field] for field in RECORDED},
        identity=identity,
        environment=record,
    )


def _meant(name: str, known: Iterable[str]) -> str:
    """`, did you mean ...?` with the whole name of the task that was meant, as far as it can be guessed."""
    today = minari_id(name)
    if name in task_names():  # FQL's spelling
        return f", did you mean ogbench/{name}?"
    if today is not None:
        return f", did you mean minari/{today}?"
    return nearest_names(name.partition("/")[0], known)


def suites() -> Dict[str, str]:
    """{suite: its module}: those of this repository, then those that the environment variable DIPOLE_SUITES names.

    An environment variable reaches every process of a command, those of harness.compare among them, and a run's files
    cannot set it. Raises UserError for an entry that is no `<suite>=<module>` or names a suite of this repository.
    """
    own = dict(entry.partition("=")[::2] for entry in filter(None, os.environ.get(OWN_SUITES, "").split(",")))
    for suite, module in own.items():
        if not suite or not module or suite in SUITES:
            raise UserError(
                f"environment: {OWN_SUITES} holds {suite!r} = {module!r}: write <suite>=<module>, with another suite "
                f"than {', '.join(SUITES)}"
            )
    return SUITES | own


def _module_of(suite: str, module: str, draws: bool) -> ModuleType:
    """The module that loads a suite's tasks, for one that draws or not, see `load_task`.

    Raises UserError where there is none of that name.
    """
    if suite in SUITES and not draws and "mujoco" not in sys.modules:
        os.environ[GRAPHICS_VARIABLE] = "disabled"  # for the processes that host environments, too
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if suite in SUITES or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"environment: {OWN_SUITES} names the module {module!r}, which Python does not find ({error}): add its "
            f"folder to PYTHONPATH"
        ) from error
