"""DIPOLE (Dichotomous Diffusion Policy Optimization, Liang et al., ICLR 2026, arXiv 2601.00898) on LoRA adapters.

For a planner too large to be copied: it is pre-trained by imitation (policy mu), then frozen, and DIPOLE's two policies
are two low-rank adapters of it, as the paper does for its driving model. With return r of an action and the mean return
of its state's actions as V (G = r - V, advantage within a group), inverse temperature beta and greediness omega:

    adapters         W+ = W + (alpha / rank) B+ A+,   W- = W + (alpha / rank) B- A-,   B = 0 at first: both are mu
    two policies     pi+ ~ mu sigma(beta G)          pi- ~ mu (1 - sigma(beta G))             (eq. 8)
    training         E[w |f+ - y|^2] + E[(1-w) |f- - y|^2],  w = sigma(beta G + k)            (eq. 9)
    sampling         f = (1+omega) f+ - omega f-                                              (eq. 10)

where f predicts the velocity y = a - x0 of a flow (algorithms/dipole.py) or the noise y of a diffusion
(algorithms/dipole_diffusion.py); its process, schedule and sampler are those files'.

    python algorithms/dipole_lora.py --config configs/dipole_lora/driving/pretrain.yaml
    python algorithms/dipole_lora.py --config configs/dipole_lora/driving/bandit.yaml

The base may be any module `base(observations [N, O], x [N, A], t [N, 1]) -> [N, A]`, with t in [0, 1) for a flow and a
level 1 to T for a diffusion, that has the linear layers of `target_modules`:

    DIPOLELoRA(DIPOLELoRAConfig(stage="finetune", target_modules=("q", "v")), O, A, base=module)

It is frozen, put in evaluation mode and given its adapters in place. A checkpoint holds the adapters and the sha256 of
the base, not the base.

Differences from the paper, which does not give beta, k, rank or omega of its driving runs: rank 64 and alpha 16 are of
third-party notes on its code; the shift k is of the released reinforcement-learning code.
Differences from the other two files: no critic, so one-step tasks with several scored actions per state only (the
column state_values), and one action per state when acting.

Needs torch, numpy and, for the adapters, peft (requirements-lora.txt); train() also needs this repository's envs/ and
harness/, which define rewards and masks.
"""

import hashlib
import math
import sys
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SATURATION_MARGIN = 0.01  # a weight this close to 0 or 1 counts as saturated
VALIDATION_SEED = 0  # losses() draws the same noise at every call
MIN_BETA, MAX_BETA = 0.1, 10.0  # b_min and b_max of the schedule, in Diffusion-QL's and IDQL's released code
TIME_FEATURES = 16  # sinusoids of the level, in Diffusion-QL's released code
FREQUENCY_RANGE = 1e4  # their angular frequencies go from 1 to 1 / this
MLP_RATIO = 4  # hidden numbers of a block's MLP per number of a token, as in the first transformer
PLANNER_FIELDS = ("process", "diffusion_steps", "token_sizes", "planner_width", "planner_blocks", "planner_heads")
PROBE_SCALE = 0.01  # of the adapters while it is looked at whether the prediction feels them


