"""How often some work is done per second, on a CPU or a GPU."""

import time
from typing import Any, Callable

import torch

MIN_CALLS = 3  # between two looks at the clock, so that a GPU is not waited for after each


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
    elapsed = 0.0
    while elapsed < seconds:
        for _ in range(MIN_CALLS):
            work()
        calls += MIN_CALLS
        elapsed = finished() - started
    return calls / elapsed


def waiting_for(device: torch.device) -> Callable[[], Any]:
    """What waits for the device; a CPU has always finished."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
