"""Faults of a folder of recordings, every recording decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import soundfile

from sottovoce.core.faults import Fault
from sottovoce.core.lengths import adjacent_repeats, ctc_frames_needed, log_mel_length
from sottovoce.data.config import DataConfig
from sottovoce.data.manifest import Recording
from sottovoce.data.pronunciation import UnknownSymbolError, text_labels
from sottovoce.data.purpose import Finding, Progress, Purpose
from sottovoce.data.recordings import (
    AudioError,
    FoundRecordings,
    Segment,
    locate,
    read_samples,
    resampled_length,
    split_recordings,
)
from sottovoce.features.config import LogMelConfig

MOST_CLIPPED: Final = 0.01
SILENT_RMS: Final = 1e-5
_BITS: Final = {"PCM_U8": 8, "PCM_S8": 8, "PCM_24": 24, "PCM_32": 32}
"""Resolution of a sample; full scale of every other format is taken as that of 16 bits."""


def check_recordings(found: FoundRecordings, purpose: Purpose, progress: Progress | None) -> tuple[int, list[Fault]]:
    """Number of recordings and every fault of them, each decoded."""
    _, leaks = split_recordings(found.recordings, DataConfig(), seed=0)  # only what the manifest states can leak
    faults = [*found.faults, *leaks]
    rates = Counter[int]()
    for i, recording in enumerate(found.recordings, 1):
        try:
            segment = locate(recording, purpose.audio_channel)
            samples = read_samples(recording.file, segment)
        except AudioError as error:
            faults.append(recording.fault(error.code, "error", error.message))
        else:
            rates[segment.rate_hz] += 1
            findings = [
                *_channel_findings(segment, purpose),
                *_samples_findings(recording.file, samples),
                *_text_findings(recording, segment, purpose),
            ]
            faults += [recording.fault(*finding) for finding in findings]
        if progress is not None:
            progress(i, len(found.recordings))
    if purpose.front_end is not None:
        faults += _rate_faults(found.root.resolve().name, rates, purpose.front_end.sample_rate_hz)
    return len(found.recordings), faults


def _channel_findings(segment: Segment, purpose: Purpose) -> Iterator[Finding]:
    if segment.num_channels > 1 and purpose.audio_channel is None:
        message = (
            f"{segment.num_channels} channels, one expected; only channel 0 is read: choose it, or another, with "
            "data.audio_channel"
        )
        yield "wav_channels", "warning", message


def _samples_findings(file: Path, samples: npt.NDArray[np.float32]) -> Iterator[Finding]:
    loudest = np.abs(samples)
    if loudest.max(initial=0.0) > 0.99:
        subtype = soundfile.info(str(file)).subtype
        full_scale = 1 - 2.0 ** (1 - _BITS.get(subtype, 16))
        clipped = float((loudest >= full_scale).mean())
        if clipped > MOST_CLIPPED:
            message = (
                f"{clipped:.1%} of the samples are at full scale, at most {MOST_CLIPPED:.0%} expected; record it softer"
            )
            yield "wav_clipped", "warning", message
    rms = float(np.sqrt(np.square(samples, dtype=np.float64).mean())) if len(samples) else 0.0
    if rms < SILENT_RMS:
        message = f"root mean square {rms:.1e} of full scale, at least {SILENT_RMS:.0e} expected; check the recording"
        yield "wav_silent", "warning", message


def _text_findings(recording: Recording, segment: Segment, purpose: Purpose) -> Iterator[Finding]:
    if recording.text is None or not purpose.has_targets_of_texts:
        return
    try:
        target = text_labels(recording.text, purpose.symbols, purpose.lexicon, recording.trial_id)
    except UnknownSymbolError as error:
        yield "unknown_symbol", "error", error.reason
        return
    if not target:
        yield "empty_label", "warning", f"the text {recording.text!r} has no word; check that nothing was said"
        return
    front_end = purpose.front_end or LogMelConfig()
    rate = front_end.sample_rate_hz
    frames = log_mel_length(
        resampled_length(segment.num_samples, segment.rate_hz, rate), round(front_end.hop_ms * rate / 1000)
    )
    needed = ctc_frames_needed(target)
    counts = f"CTC needs {needed} ({len(target)} labels plus {adjacent_repeats(target)} repeats)"
    if frames < needed:
        message = (
            f"{frames} frames of {front_end.hop_ms:g} ms, but {counts}: infeasible under any geometry; leave it out"
        )
        yield "ctc_infeasible", "error", message
    elif purpose.front_end is not None and purpose.patching.frames(frames) < needed:
        patching = purpose.patching
        yield (
            "ctc_infeasible",
            "warning",
            f"{frames} frames of {front_end.hop_ms:g} ms give {patching.frames(frames)} with patch {patching.size} and "
            f"stride {patching.stride}, but {counts}: infinite loss with that geometry; use a smaller stride "
            f"({patching.steps_needed(needed)} frames are needed)",
        )


def _rate_faults(name: str, rates: Counter[int], wanted: int) -> Iterator[Fault]:
    for rate, count in sorted(rates.items()):
        if rate != wanted:
            note = f", nothing above {rate // 2} Hz is in them" if rate < wanted else ""
            message = f"{count} of {rates.total()} recordings have {rate} Hz, the front end {wanted}; resampled{note}"
            yield Fault(name, "", "wav_sample_rate", "warning", message)
