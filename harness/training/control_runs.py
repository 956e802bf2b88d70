"""The control runs of a run with a final report: behaviour cloning for DIPOLE, and what else an agent class names."""

import contextlib
import dataclasses
import multiprocessing
import os
from typing import Any, Iterator, List, Sequence

import torch

from envs.task import Task
from harness.devices import leaves_cores, set_up_torch
from harness.run_folder import is_finished, label_of, run_path
from harness.training.loop import complete


def control_configs(configs: Sequence[Any], agent_class: type) -> List[Any]:
    """The configs of the runs' controls, with the changes that the agent class names in `control`; [] without them."""
    changes = getattr(agent_class, "control", None)
    if not configs[0].final_report or changes is None:
        return []
    label = f"{label_of(configs[0])}_{changes['label']}"
    return [dataclasses.replace(config, **(changes | {"label": label}), final_report=()) for config in configs]


@contextlib.contextmanager
def controls_beside(controls: Sequence[Any], agent_class: type, task: Task) -> Iterator[None]:
    """Completes the controls: in a process of their own beside the block where cores allow, what is left after it."""
    beside = [config for config in controls if leaves_cores(config) and not is_finished(run_path(config))]
    with train_beside(beside, agent_class, task) if beside else contextlib.nullcontext():
        yield
    left = [config for config in controls if config not in beside or not is_finished(run_path(config))]
    if left:  # also what went wrong beside the block, which shows here
        complete(new_agents(left, agent_class, task), task)


@contextlib.contextmanager
def train_beside(configs: Sequence[Any], agent_class: type, task: Task) -> Iterator[None]:
    """Trains the configs' runs in a process that has ended when the block has, whatever came of it."""
    process = multiprocessing.get_context("spawn").Process(target=complete_quietly, args=(configs, agent_class, task))
    process.start()
    try:
        yield
        if process.is_alive():
            print(f"waiting for the control run in {run_path(configs[0])}", flush=True)
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()


def complete_quietly(configs: Sequence[Any], agent_class: type, task: Task) -> None:
    """Completes the runs of `configs` and prints nothing."""
    set_up_torch(configs[0])
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        complete(new_agents(configs, agent_class, task), task)


def new_agents(configs: Sequence[Any], agent_class: type, task: Task) -> List[torch.nn.Module]:
    return [agent_class(config, task.observation_dim, task.action_dim) for config in configs]
