"""The transducer loss compiled for CPUs: a pass over the logits for normalisers, the lattice, a pass for the gradient.

Legend: B trials, S frames, U labels, V symbols; W = U+1 rows of the lattice, N = S+U anti-diagonals.

The moves out of a cell are kept **by anti-diagonal**: those of (frame s, row u) at [s + u, u]. The cells of one
anti-diagonal depend only on the one before it, so the lattice runs along contiguous memory, several cells an
instruction. Exponentials and logarithms are polynomials instead of calls, because a compiler turns those into vector
instructions; their relative error is below 3e-7 in float32 and 1e-14 in float64 (tested). The lattice is float64.

The first call of a function compiles it and keeps the result on disk. All compiled functions stay in this one file,
since numba looks only at the file of the outermost one to see what has changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from numba import types
from numba.extending import intrinsic

from sottovoce.losses import transducer_reference
from sottovoce.losses.transducer_reference import BLANK, LABEL, Reference, empty_like

Function = TypeVar("Function", bound=Callable[..., Any])
Kept = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

NEVER: Final = np.float32(transducer_reference.NEVER)


def forward(logits_BSWV: torch.Tensor, reference: Reference, gradient: bool) -> tuple[torch.Tensor, Kept]:
    """See `Route`. Keeps ln Σ e^logit in two parts (largest logit, rest) and the occupancies of the two moves."""
    num_trials, num_frames, num_rows, _ = logits_BSWV.shape
    normalisers_BS2W = np.empty((num_trials, num_frames, 2, num_rows), np.float32)
    moves_B2NW = np.empty((num_trials, 2, num_frames + num_rows - 1, num_rows), np.float32)
    nats_B = np.empty(num_trials)
    with _threads() as workers:
        _moves(logits_BSWV.detach().numpy(), *_arrays(reference), normalisers_BS2W, moves_B2NW, workers)
        _lattice(moves_B2NW, reference.frames_B, reference.labels_B, gradient, nats_B)
    return torch.from_numpy(nats_B), (normalisers_BS2W, moves_B2NW)


def backward(logits_BSWV: torch.Tensor, reference: Reference, kept: Kept, scale_B: torch.Tensor) -> torch.Tensor:
    """See `Route`."""
    gradient_BSWV = empty_like(logits_BSWV)
    out = gradient_BSWV.numpy()
    with _threads() as workers:
        _gradient(logits_BSWV.detach().numpy(), *_arrays(reference), *kept, scale_B.contiguous().numpy(), out, workers)
    return gradient_BSWV


def occupancies(log_p_B2SW: torch.Tensor, reference: Reference, gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Route`."""
    num_trials, _, num_frames, num_rows = log_p_B2SW.shape
    moves_B2NW = torch.zeros(num_trials, 2, num_frames + num_rows - 1, num_rows)
    stride = moves_B2NW.stride()
    by_frame_B2SW = moves_B2NW.as_strided(log_p_B2SW.shape, (*stride[:2], num_rows, num_rows + 1))
    by_frame_B2SW.copy_(log_p_B2SW).clamp_(min=transducer_reference.NEVER)
    nats_B = np.empty(num_trials)
    with _threads():
        _lattice(moves_B2NW.numpy(), reference.frames_B, reference.labels_B, gradient, nats_B)
    taken_B2SW = by_frame_B2SW.contiguous()
    for b, (frames, labels) in enumerate(zip(reference.frames_B, reference.labels_B, strict=True)):
        taken_B2SW[b, :, frames:] = 0
        taken_B2SW[b, :, :, labels + 1 :] = 0
    return torch.from_numpy(nats_B), taken_B2SW


def _arrays(reference: Reference) -> tuple[Integers, Integers, Integers, int]:
    return reference.targets_BU, reference.frames_B, reference.labels_B, reference.blank


