"""Distillation from several CTC models, frame by frame: their common opinion, and how far a student is from it.

Legend: K teachers, B trials, S frames, V symbols, blank included. Sources: Hinton et al. 2015 (arXiv 1503.02531) for
the temperature and its square; Huang et al. 2018, "Knowledge distillation for sequence model", for CTC's frames.
"""

from __future__ import annotations

from typing import Final

import torch
from torch.nn import functional

from sottovoce.losses.precision import refuse_half_precision

AGGREGATIONS: Final = ("logprob_mean", "prob_mean")
"""Geometric and arithmetic mean. The mean of the logits is the former: the normalisers cancel in the softmax."""


def teachers_opinion(
    logits_KBSV: torch.Tensor, weights_KB: torch.Tensor, temperature: float, aggregation: str
) -> torch.Tensor:
    """ln q, float32 [B, S, V]: what the teachers say together at this temperature.

    `logprob_mean`: softmax(Σ_k w_k ln softmax(z_k/τ)); `prob_mean`: Σ_k w_k softmax(z_k/τ).

    `weights_KB` are not negative and add up to 1 over the teachers of a trial. A teacher of weight 0 is not read; of a
    trial without any teacher the row is uniform, and `frame_weights` of it must be 0.
    """
    asked_KB11 = (weights_KB > 0)[:, :, None, None]
    log_p_KBSV = functional.log_softmax(torch.where(asked_KB11, logits_KBSV.float(), 0.0) / temperature, dim=-1)
    weights_KB11 = weights_KB[:, :, None, None]
    if aggregation == "prob_mean":
        log_p_KBSV = torch.where(asked_KB11, log_p_KBSV + weights_KB11.log(), -torch.inf)
        together_BSV = torch.where(asked_KB11.any(0), log_p_KBSV.logsumexp(0), 0.0)
    else:
        together_BSV = (weights_KB11 * log_p_KBSV).sum(0)
    return functional.log_softmax(together_BSV, dim=-1)


def frame_weights(
    log_q_BSV: torch.Tensor, frames_B: torch.Tensor, blank: int, threshold: float, weight: float
) -> torch.Tensor:
    """How much each frame counts, float32 [B, S]: 1; `weight` where the blank is at least `threshold`; 0 in padding.

    `log_q_BSV` is the teachers' opinion at temperature 1. CTC says blank in most frames: at full weight they would
    drown the others, and at weight 0 nothing would teach the student to be silent.
    """
    said_BS = log_q_BSV[:, :, blank].exp() < threshold
    valid_BS = torch.arange(said_BS.shape[1], device=frames_B.device) < frames_B[:, None]
    return torch.where(said_BS, 1.0, weight) * valid_BS


def distillation_loss(
    logits_BSV: torch.Tensor, log_q_BSV: torch.Tensor, weights_BS: torch.Tensor, temperature: float
) -> torch.Tensor:
    """τ² · Σ_s w_s · KL(q_s ‖ softmax(z_s/τ)), float32 [B] in nats of the whole trial, over all symbols.

    A sum over frames, like CTC's own loss: the gradient of one frame's logits is τ·w·(softmax(z/τ) - q), of the size
    of CTC's posterior minus occupation. A mean over frames would make it as many times smaller as a trial has frames.

    Raises:
        ValueError: float16 logits, or the teachers saw another number of frames or symbols.
    """
    refuse_half_precision(logits_BSV)
    if logits_BSV.shape != log_q_BSV.shape:
        raise ValueError(
            f"the student's logits are {list(logits_BSV.shape)}, the teachers' {list(log_q_BSV.shape)} "
            "(trials, frames, symbols): a divergence frame by frame needs the same frames and symbols"
        )
    log_p_BSV = functional.log_softmax(logits_BSV.float() / temperature, dim=-1)
    divergence_BS = functional.kl_div(log_p_BSV, log_q_BSV, reduction="none", log_target=True).sum(-1)
    nats_B = (weights_BS * divergence_BS).sum(-1)
    return temperature**2 * nats_B
