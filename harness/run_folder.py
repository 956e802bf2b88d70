"""A run's folder: opening it for training, what it keeps of the run, and loading the run from it.

`<run_dir>/<label>/<task>/seed_<n>/` holds the files of harness/run_files.py. Every file but the CSVs is replaced as a
whole; a CSV row is whole or absent.
"""

import contextlib
import dataclasses
import importlib.metadata
import inspect
import json
import os
import platform
import secrets
import sys
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence, Tuple

import torch

from common.errors import UserError, one_line
from common.files import locked, make_folder, remove_abandoned, replacing, write_text
from common.untrusted import check_stored_zip
from harness import run_files
from harness.algorithms import Algorithm, load_algorithm
from harness.config_file import config_to_yaml, load_config
from harness.csv_log import CsvLog
from harness.run_fields import FREE_FIELDS

CHECKPOINT_FORMAT = 1  # raised when the layout of checkpoint.pt changes
FIRST_HARNESS_VERSION = 1  # of the runs that do not record one
HARNESS_VERSION = 2  # raised when the same config could give other numbers than before
# Of a data set's identity: what is learned from, and what decides its environment where that is a file too (Minari).
DATA_HASHES = ("sha256", "validation_sha256", "environment_sha256")
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "dm_control", "ogbench", "pyrallis")


def algorithm_name(config: Any) -> str:
    """The name of the file that defines the config's class: `dipole` of algorithms/dipole.py."""
    return Path(inspect.getfile(type(config))).stem


def label_of(config: Any) -> str:
    """The run's name in folders and tables."""
    return config.label or algorithm_name(config)


def run_path(config: Any) -> Path:
    return Path(config.run_dir).expanduser() / label_of(config) / config.task / f"seed_{config.seed}"


def is_finished(folder: Path) -> bool:
    """Whether the run in that folder has its result."""
    return (folder / run_files.RESULT).exists()


def remove_run(config: Any) -> None:
    """Says what the folder of this config's run holds and deletes the files that a run writes, and no others."""
    path = run_path(config)
    parts = sorted(path.glob(run_files.REPLAY_PARTS))
    files = [path / name for name in run_files.ALL if (path / name).exists()] + parts
    if not files:
        print(f"restart: {path} holds no run")
        return
    size = sum(file.stat().st_size for file in files)
    print(f"restart: deleting {', '.join(file.name for file in files)} ({size / 1e6:.1f} MB) in {path}")
    for file in files:
        file.unlink()
    if parts and not any((path / run_files.REPLAY_FOLDER).iterdir()):
        (path / run_files.REPLAY_FOLDER).rmdir()


