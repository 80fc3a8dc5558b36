"""The CTC head: one linear layer from encoder frames to the logits of symbols and blank."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn


class CTCHead(nn.Linear):
    """Frames [..., E] to logits [..., V]; Xavier-uniform weights, and PyTorch's uniform start for the biases."""

    component: ClassVar[str] = "ctc_decoder"

    def __init__(self, encoder_size: int, num_symbols: int, blank: int = 0, blank_bias: float = 0.0) -> None:
        """`blank_bias` is added to the first bias of the column `blank`."""
        super().__init__(encoder_size, num_symbols)
        nn.init.xavier_uniform_(self.weight)
        if blank_bias:
            with torch.no_grad():
                self.bias[blank] += blank_bias