@dataclass(frozen=True)
class DIPOLELoRAConfig:
    task: str = "exorl/local_sticky_random/cartpole_swingup"  # <suite>/<name>: the data set and its environment
    data_dir: Optional[str] = None  # folder of the data sets; null = the suite's own default
    collect_episodes: int = 0  # collect so many episodes of an absent local set first; 0 = stop and say how
    in_memory: bool = True  # false: observations stay in the file, memory-mapped (exorl only)
    run_dir: str = "runs"  # a run's folder is <run_dir>/<label>/<task>/seed_<seed>
    label: Optional[str] = None  # name of a variant in folders and tables; null = the algorithm's name
    seed: int = 0  # of networks, minibatches and noise
    device: str = "auto"  # auto | cpu | cuda
    threads: int = 0  # CPU threads of torch; 0 = torch's choice
    matmul_precision: str = "highest"  # of float32 products: highest | high (tf32 on GPUs) | medium; see docs/gpu.md
    cuda_graphs: bool = True  # on a GPU replay recorded updates; false = one by one, the same numbers more slowly
    offline_steps: int = 1_000_000  # updates on the data set
    online_steps: int = 0  # environment steps after those, each followed by an update
    balanced_sampling: bool = False  # online minibatches half of data and half of new transitions; else uniform
    replay_capacity: int = 2_000_000  # online transitions kept; with keep_offline false, of both together
    keep_offline: bool = True  # false: beyond the capacity the data set's oldest transitions make room first
    log_interval: int = 5_000  # updates between rows of train.csv
    checkpoint_interval: int = 50_000  # updates between checkpoints
    eval_interval: int = 100_000  # updates between evaluations
    eval_episodes: int = 50  # episodes of an evaluation
    eval_environments: int = 50  # episodes that advance together as one batch
    eval_workers: int = 0  # processes that host the environments, beside training if `threads` allow; 0 = this one
    final_report: Tuple[str, ...] = ()  # act options swept after training, e.g. ["greediness=0,1"]; empty = no report
    wandb_mode: str = "disabled"  # disabled | offline | online
    wandb_project: str = "dipole"  # Weights & Biases project

    stage: str = "pretrain"  # pretrain (imitation by all weights, no adapters) | finetune (adapters on a frozen base)
    base: Optional[str] = None  # finetune: run folder or checkpoint.pt of the pre-trained planner
    process: str = "flow"  # flow (the planner predicts velocities) | diffusion (it predicts noise)
    token_sizes: Tuple[int, ...] = ()  # an observation's numbers in each token, in order; [] = one token of all
    planner_width: int = 64  # numbers of a token in the planner
    planner_blocks: int = 2  # attention and MLP blocks of the planner
    planner_heads: int = 4  # attention heads of a block

    batch_size: int = 256  # transitions of a minibatch
    learning_rate: float = 3e-4  # of Adam, for all networks
    adapter_rank: int = 64  # rank of an adapter's change of a layer
    adapter_alpha: float = 16.0  # that change is multiplied by alpha / rank
    target_modules: Tuple[str, ...] = ("query_key_value", "projection", "mlp_input", "mlp_output")  # adapted layers
    inverse_temperature: float = 1.0  # beta: multiplies the advantage in the policy's weights
    shift: float = 0.0  # k: moves the sigmoid's active region
    weighting: str = "sigmoid"  # sigmoid (DIPOLE) | exponential (eq. 4) | indicator (CFGRL-style) | none (cloning)
    max_weight: Optional[float] = 100.0  # clip of the exponential weights, as in IQL's released code; null = none
    greediness: float = 0.0  # omega when acting; 0 = pi+ alone, -1 = pi- alone
    sampling_steps: int = 10  # Euler steps of the flow, or denoising steps through the T levels, at most T
    diffusion_steps: int = 10  # T: noise levels of the diffusion
    stochasticity: float = 1.0  # eta of the sampler: 1 = ancestral (DDPM), 0 = deterministic (DDIM)

    def __post_init__(self):
        choices = {
            "stage": ("pretrain", "finetune"),
            "process": ("flow", "diffusion"),
            "weighting": ("sigmoid", "exponential", "indicator", "none"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} is {getattr(self, field)!r}; choose one of {', '.join(allowed)}")
        for field in (
            "batch_size",
            "planner_width",
            "planner_blocks",
            "planner_heads",
            "adapter_rank",
            "sampling_steps",
            "diffusion_steps",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")
        if self.max_weight is not None and self.max_weight <= 0:
            raise ValueError(f"max_weight is {self.max_weight:g}; it must be above 0, or null for none")
        if self.planner_width % self.planner_heads:
            raise ValueError(f"planner_width is {self.planner_width}; make it a multiple of planner_heads")
        if any(size < 1 for size in self.token_sizes):
            raise ValueError(f"token_sizes is {list(self.token_sizes)}; each must be at least 1")
        if self.process == "diffusion" and self.sampling_steps > self.diffusion_steps:
            raise ValueError(f"sampling_steps is {self.sampling_steps}; it must be at most diffusion_steps")
        if not 0 <= self.stochasticity <= 1:
            raise ValueError(f"stochasticity is {self.stochasticity:g}; it lies between 0 (DDIM) and 1 (DDPM)")
        if self.stage == "pretrain" and self.base is not None:
            raise ValueError(f"base is {self.base}, but stage pretrain trains one; set stage to finetune")
        check_greediness(self.weighting, self.greediness, "greediness")


class Noise(nn.Module):
    """The random numbers of one agent: one generator, in the dtype and on the device the agent has been moved to."""

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed
        self.register_buffer("like", torch.empty(0), persistent=False)
        self.generator = torch.Generator().manual_seed(seed)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.generator.device != self.like.device:
            self.generator = torch.Generator(self.like.device).manual_seed(self.seed)
        return self

    def _options(self) -> dict:
        return {"generator": self.generator, "device": self.like.device}

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.like.dtype, **self._options())

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, dtype=self.like.dtype, **self._options())

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, **self._options())


