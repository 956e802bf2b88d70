"""YAML values as the fields of a config, and what is wrong with them.

Values are decoded here, from the nodes of PyYAML's SafeLoader and by the same rules for file and command line, because
pyrallis 0.3.1 truncates 0.7 to 0, takes "false" for True and null for the text "None", and makes (5, 1, 2) of "512":

    str               text, quoted in YAML if it would read as something else (a flag's value: as it stands)
    int               a number without a fraction: 5000, 1_000_000, and 1e6 or 2.0, which are exact; not true or 010
    float             a finite number: 1, 0.5, 3e-4 (which YAML 1.1 takes for text); not nan, inf or anything quoted
    bool              true or false; not yes, on, 1 or anything quoted
    Literal["a", "b"] one of these texts
    Optional[X]       null, or an X (the text None is refused: null was meant)
    Tuple[X, ...]     a list: [512, 512], on the command line as one argument

What is wrong is a `UserError` of one sentence that names the file and line (or `command line`), the field and the fix.
"""

import contextlib
import difflib
import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from common.errors import UserError

# What papers and their released code call a field; the first name that the config has is suggested.
SYNONYMS = {
    "N": ("num_candidates",),
    "alpha": ("distillation_weight", "inverse_temperature", "bc_weight", "actor_bc_weight"),
    "beta": ("inverse_temperature",),
    "config_path": ("config",),
    "env": ("task",),
    "env_name": ("task",),
    "eval_freq": ("eval_interval",),
    "gamma": ("discount",),
    "k": ("shift",),
    "lr": ("learning_rate",),
    "max_timesteps": ("offline_steps",),
    "num_qs": ("num_critics",),
    "num_samples": ("num_candidates",),
    "omega": ("greediness",),
    "q_agg": ("value_aggregation", "pessimism"),
    "rho": ("pessimism",),
    "tau": ("target_rate",),
    "train_steps": ("offline_steps",),
}

NULL, STRING, BOOL, INT, FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "str", "bool", "int", "float"))
DIGITS = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
NUMBER = re.compile(r"[-+]?((0|[1-9][0-9_]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
EXPECTED = {  # type: (description, example)
    str: ("text (quoted where YAML reads it as something else)", '"name"'),
    int: ("a whole number", "10"),
    float: ("a finite number", "0.5"),
    bool: ("true or false (unquoted)", "true"),
}


def read_mapping(path: str | Path) -> yaml.MappingNode:
    """The node of a YAML file that holds one mapping. Raises UserError where it cannot be read or holds another."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}), give the path of a YAML file") from error
    root = compose(text, str(path))
    if root is None:
        raise UserError(f"{path}: holds no field, write at least one such as `seed: 0`")
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: must hold lines such as `seed: 0`, not {shown(root)}")
    return root


def places_by_key(path: str | Path, mapping: yaml.MappingNode) -> dict[str, tuple[yaml.Node, str]]:
    """{key: (node of its value, "<path>: line <n>")} of a mapping. Raises UserError for a key that is given twice."""
    places: dict[str, tuple[yaml.Node, str]] = {}
    for key, node in mapping.value:
        where = f"{path}: line {key.start_mark.line + 1}"
        name = key.value if isinstance(key, yaml.ScalarNode) else shown(key)
        if name in places:
            raise UserError(f"{where}: {name} is given twice, keep one")
        places[name] = node, where
    return places


def read_keys(path: str | Path, node: yaml.Node, kinds: dict[str, Any], owner: str) -> dict[str, Any]:
    """The values of a mapping by key, decoded as `kinds` says (None: left as the node). Raises UserError."""
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}: line {node.start_mark.line + 1}: write {owner} as `key: value`, not {shown(node)}")
    values = {}
    for name, (value, where) in places_by_key(path, node).items():
        if name not in kinds:
            nearest = nearest_field(name, kinds)
            advice = f"did you mean {nearest}?" if nearest else f"it has {', '.join(kinds)}"
            raise UserError(f"{where}: {name} is not a field of {owner}, {advice}")
        values[name] = value if kinds[name] is None else decode(value, kinds[name], f"{where}: {name}")
    return values


@contextlib.contextmanager
def named(where: str) -> Iterator[None]:
    """Puts `where` before the text of a UserError, or of what a config says of its values together."""
    try:
        yield
    except (UserError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def unknown_field(where: str, name: str, owner: str, known: Collection[str]) -> UserError:
    """What to say of a name that is not among the `known` fields of `owner`."""
    nearest = nearest_field(name.lstrip("-"), known)
    dashes = "--" if name.startswith("--") else ""
    advice = f"did you mean {dashes}{nearest}?" if nearest else "--help lists the fields"
    return UserError(f"{where}: {name} is not a field of {owner}, {advice}")


def nearest_field(name: str, known: Collection[str]) -> str | None:
    """What was probably meant by `name`: what papers call one of `known`, or the closest spelling; None for neither."""
    for meant in SYNONYMS.get(name, ()):
        if meant in known:
            return meant
    close = difflib.get_close_matches(name, known, n=1)
    return close[0] if close else None


def compose(text: str, where: str) -> yaml.Node | None:
    """Return the root node of a YAML text, None where it holds nothing but comments."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except (RecursionError, yaml.YAMLError) as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{where}: {line}not valid YAML ({problem}), correct or quote the value") from error


