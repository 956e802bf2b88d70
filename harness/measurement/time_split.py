"""Where the time of an update goes: data, target actions, critics, policies, optimiser, and what is left.

The parts are found from outside, so that algorithm files hold no measuring code: forward hooks mark what each of the
agent's networks does, and each backward operation belongs to the part of the forward operation it differentiates
(autograd gives both the same sequence number).
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

PARTS = ("data", "target actions", "critics", "policies", "optimiser", "other")
PREFIX = "part: "
WARM_UP = 3


def time_split(agent: torch.nn.Module, sample: Callable[[], dict], updates: int) -> dict[str, float]:
    """Shares of the time of `agent.update(sample())` by part, summing to 1, over so many updates.

    target actions: policies evaluated without gradient; critics: critics and values with their targets, forward and
    backward; policies: with gradient, forward and backward; optimiser: Adam, zero_grad and the targets' soft update;
    other: losses and what else lies outside of the networks. On a GPU the time is that of its kernels,
    NaN where its profiler gives none.
    """
    on_gpu = next(agent.parameters()).is_cuda
    for _ in range(WARM_UP):
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
