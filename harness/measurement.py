"""What updates cost: an agent at a benchmark's size, rates by rounds, floating-point operations, time by part, tables.

Random rows of the size's shapes take the place of data, so no data set is needed.
"""

import contextlib
import dataclasses
import math
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from common.files import write_rows_csv
from envs.dataset import Dataset
from harness.algorithms import Algorithm
from harness.compilation import compile_functions
from harness.config import load_settings
from harness.updates import UPDATES_PER_REPLAY, WARM_UP_UPDATES, Updates

# ---- Agents and data of a size ----

ROWS = 100_000  # of the data that minibatches are sampled from


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
    "protocol_b": Size(
        28, 25, (512, 512, 512, 512), 256, 512, 10
    ),  # cube-single, chunks of 5, QAM's ten critics
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


def count_flops(agent: torch.nn.Module, batch: dict) -> int:
    """Floating-point operations of one update's matrix products, without fused attention's."""
    with FlopCounterMode(display=False) as counter:
        agent.update(batch)
    return counter.get_total_flops()


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


# ---- Time by part ----
# Found from outside, so that algorithm files hold no measuring code: forward hooks mark what each of the agent's
# networks does, and each backward operation belongs to the part of the forward operation it differentiates (autograd
# gives both the same sequence number).

PARTS = ("data", "target actions", "critics", "policies", "optimiser", "other")
PREFIX = "part: "


def time_split(agent: torch.nn.Module, sample: Callable[[], dict], updates: int) -> dict[str, float]:
    """Shares of the time of `agent.update(sample())` by part, summing to 1, over so many updates.

    target actions: policies evaluated without gradient; critics: critics and values with their targets, forward and
    backward; policies: with gradient, forward and backward; optimiser: Adam, zero_grad and the targets' soft update;
    other: losses and what else lies outside of the networks. On a GPU the time is that of its kernels,
    NaN where its profiler gives none.
    """
    on_gpu = next(agent.parameters()).is_cuda
    for _ in range(WARM_UP_UPDATES):
        agent.update(sample())
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with _marked(agent), profile(activities=activities) as profiler:
        for _ in range(updates):
            with record_function(PREFIX + "data"):
                batch = sample()
            agent.update(batch)
    times = _times(profiler.events(), on_gpu)
    total = sum(times.values()) or math.nan  # a GPU whose profiler gives no kernel times
    return {part: times[part] / total for part in PARTS}


def _part(network: str) -> str:
    """The part that a network, named as the agent's attribute, belongs to just now."""
    if "critic" in network or "value" in network:
        return "critics"
    return "policies" if torch.is_grad_enabled() else "target actions"


@contextlib.contextmanager
def _marked(agent: torch.nn.Module) -> Iterator[None]:
    """Within it every forward pass of the agent's networks is a named range of the profile."""
    open_ranges, handles = [], []

    def enter(name: str) -> None:
        open_ranges.append(record_function(PREFIX + _part(name)))
        open_ranges[-1].__enter__()

    for name, network in agent.named_children():
        handles.append(network.register_forward_pre_hook(lambda module, inputs, name=name: enter(name)))
        handles.append(network.register_forward_hook(lambda *_: open_ranges.pop().__exit__(None, None, None)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _times(events: Iterable[FunctionEvent], on_gpu: bool) -> dict[str, float]:
    """Microseconds by part."""
    outermost = [event for event in events if event.cpu_parent is None and event.device_type.name == "CPU"]
    part_of_sequence = {
        below.sequence_nr: event.name.removeprefix(PREFIX)
        for event in outermost
        if event.name.startswith(PREFIX)
        for below in _below(event)
        if below.sequence_nr >= 0
    }
    times: dict[str, float] = defaultdict(float)
    for event in outermost:
        if event.name.startswith(PREFIX):
            part = event.name.removeprefix(PREFIX)
        elif event.name.startswith("Optimizer.") or "_foreach_lerp_" in event.name:
            part = "optimiser"
        elif event.name.startswith("autograd::engine::evaluate_function"):
            part = part_of_sequence.get(event.sequence_nr, "other")
        else:
            part = "other"
        times[part] += event.device_time_total if on_gpu else event.cpu_time_total
    return times


def _below(event: FunctionEvent) -> Iterator[FunctionEvent]:
    for child in event.cpu_children:
        yield child
        yield from _below(child)


# ---- Tables ----


def format_rows(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in line.values()] for line in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


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
