"""Session adapters: a small layer of each recording day's own, in front of the shared network.

Legend: B trials, T bins, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from sottovoce.core.errors import ConfigurationError
from sottovoce.models.dropout import Dropout


@dataclass(frozen=True)
class SessionAdapterConfig:
    """Affine map and softsign of each session's own (official T12 and T15 baselines)."""

    dropout: float = 0.2
    """After the softsign, in [0, 1)."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"model.session_adapter.dropout={self.dropout}: must lie in [0, 1)")


class SessionAdapter(nn.Module):
    """`softsign(x · W_d + b_d)` with W_d starting as the identity and b_d as 0, then dropout.

    Each session has parameters of its own, so that a batch moves only the sessions that are in it: with one stacked
    tensor Adam's moments would keep moving the absent ones. Source: nejm-brain-to-text `rnn_model.py`.
    """

    component: ClassVar[str] = "preprocessor"

    def __init__(self, config: SessionAdapterConfig, num_channels: int, num_sessions: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.eye(num_channels)) for _ in range(num_sessions))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(1, num_channels)) for _ in range(num_sessions))
        self.dropout = Dropout(config.dropout)

    def check(self, session_B: torch.Tensor) -> None:
        """Raise ConfigurationError where there is no adapter for one of the sessions."""
        known = len(self.weights)
        if not bool(((session_B >= 0) & (session_B < known)).all()):
            raise ConfigurationError(
                f"session {session_B.tolist()}: the model has adapters of {known} sessions, 0 to {known - 1}; take one "
                "of these, or train with model.session_adapter=null"
            )

    def forward(self, signal_BTC: torch.Tensor, session_B: torch.Tensor) -> torch.Tensor:
        """Adapted features [B, T, C]; `session_B` indexes the data set's sessions."""
        sessions = session_B.tolist()
        weights_BCC = torch.stack([self.weights[i] for i in sessions])
        biases_B1C = torch.stack([self.biases[i] for i in sessions])
        affine = torch.baddbmm(biases_B1C, signal_BTC, weights_BCC)
        adapted: torch.Tensor = self.dropout(functional.softsign(affine))
        return adapted
