"""Trains on made-up data for some thousands of updates: the time of a million, and whether the host ever waits.

    python -m benchmarks.training_run --algorithm dipole --updates 20000 --precision high highest
    python -m benchmarks.training_run --updates 200    # every algorithm

The updates are made as in a run, between one row of train.csv and the next; on a GPU as a CUDA graph, and any wait for
the GPU between two rows is an error. The data can be learnt: the reward is a function of state and
action and every transition ends, so the critics' loss must fall, or without critics the policy's. Exits with 1 where
it does not.
"""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator

import torch
from tqdm import tqdm

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import write_rows_csv
from envs.dataset import Dataset
from harness.algorithms import algorithm_names
from harness.devices import choose_device
from harness.measurement.table import format_rows, machine
from harness.measurement.workload import ROWS, SIZES, Size, build_updates, warm_up
from harness.run_fields import MATMUL_PRECISIONS

MILLION = 1_000_000
LOG_ROWS = 10
LOSSES = ("critic/loss", "actor/imitation_loss")  # that must fall: the first that an algorithm has


def learnable_dataset(size: Size, device: torch.device) -> Dataset:
    """ROWS transitions that end at once: actions that follow the state, rewards by state and action."""
    generator = torch.Generator().manual_seed(0)
    observations = torch.rand(ROWS, size.observation_dim, generator=generator)
    noise = torch.rand(ROWS, size.action_dim, generator=generator)
    actions = (observations[:, :1] - 0.5 + noise - 0.5).clamp(-1, 1)
    rewards = 1 + observations.mean(dim=1) + actions.mean(dim=1)
    valid = torch.arange(ROWS - 1)
    return Dataset(observations, actions, rewards, masks=torch.zeros(ROWS), valid=valid).to(device)


@contextlib.contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Within it, whatever makes the host wait for the GPU raises RuntimeError."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def measure(
    name: str, size_name: str, precision: str, captured: bool, count: int, device: torch.device
) -> Dict[str, Any]:
    """A row: the speed of `count` updates after those of warm-up, and the loss that must fall before and after."""
    torch.set_float32_matmul_precision(precision)
    size = SIZES[size_name]
    updates = build_updates(name, size, learnable_dataset(size, device), captured)
    (metrics,) = updates.advance(1)
    loss = next(metric for metric in LOSSES if metric in metrics)
    first = metrics[loss].item()
    warm_up(updates)
    interval = max(1, count // LOG_ROWS)
    started = time.perf_counter()
    with tqdm(total=count, desc=f"{name} {precision}", leave=False, disable=None) as progress:
        for done in range(0, count, interval):
            with no_waiting(device):
                (metrics,) = updates.advance(min(interval, count - done))
            row = {metric: value.item() for metric, value in metrics.items()}  # as in train.csv: waits for the device
            progress.update(min(interval, count - done))
    seconds = time.perf_counter() - started
    torch.set_float32_matmul_precision(MATMUL_PRECISIONS[0])
    return {
        "size": size_name,
        "algorithm": name,
        "precision": precision,
        "mode": "graph" if captured else "eager",
        "updates": count,
        "seconds": round(seconds, 2),
        "updates_per_second": round(count / seconds, 1),
        "minutes_per_million": round(MILLION * seconds / count / 60, 2),
        "loss": loss,
        "first_loss": round(first, 4),
        "last_loss": round(row[loss], 4),
    }


def main() -> None:
    parser = CommandParser("python -m benchmarks.training_run", __doc__)
    parser.add_argument("--algorithm", nargs="+", default=list(algorithm_names()), help="default: all")
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=["published"])
    parser.add_argument("--precision", nargs="+", choices=MATMUL_PRECISIONS, default=["highest"], help="of products")
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--eager", action="store_true", help="updates one by one on a GPU too, not as a CUDA graph")
    parser.add_argument("--csv", type=Path, help="also write the rows there")
    with exit_on_user_error():
        options = parser.parse_args()
        if options.updates < 1:
            raise UserError(f"--updates is {options.updates}, set it to 1 or more")
        device = choose_device(options.device)
        captured = device.type == "cuda" and not options.eager
        rows = [
            measure(name, size, precision, captured, options.updates, device)
            for size in options.size
            for name in options.algorithm
            for precision in options.precision
        ]
        print(f"{machine(device)}\n\n{format_rows(rows)}")
        if options.csv:
            write_rows_csv(rows, options.csv)
    if not all(row["last_loss"] < row["first_loss"] for row in rows):  # also where one is not a number
        sys.exit(1)


if __name__ == "__main__":
    main()
