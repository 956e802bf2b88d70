"""Reads the matrix of a comparison from its YAML file and lists everything that is wrong with it.

`load_comparison(path)` checks everything that needs no data. harness/compare.py checks the rest and runs it.
docs/comparisons.md describes the file.
"""

import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import yaml

from common.errors import UserError
from harness.algorithms import Algorithm, load_algorithm
from harness.comparison.matrix import CROSSED_OPTION, Comparison, PlannedRun, Row, Variant, act_options_of
from harness.comparison.problems import noting, problem_list
from harness.config_file import compose, decode, decode_fields, load_config, nearest_field, shown
from harness.run_fields import check_run_fields

TOP_KEYS = (
    "name",
    "description",
    "config",
    "run_dir",
    "tasks",
    "seeds",
    "overrides",
    "num_candidates",
    "algorithms",
)
REQUIRED_KEYS = ("name", "config", "tasks", "seeds", "algorithms")
ENTRY_KEYS = ("algorithm", "label", "overrides", "evaluation_of", "act")
MATRIX_FIELDS = ("task", "seed", "label", "run_dir", "final_report")  # config fields that the matrix sets itself
PLACEHOLDERS = ("algorithm", "suite", "category", "task")  # of the matrix's `config`; task: the name's last part
DEFAULT_RUN_DIR = "runs"


def load_comparison(path: Union[str, Path], run_dir: Optional[str] = None) -> Comparison:
    """The comparison of a matrix file. Raises one UserError that lists everything that is wrong with it."""
    comparison, problems = read_matrix(path, run_dir)
    if comparison is None or problems:
        raise problem_list(path, problems)
    return comparison


def read_matrix(path: Union[str, Path], run_dir: Optional[str] = None) -> Tuple[Optional[Comparison], List[str]]:
    """The comparison as far as the file can be read (None: not at all), and what is wrong with it.

    run_dir replaces the file's. Looks at the file, the configs it names and the algorithms, at nothing else.
    """
    problems: List[str] = []
    comparison = None
    with noting(problems):
        comparison = Reader(Path(path), problems).read(run_dir)
    return comparison, list(dict.fromkeys(problems))


@dataclasses.dataclass
class Entry:
    """One item of `algorithms` as it is written; `node` of overrides and act, which are decoded with a config."""

    label: str
    algorithm: Optional[str] = None
    evaluation_of: Optional[str] = None
    overrides: Optional[yaml.MappingNode] = None
    act: Optional[yaml.MappingNode] = None


