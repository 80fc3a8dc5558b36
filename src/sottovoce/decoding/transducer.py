"""Transducer search: greedy over a batch, and a beam in which equal label prefixes merge.

In every frame a path emits any number of labels and then one blank, which leads to the next frame; the last blank
ends the sentence. The predictor moves on labels only, so its state belongs to the labels said so far.

Dimension legend: B trials, N rows (trials or hypotheses), S encoder frames, K frames looked ahead, H joint size,
V symbols.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol

import torch

State = tuple[torch.Tensor, ...]
"""A predictor's state; every tensor has the rows as its first dimension."""
Labels = tuple[int, ...]

LOOK_AHEAD_FRAMES: Final = 8
"""Frames that greedy search evaluates at once: as long as only blanks come, the predictor's output stays the same."""


class Transducer(Protocol):
    """The part of a transducer that a search needs (`models.transducer.TransducerHead` is one)."""

    def start(self, batch_size: int) -> State:
        """The predictor's state before the start symbol, which is the blank."""
        ...

    def advance(self, state: State, symbols_N: torch.Tensor) -> tuple[State, torch.Tensor]:
        """The state after one more symbol in every row, and the predictor's contribution to the joint [N, H]."""
        ...

    def joint(self, sum_H: torch.Tensor) -> torch.Tensor:
        """Logits […, V] from encoder plus predictor contributions […, H]."""
        ...


@torch.no_grad()
def greedy_transducer(
    encoder_BSH: torch.Tensor,
    frame_lengths_B: torch.Tensor,
    head: Transducer,
    blank: int = 0,
    max_symbols_per_frame: int = 5,
) -> list[list[int]]:
    """Symbol ids of each trial: in every frame the best symbol, again and again until it is the blank.

    `encoder_BSH` is the encoder's contribution to the joint. After `max_symbols_per_frame` labels the search goes on
    to the next frame. A trial's result does not depend on its batch mates.

    Raises:
        ValueError: `max_symbols_per_frame` is below 1, or a length is beyond the frames.
    """
    _check_cap(max_symbols_per_frame)
    device, (num_trials, num_frames) = encoder_BSH.device, encoder_BSH.shape[:2]
    walks = [_Walk(length, blank, max_symbols_per_frame) for length in frame_lengths_B.tolist()]
    if any(walk.num_frames > num_frames for walk in walks):
        raise ValueError(f"frame lengths {frame_lengths_B.tolist()} exceed the {num_frames} frames of the tensor")
    rows_B1 = torch.arange(num_trials, device=device)[:, None]
    state, predicted_BH = _first(head, num_trials, blank, device)
    while any(walk.frame < walk.num_frames for walk in walks):
        at_B1 = torch.tensor([walk.frame for walk in walks], device=device)[:, None]
        ahead_BK = (at_B1 + torch.arange(LOOK_AHEAD_FRAMES, device=device)).clamp(max=num_frames - 1)
        best_BK = head.joint(encoder_BSH[rows_B1, ahead_BK] + predicted_BH[:, None]).argmax(dim=-1).tolist()
        emitting = [row for row, walk in enumerate(walks) if walk.emits(best_BK[row])]
        if emitting:
            chosen_N = torch.tensor(emitting, device=device)
            said_N = torch.tensor([walks[row].labels[-1] for row in emitting], device=device)
            after, output_NH = head.advance(_take(state, chosen_N), said_N)
            predicted_BH = predicted_BH.index_copy(0, chosen_N, output_NH)
            state = tuple(part.index_copy(0, chosen_N, moved) for part, moved in zip(state, after, strict=True))
    return [walk.labels for walk in walks]


class _Walk:
    """One trial's greedy way through its frames."""

    def __init__(self, num_frames: int, blank: int, cap: int) -> None:
        self.num_frames, self.blank, self.cap = num_frames, blank, cap
        self.frame = 0
        self.labels: list[int] = []
        self._in_frame = 0
        """Labels emitted in the frame where the walk stands."""

    def emits(self, symbols_K: list[int]) -> bool:
        """Pass the blanks among the best symbols of the next frames; True if a label ended them and was taken."""
        for symbol in symbols_K[: max(self.num_frames - self.frame, 0)]:
            if symbol != self.blank:
                self.labels.append(symbol)
                self._in_frame += 1
                if self._in_frame == self.cap:
                    self._next_frame()
                return True
            self._next_frame()
        return False

    def _next_frame(self) -> None:
        self.frame += 1
        self._in_frame = 0


@torch.no_grad()
def beam_transducer(
    encoder_SH: torch.Tensor,
    head: Transducer,
    beam_size: int,
    blank: int = 0,
    max_symbols_per_frame: int = 5,
    length_normalised: bool = False,
) -> list[tuple[Labels, float]]:
    """The most probable label sequences of one trial, best first, each with its natural-log probability.

    `encoder_SH` holds the trial's valid frames. Paths that have said the same labels by the same frame are one
    hypothesis, whose probability is their sum; every kept score is that of all paths found, of at most
    `max_symbols_per_frame` labels a frame. With a beam wide enough for every sequence the scores are exact.
    `length_normalised` ranks the result by score / (labels + 1), which favours long sequences; the scores returned
    stay log-probabilities.

    Raises:
        ValueError: `beam_size` or `max_symbols_per_frame` is below 1.
    """
    _check_cap(max_symbols_per_frame)
    if beam_size < 1:
        raise ValueError(f"beam_size={beam_size}: must be at least 1")
    state, predicted_1H = _first(head, 1, blank, encoder_SH.device)
    prefixes = _Prefixes(head, {(): 0}, state, predicted_1H)
    beam: dict[Labels, float] = {(): 0.0}
    for frame_H in encoder_SH:
        beam = _frame(beam, frame_H, prefixes, beam_size, blank, max_symbols_per_frame)
        prefixes = prefixes.only(list(beam))
    found = list(beam.items())
    return sorted(found, key=lambda item: -item[1] / (len(item[0]) + 1 if length_normalised else 1))


