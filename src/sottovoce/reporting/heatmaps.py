"""Two pictures with a cell for each number: the symbol confusions, and posteriors with their forced alignment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sottovoce.core.lengths import ctc_frames_needed
from sottovoce.core.symbols import SymbolTable
from sottovoce.decoding.alignment import Span, align_ctc
from sottovoce.reporting.figures import INK, MUTED, SERIES, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHONEME_CLASSES: Final = (
    "IY IH EY EH AE AA AO OW UH UW AH ER AY AW OY",  # vowels, roughly front to back, then diphthongs
    "P B T D K G",
    "CH JH F V TH DH S Z SH ZH HH",
    "M N NG",
    "L R W Y",
    "|",
)
"""Phonemes that are confused with each other stand together."""
GAP: Final = "∅"
MOST_COLUMNS: Final = 700
_LEAST_SHOWN: Final = 0.15
"""A symbol that is neither in the label nor ever this probable has no row in a posteriorgram."""


def symbol_order(table: SymbolTable) -> list[list[int]]:
    """The ids of a table for display, in classes; the blank, which stands for the gap, comes last."""
    if table.name != "phonemes":
        return [list(table.encode(table.printable)), [table.blank]]
    return [*(list(table.encode(symbols.split())) for symbols in PHONEME_CLASSES), [table.blank]]


def confusions(counts_VV: npt.NDArray[np.int64], table: SymbolTable) -> str:
    """Row: the symbol that was said; column: what was decoded; blue: right, orange: wrong, ∅: inserted or deleted."""
    classes = symbol_order(table)
    order = [i for members in classes for i in members]
    ordered = counts_VV[np.ix_(order, order)]
    share = ordered / np.maximum(ordered.sum(axis=1, keepdims=True), 1)
    colours = np.empty((*share.shape, 4))
    colours[...] = _rgba(SERIES[1])
    colours[np.eye(len(order), dtype=bool)] = _rgba(SERIES[0])
    colours[..., 3] = np.sqrt(share)  # rare confusions stay visible
    names = [GAP if i == table.blank else table.symbols[i] for i in order]
    edges = np.cumsum([len(members) for members in classes])[:-1] - 0.5

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.imshow(colours, interpolation="none")
        axes.grid(visible=False)
        for edge in edges:
            axes.axhline(edge, color=MUTED, linewidth=0.4)
            axes.axvline(edge, color=MUTED, linewidth=0.4)
        axes.set_xticks(range(len(order)), names, fontsize=6, rotation=90)
        axes.set_yticks(range(len(order)), names, fontsize=6)
        axes.tick_params(length=0, pad=2)
        axes.set_xlabel("decoded")
        axes.set_ylabel("said")

    return draw(6.2, 6.2, paint, f"Confusion matrix of {len(order) - 1} {table.name}")


def posteriorgram(
    log_probs_SV: npt.NDArray[np.floating], labels: tuple[int, ...], table: SymbolTable, frame_ms: float
) -> str:
    """Probability of each symbol over time, with the frames that a forced alignment gives each label.

    Rows follow the label, so that a good trial is a staircase. Without an aligning path only the posteriors are drawn.
    """
    probabilities = np.exp(log_probs_SV.astype(np.float64))
    seconds = len(probabilities) * frame_ms / 1000
    spans = _spans(log_probs_SV, labels, table.blank)
    rows = list(dict.fromkeys(labels))
    rows += [int(i) for i in np.flatnonzero(probabilities.max(axis=0, initial=0) >= _LEAST_SHOWN) if i not in rows]
    rows = [i for i in rows if i != table.blank] + [table.blank]
    pooled, width = pool_frames(probabilities[:, rows])
    shown = (0, len(pooled) * width * frame_ms / 1000, len(rows) - 0.5, -0.5)
    colours = np.empty((len(rows), len(pooled), 4))
    colours[...] = _rgba(SERIES[0])
    colours[..., 3] = pooled.T
    colours[-1, :, :3] = 0.5  # the blank's row is grey: it carries no symbol

    def paint(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.subplots()
        axes.imshow(colours, aspect="auto", interpolation="none", extent=shown)
        for span in spans:
            start, end = span.start * frame_ms / 1000, span.end * frame_ms / 1000
            corner = (start, rows.index(span.symbol) - 0.5)
            axes.add_patch(Rectangle(corner, end - start, 1, fill=False, edgecolor=SERIES[1], linewidth=1.1))
        axes.set_yticks(range(len(rows)), [*(table.symbols[i] for i in rows[:-1]), "blank"], fontsize=7, color=INK)
        axes.set_xlim(0, seconds)
        axes.grid(visible=False)
        axes.set_xlabel("seconds")

    return draw(9.0, 0.7 + 0.135 * len(rows), paint, "Symbol probabilities over time with forced alignment")


def pool_frames(probabilities_SV: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], int]:
    """Neighbouring frames of long trials merged to their maximum, and how many were merged.

    Drawn as they are, a peak of one frame could fall between two pixels.
    """
    width = max(1, -(-len(probabilities_SV) // MOST_COLUMNS))
    padded = np.pad(probabilities_SV, ((0, -len(probabilities_SV) % width), (0, 0)))
    return padded.reshape(-1, width, probabilities_SV.shape[1]).max(axis=1), width


def _spans(log_probs_SV: npt.NDArray[np.floating], labels: tuple[int, ...], blank: int) -> list[Span]:
    if not labels or ctc_frames_needed(labels) > len(log_probs_SV):
        return []
    floor = np.log(np.finfo(np.float32).tiny)  # a model may give a symbol the probability 0
    return align_ctc(np.maximum(log_probs_SV, floor), labels, blank)[0]


def _rgba(colour: str) -> tuple[float, float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue, 1.0
