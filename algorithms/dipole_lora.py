"""DIPOLE (Dichotomous Diffusion Policy Optimization, Liang et al., ICLR 2026, arXiv 2601.00898) on LoRA adapters.

For a planner too large to be copied: it is pre-trained by imitation (policy mu), then frozen, and DIPOLE's two policies
are two low-rank adapters of it, as the paper does for its driving model. With the advantage A = r - V of an action
within its group (r its return, V the mean return of its state's actions), inverse temperature beta, greediness omega:

    adapters         W+ = W + (alpha / rank) B+ A+,   W- = W + (alpha / rank) B- A-,   B = 0 at first: both are mu
    two policies     pi+ ~ mu sigma(beta A)          pi- ~ mu (1 - sigma(beta A))             (eq. 8)
    policy loss      E[w |f+ - y|^2] + E[(1-w) |f- - y|^2],  w = sigma(beta A + k)            (eq. 9)
    sampling         f = (1+omega) f+ - omega f-                                              (eq. 10)

where f predicts the velocity y = a - x0 of a flow (dipole.py) or the noise y of a diffusion (dipole_diffusion.py);
process, schedule and sampler are those files'. There is no critic, so it takes one-step tasks with several scored
actions per state (the column state_values), and samples one action per state.

    python algorithms/dipole_lora.py --task driving/bandit --variant base
    python algorithms/dipole_lora.py --task driving/bandit

The base may be any module `base(observations [N, O], x [N, A], t [N, 1]) -> [N, A]`, with t in [0, 1) for a flow and a
level 1 to T for a diffusion, that has the linear layers of `target_modules`:

    DIPOLELoRA(DIPOLELoRAConfig(stage="finetune", target_modules=("q", "v")), O, A, base=module)

It is frozen, put in evaluation mode and given its adapters, in float32, in place. A checkpoint holds the adapters and
the sha256 of the base, not the base. The paper does not give beta, k, rank or omega of its driving runs: rank 64 and
alpha 16 are of third-party notes on its code; k is of the released reinforcement-learning code.

Needs torch and, for the adapters, peft; training from the command line needs the rest of this repository.
"""

import hashlib
import math
import sys
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Literal, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SATURATION_MARGIN = 0.01  # a weight this close to 0 or 1 counts as saturated
MIN_BETA, MAX_BETA = 0.1, 10.0  # b_min and b_max of the schedule, in Diffusion-QL's and IDQL's released code
TIME_FEATURES = 16  # sinusoids of the level, in Diffusion-QL's released code
FREQUENCY_RANGE = 1e4  # their angular frequencies go from 1 to 1 / this
MLP_RATIO = 4  # hidden numbers of a block's MLP per number of a token, as in the first transformer
PLANNER_FIELDS = ("process", "diffusion_steps", "token_sizes", "planner_width", "planner_blocks", "planner_heads")
PROBES = 16  # random inputs on which a base's prediction must feel each adapter


@dataclass(frozen=True)
class DIPOLELoRAConfig:
    stage: Literal["pretrain", "finetune"] = "pretrain"  # imitation by all weights, or adapters on a frozen base
    base: Optional[str] = None  # finetune: run folder or checkpoint.pt of the pre-trained planner
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
    shift: float = 0.0  # k: moves the sigmoid's active region
    weighting: Literal["sigmoid", "imitation", "exponential", "indicator", "none"] = "sigmoid"  # others: ablations
    max_weight: Optional[float] = 100.0  # clip of the exponential weights, as in IQL's released code; null: no clip
    greediness: float = 0.0  # omega when acting; 0: pi+ alone, -1: pi- alone
    sampling_steps: int = 10  # Euler steps of the flow, or denoising steps through the T levels, at most T
    noise_scale: float = 1.0  # the start noise is multiplied by it when acting; below 1: nearer to the mean
    diffusion_steps: int = 10  # T: noise levels of the diffusion
    stochasticity: float = 1.0  # eta of the sampler; 1: ancestral (DDPM), 0: deterministic (DDIM)

    @property
    def num_policies(self) -> int:
        return 1 if self.weighting in ("exponential", "none") else 2

    def __post_init__(self):
        check_greediness(self, "greediness")
        if self.stage == "pretrain" and self.greediness != 0:
            raise ValueError(f"greediness is {self.greediness:g}; stage pretrain has no two policies, set it to 0")
        if self.stage == "pretrain" and self.base is not None:
            raise ValueError(f"base is {self.base}, but stage pretrain trains one; set stage to finetune")
        if self.planner_width % self.planner_heads:
            raise ValueError(f"planner_width is {self.planner_width}; make it a multiple of planner_heads")
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


