"""What an update of each algorithm costs: parameters, floating-point operations and updates per second.

    python -m benchmarks.throughput --algorithm dipole fql iql --size published quickstart --csv FILE
    python -m benchmarks.throughput --device cuda --precision highest high

Random rows of the size's shapes take the place of data, so no data set is needed; an update includes the sampling of
its minibatch. Rounds of everything measured follow each other and the median round counts, since machines are noisy;
the rate of plain matrix products of the networks' width, measured in the same rounds at the same precision, says what
the machine gives. On a GPU each algorithm is measured twice: update by update (eager) and as a CUDA graph (graph).
"""

import dataclasses
import itertools
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from common.errors import CommandParser, exit_on_user_error
from common.files import format_rows, write_rows_csv
from envs.dataset import Dataset
from harness.algorithms import Algorithm, algorithm_names, load_algorithm
from harness.compilation import compile_functions
from harness.config import RunConfig, load_settings
from harness.devices import choose_device
from harness.updates import UPDATES_PER_REPLAY, WARM_UP_UPDATES, Updates

# ---- Agents and data of a size ----

ROWS = 100_000  # of the data that minibatches are sampled from
ROUNDS = 5
PRECISIONS = get_args(RunConfig.__annotations__["matmul_precision"])


@dataclasses.dataclass(frozen=True)
class Size:
    """Shapes of a benchmark: state and action dimensions, and networks (None: those of the algorithm's own config).

    An algorithm without such networks, such as one of a transformer, has those of its own defaults. width: of the
    matrix product that shows what the machine gives.
    """

    observation_dim: int
    action_dim: int
    hidden_dims: tuple | None
    batch_size: int
    width: int
    num_critics: int = 2


SIZES = {
    "published": Size(28, 5, (512, 512, 512, 512), 256, 512),  # cube-single with FQL's networks
    "released": Size(28, 5, (512, 512, 512), 256, 512),  # the same with the networks of DIPOLE's released code
    "quickstart": Size(5, 1, None, 256, 128),  # cartpole with the quick start's settings
    "protocol_b": Size(28, 25, (512, 512, 512, 512), 256, 512, 10),  # cube-single, chunks of 5, QAM's ten critics
}


def build_agent(algorithm: Algorithm, size: Size, device: torch.device) -> torch.nn.Module:
    """The algorithm at that size: its default options and the size's networks, or the quick start's settings."""
    if size.hidden_dims is None:
        config = load_settings(algorithm.config_class, {"task": "exorl/local_sticky_random/cartpole_swingup"}).config
    else:
        fields = {field.name for field in dataclasses.fields(algorithm.config_class)}
        values = dict.fromkeys(("actor_hidden_dims", "value_hidden_dims"), size.hidden_dims)
        values |= {"num_critics": size.num_critics}
        config = algorithm.config_class(**{name: value for name, value in values.items() if name in fields})
    return algorithm.agent_class(config, size.observation_dim, size.action_dim).to(device)


def random_dataset(size: Size, device: torch.device, rows: int = ROWS) -> Dataset:
    """So many rows of uniform numbers."""
    return Dataset(
        observations=torch.rand(rows, size.observation_dim),
        actions=torch.rand(rows, size.action_dim),
        rewards=torch.rand(rows),
        masks=torch.ones(rows),
        valid=torch.arange(rows - 1),
    ).to(device)


def build_updates(
    algorithm: Algorithm, size: Size, dataset: Dataset, captured: bool = False, compiled: bool = False
) -> Updates:
    """Updates of an agent of the algorithm, with minibatches from `dataset`, on its device."""
    device = dataset.observations.device
    agent = build_agent(algorithm, size, device)
    if compiled:
        compile_functions(agent)
    batches = torch.Generator(device).manual_seed(0)

    def next_batch() -> dict:
        return dataset.sample(size.batch_size, batches, agent.batch_fields)

    return Updates(agent, next_batch, [agent.noise.generator, batches], captured)


def warm_up(updates: Updates) -> Updates:
    """The same after its first updates, the last of which captures the graph."""
    for _ in range(WARM_UP_UPDATES + 1):
        updates.advance(1)
    return updates


class ProductFlops(TorchDispatchMode):
    """Adds up the floating-point operations of matrix products, by torch's own formulas, without fused attention's.

    torch's FlopCounterMode also tracks modules, and so refuses QSM's gradient of a network's input (torch 2.13.0).
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def count_flops(agent: torch.nn.Module, batch: dict) -> int:
    """Floating-point operations of one update's matrix products."""
    with ProductFlops() as flops:
        agent.update(batch)
    return flops.total


# ---- Rates ----

MIN_CALLS = 3  # between two looks at the clock, so that a GPU is not waited for after each
PRODUCTS = 100  # matrix products in one call of what measures their rate


