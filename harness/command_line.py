"""The command line of every algorithm: settings by task, a flag for each field, several seeds.

pyrallis (0.3.1) makes the flags and the help from the two config classes; harness/config_file.py decodes the values.
"""

import argparse
import contextlib
import functools
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyrallis.argparsing
import pyrallis.help_formatter
import pyrallis.utils
from pyrallis.wrappers import DataclassWrapper

from common.errors import UserError, check_given_once, exit_on_user_error
from common.files import readable
from harness.config import RunConfig, Settings, decode_flag, field_types, load_settings
from harness.config_file import as_yaml, decode_text, form_of, unknown_field

GIGABYTES_PER_RUN = 3.0  # of a GPU, for the seeds that run at a time
OWN_FLAGS = {  # of the command itself; all others are fields
    "config": "settings file in place of configs/<algorithm>/<suite>.yaml",
    "variant": "take the entries of this name in the settings files too, e.g. online",
    "seeds": "train these seeds, each in a process of its own, as many at a time as fit",
    "show": "print every field with the source of its value, and stop",
    "restart": "remove the existing run of these settings, then train",
}


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    settings: Settings
    seeds: tuple[int, ...]  # of --seeds
    show: bool
    restart: bool


def main(agent_class: type, config_class: type) -> None:
    """Trains the run, or the runs, that the command line asks for."""
    with exit_on_user_error():
        command = parse_command(config_class, sys.argv[1:])
        if command.show:
            print(command.settings.shown())
            return
        files = ", ".join(readable(path) for path in command.settings.files)
        print(f"settings of {command.settings.run.task}: {files or 'the defaults, no settings file is for them'}")
        if command.seeds:
            raise SystemExit(train_seeds(sys.argv, command))
        from harness.train import train_run  # here: torch and the environments are not needed before

        train_run(agent_class, command.settings.run, command.settings.config, command.restart)


def parse_command(config_class: type, argv: list[str]) -> Command:
    """The command line `argv` (program name left out). Raises UserError, SystemExit(0) after printing the help."""
    parser = _parser(config_class)
    if "-h" in argv or "--help" in argv:
        parser.print_help()
        raise SystemExit(0)
    given = _parse_flags(parser, config_class, argv)
    own = {name: given.pop(name, None) for name in OWN_FLAGS}
    overrides = {name: decode_flag(config_class, name, text) for name, text in given.items()}
    seeds = _decode_seeds(own["seeds"] or [])
    if seeds and "seed" in overrides:
        raise UserError("command line: --seed and --seeds are both given, keep one")
    settings = load_settings(config_class, overrides, own["config"], own["variant"])
    return Command(settings, seeds, bool(own["show"]), bool(own["restart"]))


def _decode_seeds(texts: list[str]) -> tuple[int, ...]:
    seeds = tuple(decode_text(text, int, "--seeds") for text in texts)
    if len(set(seeds)) < len(seeds):
        raise UserError("command line: --seeds has a seed twice, give each once")
    return seeds


# ---- Several seeds ----


def train_seeds(argv: list[str], command: Command) -> int:
    """Runs the command once for each seed, as many processes at a time as fit; returns the largest exit code."""
    run = command.settings.run
    flag = next(index for index, text in enumerate(argv) if text.partition("=")[0] == "--seeds")
    shared = argv[:flag] + argv[flag + 1 + len(command.seeds) * (argv[flag] == "--seeds") :]
    from harness.comparison.workers import stop_with_parent  # here: it imports torch

    free = deque(_places(run, len(command.seeds)))
    stopped, processes = threading.Event(), []

    def train_one(seed: int) -> int:
        if stopped.is_set():
            return 0
        place = free.popleft()
        arguments = [sys.executable, "-u", *shared, "--seed", str(seed)]
        process = subprocess.Popen(
            arguments,
            env=os.environ | place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # the terminal's Ctrl-C reaches this process alone, which then stops each run once
            preexec_fn=stop_with_parent,
        )
        processes.append(process)
        for line in process.stdout:
            print(f"seed {seed}: {line}", end="", flush=True)
        code = process.wait()
        free.append(place)
        return code

    def stop(number: int, frame: Any) -> None:
        stopped.set()
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    with ThreadPoolExecutor(len(free)) as pool:
        codes = list(pool.map(train_one, command.seeds))
    for number, handler in previous.items():
        signal.signal(number, handler)
    return max(code if code >= 0 else 128 - code for code in codes)