def time_features(t: Tensor) -> Tensor:
    """Sines and cosines of the level, at frequencies in geometric progression: t [B, 1] -> [B, TIME_FEATURES]."""
    half = TIME_FEATURES // 2
    exponents = torch.arange(half, dtype=t.dtype, device=t.device) / (half - 1)
    angles = t * FREQUENCY_RANGE**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


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


class Block(nn.Module):
    """Self-attention and an MLP, each on normalised tokens [N, L, W] and added to them (pre-norm transformer)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_input = nn.Linear(width, MLP_RATIO * width)
        self.mlp_output = nn.Linear(MLP_RATIO * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.query_key_value(self.attention_norm(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.projection(attended)
        return tokens + self.mlp_output(F.gelu(self.mlp_input(self.mlp_norm(tokens)), approximate="tanh"))


class Planner(nn.Module):
    """A transformer over an observation's tokens and one of (x, t), from which it predicts velocity or noise.

    Consecutive tokens of one size, such as the agents around a vehicle, share their embedding; each has a learned
    position. forward: observations [N, O], x [N, A], t [N, 1] -> [N, A].
    """

    def __init__(self, config, observation_dim: int, action_dim: int, generator: torch.Generator):
        super().__init__()
        sizes = config.token_sizes or (observation_dim,)
        width = config.planner_width
        if sum(sizes) != observation_dim:
            raise ValueError(f"token_sizes sum to {sum(sizes)}, but an observation has {observation_dim} numbers")
        self.runs = [(size, len(list(run))) for size, run in groupby(sizes)]
        self.embeddings = nn.ModuleList(nn.Linear(size, width) for size, _ in self.runs)
        self.plan_embedding = nn.Linear(action_dim + TIME_FEATURES, width)
        self.positions = nn.Parameter(torch.zeros(len(sizes) + 1, width))
        self.blocks = nn.ModuleList(Block(width, config.planner_heads) for _ in range(config.planner_blocks))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, action_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.positions, generator=generator)

    def forward(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        pieces = observations.split([size * count for size, count in self.runs], dim=-1)
        tokens = [
            embedding(piece.unflatten(-1, (count, size)))
            for embedding, piece, (size, count) in zip(self.embeddings, pieces, self.runs, strict=True)
        ]
        plan = self.plan_embedding(torch.cat([x, time_features(t)], dim=-1))[:, None]
        hidden = torch.cat([*tokens, plan], dim=1) + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        return self.output(self.norm(hidden[:, -1]))


def load_base(config, observation_dim: int, action_dim: int) -> Planner:
    """The planner of a pre-training run of this file. Raises ValueError where `config.base` is none that fits."""
    path = Path(config.base).expanduser()
    folder = path if path.is_dir() else path.parent
    try:
        agent = DIPOLELoRA.load(folder)
    except Exception as error:  # torch.load raises many types for an absent, damaged or foreign file
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"base {path} is no run of this file that can be loaded ({reason})") from error
    if agent.config.stage != "pretrain":
        raise ValueError(f"base {path} has adapters; name the folder of a run with stage pretrain")
    dims = (agent.observation_dim, agent.action_dim)
    if dims != (observation_dim, action_dim):
        raise ValueError(
            f"base {path} has observations and actions of {dims} numbers, not {observation_dim, action_dim}"
        )
    for name in PLANNER_FIELDS:
        theirs = getattr(agent.config, name)
        if theirs != getattr(config, name):
            raise ValueError(f"{name} of the planner in {path} is {theirs}; set {name} to that")
    return agent.base


def fingerprint(base: nn.Module) -> str:
    """Hexadecimal sha256 of names, types, shapes and numbers of all of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in base.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def add_adapters(base: nn.Module, names: tuple[str, ...], config, generator: torch.Generator) -> None:
    """Freezes `base` and gives the layers of `target_modules` an adapter of each name, in place, in float32.

    A is drawn as peft draws it (Kaiming-uniform), but from `generator`; B is 0. In bfloat16 most of an adapter's steps
    would be below the rounding of its numbers.
    """
    try:
        from peft import LoraConfig, LoraModel
    except ModuleNotFoundError as error:
        raise ValueError("base: the adapters need peft: `pip install -r requirements-lora.txt`") from error
    if hasattr(base, "peft_config"):
        raise ValueError("base has adapters already; merge them into it first, or load it anew")
    linear = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    for target in config.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = ", ".join(linear) or "none"
            raise ValueError(f"target_modules: the base has no linear layer {target!r}; choose among {known}")
    base.requires_grad_(False)
    lora = LoraConfig(
        r=config.adapter_rank,
        lora_alpha=config.adapter_alpha,
        lora_dropout=0.0,
        target_modules=list(config.target_modules),
    )
    tuner = LoraModel(base, {name: lora for name in names}, names[0])  # gives the first, and keeps it the active one
    for name in names[1:]:
        tuner.inject_adapter(base, name)
    base.eval()  # no dropout, of the base or of an adapter
    for name, parameter in base.named_parameters():
        if ".lora_" in name and parameter.dtype.itemsize < 4:
            parameter.data = parameter.data.float()
        if ".lora_A." in name:
            drawn = nn.init.kaiming_uniform_(torch.empty(parameter.shape), a=math.sqrt(5), generator=generator)
            parameter.data.copy_(drawn)


