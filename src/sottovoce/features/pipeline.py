"""The feature pipeline: one ordered list of operations with a training, an evaluation and a streaming view.

Training: [speed] → front end → gain, noise, offset, random walk → cut → smoothing → normalisation → masks.
Evaluation: front end → smoothing → normalisation. Streaming: the same, bin by bin.
Legend: B trials, T bins, N samples, C channels.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.lengths import log_mel_length
from sottovoce.core.trial import Batch
from sottovoce.features.augmentation import Draws, add_noise, apply_masks, cut_front, zero_padding
from sottovoce.features.config import AugmentationConfig, LogMelConfig, PreprocessorConfig
from sottovoce.features.log_mel import log_mel
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

    def stream(self) -> FeatureStream:
        """A view for one trial that arrives piece by piece.

        Raises:
            ConfigurationError: the features need the whole trial.
        """
        if self.preprocessor.log_mel is not None or self.preprocessor.normalisation != "none":
            raise ConfigurationError(
                "these features cannot be streamed: preprocessor.normalisation and preprocessor.log_mel need the whole "
                "recording"
            )
        return FeatureStream(self.preprocessor.num_channels, self.taps)

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


class FeatureStream:
    """The evaluation view of one trial, piece by piece; all pieces together equal the whole."""

    def __init__(self, num_channels: int, taps: tuple[float, ...]) -> None:
        self._taps = taps
        self._num_channels = num_channels
        self._smoothing: SmoothingState | None = start_smoothing(num_channels, taps) if taps else None

    @property
    def delay_bins(self) -> int:
        """Bins by which the output lags the input."""
        return len(self._taps) // 2

    def push(self, chunk_TC: torch.Tensor) -> torch.Tensor:
        """Features that are final once `chunk_TC` (any number of bins) has arrived."""
        if self._smoothing is None:
            return chunk_TC
        self._smoothing, features_TC = smooth_chunk(self._smoothing, chunk_TC, self._taps)
        return features_TC

    def finish(self) -> torch.Tensor:
        """The last features, when the trial has ended."""
        if self._smoothing is None:
            return torch.zeros(0, self._num_channels)
        return finish_smoothing(self._smoothing, self._taps)
