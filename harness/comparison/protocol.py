"""The protocol that all runs of one table must share, and what differs where they do not."""

import collections
import dataclasses
import itertools
from typing import Any, Dict, List, Sequence

from common.errors import UserError
from harness.comparison.matrix import Comparison
from harness.comparison.results import Results, RunResult

GUARDED_FIELDS = ("offline_steps", "online_steps", "eval_episodes")  # of a config


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A property that differs between runs which share a table: run names by its value, the most frequent first."""

    task: str
    field: str
    runs: Dict[str, List[str]]

    def __str__(self) -> str:
        values = "; ".join(
            f"{value} in {len(names)} runs" if len(names) > 3 else f"{value} in {', '.join(names)}"
            for value, names in self.runs.items()
        )
        return f"{self.task}: {self.field} differs: {values}"

    @property
    def deviating(self) -> set:
        """Names of the runs that have not the most frequent value."""
        return {name for names in list(self.runs.values())[1:] for name in names}


def planned_problems(comparison: Comparison, allow_mixed: bool) -> List[str]:
    """Runs on the same task that cannot stand in one table, by their configs."""
    problems = []
    for task, field in itertools.product(itertools.chain(*comparison.tasks.values()), GUARDED_FIELDS):
        values: Dict[Any, List[str]] = {}
        for run in comparison.runs:
            if run.task == task:
                values.setdefault(getattr(run.config, field), []).append(run.variant.label)
        if len(values) > 1 and not allow_mixed:
            listed = "; ".join(f"{value} of {', '.join(dict.fromkeys(labels))}" for value, labels in values.items())
            problems.append(
                f"{comparison.path}: {task}: the runs differ in {field} ({listed}), so no table can hold them all; "
                "give all the same, or add --allow_mixed to mark them"
            )
    return problems


def protocol_of(run: RunResult) -> Dict[str, str]:
    """What must be equal for two runs to stand in one table."""
    protocol = {name: str(getattr(run.config, name)) for name in GUARDED_FIELDS if hasattr(run.config, name)}
    protocol["data set"] = f"sha256 {str(run.identity.get('sha256'))[:16]}"
    episodes = {line["episodes"] for line in run.cells}
    protocol |= {"re-evaluation episodes": ", ".join(sorted(episodes))} if episodes else {}
    protocol["harness version"] = run.harness_version
    return protocol


def mixtures(runs: Sequence[RunResult]) -> List[Mixture]:
    """What differs between the finished runs on the same task, of all tasks."""
    found = []
    for task in dict.fromkeys(run.planned.task for run in runs):
        values: Dict[str, Dict[str, List[str]]] = collections.defaultdict(lambda: collections.defaultdict(list))
        for run in runs:
            if run.planned.task == task and run.finished:
                for field, value in protocol_of(run).items():
                    values[field][value].append(run.planned.name)
        for field, names in values.items():
            if len(names) > 1:
                ordered = sorted(names.items(), key=lambda item: -len(item[1]))
                found.append(Mixture(task, field, dict(ordered)))
    return found


def check_protocol(results: Results, allow_mixed: bool) -> List[Mixture]:
    """The mixtures of the results. Raises UserError where there are any, unless they are allowed."""
    found = mixtures(results.runs)
    if found and not allow_mixed:
        more = f" (and {len(found) - 1} more differences)" if len(found) > 1 else ""
        raise UserError(
            f"{results.comparison.path}: these runs do not belong in one table: {found[0]}{more}; run the odd ones "
            "again, or add --allow_mixed to mark them in the report"
        )
    return found