@contextmanager
def _threads() -> Iterator[int]:
    """As many threads as PyTorch uses, if numba has that many."""
    threads = torch.get_num_threads()
    before = numba.get_num_threads()
    if torch.get_num_threads() != threads:  # numba's first call sets the number that OpenMP keeps for both
        torch.set_num_threads(threads)
    workers = min(threads, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(workers)
    try:
        yield workers
    finally:
        numba.set_num_threads(before)


def _compiled(*flags: str, parallel: bool = False) -> Callable[[Function], Function]:
    """Compiled at the first call; a division by 0 is not checked. `flags` are LLVM's, beside fused multiply-adds."""
    made = numba.njit(cache=True, fastmath={"contract", *flags}, error_model="numpy", parallel=parallel)
    return cast(Callable[[Function], Function], made)


def _on_threads(function: Function) -> Function:
    """Compiled twice: for several threads, and for one, which then hands nothing to numba's pool and waits for nobody.

    A thread that shares its core with other work may wait some hundredths of a second for its turn.
    """
    alone = FunctionType(function.__code__, function.__globals__, f"{function.__name__}_alone")
    alone.__qualname__ = alone.__name__  # numba's store of compiled functions goes by it
    compiled, compiled_alone = _compiled(parallel=True)(function), _compiled()(alone)

    def call(*arguments: Any) -> None:
        (compiled_alone if numba.get_num_threads() == 1 else compiled)(*arguments)

    return cast(Function, call)


def _reinterpreted(signatures: dict[Any, Any]) -> Any:
    """A compiled function that reads the bits of a number as another type of the same width."""

    def typed(typing_context: Any, value: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

        return signatures[value](value), code

    return intrinsic(typed)


_bits = _reinterpreted({types.float32: types.int32, types.float64: types.int64})
_number = _reinterpreted({types.int32: types.float32, types.int64: types.float64})

# e^x for x ≤ 0: x = k·ln 2 + r with |r| ≤ ln 2 / 2; e^r by its series, 2^k by writing k into the exponent's bits.
# Adding ROUND rounds to a whole number and leaves it, the exponent's bias included, in the lowest bits. ln 2 comes in
# two parts, of which the first times k is exact.
ROUND_32, LOWEST_32, LOG2_E_32 = np.float32(1.5 * 2**23 + 127), np.float32(-87.3), np.float32(1 / math.log(2))
LN2_HIGH_32, LN2_LOW_32 = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
ROUND_64, LOWEST_64, LOG2_E_64 = 1.5 * 2**52 + 1023, -708.0, 1 / math.log(2)
LN2_HIGH_64, LN2_LOW_64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # fdlibm's
ONE = np.float32(1)
C2, C3, C4, C5, C6, C7 = (np.float32(1 / math.factorial(i)) for i in range(2, 8))
D2, D3, D4, D5, D6, D7, D8, D9, D10, D11, D12, D13 = (1 / math.factorial(i) for i in range(2, 14))


@_compiled()
def _exp_32(x: Any) -> Any:
    bounded = LOWEST_32 if x < LOWEST_32 else x  # a NaN stays one
    shifted = bounded * LOG2_E_32 + ROUND_32
    k = shifted - ROUND_32
    r = bounded - k * LN2_HIGH_32 - k * LN2_LOW_32
    series = ((((((C7 * r + C6) * r + C5) * r + C4) * r + C3) * r + C2) * r + ONE) * r + ONE
    power = _number(np.int32(_bits(shifted) << np.int32(23)))
    return np.float32(0) if x < LOWEST_32 else series * power


@_compiled()
def _exp_64(x: Any) -> Any:
    bounded = LOWEST_64 if x < LOWEST_64 else x
    shifted = bounded * LOG2_E_64 + ROUND_64
    k = shifted - ROUND_64
    r = bounded - k * LN2_HIGH_64 - k * LN2_LOW_64
    series = ((((((D13 * r + D12) * r + D11) * r + D10) * r + D9) * r + D8) * r + D7) * r + D6
    series = (((((series * r + D5) * r + D4) * r + D3) * r + D2) * r + 1.0) * r + 1.0
    power = _number(np.int64(_bits(shifted) << np.int64(52)))
    return 0.0 if x < LOWEST_64 else series * power


@_compiled()
def _log_1_to_2(q: Any) -> Any:
    """ln x for x from 1 to 2 by its series in q = (x − 1) / (x + 1) ≤ 1/3: ln x = 2·artanh q."""
    s = q * q
    series = ((((((s / 29 + 1 / 27) * s + 1 / 25) * s + 1 / 23) * s + 1 / 21) * s + 1 / 19) * s + 1 / 17) * s + 1 / 15
    series = ((((((series * s + 1 / 13) * s + 1 / 11) * s + 1 / 9) * s + 1 / 7) * s + 1 / 5) * s + 1 / 3) * s + 1.0
    return 2.0 * q * series


@_compiled()
def _log_add(a: Any, b: Any) -> Any:
    y = _exp_64(-abs(a - b))
    return (a if a > b else b) + _log_1_to_2(y / (2.0 + y))


@_compiled()
def _logs(values: Floats) -> None:
    """ln of numbers ≥ 1, in place: 2^k·m, k and m read from the bits."""
    for i in range(len(values)):
        bits = _bits(np.float64(values[i]))
        k = np.float64((bits >> np.int64(52)) - np.int64(1023))
        m = _number((bits & np.int64(0xFFFFFFFFFFFFF)) | np.int64(1023 << 52))
        log = k * math.log(2) + _log_1_to_2((m - 1.0) / (m + 1.0))
        values[i] = log if values[i] < np.inf else np.nan


@_compiled()
def _in_order(bits: Any) -> Any:
    """Maps a float's bits to integers in the order of the floats, and back."""
    return np.int32(bits ^ np.int32(np.int32(bits >> 31) & 0x7FFFFFFF))


@_compiled()
def _largest(values_WV: Floats, largest_W: Floats) -> None:
    """Compares integers: that needs no rule for NaN, and so becomes vector code."""
    for u in range(len(largest_W)):
        found = np.int32(-(2**31))
        for v in range(values_WV.shape[1]):
            found = np.int32(max(found, _in_order(_bits(values_WV[u, v]))))
        largest_W[u] = _number(_in_order(found))


@_compiled("reassoc", "nsz")
def _sum_of_exp(values_WV: Floats, largest_W: Floats, sum_W: Floats) -> None:
    for u in range(len(sum_W)):
        total, largest = np.float32(0), largest_W[u]
        for v in range(values_WV.shape[1]):
            total += _exp_32(values_WV[u, v] - largest)
        sum_W[u] = total


@_compiled()
def _moves_of_frame(
    logits_WV: Floats, targets_U: Integers, blank: int, s: int, normaliser_2W: Floats, moves_2NW: Floats
) -> None:
    """Fills one frame's normalisers and the log-probabilities of its moves."""
    largest_W, log_sum_W = normaliser_2W[0], normaliser_2W[1]
    _largest(logits_WV, largest_W)
    _sum_of_exp(logits_WV, largest_W, log_sum_W)
    _logs(log_sum_W)
    for u in range(len(largest_W)):
        log_p = (logits_WV[u, blank] - largest_W[u]) - log_sum_W[u]
        moves_2NW[BLANK, s + u, u] = NEVER if log_p < NEVER else log_p
    for u in range(len(largest_W) - 1):
        log_p = (logits_WV[u, targets_U[u]] - largest_W[u]) - log_sum_W[u]
        moves_2NW[LABEL, s + u, u] = NEVER if log_p < NEVER else log_p


@_compiled()
def _forward(blank_NW: Floats, label_NW: Floats, frames: int, labels: int, alpha_NW: Doubles) -> Any:
    """α of every cell; gives ln P."""
    alpha_NW[0, 0] = 0.0
    for n in range(1, frames + labels):
        before, blank, label, alpha = alpha_NW[n - 1], blank_NW[n - 1], label_NW[n - 1], alpha_NW[n]
        if n < frames:
            alpha[0] = before[0] + blank[0]
        first, last = max(1, n - frames + 1), min(labels, n - 1)
        # Slices, so that no index can be negative: otherwise numba tests its sign, and no vector code comes out.
        there, here, blank = alpha[first : last + 1], before[first : last + 1], blank[first : last + 1]
        below, label_below = before[first - 1 : last], label[first - 1 : last]
        for i in range(len(there)):
            there[i] = _log_add(here[i] + blank[i], below[i] + label_below[i])
        if n <= labels:
            alpha[n] = before[n - 1] + label[n - 1]
    last = frames + labels - 1
    return alpha_NW[last, labels] + blank_NW[last, labels]


@_compiled()
def _backward(blank_NW: Floats, label_NW: Floats, frames: int, labels: int, alpha_NW: Doubles, log_p: Any) -> None:
    """Replaces ln p of the moves out of every cell by the probability of taking them: e^(α + ln p + β − ln P)."""
    last = frames + labels - 1
    beta_2W = np.empty((2, labels + 1), np.float64)
    beta_2W[last % 2, labels] = blank_NW[last, labels]
    blank_NW[last, labels] = _exp_64(alpha_NW[last, labels] + blank_NW[last, labels] - log_p)
    label_NW[last, labels] = 0
    for n in range(last - 1, -1, -1):
        after, beta = beta_2W[(n + 1) % 2], beta_2W[n % 2]
        blank, label, alpha = blank_NW[n], label_NW[n], alpha_NW[n]
        u = n - frames + 1
        if u >= 0:  # last frame: only labels are left
            beta[u] = after[u + 1] + label[u]
            blank[u] = 0
            label[u] = _exp_64(alpha[u] + beta[u] - log_p)
        if labels <= n and n - labels < frames - 1:  # last row: only blanks are left
            beta[labels] = after[labels] + blank[labels]
            blank[labels] = _exp_64(alpha[labels] + beta[labels] - log_p)
            label[labels] = 0
        first, stop = max(0, u + 1), min(labels, n + 1)
        _backward_inside(
            after[first:stop], after[first + 1 : stop + 1], alpha[first:stop], log_p,
            blank[first:stop], label[first:stop], beta[first:stop],
        )  # fmt: skip


@_compiled()
def _backward_inside(
    after: Doubles, after_above: Doubles, alpha: Doubles, log_p: Any, blank: Floats, label: Floats, beta: Doubles
) -> None:
    for i in range(len(beta)):
        stay, step = after[i] + blank[i], after_above[i] + label[i]
        beta[i] = _log_add(stay, step)
        blank[i] = _exp_64(alpha[i] + stay - log_p)
        label[i] = _exp_64(alpha[i] + step - log_p)


@_compiled()
def _scaled_softmax(logits_WV: Floats, normaliser_2W: Floats, factor_W: Floats, out_WV: Floats) -> None:
    for u in range(len(factor_W)):
        largest, log_sum, factor = normaliser_2W[0, u], normaliser_2W[1, u], factor_W[u]
        if factor == 0:  # no path comes here, as far as float32 can tell
            out_WV[u] = 0
        else:
            for v in range(logits_WV.shape[1]):
                out_WV[u, v] = factor * _exp_32((logits_WV[u, v] - largest) - log_sum)


@_compiled()
def _gradient_of_frame(
    logits_WV: Floats, targets_U: Integers, blank: int, s: int, normaliser_2W: Floats, moves_2NW: Floats, scale: Any,
    out_WV: Floats,
) -> None:  # fmt: skip
    """`scale` · (p · occupancy of the cell − occupancies of the two moves) for one frame."""
    num_rows = len(out_WV)
    taken_2W = np.empty((2, num_rows), np.float32)
    for u in range(num_rows):
        taken_2W[BLANK, u], taken_2W[LABEL, u] = scale * moves_2NW[BLANK, s + u, u], scale * moves_2NW[LABEL, s + u, u]
    _scaled_softmax(logits_WV, normaliser_2W, taken_2W[BLANK] + taken_2W[LABEL], out_WV)
    for u in range(num_rows):
        out_WV[u, blank] -= taken_2W[BLANK, u]
    for u in range(num_rows - 1):
        out_WV[u, targets_U[u]] -= taken_2W[LABEL, u]


@_on_threads
def _moves(
    logits_BSWV: Floats, targets_BU: Integers, frames_B: Integers, labels_B: Integers, blank: int,
    normalisers_BS2W: Floats, moves_B2NW: Floats, workers: int,
) -> None:  # fmt: skip
    num_trials, num_frames = logits_BSWV.shape[:2]
    for worker in numba.prange(workers):
        for task in range(worker, num_trials * num_frames, workers):
            b, s = task // num_frames, task % num_frames
            rows = labels_B[b] + 1
            if s < frames_B[b]:
                _moves_of_frame(
                    logits_BSWV[b, s, :rows], targets_BU[b], blank, s, normalisers_BS2W[b, s, :, :rows], moves_B2NW[b]
                )


@_on_threads
def _lattice(moves_B2NW: Floats, frames_B: Integers, labels_B: Integers, gradient: bool, nats_B: Doubles) -> None:
    num_diagonals, num_rows = moves_B2NW.shape[2:]
    for b in numba.prange(len(nats_B)):
        alpha_NW = np.empty((num_diagonals, num_rows), np.float64)
        log_p = _forward(moves_B2NW[b, BLANK], moves_B2NW[b, LABEL], frames_B[b], labels_B[b], alpha_NW)
        if log_p < NEVER / 2:  # there is no path: no gradient either, not even 0
            nats_B[b], log_p = np.inf, np.nan
        else:
            nats_B[b] = -log_p
        if gradient:
            _backward(moves_B2NW[b, BLANK], moves_B2NW[b, LABEL], frames_B[b], labels_B[b], alpha_NW, log_p)


@_on_threads
def _gradient(
    logits_BSWV: Floats, targets_BU: Integers, frames_B: Integers, labels_B: Integers, blank: int,
    normalisers_BS2W: Floats, moves_B2NW: Floats, scale_B: Floats, out_BSWV: Floats, workers: int,
) -> None:  # fmt: skip
    num_trials, num_frames = logits_BSWV.shape[:2]
    for worker in numba.prange(workers):
        for task in range(worker, num_trials * num_frames, workers):
            b, s = task // num_frames, task % num_frames
            rows = labels_B[b] + 1 if s < frames_B[b] else 0
            if rows > 0:
                _gradient_of_frame(
                    logits_BSWV[b, s, :rows], targets_BU[b], blank, s, normalisers_BS2W[b, s, :, :rows], moves_B2NW[b],
                    scale_B[b], out_BSWV[b, s, :rows],
                )  # fmt: skip
            out_BSWV[b, s, rows:] = 0
