"""The GRU encoder of the official T15 baseline.

Legend: B trials, S frames, D input size, E output size, L layers. Source: nejm-brain-to-text `rnn_model.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.lengths import Lengths
from sottovoce.models.dropout import dropout
from sottovoce.models.encoder import Encoder
from sottovoce.models.gru_recurrence import recurrence
from sottovoce.models.patch_projection import project_patches
from sottovoce.models.patching import PatchConfig, patches


@dataclass(frozen=True)
class GRUConfig:
    """Unidirectional gated recurrent units."""

    units: int = 768
    layers: int = 5
    dropout: float = 0.4
    """Between layers, in [0, 1); without effect with one layer."""

    def __post_init__(self) -> None:
        if self.units < 1 or self.layers < 1 or not 0 <= self.dropout < 1:
            raise ConfigurationError(
                f"model.gru: units and layers must be at least 1 and dropout in [0, 1); "
                f"got {self.units}, {self.layers}, {self.dropout}"
            )


class GRUEncoder(Encoder):
    """PyTorch's GRU with one learnable initial state that all layers share.

    Recurrent weights start orthogonal and input weights Xavier-uniform, each as one matrix over the three gates;
    the biases keep PyTorch's uniform start. Padding frames come after the valid ones and change nothing before them.
    """

    takes_patches: ClassVar[bool] = True
    can_look_ahead: ClassVar[bool] = False
    causal = True
    needs_whole_trial = ""

    def __init__(self, config: GRUConfig, input_size: int) -> None:
        super().__init__()
        self.output_size = config.units
        self.gru = nn.GRU(
            input_size,
            config.units,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        for name, parameter in self.gru.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(parameter)
            elif name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter)
        self.initial_state = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, config.units)))

    def output_lengths(self, lengths: Lengths) -> Lengths:
        """A GRU keeps the frame rate."""
        return lengths

    def as_asked(self, config: GRUConfig) -> Iterator[tuple[str, str, str]]:
        """Layers, units and kind of the recurrence."""
        built = f"{self.gru.num_layers} layers of {self.gru.hidden_size} units of {type(self.gru).__name__}"
        yield "model.gru", f"{config.layers} layers of {config.units} units of GRU", built

    def start(self, batch_size: int) -> torch.Tensor:
        """State before the first frame, [L, B, E]."""
        return self.initial_state.expand(self.gru.num_layers, batch_size, -1).contiguous()

    def forward(
        self, x_BSD: torch.Tensor, lengths_B: torch.Tensor, patch: PatchConfig | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs [B, S, E] and the unchanged lengths; with `patch`, `x` is the bins whose patches are the input."""
        state_LBE = self.start(len(x_BSD))
        plain = not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
        if plain and x_BSD.device.type == "cpu" and torch.is_grad_enabled():
            return self._train_on_cpu(x_BSD, state_LBE, patch), lengths_B
        _, y_BSE = self.step(state_LBE, x_BSD if patch is None else patches(x_BSD, patch))
        return y_BSE, lengths_B

    def _train_on_cpu(self, x_BSD: torch.Tensor, state_LBE: torch.Tensor, patch: PatchConfig | None) -> torch.Tensor:
        """What `self.gru` gives, with a faster backward pass."""
        y_BSE = x_BSD
        for layer, initial_BE in enumerate(state_LBE):
            kinds = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
            weight_ih, bias_ih, weight_hh, bias_hh = (getattr(self.gru, f"{kind}_l{layer}") for kind in kinds)
            if layer:
                y_BSE = dropout(y_BSE, self.gru.dropout, self.training)
            if layer or patch is None:
                gates_BSG = nn.functional.linear(y_BSE, weight_ih, bias_ih)
            else:
                gates_BSG = project_patches(y_BSE, patch, weight_ih, bias_ih)
            y_BSE = recurrence(gates_BSG, initial_BE, weight_hh, bias_hh)
        return y_BSE

    def step(self, state_LBE: torch.Tensor, x_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The state after some more frames, and their outputs; carried on, it equals `forward`."""
        y_BSE, state_LBE = self.gru(x_BSD, state_LBE)
        return state_LBE, y_BSE
