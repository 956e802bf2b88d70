"""The requirement files: exact where a version matters, with the reason, and a lock that satisfies them."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements-lock.txt"
FILES = sorted(path for path in ROOT.glob("requirements*.txt") if path != LOCK)
NOT_LOCKED = {"ray", "nicegui", "tensorboard"}  # not among the tests' requirements: their own files pin them


def requirements(path: Path) -> list:
    """(requirement, its comment) of a file's own lines."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text, _, comment = line.partition("#")
        if text.strip() and not text.startswith("-r "):
            found.append((Requirement(text.strip()), comment.strip()))
    return found


def pins() -> dict:
    return {canonicalize_name(each.name): each for each, _ in requirements(LOCK)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_lock_satisfies_every_requirement(path):
    for requirement, _ in requirements(path):
        name = canonicalize_name(requirement.name)
        if name not in NOT_LOCKED:
            (pin,) = pins()[name].specifier
            assert requirement.specifier.contains(pin.version), f"{requirement}: locked at {pin.version}"


def test_every_line_of_the_lock_is_an_exact_version():
    for pin in pins().values():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin


def test_the_lock_is_complete():
    """Whatever a locked package asks for on this Python is locked too."""
    missing = []
    for name, pin in pins().items():
        if importlib.metadata.version(name).split("+")[0] != str(pin.specifier).removeprefix("=="):
            pytest.skip(f"{name} is installed in another version than the lock's")
        for text in importlib.metadata.requires(name) or ():
            needed = Requirement(text)
            wanted = needed.marker is None or needed.marker.evaluate({"extra": ""})
            if wanted and canonicalize_name(needed.name) not in pins():
                missing.append(f"{name} needs {needed.name}")
    assert not missing


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_exact_pin_has_its_reason_beside_it(path):
    unexplained = [
        str(requirement)
        for requirement, comment in requirements(path)
        if str(requirement.specifier).startswith("==") and not comment
    ]
    assert not unexplained
