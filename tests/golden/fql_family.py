"""How the cases recorded from the fql repository (iql, ifql, fql, rebrac) map to algorithms/baselines/."""

from typing import Dict, List

import numpy as np
from torch import Tensor, nn

from tests.golden.adapter import Adapter, flax_mlp, fql_critics, network_fields, require


def iql_fields(case: dict) -> dict:
    require(case, {"const_std": (True,)})
    weight = {"awr": "inverse_temperature", "ddpgbc": "bc_weight"}[case["actor_loss"]]
    return network_fields(case) | {
        "expectile": case["expectile"],
        "extraction": case["actor_loss"],
        weight: case["alpha"],
    }


def ifql_fields(case: dict) -> dict:
    return network_fields(case) | {
        "critic_reduction": "mean" if "num_qs" in case else "sum",
        "expectile": case["kappa" if "num_qs" in case else "expectile"],
        "num_candidates": case["num_samples"],
        "flow_steps": case["flow_steps"],
    }


def fql_fields(case: dict) -> dict:
    fields = {"distillation_weight": case["alpha"], "flow_steps": case["flow_steps"]}
    if "num_qs" in case:
        candidates = dict.fromkeys(("num_candidates", "target_candidates"), case["best_of_n"])
        return fields | network_fields(case) | candidates
    pessimism = {"mean": 0.0, "min": None}[case["q_agg"]]
    return fields | network_fields(case) | {"pessimism": pessimism, "normalise_q_loss": case["normalize_q_loss"]}


def rebrac_fields(case: dict) -> dict:
    require(case, {"tanh_squash": (True,)})
    in_qam = "num_qs" in case  # its policy moves in every update
    return network_fields(case) | {
        "actor_bc_weight": case["alpha_actor"],
        "critic_bc_weight": 0.0 if in_qam else case["alpha_critic"],
        "actor_interval": 1 if in_qam else case["actor_freq"],
        "target_interval": case["actor_freq"],
        "actor_noise": case["actor_noise"],
        "actor_noise_clip": case["actor_noise_clip"],
    }


def fql_draws(draws: List[np.ndarray]) -> List[np.ndarray]:
    """FQL's last draw samples actions for a statistic only; QAM's next actions have an axis of candidates."""
    next_z, x0, t, z = draws[:4]
    return [next_z if next_z.ndim == 3 else next_z[:, None], x0, t, z]


def flax_actor(prefix: str, network: nn.Module) -> Dict[str, Tensor]:
    """{Flax name: view} of FQL's Gaussian policy: the last layer is `mean_net`, those before it are `actor_net`."""
    last = f"{prefix}/actor_net/Dense_{len(network.weights) - 1}/"
    return {
        name.replace(last, f"{prefix}/mean_net/"): view
        for name, view in flax_mlp(f"{prefix}/actor_net", network, 0).items()
    }


def iql_parameters(agent: nn.Module) -> Dict[str, Tensor]:
    return fql_critics(agent) | flax_mlp("value/value_net", agent.value, 0) | flax_actor("actor", agent.policy)


def ifql_parameters(agent: nn.Module) -> Dict[str, Tensor]:
    return fql_critics(agent) | flax_mlp("value/value_net", agent.value, 0) | flax_mlp("actor_flow/mlp", agent.flow, 0)


def fql_parameters(agent: nn.Module) -> Dict[str, Tensor]:
    return (
        fql_critics(agent)
        | flax_mlp("actor_bc_flow/mlp", agent.flow, 0)
        | flax_mlp("actor_onestep_flow/mlp", agent.policy, 0)
    )


def rebrac_parameters(agent: nn.Module) -> Dict[str, Tensor]:
    return fql_critics(agent) | flax_actor("actor", agent.policy) | flax_actor("target_actor", agent.target_policy)


CRITIC_METRICS = {"critic/critic_loss": "critic/loss", "critic/q_mean": "critic/q_mean"}
IMPLICIT_METRICS = {
    "critic/critic_loss": "critic/loss",
    "critic/q_mean": "critic/target_mean",  # the reference reports its targets under this name
    "value/value_loss": "value/loss",
    "value/v_mean": "value/mean",
}

ADAPTERS = {
    "iql": Adapter(
        config_fields=iql_fields,
        parameters=iql_parameters,
        keep_draws=lambda draws: draws,
        metrics=IMPLICIT_METRICS
        | {
            "actor/actor_loss": "actor/loss",
            "actor/bc_log_prob": "actor/log_prob",
            "actor/mse": "actor/mean_error",
        },
    ),
    "ifql": Adapter(
        config_fields=ifql_fields,
        parameters=ifql_parameters,
        keep_draws=lambda draws: draws,
        metrics=IMPLICIT_METRICS | {"actor/actor_loss": "actor/flow_loss"},
    ),
    "fql": Adapter(
        config_fields=fql_fields,
        parameters=fql_parameters,
        keep_draws=fql_draws,
        metrics=CRITIC_METRICS
        | {
            "actor/actor_loss": "actor/loss",
            "actor/bc_flow_loss": "actor/flow_loss",
            "actor/distill_loss": "actor/distillation_loss",
            "actor/q_loss": "actor/q_loss",
            "actor/q": "actor/q_mean",
        },
    ),
    "rebrac": Adapter(
        config_fields=rebrac_fields,
        parameters=rebrac_parameters,
        keep_draws=lambda draws: draws,
        metrics=CRITIC_METRICS
        | {
            "actor/total_loss": "actor/loss",
            "actor/actor_loss": "actor/q_loss",
            "actor/mse": "actor/bc_loss",
        },
    ),
}
