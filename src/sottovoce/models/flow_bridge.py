"""The flow bridge: a velocity field that carries corrupted features to clean ones.

A rectified flow (Liu et al. 2022) between pairs: at time τ from 0 (corrupted) to 1 (clean) the features lie on the
straight line between the two, and the network learns the line's direction. Blocks and sizes follow mode-ssm
`flow_bridge.py`, which trained a diffusion model with them.

Dimension legend: B trials, T bins, C channels, W width of the network, G groups, H size of the time embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import nn
from torch.nn import functional

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.trial import valid_mask

TIME_SCALE: Final = 1000.0
"""τ in [0, 1] is multiplied by this before its sines, whose wavelengths were made for 1000 diffusion steps."""
LONGEST_WAVELENGTH: Final = 10_000.0
EPS: Final = 1e-5


@dataclass(frozen=True)
class FlowBridgeConfig:
    """Settings of `FlowBridge`."""

    enabled: bool = False
    """Train the bridge in the denoise stage; decoding uses it only where it lowers the validation error."""
    width: int = 128
    """Channels of every block; a multiple of `groups`, of `heads` and of 2 (the source: 512)."""
    blocks: int = 3
    """Residual blocks before the middle, and as many after it, each of which also gets its counterpart's output."""
    groups: int = 32
    """Channel groups of the norms."""
    attention: bool = True
    """Self-attention in the middle; without it a bin sees 4 · `blocks` bins on each side, and the norms' averages."""
    heads: int = 8
    dropout: float = 0.1
    """In every residual block, in [0, 1)."""
    steps: int = 4
    """Euler steps from observed to clean features."""

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "groups", "heads", "steps"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"model.flow_bridge.{name}={getattr(self, name)}: must be at least 1")
        for name, divisor in (("groups", self.groups), ("heads", self.heads), ("2", 2)):
            if self.width % divisor:
                raise ConfigurationError(
                    f"model.flow_bridge.width={self.width}: must be a multiple of {name}"
                    + (f" ({divisor})" if name != "2" else "")
                )
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"model.flow_bridge.dropout={self.dropout}: must lie in [0, 1)")


