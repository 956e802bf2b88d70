"""A run's folder: checking and opening it for training, what it keeps of the run, and loading the run from it.

`<run_dir>/<label>/<task>/seed_<n>/` holds the files of harness/run_files.py. Every file but the CSVs is replaced as a
whole; a CSV row is whole or absent.
"""

import contextlib
import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import UserError, one_line
from common.files import locked, make_folder, remove_abandoned, replacing, write_text
from common.untrusted import check_stored_zip
from envs import load_environment, load_task
from envs.checks import checked_task
from envs.chunks import chunked
from envs.task import DATA_HASHES, Task, normalize_observations, sparse
from envs.wrappers import NORMALIZATION
from harness import devices, run_files
from harness.agent_tools import restore, state_of
from harness.algorithms import Algorithm, load_algorithm
from harness.config import MACHINE_OPTIONS, RunConfig, algorithm_name, config_to_yaml, flat, stored_config
from harness.loggers import CsvLog, open_loggers
from harness.machine import add_stretch, describe_machine
from harness.online import OnlinePhase

CHECKPOINT_FORMAT = 1  # raised when the layout of checkpoint.pt changes
SCORE_EVALUATIONS = 3  # result.json also has the mean score of the last three evaluations (FQL's protocol)
JSON_TYPES = {"data": dict, "environment": dict, "algorithm": str, "run_id": str, "stretches": list}
JSON_TYPES |= {"harness_version": int, "compiled": bool}  # these are environment.json's fields,
JSON_TYPES |= {"step": int, "score": (float, int, type(None)), "score_name": str}  # and of result.json's
HARNESS_VERSION = 2  # raised when the same config could give other numbers than before


def run_path(run: RunConfig) -> Path:
    """The folder of a run. Raises ValueError without a label, which settings fill in and Python code gives."""
    if run.label is None:
        raise ValueError('RunConfig: label is None, name the run\'s folder, e.g. RunConfig(label="dipole")')
    return Path(run.run_dir).expanduser() / run.label / run.task / f"seed_{run.seed}"


def checkpoint_folder(run_dir: Path, name: str) -> Path:
    """Where the run keeps its checkpoint of that name, such as a step's or an average's; empty: the run itself."""
    return run_dir / run_files.KEPT_CHECKPOINTS / name if name else run_dir


def copy_files(source: Path, out: Path, names: Iterable[str]) -> None:
    """Copies the files of these names, each as a whole."""
    for name in names:
        with replacing(out / name) as temporary:
            shutil.copyfile(source / name, temporary)


def is_finished(folder: Path) -> bool:
    """Whether the run in that folder has its result."""
    return (folder / run_files.RESULT).exists()


def finished_result(folder: Path, updates: int) -> dict | None:
    """What result.json holds of a run that has made so many updates, else None. Raises UserError for a damaged one."""
    if not is_finished(folder):
        return None
    result = read_json(folder / run_files.RESULT, needed=("score", "score_name", "step"))
    return result if result["step"] >= updates else None


def remove_run(run: RunConfig) -> None:
    """Says what the run's folder holds and deletes the files that a run writes, and no others.

    Raises UserError where a process has the run, whose lock stays.
    """
    path = run_path(run)
    config = path / run_files.CONFIG
    lines = config.read_text(encoding="utf-8", errors="replace").splitlines() if config.exists() else []
    sweeps = sweep_files(line.partition(":")[0] for line in lines)
    kept = [f"{run_files.KEPT_CHECKPOINTS}/*/{name}" for name in (*run_files.KEPT, *sweeps)]
    names = (*run_files.ALL, *sweeps, *run_files.PATTERNS, *kept)
    files = [file for name in names for file in sorted(path.glob(name)) if file != path / run_files.LOCK]
    if not files:
        print(f"restart: {path} holds no run")
        return
    with locked(path / run_files.LOCK, busy(path)):
        print(f"restart: deleting {', '.join(file.name for file in files)} in {path}")
        for file in files:
            file.unlink()
    for folder in sorted({folder for file in files for folder in file.relative_to(path).parents}, reverse=True)[:-1]:
        if not any((path / folder).iterdir()):
            (path / folder).rmdir()


def sweep_files(fields: Iterable[str]) -> list[str]:
    """Names of what sweeps of several values of these act options have written."""
    return [f"{name}.{kind}" for name in fields for kind in ("csv", "png")]


