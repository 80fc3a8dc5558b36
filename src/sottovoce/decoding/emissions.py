"""What a model makes of one trial, as every decoder reads it: computed once, decoded many times.

Legend: S encoder frames, V symbols, H joint size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.symbols import SymbolTable


@dataclass(frozen=True)
class Emissions:
    """The outputs of one trial, valid frames only."""

    log_probs_SV: npt.NDArray[np.float32]
    """CTC's natural logarithms."""
    transducer_SH: torch.Tensor | None = None
    """The frames' contribution to the transducer's joint, on the model's device; None where nobody asked for it."""

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.log_probs_SV)

    @property
    def log_probs_1SV(self) -> torch.Tensor:
        """The log-probabilities as a batch of one trial; the memory is shared."""
        return torch.from_numpy(self.log_probs_SV)[None]

    def check_table(self, table: SymbolTable) -> None:
        """Accept emissions of a model whose outputs are those of `table`.

        Raises:
            ConfigurationError: they have another number of symbols.
        """
        num_symbols = self.log_probs_SV.shape[1]
        if num_symbols != len(table):
            raise ConfigurationError(
                f"the model's frames have {num_symbols} symbols, the table of {table.name} has {len(table)}; decode "
                "with the table that the model was trained with (data.symbols)"
            )

    def check_numbers(self, trial_id: str) -> None:
        """Accept emissions without NaN.

        Raises:
            DataError: some frame has one; no decoder gives a hypothesis that means anything.
        """
        broken = int(np.isnan(self.log_probs_SV).any(axis=1).sum())
        if broken:
            raise DataError(
                f"trial {trial_id}: the model gives NaN in {broken} of {len(self)} frames; look for NaN in its signal "
                "(sottovoce check) and in the checkpoint's weights (sottovoce diagnose RUN)"
            )
