"""Table, labels, logits, loss, decoders and texts agree on which symbol has which number, and which is the blank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch

from sottovoce.core.findings import Finding
from sottovoce.core.symbols import BLANK
from sottovoce.decoding.emissions import Emissions
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.first_found import first_found
from sottovoce.diagnosis.preflight.known_outputs import labels_of, rehearsal_trials, rehearsed, spoken_logits
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.runs.names import Metric
from sottovoce.training.branches import CTC

OFFSETS: Final = (-2, -1, 1, 2)
BETTER: Final = 0.1
"""An offset that makes the word error rate better by this much explains the labels (catalogue row G5)."""
ALMOST_NOTHING: Final = 0.1
"""Nats of a target whose every frame is certain."""


def symbol_answers(untrained: UntrainedRun) -> Iterator[Finding]:
    """Where two parts of the run count symbols differently; the first disagreement, since others follow from it."""
    yield from first_found(table_agrees(untrained), decoders_agree(untrained), losses_agree(untrained))


def table_agrees(untrained: UntrainedRun) -> Iterator[Finding]:
    """The table is its own inverse, as large as the model's logits, and all know the same blank."""
    table, model = untrained.loop.validation.table, untrained.computer.model
    for i, symbol in enumerate(table.symbols):
        if i == table.blank:
            continue
        ids = table.encode([symbol])
        if ids != (i,) or table.decode(ids) != (symbol,):
            yield _offset(
                f"{symbol!r} is number {i} of the table, is encoded as {ids} and decoded as {table.decode(ids)}."
            )
            return
    head = model.transducer
    sizes = {"the CTC head": model.head.out_features}
    if head is not None:
        sizes |= {"the transducer": head.output.out_features, "its predictor": head.embedding.num_embeddings}
    for part, size in sizes.items():
        if size != len(table):
            yield _offset(f"{part} has {size} symbols, the table of {table.name} {len(table)}.")
    blanks = {"the run": untrained.computer.blank} | ({"the transducer": head.blank} if head is not None else {})
    if table.symbols[table.blank] != BLANK:
        yield _offset(f"the table's blank, {table.blank}, is the symbol {table.symbols[table.blank]!r}.")
    for part, blank in blanks.items():
        if blank != table.blank:
            yield _offset(f"the blank of {part} is {blank}, the table's {table.blank}.")


def decoders_agree(untrained: UntrainedRun) -> Iterator[Finding]:
    """A model that says a trial's own labels decodes to them."""
    validation, blank = untrained.loop.validation, untrained.computer.blank
    num_symbols = len(validation.table)
    every = tuple(i for i in range(num_symbols) if i != blank)
    for labels in (every, *labels_of(untrained, rehearsal_trials(untrained)).values()):
        log_probs_SV = spoken_logits(labels, blank, num_symbols).log_softmax(-1)
        said = validation.until_trained.decode(Emissions(log_probs_SV.numpy())).symbols
        if said != tuple(labels):
            yield _offset(
                f"frames that say {_shown(labels)} (blank {blank}) decode to {_shown(said)} "
                f"({validation.until_trained.name}){_explained(labels, said, num_symbols)}."
            )
            return


def losses_agree(untrained: UntrainedRun) -> Iterator[Finding]:
    """A model that says a target has no loss; where another offset or blank has less, that is the reason."""
    table, blank = untrained.loop.validation.table, untrained.computer.blank
    last = len(table) - 1
    labels = [i for i in range(3, len(table) - 3) if abs(i - blank) > 2]  # whatever the offset, no label is a blank
    loss = untrained.computer.branches[CTC.name].functions["ctc_loss"]
    nats = {
        (offset, said_blank): _nats(loss, labels, [i + offset for i in labels], blank, said_blank, len(table))
        for offset in (0, *OFFSETS)
        for said_blank in (blank, last)
    }
    right, best = nats[0, blank], min(nats, key=lambda way: nats[way])
    if right > ALMOST_NOTHING > nats[best]:
        yield _offset(
            f"the CTC loss of frames that say the target is {right:.1f} nats, that of frames that say it shifted "
            f"by {best[0]:+d} with the blank {best[1]} (the table's is {blank}) {nats[best]:.1f}."
        )


def texts_agree(untrained: UntrainedRun) -> Iterator[Finding]:
    """The labels of trials spell their texts, as far as the decoder makes words of symbols."""
    num_symbols = len(untrained.loop.validation.table)
    for split in ("val", "train"):
        places = rehearsal_trials(untrained, split)
        labels = labels_of(untrained, places)
        if not places:
            continue
        wer = rehearsed(untrained, labels).get(Metric.VAL_WER)
        if wer is None or wer <= BETTER:
            continue
        others = {offset: _wer_shifted(untrained, labels, offset, num_symbols) for offset in OFFSETS}
        best = min(others, key=lambda offset: others[offset])
        if others[best] < wer - BETTER:
            yield _offset(
                f"the labels of {len(places)} {split} trials spell words of which {wer:.0%} are wrong against the "
                f"trials' texts; shifted by {best:+d} it is {others[best]:.0%}."
            )
            return


def _wer_shifted(untrained: UntrainedRun, labels: Mapping[int, Sequence[int]], offset: int, num_symbols: int) -> float:
    """Word error rate of the labels moved by `offset`, round the table and past the blank."""
    ids = [i for i in range(num_symbols) if i != untrained.computer.blank]
    moved = {symbol: ids[(place + offset) % len(ids)] for place, symbol in enumerate(ids)}
    return rehearsed(untrained, {i: [moved[s] for s in symbols] for i, symbols in labels.items()})[Metric.VAL_WER]


def _nats(
    loss: Callable[..., Any], labels: Sequence[int], said: Sequence[int], blank: int, said_blank: int, num_symbols: int
) -> float:
    """The loss of `labels` where the frames say `said`, with `said_blank` between."""
    logits_SV = spoken_logits(said, said_blank, num_symbols)
    lengths = torch.tensor([len(logits_SV)]), torch.tensor([len(labels)])
    return float(loss(logits_SV[None], torch.tensor([labels]), *lengths, blank)[0])


def _explained(labels: Sequence[int], said: Sequence[int], num_symbols: int) -> str:
    for offset in OFFSETS:
        if list(said) == [label + offset for label in labels]:
            return f": an offset of {offset:+d}"
    if len(said) > len(labels):
        return ": another symbol is taken for the blank"
    return ""


def _shown(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids[:8])) + (" …" if len(ids) > 8 else "")


def _offset(evidence: str) -> Finding:
    return found("tokenizer_offset", evidence[0].upper() + evidence[1:], "preflight")
