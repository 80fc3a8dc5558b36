"""Validation rehearsed: the run's own decoding and scoring, given made-up outputs whose score is known.

Legend: S frames, V symbols.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch

from sottovoce.core.trial import Trial
from sottovoce.diagnosis.preflight.bindings import bound
from sottovoce.diagnosis.preflight.subject import Subject
from sottovoce.evaluation import inference
from sottovoce.evaluation.inference import TrialOutput
from sottovoce.models.compose import COMPONENTS
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


def spoken(trial: Trial, labels: Sequence[int], blank: int, num_symbols: int) -> TrialOutput:
    """What `run_model` would give for `trial` if the model said `labels`."""
    logits_1SV = spoken_logits(labels, blank, num_symbols)[None]
    frames_1 = torch.tensor([logits_1SV.shape[1]])
    log_probs_1SV = logits_1SV.log_softmax(-1)
    ((_, decode),), ((_, count),) = (bound(name, inference) for name in ("greedy_ctc", "blank_frames"))
    return TrialOutput(
        trial,
        log_probs_1SV[0].numpy(),
        tuple(decode(log_probs_1SV, frames_1, blank)[0]),
        int(count(log_probs_1SV, frames_1, blank)[0]),
        ((tuple(labels), None),),
    )


def rehearsed(subject: Subject, said: Mapping[int, Sequence[int]], trained: bool = True) -> dict[str, float]:
    """What the run's validation makes of it if the model says `said` of the trials with these places in the trial set.

    `trained`: every component has learnt before, so that a transducer decodes.

    Raises:
        DataError: the trials cannot be scored.
    """
    computer, validation = subject.computer, copy.copy(subject.loop.validation)
    num_symbols = len(validation.text_decoder.table)

    def outputs(_: Any, indices: Sequence[int], with_transducer: bool) -> Iterator[TrialOutput]:
        return (spoken(validation.trial_set.trials[i], said[i], computer.blank, num_symbols) for i in indices)

    vars(validation).update(indices=list(said), outputs=outputs)
    before, computer.progress = computer.progress, Progress(trained=list(COMPONENTS) if trained else [])
    try:
        return validation.values(computer)
    finally:
        computer.progress = before


def rehearsal_trials(subject: Subject, split: str = "val") -> list[int]:
    """Some labelled trials of the run's `split` (those of training where there are none), those with a text first."""
    prepared = subject.prepared
    trials = prepared.trial_set.trials
    places = (prepared.val_indices if split == "val" else []) or prepared.train_indices
    labelled = [i for i in places if trials[i].labels]
    one_split = [i for i in labelled if trials[i].split == trials[labelled[0]].split]
    return sorted(one_split, key=lambda i: (not trials[i].text, len(trials[i].labels or ()), i))[:NUM_TRIALS]


def labels_of(subject: Subject, places: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """The labels of the trials at `places`."""
    return {i: subject.prepared.trial_set.trials[i].labels or () for i in places}
