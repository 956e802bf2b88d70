"""Places for runs on this machine: one for each that is at work at a time, with its share of the cores and GPUs."""

import os
from typing import Dict, List, Optional, Sequence, Tuple

import torch

from common.errors import UserError

Slot = Dict[str, str]  # environment variables of the processes that take this place one after another


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_slots(workers: int, available: Optional[int] = None) -> List[Slot]:
    """A place per worker, each with its share of the cores."""
    threads = max(1, (available or cores()) // workers)
    return [{"OMP_NUM_THREADS": str(threads)} for _ in range(workers)]


def gpu_slots(workers: int, gpus: Sequence[Tuple[str, float]], gigabytes_per_run: Optional[float]) -> List[Slot]:
    """At most `workers` places on GPUs (identifier, gigabytes), dealt round robin; one per GPU without a budget.

    Raises UserError where no GPU holds one run.
    """
    room = {name: 1 if gigabytes_per_run is None else int(size // gigabytes_per_run) for name, size in gpus}
    if not any(room.values()):
        largest = max(size for _, size in gpus)
        raise UserError(
            f"command line: --gpu_memory_per_run is {gigabytes_per_run:g}, and the largest GPU has {largest:.1f} GB"
        )
    rounds = range(max(room.values()))
    places = [name for turn in rounds for name in room if turn < room[name]][:workers]
    return [slot | {"CUDA_VISIBLE_DEVICES": name} for slot, name in zip(cpu_slots(len(places)), places, strict=True)]


def visible_gpus() -> List[Tuple[str, float]]:
    """(identifier for CUDA_VISIBLE_DEVICES, gigabytes) of the GPUs that this process may use."""
    sizes = [torch.cuda.get_device_properties(i).total_memory / 1e9 for i in range(torch.cuda.device_count())]
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = listed.split(",") if listed else [str(index) for index in range(len(sizes))]
    return list(zip(names[: len(sizes)], sizes, strict=True))
