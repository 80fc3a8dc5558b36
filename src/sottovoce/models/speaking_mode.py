"""The speaking-mode head, and how its posterior modulates the encoder.

Dimension legend: B trials, S encoder frames, E encoder size, D size of the contrastive embedding, 2 modes:
silent, vocalised. Source of the head: mode-ssm `speaking_mode_head.py`.
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
from sottovoce.models.encoder import Modulation

POOLS: Final = ("mean", "max", "attention")
MASKED: Final = -1e30
"""Score of a frame beyond a trial's end: finite, because a softmax or maximum over −inf alone gives NaN gradients."""
MAX_LOG_TIME_SCALE: Final = math.log(2)
MAX_GAIN: Final = 0.5


@dataclass(frozen=True)
class SpeakingModeConfig:
    """Settings of `SpeakingModeHead`."""

    pool: str = "mean"
    """How a trial's valid frames become one vector: `mean`, `max` or `attention` (softmax of w · tanh(W x))."""
    dropout: float = 0.1
    """After each hidden layer of the classifier, in [0, 1)."""
    contrastive_weight: float = 0.1
    """Of the contrastive term beside the cross-entropy; it compares batch mates, so that with it accumulation over
    micro-batches is no longer exactly one large batch. 0 switches it off."""
    contrastive_size: int = 128
    """Size of the embedding that the contrastive term compares, and of the layer before it."""

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ConfigurationError(f"model.speaking_mode.pool={self.pool}: choose one of {', '.join(POOLS)}")
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"model.speaking_mode.dropout={self.dropout}: must lie in [0, 1)")
        if self.contrastive_weight < 0:
            raise ConfigurationError(
                f"model.speaking_mode.contrastive_weight={self.contrastive_weight:g}: must be at least 0"
            )
        if self.contrastive_size < 1:
            raise ConfigurationError(
                f"model.speaking_mode.contrastive_size={self.contrastive_size}: must be at least 1"
            )


@dataclass(frozen=True)
class ModeOutput:
    """What the head says about each trial."""

    logits_B2: torch.Tensor
    """Column 0 silent, column 1 vocalised."""
    embedding_BD: torch.Tensor | None
    """Of length 1, for the contrastive term; None where that is switched off."""
    pooled_BE: torch.Tensor
    """The encoder's frames as one vector a trial, which refreshed pseudo-labels are estimated from."""

    @property
    def posterior_B2(self) -> torch.Tensor:
        """Probabilities of silent and vocalised."""
        return self.logits_B2.float().softmax(dim=-1)


class SpeakingModeHead(nn.Module):
    """Encoder frames [B, S, E] to the speaking mode of each trial; padding changes nothing."""

    component: ClassVar[str] = "mode_head"

    def __init__(self, config: SpeakingModeConfig, encoder_size: int) -> None:
        super().__init__()
        if encoder_size < 4:
            raise ConfigurationError(f"model.speaking_mode: the encoder's size {encoder_size} must be at least 4")
        half, quarter = encoder_size // 2, encoder_size // 4
        self.pool = Pool(config.pool, encoder_size)
        self.features = nn.Sequential(
            nn.Linear(encoder_size, half),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(half, quarter),
            nn.ReLU(),
            nn.Dropout(config.dropout),
        )
        self.classifier = nn.Linear(quarter, 2)
        size = config.contrastive_size
        self.contrastive = (
            nn.Sequential(nn.Linear(quarter, size), nn.ReLU(), nn.Linear(size, size))
            if config.contrastive_weight
            else None
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, encoder_BSE: torch.Tensor, lengths_B: torch.Tensor) -> ModeOutput:
        """The modes of the trials; `lengths_B` are the valid frames, at least 1."""
        pooled_BE = self.pool(encoder_BSE, lengths_B)
        features = self.features(pooled_BE)
        embedding_BD = None
        if self.contrastive is not None:
            embedding_BD = functional.normalize(self.contrastive(features), dim=-1)
        return ModeOutput(self.classifier(features), embedding_BD, pooled_BE)


class Pool(nn.Module):
    """The valid frames of each trial as one vector [B, E]."""

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        self.kind = kind
        self.attention = (
            nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 1, bias=False))
            if kind == "attention"
            else None
        )

    def forward(self, x_BSE: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Masked mean, masked maximum, or the frames' mean weighted by attention."""
        valid_BS1 = valid_mask(lengths_B, x_BSE.shape[1])[:, :, None]
        if self.kind == "max":
            return x_BSE.masked_fill(~valid_BS1, MASKED).amax(dim=1)
        # Where, not a product: what lies beyond a trial's end may be anything, NaN included.
        x_BSE = x_BSE.masked_fill(~valid_BS1, 0.0)
        if self.attention is None:
            return x_BSE.sum(dim=1) / lengths_B[:, None]
        scores_BS1 = self.attention(x_BSE).masked_fill(~valid_BS1, MASKED)
        pooled: torch.Tensor = (scores_BS1.softmax(dim=1) * x_BSE).sum(dim=1)
        return pooled


class ModeConditioner(nn.Module):
    """From the posterior of the modes to a modulation of the encoder.

    Each mode has one time scale and one gain a channel; a trial's are their mean under the posterior, bounded by tanh.
    All are 0 at first, so that an encoder starts unmodulated. The posterior is taken as given: what the recogniser
    would gain from another posterior does not reach the mode head, which so keeps telling modes.
    """

    component: ClassVar[str] = "mode_head"
    needs_whole_trial: ClassVar[str] = (
        "the mode that modulates the encoder is that of the whole trial; train with model.speaking_mode=null"
    )
    """Why what it modulates cannot be computed while a trial arrives, and what to set."""

    def __init__(self, encoder_size: int) -> None:
        super().__init__()
        self.by_mode = nn.Linear(2, 1 + encoder_size, bias=False)
        nn.init.zeros_(self.by_mode.weight)

    def forward(self, posterior_B2: torch.Tensor) -> Modulation:
        """The modulation of each trial, from probabilities that sum to 1."""
        mixed = self.by_mode(posterior_B2.detach().to(self.by_mode.weight.dtype)).tanh()
        return Modulation(MAX_LOG_TIME_SCALE * mixed[:, 0], MAX_GAIN * mixed[:, 1:])
