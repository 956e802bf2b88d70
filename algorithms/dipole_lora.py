"""DIPOLE (Dichotomous Diffusion Policy Optimization, Liang et al., ICLR 2026, arXiv 2601.00898) on LoRA adapters.

A planner is pre-trained by imitation (policy mu), then frozen, and DIPOLE's two policies are two low-rank adapters of
it. Without critics, for one-step tasks with scored actions: A = r - V, a return less its state's mean (state_values).

    adapters         W+ = W + (alpha / rank) B+ A+,   W- = W + (alpha / rank) B- A-,   B = 0 at first: both are mu
    two policies     pi+ ~ mu sigma(beta A)          pi- ~ mu (1 - sigma(beta A))             (eq. 8)
    policy loss      E[w |f+ - y|^2] + E[(1-w) |f- - y|^2],  w = sigma(beta A + k)            (eq. 9)
    sampling         f = (1+omega) f+ - omega f-                                              (eq. 10)

where f predicts the velocity y = a - x0 of a flow or the noise y of a diffusion; |.|^2 is a mean over dimensions.

    python algorithms/dipole_lora.py --task driving/bandit --variant base
    python algorithms/dipole_lora.py --task driving/bandit

The base may be any module `base(observations [N, O], x [N, A], t [N, 1]) -> [N, A]`, with t in [0, 1) for a flow and a
level 1 to T for a diffusion, that has the linear layers of `target_modules`. It is changed in place:

    DIPOLELoRA(DIPOLELoRAConfig(stage="finetune", target_modules=("q", "v")), O, A, base=module)

The paper gives no beta, k, rank or omega of its driving runs; rank 64 and alpha 16 are of HDP-navsim, by its authors.
Needs only torch; training and the planner of _planner.py need the rest of this repository.
"""

import hashlib
import math
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, Optional

import torch
from torch import Tensor, nn

SATURATION_MARGIN = 0.01  # a weight this close to 0 or 1 counts as saturated
MIN_BETA, MAX_BETA = 0.1, 10.0  # b_min and b_max of the schedule, in Diffusion-QL's and IDQL's released code
MIN_DEVIATION = 1e-6  # added to a group's standard deviation, in HDP's released code


@dataclass(frozen=True)
class DIPOLELoRAConfig:
    stage: Literal["pretrain", "finetune", "finetune_all"] = "pretrain"  # imitation, two adapters, or all weights
    base: Optional[str] = None  # to fine-tune: run folder or checkpoint.pt of the pre-trained planner
    process: Literal["flow", "diffusion"] = "flow"  # the planner predicts velocities, or noise
    token_sizes: tuple[int, ...] = ()  # an observation's numbers in each token, in order; []: one token of all
    planner_width: int = 64  # numbers of a token in the planner
    planner_blocks: int = 2  # attention and MLP blocks of the planner
    planner_heads: int = 4  # attention heads of a block
    learning_rate: float = 3e-4  # learning rate of Adam, for all networks
    adapter_rank: int = 64  # rank of an adapter's change of a layer
    adapter_alpha: float = 16.0  # that change is multiplied by alpha / rank
    target_modules: tuple[str, ...] = ("query_key_value", "projection", "mlp_input", "mlp_output")  # adapted layers
    inverse_temperature: float = 1.0  # beta: multiplies the advantage in the policy's weights
    z_score: bool = False  # divide the advantage by the data's state_deviations, the spread of the state's returns
    shift: float = 0.0  # k: moves the sigmoid's active region
    weighting: Literal["sigmoid", "imitation", "exponential", "indicator", "none"] = "sigmoid"  # others: ablations
    max_weight: Optional[float] = 100.0  # clip of the exponential weights, as in IQL's released code; null: no clip
    greediness: float = 0.0  # omega when acting; 0: pi+ alone, -1: pi- alone
    sampling_steps: int = 10  # Euler steps of the flow, or denoising steps through the T levels, at most T
    noise_scale: float = 1.0  # the start noise is multiplied by it when acting; below 1: nearer to the mean
    diffusion_steps: int = 10  # T: noise levels of the diffusion
    stochasticity: float = 1.0  # eta of the sampler; 1: ancestral (DDPM), 0: deterministic (DDIM)
    second_order: bool = False  # denoise by DPM-Solver++(2M), which takes stochasticity 0

    @property
    def num_policies(self) -> int:
        return 1 if self.stage != "finetune" or self.weighting in ("exponential", "none") else 2

    def __post_init__(self):
        if self.stage != "finetune" and self.greediness != 0:
            raise ValueError(f"greediness is {self.greediness:g}; stage {self.stage} has one policy, set it to 0")
        check_greediness(self, "greediness")
        if self.stage == "pretrain" and self.base is not None:
            raise ValueError(f"base is {self.base}, but stage pretrain trains one; set stage to finetune")
        if self.second_order and (self.process == "flow" or self.stochasticity != 0):
            raise ValueError("second_order is true; it needs process diffusion and stochasticity 0, set both")
        if self.process == "diffusion" and self.sampling_steps > self.diffusion_steps:
            raise ValueError(f"sampling_steps is {self.sampling_steps}; it is at most diffusion_steps")


