"""Reader of a folder of labelled recordings: waveforms at the front end's rate, one channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from sottovoce.core.errors import DataError
from sottovoce.core.faults import Fault
from sottovoce.core.splits import SPLITS, Split
from sottovoce.core.symbols import SymbolTable
from sottovoce.core.trial import Trial
from sottovoce.data.config import DataConfig
from sottovoce.data.manifest import Recording, find_manifest, read_recordings
from sottovoce.data.pronunciation import UnknownSymbolError, text_labels
from sottovoce.data.splits import Row, assign_splits, leaking_events

END_TOLERANCE_S: Final = 0.01
"""A segment may end this much after its file, because manifests round."""


def resampled_length(num_samples: int, rate_hz: int, to_rate_hz: int) -> int:
    """Samples that soxr gives for `num_samples`: their exact share, halves rounded up."""
    return (2 * num_samples * to_rate_hz + rate_hz) // (2 * rate_hz)


def resampled(samples: npt.NDArray[np.float32], rate_hz: int, to_rate_hz: int) -> npt.NDArray[np.float32]:
    """A waveform [N] at another rate, `resampled_length` long; it may overshoot full scale."""
    if rate_hz == to_rate_hz or not len(samples):
        return samples
    converted: npt.NDArray[np.float32] = soxr.resample(samples, rate_hz, to_rate_hz)
    return converted


@dataclass(frozen=True)
class Segment:
    """Where in its file a trial's samples are, at the file's own rate."""

    start: int
    num_samples: int
    rate_hz: int
    channel: int
    num_channels: int
    """Of the file; only `channel` is read."""


@dataclass(frozen=True)
class FoundRecordings:
    """The structure of a folder of recordings; no audio file is opened."""

    root: Path
    recordings: tuple[Recording, ...]
    """In their stored order."""
    faults: tuple[Fault, ...] = ()
    """What is wrong with their description."""
    described_in: Path = Path()
    """The manifest, or the folder where there is none."""
    unlabelled: bool = False
    """Every recording is a test trial, and its text is left alone, known or not."""


def find_recordings(root: Path, unlabelled: bool = False) -> FoundRecordings:
    """The recordings in the folder `root`.

    Raises:
        DataError: several manifests, or neither a manifest nor a recording (unless `unlabelled`: whose text is known).
    """
    recordings, faults = read_recordings(root, need_text=not unlabelled)
    return FoundRecordings(root, tuple(recordings), tuple(faults), find_manifest(root) or root, unlabelled)


class AudioError(Exception):
    """Why a recording cannot be used: the fault's code and message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


def locate(recording: Recording, channel: int | None) -> Segment:
    """The samples of `recording`, from the header of its file; without a `channel` those of the first.

    Raises:
        AudioError: `wav_unreadable`, `wav_empty`, `wav_channels` for a channel that the file does not have, or
            `manifest_field` for a segment outside its file.
    """
    if not recording.file.is_file():
        raise AudioError("wav_unreadable", "the file does not exist; restore it, or remove its row from the manifest")
    try:
        header = soundfile.info(str(recording.file))
    except (soundfile.LibsndfileError, OSError) as error:
        reason = " ".join(str(error).split())
        message = f"cannot be decoded ({reason}); expected a wav, flac or ogg file: restore it, or leave it out"
        raise AudioError("wav_unreadable", message) from error
    rate: int = header.samplerate
    frames: int = header.frames
    if frames == 0:
        raise AudioError("wav_empty", "0 samples; record it again, or leave it out")
    num_channels: int = header.channels
    if channel is not None and channel >= num_channels:
        held = "1 channel" if num_channels == 1 else f"{num_channels} channels"
        message = f"{held}, but data.audio_channel={channel} counts from 0; choose at most {num_channels - 1}"
        raise AudioError("wav_channels", message)
    start = round((recording.start_s or 0.0) * rate)
    end = frames if recording.end_s is None else round(recording.end_s * rate)
    if start >= frames or end > frames + END_TOLERANCE_S * rate:
        seconds = frames / rate
        message = (
            f"the segment {recording.segment} s is not inside the {seconds:.3f} s of the file; correct start and end"
        )
        raise AudioError("manifest_field", message)
    return Segment(start, min(end, frames) - start, rate, channel or 0, num_channels)