def decode(node: yaml.Node, kind: Any, where: str) -> Any:
    """Return a node's value as the field type `kind`; `where` names source and field in the UserError."""
    try:
        return _convert(node, kind)
    except ValueError as error:
        raise UserError(f"{where} must be {_expected(kind)}, not {shown(node)}") from error


def decode_text(text: str, kind: Any, flag: str) -> Any:
    """The value of a flag's text as the field type `kind`. Raises UserError."""
    form, item = form_of(kind)
    is_text = form == "choice" or item is str and form != "list" and text != "null"
    node = None if is_text else compose(text, f"command line: {flag}")
    return decode(node or yaml.ScalarNode(STRING, text), kind, f"command line: {flag}")


def _convert(node: yaml.Node, kind: Any) -> Any:
    """Return a node's value as the field type `kind`; raises ValueError where the node holds something else."""
    form, item = form_of(kind)
    if form == "optional":
        if node.value == "None":
            raise ValueError
        return None if node.tag == NULL else _convert(node, item)
    if form == "list":
        if not isinstance(node, yaml.SequenceNode):
            raise ValueError
        return tuple(_convert(element, item) for element in node.value)
    if form == "choice":
        if not isinstance(node, yaml.ScalarNode) or node.value not in item:
            raise ValueError
        return node.value  # plain `true` too, where it is one of the texts
    return _convert_scalar(node, kind)


def _convert_scalar(node: yaml.Node, kind: type) -> str | int | float | bool:
    text, plain = node.value, isinstance(node, yaml.ScalarNode) and node.style is None
    if kind is str and node.tag == STRING:
        return text
    if kind is bool and node.tag == BOOL and text.lower() in ("true", "false"):
        return text.lower() == "true"
    # A number without a point but with an exponent, 3e-4, is text in YAML 1.1.
    if kind in (int, float) and plain and node.tag in (INT, FLOAT, STRING) and NUMBER.fullmatch(text):
        number = float(text.replace("_", ""))
        if kind is float and math.isfinite(number):
            return number
        if kind is int and DIGITS.fullmatch(text):
            return int(text)
        if kind is int and number.is_integer() and abs(number) < 2**53:  # beyond that a float is not exact
            return int(number)
    raise ValueError


def form_of(kind: Any) -> tuple[str, Any]:
    """Return "scalar", "optional" (Optional[X]) or "list" (Tuple[X, ...]) and X; or "choice" and the Literal's texts.

    Raises TypeError for a type that a config must not use.
    """
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return "choice", arguments
    if arguments[1:] == (type(None),):
        return "optional", arguments[0]
    if arguments[1:] == (...,):
        return "list", arguments[0]
    if kind not in EXPECTED:
        raise TypeError(f"a config field must not have the type {kind}")
    return "scalar", kind


def _expected(kind: Any) -> str:
    form, item = form_of(kind)
    if form == "optional":
        return f"{_expected(item)}, or null"
    if form == "choice":
        return f"one of {', '.join(item)}"
    if form == "list":
        return f"a list such as [{EXPECTED[item][1]}, {EXPECTED[item][1]}]"
    return f"{EXPECTED[kind][0]} such as {EXPECTED[kind][1]}"


def shown(node: yaml.Node, depth: int = 2) -> str:
    """A node in at most one short line, with lists in lists to that depth: an alias can make an endless one."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping (configs are flat)"
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(shown(item, depth - 1) for item in node.value[:8]) if depth else '...'}]"
    text = " ".join(node.value.split())[:60]
    return text if node.style is None and text else f'"{text}"'


def as_yaml(value: Any) -> str:
    """A field's value as it is written in YAML."""
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.removesuffix("...\n").strip()  # PyYAML ends a bare scalar with a document mark
