"""Validation while training: the code that `sottovoce evaluate` runs, in the precision of the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.hypothesis import Hypothesis
from sottovoce.core.trial import Trial, TrialSet, pad_labels
from sottovoce.evaluation.inference import TextDecoder, TransducerSearch, TrialOutput, run_model
from sottovoce.evaluation.scoring import METRICS, score
from sottovoce.losses.ctc import ctc_loss
from sottovoce.metrics import error_counts
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
    text_decoder: TextDecoder
    batch_size: int

    def values(self, computer: StepComputer) -> dict[str, float]:
        """`val/loss` (nats an utterance) and the error rates that can be computed; empty in other processes.

        `val/pairing_gain`: by how many nats a trial's own labels are likelier than another trial's, on average. A
        transducer that is not trained yet does not decode: CTC does until then.
        """
        trained = computer.progress.trained
        text_decoder = replace(self.text_decoder, decoder=self.decoder_now(computer))
        with_transducer = text_decoder.decoder == "transducer"
        share = self.indices[computer.processes.rank :: computer.processes.count]
        others, modes = self.other_labels(), computer.modes if "mode_head" in trained else None
        found = [
            _scored(output, others, text_decoder, computer.blank, modes)
            for output in self.outputs(computer, share, with_transducer)
        ]
        if computer.processes.count > 1:
            found = _gathered(found, computer.processes.rank, computer.processes.count)
        if not found:
            return {}
        found.sort(key=lambda scored: scored.trial.trial_id)
        overall = score(
            [(s.trial, s.hypothesis) for s in found], text_decoder.table, decoder=text_decoder.decoder
        ).overall
        rates = {f"val/{name}": overall.rates[name].value for name in METRICS if name in overall.rates}
        right = [scored.mode_is_right for scored in found if scored.mode_is_right is not None]
        if right:
            rates["val/mode_accuracy"] = sum(right) / len(right)
        gains = [s.others_nats - s.nats for s in found if math.isfinite(s.others_nats) and math.isfinite(s.nats)]
        if gains and len(others) > 1:
            rates["val/pairing_gain"] = sum(gains) / len(gains)
        if with_transducer:
            num_labels = sum(len(scored.trial.labels or ()) for scored in found)
            rates["val/ctc_per"] = sum(scored.ctc_errors for scored in found) / num_labels if num_labels else None
        return {
            "val/loss": sum(scored.nats for scored in found) / len(found),
            **{name: value for name, value in rates.items() if value is not None},
            "val/blank_fraction": overall.blank.value or 0.0,
        }

    def other_labels(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """For the labels of each trial those of another, about as many: as likely to a model that hears nothing."""
        distinct = sorted(
            {self.trial_set.trials[i].labels or () for i in self.indices}, key=lambda ids: (len(ids), ids)
        )
        return dict(zip(distinct, [*distinct[1:], *distinct[:1]], strict=True))

    def decoder_now(self, computer: StepComputer) -> str:
        """The configured decoder, or `greedy` where that is a transducer which has not learnt anything yet."""
        waits = self.text_decoder.decoder == "transducer" and "rnnt_decoder" not in computer.progress.trained
        return "greedy" if waits else self.text_decoder.decoder

    def embeddings(self, computer: StepComputer, indices: Sequence[int]) -> dict[str, npt.NDArray[np.float32]]:
        """The frames of each trial as the speaking-mode head pools them [E], by trial id; the same in every process."""
        outputs = self.outputs(computer, indices, with_transducer=False)
        return {output.trial.trial_id: output.mode.pooled_E for output in outputs if output.mode is not None}

    def outputs(self, computer: StepComputer, indices: Sequence[int], with_transducer: bool) -> Iterator[TrialOutput]:
        """What the model makes of these trials as it is now."""
        return run_model(
            computer.model,
            computer.pipeline,
            self.trial_set,
            indices,
            batch_size=self.batch_size,
            blank=computer.blank,
            device=computer.device,
            transducer=(
                TransducerSearch(1, computer.config.evaluation.max_symbols_per_frame) if with_transducer else None
            ),
            autocast=computer.autocast,
        )


def _scored(
    output: TrialOutput,
    others: Mapping[tuple[int, ...], tuple[int, ...]],
    text_decoder: TextDecoder,
    blank: int,
    modes: ModeTargets | None,
) -> _Scored:
    labels = output.trial.labels or ()
    log_probs = torch.from_numpy(output.log_probs_SV)[None].expand(2, -1, -1)
    frames, (targets, lengths) = torch.tensor([len(output.log_probs_SV)] * 2), pad_labels([labels, others[labels]])
    own, of_others = ctc_loss(log_probs, targets, frames, lengths, blank).tolist()
    errors = sum(error_counts(labels, output.greedy_symbols)[:3])
    vocalised, is_right = modes.truth(output.trial) if modes is not None else None, None
    if vocalised is not None and output.mode is not None:
        is_right = (output.mode.vocalised > 0.5) == vocalised
    return _Scored(output.trial, text_decoder(output), own, errors, of_others, is_right)


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
            f"training.selection_metric={metric.removeprefix('val/')} cannot be computed with this data "
            f"and decoder; choose one of {', '.join(name.removeprefix('val/') for name in values)}"
        )
    return (-values[metric] if metric == "val/wra" else values[metric]), values["val/loss"]