def _places(run: RunConfig, seeds: int) -> list[dict[str, str]]:
    """Environment variables of the runs at a time: as many as have cores, on GPUs as many as their memory holds."""
    import torch  # here and below: flags and help need no torch

    from harness.comparison import workers
    from harness.devices import choose_device

    gpus = workers.visible_gpus() if choose_device(run.device).type == "cuda" else []
    places = max(1, workers.cores() // max(1, run.threads))
    if gpus:
        places = min(places, len(gpus) * max(1, int(torch.cuda.mem_get_info()[0] / 1e9 / GIGABYTES_PER_RUN)))
    return workers.slots_of(min(seeds, places), gpus)


# ---- Flags ----


class _HelpFormatter(pyrallis.help_formatter.SimpleHelpFormatter):
    """Shows types and defaults as they are written in YAML, and a field's comment even if it holds a `%`."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == 0:
            return ""
        if action.dest in OWN_FLAGS:
            return {"config": "FILE", "variant": "NAME", "seeds": "SEED ..."}[action.dest]
        form, item = form_of(action.type)
        if form == "choice":
            return "|".join(item)
        return {"scalar": "{}", "optional": "{}|null", "list": "[{}, ...]"}[form].format(item.__name__)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help
        if action.dest not in (*OWN_FLAGS, "help"):
            text = f"{text.strip()} (default: {as_yaml(action.default)})".strip()
        return text.replace("%", "%%")


class _Parser(pyrallis.argparsing.ArgumentParser):
    """pyrallis' parser, which hands back the flags' texts by name."""

    def _postprocessing(self, parsed_args: argparse.Namespace) -> dict[str, Any]:
        return vars(parsed_args)


@contextlib.contextmanager
def _sources_read_once() -> Iterator[None]:
    """Reads each class's source once within: pyrallis asks for it at every field, a parse of its file, 0.4 s in all."""
    getsource = inspect.getsource
    inspect.getsource = functools.cache(getsource)
    try:
        yield
    finally:
        inspect.getsource = getsource


@_sources_read_once()
def _parser(config_class: type) -> _Parser:
    field_types(config_class)  # raises TypeError for a type that no config may use
    pyrallis.utils.CONFIG_ARG = "config"  # read when a parser is made; pyrallis' own name is config_path
    usage = "%(prog)s [--config FILE] [--variant NAME] [--field value ...] [--seeds SEED ...] [--show] [--restart]"
    parser = _Parser(RunConfig, formatter_class=_HelpFormatter, usage=usage, allow_abbrev=False, exit_on_error=False)
    DataclassWrapper(config_class).add_arguments(parser)
    next(action for action in parser._actions if action.dest == "config").help = OWN_FLAGS["config"]
    parser.add_argument("--variant", default=argparse.SUPPRESS, help=OWN_FLAGS["variant"])
    parser.add_argument("--seeds", nargs="+", default=argparse.SUPPRESS, help=OWN_FLAGS["seeds"])
    for name in ("show", "restart"):
        parser.add_argument(f"--{name}", action="store_true", help=OWN_FLAGS[name])
    return parser


def _parse_flags(parser: _Parser, config_class: type, argv: list[str]) -> dict[str, Any]:
    """The given flags' texts (True for --show and --restart) by name."""
    check_given_once(argv)
    try:
        given, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        advice = "write --field value, --field=value where the value begins with a dash, and --restart alone"
        raise UserError(f"command line: {error.argument_name}: {error.message}, {advice}") from error
    if unknown and unknown[0].startswith("-"):
        name = unknown[0].lstrip("-").split("=")[0]
        known = (*field_types(config_class), *OWN_FLAGS)
        raise unknown_field("command line", f"--{name}", config_class.__name__, known)
    if unknown:
        advice = 'write --field value, a list as one argument in quotes: --field "[512, 512]"'
        raise UserError(f"command line: {unknown[0]!r} belongs to no flag, {advice}")
    return given
