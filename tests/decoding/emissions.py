"""Emissions for tests, written as the symbol that each frame is sure of."""

from __future__ import annotations

import numpy as np
import torch

from sottovoce.core.symbols import LETTERS, SymbolTable
from sottovoce.decoding.emissions import Emissions

SURE = 8.0
"""Logit of the written symbol; the others have 0."""


def written(path: str, table: SymbolTable = LETTERS) -> Emissions:
    """One frame a character: `_` is the blank, `|` the word boundary. The transducer's frames are the same logits."""
    ids = [table.blank if character == "_" else table.encode(character)[0] for character in path]
    logits_SV = SURE * torch.eye(len(table))[torch.tensor(ids, dtype=torch.long)]
    return Emissions(logits_SV.log_softmax(-1).numpy(), logits_SV)


def random_emissions(num_frames: int, seed: int, table: SymbolTable = LETTERS) -> Emissions:
    """Frames that are sure of nothing."""
    logits_SV = 2 * torch.randn(num_frames, len(table), generator=torch.Generator().manual_seed(seed))
    return Emissions(logits_SV.log_softmax(-1).numpy().astype(np.float32), logits_SV)


class Once:
    """A transducer whose frames are logits, and which says no symbol twice in a sentence."""

    def start(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        """Nothing has been said."""
        return (torch.zeros(batch_size, len(LETTERS)),)

    def advance(
        self, state: tuple[torch.Tensor, ...], symbols_N: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """What has been said is out of the question."""
        said_NV = torch.nn.functional.one_hot(symbols_N, len(LETTERS)).float()
        said_NV[:, LETTERS.blank] = 0
        return (state[0] - 100 * said_NV,), state[0] - 100 * said_NV

    def joint(self, sum_H: torch.Tensor) -> torch.Tensor:
        """The sum is the logits."""
        return sum_H
