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
from harness.config import Settings, check_values
from harness.config_file import decode, form_of, named, read_keys, shown, unknown_field

Space = dict[str, BaseDistribution]


def read_space(entries: Mapping[str, tuple[yaml.Node, str]], settings: Settings) -> Space:
    """The space of {field: (node, where)} around the settings. Raises UserError."""
    config = settings.config
    kinds = {field.name: field.type for field in dataclasses.fields(config)}
    space: Space = {}
    for name, (node, where) in entries.items():
        if name not in kinds:
            raise unknown_field(where, name, type(config).__name__, kinds)
        if form_of(kinds[name])[0] == "list":
            raise UserError(f"{where}: {name} is a list, search single values")
        space[name], ends = _distribution(name, kinds[name], node, where)
        with named(f"{where}: {name}"):
            for value in ends:
                check_values(settings.run, dataclasses.replace(config, **{name: value}))
        own, is_range = getattr(config, name), isinstance(node, yaml.MappingNode)
        if not (ends[0] <= own <= ends[-1] if is_range else own in ends):
            raise UserError(f"{where}: {name}: the settings' own value {own} is the first trial, include it")
    return space


def _distribution(name: str, kind: Any, node: yaml.Node, where: str) -> tuple[BaseDistribution, list]:
    """A field's distribution with the values that must be allowed: the ends of a range, or all choices."""
    if isinstance(node, yaml.MappingNode):
        if kind not in (int, float):
            raise UserError(f"{where}: {name} is no number, list its values as [value, value]")
        values = read_keys(where.partition(": line")[0], node, {"low": kind, "high": kind, "log": bool}, "a range")
        if not {"low", "high"} <= values.keys():
            raise UserError(f"{where}: {name}: a range needs low and high")
        with named(f"{where}: {name}"):  # what Optuna says of them
            distribution = (IntDistribution if kind is int else FloatDistribution)(**values)
        return distribution, [values["low"], values["high"]]
    elements = node.value if isinstance(node, yaml.SequenceNode) else ()
    values = [decode(element, kind, f"{where}: {name}") for element in elements]
    if len(values) < 2 or len(set(values)) < len(values):
        raise UserError(f"{where}: {name} is {shown(node)}, give two or more different values or {{low: , high: }}")
    return CategoricalDistribution(values), values
