"""The transformer encoder: every frame looks at every other (or at those before it), by content and by distance.

After the transformer published for T12 (Feghhi et al., arXiv 2507.02800; ebrahimfeghhi/transformers_with_dietcorp,
src/neural_decoder/bit.py and scripts/train_transformer.py): normalised patches, a linear map, a norm; pre-norm layers
of attention and a two-layer perceptron with GELU; a norm at the end. Not as there: what a distance adds to a score is
learnt for each head and range of distances (Raffel et al. 2020) instead of each distance up to 200, no sinusoids are
added, a trial's frames never see the padding, and attention weights are not dropped: that would keep two more numbers
for each pair of frames, head and layer.

Legend: B trials, S frames, D input size, E width, H heads, P head size, K buckets of distances.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import nn
from torch.nn import functional

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.lengths import Lengths
from sottovoce.core.trial import valid_mask
from sottovoce.models.dropout import Dropout
from sottovoce.models.encoder import Encoder

NUM_BUCKETS: Final = 32
"""Ranges of distances with a score of their own; those ahead and those behind take half each (T5)."""
FARTHEST: Final = 128
"""Frames from which all distances share one bucket (T5), so that longer trials than those in training are no news."""

LayerStates = tuple[torch.Tensor, ...]
"""Keys and values [2, B, H, S, P] that each layer has computed so far."""


@dataclass(frozen=True)
class TransformerConfig:
    """Pre-norm transformer layers over normalised input frames."""

    width: int = 384
    """Size of every layer's input and output."""
    layers: int = 7
    heads: int = 6
    """Each looks with `width / heads` numbers; must divide `width`."""
    expansion: int = 4
    """Hidden units of a layer's perceptron as a multiple of `width`."""
    dropout: float = 0.35
    """In the perceptron and on what attention and perceptron add, in [0, 1)."""
    input_dropout: float = 0.2
    """On the embedded frames, in [0, 1)."""
    bidirectional: bool = True
    """False: causal as published, a frame sees itself and those before it."""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "expansion"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"model.transformer.{name}={getattr(self, name)}: must be at least 1")
        if self.width % self.heads:
            raise ConfigurationError(f"model.transformer.heads={self.heads}: must divide the width, {self.width}")
        for name in ("dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(f"model.transformer.{name}={getattr(self, name)}: must lie in [0, 1)")


class TransformerEncoder(Encoder):
    """Encoder [B, S, D] → [B, S, E]; a trial's frames do not depend on the padding."""

    compares_frames: ClassVar[bool] = True
    state_grows: ClassVar[bool] = True

    def __init__(self, config: TransformerConfig, input_size: int) -> None:
        super().__init__()
        self.config = config
        self.output_size = config.width
        self.input_norm = nn.LayerNorm(input_size)
        self.input = nn.Linear(input_size, config.width)
        self.embedding_norm = nn.LayerNorm(config.width)
        self.input_dropout = Dropout(config.input_dropout)
        self.distance = DistanceScores(config.heads, config.bidirectional)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.output_norm = nn.LayerNorm(config.width)

    @property
    def causal(self) -> bool:
        """Where attention sees the past only."""
        return not self.config.bidirectional

    @property
    def needs_whole_trial(self) -> str:
        """Attention in both directions sees the trial's end."""
        return (
            ""
            if self.causal
            else "bidirectional=true attends to later frames; train with model.transformer.bidirectional=false"
        )

    def output_lengths(self, lengths: Lengths) -> Lengths:
        """A transformer keeps the frame rate."""
        return lengths

    def as_asked(self, config: TransformerConfig) -> Iterator[tuple[str, str, str]]:
        """The directions that attention sees."""
        seen = {True: "both directions", False: "the past alone"}
        yield "model.transformer.bidirectional", seen[config.bidirectional], seen[self.distance.bidirectional]

    def forward(self, x_BSD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames [B, S, E], 0 beyond each trial's end, and the unchanged lengths.

        Raises:
            ValueError: a length exceeds the tensor.
        """
        num_frames = x_BSD.shape[1]
        if int(lengths_B.max()) > num_frames:
            raise ValueError(f"lengths {lengths_B.tolist()} exceed the {num_frames} frames of the tensor")
        padding_BS1 = ~valid_mask(lengths_B, num_frames)[:, :, None]
        hidden_BSE = self.input(self.input_norm(x_BSD.masked_fill(padding_BS1, 0)))
        hidden_BSE = self.input_dropout(self.embedding_norm(hidden_BSE))
        # Frame 0 stays in sight even of an empty trial: a row without any key would be NaN.
        hidden_from_B11S = ~valid_mask(lengths_B.clamp(min=1), num_frames)[:, None, None]
        scores_BHSS = self.distance(num_frames)[None].masked_fill(hidden_from_B11S, -math.inf)
        for layer in self.layers:
            hidden_BSE = layer(hidden_BSE, scores_BHSS)
        return self.output_norm(hidden_BSE).masked_fill(padding_BS1, 0), lengths_B

    def start(self, batch_size: int) -> LayerStates:
        """Keys and values before the first frame: none.

        Raises:
            ConfigurationError: attention sees both directions.
        """
        if self.needs_whole_trial:
            raise ConfigurationError(f"model.transformer: {self.needs_whole_trial}")
        heads, width = self.config.heads, self.config.width
        nothing = self.input.weight.new_zeros(2, batch_size, heads, 0, width // heads)
        return tuple(nothing for _ in self.layers)

    def step(self, state: LayerStates, x_BSD: torch.Tensor) -> tuple[LayerStates, torch.Tensor]:
        """The state after some more frames, and their outputs [B, S, E]; carried on, it equals `forward`."""
        first = state[0].shape[3]
        scores_HSS = self.distance(first + x_BSD.shape[1], first)
        hidden_BSE, states = self.embedding_norm(self.input(self.input_norm(x_BSD))), []
        hidden_BSE = self.input_dropout(hidden_BSE)
        for layer, before in zip(self.layers, state, strict=True):
            assert isinstance(layer, Layer)
            hidden_BSE, after = layer.step(hidden_BSE, scores_HSS[None], before)
            states.append(after)
        return tuple(states), self.output_norm(hidden_BSE)


class DistanceScores(nn.Module):
    """What the distance of two frames adds to the score of one looking at the other; the layers share it, as in T5."""

    def __init__(self, heads: int, bidirectional: bool) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.bias_HK = nn.Parameter(torch.randn(heads, NUM_BUCKETS))  # a name in `bias…` is never decayed

    def forward(self, num_frames: int, first: int = 0) -> torch.Tensor:
        """Scores [H, S - first, S] of frame i, from `first` on, looking at any frame j; -inf where it must not."""
        ahead = torch.arange(1 - num_frames, num_frames - first, device=self.bias_HK.device)  # every j - i there is
        by_distance = self.bias_HK[:, buckets(ahead, self.bidirectional)]
        if not self.bidirectional:
            by_distance = by_distance.masked_fill(ahead > 0, -math.inf)
        return by_distance.unfold(1, num_frames, 1).flip(1)  # the row of frame i begins at j - i = -i


def buckets(ahead: torch.Tensor, bidirectional: bool) -> torch.Tensor:
    """Bucket, from 0 to NUM_BUCKETS - 1, of frames that lie so far ahead (below 0: behind).

    Half of a direction's buckets hold one distance each; the others grow in proportion to it (Raffel et al. 2020). In
    a causal encoder all are for the past, and the future shares the present's.
    """
    count = NUM_BUCKETS // 2 if bidirectional else NUM_BUCKETS
    single = count // 2
    growth = FARTHEST / single
    starts = [*range(single), *(math.ceil(single * growth ** (k / single) - 1e-9) for k in range(count - single))]
    distance = ahead.abs() if bidirectional else (-ahead).clamp(min=0)
    bucket = torch.bucketize(distance, torch.tensor(starts, device=ahead.device), right=True) - 1
    return bucket + count * (ahead > 0) if bidirectional else bucket


class Layer(nn.Module):
    """`x + attention(norm(x))`, then `x + perceptron(norm(x))`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = config.expansion * config.width
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(config.width),
            nn.Linear(config.width, hidden),
            nn.GELU(),
            Dropout(config.dropout),
            nn.Linear(hidden, config.width),
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BSE: torch.Tensor, scores_BHSS: torch.Tensor) -> torch.Tensor:
        """Outputs [B, S, E]."""
        return self._added(x_BSE, self.attention(self.attention_norm(x_BSE), scores_BHSS))

    def step(
        self, x_BSE: torch.Tensor, scores_BHSS: torch.Tensor, before: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs [B, S, E] of frames after those of `before`, and the keys and values of all of them."""
        attended_BSE, after = self.attention.step(self.attention_norm(x_BSE), scores_BHSS, before)
        return self._added(x_BSE, attended_BSE), after

    def _added(self, x_BSE: torch.Tensor, attended_BSE: torch.Tensor) -> torch.Tensor:
        x_BSE = x_BSE + self.dropout(attended_BSE)
        y_BSE: torch.Tensor = x_BSE + self.dropout(self.perceptron(x_BSE))
        return y_BSE


class Attention(nn.Module):
    """Each frame takes a mean of all values, with weights `softmax(q·k / √P + scores)`, head by head."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.queries_keys_values = nn.Linear(config.width, 3 * config.width, bias=False)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x_BSE: torch.Tensor, scores_BHSS: torch.Tensor) -> torch.Tensor:
        """Outputs [B, S, E]."""
        q_BHSP, k_BHSP, v_BHSP = self._projected(x_BSE)
        return self._attended(q_BHSP, k_BHSP, v_BHSP, scores_BHSS)

    def step(
        self, x_BSE: torch.Tensor, scores_BHSS: torch.Tensor, before_2BHSP: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs [B, S, E] of frames that also look at those before, and the keys and values of all."""
        q_BHSP, *new = self._projected(x_BSE)
        after_2BHSP = torch.cat([before_2BHSP, torch.stack(new)], 3)
        return self._attended(q_BHSP, after_2BHSP[0], after_2BHSP[1], scores_BHSS), after_2BHSP

    def _projected(self, x_BSE: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values [3, B, H, S, P]."""
        projected: torch.Tensor
        projected = self.queries_keys_values(x_BSE).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return projected

    def _attended(
        self, q_BHSP: torch.Tensor, k_BHSP: torch.Tensor, v_BHSP: torch.Tensor, scores_BHSS: torch.Tensor
    ) -> torch.Tensor:
        y_BHSP = functional.scaled_dot_product_attention(q_BHSP, k_BHSP, v_BHSP, scores_BHSS)
        y_BSE: torch.Tensor = self.output(y_BHSP.transpose(1, 2).flatten(2))
        return y_BSE
