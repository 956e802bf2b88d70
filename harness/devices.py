"""Devices by the name that a config gives them, how torch computes on them, and generators on them."""

import os
import warnings
from typing import Any

import numpy as np
import torch

from common.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device of the config's `device` field. Raises UserError for another name and for an absent GPU."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"config: device is {name!r}, choose one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("config: device is 'cuda', but torch finds no GPU here, set it to auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def set_up_torch(config: Any) -> None:
    """Sets this process's number of CPU threads and the precision of its float32 products as the config says."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision(config.matmul_precision)
    # Of a capturable Adam's steps outside a graph, which some of a run's are on purpose.
    warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")


def leaves_cores(config: Any) -> bool:
    """Whether a second process with as many threads as the config sets finds cores of its own on this machine.

    Two processes with all threads each are slower than one after the other, so that 0 (torch's choice) leaves none.
    """
    return 0 < 2 * config.threads <= (os.cpu_count() or 1)


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator whose stream depends on the whole key; keys must not differ in zeros at their end only."""
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
