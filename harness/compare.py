"""Trains the runs that a matrix file lists, side by side on this machine, and writes one report of them.

    python -m harness.compare --config configs/compare/quickstart.yaml

Everything is checked before the first run starts. The same command continues what was stopped or failed and leaves
finished runs alone. docs/comparisons.md describes the file and what is written where.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import locked, make_folder
from harness import run_files
from harness.comparison.matrix import Comparison, PlannedRun, collecting, load_comparison, problem_list, read_matrix
from harness.comparison.preparation import check_data, estimate_table, estimates
from harness.comparison.progress import LiveTable
from harness.comparison.protocol import planned_problems
from harness.comparison.ray_workers import Resources, run_on_ray, slots_on
from harness.comparison.reevaluation import is_complete
from harness.comparison.workers import FAILED, Slot, cores, cpu_slots, gpu_slots, run_locally, visible_gpus
from harness.devices import choose_device
from harness.run_folder import remove_run


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = CommandParser("python -m harness.compare", __doc__, advice="; --help lists the flags")
    flags.add_argument(
        "--config", metavar="FILE", required=True, help="the matrix, e.g. configs/compare/quickstart.yaml"
    )
    flags.add_argument("--run_dir", metavar="FOLDER", help="in place of the matrix's; shared storage for many machines")
    flags.add_argument("--workers", type=int, help="runs at a time (default: as many as the cores or GPUs hold)")
    flags.add_argument(
        "--gpu_memory_per_run", type=float, metavar="GB", help="several runs per GPU by this budget (default: one)"
    )
    flags.add_argument("--ray", metavar="ADDRESS", help="run on this Ray cluster (host:port, or auto) instead of here")
    flags.add_argument("--cpus_per_run", type=float, help="with --ray: cores of a run (default: 1)")
    flags.add_argument("--gpus_per_run", type=float, help="with --ray: GPUs of a run, e.g. 0.25 (default: 0)")
    flags.add_argument(
        "--allow_mixed", action="store_true", help="mark runs of different protocols, do not refuse them"
    )
    what = flags.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="check everything, print the estimated time and stop")
    what.add_argument(
        "--print_commands", action="store_true", help="print a line of shell for each run that is not complete and stop"
    )
    what.add_argument("--report_only", action="store_true", help="write the report of the runs as they are")
    what.add_argument(
        "--restart", nargs="*", metavar="LABEL", help="first delete the runs of these labels (none given: all)"
    )
    return flags


# ---- Checking ----


class Checked(NamedTuple):
    """A comparison that nothing is wrong with."""

    comparison: Comparison
    slots: list[Slot]  # a place for each run that is to be at work at a time
    seconds: dict[str, float]  # that each run not yet complete will take, by name


def checked(options: argparse.Namespace) -> Checked:
    """The comparison, without the runs that are to be restarted; prints its data sets and the time that it will take.

    Raises one UserError that lists every problem, before anything is removed.
    """
    comparison, problems = read_matrix(options.config, options.run_dir)
    if comparison is None or not comparison.runs:
        raise problem_list(options.config, problems or [f"{options.config}: asks for no run"])
    problems += planned_problems(comparison, options.allow_mixed)
    slots: list[Slot] = []
    restarted: dict[str, PlannedRun] = {}
    with collecting(problems):
        restarted = {run.name: run for run in to_restart(comparison, options.restart)}
    with collecting(problems):
        check_writable(comparison.out)
        slots = slots_of(comparison, options)
    threads = int(slots[0]["OMP_NUM_THREADS"]) if slots else 1
    data_problems, lines, costs = check_data(comparison, threads, restarted)
    if problems + data_problems:
        raise problem_list(options.config, problems + data_problems)
    print(f"{comparison.name}: {len(comparison.runs)} runs, {len(comparison.rows)} rows of the report, nothing wrong")
    print(*lines, sep="\n")
    for run in restarted.values():
        remove_run(run.run)
    seconds = estimates(comparison, costs)
    if seconds:
        print(f"\n{estimate_table(comparison, seconds, costs, len(slots))}\n", flush=True)
    return Checked(comparison, slots, seconds)


def check_writable(folder: Path) -> None:
    """Raises UserError unless the folder, or the nearest parent that is there, can be written to."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{folder}: cannot be written to; set run_dir elsewhere")


