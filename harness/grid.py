"""Grids of act options, such as every greediness with every number of candidates, from a config or a command line."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import UserError
from harness.config import RunConfig, check_values, decode_flag
from harness.config_file import named


def parse_grid(assignments: Sequence[str], agent_class: type, config: Any) -> dict[str, list]:
    """{option: values} of assignments such as ("greediness=0,1", "num_candidates=1,16"), typed as in the config.

    Raises UserError for an option that the agent does not have, and for a value that the config refuses.
    """
    grid: dict[str, list] = {}
    for assignment in assignments:
        name, equals, values = assignment.partition("=")
        if name not in agent_class.act_options:
            known = ", ".join(agent_class.act_options) or "none"
            raise UserError(f"{name} is not an option of this agent's act, which has: {known}")
        if not equals or name in grid:
            raise UserError(f"act option {assignment!r}: write each option once, as {name}=value,value")
        with named(f"act option {assignment}"):
            decoded = [decode_flag(type(config), name, text.strip()) for text in values.split(",")]
        grid[name] = list(dict.fromkeys(decoded))
    with named("act options"):
        for cell in cells_of(grid):
            check_values(RunConfig(), dataclasses.replace(config, **cell))
    return grid


def cells_of(grid: Mapping[str, list]) -> list[dict]:
    """Every combination of the grid's values, {option: value}."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
