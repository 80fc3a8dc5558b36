"""CTC with the labels."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any, Final

import torch

from sottovoce.losses.ctc import ctc_loss
from sottovoce.runs.names import Metric
from sottovoce.training.branches.branch import Branch, Functions, PartInputs


def _nats(inputs: PartInputs, settings: Any, functions: Functions) -> torch.Tensor:
    return functions["ctc_loss"](inputs.ctc_logits_BSV, *inputs.targets, inputs.blank)


def _on_uniform_logits(frames: int, labels: int, symbols: int) -> float:
    """T ln V − ln C(T+U, 2U)."""
    return frames * math.log(symbols) - math.log(math.comb(frames + labels, 2 * labels))


def _adjust(
    nats_B: torch.Tensor, tokens_B: torch.Tensor, inputs: PartInputs, settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """A trial that nobody may teach gets back the weight that its teachers would have had."""
    targets = inputs.computed("teacher_targets")
    if targets is not None:
        assert inputs.teachers is not None
        alone = 1 / (1 - inputs.teachers.config.share)
        nats_B = nats_B * torch.where(targets.weights_BS.any(1), 1.0, alone)
    return nats_B, tokens_B


CTC: Final = Branch(
    name="ctc",
    component="ctc_decoder",
    metric=Metric.CTC_LOSS,
    compute=_nats,
    functions=MappingProxyType({"ctc_loss": ctc_loss}),
    default_weight=1.0,
    on_uniform_logits=_on_uniform_logits,
    output=lambda model: model.head,
    adjust=_adjust,
)