class Reader:
    """Reads one matrix file; what is wrong is added to `problems`, and reading goes on with the rest."""

    def __init__(self, path: Path, problems: List[str]):
        self.path, self.problems = path, problems

    def read(self, run_dir: Optional[str]) -> Comparison:
        """Raises UserError where nothing further can be read."""
        keys = self._mapping(self._root(), TOP_KEYS, "a comparison")
        missing = [key for key in REQUIRED_KEYS if key not in keys]
        if missing:
            raise UserError(f"{self.path}: has no {', '.join(missing)}; docs/comparisons.md describes the file")
        name = self._value(keys, "name", str) or self.path.stem
        if "/" in name or name in (".", ".."):
            self.problems.append(f"{self.path}: name is {name!r}, it names one folder, so leave out slashes")
        self.pattern = self._value(keys, "config", str) or ""
        self.seeds = self._distinct(self._value(keys, "seeds", Tuple[int, ...]) or (), "seeds")
        self.candidates = self._distinct(self._value(keys, CROSSED_OPTION, Tuple[int, ...]) or (), CROSSED_OPTION)
        self.shared = keys.get("overrides")
        self.tasks = self._tasks(keys["tasks"])
        self.out = Path(run_dir or self._value(keys, "run_dir", str) or DEFAULT_RUN_DIR) / "comparisons" / name
        self._check_pattern()
        entries = self._entries(keys["algorithms"])
        runs, rows = self._expand(entries)
        description = self._value(keys, "description", str) or ""
        return Comparison(
            name, description, self.path, tuple(runs), tuple(rows), self.seeds, self.tasks, self.out.expanduser()
        )

    # -- YAML nodes --

    def _root(self) -> yaml.Node:
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path}: cannot be read ({error}), give the path of a comparison's YAML") from error
        root = compose(text, str(self.path))
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{self.path}: must hold lines such as `name: quickstart`; see docs/comparisons.md")
        return root

    def _where(self, node: yaml.Node) -> str:
        return f"{self.path}: line {node.start_mark.line + 1}"

    def _mapping(self, node: yaml.Node, known: Optional[Sequence[str]], of: str) -> Dict[str, yaml.Node]:
        """The nodes of a mapping by key; `known` keys only, where given."""
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{self._where(node)}: {of} must be a mapping `key: value`, not {shown(node)}")
        keys: Dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else shown(key)
            if known is not None and name not in known:
                nearest = nearest_field(name, known)
                advice = f"did you mean {nearest}?" if nearest else f"it has {', '.join(known)}"
                self.problems.append(f"{self._where(key)}: {name} is not a key of {of}, {advice}")
            elif name in keys:
                self.problems.append(f"{self._where(key)}: {name} is given twice, keep one")
            else:
                keys[name] = value
        return keys

    def _value(self, keys: Dict[str, yaml.Node], name: str, kind: Any) -> Any:
        """The decoded value of a key; None where it is absent or wrong."""
        if name in keys:
            with noting(self.problems):
                return decode(keys[name], kind, f"{self._where(keys[name])}: {name}")
        return None

    def _distinct(self, values: Tuple[int, ...], name: str) -> Tuple[int, ...]:
        if len(set(values)) != len(values):
            self.problems.append(f"{self.path}: {name} {list(values)} holds a value twice, keep one")
        return tuple(dict.fromkeys(values))

    def _tasks(self, node: yaml.Node) -> Dict[str, Tuple[str, ...]]:
        """Task names by category. Raises UserError for something else."""
        categories = self._mapping(node, None, "tasks")
        tasks = {category: self._value(categories, category, Tuple[str, ...]) or () for category in categories}
        names = [name for group in tasks.values() for name in group]
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                self.problems.append(f"{self._where(node)}: the task {name} is listed twice, keep one")
            if not all(name.split("/")) or "/" not in name:
                self.problems.append(f"{self._where(node)}: the task {name!r} must be written <suite>/<name>")
        return tasks

    # -- Entries --

    def _check_pattern(self) -> None:
        try:
            self.pattern.format(**dict.fromkeys(PLACEHOLDERS, ""))
        except (KeyError, IndexError, ValueError) as error:
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise UserError(f"{self.path}: config {self.pattern!r} may hold {known} only ({error})") from error

    def _entries(self, node: yaml.Node) -> List[Entry]:
        if not isinstance(node, yaml.SequenceNode):
            raise UserError(f"{self._where(node)}: algorithms must be a list, not {shown(node)}")
        entries: List[Entry] = []
        for item in node.value:
            with noting(self.problems):
                entry = self._entry(item)
                if entry.label in [other.label for other in entries]:
                    raise UserError(f"{self._where(item)}: the label {entry.label} is taken by an entry above it")
                entries.append(entry)
        return entries

    def _entry(self, node: yaml.Node) -> Entry:
        if isinstance(node, yaml.ScalarNode):
            return Entry(label=node.value, algorithm=node.value)
        keys = self._mapping(node, ENTRY_KEYS, "an entry of algorithms")
        texts = {name: self._value(keys, name, str) for name in ("algorithm", "label", "evaluation_of")}
        given = [name for name in ("algorithm", "evaluation_of") if texts[name]]
        if len(given) != 1:
            raise UserError(f"{self._where(node)}: an entry has either `algorithm` or `evaluation_of`")
        if given == ["evaluation_of"] and ("overrides" in keys or not texts["label"] or "act" not in keys):
            raise UserError(
                f"{self._where(node)}: an entry with evaluation_of trains nothing: it has a label and act, no overrides"
            )
        for name in ("overrides", "act"):
            if name in keys and not isinstance(keys[name], yaml.MappingNode):
                raise UserError(f"{self._where(keys[name])}: {name} must be a mapping, not {shown(keys[name])}")
        label = texts.pop("label") or texts["algorithm"]
        return Entry(label, **texts, overrides=keys.get("overrides"), act=keys.get("act"))

    # -- Runs and rows --

    def _expand(self, entries: List[Entry]) -> Tuple[List[PlannedRun], List[Row]]:
        runs: List[PlannedRun] = []
        variants: Dict[str, Variant] = {}
        configs: Dict[str, Any] = {}
        for entry in entries:
            if entry.algorithm:
                with noting(self.problems):
                    planned = self._train(entry)
                    runs += planned
                    if planned:
                        variants[entry.label], configs[entry.label] = planned[0].variant, planned[0].config
        rows: List[Row] = []
        for entry in entries:
            source = entry.evaluation_of or entry.label
            if source in variants:
                with noting(self.problems):
                    rows += self._rows(entry, variants[source], configs[source])
            elif entry.evaluation_of and source not in [other.label for other in entries if other.algorithm]:
                self.problems.append(
                    f"{self.path}: {entry.label}: evaluation_of {source!r} is no label of a trained entry of this file"
                )
        return runs, rows

    def _train(self, entry: Entry) -> List[PlannedRun]:
        """The entry's runs on all tasks with all seeds; problems of single tasks are noted. Raises UserError."""
        try:
            algorithm = load_algorithm(entry.algorithm)
        except UserError as error:
            raise UserError(f"{self.path}: algorithms: {error}") from error
        overrides = self._overrides(algorithm.config_class, entry.overrides)
        shared = self._overrides(algorithm.config_class, self.shared)
        variant = Variant(entry.label, algorithm.name, overrides)
        runs = []
        for category, tasks in self.tasks.items():
            for task in tasks:
                with noting(self.problems):
                    path = self._config_path(algorithm, category, task)
                    config = self._config(algorithm, path, shared | overrides)
                    for seed in self.seeds:
                        changes = {"task": task, "label": entry.label, "seed": seed, "run_dir": str(self.out / "runs")}
                        complete = dataclasses.replace(config, **changes, final_report=())
                        self._check(complete, entry.label)
                        runs.append(PlannedRun(variant, task, category, seed, complete, path))
        return runs

    def _overrides(self, config_class: type, node: Optional[yaml.MappingNode]) -> Dict[str, Any]:
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{self._where(node)}: overrides must be a mapping, not {shown(node)}")
        overrides = decode_fields(config_class, self.path, node)
        for name in MATRIX_FIELDS:
            if name in overrides:
                raise UserError(f"{self._where(node)}: {name} cannot be overridden, the comparison itself sets it")
        return overrides

    def _config_path(self, algorithm: Algorithm, category: str, task: str) -> Path:
        suite, _, rest = task.partition("/")
        name = rest.rpartition("/")[2]
        return Path(self.pattern.format(algorithm=algorithm.name, suite=suite, category=category, task=name))

    def _config(self, algorithm: Algorithm, path: Path, overrides: Dict[str, Any]) -> Any:
        """The algorithm's config for a task with the overrides."""
        config = load_config(algorithm.config_class, path)
        try:
            return dataclasses.replace(config, **overrides)
        except ValueError as error:
            raise UserError(f"{self.path}: overrides of {path}: {error}") from error

    def _check(self, config: Any, label: str) -> None:
        try:
            check_run_fields(config)
        except UserError as error:
            raise UserError(f"{self.path}: {label}: {error}") from error

    def _rows(self, entry: Entry, variant: Variant, config: Any) -> List[Row]:
        """The entry's rows: one, or one per value of `num_candidates` where the agent can be asked for it."""
        options = act_options_of(variant.algorithm)
        act = {} if entry.act is None else decode_fields(type(config), self.path, entry.act)
        for name in act:
            if name not in options:
                known = ", ".join(options) or "none"
                raise UserError(
                    f"{self._where(entry.act)}: {name} is not an option of {variant.algorithm}'s act, which has {known}"
                )
        crossed = self.candidates if CROSSED_OPTION in options and CROSSED_OPTION not in act else ()
        rows = [Row(entry.label, variant, act | {CROSSED_OPTION: value}) for value in crossed]
        for row in rows or [Row(entry.label, variant, act)]:
            try:
                dataclasses.replace(config, **row.act)
            except ValueError as error:
                raise UserError(f"{self.path}: {row.title}: {error}") from error
        return rows or [Row(entry.label, variant, act)]
