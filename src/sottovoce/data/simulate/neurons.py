"""From movements to features: tuned electrodes in four areas, their drift from day to day, and the block's z-score.

Dimension legend: T bins of 20 ms, D tuning inputs (positions and speeds of the latents), E electrodes, C = 2E channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from sottovoce.core.random import numpy_generator
from sottovoce.data.simulate.articulation import NUM_LATENTS, Array, Mode
from sottovoce.data.simulate.settings import NUM_AREAS, SimulationSettings

POPULATION, DRIFT, BLOCK, TRIAL = 1, 2, 3, 4
"""First index of the named generators, so that no two draws share one."""

AREA_GAINS: Final = (1.0, 0.8, 0.45, 0.7)
"""Depth of tuning in ventral 6v, area 4, 55b and dorsal 6v."""
TUNED_FRACTION: Final = 0.65
MAX_LEAD_BINS: Final = 7
"""Neurons lead the movement by 0 to 140 ms."""
FEEDBACK_LAG_BINS: Final = 5
"""In vocalised speech some electrodes also follow what was said, 100 ms later."""
POSITION_SCALE: Final = 2.2
SPEED_SCALE: Final = 11.0
"""Inverse deviations of positions and of speeds (per bin) during speech."""
DEPTH: Final = 0.43
"""Deviation of the log rate of a well tuned electrode at snr 1."""
MAX_LOG_RATE_CHANGE: Final = 2.0
SHARED_NOISE: Final = 0.25
"""Deviation of the slow gain that the electrodes of an area share."""
SHARED_NOISE_MEMORY: Final = 0.96
"""How much of it stays from bin to bin: a time constant of about half a second."""
POWER_NOISE: Final = 0.35
"""Deviation of the log spike-band power around its mean in one bin."""
TUNING_DRIFT: Final = 0.35
BASELINE_DRIFT: Final = 0.25
GAIN_DRIFT: Final = 0.15
BLOCK_DRIFT: Final = 0.15
"""Deviation of an electrode's log rate after 20 trials of a block."""
SILENT_DEPTH: Final = 0.85
SILENT_DEPTH_SPREAD: Final = 0.12
"""Deviation of the depth of tuning from block to block, so that depth alone does not give the mode away."""
HISTORY_TRIALS: Final = 20
CLIP: Final = 10.0


@dataclass(frozen=True)
class Population:
    """The electrodes on one day."""

    tuning_DE: Array
    feedback_DE: Array
    lead_E: npt.NDArray[np.int64]
    """Bins by which the electrode leads the movement."""
    log_base_E: Array
    """Log of the crossings per bin at rest."""
    gain_E: Array
    dead_E: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class BlockState:
    """What stays the same within a block, and what wanders through it."""

    mode: Mode
    depth: float
    trend_E: Array
    """Change of the log rate over 20 trials."""
    area_gain_E: Array


def _area_of(electrodes: int) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(NUM_AREAS), electrodes // NUM_AREAS)


