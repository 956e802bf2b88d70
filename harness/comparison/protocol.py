"""The protocol that all runs of one table must share, and what differs where they do not."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from common.errors import UserError
from harness.comparison.matrix import Comparison
from harness.comparison.results import Results, RunResult
from harness.config import RunConfig, flat

GUARDED_FIELDS = ("offline_steps", "online_steps", "online_start", "eval_episodes", "action_chunk", "first_action_only")
GUARDED_FIELDS += ("sparse", "max_episode_steps", "num_critics")
USUAL = {"num_critics": 2, "pessimism": None}  # of methods without these fields


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A property that differs between runs which share a table: run names by its value, the most frequent first."""

    task: str
    field: str
    runs: dict[str, list[str]]

    def __str__(self) -> str:
        values = (
            f"{value} in {len(names)} runs" if len(names) > 3 else f"{value} in {', '.join(names)}"
            for value, names in self.runs.items()
        )
        return f"{self.task}: {self.field} differs: {'; '.join(values)}"

    @property
    def deviating(self) -> set[str]:
        """Runs whose value is not the most common one."""
        return {name for names in list(self.runs.values())[1:] for name in names}


def mixtures(properties: Iterable[tuple[str, str, dict[str, str]]]) -> list[Mixture]:
    """What differs between the runs on the same task, by (task, name, {property: value}) of each run."""
    values: dict[tuple[str, str], dict[str, list[str]]] = {}
    for task, name, own in properties:
        for field, value in own.items():
            values.setdefault((task, field), {}).setdefault(value, []).append(name)
    return [
        Mixture(task, field, dict(sorted(names.items(), key=lambda item: -len(item[1]))))
        for (task, field), names in values.items()
        if len(names) > 1
    ]


def check_planned(comparison: Comparison) -> None:
    """Raises UserError where runs on the same task cannot stand in one table, by their configs."""
    first = [run for run in comparison.runs if run.seed == comparison.seeds[0]]
    for mixture in mixtures((run.task, run.variant.label, guarded(run.run, run.config)) for run in first):
        raise UserError(
            f"{comparison.path}: {mixture}, so no table holds them; give all the same, or add --allow_mixed"
        )


def guarded(run: RunConfig, config: Any) -> dict[str, str]:
    fields = USUAL | flat(run, config)
    return {name: str(fields[name]) for name in GUARDED_FIELDS}


def protocol_of(result: RunResult) -> dict[str, str]:
    """What must be equal for two runs to stand in one table."""
    protocol = guarded(result.run, result.config) | {"data set": f"sha256 {str(result.identity.get('sha256'))[:16]}"}
    if result.cells:
        protocol["re-evaluation episodes"] = ", ".join(sorted({line["episodes"] for line in result.cells}))
    return protocol | {"harness version": str(result.environment["harness_version"])}


def check_protocol(results: Results, allow_mixed: bool) -> list[Mixture]:
    """The mixtures of the finished runs. Raises UserError where there are any, unless they are allowed."""
    finished: Sequence[RunResult] = [run for run in results.runs if run.finished]
    found = mixtures((run.planned.task, run.planned.name, protocol_of(run)) for run in finished)
    if found and not allow_mixed:
        more = f" (and {len(found) - 1} more differences)" if len(found) > 1 else ""
        raise UserError(
            f"{results.comparison.path}: these runs do not belong in one table: {found[0]}{more}; run the odd ones "
            "again, or let `harness.compare --allow_mixed` mark them in its report"
        )
    return found
