"""The names of a run's metrics and events: of the lines of `metrics.jsonl` and `events.jsonl`; and of its watches.

An event may also have the code of a cause from the catalogue; then it is a finding.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Metric(StrEnum):
    """Metrics with a fixed name; the families below have one for each group, rate or branch."""

    TRAIN_LOSS = "train/loss"
    """What the optimiser minimises, in nats an utterance weighted over the branches."""
    CTC_LOSS = "train/ctc_loss"
    DISTILLATION_LOSS = "train/distillation_loss"
    TRANSDUCER_LOSS = "train/transducer_loss"
    MODE_LOSS = "train/mode_loss"
    FLOW_LOSS = "train/flow_loss"
    TRAIN_BLANK_FRACTION = "train/blank_fraction"
    """Frames whose best symbol is the blank, of all valid ones."""
    VALID_FRAME_RATIO = "train/valid_frame_ratio"
    """Of the frames, those that no padding fills."""
    PADDING_FRACTION = "train/padding_fraction"
    """Of the batch's time steps, those that are padding."""
    GRADIENT_NORM = "train/gradient_norm"
    """Of all gradients before clipping."""
    STEP_SECONDS = "train/step_seconds"
    DATA_WAIT_SECONDS = "train/data_wait_seconds"
    PEAK_MEMORY_MIB = "train/peak_memory_mib"
    MODE_CONFIDENCE = "train/mode_confidence"
    """Of the speaking modes that are estimated for training trials."""
    VAL_LOSS = "val/loss"
    """CTC, in nats an utterance."""
    VAL_PER = "val/per"
    VAL_WER = "val/wer"
    VAL_CER = "val/cer"
    VAL_WRA = "val/wra"
    VAL_CTC_PER = "val/ctc_per"
    """PER of the CTC head, where the transducer decodes."""
    VAL_BLANK_FRACTION = "val/blank_fraction"
    VAL_MODE_ACCURACY = "val/mode_accuracy"
    VAL_PAIRING_GAIN = "val/pairing_gain"
    """Nats by which another trial's labels are less likely than a trial's own."""


TRAIN: Final = "train/"
VAL: Final = "val/"
TEST: Final = "test/"
LEARNING_RATE: Final = "learning_rate/"
GROUP_GRADIENT_NORM: Final = "gradient_norm/"


def validation_rate(name: str) -> str:
    """The metric of a rate of the validation trials.

    >>> validation_rate("per") == Metric.VAL_PER
    True
    """
    return VAL + name


def learning_rate(group: str) -> str:
    """Of one group of the optimiser's parameters."""
    return LEARNING_RATE + group


def group_gradient_norm(group: str) -> str:
    """The norm of the gradients of one group of the optimiser's parameters, before clipping."""
    return GROUP_GRADIENT_NORM + group


def with_flow_bridge(metric: str) -> str:
    """The same metric of the validation trials, decoded over the flow bridge."""
    return f"{metric}_with_flow_bridge"


def unprefixed(metric: str) -> str:
    """The name without what it was measured on, for people.

    >>> unprefixed(Metric.VAL_PER)
    'per'
    """
    return metric.removeprefix(TRAIN).removeprefix(VAL)


class Event(StrEnum):
    """What happens in a run that is no finding."""

    RESUMED = "resumed"
    TRIAL_SKIPPED = "trial_skipped"
    """A trial or file is left out (`data.on_fault=skip`)."""
    TAUGHT_BY = "taught_by"
    STAGE_STARTED = "stage_started"
    STAGE_FINISHED = "stage_finished"
    UNFROZEN = "unfrozen"
    """Components that were frozen learn from the next step on."""
    MODES_REFRESHED = "modes_refreshed"
    """Speaking modes have been estimated anew."""
    FLOW_BRIDGE_MEASURED = "flow_bridge_measured"
    STEP_SKIPPED = "step_skipped"
    """The guard kept a bad step from the weights."""
    ROLLED_BACK = "rolled_back"
    """The guard went back to the last checkpoint."""
    CHECKPOINT_SAVED = "checkpoint_saved"
    RUN_FINISHED = "run_finished"
    RUN_ABORTED = "run_aborted"
    """The guard gave up."""
    RUN_FAILED = "run_failed"
    """An error ended the run."""


class WatchKey(StrEnum):
    """What looks on while a run trains, under the name that its memory has in a checkpoint."""

    MONITOR = "monitor"
    CAPSULES = "capsules"
    """The writer of capsules."""
