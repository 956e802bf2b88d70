"""Trains the runs that a matrix file lists, side by side on this machine, and writes one report of them.

    python -m harness.compare --config configs/compare/quickstart.yaml

Everything is checked before the first run starts. The same command continues what was stopped or failed and leaves
finished runs alone. docs/comparisons.md describes the file and what is written where.
"""

import argparse
import contextlib
import dataclasses
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from common.errors import CommandParser, UserError, check_at_least, exit_on_user_error
from common.files import locked, make_folder
from harness import run_files
from harness.comparison.matrix import Comparison, PlannedRun, load_comparison
from harness.comparison.protocol import check_planned
from harness.comparison.ray_workers import check_cluster, run_on_ray
from harness.comparison.reevaluation import is_complete
from harness.comparison.workers import FAILED, Slot, cores, run_locally, slots_of, visible_gpus
from harness.devices import choose_device
from harness.run_folder import check_folder, check_settings, load_run_task, remove_run, with_chunks
from harness.train import build_agent


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = CommandParser("python -m harness.compare", __doc__, advice="; --help lists the flags")
    flags.add_argument(
        "--config", metavar="FILE", required=True, help="the matrix, e.g. configs/compare/quickstart.yaml"
    )
    flags.add_argument("--run_dir", metavar="FOLDER", help="in place of the matrix's; shared storage for many machines")
    flags.add_argument("--workers", type=int, help="runs at a time (default: as many as the cores, or one per GPU)")
    flags.add_argument("--ray", metavar="ADDRESS", help="run on this Ray cluster (host:port, or auto) instead of here")
    flags.add_argument("--cpus_per_run", type=int, default=1, help="with --ray: cores of a run (default: 1)")
    flags.add_argument("--gpus_per_run", type=float, default=0.0, help="with --ray: GPUs of a run, e.g. 0.25")
    flags.add_argument(
        "--allow_mixed", action="store_true", help="mark runs of different protocols, do not refuse them"
    )
    what = flags.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="check everything, collect absent data and stop")
    what.add_argument(
        "--print_commands", action="store_true", help="print a line of shell for each run that is not complete and stop"
    )
    what.add_argument("--report_only", action="store_true", help="write the report of the runs as they are")
    what.add_argument(
        "--restart", nargs="*", metavar="LABEL", help="first delete the runs of these labels (none given: all)"
    )
    return flags


# ---- Checking ----


def prepare(comparison: Comparison, options: argparse.Namespace) -> None:
    """Checks flags, data and folders, prints a line about each data set, and removes the runs to be restarted.

    Raises UserError before anything is removed.
    """
    restarted = to_restart(comparison, options.restart)
    check_at_least(options, workers=1)
    if options.ray:
        check_cluster(options.ray, options.cpus_per_run, options.gpus_per_run)
    lines = check_data(comparison, restarted)
    print(f"{comparison.name}: {len(comparison.runs)} runs, {len(comparison.rows)} rows of the report, nothing wrong")
    print(*lines, sep="\n", flush=True)
    for run in restarted:
        remove_run(run.run)


def check_data(comparison: Comparison, restarted: Sequence[PlannedRun] = ()) -> list[str]:
    """A line about each data set, which is collected where the settings say so. Raises a UserError of all problems.

    The folders of the runs, but for those `restarted`, can be written to and hold the same settings and data.
    """
    problems, lines = [], []
    groups: dict[tuple[str, str | None], list[PlannedRun]] = {}
    for run in comparison.runs:
        groups.setdefault((run.task, run.run.data_dir), []).append(run)
    for runs in tqdm(groups.values(), desc="data sets", unit="set", disable=None):
        try:
            task = load_run_task(runs[0].run)
            if task.make_env is None:
                raise UserError(f"{task.name}: has no environment, so that there is no score to compare by")
        except UserError as error:
            problems.append(str(error))
            continue
        for run in (run for run in runs if run not in restarted):
            with noted(problems):
                check_folder(run.run, run.config, task.identity)
        for run in (run for run in runs if run.seed == comparison.seeds[0]):
            with noted(problems, f"{run.name}: "):
                usable = with_chunks(task, run.run, run.config)
                build_agent(run.variant.agent_class, run.run, smallest(run.config), usable)
        source, digest = task.identity["source"], task.identity["sha256"][:12]
        lines.append(f"{task.name}: {source}, {len(task.dataset):,} transitions, sha256 {digest}")
    raise_all(comparison, problems)
    return lines


