"""What several test files share: one thread, the algorithms, small configs."""

import dataclasses
import os

# Before torch is imported: the suite must be as fast beside other work, where two threads are many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "disabled")

import pytest
import torch

from harness.algorithms import algorithm_names, load_algorithm

SMALL = {"actor_hidden_dims": (16, 16), "value_hidden_dims": (16, 16), "planner_width": 16, "batch_size": 16}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def small_config(algorithm, **changes):
    """The algorithm's defaults with small networks and the given changes."""
    fields = {field.name for field in dataclasses.fields(algorithm.config_class)}
    small = {name: value for name, value in SMALL.items() if name in fields}
    return dataclasses.replace(algorithm.config_class(), **(small | changes))


@pytest.fixture(params=algorithm_names())
def algorithm(request):
    """Each algorithm of the repository in turn."""
    return load_algorithm(request.param)
