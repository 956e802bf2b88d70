"""The matrix of a comparison: which runs are trained, and which rows of the report they give.

`load_comparison(path)` reads it from its YAML file (docs/comparisons.md) and checks everything that needs no data.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Tuple

import yaml

from common.errors import UserError
from common.names import nearest_names
from harness.agent_tools import own_options
from harness.algorithms import load_algorithm
from harness.config import RunConfig, check_values, field_types, load_settings
from harness.config_file import as_yaml, decode, named, places_by_key, read_keys, read_mapping, shown
from harness.run_folder import run_path

CROSSED_OPTION = "num_candidates"  # the act option that every method which has it is evaluated at several values of
FILE_KEYS = dict.fromkeys(("name", "description", "config", "variant", "run_dir"), str)
FILE_KEYS |= dict.fromkeys(("seeds", CROSSED_OPTION), Tuple[int, ...])
FILE_KEYS |= dict.fromkeys(("tasks", "overrides", "algorithms"))  # read by themselves
REQUIRED_KEYS = ("name", "tasks", "seeds", "algorithms")
ENTRY_KEYS = dict.fromkeys(("algorithm", "label", "name", "config", "variant", "evaluation_of"), str)
ENTRY_KEYS |= dict.fromkeys(("overrides", "act"))
SET_FIELDS = ("task", "seed", "label", "run_dir", "sweep")  # of a run, which the comparison itself sets
Cell = dict[str, Any]  # act options with their values


# ---- What a matrix holds ----


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is trained: an algorithm, with overrides of its settings, under a label."""

    label: str
    algorithm: str
    overrides: dict[str, Any]  # the entry's own
    shared: dict[str, Any] = dataclasses.field(default_factory=dict)  # overrides of all entries
    settings: tuple[str | None, str | None] = (None, None)  # --config and --variant, where the file names them

    @functools.cached_property
    def agent_class(self) -> type:
        return load_algorithm(self.algorithm).agent_class


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One training: a variant on a task with a seed. Its two configs are complete; its folder follows from them."""

    variant: Variant
    task: str
    category: str
    seed: int
    run: RunConfig
    config: Any  # the method's

    @property
    def name(self) -> str:
        """LABEL/TASK/seed_N: the run's folder below the comparison's `runs`."""
        return f"{self.variant.label}/{self.task}/seed_{self.seed}"

    @property
    def folder(self) -> Path:
        return run_path(self.run)

    def own_cell(self) -> Cell:
        """All act options with the values of the run's config: what the evaluations during training use."""
        return own_options(self.variant.agent_class, self.config)

    def commands(self, cells: Sequence[Cell]) -> list[list[str]]:
        """The two command lines that the run is: its training, then its evaluation at `cells` of act options.

        Their folders are absolute, so that they mean the same on another machine that has them.
        """
        path, variant = self.variant.settings
        given = {"task": self.task, "seed": self.seed, "label": self.variant.label, "run_dir": self.run.run_dir}
        given |= {"config": path, "variant": variant}
        flags = {name: value for name, value in given.items() if value is not None}
        flags |= self.variant.shared | self.variant.overrides
        for name in ("run_dir", "data_dir", "config"):
            if flags.get(name) is not None:
                flags[name] = str(Path(flags[name]).expanduser().absolute())
        train = [sys.executable, "-m", self.variant.agent_class.__module__]
        train += [text for name, value in flags.items() for text in (f"--{name}", as_flag(value))]
        evaluate = [sys.executable, "-m", "harness.comparison.reevaluation", str(self.folder.absolute())]
        for cell in cells:
            evaluate += ["--act", ",".join(f"{name}={as_flag(value)}" for name, value in cell.items())]
        return [[*train, "--sweep", "[]"], evaluate]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the report: a variant's runs, acting with the options `act` (the config's where one is left out)."""

    label: str  # the variant's, or that of an entry with `evaluation_of`; rows that share it differ in N
    variant: Variant
    act: Cell
    name: str = ""  # for tables and figures, without N; empty: one that is made of label and act options

    @property
    def suffix(self) -> str:
        """N, where the row fixes it."""
        return f", N = {self.act[CROSSED_OPTION]}" if CROSSED_OPTION in self.act else ""

    @property
    def policy(self) -> str:
        """Differs between any two rows."""
        return self.label + self.suffix

    @property
    def shown_name(self) -> str:
        if self.name:
            return self.name
        own = self.variant.agent_class.__name__  # of the method as it is
        options = (f"{name} {value}" for name, value in self.act.items() if name != CROSSED_OPTION)
        return ", ".join([own if self.label == self.variant.algorithm else self.label, *options])

    @property
    def title(self) -> str:
        return self.shown_name + self.suffix

    def cell(self, run: PlannedRun) -> Cell:
        """All act options of this row for one of its variant's runs."""
        return run.own_cell() | self.act


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything that a matrix asks for. `out` is <run_dir>/comparisons/<name>; the run folders lie in `out`/runs."""

    name: str
    description: str
    path: Path  # the YAML file
    runs: tuple[PlannedRun, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    tasks: dict[str, tuple[str, ...]]  # by category
    out: Path

    def cells(self, run: PlannedRun) -> list[Cell]:
        """The distinct cells of act options that a run is evaluated at after its training, its own one first."""
        cells = [run.own_cell()]
        for row in self.rows:
            if row.variant.label == run.variant.label and row.cell(run) not in cells:
                cells.append(row.cell(run))
        return cells

    def variants(self) -> list[Variant]:
        return list({run.variant.label: run.variant for run in self.runs}.values())


def as_flag(value: Any) -> str:
    """A value as the command line of an algorithm takes it."""
    return value if isinstance(value, str) else as_yaml(value)


# ---- The file ----


def load_comparison(path: str | Path, run_dir: str | None = None) -> Comparison:
    """The comparison of a matrix file; run_dir replaces the file's. Raises UserError for what is wrong with the file.

    Nothing of the data sets is looked at.
    """
    path = Path(path)
    keys = read_keys(path, read_mapping(path), FILE_KEYS, "a comparison")
    missing = [key for key in REQUIRED_KEYS if key not in keys]
    if missing:
        raise UserError(f"{path}: has no {', '.join(missing)}; docs/comparisons.md describes the file")
    name, entries = keys["name"], keys["algorithms"]
    if name in ("", ".", "..") or "/" in name:
        raise UserError(f"{path}: name is {name!r}, it must name one folder, without slashes")
    if not isinstance(entries, yaml.SequenceNode):
        raise UserError(f"{path}: algorithms must be a list, not {shown(entries)}")
    keys["tasks"] = read_tasks(path, keys["tasks"])
    for key in ("seeds", CROSSED_OPTION):
        distinct(path, key, keys.setdefault(key, ()))
    out = (Path(run_dir or keys.get("run_dir", "runs")) / "comparisons" / name).expanduser()

    runs: dict[str, list[PlannedRun]] = {}  # by label
    rows: list[Row] = []
    for entry in (read_entry(path, node, keys) for node in entries.value):
        label = entry["label"]
        if label in {row.label for row in rows}:
            raise UserError(f"{entry['where']}: the label {label} is taken by an entry above it")
        if "algorithm" in entry:
            runs[label] = train(path, entry, keys, out / "runs")
        rows += rows_of(path, entry, runs, keys[CROSSED_OPTION])
    planned = tuple(run for group in runs.values() for run in group)
    if not planned:
        raise UserError(f"{path}: asks for no run, give algorithms, tasks and seeds")
    return Comparison(name, keys.get("description", ""), path, planned, tuple(rows), keys["seeds"], keys["tasks"], out)


def distinct(path: Path, name: str, values: Sequence) -> None:
    """Raises UserError where a value is there twice."""
    if len(set(values)) < len(values):
        raise UserError(f"{path}: {name} {list(values)} holds a value twice")


def read_tasks(path: Path, node: yaml.Node) -> dict[str, tuple[str, ...]]:
    """Tasks by category."""
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}: tasks must be lines such as `cube: [ogbench/...]`, not {shown(node)}")
    categories = places_by_key(path, node)
    tasks = {name: decode(value, Tuple[str, ...], f"{where}: {name}") for name, (value, where) in categories.items()}
    distinct(path, "tasks", [task for group in tasks.values() for task in group])
    return tasks


def read_entry(path: Path, node: yaml.Node, keys: dict[str, Any]) -> dict[str, Any]:
    """An item of `algorithms` with its label and place, and `config` and `variant` of all where it has none."""
    where = f"{path}: line {node.start_mark.line + 1}"
    if isinstance(node, yaml.ScalarNode):
        entry = {"algorithm": decode(node, str, f"{where}: an entry of algorithms")}
    else:
        entry = read_keys(path, node, ENTRY_KEYS, "an entry of algorithms")
    if ("algorithm" in entry) == ("evaluation_of" in entry):
        raise UserError(f"{where}: an entry has either `algorithm` or `evaluation_of`")
    if "evaluation_of" in entry and ("overrides" in entry or not {"label", "act"} <= entry.keys()):
        raise UserError(f"{where}: an entry with evaluation_of trains nothing: it has a label and act, no overrides")
    inherited = {name: keys[name] for name in ("config", "variant") if name in keys}
    return inherited | {"label": entry.get("algorithm"), "where": where} | entry


def method_fields(path: Path, node: yaml.Node | None, config_class: type) -> dict[str, Any]:
    """The decoded values of a mapping of config fields, none without a mapping. Raises UserError."""
    values = read_keys(path, node, field_types(config_class), config_class.__name__) if node is not None else {}
    for name in values.keys() & set(SET_FIELDS):
        raise UserError(f"{path}: {name} cannot be overridden, the comparison itself sets it")
    return values


def train(path: Path, entry: dict[str, Any], keys: dict[str, Any], run_dir: Path) -> list[PlannedRun]:
    """The runs of an entry on all tasks with all seeds. Raises UserError."""
    with named(entry["where"]):
        algorithm = load_algorithm(entry["algorithm"])
    shared, own = (method_fields(path, each.get("overrides"), algorithm.config_class) for each in (keys, entry))
    settings = entry["config"].replace("{algorithm}", algorithm.name) if "config" in entry else None
    variant = Variant(entry["label"], algorithm.name, own, shared, (settings, entry.get("variant")))
    runs = []
    for category, task in ((category, task) for category, tasks in keys["tasks"].items() for task in tasks):
        fixed = {"task": task, "label": entry["label"], "run_dir": str(run_dir), "sweep": ()}
        with named(entry["where"]):
            found = load_settings(algorithm.config_class, shared | own | fixed, *variant.settings)
            for seed in keys["seeds"]:
                run = dataclasses.replace(found.run, seed=seed)
                check_values(run, found.config)
                runs.append(PlannedRun(variant, task, category, seed, run, found.config))
    return runs


def rows_of(path: Path, entry: dict[str, Any], runs: dict[str, list[PlannedRun]], candidates: Sequence) -> list[Row]:
    """The rows of an entry: one, or one per value of `num_candidates` where the agent can be asked for it."""
    source, where = entry.get("evaluation_of", entry["label"]), entry["where"]
    if source not in runs:
        near = nearest_names(source, runs)
        raise UserError(f"{where}: evaluation_of {source!r} is no label of a trained entry above it{near}")
    if not runs[source]:
        return []
    run = runs[source][0]
    options = run.variant.agent_class.act_options
    act = method_fields(path, entry.get("act"), type(run.config))
    for name in act.keys() - set(options):
        known = ", ".join(options) or "none"
        raise UserError(f"{where}: {name} is not an option of {run.variant.algorithm}'s act, which has {known}")
    crossed = candidates if CROSSED_OPTION in options and CROSSED_OPTION not in act else ()
    cells = [act | {CROSSED_OPTION: value} for value in crossed] or [act]
    rows = [Row(entry["label"], run.variant, cell, entry.get("name", "")) for cell in cells]
    for row in rows:
        with named(f"{where}: {row.title}"):
            check_values(run.run, dataclasses.replace(run.config, **row.act))
    return rows