@contextlib.contextmanager
def noted(problems: list[str], of: str = "") -> Iterator[None]:
    """Adds a UserError of the block to the problems instead of raising it; of: what its sentence begins with."""
    try:
        yield
    except UserError as error:
        problems.append(f"{of}{error}")


def raise_all(comparison: Comparison, problems: Sequence[str]) -> None:
    """Raises one UserError for all problems, if there are any."""
    problems = list(dict.fromkeys(problems))
    if problems:
        raise UserError("\n  ".join([f"{comparison.path}: {len(problems)} problems:", *problems][len(problems) == 1 :]))


def smallest(config: Any) -> Any:
    """The config with networks that are built at once: what an agent asks of its task does not depend on them."""
    sizes = [each.name for each in dataclasses.fields(config) if each.name.endswith("hidden_dims")]
    return dataclasses.replace(config, **dict.fromkeys(sizes, (1,)))


def places(comparison: Comparison, workers: int | None) -> list[Slot]:
    """A place on this machine for each run that is to be at work at a time."""
    uses_gpus = any(choose_device(run.run.device).type == "cuda" for run in comparison.runs)
    gpus = visible_gpus() if uses_gpus else []
    by_cores = max(1, cores() // max(1, *(run.run.threads for run in comparison.runs)))
    return slots_of(min(workers or len(gpus) or by_cores, len(comparison.runs)), gpus)


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


def run_all(comparison: Comparison, options: argparse.Namespace) -> int:
    """Works on everything that is not complete; returns the exit code, 1 where a run failed.

    Raises SystemExit(128 + n) after signal n.
    """
    todo = in_order(comparison)
    if not todo:
        print("all runs are complete")
        return 0
    make_folder(comparison.out, "run_dir")
    refusal = f"{comparison.out}: another harness.compare works here; wait for it or stop it"
    with locked(comparison.out / "lock", refusal):
        shutil.copyfile(comparison.path, comparison.out / "comparison.yaml")
        if options.ray:
            states = run_on_ray(comparison, todo, options.ray, options.cpus_per_run, options.gpus_per_run)
        else:
            states = run_locally(comparison, todo, places(comparison, options.workers))
    failed = [run for run in todo if states[run.name] == FAILED]
    for run in failed:
        last = (run.folder / run_files.ERROR).read_text(encoding="utf-8").strip().splitlines()[-1]
        print(f"failed: {run.name}: {last} ({run.folder / run_files.ERROR})")
    return 1 if failed else 0


def in_order(comparison: Comparison) -> list[PlannedRun]:
    """The runs that are not complete: every variant's first seed on all tasks, then the second seeds, and so on."""
    todo = [run for run in comparison.runs if not is_complete(run, comparison.cells(run))]
    return sorted(todo, key=lambda run: comparison.seeds.index(run.seed))


# ---- The command ----


def compare(argv: Sequence[str] | None = None) -> int:
    """`main` without the handling of the user's errors; returns the exit code. Raises UserError."""
    options = parser().parse_args(argv)
    comparison, code = load_comparison(options.config, options.run_dir), 0
    if not options.allow_mixed and not options.report_only:
        check_planned(comparison)
    if options.print_commands:
        problems: list[str] = []
        for run in comparison.runs:
            with noted(problems):
                check_settings(run.run, run.config)
        raise_all(comparison, problems)
        for run in in_order(comparison):
            print(" && ".join(shlex.join(command) for command in run.commands(comparison.cells(run))))
        return 0
    if not options.report_only:
        prepare(comparison, options)
        if options.check:
            return 0
        code = run_all(comparison, options)
    from harness.report.report import write_report  # here: plotting is not needed while runs are at work

    for path in write_report(comparison, comparison.out, options.allow_mixed):
        print(f"written: {path}")
    return code


def main() -> None:
    with exit_on_user_error():
        sys.exit(compare())


if __name__ == "__main__":
    main()
