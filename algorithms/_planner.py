"""The transformer that dipole_lora.py pre-trains and adapts: its network, and reading one from a run's folder.

No algorithm: the finder leaves files of such names out. A planner of your own needs nothing of it.
"""

from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_FEATURES = 16  # sinusoids of the level, in Diffusion-QL's released code
FREQUENCY_RANGE = 1e4  # their angular frequencies go from 1 to 1 / this
MLP_RATIO = 4  # hidden numbers of a block's MLP per number of a token, as in the first transformer
PLANNER_FIELDS = ("process", "diffusion_steps", "token_sizes", "planner_width", "planner_blocks", "planner_heads")


def time_features(t: Tensor) -> Tensor:
    """Sines and cosines of the level, at frequencies in geometric progression: t [B, 1] -> [B, TIME_FEATURES]."""
    half = TIME_FEATURES // 2
    exponents = torch.arange(half, dtype=t.dtype, device=t.device) / (half - 1)
    angles = t * FREQUENCY_RANGE**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


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
        if width % config.planner_heads:
            raise ValueError(f"planner_width is {width}; make it a multiple of planner_heads")
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


def make_planner(config, observation_dim: int, action_dim: int, generator: torch.Generator) -> Planner:
    """A new planner, or that of the run folder or checkpoint `config.base` if it names one.

    Raises ValueError where that is none, or none that fits.
    """
    if config.base is None:
        return Planner(config, observation_dim, action_dim, generator)
    path = Path(config.base).expanduser()
    folder = path if path.is_dir() else path.parent
    try:
        checkpoint = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
        dims = (checkpoint["observation_dim"], checkpoint["action_dim"])
        stage = checkpoint["config"]["stage"]
        theirs = {name: checkpoint["config"][name] for name in PLANNER_FIELDS}
        state = checkpoint["agent"]["networks"]
    except Exception as error:  # torch.load raises many types for an absent, damaged or foreign file
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"base {path} is no run of dipole_lora.py that can be loaded ({reason})") from error
    if stage == "finetune":
        raise ValueError(f"base {path} has adapters; name the folder of a run with stage pretrain")
    if dims != (observation_dim, action_dim):
        raise ValueError(
            f"base {path} has observations and actions of {dims} numbers, not {observation_dim, action_dim}"
        )
    for name, value in theirs.items():
        if value != getattr(config, name):
            raise ValueError(f"{name} of the planner in {path} is {value}; set {name} to that")
    planner = Planner(config, observation_dim, action_dim, torch.Generator())  # overwritten
    planner.load_state_dict({name.removeprefix("base."): state[name] for name in state if name.startswith("base.")})
    return planner
