"""Preflight of targets and lengths: labels that are labels, frames enough for them, formulas that tell the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import torch

from sottovoce.core.findings import Finding
from sottovoce.core.lengths import ctc_frames_needed
from sottovoce.core.trial import Trial
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun, shortest_frames
from sottovoce.models.compose import DecoderModel
from sottovoce.models.patching import patches

LEAST_MARGIN: Final = 2
"""Frames beyond those that CTC needs; fewer are one rounding away from an infinite loss (starting value of the
catalogue, row A1)."""
FEWEST_EQUAL_LENGTHS: Final = 8
"""So many different sentences do not have as many labels each by chance."""


def check_labels(untrained: UntrainedRun) -> Iterator[Finding]:
    """Blanks, ids that are no symbols, and padding among the labels of all trials that a run uses."""
    blank, num_symbols = untrained.computer.blank, untrained.computer.model.head.out_features
    trials = _labelled(untrained)
    padded, blanks, outside = [], [], []
    for trial in trials:
        labels = trial.labels or ()
        if labels and labels[-1] == blank:
            padded.append(trial)
        elif blank in labels:
            blanks.append(trial)
        if any(not 0 <= label < num_symbols for label in labels):
            outside.append(trial)
    if padded:
        trial = padded[0]
        labels = trial.labels or ()
        used = len(labels) - next((i for i, label in enumerate(reversed(labels)) if label != blank), len(labels))
        yield found(
            "label_padding",
            f"{len(padded)} of {len(trials)} targets end in the blank ({blank}), e.g. {trial.trial_id}: "
            f"{len(labels)} labels, of which the last {len(labels) - used} are blanks.",
            "preflight",
        )
    elif (equal := _equal_lengths(untrained, trials)) is not None:
        yield equal
    if blanks:
        trial = blanks[0]
        at = (trial.labels or ()).index(blank)
        evidence = f"{len(blanks)} of {len(trials)} targets hold the blank ({blank}), e.g. {trial.trial_id} at {at}."
        yield found("blank_in_target", evidence, "preflight")
    if outside:
        trial = outside[0]
        wrong = next(label for label in trial.labels or () if not 0 <= label < num_symbols)
        evidence = (
            f"{len(outside)} of {len(trials)} targets hold ids outside 0 to {num_symbols - 1}, e.g. {wrong} in "
            f"{trial.trial_id}."
        )
        yield found("label_out_of_range", evidence, "preflight")
    yield from _batched_lengths(untrained)


def _labelled(untrained: UntrainedRun) -> list[Trial]:
    prepared = untrained.prepared
    used = (prepared.trial_set.trials[i] for i in (*prepared.train_indices, *prepared.val_indices))
    return [trial for trial in used if trial.labels is not None]


def _equal_lengths(untrained: UntrainedRun, trials: list[Trial]) -> Finding | None:
    """Different sentences with equally many labels each: the width of an array, not their length."""
    texts = {trial.text for trial in trials if trial.text}
    lengths = Counter(len(trial.labels or ()) for trial in trials)
    sizes = {len(text.split()) for text in texts}
    if len(lengths) > 1 or len(texts) < FEWEST_EQUAL_LENGTHS or len(sizes) == 1:
        return None
    evidence = (
        f"All {len(trials)} targets have {next(iter(lengths))} labels, although their texts have {min(sizes)} to "
        f"{max(sizes)} words."
    )
    return found("label_padding", evidence, "preflight", severity="warning", support=0.8)


def _batched_lengths(untrained: UntrainedRun) -> Iterator[Finding]:
    """What collation makes of the labels."""
    trials = [untrained.prepared.trial_set.trials[i] for i in untrained.indices]
    for trial, length in zip(trials, untrained.whole.label_lengths_B.tolist(), strict=True):
        if length != len(trial.labels or ()):
            evidence = f"{trial.trial_id} has {len(trial.labels or ())} labels, its batch counts {length}."
            yield found("label_padding", evidence, "preflight")
            return


def check_feasibility(untrained: UntrainedRun) -> Iterator[Finding]:
    """Frames left over in each trial, at the model's output length after the worst that augmentation does."""
    prepared, margins = untrained.prepared, []
    for i in (*prepared.train_indices, *prepared.val_indices):
        trial = prepared.trial_set.trials[i]
        frames = shortest_frames(prepared, trial.num_steps, trial.split == "train")
        margins.append((frames - max(ctc_frames_needed(trial.labels or ()), 1), frames, trial))
    _, frames, trial = min(margins, key=lambda entry: entry[0])
    infeasible, tight = (sum(margin < limit for margin, _, _ in margins) for limit in (0, LEAST_MARGIN))
    case = (
        f"{trial.trial_id} has {frames} frames for {len(trial.labels or ())} labels and "
        f"{ctc_frames_needed(trial.labels or ()) - len(trial.labels or ())} adjacent repeats."
    )
    if infeasible:
        evidence = f"{infeasible} of {len(margins)} targets do not fit; worst: {case}"
        yield found("ctc_infeasible", evidence, "preflight")
    elif tight:
        evidence = (
            f"{tight} of {len(margins)} targets fit with fewer than {LEAST_MARGIN} frames to spare; worst: {case}"
        )
        yield found("ctc_infeasible", evidence, "preflight", severity="warning", support=0.5)


