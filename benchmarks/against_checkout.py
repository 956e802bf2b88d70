"""CPU time of an update here against the same algorithm's in another checkout of this repository, by turns.

    git worktree add /tmp/old main
    python -m benchmarks.against_checkout /tmp/old --algorithm dipole iql --size quickstart --csv FILE

One process makes the updates of both with one thread and measures CPU time, which other programs disturb less than the
clock on the wall. Each round gives one ratio, above 1 where this checkout is faster; with `--compile` it is compiled.
"""

import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.throughput import SIZES, build_updates, random_dataset, show, spread
from common.errors import CommandParser, UserError, exit_on_user_error
from harness.algorithms import ROOT, Algorithm, algorithm_names, load_algorithm
from harness.updates import WARM_UP_UPDATES, Updates

CPU = torch.device("cpu")


def load_from(checkout: Path, ours: Algorithm) -> Algorithm:
    """The algorithm's file of another checkout, beside ours. Raises UserError where it has none."""
    path = checkout / Path(sys.modules[ours.agent_class.__module__].__file__).relative_to(ROOT)
    if not path.is_file():
        raise UserError(f"{path}: no such file, give the root of a checkout that has this algorithm")
    specification = importlib.util.spec_from_file_location(f"other_checkout_{ours.name}", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    config_class, agent_class = (getattr(module, part.__name__) for part in (ours.config_class, ours.agent_class))
    return Algorithm(ours.name, config_class, agent_class)


def milliseconds(updates: Updates, count: int) -> float:
    """CPU time of an update, of `count`."""
    started = time.process_time()
    for _ in range(count):
        updates.advance(1)
    return (time.process_time() - started) / count * 1000


def measure(name: str, size_name: str, checkout: Path, rounds: int, count: int, compiled: bool) -> dict[str, Any]:
    """The row of one algorithm and size."""
    ours, size = load_algorithm(name), SIZES[size_name]
    dataset = random_dataset(size, CPU)
    updates = [build_updates(ours, size, dataset, compiled=compiled)]
    updates.append(build_updates(load_from(checkout, ours), size, dataset))
    for each in updates:
        milliseconds(each, WARM_UP_UPDATES)
    times: list[list[float]] = []
    for number in tqdm(range(rounds), desc=f"{name} {size_name}", leave=False, disable=None):
        first = number % 2  # each goes first by turns
        pair = {index: milliseconds(updates[index], count) for index in (first, 1 - first)}
        times.append([pair[0], pair[1]])
    return {
        "size": size_name,
        "algorithm": name,
        "milliseconds": round(statistics.median(mine for mine, _ in times), 3),
        "other_milliseconds": round(statistics.median(other for _, other in times), 3),
        **spread("ratio", [other / mine for mine, other in times]),
    }


def main() -> None:
    parser = CommandParser("python -m benchmarks.against_checkout", __doc__)
    parser.add_argument("checkout", type=Path, help="root of the other checkout")
    parser.add_argument("--algorithm", nargs="+", default=list(algorithm_names()), help="default: all")
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=["released", "quickstart"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--updates", type=int, default=10, help="of each of the two in each round")
    parser.add_argument("--compile", action="store_true", help="compile this checkout's updates, not the other's")
    parser.add_argument("--csv", type=Path, help="also write the rows there")
    with exit_on_user_error():
        options = parser.parse_args()
        for flag in ("rounds", "updates"):
            if getattr(options, flag) < 1:
                raise UserError(f"--{flag} is {getattr(options, flag)}, set it to 1 or more")
        torch.set_num_threads(1)
        arguments = options.checkout.resolve(), options.rounds, options.updates, options.compile
        rows = [measure(name, size, *arguments) for size in options.size for name in options.algorithm]
        show(rows, CPU, options.csv)


if __name__ == "__main__":
    main()
