"""The matrix of a comparison: which runs are trained, and which rows of the report they give.

`load_comparison(path)` reads it from its YAML file (docs/comparisons.md) and checks everything that needs no data.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Tuple

import yaml

from common.errors import UserError
from common.names import nearest_names
from harness.algorithms import ROOT, load_algorithm
from harness.config import RunConfig, check_values, field_types, load_settings
from harness.config_file import as_yaml, decode, nearest_field, places_by_key, read_mapping, shown, unknown_field
from harness.run_folder import run_path

CROSSED_OPTION = "num_candidates"  # the act option that every method which has it is evaluated at several values of
TOP_KEYS = ("name", "description", "config", "variant", "run_dir", "tasks", "seeds", "overrides", CROSSED_OPTION)
TOP_KEYS += ("algorithms",)
REQUIRED_KEYS = ("name", "tasks", "seeds", "algorithms")
ENTRY_KEYS = ("algorithm", "label", "name", "config", "variant", "overrides", "evaluation_of", "act")
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
        return {name: getattr(self.config, name) for name in act_options_of(self.variant.algorithm)}

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
        train = [sys.executable, str(script_of(self.variant.algorithm))]
        train += [text for name, value in flags.items() for text in (f"--{name}", as_flag(value))]
        evaluate = [sys.executable, "-m", "harness.comparison.reevaluation", str(self.folder.absolute())]
        evaluate += [text for cell in cells for text in ("--act", as_assignments(cell))]
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
        own = load_algorithm(self.variant.algorithm).agent_class.__name__  # of the method as it is
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


def script_of(algorithm: str) -> Path:
    return Path(sys.modules[load_algorithm(algorithm).agent_class.__module__].__file__ or ROOT)


def as_flag(value: Any) -> str:
    """A value as the command line of an algorithm takes it."""
    return value if isinstance(value, str) else as_yaml(value)


def as_assignments(cell: Cell) -> str:
    return ",".join(f"{name}={as_flag(value)}" for name, value in cell.items())


@functools.lru_cache(maxsize=None)
def act_options_of(algorithm: str) -> tuple[str, ...]:
    """Names of the act options of an algorithm."""
    return load_algorithm(algorithm).agent_class.act_options


# ---- Problems, told all at once ----


def problem_list(path: str | Path, problems: Sequence[str]) -> UserError:
    """One error for all problems."""
    if len(problems) == 1:
        return UserError(problems[0])
    return UserError("\n  ".join([f"{path}: {len(problems)} problems:", *problems]))


@contextlib.contextmanager
def collecting(problems: list[str]) -> Iterator[None]:
    """Collects a UserError's text in `problems` instead of raising it."""
    try:
        yield
    except UserError as error:
        problems.append(str(error))


# ---- The file ----


def load_comparison(path: str | Path, run_dir: str | None = None) -> Comparison:
    """The comparison of a matrix file; run_dir replaces the file's.

    Raises one UserError that lists everything that is wrong with the file.
    """
    comparison, problems = read_matrix(path, run_dir)
    if comparison is None or problems:
        raise problem_list(path, problems)
    return comparison


def read_matrix(path: str | Path, run_dir: str | None = None) -> tuple[Comparison | None, list[str]]:
    """The comparison as far as the file can be read (None: not at all), and what is wrong with it."""
    reader = Reader(Path(path))
    comparison = None
    with collecting(reader.problems):
        comparison = reader.read(run_dir)
    return comparison, list(dict.fromkeys(reader.problems))


class Entry(NamedTuple):
    """One item of `algorithms`: its texts, and the nodes of what is decoded with the algorithm's config."""

    label: str
    where: str
    settings: tuple[str | None, str | None]
    algorithm: str | None = None
    evaluation_of: str | None = None
    name: str | None = None
    overrides: yaml.MappingNode | None = None
    act: yaml.MappingNode | None = None