def _draw_tuning(electrodes: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Weights of positions and speeds, and of feedback, each electrode with a few strong ones."""
    inputs = 2 * NUM_LATENTS
    strength_E = np.asarray(AREA_GAINS)[_area_of(electrodes)] * (generator.random(electrodes) < TUNED_FRACTION)
    sparse_DE = generator.standard_normal((inputs, electrodes)) * (generator.random((inputs, electrodes)) < 0.4)
    tuning_DE = sparse_DE * strength_E / np.sqrt(0.4 * inputs)
    follows_E = (generator.random(electrodes) < 0.2) * strength_E
    feedback_DE = generator.standard_normal((inputs, electrodes)) * follows_E / np.sqrt(inputs)
    return tuning_DE, feedback_DE


@cache
def first_population(seed: int, electrodes: int, dead_fraction: float) -> Population:
    """The electrodes on the first day."""
    generator = numpy_generator(seed, "simulation", POPULATION)
    tuning_DE, feedback_DE = _draw_tuning(electrodes, generator)
    return Population(
        tuning_DE=tuning_DE,
        feedback_DE=feedback_DE,
        lead_E=generator.integers(0, MAX_LEAD_BINS + 1, electrodes),
        log_base_E=generator.normal(np.log(0.4), 0.6, electrodes),
        gain_E=np.ones(electrodes),
        dead_E=generator.random(electrodes) < dead_fraction / 2,
    )


def population_of(settings: SimulationSettings, session: int) -> Population:
    """The electrodes on day `session`: a chain of small changes from the first day on."""
    population = first_population(settings.seed, settings.electrodes, settings.dead_fraction)
    share = TUNING_DRIFT * settings.drift
    for day in range(1, session + 1):
        generator = numpy_generator(settings.seed, "simulation", DRIFT, day)
        tuning_DE, feedback_DE = _draw_tuning(settings.electrodes, generator)
        population = replace(
            population,
            tuning_DE=np.sqrt(1 - share**2) * population.tuning_DE + share * tuning_DE,
            feedback_DE=np.sqrt(1 - share**2) * population.feedback_DE + share * feedback_DE,
            log_base_E=population.log_base_E
            + settings.drift * BASELINE_DRIFT * generator.standard_normal(settings.electrodes),
            gain_E=population.gain_E
            * np.exp(settings.drift * GAIN_DRIFT * generator.standard_normal(settings.electrodes)),
        )
    today = numpy_generator(settings.seed, "simulation", DRIFT, session, 1)
    dead_E = population.dead_E | (today.random(settings.electrodes) < settings.dead_fraction / 2)
    return replace(population, dead_E=dead_E)


def block_state(settings: SimulationSettings, session: int, block: int, mode: Mode) -> BlockState:
    """The state of one block."""
    generator = numpy_generator(settings.seed, "simulation", BLOCK, session, block)
    depth = (SILENT_DEPTH if mode == "silent" else 1.0) * float(np.exp(generator.normal(0.0, SILENT_DEPTH_SPREAD)))
    area_gains = np.exp(generator.normal(0.0, 0.1, NUM_AREAS))
    return BlockState(
        mode=mode,
        depth=depth,
        trend_E=BLOCK_DRIFT * generator.standard_normal(settings.electrodes),
        area_gain_E=area_gains[_area_of(settings.electrodes)],
    )


def record(
    latents_TD: Array,
    population: Population,
    state: BlockState,
    place_in_block: int,
    snr: float,
    generator: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Raw features [T, 2E] of one utterance: threshold crossings, then spike-band power; dead electrodes are 0."""
    num_bins, electrodes = len(latents_TD), len(population.lead_E)
    area_E = _area_of(electrodes)
    log_rate_TE = _drive(latents_TD, population, state) * (snr * DEPTH * state.depth * population.gain_E)
    np.clip(log_rate_TE, -MAX_LOG_RATE_CHANGE, MAX_LOG_RATE_CHANGE, out=log_rate_TE)
    shared_TA = _slow_noise(num_bins, generator)
    log_rate_TE += shared_TA[:, area_E]
    log_rate_TE += population.log_base_E + state.trend_E * (place_in_block / HISTORY_TRIALS)
    rate_TE = np.exp(log_rate_TE) * state.area_gain_E
    crossings_TE = generator.poisson(rate_TE)
    near_EE = _neighbours(electrodes)
    log_power_TE = np.log(rate_TE @ near_EE) + POWER_NOISE * generator.standard_normal(rate_TE.shape)
    power_TE = np.exp(log_power_TE)
    raw_TC = np.concatenate([crossings_TE, power_TE], axis=1).astype(np.float32)
    raw_TC[:, np.tile(population.dead_E, 2)] = 0.0
    return raw_TC


def _drive(latents_TD: Array, population: Population, state: BlockState) -> Array:
    """What tuning makes of the movement, [T, E]: each electrode ahead of it by its own lead."""
    speeds_TD = np.gradient(latents_TD, axis=0)
    inputs_TD = np.concatenate([POSITION_SCALE * latents_TD, SPEED_SCALE * speeds_TD], axis=1)
    ahead_TE = inputs_TD @ population.tuning_DE
    num_bins = len(ahead_TE)
    at_TE = np.minimum(np.arange(num_bins)[:, None] + population.lead_E, num_bins - 1)
    drive_TE: Array = np.take_along_axis(ahead_TE, at_TE, axis=0)
    if state.mode == "vocalised":
        heard_TE = inputs_TD[:-FEEDBACK_LAG_BINS] @ population.feedback_DE
        drive_TE[FEEDBACK_LAG_BINS:] += heard_TE
    return drive_TE


def _slow_noise(num_bins: int, generator: np.random.Generator) -> Array:
    """Log gains [T, areas] that wander with a time constant of about half a second."""
    steps_TA = generator.standard_normal((num_bins, NUM_AREAS))
    steps_TA[1:] *= np.sqrt(1 - SHARED_NOISE_MEMORY**2)
    for bin_ in range(1, num_bins):
        steps_TA[bin_] += SHARED_NOISE_MEMORY * steps_TA[bin_ - 1]
    return SHARED_NOISE * steps_TA


@cache
def _neighbours(electrodes: int) -> Array:
    """How much of each electrode's activity its neighbours' power holds, [E, E]; areas are square grids."""
    per_area = electrodes // NUM_AREAS
    side = int(np.ceil(np.sqrt(per_area)))
    rows, columns = np.divmod(np.arange(per_area), side)
    apart = np.hypot(rows[:, None] - rows, columns[:, None] - columns)
    near = np.exp(-(apart**2) / (2 * 0.6**2))
    near /= near.sum(axis=0)
    all_areas: Array = np.kron(np.eye(NUM_AREAS), near)
    return all_areas


class BlockNormaliser:
    """z-scores each trial with the trials of the block before it, at most 20, and clips to ±10."""

    def __init__(self) -> None:
        self._history: list[tuple[int, Array, Array]] = []

    def add(self, raw_TC: npt.NDArray[np.float32]) -> None:
        """Remember a trial for those that follow."""
        wide_TC = raw_TC.astype(np.float64)
        self._history.append((len(wide_TC), wide_TC.sum(axis=0), np.square(wide_TC).sum(axis=0)))
        del self._history[:-HISTORY_TRIALS]

    def normalise(self, raw_TC: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The trial in units of the remembered trials; channels that never changed become exactly 0."""
        count = sum(bins for bins, _, _ in self._history)
        mean_C = sum(total for _, total, _ in self._history) / count
        variance_C = sum(square for _, _, square in self._history) / count - mean_C**2
        std_C = np.sqrt(np.maximum(variance_C, 0.0))
        scale_C = np.where(std_C > 1e-6, 1.0 / np.maximum(std_C, 1e-6), 0.0)
        scored_TC: Array = np.clip((raw_TC - mean_C) * scale_C, -CLIP, CLIP)
        return scored_TC.astype(np.float32)
