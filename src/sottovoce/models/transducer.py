"""The transducer head: a predictor that reads the labels said so far, and a joint of its output with the encoder's.

Dimension legend: B trials, N rows of any kind, S encoder frames, U labels, E encoder size, H size of the joint,
V symbols, L predictor layers, P predictor units. Source: Graves 2012, "Sequence transduction with recurrent neural
networks"; sizes of the `source` joint from mode-ssm `rnnt_ctc_heads.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import nn
from torch.nn import functional

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.trial import valid_mask

JOINTS: Final = ("additive", "source")
STATELESS_CONTEXT: Final = 2
"""Last symbols that a predictor without recurrence sees (Ghodsi et al. 2020)."""

PredictorState = tuple[torch.Tensor, ...]
"""What the predictor remembers; every tensor has the rows (trials or hypotheses) as its first dimension."""


@dataclass(frozen=True)
class TransducerConfig:
    """Settings of `TransducerHead`."""

    embedding_size: int = 512
    units: int = 512
    """Output size of the predictor."""
    layers: int = 2
    """LSTM layers of the predictor; 0: no LSTM but one layer over the last two symbols' embeddings."""
    joint_size: int = 512
    joint: str = "additive"
    """`additive`: tanh(encoder + predictor) and one linear layer, which the fused loss computes in blocks; `source`:
    two more hidden layers in every cell of the lattice, as in mode-ssm: slower, and only on the plain route."""
    dropout: float = 0.1
    """Between the predictor's layers, on its output, and after each tanh of the `source` joint."""

    def __post_init__(self) -> None:
        for name in ("embedding_size", "units", "joint_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"model.transducer.{name}={getattr(self, name)}: must be at least 1")
        if self.layers < 0:
            raise ConfigurationError(f"model.transducer.layers={self.layers}: must be at least 0")
        if self.joint not in JOINTS:
            raise ConfigurationError(f"model.transducer.joint={self.joint}: choose one of {', '.join(JOINTS)}")
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"model.transducer.dropout={self.dropout}: must lie in [0, 1)")