class RunFolder:
    """The files of one run. Raises UserError where the folder is another run's or its checkpoint is unreadable."""

    def __init__(self, config: Any, identity: dict):
        """Opens the folder of `config`, new or begun, for data of that identity."""
        self.config, self.identity = config, identity
        self.path = run_path(config)
        make_folder(self.path, "run_dir")
        if not os.access(self.path, os.W_OK):
            raise UserError(f"{self.path}: cannot be written to; change its permissions or set run_dir elsewhere")
        self._refuse_other_run()
        self.train_log = CsvLog(self.path / run_files.TRAIN_LOG)
        self.eval_log = CsvLog(self.path / run_files.EVAL_LOG)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from this run. Raises UserError where one has it; a process that ended holds none."""
        refusal = f"{self.path}: another process is running this; wait for it or stop it"
        with locked(self.path / run_files.LOCK, refusal):
            remove_abandoned(self.path)
            yield

    def _refuse_other_run(self) -> None:
        config_path = self.path / run_files.CONFIG
        if not config_path.exists():
            begun = [name for name in (run_files.CHECKPOINT, run_files.RESULT) if (self.path / name).exists()]
            if begun:
                raise UserError(f"{self.path}: holds {begun[0]} without config.yaml; put that back, or add --restart")
            return
        try:
            stored = dataclasses.asdict(load_config(type(self.config), config_path))
        except UserError as error:
            raise UserError(f"{error}; or add --restart to begin this run anew") from error
        asked = dataclasses.asdict(self.config)
        differing = [
            f"{name} ({stored[name]} there, {asked[name]} asked)"
            for name in asked
            if name not in FREE_FIELDS and stored[name] != asked[name]
        ]
        if differing:
            raise UserError(
                f"{config_path}: this run has another {', '.join(differing)}; "
                "choose another run_dir or label, or add --restart"
            )
        stored_data = self.stored_environment()["data"]
        if any(name in stored_data and stored_data[name] != self.identity.get(name) for name in DATA_HASHES):
            raise UserError(
                f"{self.identity.get('path')}: the data set has changed since this run began in {self.path}; "
                "restore it, choose another run_dir or label, or add --restart"
            )
        version = self.stored_environment().get("harness_version", FIRST_HARNESS_VERSION)
        if version != HARNESS_VERSION and self.result() is None:
            raise UserError(
                f"{self.path}: this run began under harness version {version}, and this code is version "
                f"{HARNESS_VERSION}, which may give other numbers; finish it with that code, or add --restart"
            )

    def stored_environment(self) -> dict:
        """What environment.json holds. Raises UserError where it is damaged or absent."""
        return read_json(self.path / run_files.ENVIRONMENT, needed=("data", "run_id"))

    def result(self) -> Optional[dict]:
        """What result.json holds, None while the run is not finished."""
        path = self.path / run_files.RESULT
        return read_json(path, needed=("score", "step")) if is_finished(self.path) else None

    def describe(self, agent: torch.nn.Module, device: torch.device) -> None:
        """Writes config.yaml and environment.json; the latter follows the machine that the run continues on."""
        begun = (self.path / run_files.ENVIRONMENT).exists()
        versions = {"python": platform.python_version()}
        versions |= {package: _version(package) for package in PACKAGES}
        environment = {
            "algorithm": algorithm_name(self.config),
            "harness_version": HARNESS_VERSION,
            "run_id": self.stored_environment()["run_id"] if begun else secrets.token_hex(8),  # names it in W&B
            "data": self.identity,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
            "threads": torch.get_num_threads(),
            "parameters": sum(parameter.numel() for parameter in agent.parameters() if parameter.requires_grad),
            "platform": platform.platform(),
            "versions": versions,
            "command": sys.argv,
        }
        # environment.json first: a folder with a config has everything that a resume compares.
        write_text(self.path / run_files.ENVIRONMENT, json.dumps(environment, indent=2) + "\n")
        if not (self.path / run_files.CONFIG).exists():
            write_text(self.path / run_files.CONFIG, config_to_yaml(self.config))

    def save_checkpoint(self, agent: torch.nn.Module, loop: dict) -> None:
        """Replaces checkpoint.pt: the agent's state and the loop's (`step`, generator of the batches, seconds)."""
        checkpoint = {
            "format": CHECKPOINT_FORMAT,
            "algorithm": algorithm_name(self.config),
            "config": dataclasses.asdict(self.config),
            "observation_dim": agent.observation_dim,
            "action_dim": agent.action_dim,
            "agent": agent.state_dict(),
            "loop": loop,
        }
        path = self.path / run_files.CHECKPOINT
        try:
            with replacing(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer, for a full disk
            raise UserError(
                f"{path}: cannot be written ({one_line(error, 120)}); the last one is kept: make room, "
                "and the same command continues from there"
            ) from error

    def load_checkpoint(self) -> Optional[dict]:
        """The checkpoint with its tensors on the CPU, or None; logged rows after its step are dropped."""
        path = self.path / run_files.CHECKPOINT
        checkpoint = read_checkpoint(path, algorithm_name(self.config)) if path.exists() else None
        step = checkpoint["loop"]["step"] if checkpoint else 0
        self.train_log.keep_until(step)
        self.eval_log.keep_until(step)
        return checkpoint

    def save_result(self, result: dict) -> None:
        write_text(self.path / run_files.RESULT, json.dumps(result, indent=2) + "\n")


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
        loop_types = {"step": int, "seconds": float, "device": str, "batches": torch.Tensor}
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


def load_run(run_dir: Path) -> Tuple[Algorithm, Any]:
    """(algorithm, config) of a run folder. Raises UserError for a folder that holds no run with a checkpoint."""
    if not run_dir.is_dir():
        raise UserError(
            f"{run_dir}: there is no such folder; give the folder of a run, <run_dir>/<label>/<task>/seed_<n>"
        )
    for name in (run_files.ENVIRONMENT, run_files.CONFIG, run_files.CHECKPOINT):
        if not (run_dir / name).is_file():
            raise UserError(f"{run_dir}: holds no {name}; give the folder of a run that has written a checkpoint")
    algorithm = load_algorithm(read_json(run_dir / run_files.ENVIRONMENT, needed=("algorithm",))["algorithm"])
    return algorithm, load_config(algorithm.config_class, run_dir / run_files.CONFIG)


def read_json(path: Path, needed: Sequence[str]) -> dict:
    """A JSON object with the `needed` keys. Raises UserError where the file is absent or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in needed if key not in content]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); put a good one back, or add --restart") from error
    if missing or not isinstance(content, dict):
        raise UserError(f"{path}: has no {', '.join(missing)}; put a good one back, or add --restart")
    return content


def _version(package: str) -> Optional[str]:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
