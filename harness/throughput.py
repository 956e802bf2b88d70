"""What an update of each algorithm costs: parameters, floating-point operations, updates per second, time by part.

    python -m harness.throughput --algorithm dipole fql iql --size published quickstart --csv FILE --plot FILE
    python -m harness.throughput --device cuda --precision highest high --seeds 1 8

Random rows of the size's shapes take the place of data, so no data set is needed; an update includes the sampling of
its minibatch. Rounds of everything measured follow each other and the median round counts, since machines are noisy;
the rate of plain matrix products of the networks' width, measured in the same rounds at the same precision, says what
the machine gives. On a GPU each algorithm is measured twice: update by update (eager) and as a CUDA graph (graph).
Several seeds are trained side by side; their updates per second count together.
"""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from envs.dataset import Dataset
from envs.errors import CommandParser, UserError, exit_on_user_error
from envs.files import write_rows_csv
from harness.algorithms import ROOT, Algorithm, algorithm_names, load_algorithm
from harness.command_line import load_config
from harness.devices import choose_device
from harness.plots import plot_time_split
from harness.rates import rate, waiting_for
from harness.run_fields import MATMUL_PRECISIONS
from harness.time_split import PARTS, time_split
from harness.updates import UPDATES_PER_REPLAY, WARM_UP_UPDATES, Updates

ROUNDS = 5
ROWS = 100_000  # of the data that minibatches are sampled from
SPLIT_UPDATES = 10  # profiled for the time by part
PRODUCTS = 100  # matrix products in one call of what measures their rate


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


@dataclasses.dataclass(frozen=True)
class Mode:
    """How updates are made: one by one or as a CUDA graph, of how many seeds side by side, in which precision."""

    precision: str
    captured: bool
    seeds: int


def build_agent(algorithm: Algorithm, size: Size, device: torch.device) -> torch.nn.Module:
    """The algorithm at that size: its default options and the size's networks, or its quick-start config."""
    if size.hidden_dims is None:
        config = load_config(algorithm.config_class, ROOT / "configs" / algorithm.name / "quickstart.yaml")
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


def build_updates(name: str, size: Size, dataset: Dataset, captured: bool, seeds: int) -> Updates:
    """Updates of so many agents of the algorithm, with minibatches of their own from `dataset`, on its device."""
    device = dataset.observations.device
    algorithm = load_algorithm(name)
    agents = [build_agent(algorithm, size, device) for _ in range(seeds)]
    batches = [torch.Generator(device).manual_seed(seed) for seed in range(seeds)]
    samplers = [
        lambda agent=agent, generator=generator: dataset.sample(size.batch_size, generator, agent.batch_fields)
        for agent, generator in zip(agents, batches, strict=True)
    ]
    generators = [[agent.noise.generator, generator] for agent, generator in zip(agents, batches, strict=True)]
    return Updates(agents, samplers, generators, captured)


def warm_up(updates: Updates) -> Updates:
    """The same after its first updates, the last of which captures the graph."""
    for _ in range(WARM_UP_UPDATES + 1):
        updates.advance(1)
    return updates


