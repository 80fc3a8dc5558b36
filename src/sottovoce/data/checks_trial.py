"""Faults of stored T15 trials that show without reading a feature: structure, lengths and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from sottovoce.core.lengths import adjacent_repeats, ctc_frames_needed
from sottovoce.core.splits import Split
from sottovoce.core.symbols import PHONEMES, SymbolTable
from sottovoce.core.text import normalise_text
from sottovoce.data.purpose import Finding, Patching
from sottovoce.data.t15_file import LABEL_ITEMS, SPIKES, StoredTrial

OFFICIAL_CHANNELS: Final = 512
_LEAVE_OUT = "repair the file, or leave the trial out (data.on_fault=skip)"


@dataclass(frozen=True)
class Expectation:
    """What the trials of a data set are held against."""

    channels: int
    symbols: SymbolTable = PHONEMES
    patching: Patching | None = None
    """None: only what is infeasible under any geometry is a fault."""


def expected_channels(trials: Iterable[StoredTrial], configured: int | None = None) -> int:
    """`configured`, or the channel count of most trials (of equally frequent ones the official 512, else the first)."""
    if configured is not None:
        return configured
    upright, all_trials = Counter[int](), Counter[int]()
    for trial in trials:
        if trial.channels is not None and trial.rows is not None:
            stated = trial.num_steps
            if stated is not None and stated == trial.channels != trial.rows:
                all_trials[trial.rows] += 1  # the time axis is where the channels should be
            else:
                upright[trial.channels] += 1
    counts = upright or all_trials
    if not counts:
        return OFFICIAL_CHANNELS
    most = counts.most_common(1)[0][1]
    candidates = [channels for channels, count in counts.items() if count == most]
    return OFFICIAL_CHANNELS if OFFICIAL_CHANNELS in candidates else candidates[0]


def trial_findings(trial: StoredTrial, split: Split, expected: Expectation) -> list[Finding]:
    """What is wrong with one trial; of faults that follow from one another only the first."""
    findings = [*_feature_faults(trial, expected.channels), *_label_faults(trial, split, expected.symbols)]
    usable = all(severity != "error" for _, severity, _ in findings)
    if usable and trial.valid_steps is not None:
        findings += _fit_faults(trial, trial.valid_steps, expected.patching)
    return findings


def _feature_faults(trial: StoredTrial, channels: int) -> Iterator[Finding]:
    if trial.shape is None:
        present = ", ".join(trial.items) or "nothing"
        yield "missing_features", "error", f"no input_features (nor spikes), found {present}; {_LEAVE_OUT}"
        return
    if trial.rows is None or trial.channels is None:
        yield (
            "bad_feature_rank",
            "error",
            f"{trial.features} has shape {trial.shape}, expected 2 axes [T, C]; {_LEAVE_OUT}",
        )
        return
    steps = trial.num_steps
    if trial.rows == channels != trial.channels:
        form = "[C, T]" if trial.features == SPIKES else "[T, C]"
        message = f"{trial.features} has shape {trial.shape}, expected {form} with C = {channels}; transpose it"
        yield "features_transposed", "error", message
        return
    if trial.channels != channels:
        yield (
            "channel_mismatch",
            "error",
            f"{trial.channels} columns where {channels} are expected; repair the trial, or set "
            f"preprocessor.num_channels={trial.channels} if every trial has {trial.channels}",
        )
    if trial.rows == 0 or steps == 0:
        labels = "" if trial.label_length is None else f" with {trial.label_length} labels"
        yield (
            "empty_trial",
            "error",
            f"0 time steps{labels}; the trial must be left out and counted (data.on_fault=skip)",
        )
    elif steps is None:
        if trial.features != SPIKES:
            message = f"n_time_steps is missing; all {trial.rows} rows of {trial.features} are taken as valid: add it"
            yield "length_mismatch", "warning", message
    elif steps > trial.rows or steps < 0:
        kind = "exceeds" if steps > 0 else "is negative, beside"
        yield (
            "length_mismatch",
            "error",
            f"n_time_steps {steps} {kind} the {trial.rows} rows of {trial.features}; {_LEAVE_OUT}",
        )
    elif steps < trial.rows:
        yield (
            "length_mismatch",
            "warning",
            f"n_time_steps {steps} is less than the {trial.rows} rows of {trial.features}; "
            "the rows beyond are taken as padding: check that they are",
        )


def _label_faults(trial: StoredTrial, split: Split, symbols: SymbolTable) -> Iterator[Finding]:
    present = [item for item in LABEL_ITEMS if item in trial.items]
    missing = trial.missing_label_items
    if split == "test":
        if present:
            message = f"{_are(present)} in a test file; keep labels of the test split out of training and selection"
            yield "label_in_test", "warning", message
        if missing:
            return
    if missing == ["seq_len"] and trial.labels is not None and not (trial.labels == 0).any():
        message = f"seq_len is missing and none of the {len(trial.labels)} ids is the 0 that ends a label; {_LEAVE_OUT}"
        yield "label_length_missing", "error", message
        return
    if missing:
        there = f" although {_are(present)} present, so this is not a test trial" if present else " outside a test file"
        yield "label_missing", "error", f"{_are(missing)} missing{there}; {_LEAVE_OUT}"
        return
    bad = list(_bad_label(trial, symbols))
    yield from bad
    doubts = list(_doubtful_text(trial))
    yield from doubts
    if not bad:
        yield from _doubtful_label(trial, symbols, text_is_sound=not doubts)


def _are(items: Sequence[str]) -> str:
    """`a is`, or `a, b and c are`."""
    return f"{', '.join(items[:-1])} and {items[-1]} are" if len(items) > 1 else f"{items[0]} is"


def _bad_label(trial: StoredTrial, symbols: SymbolTable) -> Iterator[Finding]:
    labels, length = trial.labels, trial.label_length
    assert labels is not None and length is not None
    if not np.issubdtype(labels.dtype, np.integer):
        message = (
            f"seq_class_ids holds {labels.dtype}, expected whole numbers from 1 to {len(symbols) - 1}; {_LEAVE_OUT}"
        )
        yield "label_out_of_range", "error", message
        return
    nonzero = int(np.count_nonzero(labels))
    if not 0 <= length <= len(labels):
        kind = "exceeds" if length > 0 else "is negative, beside"
        message = f"seq_len {length} {kind} the label array of {len(labels)} (non-zero labels: {nonzero}); {_LEAVE_OUT}"
        yield "label_length_wrong", "error", message
        return
    outside = np.flatnonzero((labels < 0) | (labels >= len(symbols)))
    if len(outside):
        position = int(outside[0])
        yield (
            "label_out_of_range",
            "error",
            f"label id {labels[position]} at position {position}; allowed are 1 to {len(symbols) - 1}; {_LEAVE_OUT}",
        )
        return
    beyond = np.flatnonzero(labels[length:])
    if len(beyond):
        yield (
            "label_length_wrong",
            "error",
            f"seq_len {length}, but {len(beyond)} non-zero ids follow it, the last at position {length + beyond[-1]}; "
            f"{_LEAVE_OUT}",
        )
        return
    inside = np.flatnonzero(labels[:length] == symbols.blank)
    if len(inside):
        message = f"blank id {symbols.blank} at position {inside[0]}, inside the first {length} labels; {_LEAVE_OUT}"
        yield "label_padding_inside", "error", message


def _doubtful_label(trial: StoredTrial, symbols: SymbolTable, text_is_sound: bool) -> Iterator[Finding]:
    target = trial.target
    if not target:
        yield "empty_label", "warning", "seq_len is 0; check that nothing was said"
        return
    adjacent = [i for i, pair in enumerate(pairwise(target)) if set(pair) == {symbols.boundary}]
    if target[-1] != symbols.boundary or adjacent:
        problem = (
            f"the last id is {target[-1]}" if not adjacent else f"two boundaries adjacent at position {adjacent[0]}"
        )
        yield (
            "label_without_final_boundary",
            "warning",
            f"{problem}, expected one boundary {symbols.boundary} after every word, the last included; "
            "word error rates of this trial may be off",
        )
    words, pieces = len(normalise_text(trial.text or "").split()), len(symbols.words(target))
    if words != pieces and text_is_sound:
        yield (
            "text_label_disagree",
            "warning",
            f"the text has {words} words, the labels have {pieces} between boundaries; compare the two",
        )


def _doubtful_text(trial: StoredTrial) -> Iterator[Finding]:
    codes = trial.character_codes
    if all(0 < code < 128 for code in codes):
        codes = [ord(character) for character in trial.sentence or ""]
    outside = [f"{code} at position {i}" for i, code in enumerate(codes) if not 0 < code < 128]
    outside[10:] = ["…"] if len(outside) > 10 else []
    if outside:
        yield (
            "non_ascii_text",
            "warning",
            f"codes outside ASCII: {', '.join(outside)}; they are left out of word errors: replace them in the data",
        )


def _fit_faults(trial: StoredTrial, steps: int, patching: Patching | None) -> Iterator[Finding]:
    target = () if trial.missing_label_items else trial.target
    needed, repeats = ctc_frames_needed(target), adjacent_repeats(target)
    counts = f"{len(target)} labels plus {repeats} repeats"
    short = "" if patching is None or steps >= patching.size else f"shorter than one patch of {patching.size}"
    if steps < needed:
        yield (
            "ctc_infeasible",
            "error",
            f"{steps} time steps for {len(target)} labels: infeasible for CTC under any geometry "
            f"({needed} frames needed: {counts}){short and ', and ' + short}; leave the trial out (data.on_fault=skip)",
        )
    elif patching is not None and patching.frames(steps) < 1:
        yield (
            "too_short_for_model",
            "error",
            f"{steps} time steps, {short}: no frame comes out; "
            "leave the trial out (data.on_fault=skip), or use a smaller patch",
        )
    elif patching is not None and patching.frames(steps) < needed:
        yield (
            "ctc_infeasible",
            "warning",
            f"{steps} time steps give {patching.frames(steps)} frames with patch {patching.size} and stride "
            f"{patching.stride}, but CTC needs {needed} ({counts}): infinite loss with that geometry, feasible without "
            f"patching; leave the trial out, or use a smaller stride ({patching.steps_needed(needed)} bins are needed)",
        )
