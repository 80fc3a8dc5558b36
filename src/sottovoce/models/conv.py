"""A small stack of depthwise-separable convolutions for waveforms' features and other short signals.

Each block is a depthwise convolution along time, a LayerNorm over channels and a two-layer perceptron of each frame,
added to its input (ConvNeXt, Liu et al. 2022, in one dimension). Padding never reaches a valid frame: every
convolution sees zeros beyond a trial's end, and no norm looks along time.

Dimension legend: B trials in a batch, T input bins, S output frames, D input channels, E width of the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.lengths import Lengths, conv_length
from sottovoce.core.trial import valid_mask
from sottovoce.models.encoder import Encoder


@dataclass(frozen=True)
class ConvConfig:
    """Settings of `ConvEncoder`."""

    width: int = 192
    """Channels of every block and of the output."""
    num_blocks: int = 5
    kernel_size: int = 9
    """Frames a block's depthwise convolution sees; odd."""
    expansion: int = 2
    """Hidden units of a block's perceptron as a multiple of `width`."""
    input_kernel_size: int = 5
    """Bins the first convolution sees; odd."""
    stride: int = 2
    """Bins the first convolution advances for each output frame."""
    spectral_channels: int = 0
    """0: the first convolution sees all input channels at once. Above 0: two 2-d convolutions with this many and twice
    as many channels come first, which slide along the input channels too; for spectra, where neighbours are alike."""
    input_dropout: float = 0.0
    """Dropout after the first convolution."""
    dropout: float = 0.1
    """Dropout on what each block adds."""

    def __post_init__(self) -> None:
        counts = (self.width, self.num_blocks, self.expansion, self.stride)
        if min(counts) < 1:
            raise ConfigurationError(
                "model.conv: width, num_blocks, expansion and stride must be at least 1; "
                f"got {', '.join(map(str, counts))}"
            )
        if self.spectral_channels < 0:
            raise ConfigurationError(f"model.conv: spectral_channels must be at least 0; got {self.spectral_channels}")
        for name, size in (("kernel_size", self.kernel_size), ("input_kernel_size", self.input_kernel_size)):
            if size < 1 or size % 2 == 0:
                raise ConfigurationError(f"model.conv: {name} must be odd and positive; got {size}")
        for name, rate in (("dropout", self.dropout), ("input_dropout", self.input_dropout)):
            if not 0 <= rate < 1:
                raise ConfigurationError(f"model.conv: {name} must lie in [0, 1); got {rate}")


class SpectralInput(nn.Module):
    """Two 2-d convolutions along bins and channels, each halving the channels, and a linear layer of each frame."""

    def __init__(self, config: ConvConfig, input_size: int) -> None:
        super().__init__()
        size, stride, channels = config.input_kernel_size, config.stride, config.spectral_channels
        self.first = nn.Conv2d(1, channels, size, (stride, 2), padding=size // 2)
        self.second = nn.Conv2d(channels, 2 * channels, 3, (1, 2), padding=1)
        bands = conv_length(conv_length(input_size, size, 2, padding=size // 2), 3, 2, padding=1)
        self.merge = nn.Linear(2 * channels * bands, config.width)

    def forward(self, x_BTD: torch.Tensor, lengths_out_B: torch.Tensor) -> torch.Tensor:
        """Frames [B, S, E] of bins that are 0 beyond each trial's end; `lengths_out_B` are the valid frames."""
        y = nn.functional.gelu(self.first(x_BTD[:, None].contiguous(memory_format=torch.channels_last)))
        y = nn.functional.gelu(self.second(y * valid_mask(lengths_out_B, y.shape[2])[:, None, :, None]))
        merged: torch.Tensor = self.merge(y.transpose(1, 2).flatten(2))
        return merged


class ConvBlock(nn.Module):
    """Depthwise convolution, LayerNorm, perceptron; added to the input."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.width * config.expansion
        # As a 2-d convolution in the channels-last layout this is 7 times as fast on a CPU as nn.Conv1d.
        self.depthwise = nn.Conv2d(
            width, width, (config.kernel_size, 1), padding=(config.kernel_size // 2, 0), groups=width
        )
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BSE: torch.Tensor, mask_BS1: torch.Tensor) -> torch.Tensor:
        """The block's output [B, S, E]; only frames inside `mask_BS1` are meaningful."""
        y = self.depthwise((x_BSE * mask_BS1).transpose(1, 2)[..., None]).squeeze(-1).transpose(1, 2)
        y = self.contract(nn.functional.gelu(self.expand(self.norm(y))))
        added: torch.Tensor = self.dropout(y)
        return x_BSE + added


class ConvEncoder(Encoder):
    """Encoder [B, T, D] → [B, S, E]; a trial's frames do not depend on the padding."""

    causal = False
    needs_whole_trial = "its convolutions are centred; take model.gru, or model.ssm with bidirectional=false"

    def __init__(self, config: ConvConfig, input_size: int) -> None:
        super().__init__()
        self.config = config
        self.output_size = config.width
        self.input: nn.Conv1d | SpectralInput
        if config.spectral_channels:
            self.input = SpectralInput(config, input_size)
        else:
            kernel = config.input_kernel_size
            self.input = nn.Conv1d(input_size, config.width, kernel, config.stride, padding=kernel // 2)
        self.input_norm = nn.LayerNorm(config.width)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.blocks = nn.ModuleList(ConvBlock(config) for _ in range(config.num_blocks))
        self.output_norm = nn.LayerNorm(config.width)

    def output_lengths(self, lengths: Lengths) -> Lengths:
        """Frames that come out of `lengths` bins: one for every started `stride` bins."""
        kernel = self.config.input_kernel_size
        return conv_length(lengths, kernel, self.config.stride, padding=kernel // 2)

    def start(self, batch_size: int) -> NoReturn:
        """Raise ConfigurationError: centred convolutions need what comes after a frame."""
        raise ConfigurationError(f"model.conv: {self.needs_whole_trial}")

    def step(self, state: Any, x_BSD: torch.Tensor) -> NoReturn:
        """Raise ConfigurationError, as `start` does."""
        self.start(len(x_BSD))

    def forward(self, x_BTD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames [B, S, E], 0 beyond each trial's end, and the valid frames of each trial."""
        x_BTD = x_BTD * valid_mask(lengths_B, x_BTD.shape[1])[:, :, None]
        lengths_out_B = self.output_lengths(lengths_B)
        if isinstance(self.input, SpectralInput):
            y = self.input(x_BTD, lengths_out_B)
        else:
            y = self.input(x_BTD.transpose(1, 2)).transpose(1, 2)
        y = self.input_dropout(self.input_norm(y))
        mask_BS1 = valid_mask(lengths_out_B, y.shape[1])[:, :, None]
        for block in self.blocks:
            y = block(y, mask_BS1)
        return self.output_norm(y) * mask_BS1, lengths_out_B
