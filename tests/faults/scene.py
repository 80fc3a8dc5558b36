"""The stage on which one fault is shown: a small run that would be healthy, and the places where it can be spoilt."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from sottovoce.core.errors import ConfigurationError, DataError, SottovoceError, TrainingAborted
from sottovoce.core.findings import Finding
from sottovoce.diagnosis.explainer import explain
from sottovoce.diagnosis.preflight import preflight
from sottovoce.diagnosis.ranking import ranked
from sottovoce.diagnosis.watcher import RunWatch
from sottovoce.evaluation.evaluate import evaluate_run
from sottovoce.runs.trained_decoder import load
from sottovoce.training.composition import compose_config
from sottovoce.training.guard import Verdict
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.run import resume, start
from sottovoce.training.step import StepComputer
from sottovoce.training.watch import StepView

Base = Literal["gru", "curriculum", "recordings", "shipped"]
"""Which healthy run is spoilt; `shipped` is a recipe as it is, named among the overrides."""
COMMON = (
    "data.num_workers=0",
    "training.num_threads=1",
    "training.log_every_steps=1",
    "run_name=exhibit",
)
GRU = (
    "recipe=demo",
    "preprocessor.num_channels=32",
    "model.gru.units=48",
    "training.steps=240",
    "training.scheduler.warmup_steps=20",
    "training.batch_size=8",
    "training.validate_every_steps=40",
    "training.checkpoint_every_steps=40",
)
CURRICULUM = (
    "recipe=mode_ssm_small",
    "model.speaking_mode=null",
    "preprocessor.num_channels=32",
    "model.stem.width=32",
    "model.ssm={layers: 2, width: 32, state_size: 8, head_size: 8}",
    "model.transducer={embedding_size: 8, units: 16, layers: 1, joint_size: 16}",
    "training.stages=[{name: ctc_warmup, steps: 120, components: [preprocessor, encoder, ctc_decoder]}, "
    "{name: joint, steps: 160, components: [preprocessor, encoder, ctc_decoder, rnnt_decoder], "
    "loss_weights: {ctc: 0.3, rnnt: 1.0}}]",
    "training.rnnt_warmup_batches=20",
    "training.rnnt_ramp_steps=20",
    "training.scheduler.warmup_steps=20",
    "training.optimizer.lr=0.003",
    "training.batch_size=8",
    "training.gradient_accumulation_steps=1",
    "training.validate_every_steps=40",
    "training.checkpoint_every_steps=40",
)
RECORDINGS = (
    "recipe=recordings",
    "training.steps=60",
    "training.scheduler.warmup_steps=10",
    "training.batch_size=8",
    "training.validate_every_steps=30",
    "training.checkpoint_every_steps=30",
)
INTERRUPTED_AT = 130
"""Step at which a run is stopped by a signal, where an exhibit asks for it."""
BASES: Mapping[Base, tuple[str, ...]] = {"gru": GRU, "curriculum": CURRICULUM, "recordings": RECORDINGS, "shipped": ()}


@dataclass
class Scene:
    """Where a fault can be put into a run; whatever is patched is put back afterwards."""

    patch: pytest.MonkeyPatch
    data: Path
    """The data set, shared by all exhibits: copy it before changing a file."""
    folder: Path
    """Empty, of this exhibit."""
    teachers: Callable[[], tuple[Path, Path]]
    """Two trained runs of the base `gru`, made when they are first asked for: copy one before changing a file."""
    overrides: list[str] = field(default_factory=list)
    """Settings of this scene, after the exhibit's own."""
    prepared: list[Callable[[Prepared], Prepared]] = field(default_factory=list)
    """Before the preflight."""
    begin: list[Callable[[StepComputer, torch.optim.Optimizer], None]] = field(default_factory=list)
    """After the preflight, before the first step."""
    before_update: list[Callable[[StepComputer], None]] = field(default_factory=list)
    """In every step, between the guard and the optimiser."""
    after_step: list[Callable[[StepView], None]] = field(default_factory=list)
    interrupted: list[Callable[[Path], None]] = field(default_factory=list)
    """On the run's directory, once it was stopped at `INTERRUPTED_AT`; it is continued afterwards."""
    trained: list[Callable[[], None]] = field(default_factory=list)
    """After the last step, before the evaluation."""
    finished: list[Callable[[Path], None]] = field(default_factory=list)
    """On the run's directory, once it has been evaluated."""