@torch.no_grad()
def check_base(base: nn.Module, adapter: str, observation_dim: int, action_dim: int) -> None:
    """Raises ValueError where the base is not called as described or its prediction does not feel an adapter.

    A layer whose weights another module reads, such as those that torch's nn.MultiheadAttention and the fast path of
    nn.TransformerEncoderLayer hand to one fused operation, never calls its adapter.
    """
    like = next(parameter for name, parameter in base.named_parameters() if ".lora_" not in name)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(PROBES, size, generator=generator).to(like) for size in (observation_dim, action_dim, 1)]
    prediction = base(*inputs)
    if prediction.shape != (PROBES, action_dim):
        raise ValueError(f"base predicts {list(prediction.shape)} for actions {[PROBES, action_dim]}; make it the same")
    for name, scales in base.named_parameters():
        if f".lora_B.{adapter}." in name:
            scales += 1
            if torch.equal(base(*inputs), prediction):
                layer = name.split(".lora_B.")[0]
                raise ValueError(
                    f"target_modules: the adapter of {layer} does nothing to the base's prediction, as in torch's "
                    "fused attention; leave such layers out, or write them as linear layers that are called"
                )
            scales.zero_()


class DIPOLELoRA(nn.Module):
    """A planner in pre-training, or a frozen one with a positive and a negative adapter."""

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
        self.batch_fields = ("state_values",) if config.stage == "finetune" else ()  # beyond the usual columns
        self.noise = Noise(seed)
        self.adapters = ()
        if config.stage == "pretrain":
            if base is not None:
                raise ValueError("stage is pretrain, which trains a planner of its own; set it to finetune")
            self.base = Planner(config, observation_dim, action_dim, self.noise.generator)
        else:
            if (base is None) == (config.base is None):
                raise ValueError("base: stage finetune needs one, the run folder of a pre-trained planner or a module")
            if base is None:
                base = load_base(config, observation_dim, action_dim)
            self.base = base
            sha256 = bytes.fromhex(fingerprint(base))
            self.register_buffer("base_sha256", torch.tensor(list(sha256), dtype=torch.uint8))
            self.adapters = ("positive", "negative")[: config.num_policies]
            add_adapters(base, self.adapters, config, self.noise.generator)
            check_base(base, self.adapters[0], observation_dim, action_dim)
        is_trained = ".lora_" if self.adapters else ""
        self.trained = {name: parameter for name, parameter in self.named_parameters() if is_trained in name}
        self.train_all()
        # capturable: the step count stays on the device, so that a CUDA graph can hold the step
        self.optimizer = torch.optim.Adam(self.trained.values(), lr=config.learning_rate, fused=True, capturable=True)

    def train_all(self) -> None:
        for parameter in self.trained.values():
            parameter.requires_grad_(True)

    def update(self, batch: dict) -> dict:
        """One gradient step of the planner or of its adapters; returns detached 0-d metrics.

        batch: tensors of the agent's dtype and device: observations [B, O] and actions [B, A] in [-1, 1]; in stage
        finetune also rewards [B] and state_values [B]. Raises ValueError for any other shape.
        """
        scored = ("rewards", "state_values") if self.adapters else ()
        check_columns(self, batch, ("observations", "actions", *scored))
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
        if self.adapters:
            loss, metrics = self.policy_loss(batch, x, t, target)
        else:
            loss = (self.base(batch["observations"], x, t) - target).square().mean()
            metrics = {"actor/imitation_loss": loss}
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def policy_loss(self, batch: dict, x: Tensor, t: Tensor, target: Tensor) -> tuple[Tensor, dict]:
        """Weighted regressions (eq. 9) of both adapters on target [B, A], at the same x [B, A] and t [B, 1]."""
        advantage = batch["rewards"] - batch["state_values"]
        weights = policy_weights(self.config, advantage)
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
        return losses.sum(), metrics

    def adapted(self, name: str, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The base's prediction [N, A] with that adapter, calculated in the base's dtype."""
        from peft.functional import set_adapter

        set_adapter(self.base, name)
        self.train_all()  # set_adapter freezes the other one, and a backward pass needs both
        dtype = next(parameter.dtype for key, parameter in self.named_parameters() if key not in self.trained)
        return self.base(observations.to(dtype), x.to(dtype), t.to(dtype)).to(x.dtype)

    def predict(self, observations: Tensor, x: Tensor, t: Tensor, greediness: float) -> Tensor:
        """f = (1 + omega) f+ - omega f- (eq. 10) at observations [N, O], x [N, A] and t [N, 1]: [N, A]."""
        inputs = (observations, x, t)
        if not self.adapters:
            return self.base(*inputs)
        if greediness in (0, -1):
            return self.adapted("positive" if greediness == 0 else "negative", *inputs)
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
        for t, next_t, fresh_noise in zip(levels, levels[1:], fresh_noises, strict=False):
            predicted = self.predict(observations, x, t, greediness)
            x = denoising_step(self.config, x, predicted, t, next_t, fresh_noise)
        return x

    def state_dict(self, *args, **options) -> dict:
        """What is trained, and the base's sha256: the frozen base is left out."""
        state = super().state_dict(*args, **options)
        return {name: value for name, value in state.items() if name in self.trained or name == "base_sha256"}

    def load_state_dict(self, state: dict, strict: bool = True, assign: bool = False):
        """Raises ValueError where the adapters are those of another base or of other layers."""
        theirs = state.get("base_sha256")  # absent in runs of before November 2026
        if theirs is not None and not torch.equal(theirs.cpu(), self.base_sha256.cpu()):
            ours, theirs = (bytes(sha256.tolist()).hex()[:12] for sha256 in (self.base_sha256, theirs))
            raise ValueError(f"base has sha256 {ours}..., but the adapters are of a base with {theirs}...; name that")
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
