"""How often work is done per second on a CPU or a GPU: any work, updates, matrix products."""

import time
from collections.abc import Callable
from typing import Any

import torch

from harness.updates import UPDATES_PER_REPLAY, Updates

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
