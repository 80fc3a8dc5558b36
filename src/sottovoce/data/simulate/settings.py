"""What is simulated: the settings of `sottovoce simulate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sottovoce.core.errors import ConfigurationError

NUM_AREAS: Final = 4
MAX_SESSIONS: Final = 45
"""Days of the official data set, whose dates the simulated sessions take in order."""


@dataclass(frozen=True)
class SimulationSettings:
    """Settings of a simulated T15 data set; the defaults give trials about as hard as the project's sample data."""

    sessions: int = 4
    """Recording days, 1 to 45, with the first dates of the official list. The official days without validation and
    test trials (the first is one) have none here either, unless a single session is asked for."""
    trials: int = 100
    """Training trials of each session."""
    val_trials: int | None = None
    """Validation trials of each session that has any; None takes a fifth of `trials`, at least one."""
    test_trials: int | None = None
    """The same for test trials."""
    seed: int = 0
    """Every draw is a function of this number and of the place it is for."""
    electrodes: int = 256
    """Electrodes, a multiple of 4 (the areas: ventral 6v, area 4, 55b, dorsal 6v); features are twice as many."""
    snr: float = 1.0
    """Depth of tuning; the log firing rate of a well tuned electrode varies with a deviation of about 0.4 times this.
    0 leaves electrodes that know nothing of speech."""
    drift: float = 1.0
    """How much tuning, gain and baseline change from one session to the next, as a multiple of a moderate drift;
    0 keeps them, 2.5 replaces nearly the whole tuning."""
    dead_fraction: float = 0.03
    """Chance that an electrode is dead (its features are exactly 0): half of it on all days, half on single days."""
    block_trials: int = 25
    """Trials of a block; the speaking mode changes from block to block."""
    bins_per_phoneme: float = 7.0
    """Mean duration of a phoneme in bins of 20 ms, before differences between phonemes."""

    def __post_init__(self) -> None:
        problems = [
            problem
            for problem, found in (
                (f"sessions={self.sessions}: choose 1 to {MAX_SESSIONS}", not 1 <= self.sessions <= MAX_SESSIONS),
                (f"trials={self.trials}: must be at least 1", self.trials < 1),
                (f"trials={self.trials}: must be below 10,000 (four-digit trial names)", self.trials > 9999),
                (f"val_trials={self.val_trials}: must be 0 to 9,999", not 0 <= self.num_val_trials <= 9999),
                (f"test_trials={self.test_trials}: must be 0 to 9,999", not 0 <= self.num_test_trials <= 9999),
                (f"seed={self.seed}: must be at least 0", self.seed < 0),
                (
                    f"electrodes={self.electrodes}: must be a multiple of {NUM_AREAS} from {NUM_AREAS} to 1024",
                    self.electrodes % NUM_AREAS != 0 or not NUM_AREAS <= self.electrodes <= 1024,
                ),
                (f"snr={self.snr}: must lie in [0, 10]", not 0 <= self.snr <= 10),
                (f"drift={self.drift}: must lie in [0, 2.5]", not 0 <= self.drift <= 2.5),
                (f"dead_fraction={self.dead_fraction}: must lie in [0, 0.5]", not 0 <= self.dead_fraction <= 0.5),
                (f"block_trials={self.block_trials}: must be at least 1", self.block_trials < 1),
                (
                    f"bins_per_phoneme={self.bins_per_phoneme}: must lie in [6, 40]; faster speech has no CTC path "
                    "with patches every 4 bins",
                    not 6 <= self.bins_per_phoneme <= 40,
                ),
            )
            if found
        ]
        if problems:
            raise ConfigurationError("simulation: " + "; ".join(problems))

    @property
    def num_val_trials(self) -> int:
        """Validation trials of a session that has any."""
        return max(1, self.trials // 5) if self.val_trials is None else self.val_trials

    @property
    def num_test_trials(self) -> int:
        """Test trials of a session that has any."""
        return max(1, self.trials // 5) if self.test_trials is None else self.test_trials