def check_greediness(config, name: str) -> None:
    """Raises ValueError unless the policies that the config trains can be combined to that greediness (eq. 10)."""
    omega = getattr(config, name)
    if omega < -1:
        raise ValueError(f"{name} is {omega:g}; it starts at -1, the negative policy alone")
    if omega != 0 and config.num_policies == 1:
        raise ValueError(f"{name} is {omega:g}, but weighting {config.weighting} trains one policy; set {name} to 0")


class Noise(nn.Module):
    """The agent's random numbers, from one generator that follows the agent's device and dtype."""

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self.register_buffer("like", torch.empty(0), persistent=False)

    def _apply(self, fn, recurse=True):  # what .to(), .cuda() and .double() call
        super()._apply(fn, recurse)
        if self.generator.device != self.like.device:
            self.generator = torch.Generator(self.like.device).manual_seed(self.seed)
        return self

    def normal(self, *shape: int) -> Tensor:
        return self.like.new_empty(shape).normal_(generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return self.like.new_empty(shape).uniform_(generator=self.generator)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator, device=self.like.device)


def check_columns(agent: nn.Module, columns: dict, names: tuple[str, ...]) -> None:
    """Raises ValueError unless all columns are tensors of N rows, as wide as the agent's, of its dtype and device."""
    like = next(parameter for parameter in agent.parameters() if parameter.requires_grad)
    widths = {
        "observations": [agent.observation_dim],
        "next_observations": [agent.observation_dim],
        "actions": [agent.action_dim],
        "next_actions": [agent.action_dim],
    }
    size = len(columns["observations"])
    for name in (*names, "valid") if "valid" in columns else names:
        column = columns.get(name)
        width = widths.get(name, [])
        found = type(column).__name__
        if isinstance(column, Tensor):
            found = f"{column.dtype} {list(column.shape)} on {column.device}"
        if found != f"{like.dtype} {[size, *width]} on {like.device}":
            wanted = f"{like.dtype} {['N', *width]} on {like.device}".replace("'", "")
            raise ValueError(f"{name} must be {wanted}, not {found} (observations have N = {size})")


def policy_weights(config, advantage: Tensor) -> Tensor:
    """Regression weights of pi+ and pi-: advantage [B] -> [2, B]; [1, B] where there is one policy."""
    scaled = config.inverse_temperature * advantage
    if config.weighting == "none":  # behaviour cloning
        return torch.ones_like(advantage)[None]
    if config.weighting == "exponential":  # eq. 4
        return torch.exp(scaled).clamp(min=0, max=config.max_weight)[None]
    if config.weighting == "indicator":  # CFGRL-style: pi+ ~ mu 1[A >= 0]
        positive = (advantage >= 0).to(advantage)
    else:  # eq. 8
        positive = torch.sigmoid(scaled + config.shift)
    if config.weighting == "sigmoid":
        return torch.stack([positive, 1 - positive])
    return torch.stack([positive, torch.ones_like(positive)])  # pi- = mu


def signal_level(t: Tensor, diffusion_steps: int) -> Tensor:
    """abar at level t, 0 to T, of any shape: the product of 1 - beta_u up to t, in closed form."""
    fraction = t / diffusion_steps
    return torch.exp(-MIN_BETA * fraction - (MAX_BETA - MIN_BETA) / 2 * fraction.square())


