"""The transducer's predictor moves on labels only, in the search as in the loss.

Legend: N rows, S frames, U labels, H joint size, V symbols.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import torch

from sottovoce.core.findings import Finding
from sottovoce.core.symbols import SymbolTable
from sottovoce.decoding.decoder import DecoderParts
from sottovoce.decoding.emissions import Emissions
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun

BLANK_FRAMES: Final = 20
"""Length of the run of blanks that the search is sent through (catalogue row F8)."""
TOLERANCE: Final = 1e-4
"""Between the predictor over a whole target and label by label, relative to its largest output."""
FIRST, SECOND = 3, 4
TABLE: Final = SymbolTable("scripted", ("", "a", "b", "c", "d", "|"), blank=0, boundary=5)
NUM_SYMBOLS: Final = len(TABLE)


class ScriptedHead:
    """A transducer whose encoder frames are logits, and which says no label twice; it notes what it is made to read."""

    def __init__(self, blank: int) -> None:
        self.blank = blank
        self.read: list[list[int]] = []
        """Symbols of each call of `advance`."""

    def start(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        """Nothing has been read."""
        return (torch.zeros(batch_size, NUM_SYMBOLS),)

    def advance(
        self, state: tuple[torch.Tensor, ...], symbols_N: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """The state after the symbols: those labels are out of the question from now on."""
        self.read.append(symbols_N.tolist())
        said_NV = torch.nn.functional.one_hot(symbols_N, NUM_SYMBOLS).float()
        said_NV[:, self.blank] = 0
        after_NV = state[0] - 100 * said_NV
        return (after_NV,), after_NV

    def joint(self, sum_H: torch.Tensor) -> torch.Tensor:
        """The sum is the logits."""
        return sum_H


def transducer_answers(untrained: UntrainedRun) -> Iterator[Finding]:
    """What is wrong with how search and loss move the predictor; nothing to ask where there is no transducer."""
    if untrained.computer.model.transducer is None:
        return
    config = untrained.prepared.config.decoding.transducer
    for beam_size in (1, 2):
        head = ScriptedHead(0)
        decoder = replace(config, beam_size=beam_size, max_symbols_per_frame=5).build(
            DecoderParts(TABLE, transducer=head)
        )
        yield from _blanks_read(decoder.name, head, list(decoder.decode(_script()).symbols))
    yield from _loss_and_search_agree(untrained)


def _script() -> Emissions:
    """Frames [S, V] that are sure of: 20 blanks, a label, a blank, another label."""
    path = [0] * BLANK_FRAMES + [FIRST, 0, SECOND]
    logits_SV = 20 * torch.nn.functional.one_hot(torch.tensor(path), NUM_SYMBOLS).float()
    logits_SV[:, 0] = logits_SV[:, 0].clamp(min=10)
    return Emissions(logits_SV.log_softmax(-1).numpy(), logits_SV)


def _blanks_read(place: str, head: ScriptedHead, said: list[int]) -> Iterator[Finding]:
    blanks = sum(symbols.count(head.blank) for symbols in head.read[1:])
    if blanks or said != [FIRST, SECOND]:
        yield found(
            "predictor_advances_on_blank",
            f"Sent through {BLANK_FRAMES} blanks, a label, a blank and a label, the search made the predictor read "
            f"{blanks} blanks after the start symbol and found {said}, not {[FIRST, SECOND]} ({place}).",
            "preflight",
        )


def _loss_and_search_agree(untrained: UntrainedRun) -> Iterator[Finding]:
    """The predictor's rows of the loss are those of the search, label by label."""
    head = untrained.computer.model.transducer
    assert head is not None
    device = head.output.weight.device
    labels = torch.tensor([[i for i in range(head.output.out_features) if i != head.blank][:5]], device=device)
    was_training = {part: part.training for part in head.modules()}
    head.eval()
    try:
        with torch.no_grad():
            rows_WH = head.predict(labels, torch.tensor([labels.shape[1]], device=device))[0]
            state, outputs = head.start(1), []
            for symbol in (head.blank, *labels[0].tolist()):
                state, output_1H = head.advance(state, torch.tensor([symbol], device=device))
                outputs.append(output_1H[0])
    finally:
        for part, training in was_training.items():
            part.training = training
    stepwise_WH = torch.stack(outputs)
    if rows_WH.shape != stepwise_WH.shape:
        evidence = f"{len(rows_WH)} rows for {labels.shape[1]} labels"
    else:
        difference = float((rows_WH - stepwise_WH).abs().max() / stepwise_WH.abs().max().clamp(min=TOLERANCE))
        if difference <= TOLERANCE:
            return
        evidence = f"rows that differ by {difference:.2g} of their size"
    yield found(
        "predictor_advances_on_blank",
        f"The predictor gives the loss {evidence} from what it gives the search after the same labels.",
        "preflight",
    )
