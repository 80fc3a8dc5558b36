"""The transducer loss in plain PyTorch, on any device, in float32 or float64: one vectorised scan along time a row.

Legend: B trials, S frames, U labels, W = U+1 rows of the lattice, V symbols.

With c_u(s) the sum of ln p(blank) in row u over the frames before s, α of a row follows from the row below by

    α_u − c_u = logcumsumexp over time of (α_{u−1} − c_{u−1}) + (c_{u−1} + ln p(label) − c_u).

β is α of the reversed lattice, so both run in the same U steps. The lattice is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Final

import torch

from sottovoce.losses.transducer_reference import BLANK, LABEL, NEVER, Reference, empty_like

SMALLEST_BLOCK: Final = 1 << 16
LARGEST_BLOCK: Final = 1 << 20
BLOCKS: Final = 16
"""Into so many blocks are logits cut, within these bounds. Every block costs a few meetings of PyTorch's threads, which
take long on a busy machine; and the buffer that it needs is to be small beside the logits."""
ROW_ON_CPU: Final = 1 << 9
"""Numbers of a row of α and β that a CPU works on at once; a trial with longer rows is worked on alone. PyTorch spreads
the exponentials of 2,048 over threads, which would have to meet twice a row; and the lattices of a few trials are
small beside the logits."""
LARGEST_RANGE: Final = 690.0
"""e^−690 still has all digits of a float64."""


def forward(logits_BSWV: torch.Tensor, reference: Reference, gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Route`."""
    return occupancies(_log_p_of_moves(logits_BSWV, reference), reference, gradient)


def _log_p_of_moves(logits_BSWV: torch.Tensor, reference: Reference) -> torch.Tensor:
    num_trials, num_frames, num_rows, num_symbols = logits_BSWV.shape
    log_p_B2SW = logits_BSWV.new_zeros(num_trials, 2, num_frames, num_rows)
    labels_BW = label_per_row(reference, logits_BSWV.device)
    buffer_SWV = logits_BSWV.new_empty(_frames_at_once(logits_BSWV), num_rows, num_symbols)
    for b, start, stop in _blocks(reference, len(buffer_SWV)):
        log_p_SWV = torch.log_softmax(logits_BSWV[b, start:stop], -1, out=buffer_SWV[: stop - start])
        read_moves(log_p_SWV, labels_BW[b], reference.blank, log_p_B2SW[b, :, start:stop])
    return log_p_B2SW


def backward(
    logits_BSWV: torch.Tensor, reference: Reference, kept: torch.Tensor, scale_B: torch.Tensor
) -> torch.Tensor:
    """See `Route`."""
    gradient_BSWV = empty_like(logits_BSWV)
    labels_BW = label_per_row(reference, logits_BSWV.device)
    for b, start, stop in _blocks(reference, _frames_at_once(logits_BSWV)):
        p_SWV = torch.softmax(logits_BSWV[b, start:stop], -1, out=gradient_BSWV[b, start:stop])
        to_gradient(p_SWV, kept[b, :, start:stop] * scale_B[b], labels_BW[b], reference.blank)
    for b, (frames, labels) in enumerate(zip(reference.frames_B, reference.labels_B, strict=True)):
        gradient_BSWV[b, frames:] = 0
        gradient_BSWV[b, :frames, labels + 1 :] = 0
    return gradient_BSWV


def label_per_row(reference: Reference, device: torch.device) -> torch.Tensor:
    """The label that each row's upward move emits [B, W]; blank where there is none."""
    labels_BU = torch.from_numpy(reference.targets_BU).to(device)
    return torch.nn.functional.pad(labels_BU, (0, 1), value=reference.blank)


def read_moves(log_p_SWV: torch.Tensor, labels_W: torch.Tensor, blank: int, out_2SW: torch.Tensor) -> None:
    """Picks the log-probabilities of the two moves out of each cell."""
    out_2SW[BLANK] = log_p_SWV[..., blank]
    out_2SW[LABEL] = log_p_SWV.gather(-1, labels_W[None, :, None].expand(len(log_p_SWV), -1, -1))[..., 0]


