"""What the playground's page can set: a control for each option of the agent's `act`, within what the config allows."""

import dataclasses
from typing import Any, Optional

from common.errors import UserError
from harness.act_options import parse_grid

LOWEST_GREEDINESS, HIGHEST_GREEDINESS, STEPS_PER_UNIT = -1, 4, 10  # of the slider; the field beside it takes any number
COUNTS = (1, 2, 4, 8, 16, 32, 64)  # offered for whole numbers such as num_candidates, beside the run's own
LABELS = {"greediness": "greediness ω", "num_candidates": "num_candidates N"}


@dataclasses.dataclass(frozen=True)
class Control:
    """One act option: a slider over `bounds`, one of `choices`, or a plain number where both are None.

    value: the run's own. note: why the config leaves no choice, None where it does.
    """

    name: str
    label: str
    value: Any
    bounds: Optional[tuple[float, float]] = None
    choices: Optional[tuple[int, ...]] = None
    note: Optional[str] = None


def make_controls(agent_class: type, config: Any) -> list[Control]:
    """The controls of a run, in the order of act's parameters; empty for an agent without act options."""
    return [_control(name, config) for name in agent_class.act_options]


def _control(name: str, config: Any) -> Control:
    label, value = LABELS.get(name, name), getattr(config, name)
    if name == "greediness":
        steps = range(LOWEST_GREEDINESS * STEPS_PER_UNIT, HIGHEST_GREEDINESS * STEPS_PER_UNIT + 1)
        offered = {step / STEPS_PER_UNIT for step in steps} | {value}
        allowed = [number for number in offered if refusal(config, greediness=number) is None]
        if len(allowed) > 1:
            return Control(name, label, value, bounds=(min(allowed), max(allowed)))
        return Control(name, label, value, note=refusal(config, greediness=HIGHEST_GREEDINESS))
    if isinstance(value, int):
        counts = sorted({*COUNTS, value})
        return Control(name, label, value, choices=tuple(c for c in counts if refusal(config, **{name: c}) is None))
    return Control(name, label, value)


def refusal(config: Any, **options: Any) -> Optional[str]:
    """Why the config refuses these act options, None where it does not."""
    try:
        dataclasses.replace(config, **options)
    except ValueError as error:
        return str(error)
    return None


def decode_options(values: dict[str, Any], agent_class: type, config: Any) -> dict[str, Any]:
    """{option: value} of the page's fields, typed as in the config. Raises UserError that says what is wrong."""
    empty = [name for name, value in values.items() if value is None]
    if empty:
        raise UserError(f"{empty[0]}: the field is empty; give a number")
    grid = parse_grid([f"{name}={value}" for name, value in values.items()], agent_class, config)
    return {name: values[0] for name, values in grid.items()}


def decode_count(label: str, value: Optional[float], smallest: int) -> int:
    """A field's whole number. Raises UserError where it is none or below `smallest`."""
    if value is None or value != int(value) or value < smallest:
        raise UserError(f"{label}: give a whole number from {smallest}")
    return int(value)
