"""Adapters of the diffusion baselines' recorded updates: DQL and QSM."""

from typing import Dict, List

import numpy as np
from torch import Tensor, nn

from tests.golden.adapter import Adapter, flax_mlp, fql_critics, require
from tests.golden.published_networks import PublishedDQL, published_qsm

DQL_BACKUP_CANDIDATES = 10  # next actions per state of the reference's max-Q backup
DQL_CRITIC_LEARNING_RATE = 3e-4  # fixed in the reference; its configuration has the policy's only


def dql_fields(case: dict) -> dict:
    require(case, {"beta_schedule": ("vp",)})
    hidden_dims = tuple(case["hidden_dims"])
    return {
        "actor_hidden_dims": hidden_dims,
        "value_hidden_dims": hidden_dims,
        "value_layer_norm": False,
        "actor_learning_rate": case["lr"],
        "critic_learning_rate": DQL_CRITIC_LEARNING_RATE,
        "decay_length": case["lr_maxt"] if case["lr_decay"] else 0,
        "decay_interval": 1,  # a recorded update is one call of the reference's train(), which ends with a decay step
        "max_gradient_norm": max(case["grad_norm"], 0),
        "discount": case["discount"],
        "target_rate": case["tau"],
        "ema_rate": 1 - case["ema_decay"],
        "ema_start": case["step_start_ema"],
        "ema_interval": case["update_ema_every"],
        "diffusion_steps": case["n_timesteps"],
        "q_weight": case["eta"],
        "backup_candidates": DQL_BACKUP_CANDIDATES if case["max_q_backup"] else 1,
    }


def torch_mlp(prefix: str, network: nn.Module, member: int) -> Dict[str, Tensor]:
    """{name in an nn.Sequential of linear layers and activations: view} of one member of an EnsembleMLP."""
    named = {}
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        named[f"{prefix}.{2 * layer}.weight"] = weight[member].T
        named[f"{prefix}.{2 * layer}.bias"] = bias[member, 0]
    return named


def dql_parameters(agent: nn.Module) -> Dict[str, Tensor]:
    named = {}
    for prefix, actor in (("actor", agent.denoiser), ("actor_ema", agent.ema_denoiser)):
        encoder = torch_mlp("", actor.encoder, 0)
        body = torch_mlp(f"{prefix}/model.mid_layer", actor.body, 0)
        last = f"{prefix}/model.mid_layer.{2 * (len(actor.body.weights) - 1)}"
        for end in ("weight", "bias"):
            named[f"{prefix}/model.time_mlp.1.{end}"] = encoder[f".0.{end}"]
            named[f"{prefix}/model.time_mlp.3.{end}"] = encoder[f".2.{end}"]
            named[f"{prefix}/model.final_layer.{end}"] = body.pop(f"{last}.{end}")
        named |= body
    for prefix, critic in (("critic", agent.critic), ("critic_target", agent.target_critic)):
        named |= torch_mlp(f"{prefix}/q1_model", critic, 0) | torch_mlp(f"{prefix}/q2_model", critic, 1)
    return named


def chain(draws: List[np.ndarray], num_states: int) -> np.ndarray:
    """The start and the steps' draws, [N * C, A] each, as the one array [N, C, T+1, A] that the port asks for."""
    stacked = np.stack(draws, axis=1)
    return stacked.reshape(num_states, -1, *stacked.shape[1:])


def dql_draws(draws: List[np.ndarray]) -> List[np.ndarray]:
    level = next(index for index, draw in enumerate(draws) if np.issubdtype(draw.dtype, np.integer))
    num_states = len(draws[level])
    return [
        chain(draws[:level], num_states),
        draws[level][:, None],
        draws[level + 1],
        chain(draws[level + 2 : -1], num_states),
        draws[-1],
    ]


def qsm_fields(case: dict) -> dict:
    require(
        case,
        {
            "actor_loss_type": ("qsm",),
            "beta_schedule": ("vp",),
            "best_of_n": (1,),
        },
    )
    return {
        "actor_hidden_dims": tuple(case["actor_hidden_dims"]),
        "value_hidden_dims": tuple(case["value_hidden_dims"]),
        "actor_layer_norm": case["actor_layer_norm"],
        "value_layer_norm": case["value_layer_norm"],
        "learning_rate": case["lr"],
        "max_gradient_norm": case["clip_grad_norm"],
        "discount": case["discount"],
        "target_rate": case["tau"],
        "num_critics": case["num_qs"],
        "pessimism": case["rho"],
        "diffusion_steps": case["diffusion_steps"],
        "score_weight": case["inv_temp"],
        "bc_weight": case["alpha"],
        "use_target_critic_gradient": case["use_target_critic_grad"],
        # The reference clips the clean estimate and steps to the posterior's mean, or does neither.
        "sampler": "ancestral" if case["clip_sampler_before"] else "qam",
        "clip_clean": case["clip_sampler_before"],
        "clip_steps": case["clip_sampler_after"],
    }


def qsm_parameters(agent: nn.Module) -> Dict[str, Tensor]:
    return (
        fql_critics(agent)
        | {"actor/FourierFeatures_0/kernel": agent.denoiser.frequencies}
        | flax_mlp("actor/MLP_0", agent.denoiser.encoder, 0)
        | flax_mlp("actor/MLP_1", agent.denoiser.body, 0)
    )


def qsm_draws(draws: List[np.ndarray]) -> List[np.ndarray]:
    *steps, level, noise = draws
    return [chain(steps, len(level)), level[:, None] - 1, noise]  # the reference draws from 1 to T, the port adds the 1


ADAPTERS = {
    "dql": Adapter(
        agent_class=lambda case: PublishedDQL,
        config_fields=dql_fields,
        parameters=dql_parameters,
        keep_draws=dql_draws,
        metrics={
            "critic_loss": "critic/loss",
            "bc_loss": "actor/bc_loss",
            "ql_loss": "actor/q_loss",
            "actor_loss": "actor/loss",
        },
    ),
    # The gradient's statistics are not compared: the parameters after the step hold every entry to more.
    "qsm": Adapter(
        agent_class=lambda case: published_qsm(case["time_dim"]),
        config_fields=qsm_fields,
        parameters=qsm_parameters,
        keep_draws=qsm_draws,
        metrics={
            "critic/critic_loss": "critic/loss",
            "critic/q": "critic/q_mean",
            "actor/actor_loss": "actor/score_loss",
        },
    ),
}
