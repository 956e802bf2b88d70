"""The tables of a report that say how its numbers came about: policies, protocol, tuning, data."""

import collections
from collections.abc import Sequence

from harness.comparison.matrix import PlannedRun
from harness.comparison.protocol import Mixture, protocol_of
from harness.comparison.results import Results, RunResult
from harness.config_file import as_yaml
from harness.report.blocks import NONE, Block, joined
from harness.tuning.record import tuning_record

HASH_DIGITS = 16


# ---- What went wrong ----


def problem_block(results: Results) -> Block | None:
    """The runs that failed or are not finished, and finished ones that lack a row's score; None without any."""
    names: dict[tuple, list[str]] = collections.defaultdict(list)  # by variant, state and error
    for run in results.runs:
        if not run.finished or run.error:
            state = run.status if not run.finished else "finished, its re-evaluation failed"
            error = run.error.splitlines()[-1] if run.error else NONE
            names[run.planned.variant.label, state, error].append(run.planned.name)
    scores = results.scores
    for line in scores[(scores["status"] == "finished") & scores["error"].isna() & scores["final"].isna()].itertuples():
        count = "" if line.num_candidates != line.num_candidates else f", N = {line.num_candidates:g}"
        names[line.variant, f"finished, not evaluated for {line.name}{count}", NONE].append(line.run)
    if not names:
        return None
    finished = sum(run.finished for run in results.runs)
    block = Block("Missing runs")
    block.text = [f"{finished} of {len(results.runs)} runs are finished. What is missing lowers the number of seeds."]
    for (_, state, error), group in names.items():
        block.rows.append({"runs": ", ".join(group), "state": state, "error": error})
    return block


def mixture_block(found: Sequence[Mixture]) -> Block | None:
    """What differs between runs of one table; None where nothing does."""
    if not found:
        return None
    block = Block("Runs of different protocols")
    block.text = [
        "These runs stand in one table because --allow_mixed asked for it; † marks policies with runs that differ from "
        "most others of the table. Compare them with care."
    ]
    for mixture in found:
        values = "; ".join(f"{value}: {', '.join(names)}" for value, names in mixture.runs.items())
        block.rows.append({"task": mixture.task, "what differs": mixture.field, "values": values})
    return block


# ---- Policies ----


def policy_block(results: Results) -> Block:
    """What was trained: algorithm, overrides, size, and where its settings come from."""
    block = Block("Policies and their tuning")
    block.text = [
        "A policy's settings are those of configs/ for its algorithm and task, with the overrides. Without a record of "
        "harness.tune nothing was searched here: the settings files' comments say where their values are from."
    ]
    for variant in results.comparison.variants():
        runs = results.runs_of(variant.label)
        parameters = joined(f"{run.environment['parameters']:,}" for run in runs if "parameters" in run.environment)
        overrides = ", ".join(f"{name} {as_yaml(value)}" for name, value in variant.overrides.items())
        trials, tasks = zip(*{tuning_of(run.planned) for run in runs}, strict=True)
        block.rows.append(
            {
                "variant": variant.label,
                "algorithm": variant.algorithm,
                "overrides": overrides or NONE,
                "parameters": parameters,
                "tuning trials": joined(trials),
                "tuned on": joined(tasks),
            }
        )
    return block


def tuning_of(planned: PlannedRun) -> tuple[str, str]:
    """(trials, task tuned on) of the settings file that the comparison names."""
    path, _ = planned.variant.settings
    record = tuning_record(path) if path is not None else None
    if record is None:
        return "not tuned", NONE
    best = record["best_values"].items()
    changed = [name for name, value in best if getattr(planned.config, name) != value]
    return str(record["trials"]), record["task"] + (f" ({', '.join(changed)} overridden since)" if changed else "")


# ---- Protocol ----


def protocol_block(results: Results) -> Block:
    """What the guard holds equal between runs on the same tasks."""
    block = Block("Protocol")
    block.text = [
        "The final score is that of the agent after its last update, evaluated on the same episodes for every row; "
        "never the best over training. The other score is the mean of the last evaluations during training, which "
        "exists only for the policy that acts as it did in training. Each run's folder holds its complete config.yaml."
    ]
    finished = [run for run in results.runs if run.finished]
    names = dict.fromkeys(name for run in finished for name in protocol_of(run))
    for task in dict.fromkeys(run.planned.task for run in finished):
        own = [protocol_of(run) for run in finished if run.planned.task == task]
        block.rows.append({"task": task} | {name: joined(each.get(name, NONE) for each in own) for name in names})
    return block


# ---- Data ----


def data_block(results: Results) -> Block:
    """The identity of every data set."""
    block = Block("Data")
    sets: dict[tuple, list[str]] = collections.defaultdict(list)
    for run in begun(results):
        identity = run.identity
        name = "/".join(str(identity.get("path", NONE)).split("/")[-3:])
        counts = (str(identity.get(key, NONE)) for key in ("source", "transitions", "episodes"))
        digest = f"{str(identity.get('sha256', NONE))[:HASH_DIGITS]} ({identity.get('sha256_of', 'whole file')})"
        sets[name, *counts, digest].append(run.planned.task)
    titles = ("data set", "source", "transitions", "episodes", "sha256")
    block.rows = [
        dict(zip(titles, cells, strict=True)) | {"tasks": ", ".join(dict.fromkeys(tasks))}
        for cells, tasks in sets.items()
    ]
    if any(cells[1] != "official" for cells in sets):
        block.text = [
            "Data that are not marked official were made here or are of unknown origin: published numbers were "
            "measured on other data and are not comparable with these scores."
        ]
    return block


def begun(results: Results) -> list[RunResult]:
    return [run for run in results.runs if run.environment]
