"""Replays the recorded updates of a reference implementation and measures how far an algorithm is from it.

A case is `<name>.json` (configuration) beside `<name>.npz`: `init/...` parameters, `step{i}/batch/...` minibatches,
`step{i}/noise/<j>_<kind>` random draws in order, `step{i}/info/...` losses, `final/...` parameters. Everything is
float64. The part of the name before the first underscore is the algorithm; its adapter below says how the
reference's names map to ours.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List

import numpy as np
import torch
from torch import Tensor, nn

from envs.errors import UserError
from harness.algorithms import load_algorithm

TOLERANCE = 1e-9  # largest absolute difference of any loss or parameter


@dataclass(frozen=True)
class Adapter:
    """How one algorithm's case files map to its code."""

    config_fields: Callable[[dict], dict]  # the case's JSON configuration -> our config fields
    parameters: Callable[[nn.Module], Dict[str, Tensor]]  # agent -> {the file's parameter name: a view of ours}
    keep_draws: Callable[[List[np.ndarray]], List[np.ndarray]]  # drops draws that were recorded twice or never used
    metrics: Dict[str, str]  # the file's loss name -> our metric


class RecordedNoise(nn.Module):
    """Stands in for an agent's noise and plays recorded draws back, checking that each is asked for as recorded."""

    def __init__(self, draws: List[np.ndarray]):
        super().__init__()
        self.draws = list(draws)

    def _next(self, shape) -> Tensor:
        if not self.draws:
            raise AssertionError(f"a draw of shape {shape} was asked for after the last recorded one")
        draw = torch.as_tensor(self.draws.pop(0))
        if tuple(draw.shape) != tuple(shape):
            raise AssertionError(f"a draw of shape {shape} was asked for where {tuple(draw.shape)} is recorded")
        return draw

    def normal(self, *shape: int) -> Tensor:
        return self._next(shape)

    def uniform(self, *shape: int) -> Tensor:
        return self._next(shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        return self._next(shape)


def flax_mlp(prefix: str, network: nn.Module, member: slice | int) -> Dict[str, Tensor]:
    """{Flax name: view} of one member (or of all, stacked) of an EnsembleMLP."""

    def view(parameter: Tensor, row: bool) -> Tensor:
        chosen = parameter[member]
        return chosen.squeeze(-2) if row else chosen

    named = {}
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        named[f"{prefix}/Dense_{layer}/kernel"] = view(weight, row=False)
        named[f"{prefix}/Dense_{layer}/bias"] = view(bias, row=True)
    for layer, (scale, shift) in enumerate(zip(network.norm_scales, network.norm_shifts, strict=True)):
        named[f"{prefix}/LayerNorm_{layer}/scale"] = view(scale, row=True)
        named[f"{prefix}/LayerNorm_{layer}/bias"] = view(shift, row=True)
    return named


def fql_critics(agent: nn.Module) -> Dict[str, Tensor]:
    both = slice(None)
    return flax_mlp("critic/value_net", agent.critic, both) | flax_mlp(
        "target_critic/value_net", agent.target_critic, both
    )


def dipole_fields(case: dict) -> dict:
    return {
        "learning_rate": case["lr"],
        "actor_hidden_dims": tuple(case["actor_hidden_dims"]),
        "value_hidden_dims": tuple(case["value_hidden_dims"]),
        "value_layer_norm": case["layer_norm"],
        "actor_layer_norm": case["actor_layer_norm"],
        "discount": case["discount"],
        "target_rate": case["tau"],
        "expectile": case["expectile"],
        "num_candidates": case["num_samples"],
        "target_candidates": case["num_samples_fortrain"],
        "target_greediness": case["cfg_fortrain"] - 1,
        "flow_steps": case["flow_steps"],
        "inverse_temperature": case["beta"],
        "shift": case["k"],
        "value_aggregation": case["q_agg"],
    }


def dipole_parameters(agent: nn.Module) -> Dict[str, Tensor]:
    return (
        fql_critics(agent)
        | flax_mlp("value/value_net", agent.value, 0)
        | flax_mlp("actor_flow_pos/mlp", agent.flow, 0)
        | flax_mlp("actor_flow_neg/mlp", agent.flow, 1)
    )


ADAPTERS = {
    "dipole": Adapter(
        config_fields=dipole_fields,
        parameters=dipole_parameters,
        keep_draws=lambda draws: draws[:3],  # x0 and t stand in the file a second time, for the negative policy
        metrics={
            "critic_loss": "critic/loss",
            "value_loss": "value/loss",
            "positive_loss": "actor/positive_loss",
            "negative_loss": "actor/negative_loss",
            "weight_mean": "actor/weight_mean",
        },
    ),
}


def step_arrays(arrays: Dict[str, np.ndarray], prefix: str) -> Dict[str, np.ndarray]:
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def recorded_draws(arrays: Dict[str, np.ndarray], step: int) -> List[np.ndarray]:
    draws = step_arrays(arrays, f"step{step}/noise/")
    return [draws[name] for name in sorted(draws, key=lambda name: int(name.split("_")[0]))]


def read_case(path: Path) -> tuple:
    """(algorithm name, JSON dict, arrays) of a case. Raises UserError for a file that is missing or unknown."""
    name = path.stem.split("_")[0]
    if name not in ADAPTERS:
        raise UserError(f"{path}: no adapter for algorithm {name!r}; there are {', '.join(ADAPTERS)}")
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise UserError(f"{file}: no such file; a case is an .npz with its .json beside it")
    with np.load(path, allow_pickle=False) as arrays:
        return name, json.loads(path.with_suffix(".json").read_text()), dict(arrays)


def build_agent(name: str, case: dict, initial: Dict[str, np.ndarray]) -> tuple:
    """The agent in float64 with the recorded initial parameters, and its parameters under the file's names."""
    algorithm, adapter = load_algorithm(name), ADAPTERS[name]
    config = algorithm.config_class(**adapter.config_fields(case["config"]))
    agent = algorithm.agent_class(config, case["obs_dim"], case["action_dim"]).double()
    parameters = adapter.parameters(agent)
    if set(parameters) != set(initial):
        raise AssertionError(f"parameters that are in one side only: {sorted(set(parameters) ^ set(initial))}")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(torch.as_tensor(initial[key]))
    return agent, parameters


def check_case(path: Path) -> Dict[str, float]:
    """{name of a loss or parameter: largest absolute difference from the reference} after the recorded updates."""
    name, case, arrays = read_case(Path(path))
    adapter = ADAPTERS[name]
    agent, parameters = build_agent(name, case, step_arrays(arrays, "init/"))
    differences = {}
    for step in range(case["steps"]):
        agent.noise = RecordedNoise(adapter.keep_draws(recorded_draws(arrays, step)))
        batch = {key: torch.as_tensor(array) for key, array in step_arrays(arrays, f"step{step}/batch/").items()}
        metrics = agent.update(batch)
        if agent.noise.draws:
            raise AssertionError(f"step {step}: {len(agent.noise.draws)} recorded draws were never asked for")
        for theirs, ours in adapter.metrics.items():
            reference = arrays[f"step{step}/info/{theirs}"]
            differences[f"step{step}/{theirs}"] = float((metrics[ours] - torch.as_tensor(reference)).abs())
    for key, parameter in parameters.items():
        differences[f"final/{key}"] = float((parameter.detach() - torch.as_tensor(arrays[f"final/{key}"])).abs().max())
    return differences
