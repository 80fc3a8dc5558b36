"""The transducer loss of an additive joint without its activations: tanh(encoder + predictor) → projection → loss.

Legend: B trials, S frames, U labels, W = U+1 rows of the lattice, H joint units, V symbols; C cells of a block.

Neither the B×S×W×H activations nor the B×S×W×V logits ever exist whole: both are made for a block of frames at a time
and thrown away, once to find the log-probabilities of the moves, once more in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch.autograd.function import once_differentiable

from sottovoce.losses.transducer import chosen_route, in_lattice_precision
from sottovoce.losses.transducer_reference import Reference, checked_reference
from sottovoce.losses.transducer_scan import label_per_row, read_moves, to_gradient

BLOCK: Final = 1 << 19
"""Activations worked on at a time: what the three arrays of this size need stays in a cache."""


def fused_transducer_loss(
    encoder_BSH: torch.Tensor,
    predictor_BUH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor,
    targets_BU: torch.Tensor,
    frame_lengths_B: torch.Tensor,
    target_lengths_B: torch.Tensor,
    blank: int = 0,
) -> torch.Tensor:
    """`transducer_loss` of `tanh(encoder + predictor) @ weight.T + bias`, with the same values and gradients.

    `predictor_BUH` has U+1 rows. Half precision is computed in float32 (autocast is off in here). Raises ValueError as
    `transducer_loss` does.
    """
    _check_shapes(encoder_BSH, predictor_BUH, weight_VH, bias_V)
    size = (encoder_BSH.shape[0], encoder_BSH.shape[1], predictor_BUH.shape[1], weight_VH.shape[0])
    reference = checked_reference(targets_BU, frame_lengths_B, target_lengths_B, size, blank)
    inputs = [in_lattice_precision(x).contiguous() for x in (encoder_BSH, predictor_BUH, weight_VH, bias_V)]
    nats_B: torch.Tensor = _FusedLoss.apply(*inputs, reference, chosen_route("auto", inputs[0]))  # type: ignore[no-untyped-call]
    return nats_B


def _check_shapes(
    encoder_BSH: torch.Tensor, predictor_BWH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor
) -> None:
    shapes = [list(x.shape) for x in (encoder_BSH, predictor_BWH, weight_VH, bias_V)]
    if [len(shape) for shape in shapes] != [3, 3, 2, 1]:
        raise ValueError(f"encoder, predictor, weight, bias must be [B, S, H], [B, U+1, H], [V, H], [V], not {shapes}")
    encoder, predictor, weight, bias = shapes
    if encoder[0] != predictor[0] or not encoder[2] == predictor[2] == weight[1] or weight[0] != bias[0]:
        raise ValueError(f"shapes of encoder, predictor, weight and bias do not fit: {shapes}")


class _FusedLoss(torch.autograd.Function):
    """Keeps its inputs and two numbers a cell."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        encoder_BSH, predictor_BWH, weight_VH, bias_V, reference, route = inputs
        joint = _Joint(encoder_BSH, predictor_BWH, weight_VH, bias_V)
        labels_BW = label_per_row(reference, encoder_BSH.device)
        log_p_B2SW = encoder_BSH.new_zeros(len(labels_BW), 2, encoder_BSH.shape[1], predictor_BWH.shape[1])
        with torch.autocast(encoder_BSH.device.type, enabled=False):
            for block in joint.blocks(reference):
                b, frames, rows = block
                log_p_SWV = torch.log_softmax(joint.logits(*block), -1)
                read_moves(log_p_SWV, labels_BW[b, rows], reference.blank, log_p_B2SW[b, :, frames, rows])
        nats_B, taken_B2SW = route.occupancies(log_p_B2SW, reference, any(ctx.needs_input_grad))
        ctx.save_for_backward(*inputs[:4], taken_B2SW)
        ctx.reference = reference
        result_B: torch.Tensor = nats_B.to(encoder_BSH.dtype)
        return result_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale_B: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, taken_B2SW = ctx.saved_tensors
        taken_B2SW = taken_B2SW * scale_B[:, None, None, None]
        joint, labels_BW = _Joint(*inputs), label_per_row(ctx.reference, scale_B.device)
        gradients = [torch.zeros_like(x) for x in inputs]
        with torch.autocast(scale_B.device.type, enabled=False):
            for block in joint.blocks(ctx.reference):
                b, frames, rows = block
                p_SWV = joint.logits(*block).softmax(-1)
                to_gradient(p_SWV, taken_B2SW[b, :, frames, rows], labels_BW[b, rows], ctx.reference.blank)
                joint.add_gradients(*block, p_SWV, gradients)
        return *gradients, None, None


class _Joint:
    """The joint network over one block of frames of one trial at a time."""

    def __init__(
        self, encoder_BSH: torch.Tensor, predictor_BWH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor
    ) -> None:
        self.encoder_BSH, self.predictor_BWH, self.weight_VH, self.bias_V = (
            encoder_BSH,
            predictor_BWH,
            weight_VH,
            bias_V,
        )
        num_rows, num_units = predictor_BWH.shape[1:]
        self.frames_at_once = max(1, BLOCK // (num_rows * num_units))
        self.hidden_CH, self.gradient_CH = encoder_BSH.new_empty(2, self.frames_at_once * num_rows, num_units)

    def blocks(self, reference: Reference) -> Iterator[tuple[int, slice, slice]]:
        """Trial, frames and rows of each block of the cells that trials fill."""
        for b, (frames, labels) in enumerate(
            zip(reference.frames_B.tolist(), reference.labels_B.tolist(), strict=True)
        ):
            for start in range(0, frames, self.frames_at_once):
                yield b, slice(start, min(start + self.frames_at_once, frames)), slice(0, labels + 1)

    def logits(self, b: int, frames: slice, rows: slice) -> torch.Tensor:
        """Logits [S, W, V] of a block; leaves its activations in `hidden_CH`."""
        shape = (frames.stop - frames.start, rows.stop)
        hidden_CH = self.hidden_CH[: shape[0] * shape[1]]
        torch.add(
            self.encoder_BSH[b, frames, None], self.predictor_BWH[b, None, rows], out=hidden_CH.view(*shape, -1)
        ).tanh_()
        logits_SWV: torch.Tensor = torch.addmm(self.bias_V, hidden_CH, self.weight_VH.T).view(*shape, -1)
        return logits_SWV

    def add_gradients(
        self, b: int, frames: slice, rows: slice, gradient_SWV: torch.Tensor, into: list[torch.Tensor]
    ) -> None:
        """Adds what the logits' gradient means for encoder, predictor, weight and bias; uses up the activations."""
        encoder_BSH, predictor_BWH, weight_VH, bias_V = into
        gradient_CV = gradient_SWV.flatten(0, 1)
        hidden_CH = self.hidden_CH[: len(gradient_CV)]
        weight_VH.addmm_(gradient_CV.T, hidden_CH)
        bias_V += gradient_CV.sum(0)
        gradient_CH = torch.mm(gradient_CV, self.weight_VH, out=self.gradient_CH[: len(gradient_CV)])
        gradient_CH.addcmul_(gradient_CH, hidden_CH.square_(), value=-1)
        gradient_SWH = gradient_CH.view(*gradient_SWV.shape[:2], -1)
        encoder_BSH[b, frames] = gradient_SWH.sum(1)
        predictor_BWH[b, rows] += gradient_SWH.sum(0)
