"""What the harness does with any agent: its state for a checkpoint, its losses on other data, what an action costs."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

VALIDATION_SEED = 0  # every validation draws the same noise


def state_of(agent: nn.Module) -> dict:
    """Everything an exact continuation needs, as checkpoint.pt holds it: tensors and plain numbers only."""
    states = {name: optimizer.state_dict() for name, optimizer in optimizers_of(agent).items()}
    return {"networks": agent.state_dict(), **states, "noise": agent.noise.generator.get_state()}


def restore(agent: nn.Module, state: dict) -> None:
    """Puts the agent where `state_of` was taken. Raises what torch raises for the state of other networks."""
    agent.load_state_dict(state["networks"])
    for name, optimizer in optimizers_of(agent).items():
        optimizer.load_state_dict(state[name])
    agent.noise.generator.set_state(state["noise"])


def optimizers_of(agent: nn.Module) -> dict[str, torch.optim.Optimizer]:
    """The agent's optimisers by the names of its attributes."""
    return {name: value for name, value in vars(agent).items() if isinstance(value, torch.optim.Optimizer)}


def pure_functions(agent: nn.Module) -> list[str]:
    """Names of the agent's functions that a run may compile: the losses, one for each optimiser step, and `choose`."""
    return [*getattr(agent, "losses", ("loss",)), *(["choose"] if hasattr(agent, "choose") else [])]


@contextlib.contextmanager
def eager(agent: nn.Module) -> Iterator[None]:
    """Within the block the agent's functions are those of its class, if a run has compiled them."""
    compiled = {name: vars(agent).pop(name) for name in pure_functions(agent) if name in vars(agent)}
    try:
        yield
    finally:
        vars(agent).update(compiled)


@contextlib.contextmanager
def noise_of(agent: nn.Module, noise: nn.Module) -> Iterator[None]:
    """Within the block the agent draws from `noise`, so that the stream of training stays where it is."""
    own, agent.noise = agent.noise, noise
    try:
        yield
    finally:
        agent.noise = own


def fresh_noise(agent: nn.Module) -> nn.Module:
    """Noise of the agent's kind, dtype and device that always begins with the same numbers."""
    return type(agent.noise)(VALIDATION_SEED).to(agent.noise.like)


@torch.no_grad()
def validation_metrics(agent: nn.Module, batch: dict) -> dict[str, Tensor]:
    """The metrics of a minibatch at the present parameters: no gradient, equal noise at every call, not compiled."""
    with eager(agent), noise_of(agent, fresh_noise(agent)):
        return agent.loss(batch, agent.draw(len(batch["actions"])))[1]


def own_options(agent_class: type, config: Any) -> dict[str, Any]:
    """All act options with the config's values."""
    return {name: getattr(config, name) for name in agent_class.act_options}


def network_evaluations(agent: nn.Module, **options) -> int:
    """Evaluations of one network that an action with these act options costs, counted while one is made.

    Each member of a network counts.
    """
    count = 0

    def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        nonlocal count
        count += output.numel() // output.shape[-1]  # [M, B, .] is M evaluations of each of B rows

    hooks = [child.register_forward_hook(note) for name, child in agent.named_children() if name != "noise"]
    try:
        with noise_of(agent, fresh_noise(agent)):
            agent.act(agent.noise.like.new_zeros(1, agent.observation_dim), **options)
    finally:
        for hook in hooks:
            hook.remove()
    return count