def busy(path: Path) -> str:
    return f"{path}: another process is running this; wait for it or stop it"


def load_run_task(run: RunConfig, task: Task | None = None) -> Task:
    """The run's data, which may be made or fetched first, and its environment, as the run's config wants them.

    task: one that is loaded already, such as of arrays in memory. Raises UserError as envs.load_task.
    """
    if task is None:
        task = load_task(run.task, run.data_dir, run.collect_episodes, run.in_memory, run.max_episode_steps)
    elif run.max_episode_steps is not None:
        task = checked_task(task, run.max_episode_steps)
    task = normalize_observations(task) if run.normalize_observations else task
    return sparse(task) if run.sparse else task


def with_chunks(task: Task, run: RunConfig, config: Any) -> Task:
    """The task with the run's chunks, if any, discounted as the method does. Raises UserError if it does not."""
    if run.action_chunk == 1:
        return task
    if not hasattr(config, "discount"):
        raise UserError(f"config: action_chunk must be 1 for {algorithm_name(type(config))}, which discounts nothing")
    return chunked(task, run.action_chunk, config.discount, run.first_action_only)


# ---- Whether a run may use its folder ----


def check_folder(run: RunConfig, config: Any, identity: dict, act_options: Sequence[str] = ()) -> None:
    """Raises UserError where the run's folder cannot be written to or holds another run; writes nothing.

    identity: of the task's data; act_options: of the agent, for advice.
    """
    path = run_path(run)
    existing = next(each for each in (path, *path.parents) if each.exists())
    if not os.access(existing, os.W_OK):
        raise UserError(f"{existing}: cannot be written to; change its permissions or set run_dir elsewhere")
    check_settings(run, config, act_options)
    if not (path / run_files.CONFIG).exists():
        return
    environment = read_environment(path)
    advice = "restore it, choose another run_dir or label, or add --restart"
    check_identity(environment["data"], identity, f"since this run began in {path}; {advice}")
    version = environment["harness_version"]
    if version != HARNESS_VERSION and finished_result(path, run.total_updates) is None:
        raise UserError(
            f"{path}: this run began under harness version {version}, and this code is version {HARNESS_VERSION}, "
            "which may give other numbers; finish it with that code, or add --restart"
        )


def check_settings(run: RunConfig, config: Any, act_options: Sequence[str] = ()) -> None:
    """Raises UserError where the run's folder holds one of other settings; act_options: of the agent, for advice."""
    path = run_path(run)
    if not (path / run_files.CONFIG).exists():
        begun = [name for name in (run_files.CHECKPOINT, run_files.RESULT) if (path / name).exists()]
        if begun:
            raise UserError(f"{path}: holds {begun[0]} without config.yaml; put that back, or add --restart")
        return
    try:
        stored = flat(*stored_config(path / run_files.CONFIG, type(config)))
    except UserError as error:
        raise UserError(f"{error}; or add --restart to begin this run anew") from error
    check_fields(path, stored, flat(run, config), act_options)


def check_fields(path: Path, stored: dict, asked: dict, act_options: Sequence[str] = ()) -> None:
    """Raises UserError for fields that must agree and do not. More updates may be asked, of the run's last phase."""
    grows = ("online_steps",) if stored["online_steps"] else ("offline_steps", "online_steps")
    differing = [
        name
        for name in asked
        if name not in MACHINE_OPTIONS
        and stored[name] != asked[name]
        and not (name in grows and asked[name] > stored[name])
    ]
    if not differing:
        return
    shown = ", ".join(f"{name} ({stored[name]} there, {asked[name]} asked)" for name in differing)
    if is_finished(path) and set(differing) <= set(act_options):
        options = " ".join(f"--{name} {asked[name]}" for name in differing)
        raise UserError(
            f"{path}: is finished, with another {shown}; that needs no training: "
            f"python -m harness.evaluate {path} {options}"
        )
    raise UserError(
        f"{path / run_files.CONFIG}: this run has another {shown}; choose another run_dir or label, or add --restart"
    )


def check_identity(stored: dict, identity: dict, advice: str) -> None:
    """Raises UserError unless both are of the same data: the hashes of one are the other's."""
    if any(stored.get(name) != identity.get(name) for name in DATA_HASHES):
        raise UserError(f"{identity.get('path')}: the data set has changed {advice}")


# ---- The folder of a run in training ----


