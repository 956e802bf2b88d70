"""What a run's numbers depend on beside its config: threads, device, versions and the code's commit."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "dm_control", "ogbench", "pyrallis")
# With others of these, sums may round differently.
ROUNDING = ("threads", "device", "compiled", "subnormals", "python", *PACKAGES)


def describe_machine(device: torch.device, compiled: bool) -> dict:
    """JSON-able: threads in force, compiled or eager, subnormals, device, platform, versions, commit and its state."""
    return {
        "threads": torch.get_num_threads(),
        "compiled": compiled,
        "subnormals": "rounded to 0",  # by devices.set_up_torch
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "platform": platform.platform(),
        "versions": {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def add_stretch(stretches: list[dict], step: int, machine: dict) -> tuple[list[dict], str]:
    """Notes that a run goes on with `machine` after `step` updates; returns (stretches, what may change its numbers).

    stretches: [{from_step, **machine}], a new one wherever the machine changed; what a killed process had begun after
    `step` is replaced. The second value is "" if nothing changed, else such as "threads 1 instead of 2".
    """
    kept = [stretch for stretch in stretches if stretch["from_step"] < step]
    if kept and {**kept[-1], "from_step": 0} == {**machine, "from_step": 0}:
        return kept, ""
    changes = []
    if kept:
        before, now = ({**values, **values["versions"]} for values in (kept[-1], machine))
        differing = [name for name in ROUNDING if now[name] != before.get(name)]
        changes = [f"{name} {now[name]} instead of {before.get(name)}" for name in differing]
    return [*kept, {"from_step": step, **machine}], ", ".join(changes)


def _git(*arguments: str) -> str | None:
    """What git says of the repository that this file is in; None where there is none."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
