"""The layers: no import runs back, no circle hides behind a late import, a file name has one place."""

import ast
from pathlib import Path

import pytest

from harness import run_files

ROOT = Path(__file__).resolve().parents[1]
# What the modules of a folder may import of this repository's own. Algorithm files import the harness in their guard
# only, dipole_lora its planner (tests/test_files_agree.py), and the harness finds them by their file names.
LAYERS = {
    "common": {"common"},
    "envs": {"common", "envs"},
    "harness": {"common", "envs", "harness"},
    "algorithms": {"harness", "algorithms"},
    "benchmarks": {"common", "envs", "harness", "algorithms", "benchmarks"},
    "examples": {"common", "envs", "harness", "algorithms", "examples"},
}
MODULES = [path for folder in LAYERS for path in sorted((ROOT / folder).rglob("*.py"))]


def file_of(module: str):
    """The file of one of this repository's modules, None for others."""
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imports(path: Path) -> set:
    """Files of the repository's own modules that a module imports, at its top or late."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if file_of(name) else node.module for name in names]
        found |= {file for name in names if (file := file_of(name))}
    return found - {path}


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_import_runs_back():
    back = [
        f"{place(path)} imports {place(file)}"
        for path in MODULES
        for file in imports(path)
        if place(file).split("/")[0] not in LAYERS[place(path).split("/")[0]]
    ]
    assert not back


def test_no_module_is_in_a_circle_not_even_by_a_late_import():
    done, open_path = set(), []

    def visit(path):
        if path in open_path:
            pytest.fail(" -> ".join(place(each) for each in [*open_path[open_path.index(path) :], path]))
        if path not in done:
            open_path.append(path)
            for file in sorted(imports(path)):
                visit(file)
            done.add(open_path.pop())

    for path in MODULES:
        visit(path)


def test_every_module_says_its_purpose_first():
    texts = {place(path): path.read_text(encoding="utf-8") for path in MODULES}
    assert not [name for name, text in texts.items() if text.strip() and not text.startswith('"""')]


def test_the_harness_names_the_files_of_a_run_in_one_place():
    """No other module has the name of a file of harness/run_files.py as a string of its own."""
    names = {name for name in run_files.ALL if "." in name}
    found = [
        f"{place(path)}:{node.lineno}: {node.value}"
        for path in sorted((ROOT / "harness").rglob("*.py"))
        if path != Path(run_files.__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert not found
