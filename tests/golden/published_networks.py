"""The networks that DQL and QSM were published with, in which the reference's updates are recorded.

The algorithm files have FQL's networks alone, so that capacity is the same for all methods; everything else that the
recorded updates go through is theirs.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.baselines.dql import DQL, TIME_FEATURES, EnsembleMLP, time_features
from algorithms.baselines.qsm import QSM

LAYER_NORM_EPSILON = 1e-6
FOURIER_SCALE = 0.2  # standard deviation of the initial frequencies, in QSM's and QAM's released code


class MishMLP(EnsembleMLP):
    """The same perceptrons with Mish for GELU."""

    def forward(self, *inputs: Tensor) -> Tensor:
        joined = torch.cat(inputs, dim=-1)
        hidden = joined.expand(len(self.biases[0]), *joined.shape)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if layer < len(self.weights) - 1:
                hidden = F.mish(hidden)
                if len(self.norm_scales) > 0:
                    hidden = F.layer_norm(hidden, hidden.shape[-1:], eps=LAYER_NORM_EPSILON)
                    hidden = torch.addcmul(self.norm_shifts[layer], hidden, self.norm_scales[layer])
        return hidden


class SinusoidDenoiser(nn.Module):
    """DQL's: two layers encode the sinusoids of the level, which is numbered from 0."""

    def __init__(self, sizes: tuple[int, ...], layer_norm: bool, generator: torch.Generator):
        super().__init__()
        self.encoder = MishMLP(1, (TIME_FEATURES, 2 * TIME_FEATURES, TIME_FEATURES), False, generator)
        self.body = MishMLP(1, (sizes[0] + TIME_FEATURES, *sizes[1:]), layer_norm, generator)

    def forward(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        encoded = self.encoder(time_features(t - 1))[0]
        return self.body(x, encoded, observations)[0]


class FourierDenoiser(nn.Module):
    """QSM's and QAM's: learned Fourier features of the level, and a network that encodes them."""

    def __init__(self, sizes: tuple[int, ...], layer_norm: bool, generator: torch.Generator, features: int):
        super().__init__()
        hidden_dims = sizes[1:-1]
        self.frequencies = nn.Parameter(FOURIER_SCALE * torch.randn(features // 2, 1, generator=generator))
        self.encoder = MishMLP(1, (features, *hidden_dims), False, generator)
        self.body = MishMLP(1, (sizes[0] + hidden_dims[-1], *sizes[1:]), layer_norm, generator)

    def forward(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        angles = 2 * math.pi * t @ self.frequencies.T
        encoded = self.encoder(angles.cos(), angles.sin())[0]
        return self.body(x, observations, encoded)[0]


class PublishedDQL(DQL):
    critic_class = MishMLP
    denoiser_class = SinusoidDenoiser


def published_qsm(features: int) -> type[QSM]:
    """QSM with that many Fourier features."""
    return type("PublishedQSM", (QSM,), {"denoiser_class": partial(FourierDenoiser, features=features)})