@dataclass
class _Prefixes:
    """Predictor states and outputs of the label prefixes in play, a row each."""

    head: Transducer
    row: dict[Labels, int]
    state: State
    output_NH: torch.Tensor

    def add(self, wanted: list[Labels]) -> None:
        """Let the predictor read the last label of every prefix that has no row yet; its parent has one."""
        fresh = [prefix for prefix in wanted if prefix not in self.row]
        if not fresh:
            return
        device = self.output_NH.device
        parents = torch.tensor([self.row[prefix[:-1]] for prefix in fresh], device=device)
        symbols = torch.tensor([prefix[-1] for prefix in fresh], device=device)
        state, output = self.head.advance(_take(self.state, parents), symbols)
        self.row |= {prefix: len(self.output_NH) + i for i, prefix in enumerate(fresh)}
        self.output_NH = torch.cat([self.output_NH, output])
        self.state = tuple(torch.cat([old, new]) for old, new in zip(self.state, state, strict=True))

    def rows(self, prefixes: list[Labels]) -> torch.Tensor:
        """Where `prefixes` stand."""
        return torch.tensor([self.row[prefix] for prefix in prefixes], device=self.output_NH.device)

    def only(self, kept: list[Labels]) -> _Prefixes:
        """The same without all other prefixes."""
        rows = self.rows(kept)
        row = {prefix: i for i, prefix in enumerate(kept)}
        return _Prefixes(self.head, row, _take(self.state, rows), self.output_NH[rows])


def _frame(
    beam: dict[Labels, float], frame_H: torch.Tensor, prefixes: _Prefixes, beam_size: int, blank: int, cap: int
) -> dict[Labels, float]:
    """The best hypotheses after one more frame.

    Round n holds the paths with n labels in this frame; each ends with a blank, or goes on to round n + 1.
    """
    ended: dict[Labels, float] = {}
    current = beam
    for emitted in range(cap + 1):
        listed = list(current)
        mass_N = torch.tensor([current[prefix] for prefix in listed], dtype=torch.float64)
        logits_NV = _logits(prefixes, listed, frame_H)
        score_NV = mass_N[:, None] + logits_NV.double().log_softmax(dim=-1).cpu()
        for prefix, score in zip(listed, score_NV[:, blank].tolist(), strict=True):
            ended[prefix] = _log_add(ended.get(prefix, -math.inf), score)
        if emitted == cap:
            break
        score_NV[:, blank] = -math.inf
        current = _extensions(listed, score_NV, prefixes, beam_size)
        ranked = sorted(ended.values(), reverse=True)
        if not current or (len(ranked) >= beam_size and max(current.values()) < ranked[beam_size - 1]):
            break
        prefixes.add(list(current))
    kept = sorted(ended.items(), key=lambda item: -item[1])[:beam_size]
    return dict(kept)


def _logits(prefixes: _Prefixes, listed: list[Labels], frame_H: torch.Tensor) -> torch.Tensor:
    """Logits [N, V] of one frame after each of the prefixes."""
    return prefixes.head.joint(frame_H + prefixes.output_NH[prefixes.rows(listed)])


def _extensions(
    listed: list[Labels], score_NV: torch.Tensor, prefixes: _Prefixes, beam_size: int
) -> dict[Labels, float]:
    """The best one-label extensions, and all that lead to a known prefix: those cost no predictor step."""
    num_symbols = score_NV.shape[1]
    extended: dict[Labels, float] = {}
    best = score_NV.flatten().topk(min(beam_size, score_NV.numel()))
    for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        if score > -math.inf:
            extended[(*listed[index // num_symbols], index % num_symbols)] = score
    place = {prefix: i for i, prefix in enumerate(listed)}
    for prefix in prefixes.row:
        if prefix and prefix[:-1] in place:
            score = float(score_NV[place[prefix[:-1]], prefix[-1]])
            if score > -math.inf:
                extended[prefix] = score
    return extended


def _first(head: Transducer, num_rows: int, blank: int, device: torch.device) -> tuple[State, torch.Tensor]:
    """State and output of the predictor after the start symbol."""
    return head.advance(head.start(num_rows), torch.full((num_rows,), blank, device=device))


def _take(state: State, rows_N: torch.Tensor) -> State:
    return tuple(part[rows_N] for part in state)


def _log_add(a: float, b: float) -> float:
    """ln(e^a + e^b); −inf stands for probability 0."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def _check_cap(max_symbols_per_frame: int) -> None:
    if max_symbols_per_frame < 1:
        raise ValueError(f"max_symbols_per_frame={max_symbols_per_frame}: must be at least 1")