class Reader:
    """Reads one matrix file; what is wrong is added to `problems`, and reading goes on with the rest."""

    def __init__(self, path: Path):
        self.path = path
        self.problems: list[str] = []

    def read(self, run_dir: str | None) -> Comparison:
        """Raises UserError where nothing further can be read."""
        keys = self.mapping(read_mapping(self.path), TOP_KEYS, "a comparison")
        missing = [key for key in REQUIRED_KEYS if key not in keys]
        if missing:
            raise UserError(f"{self.path}: has no {', '.join(missing)}; docs/comparisons.md describes the file")
        name = self.value(keys, "name", str) or self.path.stem
        self.check_folder_name("name", name)
        self.shared, self.settings = self.node_of_mapping(keys, "overrides"), self.settings_of(keys)
        self.seeds = self.distinct(keys, "seeds")
        self.candidates = self.distinct(keys, CROSSED_OPTION)
        self.tasks = self.read_tasks(keys["tasks"])
        out = Path(run_dir or self.value(keys, "run_dir", str) or "runs") / "comparisons" / name
        self.out = out.expanduser()
        runs, rows = self.expand(self.read_entries(keys["algorithms"]))
        description = self.value(keys, "description", str) or ""
        return Comparison(name, description, self.path, tuple(runs), tuple(rows), self.seeds, self.tasks, self.out)

    def where(self, node: yaml.Node) -> str:
        return f"{self.path}: line {node.start_mark.line + 1}"

    def mapping(self, node: yaml.Node, known: Sequence[str] | None, of: str) -> dict[str, yaml.Node]:
        """The nodes of a mapping by key; `known` keys only, where given."""
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{self.where(node)}: {of} must be a mapping `key: value`, not {shown(node)}")
        keys = {}
        for name, (value, where) in places_by_key(self.path, node).items():
            if known is None or name in known:
                keys[name] = value
            else:
                nearest = nearest_field(name, known)
                advice = f"did you mean {nearest}?" if nearest else f"it has {', '.join(known)}"
                self.problems.append(f"{where}: {name} is not a key of {of}, {advice}")
        return keys

    def value(self, keys: dict[str, yaml.Node], name: str, kind: Any) -> Any:
        """The decoded value of a key; None where it is absent or wrong."""
        if name in keys:
            with collecting(self.problems):
                return decode(keys[name], kind, f"{self.where(keys[name])}: {name}")
        return None

    def distinct(self, keys: dict[str, yaml.Node], name: str) -> tuple[int, ...]:
        values = self.value(keys, name, Tuple[int, ...]) or ()
        if len(set(values)) < len(values):
            self.problems.append(f"{self.path}: {name} {list(values)} holds a value twice")
        return tuple(dict.fromkeys(values))

    def node_of_mapping(self, keys: dict[str, yaml.Node], name: str) -> yaml.MappingNode | None:
        node = keys.get(name)
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise UserError(f"{self.where(node)}: {name} must be a mapping, not {shown(node)}")
        return node

    def settings_of(self, keys: dict[str, yaml.Node]) -> tuple[str | None, str | None]:
        return self.value(keys, "config", str), self.value(keys, "variant", str)

    def check_folder_name(self, key: str, name: str) -> None:
        if "/" in name or name in ("", ".", ".."):
            self.problems.append(f"{self.path}: {key} is {name!r}, it names one folder, so leave out slashes")

    def read_tasks(self, node: yaml.Node) -> dict[str, tuple[str, ...]]:
        tasks, seen = {}, set()
        categories = self.mapping(node, None, "tasks")
        for category in categories:
            tasks[category] = self.value(categories, category, Tuple[str, ...]) or ()
            for task in tasks[category]:
                if "/" not in task:
                    self.problems.append(f"{self.path}: the task {task!r} must be written <suite>/<name>")
                if task in seen:
                    self.problems.append(f"{self.path}: the task {task} is listed twice")
                seen.add(task)
        return tasks

    def read_entries(self, node: yaml.Node) -> list[Entry]:
        if not isinstance(node, yaml.SequenceNode):
            raise UserError(f"{self.where(node)}: algorithms must be a list, not {shown(node)}")
        entries: list[Entry] = []
        for item in node.value:
            with collecting(self.problems):
                entry = self.read_entry(item)
                self.check_folder_name("label", entry.label)
                if entry.label in [other.label for other in entries]:
                    raise UserError(f"{entry.where}: the label {entry.label} is taken by an entry above it")
                entries.append(entry)
        return entries

    def read_entry(self, node: yaml.Node) -> Entry:
        where = self.where(node)
        if isinstance(node, yaml.ScalarNode):
            name = decode(node, str, f"{where}: an entry of algorithms")
            return Entry(name, where, self.settings, name)
        keys = self.mapping(node, ENTRY_KEYS, "an entry of algorithms")
        texts = {name: self.value(keys, name, str) for name in ("algorithm", "label", "name", "evaluation_of")}
        if bool(texts["algorithm"]) == bool(texts["evaluation_of"]):
            raise UserError(f"{where}: an entry has either `algorithm` or `evaluation_of`")
        if texts["evaluation_of"] and ("overrides" in keys or not texts["label"] or "act" not in keys):
            raise UserError(
                f"{where}: an entry with evaluation_of trains nothing: it has a label and act, no overrides"
            )
        path, variant = self.settings_of(keys)
        settings = (path or self.settings[0], variant or self.settings[1])
        nodes = {name: self.node_of_mapping(keys, name) for name in ("overrides", "act")}
        return Entry(**texts | {"label": texts["label"] or texts["algorithm"]}, where=where, settings=settings, **nodes)

    # -- Runs and rows --

    def expand(self, entries: list[Entry]) -> tuple[list[PlannedRun], list[Row]]:
        runs: dict[str, list[PlannedRun]] = {}
        for entry in entries:
            if entry.algorithm:
                with collecting(self.problems):
                    runs[entry.label] = self.train(entry)
        rows: list[Row] = []
        for entry in entries:
            source = entry.evaluation_of or entry.label
            if runs.get(source):
                with collecting(self.problems):
                    rows += self.rows(entry, runs[source][0])
            elif entry.evaluation_of and source not in runs:
                trained = [other.label for other in entries if other.algorithm]
                self.problems.append(
                    f"{entry.where}: evaluation_of {source!r} is no label of a trained entry of this file"
                    + nearest_names(source, trained)
                )
        return [run for group in runs.values() for run in group], rows

    def train(self, entry: Entry) -> list[PlannedRun]:
        """The entry's runs on all tasks with all seeds; problems of single tasks are noted. Raises UserError."""
        with self.named(entry.where):
            algorithm = load_algorithm(entry.algorithm)
        kinds = field_types(algorithm.config_class)
        shared, own = (self.fields(node, kinds, algorithm) for node in (self.shared, entry.overrides))
        path, selected = entry.settings
        path = path.replace("{algorithm}", algorithm.name) if path else None
        variant = Variant(entry.label, algorithm.name, own, shared, (path, selected))
        runs = []
        for category, task in ((category, task) for category, tasks in self.tasks.items() for task in tasks):
            with collecting(self.problems), self.named(f"{self.path}: {entry.label}"):
                fixed = {"task": task, "label": entry.label, "run_dir": str(self.out / "runs"), "sweep": ()}
                found = load_settings(algorithm.config_class, shared | own | fixed, path, selected)
                for seed in self.seeds:
                    run = dataclasses.replace(found.run, seed=seed)
                    check_values(run, found.config)
                    runs.append(PlannedRun(variant, task, category, seed, run, found.config))
        return runs

    @contextlib.contextmanager
    def named(self, where: str) -> Iterator[None]:
        """Puts `where` before the text of a UserError."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def fields(self, node: yaml.MappingNode | None, kinds: dict[str, Any], algorithm: Any) -> dict[str, Any]:
        """The decoded values of a mapping of config fields. Raises UserError."""
        values = {}
        for name, (value, where) in places_by_key(self.path, node).items() if node is not None else ():
            if name not in kinds:
                raise unknown_field(where, name, algorithm.config_class.__name__, kinds)
            if name in SET_FIELDS:
                raise UserError(f"{where}: {name} cannot be overridden, the comparison itself sets it")
            values[name] = decode(value, kinds[name], f"{where}: {name}")
        return values

    def rows(self, entry: Entry, run: PlannedRun) -> list[Row]:
        """The entry's rows: one, or one per value of `num_candidates` where the agent can be asked for it."""
        algorithm, options = load_algorithm(run.variant.algorithm), act_options_of(run.variant.algorithm)
        act = self.fields(entry.act, field_types(algorithm.config_class), algorithm)
        for name in act:
            if name not in options:
                known = ", ".join(options) or "none"
                raise UserError(f"{entry.where}: {name} is not an option of {algorithm.name}'s act, which has {known}")
        crossed = self.candidates if CROSSED_OPTION in options and CROSSED_OPTION not in act else ()
        cells = [act | {CROSSED_OPTION: value} for value in crossed] or [act]
        rows = [Row(entry.label, run.variant, cell, entry.name or "") for cell in cells]
        for row in rows:
            with self.named(f"{entry.where}: {row.title}"):
                try:
                    check_values(run.run, dataclasses.replace(run.config, **row.act))
                except ValueError as error:
                    raise UserError(str(error)) from error
        return rows
