"""How the time of an update grows with the minibatch, the networks' width and the rows of the data: one figure.

    python -m benchmarks.growth --algorithm dipole --csv FILE --plot FILE

One thread's CPU time, eagerly. What does not grow stays at 256 rows a minibatch, 512x3 networks and 100,000 rows. A
point's slope is the power of the quantity with which time has grown since the point before: a minibatch of twice the
rows is twice the work (slope 1), a network of twice the width four times (slope 2), more data none (slope 0).
"""

import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import replacing, write_rows_csv
from harness.algorithms import algorithm_names, load_algorithm
from harness.measurement.table import format_rows, machine
from harness.measurement.workload import ROWS, SIZES, build_agent, random_dataset

CPU = torch.device("cpu")
BASE = SIZES["released"]
WORK = {"batch": 1, "width": 2, "rows": 0}  # the power with which the work grows
POINTS = {
    "batch": (64, 256, 1024, 4096),
    "width": (128, 256, 512, 1024),
    "rows": (10_000, 100_000, 1_000_000, 10_000_000),
}


def milliseconds(name: str, quantity: str, value: int, rounds: int) -> float:
    """CPU time of an update of the algorithm with that value of the quantity, the median of the rounds."""
    size = BASE
    if quantity == "batch":
        size = replace(size, batch_size=value)
    elif quantity == "width":
        size = replace(size, hidden_dims=(value,) * len(size.hidden_dims))
    dataset = random_dataset(size, CPU, value if quantity == "rows" else ROWS)
    agent, generator, times = build_agent(load_algorithm(name), size, CPU), torch.Generator().manual_seed(0), []
    for _ in range(rounds + 1):  # the first one sets the optimiser up
        started = time.process_time()
        agent.update(dataset.sample(size.batch_size, generator, agent.batch_fields))
        times.append((time.process_time() - started) * 1000)
    return statistics.median(times[1:])


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each value of each quantity, with the slope from the row before it."""
    rows = []
    points = [(quantity, value) for quantity, values in POINTS.items() for value in values]
    for quantity, value in tqdm(points, desc=name, leave=False, disable=None):
        row = {"algorithm": name, "quantity": quantity, "value": value, "slope": None, "work_slope": WORK[quantity]}
        row["milliseconds"] = round(milliseconds(name, quantity, value, rounds), 3)
        if rows and rows[-1]["quantity"] == quantity:
            growth = math.log(row["milliseconds"] / rows[-1]["milliseconds"])
            row["slope"] = round(growth / math.log(value / rows[-1]["value"]), 2)
        rows.append(row)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel for each quantity, logarithmic, with a dashed line that grows as the work does from the first point."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, len(POINTS), sharey=True), POINTS, strict=True):
        for name in dict.fromkeys(row["algorithm"] for row in rows):
            line = [row for row in rows if (row["algorithm"], row["quantity"]) == (name, quantity)]
            values, times = [row["value"] for row in line], [row["milliseconds"] for row in line]
            axes.loglog(values, times, marker="o", markersize=4, label=name)
            work = [times[0] * (value / values[0]) ** WORK[quantity] for value in values]
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
        rows = [row for name in options.algorithm for row in measure(name, options.rounds)]
        print(f"{machine(CPU)}\n\n{format_rows(rows)}")
        if options.csv:
            write_rows_csv(rows, options.csv)
        if options.plot:
            plot(rows, options.plot)


if __name__ == "__main__":
    main()
