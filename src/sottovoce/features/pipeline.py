"""The feature pipeline: one ordered list of operations with a training, an evaluation and a streaming view.

Training: [speed] → front end → gain, noise, offset, random walk → cut → smoothing → normalisation → masks.
Evaluation: front end → smoothing → normalisation. Streaming (`start`, `step`, `finish`): the same, piece by piece.
Legend: B trials, T bins, N samples, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from sottovoce.core.lengths import log_mel_length
from sottovoce.core.streams import WholeTrialPart, check_chunk, check_open, check_streams
from sottovoce.core.trial import Batch
from sottovoce.features.augmentation import Draws, add_noise, apply_masks, cut_front, zero_padding
from sottovoce.features.config import AugmentationConfig, LogMelConfig, PreprocessorConfig
from sottovoce.features.log_mel import log_mel
from sottovoce.features.log_mel_stream import (
    LogMelState,
    finish_log_mel,
    log_mel_chunk,
    log_mel_latency_samples,
    start_log_mel,
)
from sottovoce.features.normalisation import normalise
from sottovoce.features.smoothing import (
    SmoothingState,
    finish_smoothing,
    gaussian_taps,
    smooth,
    smooth_chunk,
    start_smoothing,
)
from sottovoce.features.waveform import perturb_speed, resampled_length, uniform_factor


@dataclass(frozen=True)
class FeatureState:
    """What the features of a trial's next pieces need of the past: a value of bounded size, never changed in place."""

    log_mel: LogMelState | None = None
    """None: the trial arrives as bins."""
    smoothing: SmoothingState | None = None
    """None: there is no smoothing."""
    device: torch.device | str = "cpu"
    """Where the pieces are."""
    ended: bool = False
    """Nothing may follow."""


