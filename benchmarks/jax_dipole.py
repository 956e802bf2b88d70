"""The update of DIPOLE (flow form) in JAX, to measure algorithms/dipole.py against; its formulas are docs/dipole.md's.

As in the released code, which is in JAX, both velocity networks are evaluated when the next actions are sampled,
whatever the greediness, and one compiled function makes a whole update. Choices beyond that are in favour of speed: the
minibatch is taken inside the compiled function from arrays on the device, x0 and t are drawn once for both policies,
Adam leaves the target critics out, and the old state's memory is given up to the new one.

It has the default `weighting`, `advantage` and pessimism only; it needs requirements-bench.txt.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from algorithms.dipole import LAYER_NORM_EPSILON, DIPOLEConfig

FIRST_DECAY, SECOND_DECAY, ADAM_EPSILON = 0.9, 0.999, 1e-8  # Adam's, in both frameworks
Network = dict[str, Array]  # Flax's names: Dense_0/kernel, Dense_0/bias, LayerNorm_0/scale, ...


class State(NamedTuple):
    """What an update changes; the names of the networks are critic, value, positive and negative."""

    networks: dict[str, Network]
    target_critic: Network
    first_moments: dict[str, Network]
    second_moments: dict[str, Network]
    count: Array  # updates so far


class Draws(NamedTuple):
    """The random numbers of an update's losses."""

    candidates: Array  # N(0, I) [B, target_candidates, A], where the flow starts
    x0: Array  # N(0, I) [B, A]
    t: Array  # U[0, 1) [B, 1]


def start(networks: dict[str, Network], target_critic: Network) -> State:
    """The state before the first update."""
    zeros = jax.tree.map(jnp.zeros_like, networks)
    return State(networks, target_critic, zeros, jax.tree.map(jnp.zeros_like, networks), jnp.zeros((), jnp.int32))


def random_state(config: DIPOLEConfig, observation_dim: int, action_dim: int, seed: int) -> State:
    """Networks of the config's sizes, with Xavier-uniform weights and zero biases."""
    inputs, value, actor = observation_dim + action_dim, config.value_hidden_dims, config.actor_hidden_dims
    keys = iter(jax.random.split(jax.random.key(seed), 4))
    networks = {
        "critic": random_network(next(keys), (config.num_critics,), (inputs, *value, 1), config.value_layer_norm),
        "value": random_network(next(keys), (), (observation_dim, *value, 1), config.value_layer_norm),
        "positive": random_network(next(keys), (), (inputs + 1, *actor, action_dim), config.actor_layer_norm),
        "negative": random_network(next(keys), (), (inputs + 1, *actor, action_dim), config.actor_layer_norm),
    }
    return start(networks, jax.tree.map(jnp.copy, networks["critic"]))


def random_network(key: Array, members: tuple[int, ...], sizes: Sequence[int], layer_norm: bool) -> Network:
    network: Network = {}
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        key, drawn = jax.random.split(key)
        bound = math.sqrt(6 / (fan_in + fan_out))
        network[f"Dense_{layer}/kernel"] = jax.random.uniform(
            drawn, (*members, fan_in, fan_out), minval=-bound, maxval=bound
        )
        network[f"Dense_{layer}/bias"] = jnp.zeros((*members, fan_out))
        if layer_norm and layer < len(sizes) - 2:
            network[f"LayerNorm_{layer}/scale"] = jnp.ones((*members, fan_out))
            network[f"LayerNorm_{layer}/bias"] = jnp.zeros((*members, fan_out))
    return network


def evaluate(network: Network, *inputs: Array) -> Array:
    """The perceptron's output [B, out] at inputs [B, ...] side by side."""
    hidden = jnp.concatenate(inputs, axis=-1)
    last = sum(name.endswith("kernel") for name in network) - 1
    for layer in range(last + 1):
        hidden = hidden @ network[f"Dense_{layer}/kernel"] + network[f"Dense_{layer}/bias"]
        if layer < last:
            hidden = jax.nn.gelu(hidden, approximate=True)
            if f"LayerNorm_{layer}/scale" in network:
                mean, variance = hidden.mean(axis=-1, keepdims=True), hidden.var(axis=-1, keepdims=True)
                hidden = (hidden - mean) * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)
                hidden = hidden * network[f"LayerNorm_{layer}/scale"] + network[f"LayerNorm_{layer}/bias"]
    return hidden


def q_values(critics: Network, observations: Array, actions: Array) -> Array:
    """Values [K, B] of all critics at observations [B, O] and actions [B, A]."""
    return jax.vmap(evaluate, in_axes=(0, None, None))(critics, observations, actions)[..., 0]


