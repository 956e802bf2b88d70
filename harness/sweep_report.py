"""What a sweep's rows are shown and written as: a table, a CSV file and a figure."""

from pathlib import Path
from typing import Any, Optional, Sequence

from common.files import write_rows_csv
from envs.task import Task
from harness import run_files
from harness.act_options import cells_of
from harness.config import RunConfig
from harness.plots import plot_sweep
from harness.score_statistics import CONFIDENCE
from harness.sweep import option_names, sweep


def format_table(rows: Sequence[dict], score_name: str) -> str:
    """The rows of sweeps as an aligned table, with a column for each act option.

    A row may leave columns out, such as a score of the data; the last row has all of them.
    """
    digits = 3 if max(abs(row[score_name]) for row in rows) < 10 else 1
    columns = {name: (f"{{{name}}}", (name,)) for name in option_names(rows[-1:], score_name)}
    columns[score_name] = (f"{{{score_name}:.{digits}f}}", (score_name,))
    low, high, std = (f"{score_name}_{part}" for part in ("low", "high", "std"))
    columns["normalized return"] = ("{normalized_return:.1f}", ("normalized_return",))
    columns[f"{CONFIDENCE:.0%} interval"] = (f"[{{{low}:.{digits}f}}, {{{high}:.{digits}f}}]", (low, high))
    columns["std"] = (f"{{{std}:.{digits}f}}", (std,))
    columns |= {"length": ("{length:.0f}", ("length",)), "episodes": ("{episodes}", ("episodes",))}
    columns["network evaluations"] = ("{network_evaluations}", ("network_evaluations",))
    shown = {title: form for title, form in columns.items() if set(form[1]) <= rows[-1].keys()}
    table = [list(shown)]
    for row in rows:
        table.append([form.format(**row) if set(needed) <= row.keys() else "" for form, needed in shown.values()])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in table)


def greediness_remark(rows: Sequence[dict], score_name: str) -> Optional[str]:
    """One line where greediness was swept and made no clear difference at some setting of the other options."""
    settings: dict[tuple, list[dict]] = {}
    others = [name for name in option_names(rows, score_name) if name != "greediness"]
    for row in rows:
        settings.setdefault(tuple(row[name] for name in others), []).append(row)
    if len({row.get("greediness") for row in rows}) < 2:
        return None
    same = [
        " and ".join(f"{name} {value}" for name, value in zip(others, setting, strict=True))
        for setting, group in settings.items()
        if max(row[f"{score_name}_low"] for row in group) <= min(row[f"{score_name}_high"] for row in group)
    ]
    if not same:
        return None
    where = "" if len(same) == len(settings) else f" at {'; '.join(same)}"
    return f"Greediness makes no clear difference{where}: the {CONFIDENCE:.0%} intervals of its values overlap."


def write_sweep_report(rows: Sequence[dict], folder: Path, task: Task, shown: Optional[Sequence[dict]] = None) -> str:
    """Writes a sweep's CSV file, and its figure where greediness was swept; returns a table of `shown` (or rows).

    A sweep of other options writes a file of its own, so that the greediness curve in the folder stays.
    """
    sweeps_greediness = len({row.get("greediness") for row in rows}) > 1
    path = folder / (run_files.GREEDINESS_SWEEP if sweeps_greediness else run_files.SWEEP)
    done = "replaced" if path.exists() else "written"
    write_rows_csv(rows, path)
    files = [path]
    if sweeps_greediness:
        files.append(folder / run_files.GREEDINESS_FIGURE)
        plot_sweep(rows, files[1], task.score_name, task.reference_scores())
    remark = greediness_remark(rows, task.score_name)
    last = f"{done}: {', '.join(map(str, files))}"
    return "\n".join(filter(None, [format_table(shown or rows, task.score_name), remark, last]))


def sweep_and_report(
    agent: Any,
    task: Task,
    run: RunConfig,
    grid: dict[str, list],
    folder: Path,
    episodes: int | None = None,
    environments: int | None = None,
    workers: int | None = None,
) -> list[dict]:
    """Evaluates a trained agent over the grid, writes the files to `folder` and prints the table; returns its rows.

    The table begins with the scores of the data set itself. episodes, environments and workers default to the run's.
    """
    episodes = episodes or task.episodes(run.eval_episodes)
    swept = "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in grid.items())
    print(f"evaluating {run.label} at {len(cells_of(grid))} settings, {episodes} episodes each: {swept}", flush=True)
    if episodes > task.episodes(episodes):
        print(f"{run.task} has {task.different_episodes} different episodes: intervals of {episodes} are too narrow")
    rows = sweep(agent, task, run, grid, episodes, environments, workers)
    shown = [{"policy": label, task.score_name: score} for label, score in task.reference_scores().items()]
    shown += [{"policy": run.label, **row} for row in rows]
    print(f"\n{run.task} ({task.identity['source']}), seed {run.seed}\n")
    print(write_sweep_report(rows, folder, task, shown))
    if (folder / run_files.LEARNING_CURVE).exists():
        print(f"learning curve: {folder / run_files.LEARNING_CURVE}")
    return rows