class FeaturePipeline:
    """What happens to a batch of signals before the model sees them, on whatever device the batch is."""

    def __init__(self, preprocessor: PreprocessorConfig, augmentation: AugmentationConfig | None = None) -> None:
        self.preprocessor = preprocessor
        self.augmentation = augmentation or AugmentationConfig()

    @cached_property
    def taps(self) -> tuple[float, ...]:
        """Smoothing kernel; empty when smoothing is off."""
        sigma = self.preprocessor.smoothing_sigma_bins
        return gaussian_taps(sigma) if sigma else ()

    def train(self, batch: Batch, draws: Draws) -> Batch:
        """The batch with augmentation, features [B, T, C]. Overwrites `batch.signal`."""
        return self._run(batch, draws)

    def evaluate(self, batch: Batch) -> Batch:
        """The batch as the model sees it outside training, features [B, T, C]."""
        return self._run(batch, None)

    def shortest_length(self, num_steps: int, training: bool) -> int:
        """The fewest bins that a trial of `num_steps` bins or samples can come out with."""
        config = self.preprocessor.log_mel
        if config is not None:
            if training and self.augmentation.speed:
                num_steps = resampled_length(num_steps, 1 + self.augmentation.speed)
            num_steps = log_mel_length(num_steps, config.hop_samples)
        return num_steps - (self.augmentation.random_cut_bins if training else 0)

    @property
    def whole_trial_parts(self) -> tuple[WholeTrialPart, ...]:
        """What keeps the features from being computed while a trial arrives; empty: they can be."""
        kind = self.preprocessor.normalisation
        reason = "takes the mean and deviation of the whole trial; set preprocessor.normalisation=none and train anew"
        return (WholeTrialPart(f"preprocessor.normalisation={kind}", reason),) if kind != "none" else ()

    @property
    def latency_bins(self) -> int:
        """Bins (frames of a waveform) that the smoothing waits for before one comes out."""
        return len(self.taps) // 2

    @property
    def latency_samples(self) -> int:
        """Samples of a waveform that must have arrived, from a frame's first on, before it goes to the smoothing."""
        config = self.preprocessor.log_mel
        return log_mel_latency_samples(config) if config is not None else 0

    def start(self, device: torch.device | str = "cpu") -> FeatureState:
        """State before the first piece of a trial, whose pieces will be on `device`.

        Raises:
            ConfigurationError: the features need the whole trial.
        """
        check_streams(self.whole_trial_parts)
        config = self.preprocessor.log_mel
        return FeatureState(
            start_log_mel(config, device) if config is not None else None,
            start_smoothing(self.preprocessor.num_channels, self.taps, device) if self.taps else None,
            device,
        )

    def step(self, state: FeatureState, chunk: torch.Tensor) -> tuple[FeatureState, torch.Tensor]:
        """The state after `chunk` and the features [T, C] that it completes; all together they are `evaluate`'s.

        Args:
            chunk: any number of bins [T, C], or of samples [N] at the front end's rate.

        Raises:
            DataError: the chunk has another number of channels or a value that is not finite, or the trial has ended.
        """
        check_open(state.ended)
        config, num_channels = self.preprocessor.log_mel, self.preprocessor.num_channels
        spectrum, smoothing, features = state.log_mel, state.smoothing, chunk
        if config is not None and spectrum is not None:
            check_chunk(chunk, [None], "[samples]")
            spectrum, features = log_mel_chunk(spectrum, chunk, config, num_channels)
        else:
            check_chunk(chunk, [None, num_channels], "[bins, channels]")
        if smoothing is not None:
            smoothing, features = smooth_chunk(smoothing, features, self.taps)
        return replace(state, log_mel=spectrum, smoothing=smoothing), features

    def finish(self, state: FeatureState) -> tuple[FeatureState, torch.Tensor]:
        """The state of an ended trial, and its last features [T, C].

        Raises:
            DataError: the trial has ended already.
        """
        check_open(state.ended)
        config, num_channels = self.preprocessor.log_mel, self.preprocessor.num_channels
        features = torch.zeros(0, num_channels, device=state.device)
        if config is not None and state.log_mel is not None:
            features = finish_log_mel(state.log_mel, config, num_channels)
        if state.smoothing is not None:
            smoothing, features = smooth_chunk(state.smoothing, features, self.taps)
            features = torch.cat([features, finish_smoothing(smoothing, self.taps)])
        return FeatureState(device=state.device, ended=True), features

    def _run(self, batch: Batch, draws: Draws | None) -> Batch:
        signal, lengths_B = batch.signal, batch.lengths_B
        if self.preprocessor.log_mel is not None:
            signal, lengths_B = self._front_end(signal, lengths_B, self.preprocessor.log_mel, draws)
        if draws is not None:
            add_noise(signal, lengths_B, self.augmentation, draws)
            if self.augmentation.random_cut_bins:
                cut = draws.batch_integer(self.augmentation.random_cut_bins + 1)
                signal, lengths_B = cut_front(signal, lengths_B, cut)
        if self.taps:
            signal = smooth(signal, self.taps)
            zero_padding(signal, lengths_B)
        if self.preprocessor.normalisation != "none":
            signal = normalise(signal, lengths_B, self.preprocessor.normalisation)
        if draws is not None:
            for mask, along_time in ((self.augmentation.time_mask, True), (self.augmentation.channel_mask, False)):
                if mask.probability:
                    apply_masks(signal, lengths_B, mask, draws, along_time)
        return replace(batch, signal=signal, lengths_B=lengths_B)

    def _front_end(
        self, signal_BN: torch.Tensor, lengths_B: torch.Tensor, config: LogMelConfig, draws: Draws | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        formant_B = None
        if draws is not None and self.augmentation.speed:
            signal_BN, lengths_B = perturb_speed(
                signal_BN, lengths_B, self.augmentation.speed, draws.trials.__getitem__
            )
        if draws is not None and self.augmentation.formant:
            factors = [uniform_factor(self.augmentation.formant, generator) for generator in draws.trials]
            formant_B = torch.tensor(factors, device=signal_BN.device)
        return log_mel(signal_BN, lengths_B, config, self.preprocessor.num_channels, formant_B)
