"""Validation while training: the code that `sottovoce evaluate` runs, in the precision of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.hypothesis import Hypothesis
from sottovoce.core.symbols import SymbolTable
from sottovoce.core.trial import Trial, TrialSet, pad_labels
from sottovoce.decoding.decoder import Decoder
from sottovoce.decoding.greedy import greedy_symbols
from sottovoce.evaluation.emissions import TrialEmissions, emission_batches
from sottovoce.evaluation.scoring import METRICS, Evaluation, score
from sottovoce.losses.ctc import ctc_loss
from sottovoce.metrics import ErrorCounts
from sottovoce.runs.names import Metric, unprefixed, validation_rate
from sottovoce.training.mode_targets import ModeTargets
from sottovoce.training.step import StepComputer


@dataclass(frozen=True)
class _Scored:
    """What is kept of one trial."""

    trial: Trial
    hypothesis: Hypothesis
    nats: float
    """CTC loss."""
    ctc_errors: int
    """Of the greedy CTC path."""
    others_nats: float
    """The CTC loss of another trial's labels; not finite where they do not fit."""
    mode_is_right: bool | None
    """None where the data do not state the mode, or the model does not tell it."""


@dataclass(frozen=True)
class Validation:
    """The trials to decode and how; each process takes its share, the main process scores all."""

    trial_set: TrialSet
    indices: Sequence[int]
    table: SymbolTable
    """What the model's outputs stand for."""
    decoder: Decoder
    """The configured one."""
    until_trained: Decoder
    """Decodes while the component that `decoder` needs has not learnt anything yet."""
    batch_size: int
    """Trials in one forward pass."""
    score: Callable[..., Evaluation] = score
    """Scores pairs of a trial and its hypothesis, as `evaluation.scoring.score` does."""

    def values(self, computer: StepComputer) -> dict[str, float]:
        """`val/loss` (nats an utterance) and the error rates that can be computed; empty in other processes.

        `val/pairing_gain`: by how many nats a trial's own labels are likelier than another trial's, on average.
        `val/ctc_per`: of CTC's best path, where another part of the model decodes.
        """
        decoder = self.decoder_now(computer.progress.trained)
        found = self._scored_here(computer, decoder)
        if computer.processes.count > 1:
            found = _gathered(found, computer.processes.rank, computer.processes.count)
        if not found:
            return {}
        found.sort(key=lambda scored: scored.trial.trial_id)
        overall = self.score([(s.trial, s.hypothesis) for s in found], self.table, decoder=decoder.name).overall
        rates = {validation_rate(name): overall.rates[name].value for name in METRICS if name in overall.rates}
        right = [scored.mode_is_right for scored in found if scored.mode_is_right is not None]
        if right:
            rates[Metric.VAL_MODE_ACCURACY] = sum(right) / len(right)
        gains = [s.others_nats - s.nats for s in found if math.isfinite(s.others_nats) and math.isfinite(s.nats)]
        if gains and len(self.other_labels()) > 1:
            rates[Metric.VAL_PAIRING_GAIN] = sum(gains) / len(gains)
        if decoder.needs is not None:
            num_labels = sum(len(scored.trial.labels or ()) for scored in found)
            rates[Metric.VAL_CTC_PER] = sum(scored.ctc_errors for scored in found) / num_labels if num_labels else None
        return {
            Metric.VAL_LOSS: sum(scored.nats for scored in found) / len(found),
            **{name: value for name, value in rates.items() if value is not None},
            Metric.VAL_BLANK_FRACTION: overall.blank.value or 0.0,
        }

    def other_labels(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """For the labels of each trial those of another, about as many: as likely to a model that hears nothing."""
        distinct = sorted(
            {self.trial_set.trials[i].labels or () for i in self.indices}, key=lambda ids: (len(ids), ids)
        )
        return dict(zip(distinct, [*distinct[1:], *distinct[:1]], strict=True))

    def decoder_now(self, trained: Collection[str]) -> Decoder:
        """Who decodes when these components have learnt something."""
        return self.decoder if self.decoder.needs is None or self.decoder.needs in trained else self.until_trained

    def embeddings(self, computer: StepComputer, indices: Sequence[int]) -> dict[str, npt.NDArray[np.float32]]:
        """The frames of each trial as the speaking-mode head pools them [E], by trial id; the same in every process."""
        return {
            one.trial.trial_id: one.mode.pooled_E
            for batch in self.batches(computer, indices, self.until_trained)
            for one in batch
            if one.mode is not None
        }

    def batches(
        self, computer: StepComputer, indices: Sequence[int], decoder: Decoder
    ) -> Iterator[list[TrialEmissions]]:
        """What the model as it is now makes of these trials, with all that `decoder` reads."""
        return emission_batches(
            computer.model,
            computer.pipeline,
            self.trial_set,
            indices,
            [decoder],
            batch_size=self.batch_size,
            device=computer.device,
            autocast=computer.autocast,
        )

    def _scored_here(self, computer: StepComputer, decoder: Decoder) -> list[_Scored]:
        """This process's share of the trials."""
        share = self.indices[computer.processes.rank :: computer.processes.count]
        others, modes = self.other_labels(), computer.modes if "mode_head" in computer.progress.trained else None
        found = []
        for batch in self.batches(computer, share, decoder):
            with computer.autocast():
                hypotheses = decoder.decode_batch([one.emissions for one in batch])
            for one, hypothesis in zip(batch, hypotheses, strict=True):
                found.append(_scored(one, hypothesis, others[one.trial.labels or ()], self.table, modes))
        return found


def _scored(
    one: TrialEmissions,
    hypothesis: Hypothesis,
    others_labels: tuple[int, ...],
    table: SymbolTable,
    modes: ModeTargets | None,
) -> _Scored:
    trial, emissions, labels = one.trial, one.emissions, one.trial.labels or ()
    log_probs = emissions.log_probs_1SV.expand(2, -1, -1)
    frames, (targets, lengths) = torch.tensor([len(emissions)] * 2), pad_labels([labels, others_labels])
    own, of_others = ctc_loss(log_probs, targets, frames, lengths, table.blank).tolist()
    errors = ErrorCounts.of(labels, greedy_symbols(emissions, table).symbols).errors
    vocalised, is_right = modes.truth(trial) if modes is not None else None, None
    if vocalised is not None and one.mode is not None:
        is_right = (one.mode.vocalised > 0.5) == vocalised
    return _Scored(trial, hypothesis, own, errors, of_others, is_right)


def _gathered(found: list[_Scored], rank: int, world_size: int) -> list[_Scored]:
    parts: list[list[_Scored]] | None = [[] for _ in range(world_size)] if rank == 0 else None
    torch.distributed.gather_object(found, parts)
    return [scored for part in parts for scored in part] if parts is not None else []


def ranked(values: Mapping[str, float], metric: str) -> tuple[float, float]:
    """The metric that selects (`val/per` …) so that smaller is better, and the validation loss.

    Raises:
        ConfigurationError: this data and decoder do not give the metric.
    """
    if metric not in values:
        raise ConfigurationError(
            f"training.selection_metric={unprefixed(metric)} cannot be computed with this data "
            f"and decoder; choose one of {', '.join(unprefixed(name) for name in values)}"
        )
    return (-values[metric] if metric == Metric.VAL_WRA else values[metric]), values[Metric.VAL_LOSS]
