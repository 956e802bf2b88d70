"""The rules of design: algorithm files agree with each other, stand alone, and hold nothing that is not used."""

import ast
import dataclasses
import re
import sys
from itertools import combinations
from pathlib import Path

import pytest

from harness.algorithms import algorithm_names, load_algorithm
from harness.config import RunConfig
from tests.house import tokens_per_line
from tests.sync_blocks import blocks_of, files, name_of, synchronise

NAMES = algorithm_names()
PAIRS = list(combinations(NAMES, 2))
MAX_TOKENS_PER_LINE = 12.2
MAX_LINES = {"dipole": 380} | dict.fromkeys(("dipole_diffusion", "dipole_lora", "dql", "qsm"), 430)
MAX_LINES |= dict.fromkeys(("iql", "fql", "ifql", "rebrac"), 320)
FIELD = re.compile(r"    (?P<name>\w+): (?P<type>.+?) = (?P<default>.+?)  # (?P<comment>.+)")
GUARD = """if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[{depth}]))  # the repository, for envs/ and harness/
    from harness.command_line import main

    main({agent}, {agent}Config)
"""


def path_of(name: str) -> Path:
    return files()[name]


def text_of(name: str) -> str:
    return path_of(name).read_text()


def class_named(name: str, suffix: str = "") -> ast.ClassDef:
    """The agent's class of an algorithm file, or with the suffix "Config" its config's."""
    wanted = load_algorithm(name).agent_class.__name__ + suffix
    return next(node for node in ast.parse(text_of(name)).body if getattr(node, "name", None) == wanted)


def definitions(name: str) -> dict[str, str]:
    """{name of a block or of a class' method: its AST as text}; of a class itself, its bases and docstring."""
    found = {}
    for block, node in blocks_of(text_of(name)).items():
        if isinstance(node, ast.ClassDef):
            found |= {f"{block}.{name_of(part)}": ast.dump(part) for part in node.body if name_of(part)}
            node.body = [part for part in node.body if not name_of(part)]
        found[block] = ast.dump(node)
    return found


def config_fields(name: str) -> dict[str, tuple[str, str]]:
    """{field: (type, comment)} of the lines that declare one."""
    node = class_named(name, "Config")
    lines = text_of(name).splitlines()
    fields = {}
    for part in node.body:
        if isinstance(part, ast.AnnAssign):
            match = FIELD.fullmatch(lines[part.lineno - 1])
            assert match, f"{name}: not a field with type, default and comment: {lines[part.lineno - 1]}"
            fields[match["name"]] = (match["type"], match["comment"])
    return fields


@pytest.mark.parametrize("first, second", PAIRS)
def test_same_name_same_code(first, second):
    """What both define is equal and in the same order; of a class, the methods that both have."""
    ours, theirs = definitions(first), definitions(second)
    differing = [name for name in ours if name in theirs and ours[name] != theirs[name]]
    assert not differing, f"{first} and {second} differ in {differing}; run `python -m tests.sync_blocks`"
    assert [name for name in ours if name in theirs] == [name for name in theirs if name in ours]


def test_blocks_are_copied_from_the_first_file_that_defines_them():
    texts = {name: text_of(name) for name in files()}
    assert synchronise(dict(texts)) == texts
    changed = texts["dipole"].replace("* error.square()", "* error * error").replace("(x)", "(x )")
    assert changed != texts["dipole"]
    synchronised = synchronise(texts | {"dipole": changed})
    assert "* error * error" in synchronised["iql"] and "error.square()" not in synchronised["ifql"]
    assert "def uniform" not in synchronised["iql"] and "def integers" in synchronised["qsm"]


@pytest.mark.parametrize("name", NAMES)
def test_the_methods_of_an_agent_stand_in_the_same_order(name):
    """The interface's, in the order in which a reader meets them; an algorithm's own methods stand between them."""
    order = ["__init__", "update", "draw", "loss", "act", "load"]
    methods = [node.name for node in class_named(name).body if isinstance(node, ast.FunctionDef)]
    assert [method for method in methods if method in order] == order
    kept_of_torch = {"state_dict", "load_state_dict"} - set(methods)
    assert len(kept_of_torch) == (0 if name == "dipole_lora" else 2), "state_dict is torch's own"


@pytest.mark.parametrize("name", NAMES)
def test_fields_are_the_methods_own_and_have_type_default_and_comment(name):
    fields = config_fields(name)
    assert list(fields) == [field.name for field in dataclasses.fields(load_algorithm(name).config_class)]
    assert not fields.keys() & {field.name for field in dataclasses.fields(RunConfig)}
    for field, (_, comment) in fields.items():
        assert "%" not in comment, f"{name}: a % in {field}'s comment breaks help formatting"


@pytest.mark.parametrize("first, second", PAIRS)
def test_same_field_same_meaning(first, second):
    ours, theirs = config_fields(first), config_fields(second)
    differing = {name: (ours[name], theirs[name]) for name in ours if name in theirs and ours[name] != theirs[name]}
    assert not differing, f"{first} and {second}: {differing}"


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_read(name):
    planner = path_of(name).with_name("_planner.py").read_text() if name == "dipole_lora" else ""
    nodes = list(ast.walk(ast.parse(text_of(name) + planner)))
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    constants = {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert not [field for field in config_fields(name) if field not in read | constants]


@pytest.mark.parametrize("name", NAMES)
def test_module_level_imports_only_what_a_copy_has(name):
    for node in ast.parse(text_of(name)).body:
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module]
        for module in modules:
            assert module.split(".")[0] in sys.stdlib_module_names | {"torch"}, f"{name}: imports {module}"


@pytest.mark.parametrize("name", NAMES)
def test_no_hidden_state(name):
    """Module level holds docstring, imports, constants, definitions and the guard; no environment variable is set."""
    tree = ast.parse(text_of(name))
    for number, node in enumerate(tree.body):
        is_docstring = number == 0 and isinstance(node, ast.Expr)
        is_guard = isinstance(node, ast.If) and node is tree.body[-1]
        kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
        constants = [
            part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
        ]
        is_constant = isinstance(node, ast.Assign) and all(map(str.isupper, constants))
        assert is_docstring or is_guard or is_constant or isinstance(node, kinds), ast.unparse(node)
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & {"environ", "putenv", "manual_seed_all", "set_num_threads"}


@pytest.mark.parametrize("name", NAMES)
def test_the_guard_is_all_that_knows_the_harness(name):
    agent = load_algorithm(name).agent_class.__name__
    body, guard = text_of(name).split('if __name__ == "__main__":')
    depth = 1 + ("baselines" in path_of(name).parts)
    assert 'if __name__ == "__main__":' + guard == GUARD.format(agent=agent, depth=depth)
    code = ast.unparse(ast.parse(body).body[1:])
    assert not re.search(r"\b(import|from) (harness|envs|common)\b", code)
    neighbours = ["from algorithms._planner import make_planner"] if name == "dipole_lora" else []
    assert re.findall(r"\b(?:from|import) algorithms\b.*", code) == neighbours


def test_tokens_per_line_by_hand():
    config = "class AConfig:\n    y: int = 1\n\n\n"
    function = 'def f(a):\n    """Its."""\n    return (\n        a\n    )\n'
    text = '"""A docstring."""\n\nx = f(1)  # six\n\n\n' + config + function
    assert tokens_per_line(text) == (6 + 6 + 2 + 1 + 1) / 5


@pytest.mark.parametrize("name", NAMES)
def test_length_and_density(name):
    text = text_of(name)
    assert len(text.splitlines()) <= MAX_LINES[name]
    assert tokens_per_line(text) <= MAX_TOKENS_PER_LINE
