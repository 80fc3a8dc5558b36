"""Healthy runs of different recipes, data and seeds: no error in any, and at most one warning in all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sottovoce.core.findings import Finding
from tests.faults.conftest import SceneOn
from tests.faults.scene import Base, Exhibit, Scene, findings_of, record
from tests.faults.teachers import ask, ask_voices, ask_voices_out_of_fold

pytestmark = pytest.mark.slow

TRANSFORMER = (
    "model.gru=null",
    "model.ssm=null",
    "model.session_adapter=null",
    "model.transformer={width: 32, layers: 2, heads: 4, dropout: 0.1, input_dropout: 0.1}",
)
RUNS: tuple[tuple[Base, tuple[str, ...]], ...] = (
    *(("gru", (f"seed={seed}",)) for seed in range(1, 7)),
    *(("gru", ("model.session_adapter=null", f"seed={seed}")) for seed in (11, 12)),
    *(
        ("gru", ("training.gradient_accumulation_steps=2", "training.batch_size=4", f"seed={seed}"))
        for seed in (13, 14)
    ),
    *(("gru", ("training.scheduler.name=constant", f"seed={seed}")) for seed in (15,)),
    *(("gru", ("training.loss_normalisation=per_token", f"seed={seed}")) for seed in (16,)),
    *(("gru", ("augmentation.white_noise_std=0.0", f"seed={seed}")) for seed in (17,)),
    *(("curriculum", (f"seed={seed}",)) for seed in (1, 2, 3, 4)),
    *(("curriculum", ("training.loss_scaling=length", f"seed={seed}")) for seed in (5,)),
    *(("curriculum", ("training.loss_scaling=gradient_norm", f"seed={seed}")) for seed in (6,)),
    *(("recordings", (f"seed={seed}",)) for seed in (1, 2, 3, 4)),
    *(("gru", (*TRANSFORMER, "training.optimizer.lr=0.002", f"seed={seed}")) for seed in (18, 19)),
    *(("curriculum", (*TRANSFORMER, f"seed={seed}")) for seed in (7,)),
)
"""Small models on the museum's own data sets: the runs that the exhibits spoil."""
QUICK = (0, 6, 17)
"""Places of those that are part of the suite; `make museum` runs all."""
STEPS = ("training.steps=80", "training.scheduler.warmup_steps=20")
EVERY_40 = ("training.validate_every_steps=40", "training.checkpoint_every_steps=40", "training.log_every_steps=10")
STAGES = (
    "training.stages.0.steps=30", "training.stages.1.steps=20", "training.stages.2.steps=15",
    "training.rnnt_warmup_batches=5", "training.rnnt_ramp_steps=5", "training.scheduler.warmup_steps=10",
)  # fmt: skip
"""What `mode_ssm_small` counts in steps, a tenth of it or less."""


@dataclass(frozen=True)
class Shipped:
    """A recipe with its own model and settings, but for its length and the size of its batches."""

    name: str
    data: str
    """The fixture of its data set."""
    overrides: tuple[str, ...]


SHIPPED = (
    Shipped("demo", "demo_data", ("recipe=demo", *STEPS, *EVERY_40)),
    Shipped("demo, batches of 6, seed 23", "demo_data",
            ("recipe=demo", "training.batch_size=6", "seed=23", *STEPS, *EVERY_40)),
    Shipped("mode_ssm_small", "demo_data",
            ("recipe=mode_ssm_small", "training.batch_size=8", *STAGES, *EVERY_40)),
    Shipped("mode_ssm_small with the flow bridge", "demo_data",
            ("recipe=mode_ssm_small", "training.batch_size=8", "model.flow_bridge.enabled=true", *STAGES,
             "training.stages.3.steps=15", *EVERY_40)),
    Shipped("recordings", "spoken_digits",
            ("recipe=recordings", *STEPS, *EVERY_40)),
    Shipped("demo on 12 trials of one session", "twelve_trials",
            ("recipe=demo", "preprocessor.num_channels=16", *STEPS, *EVERY_40)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("base", "overrides"),
    [
        pytest.param(base, more, id="-".join((base, *more)), marks=[] if i in QUICK else [pytest.mark.museum])
        for i, (base, more) in enumerate(RUNS)
    ],
)
def test_a_healthy_run_gets_no_finding(
    base: Base, overrides: tuple[str, ...], neural: Path, voices: Path, scene_on: SceneOn
) -> None:
    scene = scene_on(voices if base == "recordings" else neural)
    _nothing_is_found(Exhibit(f"healthy: {base} {' '.join(overrides)}", "-", "", base=base, overrides=overrides), scene)


@pytest.mark.museum
@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda run: run.name.replace(" ", "_"))
def test_a_shipped_recipe_gets_no_finding(shipped: Shipped, scene_on: SceneOn, request: pytest.FixtureRequest) -> None:
    scene = scene_on(request.getfixturevalue(shipped.data))
    _nothing_is_found(
        Exhibit(f"healthy: shipped {shipped.name}", "-", "", base="shipped", overrides=shipped.overrides), scene
    )


@dataclass(frozen=True)
class TaughtRun:
    """A run that healthy teachers teach."""

    name: str
    base: Base = "gru"
    overrides: tuple[str, ...] = ()
    ask: Callable[[Scene], None] = ask


TAUGHT = (
    TaughtRun("by two of its size"),
    TaughtRun("by their arithmetic mean", overrides=("seed=2", "training.distillation.aggregation=prob_mean")),
    TaughtRun("though much smaller", overrides=("seed=3", "model.gru.units=12")),
    TaughtRun("though a transformer", overrides=(
        "seed=4", "model.gru=null", "model.session_adapter=null", "training.optimizer.lr=0.001",
        "model.transformer={width: 48, layers: 2, heads: 3, dropout: 0.1}")),
    TaughtRun("in a curriculum", "curriculum", ("model.stem=null", "model.patch={size: 14, stride: 4}",)),
    TaughtRun("with voices", "recordings", ask=ask_voices),
    TaughtRun("by those that have not heard the speaker", "recordings",
              ("training.distillation.out_of_fold=true",), ask_voices_out_of_fold),
)  # fmt: skip


@pytest.mark.museum
@pytest.mark.parametrize("student", TAUGHT, ids=lambda run: run.name.replace(" ", "_"))
def test_a_run_that_others_teach_gets_no_finding(
    student: TaughtRun, neural: Path, voices: Path, scene_on: SceneOn
) -> None:
    name = f"healthy: taught {student.name}"
    scene = scene_on(voices if student.base == "recordings" else neural)
    _nothing_is_found(Exhibit(name, "-", "", student.ask, student.base, student.overrides), scene)


def _nothing_is_found(healthy: Exhibit, scene: Scene) -> None:
    findings: list[Finding] = findings_of(healthy, scene)
    record(healthy, findings)
    assert not findings, "\n".join(str(finding) for finding in findings)