def is_single_policy(weighting: str) -> bool:
    """Whether the weighting trains one policy only, without a negative one."""
    return weighting in ("exponential", "none")


def check_greediness(weighting: str, greediness: float, field: str) -> None:
    """Raises ValueError where that weighting trains no policies that eq. 10 could combine to that greediness."""
    if greediness < -1:
        raise ValueError(f"{field} is {greediness:g}; it starts at -1, the negative policy alone")
    if is_single_policy(weighting) and greediness != 0:
        raise ValueError(
            f"{field} is {greediness:g}, but weighting {weighting} trains a single policy; set {field} to 0"
        )


def policy_weights(
    weighting: str, advantage: Tensor, inverse_temperature: float, shift: float, max_weight: Optional[float]
) -> Tensor:
    """Regression weights: advantage [B] -> [2, B] (positive, negative policy), or [1, B] of a single policy."""
    scaled = inverse_temperature * advantage
    if weighting == "sigmoid":  # eq. 8
        positive = torch.sigmoid(scaled + shift)
        return torch.stack([positive, 1 - positive])
    if weighting == "exponential":  # eq. 4
        weights = torch.exp(scaled)
        return (weights if max_weight is None else weights.clamp(max=max_weight))[None]
    if weighting == "indicator":  # pi+ ~ mu 1[A >= 0], pi- = mu
        return torch.stack([(advantage >= 0).to(advantage.dtype), torch.ones_like(advantage)])
    return torch.ones_like(advantage)[None]


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


