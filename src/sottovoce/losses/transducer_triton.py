"""The transducer loss as Triton kernels for CUDA. Checked in Triton's interpreter only: no GPU has run it yet.

Legend: B trials, S frames, U labels, V symbols; W = U+1 rows of the lattice, N = S+U anti-diagonals.

Three kernels: a program a cell finds the log-probabilities of its moves; a program a trial runs the float64 lattice,
one anti-diagonal a step; a program a cell writes its gradient. Moves lie by anti-diagonal, as in `transducer_numba`.
Importing this module needs triton, which comes with PyTorch's CUDA builds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import triton
import triton.language as tl

from sottovoce.losses import transducer_reference
from sottovoce.losses.transducer_reference import Reference

Kept = tuple[torch.Tensor, torch.Tensor]
_kernel: Callable[[Any], Any] = triton.jit
NEVER: Final = tl.constexpr(transducer_reference.NEVER)
NO_PATH: Final = tl.constexpr(-1e30)
"""α and β of what is no cell."""


def forward(logits_BSWV: torch.Tensor, reference: Reference, gradient: bool) -> tuple[torch.Tensor, Kept]:
    """See `Route`. Keeps ln Σ e^logit in two parts (largest logit, rest) and the occupancies of the two moves."""
    num_trials, num_frames, num_rows, num_symbols = logits_BSWV.shape
    normalisers_2BSW = logits_BSWV.new_empty(2, num_trials, num_frames, num_rows)
    moves_B2NW = logits_BSWV.new_empty(num_trials, 2, num_frames + num_rows - 1, num_rows)
    targets_BU, frames_B, labels_B = _tensors(reference, logits_BSWV.device)
    _moves_kernel[(num_trials * num_frames * num_rows,)](
        logits_BSWV, targets_BU, frames_B, labels_B, normalisers_2BSW, moves_B2NW, reference.blank,
        num_trials, num_frames, num_rows, num_symbols, SYMBOLS=triton.next_power_of_2(num_symbols),
    )  # fmt: skip
    return _run_lattice(moves_B2NW, reference, gradient), (normalisers_2BSW, moves_B2NW)


def backward(logits_BSWV: torch.Tensor, reference: Reference, kept: Kept, scale_B: torch.Tensor) -> torch.Tensor:
    """See `Route`."""
    num_trials, num_frames, num_rows, num_symbols = logits_BSWV.shape
    gradient_BSWV = torch.empty_like(logits_BSWV)
    _gradient_kernel[(num_trials * num_frames * num_rows,)](
        logits_BSWV, *_tensors(reference, logits_BSWV.device), *kept, scale_B.contiguous(), gradient_BSWV,
        reference.blank, num_trials, num_frames, num_rows, num_symbols, SYMBOLS=triton.next_power_of_2(num_symbols),
    )  # fmt: skip
    return gradient_BSWV


def occupancies(log_p_B2SW: torch.Tensor, reference: Reference, gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Route`."""
    num_trials, _, num_frames, num_rows = log_p_B2SW.shape
    moves_B2NW = log_p_B2SW.new_zeros(num_trials, 2, num_frames + num_rows - 1, num_rows)
    stride = moves_B2NW.stride()
    by_frame_B2SW = moves_B2NW.as_strided(log_p_B2SW.shape, (*stride[:2], num_rows, num_rows + 1))
    by_frame_B2SW.copy_(log_p_B2SW).clamp_(min=transducer_reference.NEVER)
    nats_B, taken_B2SW = _run_lattice(moves_B2NW, reference, gradient), by_frame_B2SW.contiguous()
    for b, (frames, labels) in enumerate(zip(reference.frames_B, reference.labels_B, strict=True)):
        taken_B2SW[b, :, frames:] = 0
        taken_B2SW[b, :, :, labels + 1 :] = 0
    return nats_B, taken_B2SW


def _run_lattice(moves_B2NW: torch.Tensor, reference: Reference, gradient: bool) -> torch.Tensor:
    num_trials, _, num_diagonals, num_rows = moves_B2NW.shape
    alpha_BNW, beta_BNW = moves_B2NW.new_empty(2, num_trials, num_diagonals, num_rows, dtype=torch.float64)
    nats_B: torch.Tensor = alpha_BNW.new_empty(num_trials)
    _, frames_B, labels_B = _tensors(reference, moves_B2NW.device)
    _lattice_kernel[(num_trials,)](
        moves_B2NW, frames_B, labels_B, alpha_BNW, beta_BNW, nats_B, num_diagonals, num_rows,
        ROWS=triton.next_power_of_2(num_rows), GRADIENT=gradient,
    )  # fmt: skip
    return nats_B


