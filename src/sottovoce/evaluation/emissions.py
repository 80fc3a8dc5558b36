"""Running a model over trials: the emissions of each, computed once for every decoder that wants them.

The same code validates while training and serves `evaluate` and `decode`. Legend: B trials, S frames, V symbols,
H joint size, E features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from sottovoce.core.hypothesis import Hypothesis
from sottovoce.core.trial import Trial, TrialSet
from sottovoce.data.collation import collate
from sottovoce.decoding.decoder import Decoder
from sottovoce.decoding.emissions import Emissions
from sottovoce.evaluation.feasibility import infeasible_trials
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.models.compose import DecoderModel, Encoded
from sottovoce.models.speaking_mode import ModeOutput
from sottovoce.runs.trained_decoder import TrainedDecoder


@dataclass(frozen=True)
class ModeOpinion:
    """The speaking-mode head's word on one trial."""

    vocalised: float
    """Probability."""
    pooled_E: npt.NDArray[np.float32]
    """The frames it looked at, as one vector."""


@dataclass(frozen=True)
class TrialEmissions:
    """A trial and what the model makes of it."""

    trial: Trial
    emissions: Emissions
    mode: ModeOpinion | None = None
    """What the speaking-mode head says, where the model has one."""


@dataclass(frozen=True)
class DecodedTrial:
    """A trial, CTC's posteriors, and what each decoder makes of it."""

    trial: Trial
    log_probs_SV: npt.NDArray[np.float32]
    """Natural logarithms, valid frames only."""
    hypotheses: tuple[Hypothesis, ...]
    """In the order of the decoders."""


def emission_batches(
    model: DecoderModel,
    pipeline: FeaturePipeline,
    trial_set: TrialSet,
    indices: Sequence[int],
    decoders: Sequence[Decoder],
    *,
    batch_size: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[list[TrialEmissions]]:
    """The trials `indices`, longest first, with what `decoders` read; the model is in evaluation mode meanwhile.

    `autocast` gives a new context for each batch.
    """
    needs = {decoder.needs for decoder in decoders}
    longest_first = sorted(indices, key=lambda i: -trial_set.trials[i].num_steps)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(longest_first), batch_size):
            chosen = longest_first[start : start + batch_size]
            with torch.no_grad(), autocast():
                batch = pipeline.evaluate(collate(trial_set, chosen).to(device))
                encoded = model.encode(batch.signal, batch.lengths_B, batch.session_B)
                logits_BSV = model.ctc_logits(encoded)
                head = (
                    model.transducer if model.transducer is not None and model.transducer.component in needs else None
                )
                transducer_BSH = None if head is None else head.project(encoded.frames_BSE)
            log_probs_BSV = logits_BSV.float().log_softmax(-1)
            yield [
                _of_row(trial_set.trials[index], row, log_probs_BSV, transducer_BSH, encoded)
                for row, index in enumerate(chosen)
            ]
    finally:
        model.train(was_training)


def decoded(
    run: TrainedDecoder,
    trial_set: TrialSet,
    indices: Sequence[int],
    decoders: Sequence[Decoder],
    progress: Callable[[int, int], None] | None = None,
) -> list[DecodedTrial]:
    """What `decoders` make of these trials, in the order of `indices`; the model runs once for all of them.

    `progress` is called with the trials done and their number.

    Raises:
        DataError: a trial is too short for the model, or the model gives NaN.
    """
    pipeline = FeaturePipeline(run.preprocessor)
    _refuse_short_trials(run, pipeline, [trial_set.trials[i] for i in indices])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = run.model.to(device)
    by_id: dict[str, DecodedTrial] = {}
    for batch in emission_batches(
        model, pipeline, trial_set, indices, decoders, batch_size=run.decoding.batch_size, device=device
    ):
        for one in batch:
            one.emissions.check_numbers(one.trial.trial_id)
        of_each = [decoder.decode_batch([one.emissions for one in batch]) for decoder in decoders]
        for one, *hypotheses in zip(batch, *of_each, strict=True):
            by_id[one.trial.trial_id] = DecodedTrial(one.trial, one.emissions.log_probs_SV, tuple(hypotheses))
            if progress is not None:
                progress(len(by_id), len(indices))
    return [by_id[trial_set.trials[i].trial_id] for i in indices]


def _refuse_short_trials(run: TrainedDecoder, pipeline: FeaturePipeline, trials: Sequence[Trial]) -> None:
    def frames(trial: Trial) -> int:
        return run.model.output_lengths(pipeline.shortest_length(trial.num_steps, training=False))

    if faults := infeasible_trials([replace(trial, labels=None) for trial in trials], frames):
        raise next(iter(faults.values())).as_error()


def _of_row(
    trial: Trial, row: int, log_probs_BSV: torch.Tensor, transducer_BSH: torch.Tensor | None, encoded: Encoded
) -> TrialEmissions:
    frames = int(encoded.lengths_B[row])
    transducer_SH = None if transducer_BSH is None else transducer_BSH[row, :frames]
    emissions = Emissions(log_probs_BSV[row, :frames].cpu().numpy(), transducer_SH)
    return TrialEmissions(trial, emissions, None if encoded.mode is None else _opinion(encoded.mode, row))


def _opinion(mode: ModeOutput, row: int) -> ModeOpinion:
    return ModeOpinion(float(mode.posterior_B2[row, 1]), mode.pooled_BE[row].float().cpu().numpy())
