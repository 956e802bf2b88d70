"""What an adapter says, and the pieces that the adapters share."""

from dataclasses import dataclass
from typing import Callable, Dict, List, Optional

import numpy as np
from torch import Tensor, nn

from common.errors import UserError


@dataclass(frozen=True)
class Adapter:
    """How one algorithm's case files map to its code."""

    config_fields: Callable[[dict], dict]  # the case's JSON configuration -> our config fields
    parameters: Callable[[nn.Module], Dict[str, Tensor]]  # agent -> {the file's parameter name: a view of ours}
    keep_draws: Callable[[List[np.ndarray]], List[np.ndarray]]  # drops draws that were recorded twice or never used
    metrics: Dict[str, str]  # the file's loss name -> our metric
    agent_class: Optional[Callable[[dict], type]] = None  # the case's configuration -> agent; None: the algorithm's own


def require(case: dict, allowed: Dict[str, tuple]) -> None:
    """Raises UserError where the case's configuration has a value that the port does not have."""
    for name, values in allowed.items():
        if name in case and case[name] not in values:
            choices = " or ".join(repr(value) for value in values)
            raise UserError(f"config.{name} of the case is {case[name]!r}, but the port has {choices} only")


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
    every = slice(None)
    return flax_mlp("critic/value_net", agent.critic, every) | flax_mlp(
        "target_critic/value_net", agent.target_critic, every
    )


def network_fields(case: dict) -> dict:
    """The fields that the cases with FQL's networks share; QAM's have K critics and rho, FQL's two critics."""
    critics = {"num_critics": case["num_qs"], "pessimism": case["rho"]} if "num_qs" in case else {}
    return critics | {
        "learning_rate": case["lr"],
        "actor_hidden_dims": tuple(case["actor_hidden_dims"]),
        "value_hidden_dims": tuple(case["value_hidden_dims"]),
        "value_layer_norm": case["value_layer_norm" if "value_layer_norm" in case else "layer_norm"],
        "actor_layer_norm": case["actor_layer_norm"],
        "discount": case["discount"],
        "target_rate": case["tau"],
    }