class RunFolder:
    """The files of one run, opened for training: a context manager that keeps other processes from it.

    Entering raises UserError where another process has the run, and for a damaged log; a process that ended, however it
    did, has none.
    """

    def __init__(self, run: RunConfig, config: Any, task: Task):
        """A folder that is new or checked by `check_folder`."""
        self.run, self.config, self.task = run, config, task
        self.path = run_path(run)
        make_folder(self.path, "run_dir")
        self.loggers: list = []  # beside the two CSV logs
        self.lock = locked(self.path / run_files.LOCK, busy(self.path))

    def __enter__(self) -> "RunFolder":
        with contextlib.ExitStack() as held:
            held.enter_context(self.lock)
            remove_abandoned(self.path)
            self.train_log = CsvLog(self.path / run_files.TRAIN_LOG)
            self.eval_log = CsvLog(self.path / run_files.EVAL_LOG, ("step", self.task.score_name))
            held.pop_all()  # the lock is kept
        return self

    def __exit__(self, *exception: object) -> None:
        for logger in self.loggers:
            logger.finish(failed=exception[0] is not None)
        self.lock.__exit__(*exception)

    def finished_before(self) -> dict | None:
        """What result.json holds if the run has made all updates that are asked for, which is printed; else None."""
        result = finished_result(self.path, self.run.total_updates)
        if result is not None:
            print(f"{self.path}: finished before, not trained again (--restart would)")
        return result

    def was_compiled(self) -> bool:
        """Whether the run's latest updates were made by compiled functions."""
        if not (self.path / run_files.ENVIRONMENT).exists():
            return False
        return read_environment(self.path)["compiled"]

    def begin_stretch(self, agent: torch.nn.Module, device: torch.device, compiled: bool, step: int) -> None:
        """Begins a stretch of updates: opens the loggers, deletes results of the agent as it was, writes the configs.

        environment.json holds the machine of every stretch. Prints what has changed since the last, where numbers may
        depend on it.
        """
        begun = (self.path / run_files.ENVIRONMENT).exists()
        before = read_environment(self.path) if begun else {"run_id": secrets.token_hex(8), "stretches": []}
        machine = describe_machine(device, compiled)
        stretches, changes = add_stretch(before["stretches"], step, machine)
        if changes:
            print(f"{self.path}: from update {step} on with {changes}; numbers may round differently than before")
        environment = {
            "algorithm": algorithm_name(type(self.config)),
            "harness_version": HARNESS_VERSION,
            "run_id": before["run_id"],  # names it in W&B
            "data": self.task.identity,
            "environment": self.task.record(),
            "parameters": sum(parameter.numel() for parameter in agent.parameters() if parameter.requires_grad),
            **machine,
            "command": sys.argv,
            "stretches": stretches,
        }
        shown = flat(self.run, self.config) | environment
        self.loggers = open_loggers(self.run, shown, environment["run_id"], self.path, step)  # first: it may be refused
        # environment.json first: a folder with a config has everything that a resume compares. A result goes before a
        # config of more updates comes, so that there never is one of fewer beside it.
        write_text(self.path / run_files.ENVIRONMENT, json.dumps(environment, indent=2) + "\n")
        for name in (run_files.RESULT, *run_files.SCORES, *sweep_files(agent.act_options)):  # of the agent as it was
            (self.path / name).unlink(missing_ok=True)
        write_text(self.path / run_files.CONFIG, config_to_yaml(self.run, self.config))

    def save_checkpoint(self, agent: torch.nn.Module, loop: dict) -> None:
        """Replaces checkpoint.pt: the agent's state and the loop's (`step`, generator of the batches, seconds)."""
        checkpoint = {
            "format": CHECKPOINT_FORMAT,
            "algorithm": algorithm_name(type(self.config)),
            "config": flat(self.run, self.config),
            "observation_dim": agent.observation_dim,
            "action_dim": agent.action_dim,
            "agent": state_of(agent),
            "loop": loop,
        }
        path = self.path / run_files.CHECKPOINT
        try:
            with replacing(path) as temporary:
                torch.save(checkpoint, temporary)
            if self.run.keep_checkpoints:
                self.keep_checkpoint(loop["step"])
        except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer, for a full disk
            raise UserError(
                f"{path}: cannot be written ({one_line(error, 120)}); the last one is kept: make room, "
                "and the same command continues from there"
            ) from error

    def keep_checkpoint(self, step: int) -> None:
        kept = checkpoint_folder(self.path, str(step))
        make_folder(kept, "run_dir")
        copy_files(self.path, kept, run_files.NEEDED_TO_LOAD)

    def resume(
        self, agent: torch.nn.Module, device: torch.device, batches: torch.Generator, online: OnlinePhase
    ) -> tuple[int, float]:
        """Brings all of them to where the checkpoint is; returns its (updates, seconds), zeros without one.

        Logged rows after its update are dropped.
        """
        path, last = self.path / run_files.CHECKPOINT, self.run.total_updates
        if not path.exists():
            self.keep_logs_until(0)
            print(f"{self.path}: {last:,} updates", flush=True)
            online.restore(0, None)
            return 0, 0.0
        checkpoint = read_checkpoint(path, algorithm_name(type(self.config)))
        state, loop, step = checkpoint["agent"], checkpoint["loop"], checkpoint["loop"]["step"]
        self.keep_logs_until(step)
        print(f"{self.path}: continuing after {step} of {last} updates", flush=True)
        if self.run.keep_checkpoints:
            self.keep_checkpoint(step)  # again: it may be the copy that could not be written
        if loop["device"] != device.type:
            print(f"now on {device.type} instead of {loop['device']}: random streams start anew from (seed, step)")
            seed = self.run.seed
            loop["batches"] = devices.seeded_generator(device, seed, devices.NEW_BATCH_STREAM, step).get_state()
            state["noise"] = devices.seeded_generator(device, seed, devices.NEW_NOISE_STREAM, step).get_state()
        batches.set_state(loop["batches"])
        with networks_must_fit(path):
            restore(agent, state)
        online.restore(step, loop["online"])
        return step, loop["seconds"]

    def keep_logs_until(self, step: int) -> None:
        self.train_log.keep_until(step)
        self.eval_log.keep_until(step)

    def log_training(self, row: dict) -> None:
        self.train_log.append(row)
        for logger in self.loggers:
            logger.log("training", row)

    def log_evaluation(self, row: dict) -> None:
        self.eval_log.append(row)
        for logger in self.loggers:
            logger.log("evaluation", row)

    def finish(self, step: int, seconds: float) -> dict:
        """Draws the learning curve and writes result.json, which marks the run as finished."""
        task = self.task
        scores = {int(row["step"]): float(row[task.score_name]) for row in self.eval_log.rows}
        last = list(scores.values())[-SCORE_EVALUATIONS:]
        if scores:
            from harness.plots import plot_learning_curve  # here: a run needs matplotlib at its end only

            plot_learning_curve(
                self.eval_log.rows,
                self.path / run_files.LEARNING_CURVE,
                task.score_name,
                task.reference_scores(),
                online_from=self.run.offline_steps if self.run.online_steps else None,
                title=f"{self.run.label}, seed {self.run.seed}",
            )
        result = {
            "score_name": task.score_name,
            "offline_score": scores.get(self.run.offline_steps),
            "score": last[-1] if last else None,  # None: there is no environment
            "score_last_evaluations": math.fsum(last) / len(last) if last else None,
            "evaluations_averaged": len(last),
            "episodes": task.episodes(self.run.eval_episodes),
            "step": step,
            "seconds": seconds,
        }
        write_text(self.path / run_files.RESULT, json.dumps(result, indent=2) + "\n")
        return result