def check_frame_formula(untrained: UntrainedRun) -> Iterator[Finding]:
    """The model's length formula against the tensors of its own parts, at every length of a few frames."""
    model = untrained.computer.model
    size, stride = (model.config.patch.size, model.config.patch.stride) if model.config.patch else (1, 1)
    step = model.stem.config.stride if model.stem is not None else 1
    longest = (size + 2 * stride) * step + 2 * model.bins_per_frame
    model.eval()
    with torch.no_grad():
        front = {length: _front_frames(model, length) for length in range(size * step, longest + 1)}
        through = {frames: _encoder_frames(model, frames) for frames in sorted(set(front.values())) if frames}
    offsets = {
        length: model.output_lengths(length) - through[frames] for length, frames in front.items() if frames in through
    }
    wrong = {length: offset for length, offset in offsets.items() if offset}
    if not wrong:
        return
    length, offset = next(iter(wrong.items()))
    kinds = sorted(set(wrong.values()))
    shown = (
        f"{offset:+d} frame{'s' * (abs(offset) > 1)}" if len(kinds) == 1 else f"{kinds[0]:+d} to {kinds[-1]:+d} frames"
    )
    everywhere = "at all" if len(wrong) == len(offsets) else f"at {len(wrong)} of"
    evidence = (
        f"The formula is off by {shown} {everywhere} {len(offsets)} lengths tried; e.g. {length} bins give "
        f"{model.output_lengths(length) - offset} frames, the formula says {model.output_lengths(length)}."
    )
    yield found("frame_length_off_by_one", evidence, "preflight")


def _front_frames(model: DecoderModel, length: int) -> int:
    """Frames that stem and patching really make of `length` bins."""
    x = torch.zeros(1, length, model.config.num_channels or 1)
    if model.stem is not None:
        x, _ = model.stem(x, torch.tensor([length]))
    if model.config.patch is not None:
        if x.shape[1] < model.config.patch.size:
            return 0
        x = patches(x, model.config.patch)
    return x.shape[1]


def _encoder_frames(model: DecoderModel, frames: int) -> int:
    """Frames that the encoder really makes of `frames` of its inputs."""
    config = model.config
    width = model.stem.output_size if model.stem is not None else config.num_channels or 1
    x = torch.zeros(1, frames, width * (config.patch.size if config.patch else 1))
    encoded: torch.Tensor = model.encoder(x, torch.tensor([frames]))[0]
    return encoded.shape[1]


def check_transducer_lengths(untrained: UntrainedRun) -> Iterator[Finding]:
    """One row of the lattice more than labels, and a frame at least."""
    head, batch = untrained.computer.model.transducer, untrained.batch
    if head is None or not any("rnnt" in step_kind.activity.weights for step_kind in untrained.step_kinds):
        return
    head.eval()
    with torch.no_grad():
        rows = head.predict(batch.labels_BU, batch.label_lengths_B).shape[1]
    expected = batch.labels_BU.shape[1] + 1
    if rows != expected:
        evidence = f"The predictor gives {rows} rows for targets of up to {expected - 1} labels; it takes {expected}."
        yield found("transducer_lengths", evidence, "preflight")
    prepared = untrained.prepared
    trials = [prepared.trial_set.trials[i] for i in prepared.train_indices]
    without = [trial for trial in trials if shortest_frames(prepared, trial.num_steps) < 1]
    if without:
        evidence = f"{len(without)} of {len(trials)} training trials give no frame, e.g. {without[0].trial_id}."
        yield found("transducer_lengths", evidence, "preflight")
