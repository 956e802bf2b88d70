"""How the time of an update grows with the minibatch, the networks' width and the rows of the data: one figure.

    python -m benchmarks.growth --algorithm dipole --csv FILE --plot FILE

One thread's CPU time, eagerly. What does not grow stays at 256 rows a minibatch, 512x3 networks and 100,000 rows. A
point's slope is the power of the quantity with which time has grown since the point before: a minibatch of twice the
rows is twice the work (slope 1), a network of twice the width four times (slope 2), more data none (slope 0).
"""

import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.throughput import ROWS, SIZES, build_updates, random_dataset, show
from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import replacing
from harness.algorithms import algorithm_names, load_algorithm

CPU = torch.device("cpu")
WORK = {"batch": 1, "width": 2, "rows": 0}  # the power with which the work grows
POINTS = {
    "batch": (64, 256, 1024, 4096),
    "width": (128, 256, 512, 1024),
    "rows": (10_000, 100_000, 1_000_000, 10_000_000),
}


def milliseconds(name: str, quantity: str, value: int, rounds: int) -> float:
    """CPU time of an update of the algorithm with that value of the quantity, the median of the rounds."""
    size = SIZES["released"]
    changes = {"batch": {"batch_size": value}, "width": {"hidden_dims": (value,) * len(size.hidden_dims)}}
    size = replace(size, **changes.get(quantity, {}))
    dataset = random_dataset(size, CPU, value if quantity == "rows" else ROWS)
    updates, times = build_updates(load_algorithm(name), size, dataset), []
    for _ in range(rounds + 1):  # the first one sets the optimiser up
        started = time.process_time()
        updates.advance(1)
        times.append((time.process_time() - started) * 1000)
    return statistics.median(times[1:])


def measure(names: list[str], rounds: int) -> pd.DataFrame:
    """A row for each algorithm and value of each quantity, with the slope from the row before it."""
    points = [(name, quantity, value) for name in names for quantity in POINTS for value in POINTS[quantity]]
    rows = pd.DataFrame(points, columns=["algorithm", "quantity", "value"])
    times = [milliseconds(*point, rounds) for point in tqdm(points, leave=False, disable=None)]
    logarithms = np.log(rows[["value"]].assign(milliseconds=times))
    steps = logarithms.groupby([rows["algorithm"], rows["quantity"]]).diff()
    rows["slope"] = (steps["milliseconds"] / steps["value"]).round(2)
    rows["work_slope"] = rows["quantity"].map(WORK)
    return rows.assign(milliseconds=np.round(times, 3))


def plot(rows: pd.DataFrame, path: Path) -> None:
    """A panel for each quantity, logarithmic, with a dashed line that grows as the work does from the first point."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, len(POINTS), sharey=True), POINTS, strict=True):
        for name, line in rows[rows["quantity"] == quantity].groupby("algorithm", sort=False):
            values, times = line["value"].to_numpy(), line["milliseconds"].to_numpy()
            axes.loglog(values, times, marker="o", markersize=4, label=name)
            work = times[0] * (values / values[0]) ** WORK[quantity]
            axes.loglog(values, work, color="grey", linestyle="--", linewidth=1, label="as the work")
        axes.set_xlabel(quantity)
    figure.axes[0].set_ylabel("milliseconds of an update")
    figure.axes[0].legend(frameon=False)
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def main() -> None:
    parser = CommandParser("python -m benchmarks.growth", __doc__)
    parser.add_argument("--algorithm", nargs="+", choices=algorithm_names(), default=["dipole"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--csv", type=Path, help="also write the rows there")
    parser.add_argument("--plot", type=Path, help="also draw the figure there, as PNG")
    with exit_on_user_error():
        options = parser.parse_args()
        if options.rounds < 1:
            raise UserError(f"--rounds is {options.rounds}, set it to 1 or more")
        torch.set_num_threads(1)
        rows = measure(options.algorithm, options.rounds)
        show(rows.astype(object).fillna("").to_dict("records"), CPU, options.csv)
        if options.plot:
            plot(rows, options.plot)


if __name__ == "__main__":
    main()