# ---- Loading a run ----


def read_checkpoint(path: Path, algorithm: str) -> dict:
    """A checkpoint with its tensors on the CPU. Raises UserError where it is damaged or of another kind."""
    try:
        check_stored_zip(path)  # torch compares no checksums
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        known = checkpoint["format"], checkpoint["algorithm"]
    except Exception as error:  # torch.load raises many types for a damaged or foreign file
        reason = one_line(error, 120)
        raise UserError(
            f"{path}: is damaged or no checkpoint of a run ({reason}); put a good one back, or add --restart"
        ) from error
    if known != (CHECKPOINT_FORMAT, algorithm):
        raise UserError(
            f"{path}: is of format {known[0]} and algorithm {known[1]!r}, not {CHECKPOINT_FORMAT} and {algorithm!r}; "
            "put the right one back, or add --restart"
        )
    try:
        types = {"agent": dict, "loop": dict, "config": dict, "observation_dim": int, "action_dim": int}
        loop_types = {"step": int, "seconds": float, "device": str, "batches": torch.Tensor, "online": dict}
        whole = all(isinstance(checkpoint[name], kind) for name, kind in types.items())
        whole = whole and all(isinstance(checkpoint["loop"][name], kind) for name, kind in loop_types.items())
    except KeyError:
        whole = False
    if not whole:
        raise UserError(f"{path}: is no checkpoint that a run writes; put the right one back, or add --restart")
    return checkpoint