@dataclass(frozen=True)
class Exhibit:
    """One fault, and the cause that must be named first."""

    name: str
    row: str
    """Row of the catalogue of failures."""
    code: str
    inject: Callable[[Scene], None] = lambda scene: None
    base: Base = "gru"
    overrides: tuple[str, ...] = ()
    ambiguous_with: tuple[str, ...] = ()
    """Causes that the evidence cannot be told from; then one of them may come first, if the finding says so."""
    doctored: bool = False
    """Not a fault in a run, but the record of a healthy run changed afterwards: the table counts it apart."""
    missed: str = ""
    """Why another cause is named, where that is so."""
    slow: bool = False
    """Left to `make museum`."""


class _SpoiltWatch(RunWatch):
    """The watch that every run has, with an injection in front of each of its looks."""

    scene: Scene

    def begin(self, run_dir: Path, computer: StepComputer, optimizer: torch.optim.Optimizer) -> Iterable[Finding]:
        for spoil in self.scene.begin:
            spoil(computer, optimizer)
        return super().begin(run_dir, computer, optimizer)

    def before_update(self, computer: StepComputer, verdict: Verdict) -> None:
        for spoil in self.scene.before_update:
            spoil(computer)
        super().before_update(computer, verdict)

    def after_step(self, view: StepView) -> Iterable[Finding]:
        for spoil in self.scene.after_step:
            spoil(view)
        if self.scene.interrupted and view.step == INTERRUPTED_AT:
            signal.raise_signal(signal.SIGTERM)
        return super().after_step(view)


def findings_of(exhibit: Exhibit, scene: Scene) -> list[Finding]:
    """What `check`, `train` and `diagnose` say of the spoilt run, the likeliest cause first; notes left out."""
    exhibit.inject(scene)
    places = (f"data.data_root={scene.data}", f"runs_dir={scene.folder}")
    try:
        settings = (*BASES[exhibit.base], *COMMON, *places, *exhibit.overrides, *scene.overrides)
        prepared = prepare(compose_config(settings))
    except (DataError, ConfigurationError) as refused:
        return [_refusal(refused)]
    for spoil in scene.prepared:
        prepared = spoil(prepared)
    before = preflight(prepared)
    if any(finding.severity == "error" for finding in before):
        return ranked(before)
    run_dir = scene.folder / "exhibit"
    try:
        _train(scene, prepared, before)
        for spoil_evaluation in scene.trained:
            spoil_evaluation()
        run = load(run_dir)
        evaluate_run(run, "val", run.decoders())
    except SottovoceError as stopped:
        (scene.folder / "stopped").write_text(str(stopped), encoding="utf-8")
        if not run_dir.exists():
            return ranked(before)  # refused at its first step
    for end in scene.finished:
        end(run_dir)
    return explain(run_dir)


def _train(scene: Scene, prepared: Prepared, before: Iterable[Finding]) -> None:
    """The run under a watch that is spoilt; stopped, and continued as `train resume=` does, where the scene says so."""

    def watch(prepared: Prepared) -> _SpoiltWatch:
        spoilt = _SpoiltWatch(prepared, () if continued else before)
        spoilt.scene = scene
        return spoilt

    continued = False
    if not scene.interrupted:
        start(prepared, watch(prepared))
        return
    with pytest.raises(TrainingAborted, match=f"stopped at step {INTERRUPTED_AT}"):
        start(prepared, watch(prepared))
    continued, run_dir = True, scene.folder / "exhibit"
    for spoil in scene.interrupted:
        spoil(run_dir)
    scene.interrupted.clear()
    resume(run_dir, (), watch)


def _refusal(error: SottovoceError) -> Finding:
    """The refusal of a data set or configuration as a finding."""
    return Finding(error.code or "refused", "error", str(error), "", "", "preflight")


def at(step: int, action: Callable[[StepComputer], Any]) -> Callable[[StepView], None]:
    """`action`, once, when `step` steps are done."""

    def look(view: StepView) -> None:
        if view.step == step:
            action(view.computer)

    return look


def record(exhibit: Exhibit, findings: Iterable[Finding]) -> None:
    """One line for the table of results, where `make museum` asks for it."""
    if file := os.environ.get("MUSEUM_RECORD"):
        found = [[finding.code, finding.severity] for finding in findings]
        of_exhibit = {"row": exhibit.row, "name": exhibit.name, "code": exhibit.code, "doctored": exhibit.doctored}
        line = of_exhibit | {"found": found}
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
