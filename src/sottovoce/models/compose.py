"""The decoder model: session adapter → patching → encoder → CTC head.

Any encoder goes with any head; a new encoder is a file beside this one, a field of `ModelConfig` and a line in
`_encoder`. Legend: B trials, T bins, C channels, S frames, E encoder size, V symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.lengths import Lengths
from sottovoce.models.conv import ConvConfig, ConvEncoder
from sottovoce.models.gru import GRUConfig, GRUEncoder
from sottovoce.models.patching import PatchConfig, patches
from sottovoce.models.session_adapter import SessionAdapter, SessionAdapterConfig

ENCODERS = ("gru", "conv")


@dataclass(frozen=True)
class ModelConfig:
    """Which parts the model has; exactly one encoder section is set."""

    session_adapter: SessionAdapterConfig | None = None
    """Absent for models that must work on sessions or speakers never seen in training."""
    patch: PatchConfig | None = None
    """Absent: the encoder sees single bins."""
    gru: GRUConfig | None = None
    conv: ConvConfig | None = None
    num_channels: int | None = None
    """Channels of the features. A run fills this in from `preprocessor.num_channels`."""
    num_sessions: int | None = None
    """Sessions with an adapter of their own. A run fills this in from the data."""
    num_symbols: int | None = None
    """Logit columns, blank included. A run fills this in from the symbol table."""

    def __post_init__(self) -> None:
        chosen = [name for name in ENCODERS if getattr(self, name) is not None]
        if len(chosen) != 1:
            raise ConfigurationError(
                f"model: exactly one of the encoders {', '.join(ENCODERS)} must be set, "
                f"got {', '.join(chosen) or 'none'}; switch one off with model.NAME=null"
            )


class DecoderModel(nn.Module):
    """Features [B, T, C] to CTC logits [B, S, V]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        num_channels = _required(config, "num_channels")
        self.session_adapter = (
            SessionAdapter(config.session_adapter, num_channels, _required(config, "num_sessions"))
            if config.session_adapter is not None
            else None
        )
        self.encoder = _encoder(config, num_channels * (config.patch.size if config.patch else 1))
        self.head = nn.Linear(self.encoder.output_size, _required(config, "num_symbols"))
        nn.init.xavier_uniform_(self.head.weight)

    def output_lengths(self, lengths: Lengths) -> Lengths:
        """Frames that come out for `lengths` bins; 0 where a trial is too short for the model."""
        if self.config.patch is not None:
            lengths = self.config.patch.output_lengths(lengths)
        return self.encoder.output_lengths(lengths)

    @property
    def bins_per_frame(self) -> int:
        """Bins from one frame to the next."""
        bins = 10_000
        return round(bins / (self.output_lengths(2 * bins) - self.output_lengths(bins)))

    def forward(
        self, signal_BTC: torch.Tensor, lengths_B: torch.Tensor, session_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, S, V] and their valid frames [B]."""
        x = signal_BTC
        if self.session_adapter is not None:
            x = self.session_adapter(x, session_B)
        if self.config.patch is not None:
            x = patches(x, self.config.patch)
            lengths_B = self.config.patch.output_lengths(lengths_B)
        encoded, frames_B = self.encoder(x, lengths_B)
        return self.head(encoded), frames_B


def _encoder(config: ModelConfig, input_size: int) -> GRUEncoder | ConvEncoder:
    if config.gru is not None:
        return GRUEncoder(config.gru, input_size)
    assert config.conv is not None
    return ConvEncoder(config.conv, input_size)


def _required(config: ModelConfig, name: str) -> int:
    value = getattr(config, name)
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"model.{name} must be a whole number of at least 1 to build the model, got {value}")
    return value


def build_model(config: ModelConfig) -> DecoderModel:
    """A freshly initialised model; randomness comes from PyTorch's global generator.

    >>> config = ModelConfig(gru=GRUConfig(units=8, layers=1), num_channels=4, num_sessions=1, num_symbols=41)
    >>> sum(p.numel() for p in build_model(config).parameters())
    713
    """
    return DecoderModel(config)
