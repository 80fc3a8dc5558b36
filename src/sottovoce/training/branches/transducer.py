"""The transducer's loss, and how it is scaled against CTC's before the weights."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Final

import torch

from sottovoce.losses.fused_joint import fused_transducer_loss
from sottovoce.losses.transducer import transducer_loss
from sottovoce.runs.names import Metric
from sottovoce.training.branches.branch import Branch, Functions, PartInputs

SMALLEST_LENGTH_SCALE: Final = 5.0


def _nats(inputs: PartInputs, scaling: str, functions: Functions) -> torch.Tensor:
    head, (labels_BU, frames_B, label_lengths_B) = inputs.model.transducer, inputs.targets
    assert head is not None  # the plan refuses such a stage
    encoder_BSH = head.project(inputs.encoded.frames_BSE)
    predictor_BUH = head.predict(labels_BU, label_lengths_B)
    if head.config.joint == "additive":
        output = head.output.weight, head.output.bias
        return functions["fused_transducer_loss"](
            encoder_BSH, predictor_BUH, *output, labels_BU, frames_B, label_lengths_B, inputs.blank
        )
    logits_BSUV = head.logits(encoder_BSH, predictor_BUH)
    return functions["transducer_loss"](logits_BSUV, labels_BU, frames_B, label_lengths_B, inputs.blank)


def _on_uniform_logits(frames: int, labels: int, symbols: int) -> float:
    """(T+U) ln V − ln C(T+U−1, U)."""
    return (frames + labels) * math.log(symbols) - math.log(math.comb(frames + labels - 1, labels))


def length_scaled(
    nats_B: torch.Tensor, frames_B: torch.Tensor, label_lengths_B: torch.Tensor, scaling: str
) -> torch.Tensor:
    """The transducer's loss divided by lengths of its own trial.

    `length`: by √(frames · labels), at least 5; `frames`: by half its frames, at least 1. The source divides by the
    batch's means (mode-ssm, its third and second scaling), so that a trial's weight depends on its batch mates; here it
    does not, and the two agree where all trials are of one length.
    """
    if scaling == "frames":
        return nats_B / (frames_B.float() / 2).clamp(min=1)
    return nats_B / (frames_B * label_lengths_B).float().sqrt().clamp(min=SMALLEST_LENGTH_SCALE)


def _adjust(
    nats_B: torch.Tensor, tokens_B: torch.Tensor, inputs: PartInputs, scaling: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """A scaling by lengths stands in for the division by tokens."""
    if scaling not in ("length", "frames"):
        return nats_B, tokens_B
    _, frames_B, label_lengths_B = inputs.targets
    return length_scaled(nats_B, frames_B, label_lengths_B, scaling), torch.ones_like(tokens_B)


TRANSDUCER: Final = Branch(
    name="rnnt",
    component="rnnt_decoder",
    metric=Metric.TRANSDUCER_LOSS,
    compute=_nats,
    functions=MappingProxyType({"fused_transducer_loss": fused_transducer_loss, "transducer_loss": transducer_loss}),
    section="training.loss_scaling",
    held_back=True,
    on_uniform_logits=_on_uniform_logits,
    output=lambda model: None if model.transducer is None else model.transducer.output,
    available=lambda model: model.transducer is not None,
    own_part=lambda model: model.transducer,
    adjust=_adjust,
)
