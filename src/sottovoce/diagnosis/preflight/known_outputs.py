"""Validation rehearsed: the run's own decoding and scoring, given made-up outputs whose score is known.

Legend: S frames, V symbols.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from sottovoce.core.trial import Trial
from sottovoce.decoding.emissions import Emissions
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.evaluation.emissions import TrialEmissions
from sottovoce.models.compose import COMPONENTS
from sottovoce.runs.trained_decoder import decoder_parts
from sottovoce.training.step import Progress

CERTAIN: Final = 20.0
"""Logit of the symbol that a made-up frame is sure of; all others have 0."""
NUM_TRIALS: Final = 4
"""Trials that are rehearsed with; the answers do not depend on their number."""


def spoken_logits(labels: Sequence[int], blank: int, num_symbols: int) -> torch.Tensor:
    """Logits [S, V] of a model that says exactly `labels`, one frame each, and blanks before, between and after.

    >>> spoken_logits([2, 2], 0, 3).argmax(-1).tolist()
    [0, 2, 0, 2, 0]
    """
    path = [blank, *(symbol for label in labels for symbol in (label, blank))]
    return CERTAIN * torch.nn.functional.one_hot(torch.tensor(path), num_symbols).float()


class CountingHead:
    """A transducer that says the labels that its encoder frames spell, each once.

    A frame holds the logits of its symbol and, behind them, minus the number of labels before it; the predictor adds
    the number that it has read. Where they cancel, the joint gives the frame's symbol, else the blank.
    """

    def __init__(self, blank: int, num_symbols: int) -> None:
        self.blank, self.num_symbols = blank, num_symbols

    def frames(self, logits_SV: torch.Tensor) -> torch.Tensor:
        """Encoder frames [S, V + 1] that spell the best symbols of the logits."""
        is_label_S = (logits_SV.argmax(-1) != self.blank).to(logits_SV.dtype)
        before_S = is_label_S.cumsum(0) - is_label_S
        return torch.cat([logits_SV, -before_S[:, None]], dim=1)

    def start(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        """No label has been read."""
        return (torch.zeros(batch_size),)

    def advance(
        self, state: tuple[torch.Tensor, ...], symbols_N: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """One more label has been read, unless it is the start symbol."""
        read_N = state[0] + (symbols_N != self.blank)
        return (read_N,), torch.nn.functional.pad(read_N[:, None], (self.num_symbols, 0))

    def joint(self, sum_H: torch.Tensor) -> torch.Tensor:
        """The frame's logits; the blank is surer still where the counts differ."""
        logits = sum_H[..., :-1].clone()
        logits[..., self.blank] += 2 * CERTAIN * (sum_H[..., -1] != 0)
        return logits


def spoken(trial: Trial, labels: Sequence[int], head: CountingHead) -> TrialEmissions:
    """The emissions of `trial` if the model said `labels`, for CTC and for a transducer with `head`."""
    logits_SV = spoken_logits(labels, head.blank, head.num_symbols)
    return TrialEmissions(trial, Emissions(logits_SV.log_softmax(-1).numpy(), head.frames(logits_SV)))


def rehearsed(untrained: UntrainedRun, said: Mapping[int, Sequence[int]], trained: bool = True) -> dict[str, float]:
    """What the run's validation makes of it if the model says `said` of the trials with these places in the trial set.

    `trained`: every component has learnt before, so that the configured decoder decodes.

    Raises:
        DataError: the trials cannot be scored.
    """
    computer, validation = untrained.computer, copy.copy(untrained.loop.validation)
    table, prepared = validation.table, untrained.prepared
    parts = decoder_parts(table, prepared.vocabulary, computer.model)
    head = CountingHead(table.blank, len(table))
    if parts.transducer is not None:
        parts = replace(parts, transducer=head)

    def batches(_: Any, indices: Sequence[int], __: Any) -> Iterator[list[TrialEmissions]]:
        yield [spoken(validation.trial_set.trials[i], said[i], head) for i in indices]

    decoder = prepared.config.decoding.in_training().build(parts)
    vars(validation).update(indices=list(said), batches=batches, decoder=decoder)
    before, computer.progress = computer.progress, Progress(trained=list(COMPONENTS) if trained else [])
    try:
        return validation.values(computer)
    finally:
        computer.progress = before


def rehearsal_trials(untrained: UntrainedRun, split: str = "val") -> list[int]:
    """Some labelled trials of the run's `split` (those of training where there are none), those with a text first."""
    prepared = untrained.prepared
    trials = prepared.trial_set.trials
    places = (prepared.val_indices if split == "val" else []) or prepared.train_indices
    labelled = [i for i in places if trials[i].labels]
    one_split = [i for i in labelled if trials[i].split == trials[labelled[0]].split]
    return sorted(one_split, key=lambda i: (not trials[i].text, len(trials[i].labels or ()), i))[:NUM_TRIALS]


def labels_of(untrained: UntrainedRun, places: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """The labels of the trials at `places`."""
    return {i: untrained.prepared.trial_set.trials[i].labels or () for i in places}