def clean_estimate(x: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """The action [B, A] that x [B, A] holds at that level (abar, [B, 1]) if `noise` [B, A] is in it, clipped.

    `noise` is the combined prediction. Eq. 10 is linear in the two noises, and so is this estimate as long as it is
    not clipped. The division by sqrt(abar) puts either branch's own estimate far outside the action range at high
    levels: clipping each first would set both to the same bound, and their difference, all that omega multiplies, to 0.
    """
    return ((x - (1 - level).sqrt() * noise) / level.sqrt()).clamp(-1, 1)


def denoising_step(
    x: Tensor, clean: Tensor, level: Tensor, next_level: Tensor, fresh_noise: Tensor, stochasticity: float
) -> Tensor:
    """x [B, A] at `level` to x at `next_level` (both abar, [B, 1]), given the clipped clean action [B, A].

    The noise that stays in x is what the clipped action leaves of it, not the prediction, as in DDPM's posterior.
    """
    variance = stochasticity**2 * (1 - next_level) / (1 - level) * (1 - level / next_level)
    remaining = (x - level.sqrt() * clean) / (1 - level).sqrt()
    return next_level.sqrt() * clean + (1 - next_level - variance).sqrt() * remaining + variance.sqrt() * fresh_noise


def user_error(message: str) -> Exception:
    """The error that this repository's commands print without a traceback; in a copy of this file a ValueError."""
    try:
        from common.errors import UserError
    except ModuleNotFoundError:
        return ValueError(message)
    return UserError(message)


class Block(nn.Module):
    """Self-attention and an MLP, each on normalised tokens [N, L, W] and added to them (pre-norm transformer)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_input, self.mlp_output = nn.Linear(width, MLP_RATIO * width), nn.Linear(MLP_RATIO * width, width)

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

    def __init__(self, config: DIPOLELoRAConfig, observation_dim: int, action_dim: int):
        super().__init__()
        sizes, width = config.token_sizes or (observation_dim,), config.planner_width
        if sum(sizes) != observation_dim:
            raise user_error(f"token_sizes: they sum to {sum(sizes)}, but an observation has {observation_dim} numbers")
        self.runs = [(size, len(list(run))) for size, run in groupby(sizes)]
        self.embeddings = nn.ModuleList(nn.Linear(size, width) for size, _ in self.runs)
        self.plan_embedding = nn.Linear(action_dim + TIME_FEATURES, width)
        self.positions = nn.Parameter(torch.zeros(len(sizes) + 1, width))
        self.blocks = nn.ModuleList(Block(width, config.planner_heads) for _ in range(config.planner_blocks))
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, action_dim)

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


@torch.no_grad()
def initialise(planner: Planner, generator: torch.Generator) -> None:
    """Xavier-uniform weights and zero biases of all linear layers, and standard normal positions."""
    for module in planner.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
    planner.positions.normal_(generator=generator)


def load_base(config: DIPOLELoRAConfig, observation_dim: int, action_dim: int) -> Planner:
    """The planner of a pre-training run of this file. Raises what `user_error` gives where `config.base` is none.

    The file is mapped and its tensors become the planner's own, so that no second copy is in memory meanwhile.
    """
    path = Path(config.base).expanduser()
    path = path / "checkpoint.pt" if path.is_dir() else path
    advice = "name the folder or checkpoint.pt of a run with stage pretrain"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        theirs, networks = checkpoint["config"], checkpoint["agent"]["networks"]
        known = checkpoint["algorithm"] == Path(__file__).stem and theirs["stage"] == "pretrain"
        dims = checkpoint["observation_dim"], checkpoint["action_dim"]
    except Exception as error:  # torch.load raises many types for an absent, damaged or foreign file
        reason = " ".join(str(error).split())[:120]
        raise user_error(f"base: {path} is no checkpoint of a planner ({reason}); {advice}") from error
    if not known:
        raise user_error(f"base: {path} is a checkpoint, but not of a planner that this file pre-trained; {advice}")
    if dims != (observation_dim, action_dim):
        asked = observation_dim, action_dim
        raise user_error(f"base: {path} is of a task with observations and actions of {dims} numbers, not {asked}")
    for field in PLANNER_FIELDS:
        if theirs[field] != getattr(config, field):
            raise user_error(f"{field}: the planner in {path} has {theirs[field]}; set {field} to that")
    with torch.device("meta"):
        planner = Planner(config, observation_dim, action_dim)
    planner.load_state_dict({name.removeprefix("base."): value for name, value in networks.items()}, assign=True)
    return planner


def fingerprint(base: nn.Module) -> str:
    """Hexadecimal sha256 of names, types, shapes and numbers of all of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in base.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def add_adapters(base: nn.Module, names: Tuple[str, ...], config: DIPOLELoRAConfig, generator: torch.Generator) -> None:
    """Freezes `base` and gives the layers of `target_modules` an adapter of each name, in place.

    A is drawn as peft draws it (Kaiming-uniform, as a linear layer of torch), but from `generator`; B is 0.
    """
    try:
        from peft import LoraConfig, LoraModel
    except ModuleNotFoundError as error:
        raise user_error("the adapters need peft: `pip install -r requirements-lora.txt`") from error
    if hasattr(base, "peft_config"):
        raise user_error("base: has adapters already; merge them into it first, or load it anew")
    linear = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    for target in config.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = ", ".join(linear) or "none"
            raise user_error(f"target_modules: the base has no linear layer {target!r}; choose among {known}")
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
        if ".lora_A." in name:
            drawn = nn.init.kaiming_uniform_(torch.empty(parameter.shape), a=math.sqrt(5), generator=generator)
            parameter.data.copy_(drawn)


def check_base(base: nn.Module, adapter: str, observation_dim: int, action_dim: int) -> None:
    """Raises what `user_error` gives where the base is not called as described or skips layers of its active adapter.

    A layer whose weights another module reads, such as those that torch's nn.MultiheadAttention and the fast path of
    nn.TransformerEncoderLayer hand to one fused operation, never calls its adapter.
    """
    like = next(base.parameters())
    inputs = [torch.ones(2, size).to(like) for size in (observation_dim, action_dim, 1)]
    scales = {name: parameter for name, parameter in base.named_parameters() if f".lora_B.{adapter}." in name}
    with torch.no_grad():
        torch._foreach_add_(list(scales.values()), PROBE_SCALE)
    prediction, gradients = base(*inputs), [None] * len(scales)
    if prediction.shape != (2, action_dim):
        shape, asked = tuple(prediction.shape), (2, action_dim)
        raise user_error(f"base: its prediction for actions of shape {asked} has shape {shape}; it must have the same")
    if prediction.requires_grad:
        gradients = torch.autograd.grad(prediction.sum(), list(scales.values()), allow_unused=True)
    skipped = [name.split(".lora_B.")[0] for name, gradient in zip(scales, gradients, strict=True) if gradient is None]
    with torch.no_grad():
        same = torch.allclose(base(*inputs), prediction, rtol=1e-3, atol=1e-5)
        torch._foreach_zero_(list(scales.values()))
    if skipped or not same:
        where = f"of {skipped[0]}" if skipped else "of some layers, without gradients,"
        raise user_error(
            f"target_modules: the adapter {where} does nothing to the base's prediction, as in torch's fused "
            "attention; leave such layers out, or write them as linear layers that are called"
        )


class DIPOLELoRA(nn.Module):
    """The agent: a planner in pre-training, or a frozen one with a positive and a negative adapter."""

    def __init__(
        self, config: DIPOLELoRAConfig, observation_dim: int, action_dim: int, base: Optional[nn.Module] = None
    ):
        super().__init__()
        self.config = config
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.noise = Noise(config.seed)
        self.adapters: Tuple[str, ...] = ()
        self.batch_fields: Tuple[str, ...] = ()  # columns of a minibatch beyond the usual ones
        self.base_sha256: Optional[str] = None
        if config.stage == "pretrain":
            if base is not None:
                raise user_error("stage: pretrain trains a planner of its own; set it to finetune to adapt a base")
            if config.greediness != 0:
                raise user_error(
                    f"greediness: is {config.greediness:g}; stage pretrain has no two policies, set it to 0"
                )
            self.base = Planner(config, observation_dim, action_dim)
            initialise(self.base, self.noise.generator)
        else:
            if (base is None) == (config.base is None):
                raise user_error("base: stage finetune needs one, the run folder of a pre-trained planner or a module")
            self.base = load_base(config, observation_dim, action_dim) if base is None else base
            self.base_sha256 = fingerprint(self.base)
            self.adapters = ("positive",) if is_single_policy(config.weighting) else ("positive", "negative")
            self.batch_fields = ("state_values",)
            add_adapters(self.base, self.adapters, config, self.noise.generator)
            check_base(self.base, self.adapters[0], observation_dim, action_dim)
        is_trained = ".lora_" if self.adapters else ""
        self.trained = {name: parameter for name, parameter in self.named_parameters() if is_trained in name}
        self._train_all()
        # capturable: the step count stays on the device, so that a CUDA graph can hold the step
        self.optimizer = torch.optim.Adam(self.trained.values(), lr=config.learning_rate, fused=True, capturable=True)

    def _train_all(self) -> None:
        for parameter in self.trained.values():
            parameter.requires_grad_(True)

    def update(self, batch: dict) -> dict:
        """One gradient step of the planner or of its adapters on a minibatch; detached 0-d metrics."""
        loss, metrics = self._loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return metrics

    @torch.no_grad()
    def losses(self, batch: dict) -> dict:
        """The metrics of a validation batch: no gradient, and noise of its own, so that training is not changed."""
        training_noise, self.noise = self.noise, Noise(VALIDATION_SEED).to(self.noise.like)
        try:
            return self._loss(batch)[1]
        finally:
            self.noise = training_noise

    def _loss(self, batch: dict) -> Tuple[Tensor, dict]:
        """The sum of the policies' losses at the present parameters, and the metrics."""
        config, observations, actions = self.config, batch["observations"], batch["actions"]
        x, t, target = self._noised(actions)
        if not self.adapters:
            loss = (self.base(observations, x, t) - target).square().mean()
            return loss, {"actor/imitation_loss": loss.detach()}

        # Policies: weighted regressions (eq. 9), both at the same x and t.
        advantage = batch["rewards"] - batch["state_values"]
        weights = policy_weights(
            config.weighting, advantage, config.inverse_temperature, config.shift, config.max_weight
        )
        predictions = torch.stack([self._policy(name, observations, x, t) for name in self.adapters])
        policy_losses = (weights * (predictions - target).square().mean(dim=-1)).mean(dim=1)

        saturated = (weights[0].abs() < SATURATION_MARGIN) | ((weights[0] - 1).abs() < SATURATION_MARGIN)
        metrics = {
            "actor/positive_loss": policy_losses[0],
            "actor/weight_mean": weights[0].mean(),
            "actor/weight_saturated": saturated.to(x.dtype).mean(),
            "actor/advantage_std": advantage.std(correction=0),
        }
        if len(self.adapters) > 1:
            metrics["actor/negative_loss"] = policy_losses[1]
            metrics["actor/policy_distance"] = (predictions[0] - predictions[1]).square().mean()
        return policy_losses.sum(), {name: metric.detach() for name, metric in metrics.items()}

    def _noised(self, actions: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """A training example of each action [B, A]: x [B, A], t [B, 1], and what the planner should predict [B, A]."""
        noise, steps = self.noise.normal(*actions.shape), self.config.diffusion_steps
        if self.config.process == "flow":
            t = self.noise.uniform(len(actions), 1)
            return (1 - t) * noise + t * actions, t, actions - noise
        t = (1 + self.noise.integers(steps, len(actions), 1)).to(noise.dtype)
        return noised(actions, noise, signal_level(t, steps)), t, noise

    def _policy(self, name: str, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The base's prediction [N, A] with that adapter."""
        from peft.functional import set_adapter

        set_adapter(self.base, name)
        self._train_all()  # set_adapter freezes the other one, and a backward pass needs both
        return self.base(observations, x, t)

    def predict(self, observations: Tensor, x: Tensor, t: Tensor, greediness: float) -> Tensor:
        """f = (1 + omega) f+ - omega f- (eq. 10) at observations [N, O], x [N, A] and t [N, 1]: [N, A]."""
        if not self.adapters:
            return self.base(observations, x, t)
        if greediness in (0, -1):
            return self._policy("positive" if greediness == 0 else "negative", observations, x, t)
        positive, negative = (self._policy(name, observations, x, t) for name in self.adapters)
        return (1 + greediness) * positive - greediness * negative

    @torch.no_grad()
    def act(
        self,
        observations: Tensor,
        greediness: Optional[float] = None,
        sampling_steps: Optional[int] = None,
        explore: bool = False,
    ) -> Tensor:
        """Actions [N, A] in [-1, 1] for observations [N, O]; an option left out is the config's.

        `explore` changes nothing: the policy samples anyway. Raises ValueError for options that the config would
        refuse, such as a greediness without policy.
        """
        acting = self._acting_config(greediness=greediness, sampling_steps=sampling_steps)
        sample = self._sample_flow if acting.process == "flow" else self._sample_diffusion
        return sample(observations, acting.greediness, acting.sampling_steps)

    def _sample_flow(self, observations: Tensor, greediness: float, steps: int) -> Tensor:
        """Euler steps from noise at t = 0 to actions [N, A], clipped once at the end."""
        x = self.noise.normal(len(observations), self.action_dim)
        for step in range(steps):
            t = torch.full_like(x[:, :1], step / steps)
            x = x + self.predict(observations, x, t, greediness) / steps
        return x.clamp(-1, 1)

    def _sample_diffusion(self, observations: Tensor, greediness: float, steps: int) -> Tensor:
        """Denoising steps from level T to 0, where x is the clipped estimate itself: actions [N, A]."""
        x, *fresh_noises = self.noise.normal(len(observations), steps + 1, self.action_dim).unbind(dim=1)
        diffusion_steps = self.config.diffusion_steps
        levels = [diffusion_steps * step // steps for step in range(steps, -1, -1)]
        for (t, next_t), fresh_noise in zip(pairwise(levels), fresh_noises, strict=True):
            t, next_t = torch.full_like(x[:, :1], t), torch.full_like(x[:, :1], next_t)
            level, next_level = signal_level(t, diffusion_steps), signal_level(next_t, diffusion_steps)
            clean = clean_estimate(x, self.predict(observations, x, t, greediness), level)
            x = denoising_step(x, clean, level, next_level, fresh_noise, self.config.stochasticity)
        return x

    def network_evaluations(self, greediness: Optional[float] = None, sampling_steps: Optional[int] = None) -> int:
        """Evaluations of the planner (with each adapter counts) that an action with these options costs."""
        acting = self._acting_config(greediness=greediness, sampling_steps=sampling_steps)
        return acting.sampling_steps * (1 if acting.greediness in (0, -1) else 2)

    def _acting_config(self, **options) -> DIPOLELoRAConfig:
        """The config with the given act options in place of its own; raises ValueError for an impossible one."""
        acting = replace(self.config, **{name: value for name, value in options.items() if value is not None})
        if not self.adapters and acting.greediness != 0:
            raise ValueError(f"greediness is {acting.greediness:g}; a planner without adapters has no two policies")
        return acting

    def state_dict(self) -> dict:
        """Everything an exact continuation needs but the frozen base: tensors, plain numbers and the base's sha256."""
        return {
            "networks": {name: parameter.detach() for name, parameter in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "noise": self.noise.generator.get_state(),
            "base_sha256": self.base_sha256,
        }

    def load_state_dict(self, state: dict) -> None:
        """Raises what `user_error` gives where the adapters are those of another base."""
        if state["base_sha256"] != self.base_sha256:
            theirs, ours = (str(sha256)[:12] for sha256 in (state["base_sha256"], self.base_sha256))
            raise user_error(f"base: has sha256 {ours}..., but the adapters are of a base with {theirs}...; name that")
        if state["networks"].keys() != self.trained.keys():
            raise user_error("target_modules: the adapters of the checkpoint are of other layers; name those")
        super().load_state_dict(state["networks"], strict=False)  # strict would ask for the base, too
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.generator.set_state(state["noise"])

    @classmethod
    def load(cls, run_dir, base: Optional[nn.Module] = None) -> "DIPOLELoRA":
        """The agent of a run folder's checkpoint, on the CPU; `base` takes the place of the one its config names."""
        checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", map_location="cpu", weights_only=True)
        config = DIPOLELoRAConfig(**checkpoint["config"])
        config = config if base is None else replace(config, base=None)
        agent = cls(config, checkpoint["observation_dim"], checkpoint["action_dim"], base)
        agent.load_state_dict(checkpoint["agent"])
        return agent


def train(configs: Sequence[DIPOLELoRAConfig], restart: bool = False) -> List[dict]:
    """Trains an agent for each config on their task's data and evaluates it in the environment; returns the results.

    The configs differ in the seed only. `restart` begins anew where runs are there already.
    """
    from envs import load_task
    from harness.run import run

    task = load_task(configs[0].task, configs[0].data_dir, configs[0].collect_episodes, configs[0].in_memory)
    agents = [DIPOLELoRA(config, task.observation_dim, task.action_dim) for config in configs]
    return run(agents, task, restart)


def main() -> None:
    from harness.command_line import run_command

    run_command(DIPOLELoRAConfig, train)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root, for envs/ and harness/
    main()
