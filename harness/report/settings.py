"""The tables of a report that say how its numbers came about: policies, protocol, tuning, data."""

import collections
from collections.abc import Sequence

import pandas as pd

from harness.comparison.matrix import PlannedRun
from harness.comparison.protocol import Mixture
from harness.comparison.results import Results, RunResult
from harness.config import MACHINE_OPTIONS, flat
from harness.report.blocks import NONE, Block, joined, text_of
from harness.report.per_seed import load_sources, protocol_of
from harness.tuning.record import tuning_record

PLACE_FIELDS = {*MACHINE_OPTIONS, "task", "seed"}  # say where a run is, not what it does
HASH_DIGITS = 16
NAMES_SHOWN = 8  # of the runs of a variant that are missing for the same reason


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
        more = f" and {len(group) - NAMES_SHOWN} more" if len(group) > NAMES_SHOWN else ""
        block.rows.append({"runs": ", ".join(group[:NAMES_SHOWN]) + more, "state": state, "error": error})
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
        "harness.tune nothing was searched here: the settings files' comments say where their values are from. A "
        "protocol with a letter is that of others' seeds on the same data (harness/report/peers/sources.yaml)."
    ]
    sources = load_sources()
    for variant in results.comparison.variants():
        runs = results.runs_of(variant.label)
        parameters = joined(f"{run.environment['parameters']:,}" for run in runs if "parameters" in run.environment)
        overrides = ", ".join(f"{name} {text_of(value)}" for name, value in variant.overrides.items())
        trials, tasks = zip(*{tuning_of(run.planned) for run in runs}, strict=True)
        block.rows.append(
            {
                "variant": variant.label,
                "algorithm": variant.algorithm,
                "overrides": overrides or NONE,
                "parameters": parameters,
                "tuning trials": joined(trials),
                "tuned on": joined(tasks),
                "protocol": joined(protocol_of(run, sources) for run in runs if run.finished),
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
    changed = [name for name, value in best if text_of(getattr(planned.config, name)) != text_of(value)]
    return str(record["trials"]), record["task"] + (f" ({', '.join(changed)} overridden since)" if changed else "")


# ---- Protocol ----


def fields_of(runs: Sequence[RunResult]) -> dict[str, str]:
    """The values of every field that all the runs have, but for those that say where a run is."""
    configs = [flat(run.run, run.config) for run in runs]
    names = [name for name in configs[0] if name not in PLACE_FIELDS and all(name in config for config in configs)]
    return {name: joined(text_of(config[name]) for config in configs) for name in names}


def protocol_block(results: Results) -> Block:
    """The fields that all runs share, and those in which each variant differs."""
    variants = {variant.label: fields_of(results.runs_of(variant.label)) for variant in results.comparison.variants()}
    table = pd.DataFrame(variants)  # fields by variants; NaN where a method has no such field
    shared = table.nunique(axis="columns", dropna=False) == 1
    block = Block("Protocol")
    block.text = [
        "The final score is that of the agent after its last update, evaluated on the same episodes for every row; "
        "never the best over training. The other score is the mean of the last evaluations during training, which "
        "exists only for the policy that acts as it did in training. Each run's folder holds its complete config.yaml."
    ]
    common = dict(table[shared].iloc[:, 0]) | {"seeds": text_of(results.comparison.seeds)}
    common["harness_version"] = joined(run.harness_version for run in begun(results))
    rows = {"all runs": common} | {label: dict(table.loc[~shared, label].dropna()) for label in table}
    block.rows = [
        {"of": name, "fields": ", ".join(f"{key} {value}" for key, value in fields.items())}
        for name, fields in rows.items()
    ]
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
            "measured on other data, so none stand beside these scores."
        ]
    return block


def begun(results: Results) -> list[RunResult]:
    return [run for run in results.runs if run.environment]
