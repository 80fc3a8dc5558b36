"""What a model remembers of trials that arrive piece by piece.

Legend: B streams, T bins, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sottovoce.core.errors import DataError
from sottovoce.core.streams import check_chunk
from sottovoce.core.trial import valid_mask


@dataclass(frozen=True)
class StreamState:
    """A value: no step changes it, so that a stream can be continued from it more than once.

    Its size does not depend on how long the streams have run, unless the encoder's `state_grows`.
    """

    session_B: torch.Tensor
    """int64: index of each stream's session."""
    received_B: torch.Tensor
    """int64: valid bins of each stream so far; a stream that has fewer than another has ended."""
    waiting_BTC: torch.Tensor
    """Bins, behind the session adapter, that no patch has used yet or that later patches need again."""
    encoder: Any
    """What the encoder's `start` and `step` give: tensors, in tuples where there are several."""

    def valid_part(
        self, chunk_BTC: torch.Tensor, lengths_B: torch.Tensor | None, num_channels: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The chunk, up to the longest of `lengths_B` (None: all of it) and 0 beyond each, and the lengths.

        Raises:
            DataError: a wrong shape or length, a value that is not finite, or bins of a stream that has ended.
        """
        num_streams, num_bins = len(self.session_B), chunk_BTC.shape[1] if chunk_BTC.dim() == 3 else 0
        if lengths_B is None:
            lengths_B = torch.full_like(self.received_B, num_bins)
        elif lengths_B.shape != (num_streams,) or not bool(((lengths_B >= 0) & (lengths_B <= num_bins)).all()):
            raise DataError(
                f"lengths {lengths_B.tolist()} of a chunk of {num_bins} bins: must be {num_streams} numbers from 0 to "
                f"{num_bins}"
            )
        elif num_streams and chunk_BTC.dim() == 3 and len(chunk_BTC) == num_streams:
            inside_BT1 = valid_mask(lengths_B, num_bins)[:, :, None]
            chunk_BTC = chunk_BTC.masked_fill(~inside_BT1, 0)[:, : int(lengths_B.max())]
        check_chunk(chunk_BTC, [num_streams, None, num_channels], "[streams, bins, channels]")
        late_B = (self.received_B < self.received_B.max()) & (lengths_B > 0)
        if bool(late_B.any()):
            stream = int(late_B.nonzero()[0])
            raise DataError(
                f"stream {stream} has ended after {int(self.received_B[stream])} bins, but the chunk has "
                f"{int(lengths_B[stream])} more of it: give it the length 0"
            )
        return chunk_BTC, lengths_B
