"""The tables of a report that say how its numbers came about: policies, protocol, tuning, time, data, versions."""

import collections
import dataclasses
import statistics
from typing import Any, Dict, List, Optional, Sequence

from harness.comparison.matrix import PlannedRun
from harness.comparison.protocol import Mixture
from harness.comparison.results import Results, RunResult
from harness.report.blocks import NONE, Block, number, text_of
from harness.run_fields import FREE_FIELDS
from harness.tuning.record import tuning_record

NOT_TUNED = "not tuned"
PLACE_FIELDS = {*FREE_FIELDS, "task", "seed", "label", "final_report"}  # say where a run is, not what it does
HASH_DIGITS = 16
HOUR = 3600.0
NAMES_SHOWN = 8  # of the runs of a variant that are missing for the same reason


# ---- What went wrong ----


def problem_block(results: Results) -> Optional[Block]:
    """The runs that failed or are not finished, and finished ones that lack a row's score; None without any."""
    names: Dict[tuple, List[str]] = collections.defaultdict(list)  # by variant, state and error
    for run in results.runs:
        if not run.finished or run.error:
            state = run.status if not run.finished else "finished, its re-evaluation failed"
            error = run.error.splitlines()[-1] if run.error else NONE
            names[run.planned.variant.label, state, error].append(run.planned.name)
    for score in results.scores:
        if score.run.finished and not score.run.error and score.final != score.final:
            planned = score.run.planned
            names[planned.variant.label, f"finished, not evaluated for {score.row.title}", NONE].append(planned.name)
    if not names:
        return None
    block = Block("Missing runs", header=["runs", "state", "error"])
    for (_, state, error), group in names.items():
        more = f" and {len(group) - NAMES_SHOWN} more" if len(group) > NAMES_SHOWN else ""
        block.rows.append([", ".join(group[:NAMES_SHOWN]) + more, state, error])
    finished = sum(run.finished for run in results.runs)
    block.text = [f"{finished} of {len(results.runs)} runs are finished. What is missing lowers the number of seeds."]
    return block


def mixture_block(found: Sequence[Mixture]) -> Optional[Block]:
    """What differs between runs of one table; None where nothing does."""
    if not found:
        return None
    block = Block("Runs of different protocols", header=["task", "what differs", "values"])
    block.text = [
        "These runs stand in one table because --allow_mixed asked for it; † marks policies with runs that differ from "
        "most others of the table. Compare them with care."
    ]
    for mixture in found:
        values = "; ".join(f"{value}: {', '.join(names)}" for value, names in mixture.runs.items())
        block.rows.append([mixture.task, mixture.field, values])
    return block


# ---- Policies ----


def policy_block(results: Results) -> Block:
    """What was trained: algorithm, overrides, size, and where its settings come from."""
    block = Block("Policies and their tuning")
    block.text = [
        "A policy's settings are those of its algorithm's YAML for the task, with the overrides. Trials and the task "
        "tuned on are those of harness.tune's record beside that YAML. Without a record nothing was searched here: the "
        "YAML's own comments say where its values are from."
    ]
    block.header = ["variant", "algorithm", "overrides", "parameters", "tuning trials", "tuned on"]
    for variant in results.comparison.variants():
        runs = [run for run in results.runs if run.planned.variant.label == variant.label]
        parameters = _joined(f"{run.environment['parameters']:,}" for run in runs if "parameters" in run.environment)
        overrides = ", ".join(f"{name} {text_of(value)}" for name, value in variant.overrides.items())
        block.rows.append([variant.label, variant.algorithm, overrides or NONE, parameters, *tuning_cells(runs)])
    return block


def tuning_cells(runs: Sequence[RunResult]) -> List[str]:
    """Trials and the task tuned on, of all the YAML files that the runs' configs were made from."""
    found = {_tuning(run.planned) for run in runs}
    return [_joined(trials for trials, _ in found), _joined(task for _, task in found)]


def _tuning(planned: PlannedRun) -> tuple:
    record = tuning_record(planned.config_path) if planned.config_path is not None else None
    if record is None:
        return NOT_TUNED, NONE
    changed = [
        name
        for name, value in record["best_values"].items()
        if text_of(getattr(planned.config, name)) != text_of(value)
    ]
    remark = f" ({', '.join(changed)} overridden since)" if changed else ""
    return str(record["trials"]), record["task"] + remark


# ---- Protocol ----