def _tensors(reference: Reference, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    targets_BU, frames_B, labels_B = (
        torch.from_numpy(x).to(device) for x in (reference.targets_BU, reference.frames_B, reference.labels_B)
    )
    return targets_BU, frames_B, labels_B


@_kernel
def _place(num_frames: Any, num_rows: Any) -> Any:
    """Trial, frame and row of this program's cell; whole numbers of 64 bits, for large tensors."""
    cell = tl.program_id(0).to(tl.int64)
    return cell, cell // (num_frames * num_rows), cell // num_rows % num_frames, cell % num_rows


@_kernel
def _moves_kernel(
    logits: Any, targets: Any, frames: Any, labels: Any, normalisers: Any, moves: Any, blank: Any,
    num_trials: Any, num_frames: Any, num_rows: Any, num_symbols: Any, SYMBOLS: tl.constexpr,
) -> None:  # fmt: skip
    cell, b, s, u = _place(num_frames, num_rows)
    if (s < tl.load(frames + b)) & (u <= tl.load(labels + b)):
        v = tl.arange(0, SYMBOLS)
        values = tl.load(logits + cell * num_symbols + v, mask=v < num_symbols, other=float("-inf"))
        largest = tl.max(values, axis=0)
        log_sum = tl.log(tl.sum(tl.exp(values - largest), axis=0))
        tl.store(normalisers + cell, largest)
        tl.store(normalisers + num_trials * num_frames * num_rows + cell, log_sum)
        num_diagonals = num_frames + num_rows - 1
        place = moves + (b * 2 * num_diagonals + s + u) * num_rows + u
        log_p = tl.load(logits + cell * num_symbols + blank) - largest - log_sum
        tl.store(place, tl.where(log_p < NEVER, NEVER, log_p))
        if u < tl.load(labels + b):
            label = tl.load(targets + b * (num_rows - 1) + u)
            log_p = tl.load(logits + cell * num_symbols + label) - largest - log_sum
            tl.store(place + num_diagonals * num_rows, tl.where(log_p < NEVER, NEVER, log_p))


@_kernel
def _log_add(a: Any, b: Any) -> Any:
    return tl.where(a > b, a, b) + tl.log(1.0 + tl.exp(-tl.abs(a - b)))


@_kernel
def _lattice_kernel(
    moves: Any, frames: Any, labels: Any, alpha: Any, beta: Any, nats: Any, num_diagonals: Any, num_rows: Any,
    ROWS: tl.constexpr, GRADIENT: tl.constexpr,
) -> None:  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    num_frames, num_labels = tl.load(frames + b), tl.load(labels + b)
    u = tl.arange(0, ROWS)
    blanks = moves + b * 2 * num_diagonals * num_rows + u
    steps = blanks + num_diagonals * num_rows
    alpha += b * num_diagonals * num_rows + u
    beta += b * num_diagonals * num_rows + u
    last = num_frames + num_labels - 1
    tl.store(alpha, tl.where(u == 0, 0.0, NO_PATH).to(tl.float64), mask=u < num_rows)
    for n in range(1, last + 1):
        tl.debug_barrier()  # α of the anti-diagonal before has been written by other threads
        before = (n - 1) * num_rows
        here = (u <= num_labels) & (n - 1 - u >= 0) & (n - 1 - u < num_frames)
        stay = tl.load(alpha + before, mask=here, other=NO_PATH) + tl.load(blanks + before, mask=here, other=0.0)
        below = (u >= 1) & (u <= num_labels) & (n - u >= 0) & (n - u < num_frames)
        step = tl.load(alpha + before - 1, mask=below, other=NO_PATH)
        step += tl.load(steps + before - 1, mask=below, other=0.0)
        tl.store(alpha + n * num_rows, _log_add(stay, step), mask=u < num_rows)
    tl.debug_barrier()
    end = last * num_rows + num_labels
    log_p = tl.load(alpha - u + end + tl.zeros_like(u)) + tl.load(blanks - u + end + tl.zeros_like(u))
    tl.store(nats + b + u, tl.where(log_p < NEVER / 2, float("inf"), -log_p), mask=u == 0)
    if GRADIENT:
        log_p = tl.where(log_p < NEVER / 2, float("nan"), log_p)
        for back in range(last + 1):
            tl.debug_barrier()
            n = last - back
            inside = (u <= num_labels) & (n - u >= 0) & (n - u < num_frames)
            above = inside & (u < num_labels)
            beside = inside & (n - u < num_frames - 1)
            ahead = tl.load(beta + (n + 1) * num_rows, mask=beside, other=NO_PATH)
            ahead = tl.where((u == num_labels) & (n == last), 0.0, ahead)
            stay = ahead + tl.load(blanks + n * num_rows, mask=inside, other=0.0)
            step = tl.load(beta + (n + 1) * num_rows + 1, mask=above, other=NO_PATH)
            step += tl.load(steps + n * num_rows, mask=above, other=0.0)
            start = tl.load(alpha + n * num_rows, mask=inside, other=0.0) - log_p
            tl.store(beta + n * num_rows, _log_add(stay, step), mask=inside)
            tl.store(blanks + n * num_rows, tl.exp(start + stay).to(tl.float32), mask=inside)
            tl.store(steps + n * num_rows, tl.exp(start + step).to(tl.float32), mask=inside)


@_kernel
def _gradient_kernel(
    logits: Any, targets: Any, frames: Any, labels: Any, normalisers: Any, moves: Any, scale: Any, out: Any, blank: Any,
    num_trials: Any, num_frames: Any, num_rows: Any, num_symbols: Any, SYMBOLS: tl.constexpr,
) -> None:  # fmt: skip
    cell, b, s, u = _place(num_frames, num_rows)
    v = tl.arange(0, SYMBOLS)
    gradient = tl.zeros([SYMBOLS], tl.float32)
    num_labels = tl.load(labels + b)
    if (s < tl.load(frames + b)) & (u <= num_labels):
        num_diagonals = num_frames + num_rows - 1
        place = moves + (b * 2 * num_diagonals + s + u) * num_rows + u
        on_blank = tl.load(scale + b) * tl.load(place)
        on_label = tl.load(scale + b) * tl.load(place + num_diagonals * num_rows)
        largest = tl.load(normalisers + cell)
        log_sum = tl.load(normalisers + num_trials * num_frames * num_rows + cell)
        values = tl.load(logits + cell * num_symbols + v, mask=v < num_symbols, other=float("-inf"))
        label = tl.load(targets + b * (num_rows - 1) + u, mask=u < num_labels, other=-1)
        gradient = (on_blank + on_label) * tl.exp(values - largest - log_sum)
        gradient -= tl.where(v == blank, on_blank, 0.0) + tl.where(v == label, on_label, 0.0)
    tl.store(out + cell * num_symbols + v, gradient, mask=v < num_symbols)
