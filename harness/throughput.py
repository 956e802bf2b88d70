"""What an update of each algorithm costs: parameters, floating-point operations and updates per second.

    python -m harness.throughput --algorithm dipole fql iql --size published quickstart

Random minibatches of the size's shapes take the place of data, so no data set is needed. Rounds of all algorithms
follow each other and the median round counts, since machines are noisy; the rate of plain matrix products of the same
width, measured in the same rounds, says what the machine gives.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from harness.algorithms import algorithm_names, load_algorithm
from harness.command_line import exit_on_user_error
from harness.devices import choose_device
from harness.evaluate import write_rows_csv

ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Size:
    """Shapes of a benchmark: state and action dimensions, hidden layers of every network, minibatch."""

    observation_dim: int
    action_dim: int
    hidden_dims: tuple
    batch_size: int


SIZES = {
    "published": Size(28, 5, (512, 512, 512, 512), 256),  # cube-single with FQL's networks
    "quickstart": Size(5, 1, (128, 128), 256),  # cartpole
}


def build_agent(name: str, size: Size, device: torch.device) -> torch.nn.Module:
    """The algorithm with its default options and networks of that size."""
    algorithm = load_algorithm(name)
    config = dataclasses.replace(
        algorithm.config_class(),
        actor_hidden_dims=size.hidden_dims,
        value_hidden_dims=size.hidden_dims,
        batch_size=size.batch_size,
    )
    return algorithm.agent_class(config, size.observation_dim, size.action_dim).to(device)


def random_batch(size: Size, fields: tuple, device: torch.device) -> Dict[str, torch.Tensor]:
    widths = {"observations": size.observation_dim, "next_observations": size.observation_dim}
    widths |= {"actions": size.action_dim, "next_actions": size.action_dim}
    columns = ("observations", "next_observations", "actions", *fields)
    batch = {name: torch.rand(size.batch_size, widths[name], device=device) for name in columns}
    return batch | {name: torch.rand(size.batch_size, device=device) for name in ("rewards", "masks")}


def rate(work: Callable[[], Any], seconds: float, device: torch.device) -> float:
    """Calls of `work` per second, over at least `seconds` after one call that is not counted."""
    work()
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        work()
        calls += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return calls / elapsed


def measure(names: List[str], size_name: str, seconds: float, device: torch.device) -> List[dict]:
    """A row per algorithm: parameters, megaflops and updates per second (median of rounds), and their ratio."""
    size = SIZES[size_name]
    agents = {name: build_agent(name, size, device) for name in names}
    batches = {name: random_batch(size, agent.batch_fields, device) for name, agent in agents.items()}
    flops = {}
    for name, agent in agents.items():
        with FlopCounterMode(display=False) as counter:
            agent.update(batches[name])
        flops[name] = counter.get_total_flops()
    width = size.hidden_dims[0]
    left, right = torch.rand(size.batch_size, width, device=device), torch.rand(width, width, device=device)
    updates, products = {name: [] for name in names}, []
    for _ in tqdm(range(ROUNDS), desc=size_name, leave=False, disable=None):
        products.append(rate(lambda: torch.mm(left, right), seconds / 4, device))
        for name, agent in agents.items():
            updates[name].append(rate(lambda agent=agent, name=name: agent.update(batches[name]), seconds, device))
    product_rate = statistics.median(products) * 2 * size.batch_size * width * width
    return [
        {
            "size": size_name,
            "algorithm": name,
            "parameters": sum(p.numel() for p in agents[name].parameters() if p.requires_grad),
            "megaflop_per_update": round(flops[name] / 1e6, 1),
            "updates_per_second": round(statistics.median(updates[name]), 2),
            "gigaflop_per_second": round(flops[name] * statistics.median(updates[name]) / 1e9, 2),
            "product_gigaflop_per_second": round(product_rate / 1e9, 2),
        }
        for name in names
    ]


def format_rows(rows: List[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m harness.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", nargs="+", default=list(algorithm_names()), help="default: all")
    parser.add_argument("--size", nargs="+", choices=sorted(SIZES), default=sorted(SIZES))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each algorithm in each of the five rounds")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0 = torch's choice")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--csv", type=Path, help="also write the rows there")
    options = parser.parse_args(sys.argv[1:])
    with exit_on_user_error():
        device = choose_device(options.device)
        if options.threads:
            torch.set_num_threads(options.threads)
        rows = [row for size in options.size for row in measure(options.algorithm, size, options.seconds, device)]
        print(f"device {device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n\n{format_rows(rows)}")
        if options.csv:
            write_rows_csv(rows, options.csv)


if __name__ == "__main__":
    main()
