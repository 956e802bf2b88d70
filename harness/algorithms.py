"""Finds the algorithms by their files: algorithms/<name>.py and algorithms/baselines/<name>.py.

Those of examples/, which change an algorithm, are found by their names, but are not listed among the algorithms.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("algorithms", "algorithms.baselines")
EXAMPLES = ("examples",)


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """One algorithm file: its name, and its config and agent classes."""

    name: str
    config_class: type
    agent_class: type


def algorithm_names() -> tuple[str, ...]:
    """The names of all algorithms, sorted."""
    return tuple(sorted(_modules(PACKAGES)))


def load_algorithm(name: str) -> Algorithm:
    """Imports the algorithm's file.

    Raises UserError for an unknown name, TypeError where the file does not define exactly one dataclass <Agent>Config.
    """
    modules = _modules(EXAMPLES + PACKAGES)
    if name not in modules:
        listed = algorithm_names()
        nearest = difflib.get_close_matches(Path(name).stem.lower(), listed, n=1)
        advice = f"did you mean {nearest[0]}?" if nearest else f"choose one of {', '.join(listed)}"
        raise UserError(f"there is no algorithm {name!r}, {advice}")
    module = importlib.import_module(modules[name])
    config_classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and value.__name__.endswith("Config")
        and value.__module__ == module.__name__
    ]
    if len(config_classes) != 1:
        raise TypeError(f"{module.__file__} must define one dataclass <Agent>Config, not {len(config_classes)}")
    agent_class = getattr(module, config_classes[0].__name__.removesuffix("Config"))
    return Algorithm(name, config_classes[0], agent_class)


def _modules(packages: Sequence[str]) -> dict[str, str]:
    """Module name by algorithm name."""
    return {
        path.stem: f"{package}.{path.stem}"
        for package in packages
        for path in ROOT.joinpath(*package.split(".")).glob("[!_]*.py")
    }
