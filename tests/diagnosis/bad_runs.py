"""Small runs with one thing wrong, and what they leave behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sottovoce.core.errors import TrainingAborted
from sottovoce.diagnosis.capsules.capsule import capsules_of
from sottovoce.diagnosis.watcher import RunWatch
from sottovoce.training.composition import compose_config
from sottovoce.training.loop import RunLoop
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.run import build_trainer, fit
from tests.training.small_runs import overrides

Injection = Callable[[Prepared, RunLoop], object]
BATCH_STATISTICS = (
    "recipe=mode_ssm_small",
    "training.steps=null",
    "model.gru=null",
    "model.ssm={layers: 1, width: 16, state_size: 4, head_size: 8}",
    "model.stem={width: 16, normalisation: batch}",
    "model.transducer=null",
    "model.speaking_mode=null",
    "decoding.decoder=greedy",
    "training.stages=[{name: ctc_warmup, steps: 14, components: [preprocessor, encoder, ctc_decoder]}]",
)
"""One trial's numbers reach every trial of its batch."""


def bad_run(data: Path, runs: Path, inject: Injection, *more: str, watch: RunWatch | None = None) -> Path:
    """A run of a few steps with `inject` done to it; it may end itself."""
    prepared = prepare(compose_config(overrides(data, runs, "bad", *more)))
    run_dir = runs / "bad"
    run_dir.mkdir()
    loop = RunLoop(prepared, run_dir, watch or RunWatch(prepared))
    inject(prepared, loop)
    with contextlib.suppress(TrainingAborted):
        fit(prepared, loop, build_trainer(prepared.config))
    return run_dir


def first_capsule(run_dir: Path) -> Path:
    """The capsule of the earliest bad step."""
    return run_dir / "capsules" / str(min(capsules_of(run_dir)))


def long_labels(prepared: Prepared, loop: RunLoop) -> str:
    """Give one training trial far more labels than frames; returns its id."""
    trial_set, index = prepared.trial_set, prepared.train_indices[3]
    trials = list(trial_set.trials)
    labels = trials[index].labels
    assert labels is not None
    trials[index] = replace(trials[index], labels=labels * 6)
    trial_set.trials = tuple(trials)
    return trials[index].trial_id


def spoilt_signal(prepared: Prepared, loop: RunLoop | None = None, value: float = np.nan, bins: int = 1) -> str:
    """Put a NaN, or `value`, into channel 2 of one training trial, from bin 5 on; returns its id."""
    trial_set, spoilt = prepared.trial_set, prepared.train_indices[3]
    right = trial_set.signal

    def signal(index: int) -> npt.NDArray[np.float32]:
        found = right(index).copy()
        if index == spoilt:
            found[5 : 5 + bins, 2] = value
        return found

    trial_set.signal = signal  # type: ignore[method-assign]
    return trial_set.trials[spoilt].trial_id


def lost_weights(prepared: Prepared, loop: RunLoop) -> None:
    """Lose one weight in step 5."""

    def spoil(*_: object) -> None:
        if loop.computer.progress.step == 4:
            with torch.no_grad():
                loop.computer.model.head.bias[3] = torch.nan

    prepared.model.head.register_forward_pre_hook(spoil)


def foreign_code(prepared: Prepared, loop: RunLoop) -> None:
    """A hook that no capsule can hold makes one gradient NaN in step 5."""

    def poison(gradient: torch.Tensor) -> torch.Tensor | None:
        return gradient * torch.nan if loop.computer.progress.step == 4 else None

    prepared.model.head.weight.register_hook(poison)
