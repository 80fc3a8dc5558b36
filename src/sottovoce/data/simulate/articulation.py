"""From symbols to what is said: durations, and the movement of the articulators with coarticulation.

Dimension legend: T bins of 20 ms, P pieces (a phoneme is one piece, a diphthong or affricate two), D latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from sottovoce.core.random import numpy_generator
from sottovoce.core.symbols import BOUNDARY, PHONEMES

Array = npt.NDArray[np.float64]
Mode = Literal["silent", "vocalised"]

SILENCE: Final = "<silence>"
"""Symbol of lead-in and lead-out in an alignment; it is no label."""
LEAD_IN_BINS: Final = (25, 60)
LEAD_OUT_BINS: Final = (30, 90)
MIN_PIECE_BINS: Final = 2

ARTICULATORS: Final = (
    "jaw", "lips", "round", "dental", "tip", "front", "body",
    "back", "velum", "voice", "noise", "side", "curl", "effort",
)  # fmt: skip
"""Jaw opening, lip aperture, lip rounding, lower lip to teeth, tongue tip height and frontness, tongue body height and
backness, nasal port, voicing, frication, lowered tongue sides, tongue curl, and the effort of speaking."""
NUM_PRIVATE: Final = 6
"""Further latents, in which each phoneme has a target of its own: what a cortex plans beside positions."""
NUM_LATENTS: Final = len(ARTICULATORS) + NUM_PRIVATE

TOKEN_SPREAD: Final = 0.27
"""Deviation of a target from one utterance of a phoneme to the next."""
COARTICULATION_BINS: Final = 1.8
"""Reach of a neighbour's influence: its weight falls by e in this many bins."""
WEAK: Final = 0.12
"""Weight of a target that the phoneme does not insist on; there the neighbours show through."""
SILENT_VOICE: Final = 0.4
"""Share of the voicing target that remains in silent speech."""

# One line a phoneme: relative duration, then the critical targets of each of its pieces.
_TARGETS: Final = """
AA 1.25 jaw+1.0 body-1.0 back+0.6 voice+1
AE 1.25 jaw+0.8 body-0.7 back-0.8 voice+1
AH 0.85 jaw+0.2 body-0.2 back+0.1 voice+1
AO 1.20 jaw+0.6 body-0.6 back+0.8 round+0.8 voice+1
AW 1.40 jaw+0.9 body-0.8 back+0.1 voice+1 / jaw-0.3 body+0.5 back+0.7 round+0.8 voice+1
AY 1.40 jaw+0.9 body-0.9 back+0.3 voice+1 / jaw-0.4 body+0.7 back-0.8 voice+1
B 0.90 lips-1.0 voice+0.7 jaw-0.5
CH 1.10 tip+1.0 front-0.2 noise-0.3 voice-1 / tip+0.7 front-0.5 noise+1.0 round+0.3 voice-1
D 0.75 tip+1.0 front+0.3 voice+0.7 jaw-0.4
DH 0.65 tip+0.6 front+1.0 voice+0.7 noise+0.3
EH 1.00 jaw+0.3 body+0.0 back-0.7 voice+1
ER 1.15 curl+0.9 body+0.2 back+0.1 round+0.3 voice+1
EY 1.25 jaw+0.1 body+0.3 back-0.8 voice+1 / jaw-0.5 body+0.9 back-1.0 voice+1
F 1.00 dental+1.0 noise+0.8 voice-1
G 0.90 body+1.2 back+0.5 voice+0.7
HH 0.70 noise+0.5 voice-0.7 jaw+0.2
IH 0.85 jaw-0.3 body+0.6 back-0.6 voice+1
IY 1.10 jaw-0.6 body+1.0 back-1.0 voice+1
JH 1.05 tip+1.0 front-0.2 noise-0.3 voice+0.7 / tip+0.7 front-0.5 noise+1.0 round+0.3 voice+0.7
K 0.95 body+1.2 back+0.5 voice-1
L 0.85 tip+0.8 front+0.3 side+1.0 voice+1
M 0.90 lips-1.0 velum+1.0 voice+1
N 0.80 tip+1.0 front+0.3 velum+1.0 voice+1
NG 0.95 body+1.2 back+0.6 velum+1.0 voice+1
OW 1.25 jaw+0.3 body-0.1 back+0.8 round+0.6 voice+1 / jaw-0.4 body+0.6 back+0.9 round+1.0 voice+1
OY 1.45 jaw+0.5 body-0.5 back+0.9 round+0.8 voice+1 / jaw-0.4 body+0.7 back-0.8 voice+1
P 0.95 lips-1.0 voice-1 jaw-0.5
R 0.90 curl+1.1 round+0.4 back+0.2 voice+1
S 1.10 tip+0.8 front+0.4 noise+1.2 voice-1 jaw-0.6
SH 1.10 tip+0.6 front-0.6 noise+1.1 round+0.4 voice-1 jaw-0.5
T 0.80 tip+1.0 front+0.3 voice-1 jaw-0.4
TH 1.00 tip+0.6 front+1.0 noise+0.6 voice-1
UH 0.85 jaw-0.2 body+0.5 back+0.7 round+0.5 voice+1
UW 1.10 jaw-0.5 body+0.9 back+0.9 round+1.1 voice+1
V 0.85 dental+1.0 noise+0.4 voice+0.8
W 0.85 lips-0.5 round+1.2 body+0.8 back+0.9 voice+1
Y 0.75 jaw-0.6 body+1.1 back-1.1 voice+0.9
Z 0.95 tip+0.8 front+0.4 noise+1.0 voice+0.7 jaw-0.6
ZH 0.95 tip+0.6 front-0.6 noise+0.9 round+0.4 voice+0.7
"""


