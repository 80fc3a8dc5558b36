"""The state-space encoder: selective state-space layers, causal or in both directions.

Legend: B trials, S frames, D input size, E width. Sources: MODE-SSM (the layer of both directions), Gu & Dao 2023 and
Dao & Gu 2024 (the blocks). Not as in MODE-SSM, which are settings or repairs: the reversal goes by each trial's length,
the skip connection runs around the layer (`residual`), and a missing back end is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import nn

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.lengths import Lengths
from sottovoce.core.trial import valid_mask
from sottovoce.models import ssm_mamba1, ssm_mamba2
from sottovoce.models.encoder import Conditioner, Encoder, Modulation
from sottovoce.models.ssm_config import SSMConfig
from sottovoce.models.ssm_cuda import mamba_ssm_scan
from sottovoce.models.ssm_mamba1 import Mamba1
from sottovoce.models.ssm_mamba2 import Mamba2
from sottovoce.models.ssm_parts import BlockState, ReverseByLength


class SSMEncoder(Encoder):
    """Encoder [B, S, D] → [B, S, E]; a trial's frames do not depend on the padding."""

    can_be_modulated: ClassVar[bool] = True

    def __init__(self, config: SSMConfig, input_size: int) -> None:
        super().__init__()
        self.config = config
        self.output_size = config.width
        self.input = nn.Identity() if input_size == config.width else nn.Linear(input_size, config.width)
        layer = BidirectionalLayer if config.bidirectional else CausalLayer
        self.layers = nn.ModuleList(layer(config) for _ in range(config.layers))
        self.output_norm = nn.LayerNorm(config.width)

    @property
    def causal(self) -> bool:
        """Without layers of both directions."""
        return not self.config.bidirectional

    @property
    def needs_whole_trial(self) -> str:
        """Layers of both directions begin at the trial's end."""
        return (
            ""
            if self.causal
            else "bidirectional=true reads trials from their end too; train with model.ssm.bidirectional=false"
        )

    def output_lengths(self, lengths: Lengths) -> Lengths:
        """State-space layers keep the frame rate."""
        return lengths

    def as_asked(self, config: SSMConfig) -> Iterator[tuple[str, str, str]]:
        """Number of blocks, the kind of each and what computes its recurrence."""
        kinds: dict[str, type[nn.Module]] = {"mamba2": ssm_mamba2.Mamba2, "mamba1": ssm_mamba1.Mamba1}
        blocks = [part for part in self.modules() if isinstance(part, Block)]
        expected = config.layers * (2 if config.bidirectional else 1)
        yield "model.ssm.layers", f"{expected} blocks", f"{len(blocks)} blocks"
        for block in blocks:
            yield "model.ssm.kind", kinds[config.kind].__name__, type(block.ssm).__name__
            by_kernel = getattr(block.ssm.scan, "func", None) is mamba_ssm_scan
            yield "model.ssm.backend", config.backend, "mamba_ssm" if by_kernel else "torch"

    def forward(
        self, x_BSD: torch.Tensor, lengths_B: torch.Tensor, conditioner: Conditioner | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames [B, S, E], 0 beyond each trial's end, and the unchanged lengths.

        Raises:
            ConfigurationError: there is a conditioner and no layer for it to act on.
            ValueError: a length exceeds the tensor.
        """
        if int(lengths_B.max()) > x_BSD.shape[1]:
            raise ValueError(f"lengths {lengths_B.tolist()} exceed the {x_BSD.shape[1]} frames of the tensor")
        padding_BS1 = ~valid_mask(lengths_B, x_BSD.shape[1])[:, :, None]
        reverse = ReverseByLength(lengths_B, x_BSD.shape[1]) if self.config.bidirectional else None
        hidden_BSE = self.input(x_BSD.masked_fill(padding_BS1, 0))
        modulation = None
        if conditioner is not None and self.config.layers < 2:
            raise ConfigurationError("model.ssm.layers=1: a speaking mode needs a layer to look at and one to act on")
        for i, layer in enumerate(self.layers):
            if conditioner is not None and i == self.config.layers_before_conditioner:
                modulation = conditioner(hidden_BSE.masked_fill(padding_BS1, 0), lengths_B)
            hidden_BSE = layer(hidden_BSE, modulation, reverse)
        return self.output_norm(hidden_BSE).masked_fill(padding_BS1, 0), lengths_B

    def start(self, batch_size: int) -> tuple[BlockState, ...]:
        """State before the first frame of `batch_size` streams.

        Raises:
            ConfigurationError: the encoder needs the future.
        """
        return tuple(layer.block.start(batch_size) for layer in self._causal_layers())

    def step(
        self, state: tuple[BlockState, ...], x_BSD: torch.Tensor, modulation: Modulation | None = None
    ) -> tuple[tuple[BlockState, ...], torch.Tensor]:
        """The state after some more frames, and their outputs [B, S, E]; carried on, it equals `forward`.

        `modulation` acts on the layers that a conditioner would act on.

        Raises:
            ConfigurationError: the encoder needs the future.
        """
        hidden_BSE, states = self.input(x_BSD), []
        for i, (layer, before) in enumerate(zip(self._causal_layers(), state, strict=True)):
            acting = modulation if i >= self.config.layers_before_conditioner else None
            hidden_BSE, after = layer.step(hidden_BSE, acting, before)
            states.append(after)
        return tuple(states), self.output_norm(hidden_BSE)

    def _causal_layers(self) -> list[CausalLayer]:
        if self.needs_whole_trial:
            raise ConfigurationError(f"model.ssm: {self.needs_whole_trial}")
        return [layer for layer in self.layers if isinstance(layer, CausalLayer)]


class Block(nn.Module):
    """LayerNorm and a state-space block of either kind, without a skip connection."""

    def __init__(self, config: SSMConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.block_width)
        self.ssm: Mamba1 | Mamba2
        self.ssm = (Mamba2 if config.kind == "mamba2" else Mamba1)(config, config.block_width)

    def start(self, batch_size: int) -> BlockState:
        """State before the first frame."""
        return self.ssm.start(batch_size)

    def forward(
        self, x_BSE: torch.Tensor, modulation: Modulation | None, state: BlockState | None = None
    ) -> tuple[torch.Tensor, BlockState]:
        """Outputs [B, S, E] and the state after them; without a state given, from the start."""
        time_scale_B = None if modulation is None else modulation.log_time_scale_B.exp()
        y_BSE, after = self.ssm(self.norm(x_BSE), state or self.start(len(x_BSE)), time_scale_B)
        return y_BSE, after


class CausalLayer(nn.Module):
    """`x + block(x)`."""

    def __init__(self, config: SSMConfig) -> None:
        super().__init__()
        self.block = Block(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BSE: torch.Tensor, modulation: Modulation | None, _: ReverseByLength | None) -> torch.Tensor:
        """Outputs [B, S, E] of whole trials."""
        return self.step(x_BSE, modulation, None)[0]

    def step(
        self, x_BSE: torch.Tensor, modulation: Modulation | None, state: BlockState | None
    ) -> tuple[torch.Tensor, BlockState]:
        """Outputs [B, S, E] and the state after them."""
        y_BSE, after = self.block(x_BSE, modulation, state)
        return x_BSE + self.dropout(_amplified(y_BSE, modulation)), after


class BidirectionalLayer(nn.Module):
    """A linear map, one half of it to a block, the other half reversed to another, and a linear map of both."""

    def __init__(self, config: SSMConfig) -> None:
        super().__init__()
        self.skip_layer = config.residual == "layer"
        self.split = nn.Linear(config.width, config.width)
        self.ahead, self.back = Block(config), Block(config)
        self.merge = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        for linear in (self.split, self.merge):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x_BSE: torch.Tensor, modulation: Modulation | None, reverse: ReverseByLength) -> torch.Tensor:
        """Outputs [B, S, E] of whole trials."""
        ahead, back = self.split(x_BSE).chunk(2, -1)
        both = torch.cat(
            [self._run(self.ahead, ahead, modulation), reverse(self._run(self.back, reverse(back), modulation))], -1
        )
        y_BSE: torch.Tensor = self.dropout(_amplified(self.merge(both), modulation))
        return x_BSE + y_BSE if self.skip_layer else y_BSE

    def _run(self, block: Block, x: torch.Tensor, modulation: Modulation | None) -> torch.Tensor:
        y: torch.Tensor = block(x, modulation)[0]
        return y if self.skip_layer else x + y


def _amplified(y_BSE: torch.Tensor, modulation: Modulation | None) -> torch.Tensor:
    return y_BSE if modulation is None else y_BSE * (1 + modulation.gain_BE[:, None])