def noised(actions: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """x_t: actions [B, A] with noise [B, A] mixed in at abar = `level` [B, 1]."""
    return level.sqrt() * actions + (1 - level).sqrt() * noise


def denoising_step(
    config,
    x: Tensor,
    predicted: Tensor,
    t: Tensor,
    next_t: Tensor,
    fresh_noise: Tensor,
) -> Tensor:
    """x [B, A] from level t to the lower next_t (both [B, 1]), given the policies' combined noise prediction [B, A].

    Each policy's own estimate must not be clipped: at high levels both would be at one bound, their difference 0.
    """
    level = signal_level(t, config.diffusion_steps)
    next_level = signal_level(next_t, config.diffusion_steps)
    clean = ((x - (1 - level).sqrt() * predicted) / level.sqrt()).clamp(-1, 1)
    remaining = (x - level.sqrt() * clean) / (1 - level).sqrt()
    variance = config.stochasticity**2 * (1 - next_level) / (1 - level) * (1 - level / next_level)
    return next_level.sqrt() * clean + (1 - next_level - variance).sqrt() * remaining + variance.sqrt() * fresh_noise


def fingerprint(base: nn.Module) -> Tensor:
    """The 32 bytes of the sha256 of names, types, shapes and numbers of all of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in base.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def extrapolated(config, clean: Tensor, past: Tensor, levels: list[Tensor]) -> Tensor:
    """Clean actions [B, A] midway between the last two of three levels, linear in log SNR: DPM-Solver++(2M)'s."""
    before, now, after = (signal_level(level, config.diffusion_steps).logit() for level in levels)
    return clean + (after - now) / (now - before) / 2 * (clean - past)


class Adapter(nn.Module):
    """A frozen linear layer with a change for each policy, float32: in bfloat16 most steps would be rounded away."""

    def __init__(self, name: str, layer: nn.Linear, policies: tuple[str, ...], config, generator: torch.Generator):
        super().__init__()
        self.name = name
        self.active = policies[0]
        self.scale = config.adapter_alpha / config.adapter_rank
        self.base_layer = layer
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        for policy in policies:
            down = nn.Linear(layer.in_features, config.adapter_rank, bias=False)
            up = nn.Linear(config.adapter_rank, layer.out_features, bias=False)
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(up.weight)
            self.lora_A[policy] = down.to(layer.weight.device)
            self.lora_B[policy] = up.to(layer.weight.device)

    @property
    def weight(self):
        raise ValueError(
            f"target_modules: {self.name} is read, not called, as in torch's fused attention; leave it out"
        )

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.lora_A[self.active], self.lora_B[self.active]
        y = self.base_layer(x)
        return (y + self.scale * up(down(x.to(down.weight.dtype)))).to(y.dtype)


def add_adapters(base: nn.Module, policies: tuple[str, ...], config, generator: torch.Generator) -> None:
    """Freezes `base` and gives the layers of `target_modules` an adapter for each policy, in place."""
    base.requires_grad_(False)
    linear = {name: layer for name, layer in base.named_modules() if isinstance(layer, nn.Linear)}
    for target in config.target_modules:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = ", ".join(linear) or "none"
            raise ValueError(f"target_modules: the base has no linear layer {target!r}; choose among {known}")
    for name, layer in linear.items():
        if any(f".{name}".endswith(f".{target}") for target in config.target_modules):
            parent, _, child = name.rpartition(".")
            setattr(base.get_submodule(parent), child, Adapter(name, layer, policies, config, generator))


class DIPOLELoRA(nn.Module):
    """A planner that trains whole, or a frozen one with a positive and a negative adapter."""

    act_options = ("greediness", "sampling_steps", "noise_scale")  # config fields that act() takes

    def __init__(
        self,
        config: DIPOLELoRAConfig,
        observation_dim: int,
        action_dim: int,
        seed: int = 0,
        base: nn.Module | None = None,
    ):
        super().__init__()
        self.config = config
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        scores = ("state_values", "state_deviations") if config.z_score else ("state_values",)
        self.batch_fields = () if config.stage == "pretrain" else scores  # beyond the usual columns
        self.noise = Noise(seed)
        if config.stage != "pretrain" and (base is None) == (config.base is None):
            raise ValueError(f"base: stage {config.stage} needs one, a run folder of stage pretrain or a module")
        if base is None:
            from algorithms._planner import make_planner

            base = make_planner(config, observation_dim, action_dim, self.noise.generator)
        if config.stage != "pretrain":
            self.register_buffer("base_sha256", fingerprint(base))
        if config.stage == "finetune":
            self.adapters = ("positive", "negative")[: config.num_policies]
            add_adapters(base, self.adapters, config, self.noise.generator)
        else:
            self.adapters = (None,)  # one policy, of the base's own weights
            base.float()
        self.base = base.eval()  # no dropout
        is_trained = ".lora_" if config.stage == "finetune" else ""
        self.trained = {name: parameter for name, parameter in self.named_parameters() if is_trained in name}
        # capturable: the step count stays on the device, so that a CUDA graph can hold the step
        self.optimizer = torch.optim.Adam(self.trained.values(), lr=config.learning_rate, fused=True, capturable=True)

    def update(self, batch: dict) -> dict:
        """One gradient step; returns detached 0-d metrics. Raises ValueError for any other shape.

        batch: tensors of the agent's dtype and device: observations [B, O], actions [B, A] in [-1, 1], the others [B].
        """
        check_columns(self, batch, ("observations", "actions", "rewards", *self.batch_fields))
        loss, metrics = self.loss(batch, self.draw(len(batch["actions"])))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return metrics

    def draw(self, batch_size: int) -> dict:
        """The random numbers of one update: noise [B, A], and times or levels [B, 1]."""
        noise = self.noise.normal(batch_size, self.action_dim)
        if self.config.process == "flow":
            return {"noise": noise, "t": self.noise.uniform(batch_size, 1)}
        t = 1 + self.noise.integers(self.config.diffusion_steps, batch_size, 1)
        return {"noise": noise, "t": t.to(noise.dtype)}

    def loss(self, batch: dict, noise: dict) -> tuple[Tensor, dict]:
        """The loss of the stage at the present parameters, and the metrics: a pure function."""
        actions, x0, t = batch["actions"], noise["noise"], noise["t"]
        if self.config.process == "flow":
            x, target = (1 - t) * x0 + t * actions, actions - x0
        else:
            x, target = noised(actions, x0, signal_level(t, self.config.diffusion_steps)), x0
        if self.config.stage != "pretrain":
            return self.policy_loss(batch, x, t, target)
        loss = (self.adapted(None, batch["observations"], x, t) - target).square().mean()
        return loss, {"actor/imitation_loss": loss.detach()}

    def policy_loss(self, batch: dict, x: Tensor, t: Tensor, target: Tensor) -> tuple[Tensor, dict]:
        """Weighted regressions (eq. 9) of all policies on target [B, A], at the same x [B, A] and t [B, 1]."""
        advantage = batch["rewards"] - batch["state_values"]
        if self.config.z_score:
            advantage = advantage / (batch["state_deviations"] + MIN_DEVIATION)
        weights = policy_weights(self.config, advantage)[: len(self.adapters)]
        predictions = torch.stack([self.adapted(name, batch["observations"], x, t) for name in self.adapters])
        losses = (weights * (predictions - target).square().mean(dim=-1)).mean(dim=1)
        positive = weights[0]
        saturated = torch.minimum(positive.abs(), (positive - 1).abs()) < SATURATION_MARGIN
        metrics = {
            "actor/positive_loss": losses[0],
            "actor/weight_mean": positive.mean(),
            "actor/weight_saturated": saturated.to(positive).mean(),
            "actor/advantage_std": advantage.std(correction=0),
        }
        if len(losses) == 2:
            metrics["actor/negative_loss"] = losses[1]
            metrics["actor/policy_distance"] = (predictions[0] - predictions[1]).square().mean()
        return losses.sum(), {name: metric.detach() for name, metric in metrics.items()}

    def adapted(self, policy: str | None, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The base's prediction [N, A] with that policy's adapters, calculated in the base's dtype."""
        for module in self.base.modules():
            if isinstance(module, Adapter):
                module.active = policy
        dtype = next(self.base.parameters()).dtype
        prediction = self.base(observations.to(dtype), x.to(dtype), t.to(dtype)).to(x.dtype)
        if prediction.shape != x.shape:
            raise ValueError(f"base predicts {list(prediction.shape)} for actions {list(x.shape)}; make it the same")
        return prediction

    def predict(self, observations: Tensor, x: Tensor, t: Tensor, greediness: float) -> Tensor:
        """f = (1 + omega) f+ - omega f- (eq. 10) at observations [N, O], x [N, A] and t [N, 1]: [N, A]."""
        inputs = (observations, x, t)
        if greediness in (0, -1):
            return self.adapted(self.adapters[-int(greediness)], *inputs)
        positive, negative = (self.adapted(name, *inputs) for name in self.adapters)
        return (1 + greediness) * positive - greediness * negative

    @torch.no_grad()
    def act(self, observations: Tensor, explore: bool = False, **options) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]; `options` replace the config's (see act_options).

        `explore` changes nothing: the policy is stochastic already. Raises ValueError for an impossible option.
        """
        config = replace(self.config, **options)
        check_columns(self, {"observations": observations}, ("observations",))
        if config.process == "flow":
            x0 = config.noise_scale * self.noise.normal(len(observations), self.action_dim)
            return self.sample_flow(observations, x0, config.greediness, config.sampling_steps)
        noise = self.noise.normal(len(observations), config.sampling_steps + 1, self.action_dim)
        noise[:, 0] *= config.noise_scale
        return self.sample_diffusion(observations, noise, config.greediness)

    def sample_flow(self, observations: Tensor, x: Tensor, greediness: float, num_steps: int) -> Tensor:
        """Actions [N, A] by Euler steps from the noise x [N, A] at t = 0, clipped once at the end."""
        for step in range(num_steps):
            t = torch.full_like(x[:, :1], step / num_steps)
            x = x + self.predict(observations, x, t, greediness) / num_steps
        return x.clamp(-1, 1)

    def sample_diffusion(self, observations: Tensor, noise: Tensor, greediness: float) -> Tensor:
        """Actions [N, A] by S steps from level T to 0; noise [N, S+1, A] is the start and each step's own."""
        x, *fresh_noises = noise.unbind(dim=1)
        num_steps = len(fresh_noises)
        levels = [self.config.diffusion_steps * step // num_steps for step in range(num_steps, -1, -1)]
        levels = [torch.full_like(x[:, :1], level) for level in levels]
        past = None
        for step, fresh_noise in enumerate(fresh_noises):
            t, next_t = levels[step : step + 2]
            predicted = self.predict(observations, x, t, greediness)
            if self.config.second_order:
                level = signal_level(t, self.config.diffusion_steps)
                clean = ((x - (1 - level).sqrt() * predicted) / level.sqrt()).clamp(-1, 1)
                if 0 < step < num_steps - 1:  # the first has no past, the last ends at an infinite log SNR
                    middle = extrapolated(self.config, clean, past, levels[step - 1 : step + 2])
                    predicted = (x - level.sqrt() * middle) / (1 - level).sqrt()
                past = clean
            x = denoising_step(self.config, x, predicted, t, next_t, fresh_noise)
        return x

    def state_dict(self, *args, **options) -> dict:
        """What is trained, and the sha256 of the base as it was: a frozen base is left out."""
        state = super().state_dict(*args, **options)
        return {name: value for name, value in state.items() if name in self.trained or name == "base_sha256"}

    def load_state_dict(self, state: dict, strict: bool = True, assign: bool = False):
        """Raises ValueError where the checkpoint is of another base or of other layers."""
        theirs = state.get("base_sha256")  # absent where the planner is trained whole: its base is in the state
        if theirs is not None and theirs.tolist() != self.base_sha256.tolist():
            raise ValueError("base has another sha256 than the one that the checkpoint was trained from; name that one")
        if state.keys() - {"base_sha256"} != self.trained.keys():
            raise ValueError("target_modules: the adapters of the checkpoint are of other layers; name those")
        return super().load_state_dict(state, strict=False, assign=assign)  # strict would ask for the base, too

    @classmethod
    def load(cls, run_dir: str | Path, base: nn.Module | None = None) -> "DIPOLELoRA":
        """The trained agent of a run folder, on the CPU; `base` takes the place of the one its config names."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        stored = checkpoint["config"]
        config = DIPOLELoRAConfig(
            **{each.name: stored[each.name] for each in fields(DIPOLELoRAConfig) if each.name in stored}
        )
        if base is not None:
            config = replace(config, base=None)
        agent = cls(config, checkpoint["observation_dim"], checkpoint["action_dim"], base=base)
        agent.load_state_dict(checkpoint["agent"]["networks"])
        return agent


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for envs/ and harness/
    from harness.command_line import main

    main(DIPOLELoRA, DIPOLELoRAConfig)