@dataclass(frozen=True)
class _Piece:
    """A stretch of speech with one set of targets."""

    target_D: Array
    weight_D: Array
    duration: float
    """Relative to the mean phoneme."""


def _read_targets() -> dict[str, tuple[_Piece, ...]]:
    private = numpy_generator(0, "simulation").normal(0.0, 0.6, (len(PHONEMES), 2, NUM_PRIVATE))
    pieces: dict[str, tuple[_Piece, ...]] = {}
    for number, line in enumerate(_TARGETS.strip().splitlines()):
        phoneme, duration, *rest = line.split()
        parts = " ".join(rest).split(" / ")
        made = []
        for part, text in enumerate(parts):
            target_D, weight_D = np.zeros(NUM_LATENTS), np.full(NUM_LATENTS, WEAK)
            for item in text.split():
                at = max(item.find("+"), item.find("-"))
                latent = ARTICULATORS.index(item[:at])
                target_D[latent], weight_D[latent] = float(item[at:]), 1.0
            target_D[ARTICULATORS.index("effort")] = weight_D[ARTICULATORS.index("effort")] = 1.0
            target_D[-NUM_PRIVATE:], weight_D[-NUM_PRIVATE:] = private[number, part], 0.7
            made.append(_Piece(target_D, weight_D, float(duration) / len(parts)))
        pieces[phoneme] = tuple(made)
    rest_D, gap_D = np.zeros(NUM_LATENTS), np.full(NUM_LATENTS, 0.3)
    gap_target_D = np.zeros(NUM_LATENTS)
    gap_target_D[ARTICULATORS.index("effort")], gap_D[ARTICULATORS.index("effort")] = 0.4, 0.8
    pieces[BOUNDARY] = (_Piece(gap_target_D, gap_D, 0.45),)
    pieces[SILENCE] = (_Piece(rest_D, np.ones(NUM_LATENTS), 0.0),)
    return pieces


_PIECES: Final = _read_targets()


@dataclass(frozen=True)
class Utterance:
    """One sentence as it was said."""

    alignment: tuple[tuple[str, int, int], ...]
    """(symbol, first bin, end bin), half open, without gaps from bin 0 on; lead-in and lead-out are silence."""
    latents_TD: Array
    """Positions of the articulators and the private latents."""

    @property
    def num_bins(self) -> int:
        """Length of the trial."""
        return len(self.latents_TD)


def articulate(
    symbols: tuple[str, ...], mode: Mode, bins_per_phoneme: float, generator: np.random.Generator
) -> Utterance:
    """Say `symbols` once: draw durations and targets, then move the articulators through them.

    Positions are weighted means of the targets of all pieces; a piece's weight decays with the distance from it and is
    small where the phoneme has no demand (after Cohen and Massaro 1993, "Modeling coarticulation in synthetic visual
    speech"). Silent speech is a little slower and almost unvoiced.
    """
    rate = bins_per_phoneme * (1.06 if mode == "silent" else 1.0) * generator.lognormal(0.0, 0.12)
    said = (SILENCE, *symbols, SILENCE)
    pieces = [piece for symbol in said for piece in _PIECES[symbol]]
    owner_P = np.repeat(np.arange(len(said)), [len(_PIECES[symbol]) for symbol in said])
    relative_P = np.array([piece.duration for piece in pieces])
    drawn_P = relative_P * rate * generator.lognormal(0.0, 0.25, len(pieces))
    bins_P = np.maximum(MIN_PIECE_BINS, np.rint(drawn_P).astype(np.int64))
    bins_P[0] = generator.integers(LEAD_IN_BINS[0], LEAD_IN_BINS[1] + 1)
    bins_P[-1] = generator.integers(LEAD_OUT_BINS[0], LEAD_OUT_BINS[1] + 1)
    end_P = np.cumsum(bins_P)
    first_P = end_P - bins_P

    target_PD = np.array([piece.target_D for piece in pieces])
    weight_PD = np.array([piece.weight_D for piece in pieces])
    target_PD[1:-1] += TOKEN_SPREAD * generator.standard_normal((len(pieces) - 2, NUM_LATENTS))
    if mode == "silent":
        target_PD[:, ARTICULATORS.index("voice")] *= SILENT_VOICE
    latents_TD = _blend(first_P, end_P, target_PD, weight_PD)

    alignment = []
    for number, symbol in enumerate(said):
        own = np.flatnonzero(owner_P == number)
        alignment.append((symbol, int(first_P[own[0]]), int(end_P[own[-1]])))
    return Utterance(tuple(alignment), latents_TD)


def _blend(first_P: npt.NDArray[np.int64], end_P: npt.NDArray[np.int64], target_PD: Array, weight_PD: Array) -> Array:
    """Weighted mean of the pieces' targets in every bin."""
    bins_T1 = np.arange(end_P[-1])[:, None]
    outside_TP = np.maximum(0, np.maximum(first_P - bins_T1, bins_T1 - end_P + 1))
    influence_TP = np.exp(-outside_TP / COARTICULATION_BINS)
    blended: Array = (influence_TP @ (weight_PD * target_PD)) / (influence_TP @ weight_PD)
    return blended
