"""What an update of each algorithm costs: parameters, floating-point operations, updates per second, time by part.

    python -m harness.throughput --algorithm dipole fql iql --size published quickstart --csv FILE --plot FILE
    python -m harness.throughput --device cuda --precision highest high

Random rows of the size's shapes take the place of data, so no data set is needed; an update includes the sampling of
its minibatch. Rounds of everything measured follow each other and the median round counts, since machines are noisy;
the rate of plain matrix products of the networks' width, measured in the same rounds at the same precision, says what
the machine gives. On a GPU each algorithm is measured twice: update by update (eager) and as a CUDA graph (graph).
"""

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from tqdm import tqdm

from common.errors import CommandParser, exit_on_user_error
from envs.dataset import Dataset
from harness.algorithms import algorithm_names, load_algorithm
from harness.config import RunConfig
from harness.devices import choose_device
from harness.measurement import (
    PARTS,
    PRODUCTS,
    SIZES,
    Size,
    build_updates,
    count_flops,
    product_work,
    random_dataset,
    rate,
    show,
    time_split,
    update_rate,
    waiting_for,
    warm_up,
)
from harness.plots import plot_time_split

ROUNDS = 5
SPLIT_UPDATES = 10  # profiled for the time by part
PRECISIONS = get_args(RunConfig.__annotations__["matmul_precision"])

Mode = tuple[str, bool]  # the precision of float32 products; whether updates are replayed as a CUDA graph


def measure_rates(
    names: Sequence[str], size: Size, dataset: Dataset, modes: Sequence[Mode], seconds: float
) -> dict[Any, float]:
    """Medians of the rounds: {(algorithm, *mode): updates per second, precision: operations per second of products}."""
    device = dataset.observations.device
    wait = waiting_for(device)
    left, right = (torch.rand(rows, size.width, device=device) for rows in (size.batch_size, size.width))
    measured, products = {}, {}
    for precision, captured in modes:
        torch.set_float32_matmul_precision(precision)  # a graph keeps the one of its capture
        products[precision] = product_work(left, right)
        for name in names:
            measured[name, precision, captured] = warm_up(build_updates(load_algorithm(name), size, dataset, captured))
    rates: dict[Any, list] = {key: [] for key in (*measured, *products)}
    for _ in tqdm(range(ROUNDS), leave=False, disable=None):
        for precision, product in products.items():
            torch.set_float32_matmul_precision(precision)
            rates[precision].append(rate(product, seconds / 4, wait) * PRODUCTS * 2 * size.batch_size * size.width**2)
            for key in [key for key in measured if key[1] == precision]:
                rates[key].append(update_rate(measured[key], seconds, wait))
    torch.set_float32_matmul_precision(PRECISIONS[0])
    return {key: statistics.median(values) for key, values in rates.items()}


def measure(
    names: Sequence[str], size_names: Sequence[str], modes: Sequence[Mode], seconds: float, device: torch.device
) -> list[dict]:
    """A row per size, algorithm and mode: parameters, megaflops, updates per second, time by part.

    The profiler's turn is after all rates: on a GPU it can leave its tracing on, which slows what comes later.
    """
    datasets = {size_name: random_dataset(SIZES[size_name], device) for size_name in size_names}
    rates = {name: measure_rates(names, SIZES[name], data, modes, seconds) for name, data in datasets.items()}
    rows = []
    for size_name, name in itertools.product(size_names, names):
        updates = build_updates(load_algorithm(name), SIZES[size_name], datasets[size_name])
        agent, sample = updates.agent, updates.next_batch
        parameters = sum(parameter.numel() for parameter in agent.parameters() if parameter.requires_grad)
        flops, split = count_flops(agent, sample()), time_split(agent, sample, SPLIT_UPDATES)
        for precision, captured in modes:
            speed, products = rates[size_name][name, precision, captured], rates[size_name][precision]
            row = {
                "size": size_name,
                "algorithm": name,
                "precision": precision,
                "mode": "graph" if captured else "eager",
                "parameters": parameters,
                "megaflop_per_update": round(flops / 1e6, 1),
                "updates_per_second": round(speed, 2),
                "gigaflop_per_second": round(flops * speed / 1e9, 2),
                "product_gigaflop_per_second": round(products / 1e9, 2),
                "ratio": round(flops * speed / products, 3),
            }
            rows.append(row | {part: round(share, 3) for part, share in split.items()})
    return rows


def main() -> None:
    parser = CommandParser("python -m harness.throughput", __doc__)
    parser.add_argument("--algorithm", nargs="+", default=list(algorithm_names()), help="default: all")
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=["published", "released", "quickstart"])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement in each of the five rounds")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0 = torch's choice")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["highest"], help="of products")
    parser.add_argument("--csv", type=Path, help="also write the rows there")
    parser.add_argument("--plot", type=Path, help="also draw the time of an update by part there (PNG)")
    with exit_on_user_error():
        options = parser.parse_args()
        device = choose_device(options.device)
        if options.threads:
            torch.set_num_threads(options.threads)
        modes = [
            (precision, captured)
            for precision in options.precision
            for captured in ((False, True) if device.type == "cuda" else (False,))
        ]
        rows = measure(options.algorithm, options.size, modes, options.seconds, device)
        show(rows, device, options.csv)
        if options.plot:
            eager = [row for row in rows if (row["precision"], row["mode"]) == (options.precision[0], "eager")]
            plot_time_split(eager, PARTS, options.plot)


if __name__ == "__main__":
    main()