class FlowBridge(nn.Module):
    """Features [B, T, C] and a time τ to a velocity [B, T, C]; a trial's does not depend on its padding.

    The last layer starts at 0: an untrained bridge leaves the features as they are.
    """

    component: ClassVar[str] = "flow_bridge"
    needs_whole_trial: ClassVar[str] = (
        "its norms average over the whole trial; decode without it (model.use_flow_bridge = False)"
    )
    """Why its features cannot be computed while a trial arrives, and what to set."""

    def __init__(self, config: FlowBridgeConfig, num_channels: int) -> None:
        super().__init__()
        self.config = config
        width, hidden = config.width, 4 * config.width
        self.time = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.input = nn.Conv1d(num_channels, width, 1)
        self.before = nn.ModuleList(ResidualBlock(config) for _ in range(config.blocks))
        self.middle = MiddleAttention(config) if config.attention else None
        self.after = nn.ModuleList(ResidualBlock(config) for _ in range(config.blocks))
        self.output = nn.Conv1d(width, num_channels, 1)
        nn.init.zeros_(self.output.weight)
        assert self.output.bias is not None
        nn.init.zeros_(self.output.bias)

    def forward(self, x_BTC: torch.Tensor, tau_B: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """The velocity at features `x_BTC` and times `tau_B` in [0, 1], 0 beyond each trial's end."""
        valid_B1T = valid_mask(lengths_B, x_BTC.shape[1])[:, None]
        time_BH = self.time(time_embedding(tau_B, self.config.width))
        # Where, not a product: what lies beyond a trial's end may be anything, NaN included.
        x_BWT = self.input(x_BTC.transpose(1, 2).masked_fill(~valid_B1T, 0.0)) * valid_B1T
        skips = []
        for block in self.before:
            x_BWT = block(x_BWT, time_BH, valid_B1T)
            skips.append(x_BWT)
        if self.middle is not None:
            x_BWT = self.middle(x_BWT, valid_B1T)
        for block, skip in zip(self.after, reversed(skips), strict=True):
            x_BWT = block(x_BWT + skip, time_BH, valid_B1T)
        velocity_BCT: torch.Tensor = self.output(x_BWT) * valid_B1T
        return velocity_BCT.transpose(1, 2)

    @torch.no_grad()
    def sample(self, x_BTC: torch.Tensor, lengths_B: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """Observed features carried to τ = 1 in `steps` Euler steps (the configured number if None); padding is 0.

        Raises:
            ValueError: `steps` is below 1.
        """
        steps = self.config.steps if steps is None else steps
        if steps < 1:
            raise ValueError(f"steps={steps}: must be at least 1")
        x_BTC = x_BTC.masked_fill(~valid_mask(lengths_B, x_BTC.shape[1])[:, :, None], 0.0)
        for step in range(steps):
            tau_B = x_BTC.new_full((len(x_BTC),), step / steps)
            x_BTC = x_BTC + self(x_BTC, tau_B, lengths_B) / steps
        return x_BTC


class ResidualBlock(nn.Module):
    """Time projection added; twice masked GroupNorm, SiLU, convolution of 3 bins, dropout; a 1×1 convolution beside.

    The convolutions see zeros beyond a trial's end.
    """

    def __init__(self, config: FlowBridgeConfig) -> None:
        super().__init__()
        width = config.width
        self.time = nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(MaskedGroupNorm(config.groups, width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)
        self.skip = nn.Conv1d(width, width, 1)

    def forward(self, x_BWT: torch.Tensor, time_BH: torch.Tensor, valid_B1T: torch.Tensor) -> torch.Tensor:
        """The block's output [B, W, T], 0 beyond each trial's end."""
        y_BWT = x_BWT + self.time(functional.silu(time_BH))[:, :, None]
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            y_BWT = self.dropout(convolution(functional.silu(norm(y_BWT, valid_B1T)) * valid_B1T))
        added_BWT: torch.Tensor = y_BWT + self.skip(x_BWT)
        return added_BWT * valid_B1T


class MaskedGroupNorm(nn.Module):
    """GroupNorm whose mean and variance are those of each trial's valid bins."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x_BWT: torch.Tensor, valid_B1T: torch.Tensor) -> torch.Tensor:
        """Normalised features [B, W, T]; only bins inside `valid_B1T` are meaningful."""
        grouped = x_BWT.reshape(len(x_BWT), self.groups, -1, x_BWT.shape[2])
        valid_B11T = valid_B1T[:, None]
        count_B = (valid_B1T.sum(dim=(1, 2)) * grouped.shape[2]).clamp(min=1)[:, None, None, None]
        mean = (grouped * valid_B11T).sum(dim=(2, 3), keepdim=True) / count_B
        centred = grouped - mean
        variance = (centred.square() * valid_B11T).sum(dim=(2, 3), keepdim=True) / count_B
        normal_BWT = (centred * torch.rsqrt(variance + EPS)).flatten(1, 2)
        return normal_BWT * self.weight[:, None] + self.bias[:, None]


class MiddleAttention(nn.Module):
    """Self-attention over a trial's valid bins, added to its input; positions are known from the convolutions only."""

    def __init__(self, config: FlowBridgeConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = MaskedGroupNorm(config.groups, config.width)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x_BWT: torch.Tensor, valid_B1T: torch.Tensor) -> torch.Tensor:
        """The block's output [B, W, T], 0 beyond each trial's end."""
        y_BTW = (self.norm(x_BWT, valid_B1T) * valid_B1T).transpose(1, 2)
        num_trials, num_bins, width = y_BTW.shape
        split = self.query_key_value(y_BTW).view(num_trials, num_bins, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        # One slot stays open in a trial without bins: a softmax over nothing is NaN.
        open_B1T = valid_B1T.clone()
        open_B1T[:, :, 0] = True
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=open_B1T[:, None])
        added_BTW: torch.Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return x_BWT + added_BTW.transpose(1, 2) * valid_B1T


def time_embedding(tau_B: torch.Tensor, size: int) -> torch.Tensor:
    """Sines and cosines of τ [B, size], their wavelengths geometric as for positions (Vaswani et al. 2017)."""
    half = size // 2
    exponents = torch.arange(half, device=tau_B.device, dtype=tau_B.dtype) / half
    angles = TIME_SCALE * tau_B[:, None] * torch.exp(-math.log(LONGEST_WAVELENGTH) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
