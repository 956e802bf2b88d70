"""Replays the recorded updates of a reference implementation and measures how far an algorithm is from it.

A case is `<name>.json` (configuration) beside `<name>.npz`: `init/...` parameters, `step{i}/batch/...` minibatches,
`step{i}/noise/<j>_<kind>` random draws in order, `step{i}/info/...` losses, `final/...` parameters. Everything is
float64. The part of the name before the first underscore is the algorithm; its adapter says how the
reference's names map to ours. Beside protocol B's cases stands `acting/<name>.npz`: observations,
draws and actions of the agent with the parameters `final/...`.
"""

import json
import re
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from harness.algorithms import load_algorithm
from harness.compilation import compile_functions
from tests.golden import diffusion_family, dipole_family, fql_family

ADAPTERS = dipole_family.ADAPTERS | fql_family.ADAPTERS | diffusion_family.ADAPTERS
TOLERANCE, ACTING_TOLERANCE = 1e-9, 1e-12  # largest absolute difference of a loss or parameter, and of an action


class RecordedNoise(nn.Module):
    """Stands in for an agent's noise and plays recorded draws back, checking that each is asked for as recorded."""

    def __init__(self, draws: List[np.ndarray], device: str = "cpu", dtype: torch.dtype = torch.float64):
        super().__init__()
        self.draws, self.device, self.dtype = list(draws), device, dtype

    def _next(self, shape) -> Tensor:
        if not self.draws:
            raise AssertionError(f"a draw of shape {shape} was asked for after the last recorded one")
        draw = torch.as_tensor(self.draws.pop(0), dtype=self.dtype, device=self.device)
        if tuple(draw.shape) != tuple(shape):
            raise AssertionError(f"a draw of shape {shape} was asked for where {tuple(draw.shape)} is recorded")
        return draw

    def normal(self, *shape: int) -> Tensor:
        return self._next(shape)

    def uniform(self, *shape: int) -> Tensor:
        return self._next(shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        return self._next(shape)


def step_arrays(arrays: Dict[str, np.ndarray], prefix: str) -> Dict[str, np.ndarray]:
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def recorded_draws(arrays: Dict[str, np.ndarray], prefix: str) -> List[np.ndarray]:
    draws = step_arrays(arrays, f"{prefix}noise/")
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


def chunk_of(case: dict) -> int:
    """h: actions that the agent chooses at once."""
    return case["config"].get("horizon_length", 1)


def build_agent(
    name: str, case: dict, initial: Dict[str, np.ndarray], device: str = "cpu", dtype: torch.dtype = torch.float64
) -> tuple:
    """The agent with the recorded initial parameters, and its parameters under the file's names."""
    algorithm, adapter = load_algorithm(name), ADAPTERS[name]
    config = algorithm.config_class(**adapter.config_fields(case["config"]))
    agent_class = adapter.agent_class(case["config"]) if adapter.agent_class else algorithm.agent_class
    agent = agent_class(config, case["obs_dim"], chunk_of(case) * case["action_dim"]).to(device, dtype)
    parameters = adapter.parameters(agent)
    if set(parameters) != set(initial):
        raise AssertionError(f"parameters that are in one side only: {sorted(set(parameters) ^ set(initial))}")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(torch.as_tensor(initial[key]))
    return agent, parameters


def replay(
    path: Path, device: str = "cpu", dtype: torch.dtype = torch.float64, compiled: bool = False
) -> Dict[str, Tuple[np.ndarray, np.ndarray]]:
    """{name of a loss or parameter: (ours, the reference's)} after the recorded updates on `device` in `dtype`."""
    name, case, arrays = read_case(Path(path))
    adapter = ADAPTERS[name]
    agent, parameters = build_agent(name, case, step_arrays(arrays, "init/"), device, dtype)
    if compiled:
        compile_functions(agent)
    figures = {}
    for step in range(case["steps"]):
        agent.noise = RecordedNoise(adapter.keep_draws(recorded_draws(arrays, f"step{step}/")), device, dtype)
        recorded = step_arrays(arrays, f"step{step}/batch/")
        recorded["masks"] = recorded["masks"] * case["config"]["discount"] ** (chunk_of(case) - 1)
        metrics = agent.update(
            {key: torch.as_tensor(array, dtype=dtype, device=device) for key, array in recorded.items()}
        )
        if agent.noise.draws:
            raise AssertionError(f"step {step}: {len(agent.noise.draws)} recorded draws were never asked for")
        reported = step_arrays(arrays, f"step{step}/info/")
        for theirs in adapter.metrics.keys() & reported.keys():
            figures[f"step{step}/{theirs}"] = metrics[adapter.metrics[theirs]].cpu().numpy(), reported[theirs]
    for key, parameter in parameters.items():
        figures[f"final/{key}"] = parameter.detach().cpu().numpy(), arrays[f"final/{key}"]
    return figures


def replay_acting(path: Path, device: str = "cpu") -> Dict[str, Tuple[np.ndarray, np.ndarray]]:
    """{acting/<variant>/<i>: (our action, the reference's)} of a case's trained agent; {} where none are recorded."""
    path = Path(path)
    if not (path.parent / "acting" / path.name).exists():
        return {}
    name, case, arrays = read_case(path)
    agent, _ = build_agent(name, case, step_arrays(arrays, "final/"), device)
    with np.load(path.parent / "acting" / path.name) as stored:
        recorded = dict(stored)
    figures = {}
    for key in (key.removesuffix("/action") for key in recorded if key.endswith("/action")):
        draws = recorded_draws(recorded, f"{key}/")
        joined = draws[0] if len(draws) == 1 else np.stack(draws, axis=1)  # a chain's draws are one of ours
        agent.noise = RecordedNoise([joined[None]], device)
        count = re.match(r"best_of_(\d+)", key)
        options = {"num_candidates": int(count[1])} if count else {"explore": key.startswith("noise")}
        action = agent.act(torch.as_tensor(recorded[f"{key}/observation"], device=device)[None], **options)[0]
        figures[f"acting/{key}"] = action.cpu().numpy(), recorded[f"{key}/action"]
    return figures


def tolerance(figure: str) -> float:
    """The largest difference that a figure of that name may have."""
    return ACTING_TOLERANCE if figure.startswith("acting/") else TOLERANCE


def check_case(path: Path, device: str = "cpu", compiled: bool = False) -> Dict[str, float]:
    """{name of a loss, parameter or action: largest absolute difference from the reference}."""
    figures = replay(path, device, compiled=compiled) | replay_acting(path, device)
    return {name: float(np.abs(ours - theirs).max()) for name, (ours, theirs) in figures.items()}