def to_gradient(p_SWV: torch.Tensor, taken_2SW: torch.Tensor, labels_W: torch.Tensor, blank: int) -> None:
    """Turns p into p · (occupancy of the cell) − occupancies of the two moves, in place."""
    p_SWV *= taken_2SW.sum(0)[..., None]
    p_SWV[..., blank] -= taken_2SW[BLANK]
    p_SWV.scatter_add_(-1, labels_W[None, :, None].expand(len(p_SWV), -1, -1), -taken_2SW[LABEL, ..., None])


def occupancies(log_p_B2SW: torch.Tensor, reference: Reference, gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Route`."""
    num_trials, _, num_frames, _ = log_p_B2SW.shape
    at_once = max(1, ROW_ON_CPU // (2 * num_frames)) if log_p_B2SW.device.type == "cpu" else num_trials
    nats_B = log_p_B2SW.new_empty(num_trials, dtype=torch.float64)
    taken_B2SW = torch.zeros_like(log_p_B2SW) if gradient else log_p_B2SW.new_empty(0)
    for start in range(0, num_trials, at_once):
        some = slice(start, start + at_once)
        theirs = replace(reference, frames_B=reference.frames_B[some], labels_B=reference.labels_B[some])
        size = (slice(None), slice(int(theirs.frames_B.max())), slice(int(theirs.labels_B.max()) + 1))
        nats_B[some], taken_2WBS = _lattices(log_p_B2SW[some, *size], theirs, gradient)
        if gradient:
            taken_B2SW[some, *size] = taken_2WBS.permute(2, 0, 3, 1)
    return nats_B, taken_B2SW


def _lattices(log_p_B2SW: torch.Tensor, reference: Reference, gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats [B], and the occupancies of the moves [2, W, B, S] if a gradient is wanted."""
    num_trials, _, num_frames, num_rows = log_p_B2SW.shape
    places = _Places(reference, num_frames, num_rows, log_p_B2SW.device)
    moves_2WBS = log_p_B2SW.new_empty((2, num_rows, num_trials, num_frames), dtype=torch.float64)
    moves_2WBS.copy_(log_p_B2SW.permute(1, 3, 0, 2)).clamp_(min=NEVER)
    end_B = moves_2WBS[BLANK][places.last]
    alpha_beta_WBS = _scan(moves_2WBS, places, torch.cat([torch.zeros_like(end_B), end_B]))
    alpha_WBS, reversed_beta_WBS = alpha_beta_WBS[:, :num_trials], alpha_beta_WBS[:, num_trials:]
    log_p_B = alpha_WBS[places.last] + end_B
    nats_B = torch.where(log_p_B < NEVER / 2, torch.inf, -log_p_B)
    if not gradient:
        return nats_B, moves_2WBS
    ahead_WBS = moves_2WBS.new_full((num_rows + 1, num_trials, num_frames + 1), -torch.inf)
    ahead_WBS[:-1, :, :-1] = reversed_beta_WBS[places.reversed].masked_fill_(places.outside_WBS, -torch.inf)
    ahead_WBS[places.end] = 0
    # Where there is no path at all, −ln P = inf − inf: such a trial's gradient is NaN, never a number.
    here_WBS = alpha_WBS.add_(torch.where(nats_B < torch.inf, nats_B, torch.nan)[:, None])
    moves_2WBS += here_WBS
    moves_2WBS[BLANK] += ahead_WBS[:-1, :, 1:]
    moves_2WBS[LABEL] += ahead_WBS[1:, :, :-1]
    return nats_B, moves_2WBS.exp_().masked_fill_(places.outside_WBS, 0)


def _moves_into(moves_2WBS: torch.Tensor, places: _Places) -> torch.Tensor:
    """By which blank from the frame before and which label from the row below each cell is reached; [2, W, 2B, S].

    The first B lattices are α's, the others the reversed ones, where a cell is entered by the move that left it.
    """
    _, num_rows, num_trials, num_frames = moves_2WBS.shape
    into_2WBS = moves_2WBS.new_zeros(2, num_rows, 2 * num_trials, num_frames)
    into_2WBS[BLANK, :, :num_trials, 1:] = moves_2WBS[BLANK, :, :, :-1]
    into_2WBS[LABEL, 1:, :num_trials] = moves_2WBS[LABEL, :-1]
    into_2WBS[:, :, num_trials:] = moves_2WBS[(slice(None), *places.reversed)]
    into_2WBS[BLANK, :, :, 0] = 0
    return into_2WBS


def _scan(moves_2WBS: torch.Tensor, places: _Places, start_B: torch.Tensor) -> torch.Tensor:
    """α of the lattices and of the reversed ones [W, 2B, S], whose first cells have α = `start_B`."""
    if moves_2WBS.device.type == "cpu":
        alpha_WBS, spans = _rows(_moves_into(moves_2WBS, places), start_B, _fast_logcumsumexp_)
        if spans < LARGEST_RANGE:
            return alpha_WBS
    return _rows(_moves_into(moves_2WBS, places), start_B, _logcumsumexp_)[0]


def _rows(
    into_2WBS: torch.Tensor, start_B: torch.Tensor, logcumsumexp_: Callable[[torch.Tensor], None]
) -> tuple[torch.Tensor, float]:
    """α, and how far the logcumsumexp of a row spans at most; uses up `into_2WBS`."""
    blanks_WBS = into_2WBS[BLANK].cumsum_(-1)
    step_WBS = into_2WBS[LABEL].sub_(blanks_WBS)
    step_WBS[1:] += blanks_WBS[:-1]
    step_WBS[0] = start_B[:, None]
    rows = step_WBS.unbind()
    for below_BS, row_BS in pairwise(rows):
        logcumsumexp_(row_BS.add_(below_BS))
    span = (step_WBS[..., -1] - step_WBS[..., 0]).max()  # NaN where an α is
    return step_WBS.add_(blanks_WBS), float(span)


def _logcumsumexp_(values: torch.Tensor) -> None:
    values.copy_(values.logcumsumexp(-1))


def _fast_logcumsumexp_(values: torch.Tensor) -> None:
    """As exact as `torch.logcumsumexp`, and vector code on CPUs, while results span less than `LARGEST_RANGE`."""
    largest = values.amax(-1, keepdim=True)
    torch.cumsum(values.sub_(largest).exp_(), -1, out=values).log_().add_(largest)


class _Places:
    """Indices into [W, B, S] that depend on the lengths."""

    def __init__(self, reference: Reference, num_frames: int, num_rows: int, device: torch.device) -> None:
        frames_B, labels_B = (torch.from_numpy(x).to(device) for x in (reference.frames_B, reference.labels_B))
        b_B, s_S, u_W = (torch.arange(n, device=device) for n in (len(frames_B), num_frames, num_rows))
        self.last = (labels_B, b_B, frames_B - 1)
        self.end = (labels_B, b_B, frames_B)
        backward_BS = frames_B[:, None] - 1 - s_S
        backward_WB = labels_B - u_W[:, None]
        self.outside_WBS = (backward_BS < 0) | (backward_WB < 0)[..., None]
        self.reversed = (backward_WB.clamp(min=0)[..., None], b_B[:, None], backward_BS.clamp(min=0))


def _frames_at_once(logits_BSWV: torch.Tensor) -> int:
    block = min(max(logits_BSWV.numel() // BLOCKS, SMALLEST_BLOCK), LARGEST_BLOCK)
    return max(1, block // (logits_BSWV.shape[2] * logits_BSWV.shape[3]))


def _blocks(reference: Reference, at_once: int) -> Iterator[tuple[int, int, int]]:
    """Trial, first frame, frame after the last, for all frames that trials have."""
    for b, frames in enumerate(reference.frames_B.tolist()):
        for start in range(0, frames, at_once):
            yield b, start, min(start + at_once, frames)
