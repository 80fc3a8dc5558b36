"""How the losses of a batch's trials become the one number that is differentiated."""

from __future__ import annotations

from typing import Final

import torch

NORMALISATIONS: Final = ("per_utterance", "per_token")
LOSS_SCALINGS: Final = ("none", "length", "frames", "gradient_norm")


def normalised_sum(
    nats_B: torch.Tensor, target_lengths_B: torch.Tensor, normalisation: str, global_batch: int
) -> torch.Tensor:
    """This part's share of the loss of a whole optimiser step.

    Every utterance weighs 1/`global_batch` (and, `per_token`, 1/U of its own), however the global batch is cut into
    micro-batches or spread over processes: the sum of all parts is the same. An empty target counts as one token.
    """
    if normalisation == "per_token":
        nats_B = nats_B / target_lengths_B.clamp(min=1)
    return nats_B.sum() / global_batch
