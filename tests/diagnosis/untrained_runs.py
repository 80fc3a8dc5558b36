"""Runs of some seconds before their first step, for the tests of preflight."""

from __future__ import annotations

from pathlib import Path

from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.training.composition import compose_config
from sottovoce.training.preparation import prepare
from tests.training.small_runs import overrides


def untrained_gru(data: Path, *more: str) -> UntrainedRun:
    """The demo recipe with 16 channels and units."""
    return UntrainedRun.of(prepare(compose_config(overrides(data, Path("runs"), "preflight", *more))))


def untrained_ssm(data: Path, *more: str) -> UntrainedRun:
    """The small curriculum with 16 channels: state-space layers in both directions, a transducer, two stages."""
    given = [
        "recipe=mode_ssm_small",
        f"data.data_root={data}",
        "preprocessor.num_channels=16",
        "model.stem.width=16",
        "model.ssm={layers: 2, width: 16, state_size: 4, head_size: 4}",
        "model.transducer={embedding_size: 6, units: 8, layers: 1, joint_size: 8}",
        "model.speaking_mode=null",
        "training.stages=[{name: ctc, steps: 5, components: [preprocessor, encoder, ctc_decoder]}, {name: joint, "
        "steps: 9, components: [preprocessor, encoder, ctc_decoder, rnnt_decoder], loss_weights: {ctc: 0.3, rnnt: 1}}]",
        "training.rnnt_warmup_batches=2",
        "training.scheduler.warmup_steps=2",
        "training.num_threads=1",
        *more,
    ]
    return UntrainedRun.of(prepare(compose_config(given)))
