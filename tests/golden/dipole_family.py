"""How the cases recorded from the released DIPOLE code map to algorithms/dipole.py."""

from typing import Dict

from torch import Tensor, nn

from tests.golden.adapter import Adapter, flax_mlp, fql_critics, network_fields


def dipole_fields(case: dict) -> dict:
    return network_fields(case) | {
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
