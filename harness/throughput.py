"""What an update of each algorithm costs: parameters, floating-point operations, updates per second, time by part.

    python -m harness.throughput --algorithm dipole fql iql --size published quickstart --csv FILE --plot FILE

Random rows of the size's shapes take the place of data, so no data set is needed; an update includes the sampling of
its minibatch. Rounds of all algorithms follow each other and the median round counts, since machines are noisy; the
rate of plain matrix products of the networks' width, measured in the same rounds, says what the machine gives.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from envs.dataset import Dataset
from envs.errors import exit_on_user_error
from harness.algorithms import ROOT, algorithm_names, load_algorithm
from harness.command_line import load_config
from harness.devices import choose_device
from harness.evaluate import write_rows_csv
from harness.plots import plot_time_split
from harness.time_split import PARTS, time_split

ROUNDS = 5
ROWS = 100_000  # of the data that minibatches are sampled from
SPLIT_UPDATES = 10  # profiled for the time by part
MIN_CALLS = 3  # between two looks at the clock, so that a GPU is not waited for after each


@dataclasses.dataclass(frozen=True)
class Size:
    """Shapes of a benchmark: state and action dimensions, and networks (None: those of the algorithm's own config).

    An algorithm without such networks, such as one of a transformer, has those of its own defaults. width: of the
    matrix product that shows what the machine gives.
    """

    observation_dim: int
    action_dim: int
    hidden_dims: Optional[tuple]
    batch_size: int
    width: int


SIZES = {
    "published": Size(28, 5, (512, 512, 512, 512), 256, 512),  # cube-single with FQL's networks
    "released": Size(28, 5, (512, 512, 512), 256, 512),  # the same with the networks of DIPOLE's released code
    "quickstart": Size(5, 1, None, 256, 128),  # cartpole with configs/<algorithm>/quickstart.yaml
}


def build_agent(name: str, size: Size, device: torch.device) -> torch.nn.Module:
    """The algorithm at that size: its default options and the size's networks, or its quick-start config."""
    algorithm = load_algorithm(name)
    if size.hidden_dims is None:
        config = load_config(algorithm.config_class, ROOT / "configs" / name / "quickstart.yaml")
    else:
        fields = {field.name for field in dataclasses.fields(algorithm.config_class)}
        dims = {field: size.hidden_dims for field in ("actor_hidden_dims", "value_hidden_dims") if field in fields}
        config = dataclasses.replace(algorithm.config_class(), **dims, batch_size=size.batch_size)
    return algorithm.agent_class(config, size.observation_dim, size.action_dim).to(device)


def random_dataset(size: Size, device: torch.device) -> Dataset:
    """ROWS rows of uniform numbers."""
    return Dataset(
        observations=torch.rand(ROWS, size.observation_dim),
        actions=torch.rand(ROWS, size.action_dim),
        rewards=torch.rand(ROWS),
        masks=torch.ones(ROWS),
        valid=torch.arange(ROWS - 1),
    ).to(device)


def rate(work: Callable[[], Any], seconds: float, device: torch.device) -> float:
    """Calls of `work` per second, over at least `seconds` after one call that is not counted."""

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    work()
    calls, started = 0, finished()
    elapsed = 0.0
    while elapsed < seconds:
        for _ in range(MIN_CALLS):
            work()
        calls += MIN_CALLS
        elapsed = finished() - started
    return calls / elapsed


def measure(names: List[str], size_name: str, seconds: float, device: torch.device) -> List[dict]:
    """A row per algorithm: parameters, megaflops and updates per second (median of rounds), and the time by part."""
    size = SIZES[size_name]
    dataset, generator = random_dataset(size, device), torch.Generator(device).manual_seed(0)
    agents = {name: build_agent(name, size, device) for name in names}
    samples = {
        name: lambda fields=agent.batch_fields: dataset.sample(size.batch_size, generator, fields)
        for name, agent in agents.items()
    }
    flops = {name: count_flops(agent, samples[name]()) for name, agent in agents.items()}
    left, right = (torch.rand(rows, size.width, device=device) for rows in (size.batch_size, size.width))
    updates: Dict[str, list] = {name: [] for name in names}
    products = []
    for _ in tqdm(range(ROUNDS), desc=size_name, leave=False, disable=None):
        products.append(rate(lambda: torch.mm(left, right), seconds / 4, device))
        for name, agent in agents.items():
            updates[name].append(
                rate(lambda agent=agent, sample=samples[name]: agent.update(sample()), seconds, device)
            )
    product_rate = statistics.median(products) * 2 * size.batch_size * size.width**2
    return [
        {
            "size": size_name,
            "algorithm": name,
            "parameters": sum(p.numel() for p in agent.parameters() if p.requires_grad),
            "megaflop_per_update": round(flops[name] / 1e6, 1),
            "updates_per_second": round(statistics.median(updates[name]), 2),
            "gigaflop_per_second": round(flops[name] * statistics.median(updates[name]) / 1e9, 2),
            "product_gigaflop_per_second": round(product_rate / 1e9, 2),
            "ratio": round(flops[name] * statistics.median(updates[name]) / product_rate, 3),
            **{part: round(share, 3) for part, share in time_split(agent, samples[name], SPLIT_UPDATES).items()},
        }
        for name, agent in agents.items()
    ]


def count_flops(agent: torch.nn.Module, batch: dict) -> int:
    """Floating-point operations of one update's matrix products, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        agent.update(batch)
    return counter.get_total_flops()


def format_rows(rows: List[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m harness.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", nargs="+", default=list(algorithm_names()), help="default: all")
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each algorithm in each of the five rounds")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0 = torch's choice")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--csv", type=Path, help="also write the rows there")
    parser.add_argument("--plot", type=Path, help="also draw the time of an update by part there (PNG)")
    options = parser.parse_args(sys.argv[1:])
    with exit_on_user_error():
        device = choose_device(options.device)
        if options.threads:
            torch.set_num_threads(options.threads)
        rows = [row for size in options.size for row in measure(options.algorithm, size, options.seconds, device)]
        print(f"device {device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n\n{format_rows(rows)}")
        if options.csv:
            write_rows_csv(rows, options.csv)
        if options.plot:
            plot_time_split(rows, PARTS, options.plot)


if __name__ == "__main__":
    main()
