"""The tables of a report that say how its numbers came about: policies, protocol, tuning, time, data, versions."""

import collections
from collections.abc import Sequence

import pandas as pd

from harness.comparison.matrix import PlannedRun
from harness.comparison.protocol import Mixture
from harness.comparison.results import Results, RunResult
from harness.config import MACHINE_OPTIONS, flat
from harness.report.blocks import NONE, Block, joined, number, text_of
from harness.report.per_seed import load_sources, protocol_of
from harness.tuning.record import tuning_record

PLACE_FIELDS = {*MACHINE_OPTIONS, "task", "seed"}  # say where a run is, not what it does
HASH_DIGITS = 16
HOUR = 3600.0
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
    block = Block("Missing runs", header=["runs", "state", "error"])
    block.text = [f"{finished} of {len(results.runs)} runs are finished. What is missing lowers the number of seeds."]
    for (_, state, error), group in names.items():
        more = f" and {len(group) - NAMES_SHOWN} more" if len(group) > NAMES_SHOWN else ""
        block.rows.append([", ".join(group[:NAMES_SHOWN]) + more, state, error])
    return block


def mixture_block(found: Sequence[Mixture]) -> Block | None:
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
        "A policy's settings are those of configs/ for its algorithm and task, with the overrides. Without a record of "
        "harness.tune nothing was searched here: the settings files' comments say where their values are from. A "
        "protocol with a letter is that of others' seeds on the same data (harness/report/peers/sources.yaml)."
    ]
    block.header = ["variant", "algorithm", "overrides", "parameters", "tuning trials", "tuned on", "protocol"]
    sources = load_sources()
    for variant in results.comparison.variants():
        runs = results.runs_of(variant.label)
        parameters = joined(f"{run.environment['parameters']:,}" for run in runs if "parameters" in run.environment)
        overrides = ", ".join(f"{name} {text_of(value)}" for name, value in variant.overrides.items())
        trials, tasks = zip(*{tuning_of(run.planned) for run in runs}, strict=True)
        protocols = joined(protocol_of(run, sources) for run in runs if run.finished)
        cells = [variant.label, variant.algorithm, overrides or NONE, parameters, joined(trials), joined(tasks)]
        block.rows.append([*cells, protocols])
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
    block = Block("Protocol", header=["of", "fields"])
    block.text = [
        "The final score is that of the agent after its last update, evaluated on the same episodes for every row; "
        "never the best over training. The other score is the mean of the last evaluations during training, which "
        "exists only for the policy that acts as it did in training. Each run's folder holds its complete config.yaml."
    ]
    common = dict(table[shared].iloc[:, 0]) | {"seeds": text_of(results.comparison.seeds)}
    common["harness_version"] = joined(run.harness_version for run in begun(results))
    rows = {"all runs": common} | {label: dict(table.loc[~shared, label].dropna()) for label in table}
    block.rows = [[name, ", ".join(f"{key} {value}" for key, value in fields.items())] for name, fields in rows.items()]
    return block


# ---- Time, data, versions ----


def time_block(results: Results) -> Block | None:
    """Updates per second and the hours of a run, evaluations included."""
    finished = [run for run in results.runs if run.finished]
    if not finished:
        return None
    block = Block("Time")
    block.text = [
        "Medians over the runs of a variant. Times depend on the machine and on what else ran on it: compare them "
        "only where device and threads are the same and runs were alone."
    ]
    lines = pd.DataFrame(
        {
            "variant": run.planned.variant.label,
            "updates": f"{run.result['step']:,}",
            "speed": run.updates_per_second,
            "hours": run.result["seconds"] / HOUR,
            "device": str(run.environment.get("device", NONE)),
            "threads": str(run.environment.get("threads", NONE)),
        }
        for run in finished
    )
    block.header = ["variant", "finished runs", "updates", "updates per second", "hours per run", "device", "threads"]
    for label, group in lines.groupby("variant", sort=False):
        times = [number(group["speed"].median()), number(group["hours"].median(), 2)]
        places = [joined(group["device"]), joined(group["threads"])]
        block.rows.append([label, str(len(group)), joined(group["updates"]), *times, *places])
    return block


def data_block(results: Results) -> Block:
    """The identity of every data set."""
    block = Block("Data", header=["data set", "source", "transitions", "episodes", "sha256", "tasks"])
    sets: dict[tuple, list[str]] = collections.defaultdict(list)
    for run in begun(results):
        identity = run.identity
        cells = [str(identity.get(key, NONE)) for key in ("path", "source", "transitions", "episodes", "sha256")]
        cells[0] = "/".join(cells[0].split("/")[-3:])
        cells[4] = f"{cells[4][:HASH_DIGITS]} ({identity.get('sha256_of', 'whole file')})"
        sets[tuple(cells)].append(run.planned.task)
    block.rows = [[*cells, ", ".join(dict.fromkeys(tasks))] for cells, tasks in sets.items()]
    if any(cells[1] != "official" for cells in sets):
        block.text = [
            "Data that are not marked official were made here or are of unknown origin: published numbers were "
            "measured on other data, so none stand beside these scores."
        ]
    return block


def version_block(results: Results) -> Block:
    """Versions of Python, packages and system; several where the runs differ."""
    block = Block("Versions", header=["of", "version"])
    environments = [run.environment for run in begun(results)]
    versions = pd.DataFrame({**each["versions"], "platform": each.get("platform")} for each in environments)
    block.rows = [[name, joined(versions[name].astype(str))] for name in versions]
    return block


def begun(results: Results) -> list[RunResult]:
    return [run for run in results.runs if run.environment]
