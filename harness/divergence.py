"""Refuses an agent that has diverged, and finds the update that began it.

A run looks at its numbers at log points, evaluations and checkpoints only, because every look waits for the device.
When one is not finite, the updates since the last good checkpoint are made again, one at a time, with a look at each.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.errors import UserError
from common.files import write_text
from envs.dataset import Dataset
from harness import run_files
from harness.agent_tools import restore, state_of
from harness.config import RunConfig, algorithm_name
from harness.devices import BATCH_STREAM, seeded_generator
from harness.run_folder import read_checkpoint


class Diverged(UserError):
    """Training gave a number that is not finite."""


def refuse_divergence(
    agent: torch.nn.Module, metrics: dict, run: RunConfig, dataset: Dataset, folder: Path, step: int
) -> None:
    """Raises Diverged where the agent after `step` updates, or a metric of the last one, is not finite.

    So no checkpoint of it replaces a good one. What was met online is not met again when the cause is looked for.
    """
    bad = values_not_finite(agent, metrics)
    if not bad:
        return
    found = "the update that began it could not be repeated"
    report = find(agent, run, dataset, folder, min(step, run.offline_steps))
    if report is not None:
        where = folder / run_files.DIVERGENCE
        found = f"it began in update {report['update']} with {report['not_finite'][0]}, see {where}"
    raise Diverged(
        f"{folder}: {bad[0]} after {step} updates; {found}; the last checkpoint is kept, try a smaller learning_rate"
    )


def values_not_finite(agent: torch.nn.Module, metrics: dict) -> list[str]:
    """`<name> is <value>` of the metrics, or else of the tensors of the agent's state, that are NaN or infinite.

    The metrics of an update are those before its step: where a gradient overflows, the parameters show it. And where
    only its square does, Adam's second moment does, with which the parameters never move again.
    """
    values = {name: float(metric) for name, metric in metrics.items()}
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        return bad
    tensors = _float_tensors(state_of(agent))
    if not tensors:
        return []
    largest = torch.stack([norm.float() for norm in torch._foreach_norm(list(tensors.values()), math.inf)]).tolist()
    return [f"{name} holds {value}" for name, value in zip(tensors, largest, strict=True) if not math.isfinite(value)]


def find(agent: torch.nn.Module, run: RunConfig, dataset: Dataset, folder: Path, last_step: int) -> dict | None:
    """Repeats the updates from the checkpoint in `folder`, or from the beginning, to the first with a bad number.

    agent: any of the run's class and config, its state is not used; last_step: how many updates the run had made.
    Returns the report, which is also written to divergence.json: `update` (counted from 1), its minibatch as
    `transitions` (numbers in the data set) and `rows`, what is `not_finite` and all `metrics`. None where all numbers
    stay finite: where a GPU rounds otherwise, or the checkpoint comes from another kind of device.
    """
    device = dataset.observations.device
    fresh = type(agent)(agent.config, agent.observation_dim, agent.action_dim, seed=run.seed).to(device)
    batches = seeded_generator(device, run.seed, BATCH_STREAM)
    path, first = folder / run_files.CHECKPOINT, 0
    if path.exists():
        checkpoint = read_checkpoint(path, algorithm_name(type(agent.config)))
        if checkpoint["loop"]["device"] != device.type:
            return None
        first = checkpoint["loop"]["step"]
        restore(fresh, checkpoint["agent"])
        batches.set_state(checkpoint["loop"]["batches"])
    for step in tqdm(range(first, last_step), desc="looking for the divergence", unit="update", disable=None):
        transitions = dataset.draw(run.batch_size, batches)
        metrics = fresh.update(dataset.take(transitions, fresh.batch_fields))
        bad = values_not_finite(fresh, metrics)
        if bad:
            report = {
                "update": step + 1,
                "repeated_from": first,
                "not_finite": bad,
                "metrics": {name: str(float(metric)) for name, metric in metrics.items()},  # text: JSON knows no NaN
                "transitions": transitions.tolist(),
                "rows": dataset.valid[transitions].tolist(),
            }
            write_text(folder / run_files.DIVERGENCE, json.dumps(report, indent=2) + "\n")
            return report
    return None


def _float_tensors(state: Any, name: str = "") -> dict[str, torch.Tensor]:
    """The tensors of floating point in a nested state, by their place in it."""
    if isinstance(state, torch.Tensor):
        return {name: state} if state.is_floating_point() and state.numel() else {}
    parts = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    found: dict[str, torch.Tensor] = {}
    for key, part in parts:
        found |= _float_tensors(part, f"{name}/{key}" if name else str(key))
    return found
