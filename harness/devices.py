"""Devices by the name that a config gives them, how torch computes on them, and the random streams of a run."""

import warnings
from typing import Any

import numpy as np
import torch

from common.errors import UserError

# Random streams of a run besides the agent's, which is seeded with the run's seed itself.
BATCH_STREAM = 0x5EED
VALIDATION_STREAM, NEW_BATCH_STREAM, NEW_NOISE_STREAM, EPISODE_STREAM = 1, 2, 3, 4


def choose_device(name: str) -> torch.device:
    """The device of the run's `device` field. Raises UserError for an absent GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("config: device is 'cuda', but torch finds no GPU here, set it to auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def set_up_torch(run: Any) -> None:
    """Sets this process's number of CPU threads and the precision of its float32 products as the RunConfig says.

    Numbers nearer to 0 than 1.2e-38 become 0, as in JAX: they cost an Intel CPU half its speed once many units of a
    network are silent (docs/performance.md).
    """
    # Before the first parallel region: torch sets the calling thread alone, whose threads inherit it (torch 2.13.0).
    torch.set_flush_denormal(True)
    if run.threads:
        torch.set_num_threads(run.threads)
    torch.set_float32_matmul_precision(run.matmul_precision)
    # torch warns when a capturable Adam steps outside a graph; some of our steps do so on purpose.
    warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator whose stream depends on the whole key; trailing zeros of `key` do not change the stream."""
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