@contextlib.contextmanager
def networks_must_fit(path: Path) -> Iterator[None]:
    """Raises UserError where the block cannot load the checkpoint `path`: another version of the algorithm wrote it."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError) as error:  # what torch and a config's class raise
        raise UserError(
            f"{path}: does not fit this version of the algorithm ({one_line(error, 120)}); use the version that wrote "
            "it, or train anew with --restart"
        ) from error


def load_agent(agent_class: type, folder: Path, algorithm: str) -> torch.nn.Module:
    """The agent of a run's checkpoint, on the CPU. Raises UserError that says what is wrong with a bad one."""
    read_checkpoint(folder / run_files.CHECKPOINT, algorithm)
    with networks_must_fit(folder / run_files.CHECKPOINT):
        return agent_class.load(folder)


def load_run(run_dir: Path) -> tuple[Algorithm, RunConfig, Any]:
    """(algorithm, run, config) of a run folder. Raises UserError for a folder that holds no run with a checkpoint."""
    if not run_dir.is_dir():
        raise UserError(
            f"{run_dir}: there is no such folder; give the folder of a run, <run_dir>/<label>/<task>/seed_<n>"
        )
    for name in run_files.NEEDED_TO_LOAD:
        if not (run_dir / name).is_file():
            raise UserError(f"{run_dir}: holds no {name}; give the folder of a run that has written a checkpoint")
    algorithm = load_algorithm(read_json(run_dir / run_files.ENVIRONMENT, needed=("algorithm",))["algorithm"])
    return algorithm, *stored_config(run_dir / run_files.CONFIG, algorithm.config_class)


def load_trained_task(run_dir: Path, run: RunConfig, data_dir: str | None = None, draws: bool = False) -> Task:
    """The task of a trained run, by what the run has kept of it, without its data sets; to act and be evaluated in.

    data_dir: replaces the run's; draws: whether pictures will be drawn. Raises UserError where the data have changed.
    """
    stored = read_environment(run_dir)
    return load_environment(run.task, stored["environment"], stored["data"], data_dir or run.data_dir, draws)


def load_policy(run_dir: Path | str, **act_options: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A trained run as a function in the units of its simulator, for which the run folder is enough.

    It maps one observation [O] (a Dict's entries in the order of their keys) to the action [A] of the agent's
    `act(..., **act_options)`: it normalises the observation if the run did, and scales the action from [-1, 1] to
    the simulator's bounds; with chunks it gives the h * A numbers of one. Raises UserError for a folder without a run.
    """
    algorithm, _, _ = load_run(Path(run_dir))
    record = read_environment(Path(run_dir))["environment"]
    agent = load_agent(algorithm.agent_class, Path(run_dir), algorithm.name)
    low, high = np.asarray(record["action_low"]), np.asarray(record["action_high"])
    mean, std = (np.asarray(record.get(name, default)) for name, default in zip(NORMALIZATION, (0.0, 1.0), strict=True))

    def policy(observation: np.ndarray) -> np.ndarray:
        inputs = torch.as_tensor((observation - mean) / std, dtype=torch.float32)[None]
        action = agent.act(inputs, **act_options)[0].numpy()
        return low + (action + 1) / 2 * (high - low)

    return policy


def read_environment(folder: Path) -> dict:
    """What environment.json holds. Raises UserError where it is damaged or absent."""
    needed = ("data", "environment", "run_id", "harness_version", "compiled", "versions", "stretches")
    return read_json(folder / run_files.ENVIRONMENT, needed)


def read_json(path: Path, needed: Sequence[str]) -> dict:
    """A JSON object with the `needed` keys, each of its type. Raises UserError where the file is absent or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in needed if key not in content]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); put a good one back, or add --restart") from error
    if missing or not isinstance(content, dict):
        raise UserError(f"{path}: has no {', '.join(missing)}; put a good one back, or add --restart")
    for name, value in content.items():
        if not isinstance(value, JSON_TYPES.get(name, object)):
            raise UserError(f"{path}: {name} is {json.dumps(value)[:40]}; put a good one back, or add --restart")
    return content
