"""The space that harness.tune searches: the values or the range of each field, as Optuna's distributions.

    inverse_temperature: {low: 0.1, high: 100.0, log: true}   # a range; log: equal ratios are equally likely
    num_candidates: [1, 4, 16]                                # choices

Only single values of the method's own fields can be searched. The settings' own values must lie in the space, because
they are the first trial of every study.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from common.errors import UserError
from harness.config import RunConfig, Settings, check_values
from harness.config_file import decode, form_of, places_by_key, shown, unknown_field

RANGE_KEYS = ("low", "high", "log")
Space = dict[str, BaseDistribution]


def read_space(entries: Mapping[str, tuple[yaml.Node, str]], settings: Settings) -> Space:
    """The space of {field: (node, where)} around the settings. Raises UserError."""
    config_class = type(settings.config)
    kinds = {field.name: field.type for field in dataclasses.fields(config_class)}
    space: Space = {}
    for name, (node, where) in entries.items():
        if (
            name in {field.name for field in dataclasses.fields(RunConfig)}
            or form_of(kinds.get(name, str))[0] == "list"
        ):
            raise UserError(f"{where}: {name} belongs to the run or is a list, search single values of the method's")
        if name not in kinds:
            raise unknown_field(where, name, config_class.__name__, kinds)
        read = _range if isinstance(node, yaml.MappingNode) else _choices
        space[name], ends = read(name, kinds[name], node, where)
        for value in ends:
            _check(settings, {name: value}, f"{where}: {name}")
        own = getattr(settings.config, name)
        if not (ends[0] <= own <= ends[-1] if read is _range else own in ends):
            raise UserError(f"{where}: {name}: the settings' own value {own} is the first trial, include it")
    return space


def _check(settings: Settings, values: dict[str, Any], where: str) -> None:
    try:
        check_values(settings.run, dataclasses.replace(settings.config, **values))
    except (ValueError, UserError) as error:
        raise UserError(f"{where}: {error}") from error


def _range(name: str, kind: Any, node: yaml.MappingNode, where: str) -> tuple[BaseDistribution, list]:
    places = {key: value for key, (value, _) in places_by_key(where.partition(": line")[0], node).items()}
    unknown = places.keys() - set(RANGE_KEYS)
    if unknown or not {"low", "high"} <= places.keys():
        found = f"has no key {min(unknown)}" if unknown else "needs low and high"
        raise UserError(f"{where}: {name}: a range {found}, write {{low: 0.1, high: 10.0, log: true}}")
    low, high = (decode(places[end], kind, f"{where}: {name}") for end in ("low", "high"))
    log = decode(places["log"], bool, f"{where}: {name}: log") if "log" in places else False
    if isinstance(low, (bool, str)):
        raise UserError(f"{where}: {name} is no number, list its values as [value, value]")
    if not low < high:
        raise UserError(f"{where}: {name}: low is {low} and high is {high}, low must be smaller")
    if log and low <= 0:
        raise UserError(f"{where}: {name}: low is {low}, it must be above 0 where log is true")
    distribution = IntDistribution if isinstance(low, int) else FloatDistribution
    return distribution(low, high, log=log), [low, high]


def _choices(name: str, kind: Any, node: yaml.Node, where: str) -> tuple[BaseDistribution, list]:
    elements = node.value if isinstance(node, yaml.SequenceNode) else ()
    values = [decode(element, kind, f"{where}: {name}") for element in elements]
    if len(values) < 2 or len(set(values)) < len(values):
        raise UserError(f"{where}: {name} is {shown(node)}, give two or more different values or {{low: , high: }}")
    return CategoricalDistribution(values), values
