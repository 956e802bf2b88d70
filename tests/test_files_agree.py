"""The rules of design: algorithm files agree with each other, stand alone, and hold nothing that is not used."""

import ast
import io
import re
import sys
import tokenize
from itertools import combinations
from pathlib import Path

import pytest

from harness.algorithms import algorithm_names, load_algorithm
from harness.run_fields import FREE_FIELDS, RUN_FIELDS

ROOT = Path(__file__).resolve().parents[1]
NAMES = algorithm_names()
PAIRS = list(combinations(NAMES, 2))
HARNESS = [*(ROOT / "harness").glob("*.py"), *(ROOT / "harness" / "training").glob("*.py")]  # what trains and evaluates
MAX_CODE_LINES = 450
MAX_TRAIN_LINES = 30
FIELD = re.compile(r"    (?P<name>\w+): (?P<type>.+?) = (?P<default>.+?)  # (?P<comment>.+)")


def path_of(name: str) -> Path:
    (path,) = (path for path in (ROOT / "algorithms").rglob(f"{name}.py"))
    return path


class OwnNames(ast.NodeTransformer):
    """Replaces an algorithm's own class names by placeholders."""

    def __init__(self, name: str):
        algorithm = load_algorithm(name)
        self.placeholders = {algorithm.config_class.__name__: "Config", algorithm.agent_class.__name__: "Agent"}

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self.placeholders.get(node.id, node.id)
        return node


def assigned_names(node: ast.Assign) -> list:
    return [part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)]


def definitions(name: str) -> dict:
    """{top-level name: its AST as text}, without the agent class and its config."""
    found, own = {}, OwnNames(name)
    for node in ast.parse(path_of(name).read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = assigned_names(node)
        else:
            continue
        dumped = ast.dump(own.visit(node))
        found |= {defined: dumped for defined in names if defined not in own.placeholders}
    return found


def config_lines(name: str) -> list:
    """The lines of the config class that declare a field or separate groups."""
    text = path_of(name).read_text().split(f"class {load_algorithm(name).config_class.__name__}:\n")[1]
    lines = []
    for line in text.splitlines():
        if line.startswith("    def ") or (line and not line.startswith("    ")):
            break
        lines.append(line)
    while lines and not lines[-1]:
        lines.pop()
    return lines


def config_fields(name: str) -> dict:
    """{field: (type, comment)}."""
    matches = [FIELD.fullmatch(line) for line in config_lines(name) if line]
    return {match["name"]: (match["type"], match["comment"]) for match in matches}


@pytest.mark.parametrize("first, second", PAIRS)
def test_same_name_same_code(first, second):
    ours, theirs = definitions(first), definitions(second)
    differing = [name for name in ours if name in theirs and ours[name] != theirs[name]]
    assert not differing, f"{first} and {second} define these differently: {differing}"
    assert {"train", "main"} <= ours.keys() & theirs.keys()


@pytest.mark.parametrize("first, second", PAIRS)
def test_shared_definitions_stand_in_the_same_order(first, second):
    ours, theirs = list(definitions(first)), list(definitions(second))
    assert [name for name in ours if name in theirs] == [name for name in theirs if name in ours]


@pytest.mark.parametrize("name", NAMES)
def test_the_methods_of_an_agent_stand_in_the_same_order(name):
    """The interface's, in the order in which a reader meets them; an algorithm's own methods stand between them."""
    order = ["__init__", "update", "losses", "act", "network_evaluations", "state_dict", "load_state_dict", "load"]
    agent = load_algorithm(name).agent_class.__name__
    (tree,) = (node for node in ast.parse(path_of(name).read_text()).body if getattr(node, "name", None) == agent)
    methods = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [method for method in methods if method in order] == order


@pytest.mark.parametrize("name", NAMES)
def test_run_fields_are_the_same_everywhere(name):
    """The first group of fields: equal text, so equal order, type, default and comment."""

    def first_group(lines: list) -> list:
        return lines[: lines.index("")]

    assert first_group(config_lines(name)) == first_group(config_lines("dipole"))
    assert tuple(FIELD.fullmatch(line)["name"] for line in first_group(config_lines(name))) == RUN_FIELDS
    assert set(FREE_FIELDS) <= set(RUN_FIELDS)


@pytest.mark.parametrize("name", NAMES)
def test_every_field_has_type_default_and_comment(name):
    for line in filter(None, config_lines(name)):
        match = FIELD.fullmatch(line)
        assert match, f"{name}: not a field with type, default and comment: {line}"
        assert "%" not in match["comment"], f"{name}: a % in {match['name']}'s comment breaks help formatting"


@pytest.mark.parametrize("first, second", PAIRS)
def test_same_field_same_meaning(first, second):
    ours, theirs = config_fields(first), config_fields(second)
    differing = {name: (ours[name], theirs[name]) for name in ours if name in theirs and ours[name] != theirs[name]}
    assert not differing, f"{first} and {second}: {differing}"


@pytest.mark.parametrize("name", NAMES)
def test_module_level_imports_only_what_a_copy_has(name):
    allowed = sys.stdlib_module_names | {"numpy", "torch"}
    for node in ast.parse(path_of(name).read_text()).body:
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module]
        for module in modules:
            assert module.split(".")[0] in allowed, f"{name}: imports {module} at module level"


@pytest.mark.parametrize("name", NAMES)
def test_no_hidden_state(name):
    """Module level holds a docstring, imports, constants, definitions and the guard; no environment variable is set."""
    tree = ast.parse(path_of(name).read_text())
    for number, node in enumerate(tree.body):
        is_docstring = number == 0 and isinstance(node, ast.Expr)
        is_guard = isinstance(node, ast.If) and "__name__" in ast.dump(node.test)
        kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
        is_constant = isinstance(node, ast.Assign) and all(map(str.isupper, assigned_names(node)))
        assert is_docstring or is_guard or is_constant or isinstance(node, kinds), ast.unparse(node)
    assert not attributes(path_of(name).read_text()) & {"environ", "putenv", "manual_seed_all", "set_num_threads"}


def attributes(text: str) -> set:
    return {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_read(name):
    shared = set().union(*(attributes(path.read_text()) for path in HARNESS))
    read = shared | attributes(path_of(name).read_text())
    assert not [field for field in config_fields(name) if field not in read]


@pytest.mark.parametrize("name", NAMES)
def test_length(name):
    text = path_of(name).read_text()
    tree = ast.parse(text)
    lines = set()
    ignored = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in ignored:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)
        if documented:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    assert len(lines) <= MAX_CODE_LINES
    (train,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train")
    assert train.end_lineno - train.lineno < MAX_TRAIN_LINES