def protocol_block(results: Results) -> Block:
    """The fields that all runs share, with their values."""
    configs = [dataclasses.asdict(run.config) for run in results.runs]
    shared = _equal_fields(configs)
    block = Block("Protocol: what all runs share", header=["field", "value"])
    block.text = [
        "The final score is that of the agent after its last update, evaluated on the same episodes for every row; "
        "never the best over training. The other score is the mean of the last evaluations during training, which "
        "exists only for the policy that acts as it did in training."
    ]
    block.rows = [[name, text_of(value)] for name, value in shared.items() if name not in PLACE_FIELDS]
    block.rows.append(["seeds", text_of(results.comparison.seeds)])
    block.rows.append(["harness_version", _joined(run.harness_version for run in _begun(results))])
    return block


def fields_block(results: Results) -> Block:
    """The other fields of every variant; a field that differs between its tasks has all values."""
    shared = _equal_fields([dataclasses.asdict(run.config) for run in results.runs])
    block = Block("Protocol: what differs", header=["variant", "fields"])
    block.text = ["Each run's folder holds its complete config.yaml."]
    for variant in results.comparison.variants():
        configs = [dataclasses.asdict(run.config) for run in results.runs if run.planned.variant.label == variant.label]
        values = {
            name: _joined(text_of(config[name]) for config in configs)
            for name in configs[0]
            if name not in shared and name not in PLACE_FIELDS
        }
        block.rows.append([variant.label, ", ".join(f"{name} {value}" for name, value in values.items())])
    return block


def _equal_fields(configs: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """Fields that all configs have with the same value."""
    first = configs[0]
    return {
        name: value
        for name, value in first.items()
        if all(name in config and config[name] == value for config in configs)
    }


# ---- Time, data, versions ----


def time_block(results: Results) -> Block:
    """Updates per second and the hours of a run, evaluations included."""
    block = Block("Time")
    block.text = [
        "Medians over the runs of a variant. Times depend on the machine and on what else ran on it: compare them only "
        "where device and threads are the same and runs were alone."
    ]
    block.header = ["variant", "finished runs", "updates", "updates per second", "hours per run", "device", "threads"]
    for variant in results.comparison.variants():
        runs = [run for run in results.runs if run.planned.variant.label == variant.label and run.finished]
        if not runs:
            continue
        block.rows.append(
            [
                variant.label,
                str(len(runs)),
                _joined(f"{run.result['step']:,}" for run in runs),
                number(statistics.median(run.updates_per_second for run in runs)),
                number(statistics.median(run.result["seconds"] for run in runs) / HOUR, 2),
                _joined(str(run.environment["device"]) for run in runs),
                _joined(str(run.environment["threads"]) for run in runs),
            ]
        )
    return block


def data_block(results: Results) -> Block:
    """The identity of every data set."""
    block = Block("Data", header=["data set", "source", "transitions", "episodes", "sha256", "tasks"])
    sets: Dict[tuple, List[str]] = collections.defaultdict(list)
    for run in _begun(results):
        identity = run.identity
        cells = [str(identity.get(key, NONE)) for key in ("path", "source", "transitions", "episodes", "sha256")]
        name = "/".join(cells[0].split("/")[-3:])
        digest = f"{cells[4][:HASH_DIGITS]} ({identity.get('sha256_of', 'whole file')})"
        place = sets[name, cells[1], cells[2], cells[3], digest]
        if run.planned.task not in place:
            place.append(run.planned.task)
    block.rows = [[*cells, ", ".join(tasks)] for cells, tasks in sets.items()]
    if any(cells[1] != "official" for cells in sets):
        block.text = [
            "Data that are not marked official were made here or are of unknown origin: published numbers were "
            "measured on other data, so none stand beside these scores."
        ]
    return block


def version_block(results: Results) -> Block:
    """Versions of Python, packages and system; several where the runs differ."""
    block = Block("Versions", header=["of", "version"])
    versions: Dict[str, set] = collections.defaultdict(set)
    for run in _begun(results):
        for name, version in {**run.environment["versions"], "platform": run.environment.get("platform")}.items():
            versions[name].add(str(version))
    block.rows = [[name, _joined(values)] for name, values in versions.items()]
    return block


def _begun(results: Results) -> List[RunResult]:
    return [run for run in results.runs if run.environment]


def _joined(values: Any) -> str:
    """The distinct values, in a fixed order."""
    return " / ".join(sorted(set(values))) or NONE