def next_actions(networks: dict[str, Network], observations: Array, noise: Array, config: DIPOLEConfig) -> Array:
    """The candidate from noise [B, C, A] that the smaller critic values most at observations [B, O]: [B, A]."""
    batch_size, count, action_dim = noise.shape
    states, x = jnp.repeat(observations, count, axis=0), noise.reshape(-1, action_dim)
    for step in range(config.flow_steps):
        t = jnp.full_like(x[:, :1], step / config.flow_steps)
        positive, negative = (evaluate(networks[name], states, x, t) for name in ("positive", "negative"))
        x = x + (negative + (1 + config.target_greediness) * (positive - negative)) / config.flow_steps
    actions = jnp.clip(x, -1, 1)
    if count == 1:
        return actions
    best = q_values(networks["critic"], states, actions).min(axis=0).reshape(batch_size, count).argmax(axis=1)
    return actions.reshape(noise.shape)[jnp.arange(batch_size), best]


def loss(
    networks: dict[str, Network], target_critic: Network, batch: Mapping[str, Array], draws: Draws, config: DIPOLEConfig
) -> tuple[Array, dict[str, Array]]:
    """The sum of all losses, and each of them under the name of algorithms/dipole.py's metric."""
    held = jax.lax.stop_gradient(networks)
    observations, actions, next_observations = (batch[key] for key in ("observations", "actions", "next_observations"))

    chosen = next_actions(held, next_observations, draws.candidates, config)
    next_q = q_values(target_critic, next_observations, chosen)
    target_q = batch["rewards"] + config.discount * batch["masks"] * next_q  # [2, B], not aggregated
    q = q_values(networks["critic"], observations, actions)
    critic_loss = jnp.square(q[:, None] - target_q[None]).mean(axis=(1, 2)).sum()

    data_q = q_values(target_critic, observations, actions)
    aggregated = data_q.min(axis=0) if config.value_aggregation == "min" else data_q.mean(axis=0)
    value = evaluate(networks["value"], observations)[:, 0]
    difference = aggregated - value
    expectile = jnp.where(difference < 0, 1 - config.expectile, config.expectile)
    value_loss = (expectile * jnp.square(difference)).mean()

    advantage = data_q.min(axis=0) - jax.lax.stop_gradient(value)
    weight = jax.nn.sigmoid(config.inverse_temperature * advantage + config.shift)
    x_t, velocity = (1 - draws.t) * draws.x0 + draws.t * actions, actions - draws.x0
    positive, negative = (
        jnp.square(evaluate(networks[name], observations, x_t, draws.t) - velocity).mean(axis=-1)
        for name in ("positive", "negative")
    )
    losses = {
        "critic/loss": critic_loss,
        "value/loss": value_loss,
        "actor/positive_loss": (weight * positive).mean(),
        "actor/negative_loss": ((1 - weight) * negative).mean(),
    }
    return sum(losses.values()), losses | {"actor/weight_mean": weight.mean()}


def update(
    state: State, batch: Mapping[str, Array], draws: Draws, config: DIPOLEConfig
) -> tuple[State, dict[str, Array]]:
    """One gradient step of all networks, then the target critics' step; also the losses."""
    gradients, losses = jax.grad(loss, has_aux=True)(state.networks, state.target_critic, batch, draws, config)
    count = state.count + 1

    def moment(old: Any, new: Any, decay: float) -> Any:
        return jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, old, new)

    first = moment(state.first_moments, gradients, FIRST_DECAY)
    second = moment(state.second_moments, jax.tree.map(jnp.square, gradients), SECOND_DECAY)
    first_scale, second_scale = 1 / (1 - FIRST_DECAY**count), 1 / (1 - SECOND_DECAY**count)
    networks = jax.tree.map(
        lambda p, m, v: p - config.learning_rate * m * first_scale / (jnp.sqrt(v * second_scale) + ADAM_EPSILON),
        state.networks,
        first,
        second,
    )
    rate = config.target_rate
    target = jax.tree.map(lambda old, new: rate * new + (1 - rate) * old, state.target_critic, networks["critic"])
    return State(networks, target, first, second, count), losses


def compiled_update(config: DIPOLEConfig, batch_size: int) -> Callable:
    """The function (state, data, key) -> (state, key, losses): a minibatch of `data` and an update by it.

    `data` holds arrays by the batch's names, a row per transition. The state and key that are passed in are used up.
    """

    def step(state: State, data: Mapping[str, Array], key: Array) -> tuple[State, Array, dict[str, Array]]:
        key, rows, candidates, x0, t = jax.random.split(key, 5)
        indices = jax.random.randint(rows, (batch_size,), 0, len(data["rewards"]))
        batch = {name: array[indices] for name, array in data.items()}
        shape, count = batch["actions"].shape, config.target_candidates
        draws = Draws(
            jax.random.normal(candidates, (shape[0], count, shape[1])),
            jax.random.normal(x0, shape),
            jax.random.uniform(t, (shape[0], 1)),
        )
        state, losses = update(state, batch, draws, config)
        return state, key, losses

    return jax.jit(step, donate_argnums=(0, 2))
