"""The space that harness.tune searches: a YAML file beside a config, with the values or the range of each field.

    inverse_temperature: {low: 0.1, high: 100.0, log: true}   # a range; log: equal ratios are equally likely
    num_candidates: [1, 4, 16]                                # choices; of numbers, the search uses the order

Only fields of the method can be searched: no field of the run (task, seed, updates, ...) and no list. The config's own
values must lie in the space, because they are the first trial of every study.
"""

import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Union

import yaml

from common.errors import UserError
from harness.config_file import decode, decode_field, places_by_key, read_mapping, shown
from harness.run_fields import RUN_FIELDS, check_run_fields

FILE_NAME = "search.yaml"  # of a folder's space, and how the name of a single config's ends
DIGITS = 4  # significant, of a number from a range of floats: enough to search, and short in a YAML file
RANGE_KEYS = ("low", "high", "log")


@dataclasses.dataclass(frozen=True)
class Range:
    """All numbers from low to high, both included; `log`: the logarithm is searched evenly."""

    low: Union[int, float]
    high: Union[int, float]
    log: bool

    def __contains__(self, value: Any) -> bool:
        return self.low <= value <= self.high

    def ends(self) -> List[Any]:
        return [self.low, self.high]

    def as_json(self) -> dict:
        return dataclasses.asdict(self)

    def distribution(self) -> Any:
        from optuna import distributions

        kind = distributions.IntDistribution if isinstance(self.low, int) else distributions.FloatDistribution
        return kind(self.low, self.high, log=self.log)

    def to_parameter(self, value: Any) -> Any:
        """The value as Optuna's parameter."""
        return value

    def from_parameter(self, parameter: Any) -> Any:
        return parameter if isinstance(self.low, int) else float(f"{parameter:.{DIGITS}g}")


@dataclasses.dataclass(frozen=True)
class Choices:
    """The listed values. Optuna's parameter is a value's place in the list, an ordinal number where all are numbers."""

    values: tuple

    def __contains__(self, value: Any) -> bool:
        return value in self.values

    def ends(self) -> List[Any]:
        return list(self.values)

    def as_json(self) -> list:
        return list(self.values)

    def distribution(self) -> Any:
        from optuna import distributions

        if isinstance(self.values[0], (str, bool)):
            return distributions.CategoricalDistribution(range(len(self.values)))
        return distributions.IntDistribution(0, len(self.values) - 1)

    def to_parameter(self, value: Any) -> int:
        return self.values.index(value)

    def from_parameter(self, parameter: int) -> Any:
        return self.values[parameter]


Space = Dict[str, Union[Range, Choices]]


def is_search_file(path: Path) -> bool:
    """Whether a YAML file below configs/ is a search space, not a config."""
    return path.name == FILE_NAME or path.name.endswith("." + FILE_NAME)


def find_search_file(config_path: Path) -> Path:
    """<name>.search.yaml beside <name>.yaml, or the folder's search.yaml. Raises UserError where neither exists."""
    candidates = [config_path.with_name(f"{config_path.stem}.{FILE_NAME}"), config_path.with_name(FILE_NAME)]
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(f"{config_path}: has no search space, write {candidates[0].name} or {FILE_NAME} beside it")


def load_space(path: Path, config: Any) -> Space:
    """The space in the file `path`, for the class of `config`, whose own values must lie in it. Raises UserError."""
    space: Space = {}
    for name, (node, where) in places_by_key(path, read_mapping(path)).items():
        if isinstance(node, yaml.MappingNode):
            ends = {key: value for key, (value, _) in places_by_key(path, node).items()}
            space[name] = _range(type(config), name, ends, where)
        else:
            space[name] = _choices(type(config), name, node, where)
        _check_values(config, name, space[name], where)
    return space


def _range(config_class: type, name: str, ends: Dict[str, yaml.Node], where: str) -> Range:
    unknown = ends.keys() - set(RANGE_KEYS)
    if unknown or not {"low", "high"} <= ends.keys():
        found = f"has no key {min(unknown)}" if unknown else "needs low and high"
        raise UserError(f"{where}: {name}: a range {found}, write {{low: 0.1, high: 10.0, log: true}}")
    low, high = (decode_field(config_class, name, ends[end], where) for end in ("low", "high"))
    log = decode(ends["log"], bool, f"{where}: {name}: log") if "log" in ends else False
    if isinstance(low, (bool, str)):
        raise UserError(f"{where}: {name} is no number, list its values as [value, value]")
    if not low < high:
        raise UserError(f"{where}: {name}: low is {low} and high is {high}, low must be smaller")
    if log and low <= 0:
        raise UserError(f"{where}: {name}: low is {low}, it must be above 0 where log is true")
    return Range(low, high, log)


def _choices(config_class: type, name: str, node: yaml.Node, where: str) -> Choices:
    elements = node.value if isinstance(node, yaml.SequenceNode) else ()
    values = [decode_field(config_class, name, element, where) for element in elements]
    if len(values) < 2 or len(set(values)) < len(values):
        raise UserError(f"{where}: {name} is {shown(node)}, give two or more different values or {{low: , high: }}")
    if not isinstance(values[0], (str, bool)):
        values.sort()
    return Choices(tuple(values))


def _check_values(config: Any, name: str, dimension: Union[Range, Choices], where: str) -> None:
    """Raises UserError for a field that cannot be searched, for values that the config refuses or does not have."""
    if name in RUN_FIELDS or isinstance(getattr(config, name), tuple):
        raise UserError(f"{where}: {name} belongs to the run or is a list, search single values of the method's fields")
    for value in dimension.ends():
        try:
            check_run_fields(dataclasses.replace(config, **{name: value}))
        except (ValueError, UserError) as error:
            raise UserError(f"{where}: {name}: {error}") from error
    if getattr(config, name) not in dimension:
        raise UserError(
            f"{where}: {name}: the config's own value {getattr(config, name)} is the first trial, include it"
        )
