"""docs/architecture.md draws every import between the parts; no circles, a purpose first, a file name in one place."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from harness import run_files

ROOT = Path(__file__).resolve().parents[1]
DIAGRAM = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```mermaid")[1].split("```")[0]
# name["path, path"] of the diagram: the longest path that a module begins with says where it belongs
PARTS = {path: name for name, paths in re.findall(r'(\w+)\["([^"]+)"\]', DIAGRAM) for path in re.split(r",\s*", paths)}


def module_files():
    return [path for folder in ("algorithms", "envs", "harness") for path in sorted((ROOT / folder).rglob("*.py"))]


def part_of(path: Path) -> str:
    place = path.relative_to(ROOT).as_posix()
    return PARTS[max((prefix for prefix in PARTS if place.startswith(prefix)), key=len)]


def file_of(module: str):
    """The file of one of this repository's modules, None for others."""
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imports(path: Path):
    """(imported file, whether at the top of the module) of the repository's own modules."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        files = {file for name in names if (file := file_of(name))}
        # `from package import module` imports the package's file too, which says nothing where it is empty
        for file in files if len(files) == 1 else {file for file in files if file.name != "__init__.py"}:
            yield file, id(node) in top


def test_the_diagram_draws_every_import_between_the_parts():
    drawn = {
        (first, second, arrow == "-->")
        for first, arrow, second in re.findall(r"^\s*(\w+)(?:\[[^\]]*\])? (-->|-\.->) (\w+)", DIAGRAM, re.M)
    }
    found = {
        (part_of(path), part_of(file), at_top)
        for path in module_files()
        for file, at_top in imports(path)
        if part_of(path) != part_of(file)
    }
    assert found == drawn


def test_no_module_is_in_a_circle():
    edges = defaultdict(set)
    for path in module_files():
        edges[path] |= {file for file, at_top in imports(path) if at_top and file != path}
    done, open_path = set(), []

    def visit(path):
        if path in open_path:
            circle = [*open_path[open_path.index(path) :], path]
            pytest.fail(" -> ".join(str(each.relative_to(ROOT)) for each in circle))
        if path not in done:
            open_path.append(path)
            for file in sorted(edges[path]):
                visit(file)
            done.add(open_path.pop())

    for path in list(edges):
        visit(path)


def test_every_module_says_its_purpose_first():
    without = [str(path.relative_to(ROOT)) for path in module_files() if path.read_text(encoding="utf-8")[:3] != '"""']
    empty = {str(path.relative_to(ROOT)) for path in module_files() if not path.read_text(encoding="utf-8").strip()}
    assert set(without) - empty == set()


def test_the_harness_names_the_files_of_a_run_in_one_place():
    """No other module has the name of a file of harness/run_files.py as a string of its own."""
    names = {name for name in run_files.ALL if "." in name}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path in sorted((ROOT / "harness").rglob("*.py"))
        if path != Path(run_files.__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert not found
