"""A trained run in a person's own program: signals in, hypotheses out."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.hypothesis import Hypothesis, Word
from sottovoce.core.signals import SignalKind
from sottovoce.core.trial import Trial
from sottovoce.data.recordings import resampled
from sottovoce.decoding.decoder import Decoder
from sottovoce.evaluation.emissions import decoded
from sottovoce.evaluation.opening import data_config
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.runs import trained_decoder
from sottovoce.runs.trained_decoder import TrainedDecoder


@dataclass
class OneSignal:
    """A `TrialSet` of one signal that no file holds."""

    trials: tuple[Trial, ...]
    sessions: tuple[str, ...]
    samples: npt.NDArray[np.float32]

    def signal(self, index: int) -> npt.NDArray[np.float32]:
        """The signal."""
        return self.samples


@dataclass(frozen=True)
class SignalDecoder:
    """What `sottovoce.load` gives: the run's best checkpoint and one of its decoders."""

    run: TrainedDecoder
    decoder: Decoder

    @property
    def num_channels(self) -> int | None:
        """Channels of the binned features that it decodes; None: it decodes waveforms."""
        return self.run.preprocessor.num_channels if self.run.preprocessor.signal == SignalKind.BINNED else None

    @property
    def sessions(self) -> tuple[str, ...]:
        """Sessions that the model has an adapter for; empty: it has none, and decodes any."""
        return self.run.sessions if self.run.model.session_adapter is not None else ()

    def seconds(self, word: Word) -> tuple[float, float] | None:
        """When a word begins and ends, from the beginning of the signal; None where the decoder does not know."""
        if word.start_frame is None or word.end_frame is None:
            return None
        frame_s = self.run.frame_ms / 1000
        return word.start_frame * frame_s, word.end_frame * frame_s

    def decode(
        self, signal: npt.ArrayLike, *, session: str | None = None, sample_rate_hz: int | None = None
    ) -> Hypothesis:
        """What was said: the hypothesis that `sottovoce decode` writes for the same trial.

        `signal` is [T, C] binned features as the data set holds them (C: `num_channels`), or a waveform [N] of floats,
        full scale ±1, with its `sample_rate_hz`. `session` says whose adapter is used, where the model has `sessions`.

        Raises:
            DataError: the signal has another shape, values that are not finite, or is too short for the model.
            ConfigurationError: a session is needed, or unknown; a sample rate is missing, or makes no sense.
        """
        samples = self._checked(np.asarray(signal), sample_rate_hz)
        name = self._session(session)
        trial = Trial("signal", "test", name, len(samples), None, None, Path("signal"))
        trial_set = OneSignal((trial,), self.sessions or (name,), samples)
        (result,) = decoded(self.run, trial_set, [0], [self.decoder])
        return result.hypotheses[0]

    def _session(self, session: str | None) -> str:
        if not self.sessions or session in self.sessions:
            return session or ""
        said = "say which one it is of: session=…" if session is None else f"there is none for {session!r}"
        raise ConfigurationError(
            f"the model has an adapter for each session; {said} (it has {', '.join(self.sessions)})"
        )

    def _checked(self, signal: npt.NDArray[np.generic], sample_rate_hz: int | None) -> npt.NDArray[np.float32]:
        if not np.issubdtype(signal.dtype, np.floating):
            raise DataError(f"the signal holds {signal.dtype}; give floats (16-bit samples: divide by 32768)")
        samples = np.ascontiguousarray(signal, dtype=np.float32)
        bad = int((~np.isfinite(samples)).sum())
        if bad:
            raise DataError(f"{bad} of the {samples.size} values of the signal are not finite; repair or leave it out")
        samples = self._binned(samples, sample_rate_hz) if self.num_channels else self._wave(samples, sample_rate_hz)
        if self._frames(len(samples)) < 1:
            unit = "bins" if self.num_channels else f"samples at {self._rate_hz} Hz"
            least = next(length for length in range(len(samples) + 1, 10_000_000) if self._frames(length) >= 1)
            raise DataError(f"the signal has {len(samples)} {unit}, the model needs at least {least}")
        return samples

    def _binned(self, samples: npt.NDArray[np.float32], sample_rate_hz: int | None) -> npt.NDArray[np.float32]:
        if sample_rate_hz is not None:
            raise ConfigurationError("the model decodes binned features, which have no sample rate; leave it out")
        if samples.ndim != 2 or samples.shape[1] != self.num_channels:
            stride = data_config(self.run).channel_stride
            kept = f"; it was trained on every {stride}th column: signal[:, ::{stride}]" if stride > 1 else ""
            shape = f"[{', '.join(map(str, samples.shape))}]"
            raise DataError(f"the signal has the shape {shape}, the model takes [bins, {self.num_channels}]{kept}")
        return samples

    def _wave(self, samples: npt.NDArray[np.float32], sample_rate_hz: int | None) -> npt.NDArray[np.float32]:
        if samples.ndim != 1:
            shape = f"[{', '.join(map(str, samples.shape))}]"
            raise DataError(f"the signal has the shape {shape}, the model takes a waveform [samples] of one channel")
        if sample_rate_hz is None or sample_rate_hz < 1:
            raise ConfigurationError("a waveform needs the rate that it was recorded at: sample_rate_hz=…")
        return resampled(samples, sample_rate_hz, self._rate_hz)

    @property
    def _rate_hz(self) -> int:
        front_end = self.run.preprocessor.log_mel
        assert front_end is not None
        return front_end.sample_rate_hz

    def _frames(self, num_steps: int) -> int:
        shortest = FeaturePipeline(self.run.preprocessor).shortest_length(num_steps, training=False)
        return self.run.model.output_lengths(shortest)


def load(run_dir: str | PathLike[str], decoder: str | None = None, beam_size: int | None = None) -> SignalDecoder:
    """A run's best checkpoint, ready to decode; `decoder` and `beam_size` stand in for the run's own.

    Raises:
        CheckpointError: not a run directory, or a damaged one.
        ConfigurationError: there is no such decoder, or it needs what the run lacks.
    """
    run = trained_decoder.load(Path(run_dir))
    (chosen,) = run.decoders(() if decoder is None else (decoder,), beam_size)
    return SignalDecoder(run, chosen)
