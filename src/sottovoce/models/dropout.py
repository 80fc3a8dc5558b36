"""Dropout that does not wait for its random numbers.

On a CPU, PyTorch draws one number at a time for each value; over whole signals that is a tenth of a training step.
Sixteen random bits decide as well, and one draw of its generator gives four of them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

_LEVELS = 2**16


def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """`x` with each value zero with probability `p` in [0, 1) and the others scaled to keep the mean, in training.

    On a CPU `p` is rounded to a multiple of 2⁻¹⁶. The bits come from PyTorch's global generator.
    """
    if not training or p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return functional.dropout(x, p, training)
    dropped = min(round(p * _LEVELS), _LEVELS - 1)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = (bits >= dropped - _LEVELS // 2).to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))
    return x * kept


class Dropout(nn.Dropout):
    """`dropout` as a module."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input` with some of its values zero, in training."""
        return dropout(input, self.p, self.training)
