"""DIPOLE's update once more, as plainly as the formulas allow, to make golden cases of any size and setting.

Written from the formulas of the released code, with separate networks, loops over candidates, critics and heads, Adam
by hand, and nothing shared with algorithms/dipole.py. It writes the layout that tests/golden/checker.py reads.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

STEPS = 3
PREFIXES = {
    "critic": "critic/value_net",
    "target": "target_critic/value_net",
    "value": "value/value_net",
    "positive": "actor_flow_pos/mlp",
    "negative": "actor_flow_neg/mlp",
}


class PlainDipole:
    """The parameters under the reference's names, and one update of them."""

    def __init__(self, config: dict, observation_dim: int, action_dim: int, random: np.random.Generator):
        self.config, self.random, self.count = config, random, 0
        self.parameters: dict[str, Tensor] = {}
        critic_sizes = (observation_dim + action_dim, *config["value_hidden_dims"], 1)
        flow_sizes = (observation_dim + action_dim + 1, *config["actor_hidden_dims"], action_dim)
        value_sizes = (observation_dim, *config["value_hidden_dims"], 1)
        self.create(PREFIXES["critic"], critic_sizes, config["layer_norm"], (2,))
        self.create(PREFIXES["target"], critic_sizes, config["layer_norm"], (2,))
        self.create(PREFIXES["value"], value_sizes, config["layer_norm"], ())
        for policy in ("positive", "negative"):
            self.create(PREFIXES[policy], flow_sizes, config["actor_layer_norm"], ())
        self.moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.parameters.items()}

    def create(self, prefix: str, sizes: tuple, layer_norm: bool, lead: tuple) -> None:
        for layer, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            self.draw(f"{prefix}/Dense_{layer}/kernel", (*lead, fan_in, fan_out), 1 / math.sqrt(fan_in))
            self.draw(f"{prefix}/Dense_{layer}/bias", (*lead, fan_out), 0.1)
            if layer_norm and layer < len(sizes) - 2:
                self.draw(f"{prefix}/LayerNorm_{layer}/scale", (*lead, fan_out), 0.1, mean=1.0)
                self.draw(f"{prefix}/LayerNorm_{layer}/bias", (*lead, fan_out), 0.1)

    def draw(self, name: str, shape: tuple, scale: float, mean: float = 0.0) -> None:
        self.parameters[name] = torch.tensor(mean + scale * self.random.normal(size=shape))

    def network(self, name: str, inputs: list, member=...) -> Tensor:
        """An MLP's output [B, out]; `member` of an ensemble."""
        prefix, x = PREFIXES[name], torch.cat(inputs, dim=-1)
        layers = sum(key.startswith(f"{prefix}/Dense") for key in self.parameters) // 2
        for layer in range(layers):
            kernel, bias = (self.parameters[f"{prefix}/Dense_{layer}/{part}"][member] for part in ("kernel", "bias"))
            x = x @ kernel + bias
            if layer == layers - 1:
                return x
            x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
            if f"{prefix}/LayerNorm_{layer}/scale" in self.parameters:
                scale, shift = (self.parameters[f"{prefix}/LayerNorm_{layer}/{part}"] for part in ("scale", "bias"))
                centred = x - x.mean(dim=-1, keepdim=True)
                spread = torch.sqrt((centred**2).mean(dim=-1, keepdim=True) + 1e-6)
                x = centred / spread * scale[member] + shift[member]
        raise AssertionError("a network has layers")

    def q(self, name: str, observations: Tensor, actions: Tensor) -> list:
        return [self.network(name, [observations, actions], member)[:, 0] for member in range(2)]

    def next_actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        candidates, steps, cfg = [], self.config["flow_steps"], self.config["cfg_fortrain"]
        for x in noise.unbind(1):
            for step in range(steps):
                t = torch.full((len(x), 1), step / steps, dtype=torch.float64)
                positive, negative = (self.network(name, [observations, x, t]) for name in ("positive", "negative"))
                x = x + (negative + cfg * (positive - negative)) / steps
            candidates.append(x.clip(-1, 1))
        values = [torch.minimum(*self.q("critic", observations, candidate)).tolist() for candidate in candidates]
        best = np.argmax(values, axis=0)
        return torch.stack([candidates[choice][row] for row, choice in enumerate(best)])

    def losses(self, batch: dict, noise: Tensor, x0: Tensor, t: Tensor) -> dict:
        config, s, a = self.config, batch["observations"], batch["actions"]
        with torch.no_grad():
            next_q = self.q("target", batch["next_observations"], self.next_actions(batch["next_observations"], noise))
            targets = [batch["rewards"] + config["discount"] * batch["masks"] * head for head in next_q]
            first, second = self.q("target", s, a)
        smallest = torch.minimum(first, second)
        aggregated = smallest if config["q_agg"] == "min" else (first + second) / 2
        value = self.network("value", [s])[:, 0]
        difference = aggregated - value
        weights = [config["expectile"] if u >= 0 else 1 - config["expectile"] for u in difference]
        expectile = torch.tensor(weights, dtype=torch.float64)
        critic = torch.stack([(q - y) ** 2 for q in self.q("critic", s, a) for y in targets])
        weight = 1 / (1 + torch.exp(-(config["beta"] * (smallest - value.detach()) + config["k"])))
        inputs = [s, (1 - t) * x0 + t * a, t]
        errors = {name: ((self.network(name, inputs) - (a - x0)) ** 2).mean(-1) for name in ("positive", "negative")}
        return {
            "value_loss": (expectile * difference**2).mean(),
            "critic_loss": critic.sum(0).mean() / 2,
            "positive_loss": (weight * errors["positive"]).mean(),
            "negative_loss": ((1 - weight) * errors["negative"]).mean(),
            "weight_mean": weight.mean(),
        }

    def update(self, batch: dict, *noise: Tensor) -> dict:
        trained = [name for name in self.parameters if not name.startswith("target")]
        for name in trained:
            self.parameters[name].requires_grad_(True)
        losses = self.losses(batch, *noise)
        total = sum(loss for name, loss in losses.items() if name.endswith("_loss"))
        gradients = torch.autograd.grad(total, [self.parameters[name] for name in trained])
        self.count += 1
        for name, gradient in zip(trained, gradients, strict=True):
            first, second = self.moments[name]
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.999).add_(0.001 * gradient**2)
            step = first / (1 - 0.9**self.count) / (torch.sqrt(second / (1 - 0.999**self.count)) + 1e-8)
            self.parameters[name] = self.parameters[name].detach() - self.config["lr"] * step
        rate = self.config["tau"]
        for name in self.parameters.keys() - set(trained):
            online = self.parameters[name.replace("target_", "")]
            self.parameters[name] = rate * online + (1 - rate) * self.parameters[name]
        return losses


