"""The command line of every algorithm: `--config FILE`, `--field value` for each field, `--seeds 0 1 2`, `--restart`.

pyrallis (0.3.1) makes the flags and the help from a flat frozen dataclass whose fields all have defaults. Values are
decoded by harness/config_file.py, because pyrallis truncates 0.7 to 0, takes "false" for True and null for the text
"None", and makes (5, 1, 2) of "512". A flag overrides the file, and a file must be valid by itself.
"""

import argparse
import dataclasses
import sys
from typing import Any, Callable, Dict, List, Optional, Tuple

import pyrallis.argparsing
import pyrallis.help_formatter
import pyrallis.utils
import yaml

from common.errors import UserError, exit_on_user_error, one_line
from harness.config_file import (
    STRING,
    as_yaml,
    compose,
    decode,
    field_types,
    form_of,
    load_config,
    unknown_field,
)


def run_command(config_class: type, train: Callable[[List[Any], bool], Any]) -> None:
    """Train with the configs of `sys.argv`; `train(configs, restart)` removes earlier runs of them where asked to."""
    with exit_on_user_error():
        from harness.run_fields import check_run_fields  # here: heavy imports come after the flags are right

        configs, restart = parse_configs(config_class, sys.argv[1:])
        for config in configs:
            check_run_fields(config)
        train(configs, restart)


def parse_config(config_class: type, argv: List[str]) -> Any:
    """Return the one config of a command line (program name left out). Raises as `parse_configs`."""
    (config,), _ = parse_configs(config_class, argv)
    return config


def parse_configs(config_class: type, argv: List[str]) -> Tuple[List[Any], bool]:
    """Return a command line's configs, one for each of `--seeds`, and whether `--restart` was given.

    Raises UserError, TypeError for a field of a type that configs must not use, SystemExit(0) after printing the help.
    """
    field_types(config_class)
    parser = _parser(config_class)
    if "-h" in argv or "--help" in argv:
        parser.print_help()
        raise SystemExit(0)
    given = _parse_flags(parser, config_class, argv)
    restart = given.pop("restart", False)
    path = given.pop("config", None)
    seeds = _decode_seeds(given.pop("seeds", None), given)
    config = config_class() if path is None else load_config(config_class, path)
    overrides = {name: decode_flag(config_class, name, text) for name, text in given.items()}
    try:
        config = dataclasses.replace(config, **overrides)
    except ValueError as error:
        dashes = "--" if str(error).split(" ")[0] in overrides else ""
        raise UserError(f"command line: {dashes}{one_line(error, None)}") from error
    return [dataclasses.replace(config, seed=seed) for seed in seeds] if seeds else [config], restart


def _decode_seeds(texts: Optional[List[str]], given: Dict[str, Any]) -> List[int]:
    """The values of `--seeds`, none where it is not among the flags. Raises UserError."""
    if texts is None:
        return []
    seeds = [decode(_flag_node(text, int, "--seeds"), int, "command line: --seeds") for text in texts]
    if "seed" in given:
        raise UserError("command line: --seed and --seeds are both given, keep one")
    if len(set(seeds)) < len(seeds):
        raise UserError("command line: --seeds has a seed twice, give each once")
    return seeds


def decode_flag(config_class: type, name: str, text: str) -> Any:
    """The value of the config's field `name` that `--name text` gives. Raises UserError."""
    kind = field_types(config_class)[name]
    return decode(_flag_node(text, kind, f"--{name}"), kind, f"command line: --{name}")


class _HelpFormatter(pyrallis.help_formatter.SimpleHelpFormatter):
    """Shows types and defaults as they are written in YAML, and a field's comment even where it holds a `%`."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == 0:
            return ""
        if action.dest == "config":
            return "FILE"
        if action.dest == "seeds":
            return "SEED ..."
        form, item = form_of(action.type)
        return {"scalar": "{}", "optional": "{}|null", "list": "[{}, ...]"}[form].format(item.__name__)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help
        if action.dest not in ("help", "config", "seeds", "restart"):
            text = f"{text.strip()} (default: {as_yaml(action.default)})".strip()
        return text.replace("%", "%%")


class _Parser(pyrallis.argparsing.ArgumentParser):
    """pyrallis' parser, which hands back the flags' texts by name; its own decoding is described above."""

    def _postprocessing(self, parsed_args: argparse.Namespace) -> Dict[str, Any]:
        return vars(parsed_args)


def _parser(config_class: type) -> _Parser:
    pyrallis.utils.CONFIG_ARG = "config"  # read when a parser is made; pyrallis' own name is config_path
    usage = "%(prog)s [--config FILE] [--field value ...] [--seeds SEED ...] [--restart]"
    parser = _Parser(config_class, formatter_class=_HelpFormatter, usage=usage, allow_abbrev=False, exit_on_error=False)
    help_text = "train these seeds side by side in one process, each in its own run folder"
    parser.add_argument("--seeds", nargs="+", metavar="SEED", default=argparse.SUPPRESS, help=help_text)
    parser.add_argument("--restart", action="store_true", help="remove the existing run of this config, then train")
    return parser


def _parse_flags(parser: _Parser, config_class: type, argv: List[str]) -> Dict[str, Any]:
    """Return the given flags' texts (True for --restart) by name."""
    flags = [argument.split("=")[0] for argument in argv if argument.startswith("--")]
    for flag in flags:
        if flags.count(flag) > 1:
            raise UserError(f"command line: {flag} is given twice, keep one")
    try:
        given, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        advice = "write --field value, --field=value where the value begins with a dash, and --restart alone"
        raise UserError(f"command line: {error.argument_name}: {error.message}, {advice}") from error
    if unknown and unknown[0].startswith("-"):
        name = unknown[0].lstrip("-").split("=")[0]
        known = (*field_types(config_class), "config", "seeds", "restart")
        raise unknown_field("command line", "--", name, config_class, known)
    if unknown:
        advice = 'write --field value, a list as one argument in quotes: --field "[512, 512]"'
        raise UserError(f"command line: {unknown[0]!r} belongs to no flag, {advice}")
    return given


def _flag_node(text: str, kind: Any, flag: str) -> yaml.Node:
    is_text = kind in (str, Optional[str]) and text != "null"
    node = None if is_text else compose(text, f"command line: {flag}")
    return node or yaml.ScalarNode(STRING, text)
