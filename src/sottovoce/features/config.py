"""What the features are: the deterministic part (`preprocessor`) and the training-only part (`augmentation`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.signals import SignalKind
from sottovoce.core.trial import BIN_MS

NORMALISATIONS = ("none", "trial", "trial_mean")


@dataclass(frozen=True)
class LogMelConfig:
    """Log-mel spectrum of a waveform."""

    sample_rate_hz: int = 16000
    """Recordings of another rate are resampled to this one."""
    window_ms: float = 25.0
    hop_ms: float = 10.0
    num_fft: int = 512
    low_hz: float = 0.0
    high_hz: float = 8000.0
    pre_emphasis: float = 0.97

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next."""
        return round(self.hop_ms * self.sample_rate_hz / 1000)

    def __post_init__(self) -> None:
        if self.sample_rate_hz < 1 or self.num_fft < 2 or self.window_ms <= 0 or self.hop_samples < 1:
            raise ConfigurationError(
                "preprocessor.log_mel: sample_rate_hz, num_fft and window_ms must be positive and hop_ms at least one "
                f"sample; got {self.sample_rate_hz}, {self.num_fft}, {self.window_ms} and {self.hop_ms}"
            )
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate_hz / 2:
            raise ConfigurationError(
                f"preprocessor.log_mel: 0 <= low_hz < high_hz <= half the sample rate must hold; got {self.low_hz:g}, "
                f"{self.high_hz:g} and {self.sample_rate_hz} Hz"
            )


@dataclass(frozen=True)
class PreprocessorConfig:
    """From a trial's signal to the channels the model sees; the same in training, evaluation and streaming."""

    num_channels: int = 512
    """Channels of the features: columns of a T15 file, or mel bands of a waveform."""
    smoothing_sigma_bins: float = 2.0
    """Standard deviation of the Gaussian smoothing along time; 0 switches it off."""
    normalisation: str = "none"
    """`none`; `trial`: every channel to mean 0 and deviation 1 over the trial's own bins; `trial_mean`: every channel
    to mean 0, the trial as a whole to deviation 1."""
    log_mel: LogMelConfig | None = None
    """Set for waveforms, absent for binned features."""

    @property
    def signal(self) -> SignalKind:
        """What the front end accepts."""
        return SignalKind.BINNED if self.log_mel is None else SignalKind.WAVEFORM

    @property
    def step_ms(self) -> float:
        """Milliseconds of one of a trial's `num_steps`: a bin, or a sample."""
        return BIN_MS if self.log_mel is None else 1000 / self.log_mel.sample_rate_hz

    @property
    def feature_ms(self) -> float:
        """Milliseconds from one step of the features that the model reads to the next: a bin, or a hop."""
        return BIN_MS if self.log_mel is None else self.log_mel.hop_ms

    def __post_init__(self) -> None:
        if self.num_channels < 1 or self.smoothing_sigma_bins < 0:
            raise ConfigurationError(
                "preprocessor: num_channels must be at least 1 and smoothing_sigma_bins at least 0; "
                f"got {self.num_channels} and {self.smoothing_sigma_bins}"
            )
        if self.normalisation not in NORMALISATIONS:
            raise ConfigurationError(
                f"preprocessor.normalisation={self.normalisation}: choose one of {', '.join(NORMALISATIONS)}"
            )


@dataclass(frozen=True)
class MaskConfig:
    """Masks along time or channels, filled with 0."""

    probability: float = 0.0
    """Chance that a trial is masked at all."""
    num_masks: int = 2
    """Up to this many masks (at least one) in a masked trial."""
    max_width: int = 15
    """Widest mask in bins or channels."""
    max_fraction: float = 1.0
    """Widest mask as a share of the trial's length (or of the channels); the smaller limit holds."""

    def __post_init__(self) -> None:
        if not (
            0 <= self.probability <= 1 and 0 <= self.max_fraction <= 1 and self.num_masks >= 1 and self.max_width >= 0
        ):
            raise ConfigurationError(
                "augmentation masks: probability and max_fraction must lie in [0, 1], num_masks be at least 1 and "
                f"max_width at least 0; got {self.probability}, {self.max_fraction}, {self.num_masks}, {self.max_width}"
            )


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of a training trial, in the order in which they are applied (reference: models, section 12)."""

    speed: float = 0.0
    """Waveforms: speed factor drawn from [1 - speed, 1 + speed]."""
    formant: float = 0.0
    """Waveforms: vocal-tract length factor drawn from [1 - formant, 1 + formant]."""
    gain_std: float = 0.0
    """One factor 1 + N(0, std) a channel and trial."""
    white_noise_std: float = 0.0
    """N(0, std) added to every value of the valid bins."""
    constant_offset_std: float = 0.0
    """N(0, std) added to each channel of a trial."""
    random_walk_std: float = 0.0
    """A random walk along time with steps N(0, std) added to each channel."""
    random_cut_bins: int = 0
    """Up to this many bins cut from the front of every trial, one draw a batch (official T15: 2)."""
    time_mask: MaskConfig = field(default_factory=MaskConfig)
    channel_mask: MaskConfig = field(default_factory=MaskConfig)

    def __post_init__(self) -> None:
        for name in ("speed", "formant"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(f"augmentation.{name}={getattr(self, name)}: must lie in [0, 1)")
        stds = ("gain_std", "white_noise_std", "constant_offset_std", "random_walk_std")
        for name in (*stds, "random_cut_bins"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"augmentation.{name}={getattr(self, name)}: must be at least 0")