def write_case(path: Path, config: dict, observation_dim: int, action_dim: int, batch_size: int, seed: int) -> None:
    """Writes `<path>.npz` and `<path>.json`: STEPS recorded updates with random parameters, minibatches and noise."""
    random = np.random.default_rng(seed)
    agent, arrays = PlainDipole(config, observation_dim, action_dim, random), {}
    arrays |= {f"init/{name}": parameter.numpy() for name, parameter in agent.parameters.items()}
    for step in range(STEPS):
        batch = {
            "observations": random.normal(size=(batch_size, observation_dim)),
            "actions": random.uniform(-1, 1, (batch_size, action_dim)),
            "next_observations": random.normal(size=(batch_size, observation_dim)),
            "rewards": random.normal(size=batch_size),
            "masks": (random.random(batch_size) > 0.2).astype(float),
        }
        noise = random.normal(size=(batch_size, config["num_samples_fortrain"], action_dim))
        x0, t = random.normal(size=(batch_size, action_dim)), random.random((batch_size, 1))
        losses = agent.update({k: torch.tensor(v) for k, v in batch.items()}, *map(torch.tensor, (noise, x0, t)))
        draws = {"0_normal": noise, "1_normal": x0, "2_uniform": t, "3_normal": x0, "4_uniform": t}
        for kind, named in (("batch", batch), ("noise", draws)):
            arrays |= {f"step{step}/{kind}/{name}": array for name, array in named.items()}
        arrays |= {f"step{step}/info/{name}": loss.detach().numpy() for name, loss in losses.items()}
    arrays |= {f"final/{name}": parameter.detach().numpy() for name, parameter in agent.parameters.items()}
    np.savez(path.with_suffix(".npz"), **arrays)
    case = {"config": config, "obs_dim": observation_dim, "action_dim": action_dim, "batch": batch_size, "steps": STEPS}
    path.with_suffix(".json").write_text(json.dumps(case))
