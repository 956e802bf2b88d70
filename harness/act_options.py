"""The options of an agent's `act`, such as DIPOLE's greediness, and grids of their values."""

import dataclasses
import itertools
from typing import Any, Sequence

from common.errors import UserError
from harness.command_line import decode_flag
from harness.config_file import nearest_field


def parse_grid(assignments: Sequence[str], agent: Any, config: Any) -> dict[str, list]:
    """{option: values} of assignments such as ("greediness=0,1", "num_candidates=1,16"), typed as in the config.

    Raises UserError for an option that the agent has not, a value of the wrong type and one that the config refuses.
    """
    grid: dict[str, list] = {}
    for assignment in assignments:
        name, equals, values = assignment.partition("=")
        if name not in agent.act_options:
            raise unknown_option(name, agent.act_options)
        if not equals or name in grid:
            raise UserError(f"act option {assignment!r}: write each option once, as {name}=value,value")
        grid[name] = list(dict.fromkeys(_decode(name, value.strip(), config) for value in values.split(",")))
    for cell in cells_of(grid):
        try:
            dataclasses.replace(config, **cell)
        except ValueError as error:
            raise UserError(f"act options: {error}") from error
    return grid


def _decode(name: str, text: str, config: Any) -> Any:
    """The value that `--name text` has on a training command line."""
    try:
        return decode_flag(type(config), name, text)
    except UserError as error:
        raise UserError(f"act option {name}={text}: {str(error).removeprefix('command line: --')}") from error


def unknown_option(name: str, options: Sequence[str]) -> UserError:
    """What to say of a name that is not among the act options."""
    known = ", ".join(options) if options else "none"
    meant = nearest_field(name, options)
    advice = f"; did you mean {meant}?" if meant else ""
    return UserError(f"{name} is not an option of this agent's act, which has: {known}{advice}")


def cells_of(grid: dict[str, list]) -> list[dict]:
    """Every combination of the grid's values, {option: value}."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
