"""One figure of the same sweep of several runs, such as the seeds of a method and of what it is compared with.

    python -m harness.evaluate RUN_DIR --greediness 0 0.5 1 --noise_scale 0 0.5 1 --num_candidates 1    # of each run
    python -m benchmarks.sweep_over_seeds RUN_DIR/greediness.csv ... --against greediness --out FOLDER

A line for each label and setting of the other swept options is its mean over the runs, with bars from the lowest run to
the highest; what has one value of --against is a horizontal line. Writes act_options.csv, every cell of every run, and
<against>.png.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from common.errors import CommandParser, UserError, exit_on_user_error, one_line
from common.files import make_folder, write_text
from harness.plots import plot_lines
from harness.run_folder import load_run


def read_sweep(path: Path) -> tuple[pd.DataFrame, list[str], str]:
    """(cells with the run's task, label and seed, the act options, the score's name) of a CSV of harness.evaluate."""
    if not path.is_file():
        raise UserError(f"{path}: no such file, give the greediness.csv that harness.evaluate writes in a run's folder")
    algorithm, run, _ = load_run(path.parent)
    try:
        cells = pd.read_csv(path)
    except ValueError as error:  # pandas' own are of it
        raise UserError(f"{path}: is damaged ({one_line(error)}); evaluate the run again") from error
    options = [name for name in algorithm.agent_class.act_options if name in cells]
    score = next((name for name in ("return", "success") if f"{name}_low" in cells), None)
    if score is None or "episodes" not in cells or cells.empty:
        raise UserError(f"{path}: is no sweep of act options; give what harness.evaluate wrote")
    return cells.assign(task=run.task, label=run.label, seed=run.seed), options, score


def read_sweeps(paths: Sequence[Path], against: str) -> tuple[pd.DataFrame, list[str], str]:
    """The sweeps as one table, as `read_sweep`. Raises UserError where one figure cannot show them all."""
    parts, options, scores = zip(*map(read_sweep, paths), strict=True)
    names = list(dict.fromkeys(name for own in options for name in own))
    if against not in names:
        raise UserError(f"--against {against}: the sweeps' act options are {', '.join(names)}")
    cells = pd.concat(parts, ignore_index=True)
    tasks = sorted(cells["task"].unique())
    if len(tasks) > 1:
        raise UserError(f"the sweeps are of {', '.join(tasks)}: give those of one task")
    is_line = cells.groupby("label")[against].nunique() > 1
    grids = {path: set(part[against]) for path, part in zip(paths, parts, strict=True) if is_line[part["label"][0]]}
    first = next(iter(grids), None)
    for path, grid in grids.items():
        if grid != grids[first]:
            raise UserError(f"{path}: has other values of {against} than {first}: sweep the same ones")
    return cells, names, scores[0]


def figure(cells: pd.DataFrame, options: list[str], score: str, against: str, path: Path) -> None:
    varied = [name for name in options if name != against and cells[name].nunique() > 1]
    lines, constants, x = {}, {}, []
    for (label, *values), group in cells.groupby(["label", *varied], dropna=False):  # a method may lack an option
        count = group["seed"].nunique()
        given = [f"{name} {value:g}" for name, value in zip(varied, values, strict=True) if not pd.isna(value)]
        title = ", ".join([f"{label} ({count} seed{'s' * (count > 1)})", *given])
        points = group.groupby(against)[score].agg(["mean", "min", "max"])
        if len(points) > 1:
            x, lines[title] = list(points.index), list(points.itertuples(index=False, name=None))
        else:
            constants[title] = group[score].mean()
    plot_lines(x, lines, path, against, score, constants)


def main() -> None:
    parser = CommandParser("python -m benchmarks.sweep_over_seeds", __doc__)
    parser.add_argument("sweeps", type=Path, nargs="+", metavar="CSV", help="written by harness.evaluate, of one task")
    parser.add_argument("--against", required=True, help="the act option along the figure")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the files are written")
    with exit_on_user_error():
        asked = parser.parse_args()
        cells, options, score = read_sweeps(asked.sweeps, asked.against)
        make_folder(asked.out, "--out")
        columns = ["label", "seed", *options, score, f"{score}_low", f"{score}_high", "episodes"]
        columns += [name for name in cells if name.startswith("difference")]  # from a swept option's first value
        write_text(asked.out / "act_options.csv", cells[columns].round(4).to_csv(index=False, lineterminator="\n"))
        figure(cells, options, score, asked.against, asked.out / f"{asked.against}.png")
        print(f"written: {asked.out / 'act_options.csv'}, {asked.out / f'{asked.against}.png'}")


if __name__ == "__main__":
    main()
