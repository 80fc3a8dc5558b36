"""Simulated recordings of attempted speech in the official T15 layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.core.errors import DataError
from sottovoce.core.lengths import conv_length, ctc_frames_needed
from sottovoce.core.random import numpy_generator
from sottovoce.core.symbols import PHONEMES
from sottovoce.data.simulate.articulation import Utterance, articulate
from sottovoce.data.simulate.lexicon import pronounce
from sottovoce.data.simulate.neurons import TRIAL, BlockNormaliser, block_state, population_of, record
from sottovoce.data.simulate.plan import PlannedBlock, PlannedSession, plan_session
from sottovoce.data.simulate.settings import SimulationSettings
from sottovoce.data.simulate.writer import (
    SessionWriter,
    TrialRecord,
    begin,
    claim_folder,
    finish,
    write_description,
)

Progress = Callable[[int, int], None]
"""Called with the trials written and the trials in all."""

PATCH_BINS, PATCH_STRIDE = 14, 4
"""The geometry that every trial has a CTC path for (that of the official T15 model)."""


@dataclass(frozen=True)
class SimulationSummary:
    """What a simulation wrote."""

    directory: Path
    trials: int
    trials_by_split: dict[str, int]
    sessions: tuple[str, ...]
    seed: int
    bins: int
    """Sum over the trials, 20 ms each."""
    channels: int


def simulate_t15(
    directory: Path,
    settings: SimulationSettings,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> SimulationSummary:
    """Write a simulated data set into `directory`; equal settings give equal bytes.

    `ground_truth.jsonl` and `sim_config.json` come last: a folder without them is an interrupted simulation.

    Raises:
        DataError: the folder is not empty and `overwrite` is not set, it holds more than a simulation, or it cannot
            be written.
    """
    try:
        return _simulate(directory, settings, progress, overwrite)
    except OSError as error:
        raise DataError(f"{directory} cannot be written ({error}); choose another folder or make room") from error


def _simulate(
    directory: Path, settings: SimulationSettings, progress: Progress | None, overwrite: bool
) -> SimulationSummary:
    sessions = [plan_session(settings, index) for index in range(settings.sessions)]
    total = sum(len(block.trials) for session in sessions for block in session.blocks)
    claim_folder(directory, overwrite)
    begin(directory, sessions)
    write_description(directory, sessions)
    truth: list[dict[str, Any]] = []
    by_split = {"train": 0, "val": 0, "test": 0}
    bins = 0
    for session in sessions:
        writer = SessionWriter(directory / session.name, session.splits)
        complete = False
        try:
            found: dict[tuple[str, int], dict[str, Any]] = {}
            for number, trial, truth_of_trial in _session_trials(settings, session):
                writer.write(number, trial)
                found[trial.split, number] = truth_of_trial
                by_split[trial.split] += 1
                bins += len(trial.features_TC)
                if progress is not None:
                    progress(sum(by_split.values()), total)
            complete = True
        finally:
            writer.close(complete)
        truth += [
            found[split, number] for split in session.splits for number in sorted(n for s, n in found if s == split)
        ]
    finish(directory, settings, sessions, truth)
    return SimulationSummary(
        directory=directory,
        trials=total,
        trials_by_split=by_split,
        sessions=tuple(session.name for session in sessions),
        seed=settings.seed,
        bins=bins,
        channels=2 * settings.electrodes,
    )


def _session_trials(
    settings: SimulationSettings, session: PlannedSession
) -> Iterator[tuple[int, TrialRecord, dict[str, Any]]]:
    """Number, trial and ground truth of every trial of a session, in the order of recording."""
    population = population_of(settings, session.index)
    for block in session.blocks:
        state = block_state(settings, session.index, block.number, block.mode)
        normaliser = BlockNormaliser()
        practice = len(block.practice)
        said = (*block.practice, *(trial.sentence for trial in block.trials))
        for place, sentence in enumerate(said, start=-practice):
            generator = numpy_generator(
                settings.seed, "simulation", TRIAL, session.index, block.number, place + practice
            )
            symbols = pronounce(sentence)
            utterance = _say(symbols, settings, block, generator)
            raw_TC = record(utterance.latents_TD, population, state, max(place, 0), settings.snr, generator)
            if place >= 0:
                planned = block.trials[place]
                features_TC = normaliser.normalise(raw_TC)
                labels = PHONEMES.encode(symbols)
                trial = TrialRecord(planned.split, features_TC, labels, sentence, session.name, block.number, place)
                yield planned.number, trial, _truth(settings, block, trial, planned.number, utterance)
            normaliser.add(raw_TC)


def _say(
    symbols: tuple[str, ...], settings: SimulationSettings, block: PlannedBlock, generator: np.random.Generator
) -> Utterance:
    utterance = articulate(symbols, block.mode, settings.bins_per_phoneme, generator)
    frames = conv_length(utterance.num_bins, PATCH_BINS, PATCH_STRIDE)
    needed = ctc_frames_needed(PHONEMES.encode(symbols))
    assert frames >= needed, (frames, needed, symbols)
    return utterance


def _truth(
    settings: SimulationSettings, block: PlannedBlock, trial: TrialRecord, number: int, utterance: Utterance
) -> dict[str, Any]:
    """What no real data set tells, as one line of `ground_truth.jsonl`."""
    return {
        "session": trial.session,
        "split": trial.split,
        "trial": f"trial_{number:04d}",
        "block": block.number,
        "trial_num": trial.place,
        "mode": block.mode,
        "sentence": trial.sentence,
        "seq_class_ids": list(trial.labels),
        "alignment": [list(stretch) for stretch in utterance.alignment],
        "dead_channels": np.flatnonzero(~trial.features_TC.any(axis=0)).tolist(),
        "seed": settings.seed,
    }
