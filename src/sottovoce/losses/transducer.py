"""Transducer (RNN-T) loss, per utterance, in nats.

Legend: B trials, S frames, U labels, V symbols; W = U+1 rows of the lattice. Source: Graves 2012, "Sequence
transduction with recurrent neural networks".
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.autograd.function import once_differentiable

from sottovoce.losses import transducer_scan
from sottovoce.losses.precision import refuse_half_precision
from sottovoce.losses.transducer_reference import Reference, Route, checked_reference

ROUTES: Final = ("auto", "compiled", "scan", "triton")


def transducer_loss(
    logits_BSUV: torch.Tensor,
    targets_BU: torch.Tensor,
    logit_lengths_B: torch.Tensor,
    target_lengths_B: torch.Tensor,
    blank: int = 0,
    route: str = "auto",
) -> torch.Tensor:
    """−ln of the summed probability of all alignments of each target, float32 [B] in nats.

    `logits_BSUV` has U+1 rows: row u scores what follows the first u labels. Several labels may share a frame: one
    frame is enough for any target. An empty target has one path, of blanks. Half-precision logits are computed in
    float32, float64 ones in float64 (and so are the nats); the lattice is always float64. What the logits hold in the
    padding does not matter, and their gradient there is 0. A trial whose logits hold a NaN or +inf, or leave its target
    no possible path, has a non-finite loss and gradient, never a number: the guard names it.

    `route` says what computes: `auto` is `compiled` for float32 on a CPU (numba; it compiles at the first call, and
    keeps the result) and `scan` elsewhere (plain PyTorch); `triton`, for float32 on CUDA, has to be asked for while
    no GPU has run it. All agree.

    Raises ValueError, naming the utterance, for lengths that leave the tensors (0 frames too), a blank inside a target
    and labels that are no symbol.

    >>> logits = torch.zeros(1, 50, 11, 41)
    >>> nats = transducer_loss(logits, torch.arange(1, 11)[None], torch.tensor([50]), torch.tensor([10]))
    >>> round(nats.item(), 4)  # 60·ln 41 − ln C(59, 10)
    197.9507
    """
    if logits_BSUV.dim() != 4:
        raise ValueError(f"logits must be [trials, frames, labels + 1, symbols], not {list(logits_BSUV.shape)}")
    size = (logits_BSUV.shape[0], logits_BSUV.shape[1], logits_BSUV.shape[2], logits_BSUV.shape[3])
    reference = checked_reference(targets_BU, logit_lengths_B, target_lengths_B, size, blank)
    logits_BSUV = in_lattice_precision(logits_BSUV)
    nats_B: torch.Tensor = _TransducerLoss.apply(logits_BSUV.contiguous(), reference, chosen_route(route, logits_BSUV))  # type: ignore[no-untyped-call]
    return nats_B


def in_lattice_precision(values: torch.Tensor) -> torch.Tensor:
    """float64 stays; all else becomes float32.

    Raises:
        ValueError: float16, which overflows at 65,504 before a loss could see it.
    """
    refuse_half_precision(values)
    return values if values.dtype == torch.float64 else values.float()


def chosen_route(name: str, values: torch.Tensor) -> Route:
    """The module that computes on `values`' device and precision. Imported only here: numba takes a second."""
    device, single = values.device.type, values.dtype == torch.float32
    if name not in ROUTES:
        raise ValueError(f"route must be one of {', '.join(ROUTES)}, not {name!r}")
    if name == "auto":
        name = "compiled" if device == "cpu" and single else "scan"
    if name == "scan":
        return transducer_scan
    needed = {"compiled": "cpu", "triton": "cuda"}[name]
    if device != needed or not single:
        raise ValueError(f"route {name!r} needs float32 on {needed}, not {values.dtype} on {device}")
    route: Route
    if name == "compiled":
        from sottovoce.losses import transducer_numba as route
    else:
        from sottovoce.losses import transducer_triton as route
    return route


class _TransducerLoss(torch.autograd.Function):
    """Keeps the logits and a few numbers a cell; the gradient, as large as the logits, is made in the backward pass."""

    @staticmethod
    def forward(ctx: Any, logits_BSWV: torch.Tensor, reference: Reference, route: Route) -> torch.Tensor:
        nats_B, ctx.kept = route.forward(logits_BSWV, reference, ctx.needs_input_grad[0])
        ctx.save_for_backward(logits_BSWV)
        ctx.reference, ctx.route = reference, route
        return nats_B.to(logits_BSWV.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale_B: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (logits_BSWV,) = ctx.saved_tensors
        return ctx.route.backward(logits_BSWV, ctx.reference, ctx.kept, scale_B), None, None
