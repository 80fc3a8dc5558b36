"""CTC loss, per utterance, in nats.

Legend: B trials, S frames, U labels, V symbols. Source: Graves et al. 2006; PyTorch's kernels do the arithmetic.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def ctc_loss(
    logits_BSV: torch.Tensor,
    targets_BU: torch.Tensor,
    logit_lengths_B: torch.Tensor,
    target_lengths_B: torch.Tensor,
    blank: int = 0,
) -> torch.Tensor:
    """−ln of the summed probability of all alignments of each target, float32 [B] in nats.

    Computed in float32 whatever the precision of the logits. A target that does not fit
    (frames < labels + adjacent repeats) gives +inf, never 0: the guard names such an utterance.
    """
    log_probs_SBV = functional.log_softmax(logits_BSV.float(), dim=-1).transpose(0, 1)
    return functional.ctc_loss(
        log_probs_SBV, targets_BU, logit_lengths_B, target_lengths_B, blank=blank, reduction="none", zero_infinity=False
    )
