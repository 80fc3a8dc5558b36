"""What comes before a state-space encoder: normalisation, a gate for each channel, a convolution, the encoder's width.

Source: the preprocessor of MODE-SSM. Different from it: padding never counts, in the statistics, the gate's mean and
the convolution, so that a trial's frames do not depend on its batch mates; and frames can be made of several bins.

Legend: B trials, T bins, C channels, S frames, E width, K taps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.lengths import Lengths, conv_length
from sottovoce.core.trial import valid_mask
from sottovoce.models.ssm_parts import depthwise_conv

NORMALISATIONS = ("trial", "batch", "none")
EPS = 1e-5


@dataclass(frozen=True)
class StemConfig:
    """Settings of `Stem`."""

    width: int = 512
    """Size of the frames that come out."""
    normalisation: str = "trial"
    """`trial`: each channel to mean 0 and variance 1 over the trial's own bins; `batch`: over the valid bins of the
    training batch, with running statistics in evaluation (as in MODE-SSM, where padding counted); `none`."""
    gate_reduction: int = 16
    """Channels for each hidden unit of the gate."""
    conv_kernel: int = 7
    """Bins that the convolution sees; odd."""
    stride: int = 1
    """Bins made into one frame; 1 keeps the frame rate, as in MODE-SSM."""
    dropout: float = 0.1
    """On the frames that come out, in [0, 1)."""

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALISATIONS:
            raise ConfigurationError(
                f"model.stem.normalisation={self.normalisation}: must be one of {', '.join(NORMALISATIONS)}"
            )
        for name in ("width", "gate_reduction", "stride"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"model.stem.{name}={getattr(self, name)}: must be at least 1")
        if self.conv_kernel < 1 or self.conv_kernel % 2 == 0:
            raise ConfigurationError(f"model.stem.conv_kernel={self.conv_kernel}: must be odd and positive")
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"model.stem.dropout={self.dropout}: must lie in [0, 1)")


class Stem(nn.Module):
    """Features [B, T, C] → frames [B, S, E]; needs the whole trial, because the gate takes its mean."""

    component: ClassVar[str] = "preprocessor"
    needs_whole_trial: ClassVar[str] = (
        "its gate takes the mean of the whole trial and its convolution is centred; train with model.stem=null"
    )
    """Why its frames cannot be computed while a trial arrives, and what to set."""

    def __init__(self, config: StemConfig, num_channels: int) -> None:
        super().__init__()
        self.config = config
        self.output_size = config.width
        self.batch_norm = MaskedBatchNorm(num_channels) if config.normalisation == "batch" else None
        self.gate = ChannelGate(num_channels, config.gate_reduction)
        self.conv = DepthwiseConv(num_channels, config.conv_kernel)
        self.projection = nn.Linear(num_channels * config.stride, config.width)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def output_lengths(self, lengths: Lengths) -> Lengths:
        """Frames that come out of `lengths` bins: one for every started `stride` bins."""
        return conv_length(lengths, 1, self.config.stride)

    def forward(self, x_BTC: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames [B, S, E], 0 beyond each trial's end, and the valid frames of each trial."""
        mask_BT1 = valid_mask(lengths_B, x_BTC.shape[1])[:, :, None]
        x_BTC = x_BTC.masked_fill(~mask_BT1, 0)
        if self.config.normalisation == "trial":
            x_BTC = standardised(x_BTC, mask_BT1)
        elif self.batch_norm is not None:
            x_BTC = self.batch_norm(x_BTC, mask_BT1)
        x_BTC = self.gate(x_BTC, lengths_B)
        x_BTC = x_BTC + functional.relu(self.conv(x_BTC)) * mask_BT1
        stride = self.config.stride
        filled_BTC = functional.pad(x_BTC, (0, 0, 0, -x_BTC.shape[1] % stride))
        stacked = filled_BTC.reshape(len(x_BTC), -1, stride * x_BTC.shape[2])
        y_BSE = self.dropout(self.norm(self.projection(stacked)))
        lengths_out_B = self.output_lengths(lengths_B)
        return y_BSE.masked_fill(~valid_mask(lengths_out_B, y_BSE.shape[1])[:, :, None], 0), lengths_out_B


def standardised(x_BTC: torch.Tensor, mask_BT1: torch.Tensor) -> torch.Tensor:
    """Each channel of each trial at mean 0 and variance 1 over its valid bins; a channel that never changes at 0."""
    count_B11 = mask_BT1.sum(1, keepdim=True).clamp(min=1)
    centred = (x_BTC - x_BTC.sum(1, keepdim=True) / count_B11) * mask_BT1
    return centred * (centred.square().sum(1, keepdim=True) / count_B11 + EPS).rsqrt()


class MaskedBatchNorm(nn.Module):
    """`nn.BatchNorm1d` over the valid bins only: momentum 0.1, biased variance to divide by, unbiased to remember."""

    def __init__(self, num_channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.running_mean: torch.Tensor
        self.running_var: torch.Tensor
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(self, x_BTC: torch.Tensor, mask_BT1: torch.Tensor) -> torch.Tensor:
        """Normalised [B, T, C], 0 where the mask is; `x_BTC` must be 0 there."""
        mean_C, variance_C = self.running_mean, self.running_var
        if self.training:
            count = mask_BT1.sum().clamp(min=1)
            mean_C = x_BTC.sum((0, 1)) / count
            variance_C = ((x_BTC - mean_C) * mask_BT1).square().sum((0, 1)) / count
            with torch.no_grad():
                unbiased_C = variance_C * (count / (count - 1).clamp(min=1))
                sound_C = mean_C.isfinite() & unbiased_C.isfinite()  # the guard drops a bad step; so must this
                for running_C, now_C in ((self.running_mean, mean_C), (self.running_var, unbiased_C)):
                    running_C.copy_(torch.where(sound_C, running_C.lerp(now_C, self.momentum), running_C))
        return ((x_BTC - mean_C) * (variance_C + EPS).rsqrt() * self.weight + self.bias) * mask_BT1


class ChannelGate(nn.Module):
    """Multiplies each channel by a factor in (0, 1) that depends on every channel's mean over the trial."""

    def __init__(self, num_channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(num_channels // reduction, 1)
        self.contract, self.expand = nn.Linear(num_channels, hidden), nn.Linear(hidden, num_channels)

    def forward(self, x_BTC: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """The gated channels [B, T, C]; `x_BTC` must be 0 beyond each trial's end."""
        mean_BC = x_BTC.sum(1) / lengths_B.clamp(min=1)[:, None]
        gate_BC = torch.sigmoid(self.expand(functional.relu(self.contract(mean_BC))))
        return x_BTC * gate_BC[:, None]


class DepthwiseConv(nn.Module):
    """Each channel's convolution along time, centred, with zeros around the tensor; weights start Kaiming-normal."""

    def __init__(self, num_channels: int, kernel_size: int) -> None:
        super().__init__()
        deviation = (2 / (num_channels * kernel_size)) ** 0.5  # fan-out, as PyTorch counts it for grouped convolutions
        self.weight = nn.Parameter(torch.randn(kernel_size, num_channels) * deviation)
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Outputs [B, T, C]."""
        ahead = len(self.weight) // 2
        before_BKC = x_BTC.new_zeros(len(x_BTC), 2 * ahead, x_BTC.shape[2])
        return depthwise_conv(functional.pad(x_BTC, (0, 0, 0, ahead)), before_BKC, self.weight, self.bias)[:, ahead:]
