"""What the playground's page can set: a control for each act option of the agent, within what the config allows."""

import dataclasses
from typing import Any

from common.errors import UserError
from harness.config import RunConfig, check_values
from harness.evaluate import parse_grid

LOWEST, HIGHEST, STEPS_PER_UNIT = -1, 4, 10  # of a slider; the field beside it takes any number
COUNTS = (1, 2, 4, 8, 16, 32, 64)  # offered for whole numbers such as num_candidates, beside the run's own


@dataclasses.dataclass(frozen=True)
class Control:
    """One act option: a slider over `bounds`, one of `choices`, or a plain number if both are None.

    value: the run's own. note: why the config leaves no choice, None if it does.
    """

    name: str
    value: Any
    bounds: tuple[float, float] | None = None
    choices: tuple[int, ...] | None = None
    note: str | None = None


def make_controls(agent_class: type, config: Any) -> list[Control]:
    """The controls of a run, in the order of the agent's act options."""
    return [_control(name, config) for name in agent_class.act_options]


def _control(name: str, config: Any) -> Control:
    value = getattr(config, name)
    if isinstance(value, int):
        choices = tuple(count for count in sorted({*COUNTS, value}) if refusal(config, **{name: count}) is None)
        return Control(name, value, choices=choices)
    steps = range(LOWEST * STEPS_PER_UNIT, HIGHEST * STEPS_PER_UNIT + 1)
    offered = {step / STEPS_PER_UNIT for step in steps} | {value}
    allowed = [number for number in offered if refusal(config, **{name: number}) is None]
    if len(allowed) > 1:
        return Control(name, value, bounds=(min(allowed), max(allowed)))
    return Control(name, value, note=refusal(config, **{name: float(HIGHEST)}))


def refusal(config: Any, **options: Any) -> str | None:
    """Why the config refuses these act options, None if it does not."""
    try:
        check_values(RunConfig(), dataclasses.replace(config, **options))
    except (ValueError, UserError) as error:
        return str(error)
    return None


def decode_options(values: dict[str, Any], agent_class: type, config: Any) -> dict[str, Any]:
    """{option: value} of the page's fields, typed as in the config. Raises UserError that says what is wrong."""
    empty = [name for name, value in values.items() if value is None]
    if empty:
        raise UserError(f"{empty[0]}: the field is empty; give a number")
    grid = parse_grid([f"{name}={value}" for name, value in values.items()], agent_class, config)
    return {name: values[0] for name, values in grid.items()}


def decode_count(label: str, value: float | None, smallest: int) -> int:
    """A field's whole number. Raises UserError for another number, none, or one below `smallest`."""
    if value is None or value != int(value) or value < smallest:
        raise UserError(f"{label}: give a whole number from {smallest}")
    return int(value)