def read_samples(file: Path, segment: Segment) -> npt.NDArray[np.float32]:
    """One channel of a segment at its own rate, full scale ±1; fewer samples where the file ends early.

    Raises:
        AudioError: `wav_unreadable`: the file cannot be decoded, or holds values that are not finite.
    """
    try:
        samples, _ = soundfile.read(str(file), segment.num_samples, segment.start, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        reason = " ".join(str(error).split())
        raise AudioError(
            "wav_unreadable", f"cannot be decoded ({reason}); restore the file, or leave it out"
        ) from error
    channel: npt.NDArray[np.float32] = np.ascontiguousarray(samples[:, segment.channel])
    bad = np.flatnonzero(~np.isfinite(channel))
    if len(bad):
        message = f"{len(bad)} non-finite samples, the first at {bad[0]}; restore the file, or leave it out"
        raise AudioError("wav_unreadable", message)
    return channel


class RecordingTrials:
    """Trials of a folder of recordings; a `TrialSet` of waveforms [N] at `sample_rate_hz`."""

    def __init__(
        self,
        trials: tuple[Trial, ...],
        sessions: tuple[str, ...],
        segments: tuple[Segment, ...],
        sample_rate_hz: int,
        skipped: tuple[Fault, ...] = (),
    ) -> None:
        self.trials = trials
        self.sessions = sessions
        """Every speaker of the folder, sorted."""
        self.sample_rate_hz = sample_rate_hz
        self.skipped = skipped
        """Why recordings or rows were left out (`on_fault="skip"`)."""
        self._segments = segments

    def signal(self, index: int) -> npt.NDArray[np.float32]:
        """Waveform [N] of trial `index` at `sample_rate_hz`, N = `num_steps`, full scale ±1 (resampling may overshoot).

        Raises:
            DataError: the file cannot be decoded or has changed since it was opened.
        """
        trial, segment = self.trials[index], self._segments[index]
        try:
            samples = read_samples(trial.file, segment)
        except AudioError as error:
            raise DataError(error.message, code=error.code, file=trial.file) from error
        samples = resampled(samples, segment.rate_hz, self.sample_rate_hz)
        if len(samples) != trial.num_steps:
            raise DataError(
                f"{trial.file}: {len(samples)} samples at {self.sample_rate_hz} Hz, but its header promised "
                f"{trial.num_steps} when the data set was opened; restore the file, or start again"
            )
        return samples


def split_recordings(recordings: Sequence[Recording], config: DataConfig, seed: int) -> tuple[list[Split], list[Fault]]:
    """The split of each recording, and the spoken events that the manifest puts on both sides of one.

    Raises:
        ConfigurationError: an unknown or contradictory held-out speaker.
    """
    rows = [Row(r.speaker, r.text or "", r.event, r.split) for r in recordings]
    splits = assign_splits(rows, config.held_out_speakers, config.val_fraction, config.test_fraction, seed)
    members: dict[str, str] = {}
    for recording in recordings:
        members.setdefault(recording.event, recording.name)
    faults = [
        Fault(
            members[event],
            "",
            "leak_same_event",
            "error",
            f"recordings of the event {event!r} are in {' and in '.join(used)}; put all of them into one split",
        )
        for event, used in leaking_events(rows, splits).items()
    ]
    return splits, faults


def open_recordings(
    found: FoundRecordings,
    splits: Sequence[Split],
    config: DataConfig,
    sample_rate_hz: int,
    seed: int,
    table: SymbolTable,
    lexicon: Mapping[str, tuple[str, ...]] | None,
) -> RecordingTrials:
    """The trials of `splits`, in the order split, then as the manifest lists them.

    A trial's session is its speaker. Only the headers of the wanted recordings are read.

    Raises:
        DataError: there is no recording, or (with `config.on_fault="raise"`) one or its description is unusable.
        ConfigurationError: an unknown held-out speaker, or phonemes without a lexicon.
    """
    recordings, faults, unlabelled = found.recordings, list(found.faults), found.unlabelled
    assigned: list[Split]
    assigned, leaks = (["test"] * len(recordings), []) if unlabelled else split_recordings(recordings, config, seed)
    _stop_at_errors(found, leaks)  # also where faults are skipped: there is no trial whose absence would mend a leak
    if config.on_fault == "raise":
        _stop_at_errors(found, faults)

    opened: list[tuple[Trial, Segment]] = []
    order = {split: i for i, split in enumerate(SPLITS)}
    wanted = sorted((order[s], i) for i, s in enumerate(assigned) if s in splits)
    for _, i in wanted:
        recording, split = recordings[i], assigned[i]
        try:
            segment = locate(recording, config.audio_channel)
            num_steps = resampled_length(segment.num_samples, segment.rate_hz, sample_rate_hz)
            if num_steps == 0:
                raise AudioError("wav_empty", f"0 samples at {sample_rate_hz} Hz; record it again, or leave it out")
            labels = None
            if recording.text is not None and not unlabelled:
                labels = text_labels(recording.text, table, lexicon, recording.trial_id)
        except AudioError as error:
            faults.append(recording.fault(error.code, "error", error.message))
        except UnknownSymbolError as error:
            faults.append(recording.fault("unknown_symbol", "error", error.reason))
        else:
            opened.append((_trial(recording, split, num_steps, labels), segment))
            continue
        if config.on_fault == "raise":
            _stop_at_errors(found, faults[-1:])
    errors = tuple(fault for fault in faults if fault.severity == "error")
    if not opened:
        raise DataError(
            f"{found.described_in}: no usable recording of {', '.join(splits)} among {len(recordings)} "
            f"({len(errors)} errors); run `sottovoce check` on the folder"
        )
    return RecordingTrials(
        trials=tuple(trial for trial, _ in opened),
        sessions=tuple(sorted({recording.speaker for recording in recordings})),
        segments=tuple(segment for _, segment in opened),
        sample_rate_hz=sample_rate_hz,
        skipped=errors,
    )


def _stop_at_errors(found: FoundRecordings, faults: Sequence[Fault]) -> None:
    for fault in faults:
        if fault.severity == "error":
            raise replace(fault, file=str(found.root / fault.file)).as_error()


def _trial(recording: Recording, split: Split, num_steps: int, labels: tuple[int, ...] | None) -> Trial:
    return Trial(
        trial_id=recording.trial_id,
        split=split,
        session=recording.speaker,
        num_steps=num_steps,
        labels=labels,
        text=recording.text,
        file=recording.file,
        key=recording.segment,
        speaker=recording.speaker,
        event=recording.event,
    )