def update_rate(
    updates: Updates, seconds: float, wait: Callable[[], Any], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Updates per second of all agents together."""
    per_call = UPDATES_PER_REPLAY if updates.captured else 1
    return rate(lambda: updates.advance(per_call), seconds, wait, clock) * per_call * len(updates.agents)


def product_work(left: torch.Tensor, right: torch.Tensor) -> Callable[[], Any]:
    """What makes PRODUCTS products left @ right: on a GPU as one CUDA graph, else their launches would be measured."""
    product = torch.mm(left, right)

    def work() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right, out=product)

    if not left.is_cuda:
        return work
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


@dataclasses.dataclass(frozen=True)
class Cost:
    """What does not depend on how an algorithm's updates are made, and the shares of the time of eager ones."""

    parameters: int
    flops: int
    split: Dict[str, float]


def cost(name: str, size: Size, dataset: Dataset) -> Cost:
    """The cost of an update of the algorithm."""
    updates = build_updates(name, size, dataset, captured=False, seeds=1)
    (agent,), (sample,) = updates.agents, updates.samplers
    parameters = sum(parameter.numel() for parameter in agent.parameters() if parameter.requires_grad)
    return Cost(parameters, count_flops(agent, sample()), time_split(agent, sample, SPLIT_UPDATES))


def measure(
    names: Sequence[str], size_name: str, modes: Sequence[Mode], seconds: float, device: torch.device
) -> List[dict]:
    """A row per algorithm and mode: parameters, megaflops, updates per second (median of rounds), time by part."""
    size = SIZES[size_name]
    dataset, wait = random_dataset(size, device), waiting_for(device)
    left, right = (torch.rand(rows, size.width, device=device) for rows in (size.batch_size, size.width))
    costs = {name: cost(name, size, dataset) for name in names}
    measured, products = {}, {}
    for mode in modes:
        torch.set_float32_matmul_precision(mode.precision)  # a graph keeps the one of its capture
        products[mode.precision] = product_work(left, right)
        for name in names:
            measured[name, mode] = warm_up(build_updates(name, size, dataset, mode.captured, mode.seeds))
    rates: Dict[Any, list] = {key: [] for key in (*measured, *products)}
    for _ in tqdm(range(ROUNDS), desc=size_name, leave=False, disable=None):
        for precision, product in products.items():
            torch.set_float32_matmul_precision(precision)
            rates[precision].append(rate(product, seconds / 4, wait) * PRODUCTS * 2 * size.batch_size * size.width**2)
            for (name, mode), updates in measured.items():
                if mode.precision == precision:
                    rates[name, mode].append(update_rate(updates, seconds, wait))
    torch.set_float32_matmul_precision(MATMUL_PRECISIONS[0])
    median = {key: statistics.median(values) for key, values in rates.items()}
    return [
        row(size_name, name, mode, costs[name], median[name, mode], median[mode.precision])
        for name in names
        for mode in modes
    ]


def row(size_name: str, name: str, mode: Mode, its_cost: Cost, speed: float, product_rate: float) -> dict:
    """A row of the table: `speed` in updates, `product_rate` in floating-point operations per second."""
    return {
        "size": size_name,
        "algorithm": name,
        "precision": mode.precision,
        "mode": "graph" if mode.captured else "eager",
        "seeds": mode.seeds,
        "parameters": its_cost.parameters,
        "megaflop_per_update": round(its_cost.flops / 1e6, 1),
        "updates_per_second": round(speed, 2),
        "gigaflop_per_second": round(its_cost.flops * speed / 1e9, 2),
        "product_gigaflop_per_second": round(product_rate / 1e9, 2),
        "ratio": round(its_cost.flops * speed / product_rate, 3),
        **{part: round(share, 3) for part, share in its_cost.split.items()},
    }


def count_flops(agent: torch.nn.Module, batch: dict) -> int:
    """Floating-point operations of one update's matrix products, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        agent.update(batch)
    return counter.get_total_flops()


def format_rows(rows: List[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in line.values()] for line in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def spread(name: str, values: Sequence[float]) -> Dict[str, float]:
    """The smallest, the median and the largest of the values, as columns of a table."""
    parts: Dict[str, Callable] = {"min": min, "median": statistics.median, "max": max}
    return {f"{name}_{part}": round(function(values), 3) for part, function in parts.items()}


def machine(device: torch.device) -> str:
    """The device's name, the threads and torch's version, for the head of a table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def processor() -> str:
    """The CPU's model as Linux names it, else the architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]} ({len(models)} cores)" if models else "CPU"


def main() -> None:
    parser = CommandParser("python -m harness.throughput", __doc__)
    parser.add_argument("--algorithm", nargs="+", default=list(algorithm_names()), help="default: all")
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement in each of the five rounds")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0 = torch's choice")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", nargs="+", choices=MATMUL_PRECISIONS, default=["highest"], help="of products")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="agents trained side by side")
    parser.add_argument("--csv", type=Path, help="also write the rows there")
    parser.add_argument("--plot", type=Path, help="also draw the time of an update by part there (PNG)")
    with exit_on_user_error():
        options = parser.parse_args()
        if min(options.seeds) < 1:
            raise UserError(f"--seeds is {min(options.seeds)}, set it to 1 or more")
        device = choose_device(options.device)
        if options.threads:
            torch.set_num_threads(options.threads)
        modes = [
            Mode(precision, captured, seeds)
            for precision in options.precision
            for captured in ((False, True) if device.type == "cuda" else (False,))
            for seeds in options.seeds
        ]
        rows: List[dict] = []
        for size in options.size:
            rows += measure(options.algorithm, size, modes, options.seconds, device)
        print(f"{machine(device)}\n\n{format_rows(rows)}")
        if options.csv:
            write_rows_csv(rows, options.csv)
        if options.plot:
            plot_time_split([line for line in rows if is_plotted(line, rows[0])], PARTS, options.plot)


def is_plotted(line: dict, first: dict) -> bool:
    """Whether the figure shows the row: one per size and algorithm, made as the first, whose updates are eager."""
    return all(line[key] == first[key] for key in ("precision", "mode", "seeds"))


if __name__ == "__main__":
    main()
