"""One figure of the same sweep of several runs, such as the seeds of a method and of what it is compared with.

    python -m harness.evaluate RUN_DIR --greediness 0 0.5 1 --noise_scale 0 0.5 1 --num_candidates 1    # of each run
    python -m benchmarks.sweep_over_seeds RUN_DIR/greediness.csv ... --against greediness --out FOLDER

A line for each label and setting of the other swept options is its mean over the runs, with bars from the lowest run to
the highest; what has one value of --against is a horizontal line. Writes act_options.csv, every cell of every run, and
<against>.png.
"""

from pathlib import Path

import pandas as pd

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import make_folder, write_text
from harness.plots import plot_lines
from harness.run_folder import load_run


def read_sweep(path: Path) -> tuple[pd.DataFrame, list[str], str]:
    """(cells with the run's label and seed, the act options, the score's name) of a CSV of harness.evaluate."""
    if not path.is_file():
        raise UserError(f"{path}: no such file, give the greediness.csv that harness.evaluate writes in a run's folder")
    algorithm, run, _ = load_run(path.parent)
    cells = pd.read_csv(path)
    cells.insert(0, "seed", run.seed)
    cells.insert(0, "label", run.label)
    options = [name for name in algorithm.agent_class.act_options if name in cells]
    return cells, options, next(name.removesuffix("_low") for name in cells if name.endswith("_low"))


def line_of(cells: pd.DataFrame, x: list[float], against: str, score: str) -> list[tuple[float, float, float]]:
    """(mean, lowest, highest) over the runs at each x."""
    values = cells.groupby(against)[score].agg(["mean", "min", "max"])
    return [tuple(values.loc[value]) for value in x]


def figure(cells: pd.DataFrame, options: list[str], score: str, against: str, path: Path) -> None:
    x = sorted(cells[against].dropna().unique())  # an agent without that option has none
    varied = [name for name in options if name != against and cells[name].nunique() > 1]
    lines, constants = {}, {}
    for (label, *values), group in cells.groupby(["label", *varied]):
        count = group["seed"].nunique()
        title = ", ".join([f"{label} ({count} seed{'s' * (count > 1)})", *map("{} {:g}".format, varied, values)])
        if group[against].nunique() > 1:
            lines[title] = line_of(group, x, against, score)
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
        parts, options, scores = zip(*map(read_sweep, asked.sweeps), strict=True)
        options = list(dict.fromkeys(name for names in options for name in names))
        if asked.against not in options:
            raise UserError(f"--against {asked.against}: the sweeps' act options are {', '.join(options)}")
        if len(set(scores)) > 1:
            raise UserError(f"the sweeps' scores are {', '.join(sorted(set(scores)))}: give those of one task")
        cells = pd.concat(parts, ignore_index=True)
        make_folder(asked.out, "--out")
        columns = ["label", "seed", *options, scores[0], f"{scores[0]}_low", f"{scores[0]}_high", "episodes"]
        columns += [name for name in cells if name.startswith("difference")]  # paired with its first value
        write_text(asked.out / "act_options.csv", cells[columns].round(4).to_csv(index=False, lineterminator="\n"))
        figure(cells, options, scores[0], asked.against, asked.out / f"{asked.against}.png")
        print(f"written: {asked.out / 'act_options.csv'}, {asked.out / f'{asked.against}.png'}")


if __name__ == "__main__":
    main()
