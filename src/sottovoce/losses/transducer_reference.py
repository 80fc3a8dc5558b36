"""What a transducer loss is asked to align, checked, and what its routes have in common.

Legend: B trials, S frames, U labels, W = U+1 rows of the lattice, V symbols.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

NEVER: Final = -1e9
"""Log-probability of what cannot happen, and the least that counts as possible.

Not −inf, of which −inf − (−inf) would make a NaN; not less, because sums with it have to keep 1e-6 nats in float64.
"""
BLANK, LABEL = 0, 1
"""The two moves out of a cell: to the next frame, and to the next row."""


@dataclass(frozen=True)
class Reference:
    """The targets of a batch and the part of the padded lattice that each trial fills."""

    targets_BU: npt.NDArray[np.int64]
    """Labels; `blank` in the padding."""
    frames_B: npt.NDArray[np.int64]
    labels_B: npt.NDArray[np.int64]
    blank: int


class Route(Protocol):
    """One way to compute the loss: a module with these functions."""

    def forward(self, logits_BSWV: torch.Tensor, reference: Reference, gradient: bool) -> tuple[torch.Tensor, Any]:
        """Float64 nats [B], and what `backward` needs beside the logits, if a `gradient` is wanted."""

    def backward(
        self, logits_BSWV: torch.Tensor, reference: Reference, kept: Any, scale_B: torch.Tensor
    ) -> torch.Tensor:
        """Gradient of Σ scale·nats with respect to the logits."""

    def occupancies(
        self, log_p_B2SW: torch.Tensor, reference: Reference, gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Float64 nats [B], and the probability that a path takes each move, 0 outside of a trial's own lattice."""


def checked_reference(
    targets_BU: torch.Tensor,
    frame_lengths_B: torch.Tensor,
    target_lengths_B: torch.Tensor,
    size: tuple[int, int, int, int],
    blank: int,
) -> Reference:
    """`targets_BU` and the lengths as arrays.

    `size` is the lattice's B, S, W, V. Raises ValueError, naming the utterance, for lengths outside the tensors, for a
    blank inside a target and for a label that is no symbol.
    """
    num_trials, num_frames, num_rows, num_symbols = size
    _check_shape("targets", targets_BU, (num_trials, num_rows - 1), "one row of the lattice more than labels")
    _check_shape("frame lengths", frame_lengths_B, (num_trials,), "one a trial")
    _check_shape("target lengths", target_lengths_B, (num_trials,), "one a trial")
    if not 0 <= blank < num_symbols:
        raise ValueError(f"blank is {blank}, but the {num_symbols} symbols are 0 to {num_symbols - 1}")
    frames_B, labels_B = _array(frame_lengths_B), _array(target_lengths_B)
    for name, lengths_B, least, most in (("frames", frames_B, 1, num_frames), ("labels", labels_B, 0, num_rows - 1)):
        for b in np.flatnonzero((lengths_B < least) | (lengths_B > most)):
            raise ValueError(f"utterance {b}: {lengths_B[b]} {name}, but it must be {least} to {most}")
    targets = _array(targets_BU)
    inside_BU = np.arange(num_rows - 1) < labels_B[:, None]
    for b, u in np.argwhere(inside_BU & ((targets < 0) | (targets >= num_symbols))):
        raise ValueError(f"utterance {b}: label {u} is {targets[b, u]}, but symbols are 0 to {num_symbols - 1}")
    for b, u in np.argwhere(inside_BU & (targets == blank)):
        raise ValueError(
            f"utterance {b}: label {u} is the blank ({blank}); is the target's length that of its padding?"
        )
    return Reference(np.where(inside_BU, targets, blank), frames_B, labels_B, blank)


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """Memory for a tensor as large as the logits; NumPy's on a CPU, which asks the system for huge pages.

    Touching 80 MiB for the first time, page by page, costs more than computing the gradient that fills them.
    """
    if tensor.device.type != "cpu":
        return torch.empty_like(tensor)
    return torch.from_numpy(np.empty(tensor.shape, tensor.detach()[..., :0].numpy().dtype))


def _check_shape(name: str, values: torch.Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if tuple(values.shape) != shape or values.is_floating_point() or values.dtype == torch.bool:
        raise ValueError(
            f"{name} must be whole numbers of shape {list(shape)} ({meaning}), not {values.dtype} {list(values.shape)}"
        )


def _array(values: torch.Tensor) -> npt.NDArray[np.int64]:
    array: npt.NDArray[np.int64] = values.detach().cpu().numpy().astype(np.int64)
    return array