def slots_of(comparison: Comparison, options: argparse.Namespace) -> list[Slot]:
    """A place for each run that is to be at work at a time, here or on the Ray cluster. Raises UserError."""
    here, there = ("workers", "gpu_memory_per_run"), ("cpus_per_run", "gpus_per_run")
    for name in here if options.ray else there:
        if getattr(options, name) is not None:
            raise UserError(f"command line: --{name} is for runs {'on this machine' if options.ray else 'with --ray'}")
    if options.ray:
        return slots_on(options.ray, resources_of(options))
    for name in here:
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            raise UserError(f"command line: --{name} is {getattr(options, name):g}, it must be above 0")
    workers = options.workers or max(1, cores() // max(1, *(run.run.threads for run in comparison.runs)))
    workers = min(workers, len(comparison.runs))
    if any(choose_device(run.run.device).type == "cuda" for run in comparison.runs):
        return gpu_slots(workers, visible_gpus(), options.gpu_memory_per_run)
    return cpu_slots(workers)


def resources_of(options: argparse.Namespace) -> Resources:
    cpus, gpus = options.cpus_per_run, options.gpus_per_run
    return Resources(1.0 if cpus is None else cpus, 0.0 if gpus is None else gpus)


def to_restart(comparison: Comparison, labels: Sequence[str] | None) -> list[PlannedRun]:
    """The runs with folders that `--restart` names by their labels (none given: all). Raises UserError."""
    if labels is None:
        return []
    known = [variant.label for variant in comparison.variants()]
    for label in labels:
        if label not in known:
            raise UserError(f"command line: --restart {label}: no variant has this label, choose of {', '.join(known)}")
    return [run for run in comparison.runs if (not labels or run.variant.label in labels) and run.folder.exists()]


# ---- Running ----


def run_all(plan: Checked, options: argparse.Namespace) -> int:
    """Works on everything that is not complete; returns the exit code: 1 where a run failed, 128 + n after signal n."""
    comparison, slots = plan.comparison, plan.slots
    todo = in_order(comparison)
    if not todo:
        print("all runs are complete")
        return 0
    with only_one(comparison), LiveTable(todo, len(slots), plan.seconds) as table:
        shutil.copyfile(comparison.path, comparison.out / "comparison.yaml")
        if options.ray:
            resources = resources_of(options)
            states, signal_number = run_on_ray(comparison, todo, options.ray, resources, slots[0], table.show)
        else:
            states, signal_number = run_locally(comparison, todo, slots, table.show)
    return exit_code(todo, states, signal_number)


def in_order(comparison: Comparison) -> list[PlannedRun]:
    """The runs that are not complete: every variant's first seed on all tasks, then the second seeds, and so on."""
    todo = [run for run in comparison.runs if not is_complete(run.folder, comparison.cells(run))]
    return sorted(todo, key=lambda run: comparison.seeds.index(run.seed))


def exit_code(runs: Sequence[PlannedRun], states: dict[str, str], signal_number: int) -> int:
    failed = [run for run in runs if states[run.name] == FAILED]
    for run in failed:
        last = (run.folder / run_files.ERROR).read_text(encoding="utf-8").strip().splitlines()[-1]
        print(f"failed: {run.name}: {last} ({run.folder / run_files.ERROR})")
    if signal_number:
        print("stopped; the same command continues from here")
        return 128 + signal_number
    return 1 if failed else 0


@contextlib.contextmanager
def only_one(comparison: Comparison) -> Iterator[None]:
    """Keeps a second command from the comparison's folder. Raises UserError where there is one."""
    make_folder(comparison.out, "run_dir")
    refusal = f"{comparison.out}: another harness.compare works here; wait for it or stop it"
    with locked(comparison.out / "lock", refusal):
        yield


def print_commands(comparison: Comparison) -> None:
    """A line of shell for each run that is not complete: its training, then its evaluation at every cell."""
    for run in in_order(comparison):
        print(" && ".join(shlex.join(command) for command in run.commands(comparison.cells(run))))


# ---- The command ----


def report(comparison: Comparison, allow_mixed: bool) -> None:
    from harness.report.report import write_report  # here: plotting is not needed while runs are at work

    for path in write_report(comparison, comparison.out, allow_mixed):
        print(f"written: {path}")


def compare(argv: Sequence[str] | None = None) -> int:
    """`main` without the handling of the user's errors; returns the exit code. Raises UserError."""
    options = parser().parse_args(argv)
    if options.report_only:
        report(load_comparison(options.config, options.run_dir), options.allow_mixed)
        return 0
    if options.print_commands:
        print_commands(load_comparison(options.config, options.run_dir))
        return 0
    plan = checked(options)
    if options.check:
        return 0
    code = run_all(plan, options)
    if code <= 1:
        report(plan.comparison, options.allow_mixed)
    return code


def main() -> None:
    with exit_on_user_error():
        sys.exit(compare())


if __name__ == "__main__":
    main()