def rate(
    work: Callable[[], Any],
    seconds: float,
    wait: Callable[[], Any],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Calls of `work` per second of `clock`, over at least `seconds` after one call that is not counted.

    wait: returns when the work of all calls so far is done.
    """

    def finished() -> float:
        wait()
        return clock()

    work()
    calls, started = 0, finished()
    while True:
        for _ in range(MIN_CALLS):
            work()
        calls += MIN_CALLS
        elapsed = finished() - started
        if elapsed >= seconds:
            return calls / elapsed


def waiting_for(device: torch.device) -> Callable[[], Any]:
    """What waits for the device; a CPU has always finished."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def update_rate(
    updates: Updates, seconds: float, wait: Callable[[], Any], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Updates per second."""
    per_call = UPDATES_PER_REPLAY if updates.captured else 1
    return rate(lambda: updates.advance(per_call), seconds, wait, clock) * per_call


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


# ---- Tables ----


def show(rows: list[dict], device: torch.device, csv: Path | None, versions: str = "") -> None:
    """Prints the rows below what they were measured on (versions: of more than torch), and writes them to `csv`."""
    print(f"{machine(device)}{versions}\n\n{format_rows(rows)}")
    if csv:
        write_rows_csv(rows, csv)


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """The smallest, the median and the largest of the values, as columns of a table."""
    parts: dict[str, Callable] = {"min": min, "median": statistics.median, "max": max}
    return {f"{name}_{part}": round(function(values), 3) for part, function in parts.items()}


def machine(device: torch.device) -> str:
    """The device's name (of a CPU as Linux has it), the threads and torch's version, for the head of a table."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
        name = f"{models[0]} ({len(models)} cores)" if models else "CPU"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


# ---- The command ----


def measure(
    names: Sequence[str], size_name: str, modes: Sequence[tuple[str, bool]], seconds: float, device: torch.device
) -> list[dict]:
    """A row per algorithm and mode (precision, whether a CUDA graph is replayed), of medians of the rounds."""
    size, wait = SIZES[size_name], waiting_for(device)
    dataset = random_dataset(size, device)
    left, right = (torch.rand(rows, size.width, device=device) for rows in (size.batch_size, size.width))
    measured, products = {}, {}
    for precision, captured in modes:
        torch.set_float32_matmul_precision(precision)  # a graph keeps the one of its capture
        products[precision] = product_work(left, right)
        for name in names:
            measured[name, precision, captured] = warm_up(build_updates(load_algorithm(name), size, dataset, captured))
    rates: dict[Any, list] = {key: [] for key in (*measured, *products)}
    for _ in tqdm(range(ROUNDS), desc=size_name, leave=False, disable=None):
        for precision, product in products.items():
            torch.set_float32_matmul_precision(precision)
            rates[precision].append(rate(product, seconds / 4, wait) * PRODUCTS * 2 * size.batch_size * size.width**2)
            for key in [key for key in measured if key[1] == precision]:
                rates[key].append(update_rate(measured[key], seconds, wait))
    torch.set_float32_matmul_precision(PRECISIONS[0])
    rows = []
    for (name, precision, captured), updates in measured.items():
        speed, products_speed = (statistics.median(rates[key]) for key in ((name, precision, captured), precision))
        flops = count_flops(build_agent(load_algorithm(name), size, device), updates.next_batch())
        rows.append(
            {
                "size": size_name,
                "algorithm": name,
                "precision": precision,
                "mode": "graph" if captured else "eager",
                "parameters": sum(each.numel() for each in updates.agent.parameters() if each.requires_grad),
                "megaflop_per_update": round(flops / 1e6, 1),
                "updates_per_second": round(speed, 2),
                "gigaflop_per_second": round(flops * speed / 1e9, 2),
                "product_gigaflop_per_second": round(products_speed / 1e9, 2),
                "ratio": round(flops * speed / products_speed, 3),
            }
        )
    return rows


def main() -> None:
    parser = CommandParser("python -m benchmarks.throughput", __doc__)
    parser.add_argument("--algorithm", nargs="+", default=list(algorithm_names()), help="default: all")
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=["published", "released", "quickstart"])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement in each of the five rounds")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0 = torch's choice")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["highest"], help="of products")
    parser.add_argument("--csv", type=Path, help="also write the rows there")
    with exit_on_user_error():
        options = parser.parse_args()
        device = choose_device(options.device)
        if options.threads:
            torch.set_num_threads(options.threads)
        modes = list(itertools.product(options.precision, (False, True) if device.type == "cuda" else (False,)))
        rows = [
            row for size in options.size for row in measure(options.algorithm, size, modes, options.seconds, device)
        ]
        show(rows, device, options.csv)


if __name__ == "__main__":
    main()