class LSTMPredictor(nn.Module):
    """Embeddings through an LSTM; Xavier-uniform weights (each matrix over its four gates as one), biases 0."""

    def __init__(self, config: TransducerConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(
            config.embedding_size,
            config.units,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("weight"):
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)

    def start(self, batch_size: int) -> PredictorState:
        """Hidden and cell state of zeros, each [B, L, P]."""
        size = (batch_size, self.lstm.num_layers, self.lstm.hidden_size)
        zeros = next(self.lstm.parameters()).new_zeros(size)
        return zeros, zeros

    def forward(self, embedded_BUE: torch.Tensor, state: PredictorState) -> tuple[PredictorState, torch.Tensor]:
        """The state after some more symbols, and the outputs [B, U, P]."""
        if embedded_BUE.shape[1] == 1 and not self.training:
            return self._step(embedded_BUE, state)
        hidden_LBP, cell_LBP = (part.transpose(0, 1).contiguous() for part in state)
        output_BUP, after = self.lstm(embedded_BUE, (hidden_LBP, cell_LBP))
        return tuple(part.transpose(0, 1) for part in after), output_BUP

    def _step(self, embedded_B1E: torch.Tensor, state: PredictorState) -> tuple[PredictorState, torch.Tensor]:
        """The same for one symbol, by hand: for one trial on a CPU several times as fast as nn.LSTM."""
        x_BP, hidden, cell = embedded_B1E[:, 0], [], []
        for layer, (w_input, w_hidden, b_input, b_hidden) in enumerate(self.lstm.all_weights):
            gates = functional.linear(x_BP, w_input, b_input) + functional.linear(
                state[0][:, layer], w_hidden, b_hidden
            )
            take, keep, candidate, emit = gates.chunk(4, dim=-1)
            cell.append(keep.sigmoid() * state[1][:, layer] + take.sigmoid() * candidate.tanh())
            x_BP = emit.sigmoid() * cell[-1].tanh()
            hidden.append(x_BP)
        return (torch.stack(hidden, dim=1), torch.stack(cell, dim=1)), x_BP[:, None]


class StatelessPredictor(nn.Module):
    """tanh of a linear map of the last two embeddings; before the first symbol the missing one counts as zeros."""

    def __init__(self, config: TransducerConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(STATELESS_CONTEXT * config.embedding_size, config.units)
        _initialise(self.linear)

    def start(self, batch_size: int) -> PredictorState:
        """The last embeddings before the newest, [B, 1, E], zeros at first."""
        size = self.linear.in_features // STATELESS_CONTEXT
        return (self.linear.weight.new_zeros(batch_size, STATELESS_CONTEXT - 1, size),)

    def forward(self, embedded_BUE: torch.Tensor, state: PredictorState) -> tuple[PredictorState, torch.Tensor]:
        """The state after some more symbols, and the outputs [B, U, P]."""
        seen = torch.cat([state[0], embedded_BUE], dim=1)
        num_symbols = embedded_BUE.shape[1]
        context = torch.cat([seen[:, i : i + num_symbols] for i in range(STATELESS_CONTEXT)], dim=-1)
        return (seen[:, num_symbols:],), self.linear(context).tanh()


class TransducerHead(nn.Module):
    """Encoder frames and labels to the logits of every cell of the lattice.

    The blank's embedding stands for the start of the sentence, so that the predictor reads blank, y_1, …, y_U. It
    moves on labels only: `advance` must never be given a blank that was decoded.
    """

    component: ClassVar[str] = "rnnt_decoder"

    def __init__(self, config: TransducerConfig, encoder_size: int, num_symbols: int, blank: int = 0) -> None:
        super().__init__()
        if not 0 <= blank < num_symbols:
            raise ConfigurationError(
                f"blank={blank}: must be one of the {num_symbols} symbols (0 to {num_symbols - 1})"
            )
        self.config, self.blank = config, blank
        self.embedding = nn.Embedding(num_symbols, config.embedding_size)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.predictor: LSTMPredictor | StatelessPredictor
        self.predictor = LSTMPredictor(config) if config.layers else StatelessPredictor(config)
        self.predictor_dropout = nn.Dropout(config.dropout)
        self.encoder_projection = nn.Linear(encoder_size, config.joint_size)
        self.predictor_projection = nn.Linear(config.units, config.joint_size)
        hidden = 2 if config.joint == "source" else 0
        self.joint_layers = nn.ModuleList(nn.Linear(config.joint_size, config.joint_size) for _ in range(hidden))
        self.joint_dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.joint_size, num_symbols)
        for linear in (self.encoder_projection, self.predictor_projection, *self.joint_layers, self.output):
            assert isinstance(linear, nn.Linear)
            _initialise(linear)

    def project(self, encoder_BSE: torch.Tensor) -> torch.Tensor:
        """What the encoder contributes to the joint, [B, S, H]."""
        projected: torch.Tensor = self.encoder_projection(encoder_BSE)
        return projected

    def predict(self, targets_BU: torch.Tensor, target_lengths_B: torch.Tensor) -> torch.Tensor:
        """What the predictor contributes after blank, y_1, …, y_U: [B, U+1, H].

        Ids beyond a target's length may be anything; the rows they lead to are not meaningful.
        """
        padding = ~valid_mask(target_lengths_B, targets_BU.shape[1])
        start_B1 = targets_BU.new_full((len(targets_BU), 1), self.blank)
        symbols_BU = torch.cat([start_B1, targets_BU.masked_fill(padding, self.blank)], dim=1)
        return self._advance(self.predictor.start(len(targets_BU)), symbols_BU)[1]

    def start(self, batch_size: int) -> PredictorState:
        """The predictor's state before the start symbol (the blank), which the caller feeds it first."""
        return self.predictor.start(batch_size)

    def advance(self, state: PredictorState, symbols_N: torch.Tensor) -> tuple[PredictorState, torch.Tensor]:
        """The state after one more symbol in every row, and its contribution to the joint [N, H]."""
        state, output_N1H = self._advance(state, symbols_N[:, None])
        return state, output_N1H[:, 0]

    def joint(self, sum_H: torch.Tensor) -> torch.Tensor:
        """Logits […, V] from encoder plus predictor contributions […, H]."""
        hidden = sum_H
        for layer in self.joint_layers:
            hidden = self.joint_dropout(layer(hidden).tanh())
        logits: torch.Tensor = self.output(hidden if len(self.joint_layers) else hidden.tanh())
        return logits

    def logits(self, encoder_BSH: torch.Tensor, predictor_BUH: torch.Tensor) -> torch.Tensor:
        """Logits of the whole lattice [B, S, U+1, V] from the two contributions: the plain route."""
        return self.joint(encoder_BSH[:, :, None] + predictor_BUH[:, None])

    def _advance(self, state: PredictorState, symbols_BU: torch.Tensor) -> tuple[PredictorState, torch.Tensor]:
        state, output_BUP = self.predictor(self.embedding(symbols_BU), state)
        return state, self.predictor_projection(self.predictor_dropout(output_BUP))


def _initialise(linear: nn.Linear) -> None:
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
