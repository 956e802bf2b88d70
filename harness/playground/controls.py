"""What the playground's page can set: a control for each act option of the agent, within what the config allows."""

import dataclasses
from typing import Any

from common.errors import UserError
from harness.config import RunConfig, check_values
from harness.evaluate import parse_grid

STEPS_PER_UNIT = 10  # of a slider; the field beside it takes any number
OFFERED = [step / STEPS_PER_UNIT for step in range(-STEPS_PER_UNIT, 4 * STEPS_PER_UNIT + 1)]  # from -1 to 4
COUNTS = (1, 2, 4, 8, 16, 32, 64)  # offered for whole numbers such as num_candidates, beside the run's own


@dataclasses.dataclass(frozen=True)
class Control:
    """One act option with the run's own value and what can be chosen, in order; note: why there is no choice."""

    name: str
    value: Any
    choices: tuple
    note: str | None = None


def make_controls(agent_class: type, config: Any) -> list[Control]:
    """The controls of a run, in the order of the agent's act options."""
    controls = []
    for name in agent_class.act_options:
        value = getattr(config, name)
        offered = sorted({*(COUNTS if isinstance(value, int) else OFFERED), value})
        refusals = {each: refusal(config, **{name: each}) for each in offered}
        choices = tuple(each for each in offered if refusals[each] is None)
        note = refusals[offered[-1]] if len(choices) == 1 else None
        controls.append(Control(name, value, choices, note))
    return controls


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
