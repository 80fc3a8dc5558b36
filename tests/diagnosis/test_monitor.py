"""The run monitor: silent on healthy runs, and the cause of each injected fault by name."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sottovoce.core.errors import TrainingAborted
from sottovoce.core.findings import Finding
from sottovoce.core.records import read_json_lines
from sottovoce.data.collation import StepPart, StepParts
from sottovoce.diagnosis.explainer.diagnosed_run import read_diagnosed
from sottovoce.diagnosis.monitor import RunMonitor, monitor
from sottovoce.diagnosis.monitor.blank import Blanks
from sottovoce.diagnosis.monitor.events import Draws, Events
from sottovoce.diagnosis.monitor.input_blind_floor import input_blind_floor
from sottovoce.diagnosis.monitor.pace import Pace
from sottovoce.diagnosis.monitor.plan import ObservedStep, Plan, recall, remembered
from sottovoce.diagnosis.monitor.reach import Reach
from sottovoce.diagnosis.monitor.sample import Sample
from sottovoce.diagnosis.monitor.updates import Norms, Updates
from sottovoce.diagnosis.monitor.validation import Validations
from sottovoce.diagnosis.watcher import RunWatch
from sottovoce.losses.ctc import ctc_loss
from sottovoce.training import step as step_page
from sottovoce.training.branches import TRANSDUCER
from sottovoce.training.composition import compose_config
from sottovoce.training.guard import GradientGuard, Verdict
from sottovoce.training.loop import RunLoop
from sottovoce.training.optimizer import build_optimizer
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.run import resume, start
from sottovoce.training.stages import Activity, StagePosition
from sottovoce.training.step import ComputedPart, StepComputer, StepRecord
from sottovoce.training.watch import StepView
from tests.training.small_runs import overrides
from tests.training.spoilt import spoil_loss

CTC = "components: [preprocessor, encoder, ctc_decoder], loss_weights: {ctc: 1.0}"
JOINT = "components: [preprocessor, encoder, ctc_decoder, rnnt_decoder], loss_weights: {ctc: 0.3, rnnt: 1.0}"
CURRICULUM = (
    "model.transducer={embedding_size: 8, units: 16, layers: 1, joint_size: 16}",
    "training.steps=null",
    f"training.stages=[{{name: ctc, steps: 8, {CTC}}}, {{name: joint, steps: 12, {JOINT}}}]",
    "training.rnnt_warmup_batches=4",
    "training.rnnt_ramp_steps=2",
)


def _prepare(data: Path, runs: Path, *more: str) -> Prepared:
    return prepare(compose_config(overrides(data, runs, "run", *more)))


def _watched(data: Path, runs: Path, *more: str) -> list[dict[str, Any]]:
    """The events of a run with a monitor, those with a severity."""
    prepared = _prepare(data, runs, *more)
    with contextlib.suppress(TrainingAborted):
        start(prepared, RunMonitor(prepared))
    return [e for e in read_json_lines(runs / "run" / "events.jsonl") if "severity" in e]


def _codes(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events if event["severity"] != "note"]


# ── whole runs ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_healthy_run_is_silent(tiny_t15: Path, tmp_path: Path, seed: int) -> None:
    assert _watched(tiny_t15, tmp_path, f"seed={seed}", "training.steps=40") == []


def test_a_healthy_curriculum_is_silent(tiny_t15: Path, tmp_path: Path) -> None:
    assert _watched(tiny_t15, tmp_path, *CURRICULUM) == []


@pytest.mark.slow
def test_a_resumed_run_is_silent_and_remembers(tiny_t15: Path, tmp_path: Path) -> None:
    prepared = _prepare(tiny_t15, tmp_path, "training.steps=12")
    monitor = RunMonitor(prepared)
    original = monitor.after_step

    def stop_at_seven(view: StepView) -> Iterator[Finding]:
        yield from original(view)
        if view.step == 7:
            raise KeyboardInterrupt

    monitor.after_step = stop_at_seven  # type: ignore[method-assign]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        start(prepared, monitor)
    again = RunMonitor(_prepare(tiny_t15, tmp_path, "training.steps=12"))
    resume(tmp_path / "run", watch=lambda prepared: again)
    events = read_json_lines(tmp_path / "run" / "events.jsonl")
    assert [e for e in events if "severity" in e] == []
    assert again.moments.step == 12
    json.dumps(again.state())


@pytest.mark.slow
def test_lost_moments_at_a_resume_are_incomplete(tiny_t15: Path, tmp_path: Path) -> None:
    prepared = _prepare(tiny_t15, tmp_path)
    monitor = RunMonitor(prepared)
    start(prepared, monitor)
    fresh = RunMonitor(_prepare(tiny_t15, tmp_path))
    fresh.restore(json.loads(json.dumps(monitor.state())))
    loop = RunLoop(_prepare(tiny_t15, tmp_path), tmp_path)
    optimizer = loop.computer.build_optimizer()
    assert [f.code for f in fresh.begin(tmp_path, loop.computer, optimizer)] == ["incomplete_resume"]


Fault = Callable[[pytest.MonkeyPatch], None]


def _at_step(step: int, act: Callable[[StepComputer, torch.optim.Optimizer], None]) -> Fault:
    """Do something to the run at the beginning of the step after `step`."""

    def inject(patch: pytest.MonkeyPatch) -> None:
        original = StepComputer.begin

        def begin(self: StepComputer, optimizer: torch.optim.Optimizer | None = None) -> StepRecord:
            record = original(self, optimizer)
            if self.progress.step == step and optimizer is not None:
                act(self, optimizer)
            return record

        patch.setattr(StepComputer, "begin", begin)

    return inject


def _forget_moments(computer: StepComputer, optimizer: torch.optim.Optimizer) -> None:
    optimizer.state.clear()


def _drop_the_head(patch: pytest.MonkeyPatch) -> None:
    def build(model: torch.nn.Module, *rest: Any, **more: Any) -> torch.optim.Optimizer:
        optimizer = build_optimizer(model, *rest, **more)
        head = {id(p) for name, p in model.named_parameters() if name.startswith("head.")}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in head]
        return optimizer

    patch.setattr(step_page, "build_optimizer", build)


def _flat_schedule(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(step_page, "learning_rate_factor", lambda *_: 1.0)


def _clip_scaled(patch: pytest.MonkeyPatch) -> None:
    original = GradientGuard.inspect

    def inspect(self: GradientGuard, parameters: Any, *rest: Any, **more: Any) -> Verdict:
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        torch._foreach_mul_(gradients, 65536.0)
        return original(self, parameters, *rest, **more)

    patch.setattr(GradientGuard, "inspect", inspect)


def _unscale_late(patch: pytest.MonkeyPatch) -> None:
    original = GradientGuard.inspect

    def inspect(self: GradientGuard, parameters: Any, *rest: Any, **more: Any) -> Verdict:
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        torch._foreach_mul_(gradients, 65536.0)
        verdict = original(self, parameters, *rest, **more)
        torch._foreach_mul_(gradients, 1 / 65536.0)
        return verdict

    patch.setattr(GradientGuard, "inspect", inspect)


def _swallow(patch: pytest.MonkeyPatch) -> None:
    counter = itertools.count()

    def loss(logits_BSV: torch.Tensor, *rest: Any) -> torch.Tensor:
        nats_B = ctc_loss(logits_BSV, *rest)
        return nats_B * 0 if next(counter) % 9 == 8 else nats_B

    spoil_loss(patch, "ctc_loss", loss)


def _constant(patch: pytest.MonkeyPatch) -> None:
    spoil_loss(patch, "ctc_loss", lambda logits, *rest: ctc_loss(logits, *rest) * 0 + 3.5)


def _small_batches(patch: pytest.MonkeyPatch) -> None:
    original = StepParts.__getitem__

    def item(self: StepParts, index: int) -> Any:
        part = original(self, index)
        if index % 5 != 4:
            return part
        b = part.batch
        kept = replace(
            b, signal=b.signal[:1], lengths_B=b.lengths_B[:1], labels_BU=b.labels_BU[:1],
            label_lengths_B=b.label_lengths_B[:1], session_B=b.session_B[:1], trial_ids=b.trial_ids[:1],
        )  # fmt: skip
        return replace(part, positions=part.positions[:1], batch=kept)

    patch.setattr(StepParts, "__getitem__", item)


def _first_batches_again(patch: pytest.MonkeyPatch) -> None:
    original = StepParts.__getitem__
    patch.setattr(StepParts, "__getitem__", lambda self, index: original(self, index % 6))


def _keep_bf16(patch: pytest.MonkeyPatch) -> None:
    original = StepComputer.begin

    def begin(self: StepComputer, optimizer: Any = None) -> StepRecord:
        record = original(self, optimizer)
        if optimizer is not None and not getattr(optimizer, "rounds", False):
            optimizer.rounds = True
            step = optimizer.step

            def rounded(*args: Any, **kwargs: Any) -> Any:
                value = step(*args, **kwargs)
                with torch.no_grad():
                    for p in self.model.parameters():
                        p.copy_(p.bfloat16().float())
                return value

            optimizer.step = rounded
        return record

    patch.setattr(StepComputer, "begin", begin)


def _smoothed_choice(patch: pytest.MonkeyPatch) -> None:
    values = iter([(0.9, 1.0), (0.8, 1.0), (0.7, 1.0), (0.6, 1.0)])
    patch.setattr(RunLoop, "_ranked_if_main", lambda self, found: next(values))
    shown = iter([0.5, 0.6, 0.7, 0.8])
    original = RunMonitor.validated
    patch.setattr(
        RunMonitor, "validated", lambda self, step, found: original(self, step, {**found, "val/per": next(shown)})
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "inject", "settings"),
    [
        ("optimizer_recreated", _at_step(8, _forget_moments), ()),
        ("stale_optimizer", _drop_the_head, ()),
        ("schedule_not_stepped", _flat_schedule, ()),
        ("clip_before_unscale", _clip_scaled, ()),
        ("clip_before_unscale", _unscale_late, ()),
        ("swallowed_exception", _swallow, ("training.batch_size=4",)),
        ("swallowed_exception", _constant, ()),
        ("swallowed_exception", _small_batches, ()),
        ("incomplete_resume", _first_batches_again, ()),
        ("bf16_parameters", _keep_bf16, ("training.steps=40", "training.optimizer.lr=0.0001")),
        ("moving_average_checkpoint", _smoothed_choice, ()),
    ],
)
def test_a_fault_is_named_first(
    tiny_t15: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    inject: Fault,
    settings: tuple[str, ...],
) -> None:
    inject(monkeypatch)
    assert _codes(_watched(tiny_t15, tmp_path, *settings))[:1] == [code]


@pytest.mark.slow
def test_a_transducer_that_runs_while_it_is_held_back(
    tiny_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StepComputer.compute

    def leaky(self: StepComputer, part: StepPart, activity: Activity) -> ComputedPart:
        computed = original(self, part, activity)
        if "rnnt" in activity.weights:
            return computed
        hidden = TRANSDUCER.nats(computed.inputs, "none").sum() / self.global_batch
        return replace(computed, loss=computed.loss + hidden)

    monkeypatch.setattr(StepComputer, "compute", leaky)
    monkeypatch.setattr(step_page, "check_owners", lambda *_: None)
    assert "frozen_branch_leaks" in _codes(_watched(tiny_t15, tmp_path, *CURRICULUM))


@pytest.mark.slow
def test_a_transducer_that_never_joins(tiny_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StagePosition, "after_update", lambda self, stage: self)
    assert _codes(_watched(tiny_t15, tmp_path, *CURRICULUM)) == ["per_epoch_counter"]


@pytest.mark.slow
def test_a_stage_that_ends_at_once(tiny_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = f"[{{name: ctc, steps: 8, patience: 2, {CTC}}}, {{name: joint, steps: 12, patience: 2, {JOINT}}}]"

    def next_stage(self: StagePosition, step: int) -> StagePosition:
        return replace(self, index=self.index + 1, first_step=step, best=(0.0, 0.0), waited=1)

    monkeypatch.setattr(StagePosition, "next_stage", next_stage)
    settings = (*CURRICULUM, f"training.stages={stages}", "training.validate_every_steps=2")
    assert "stage_one_epoch" in _codes(_watched(tiny_t15, tmp_path, *settings, "training.rnnt_warmup_batches=0"))


# ── single detectors, driven by numbers ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def computer_and_plan(tiny_t15: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[StepComputer, Plan]:
    prepared = _prepare(
        tiny_t15, tmp_path_factory.mktemp("plan"), "training.steps=300", "training.scheduler.warmup_steps=30"
    )
    loop = RunLoop(prepared, Path("nowhere"))
    return loop.computer, Plan.of(prepared, 100.0)


def _observed(
    computer: StepComputer, step: int, norm: float = 5.0, sample: Sample | None = None, **metrics: float
) -> ObservedStep:
    rate = metrics.pop("rate", 1.0)
    if "wait" in metrics:
        metrics["train__data_wait_seconds"] = metrics.pop("wait")
    verdict = Verdict(norm, "clip" if norm > 10 else "step", limit=10.0)
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate, "peak_lr": 1.0}], lr=rate)
    record = StepRecord(Activity({"ctc": 1.0}, {"encoder": 1.0}), metrics=named)
    view = StepView(step, verdict, record, computer, optimizer, "train")
    return ObservedStep(view, record.activity, step - 1, sample)


def _sample(step: int, ratio: float = 0.005, **facts: Any) -> Sample:
    return Sample(step, {"encoder": ratio}, {"encoder": True}, **facts)


def _drive(detector: Any, now: Iterator[ObservedStep]) -> list[Finding]:
    return [finding for one in now for finding in detector.look(one)]


def _blank_run(
    computer: StepComputer, loss: Callable[[int], float], blank: Callable[[int], float], **facts: Any
) -> Iterator[ObservedStep]:
    for step in range(1, 701):
        metrics = {"train__ctc_loss": loss(step), "train__blank_fraction": blank(step)}
        yield _observed(computer, step, sample=_sample(step, **facts) if step % 10 == 0 else None, **metrics)


def test_a_plateau_with_a_falling_loss_is_a_note(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    computer, plan = computer_and_plan
    found = _drive(Blanks(plan), _blank_run(computer, lambda s: 70 * math.exp(-s / 300), lambda s: 0.99))
    assert [(f.code, f.severity) for f in found] == [("blank_plateau", "note")]


def test_blanks_at_the_floor_are_a_collapse(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    computer, plan = computer_and_plan
    (found,) = _drive(Blanks(plan), _blank_run(computer, lambda s: 99.0 + (s % 3), lambda s: 1.0))
    assert (found.code, found.severity) == ("blank_collapse", "error")
    assert found.step == 251  # so many steps of them: before that it may be a slow start


def test_a_collapse_comes_into_reach_of_short_runs(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    _, plan = computer_and_plan
    steps = {total: _of_length(plan, total).collapse_steps for total in (200, 500, 700, 1000, 120_000)}
    assert steps == {200: 250, 500: 250, 700: 350, 1000: 500, 120_000: 2400}


def _of_length(plan: Plan, steps: int) -> Plan:
    stages = tuple(replace(stage, steps=steps) for stage in plan.curriculum.stages)
    return replace(plan, curriculum=replace(plan.curriculum, stages=stages))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda s: 99.0 + s % 3, ["input_ignored"]),
        (lambda s: 198.0 + s % 3, []),  # twice the floor: constant answers would do better
        (lambda s: 93.0 + s % 3, []),  # on its way below
        (lambda s: 109.0 - s / 20, []),  # still falling
    ],
)
def test_the_input_is_ignored_at_the_floor_alone(
    loss: Callable[[int], float], expected: list[str], computer_and_plan: tuple[StepComputer, Plan]
) -> None:
    computer, plan = computer_and_plan
    found = _drive(Blanks(plan), _blank_run(computer, loss, lambda s: 0.5))
    assert [finding.code for finding in found] == expected


def _reaching(
    computer: StepComputer, loss: float, ratio: float, size: Callable[[int], float], **group: float
) -> Iterator[ObservedStep]:
    for step in range(1, 251):
        facts = {"size": {"encoder": size(step)}, "sensitivity": group.get("sensitivity", 0.0)}
        now = _observed(computer, step, sample=_sample(step, ratio, **facts), rate=group["lr"], train__ctc_loss=loss)
        now.view.optimizer.param_groups[0]["weight_decay"] = group.get("decay", 0.0)
        yield now


def test_a_rate_that_gets_nowhere(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    computer, plan = computer_and_plan
    (found,) = _drive(Reach(plan), _reaching(computer, 196.0, 1e-6, lambda s: 1.0, lr=1e-7))
    assert (found.code, found.severity, found.step) == ("learning_rate_too_low", "error", 131)
    assert found.override == "training.optimizer.lr=0.002"
    assert "1.96 of the input-blind floor 100" in found.evidence
    assert "in all 300 steps by no more than 0.0%" in found.evidence
    for loss, ratio, sensitivity in ((80.0, 1e-6, 0.0), (196.0, 1.5e-3, 0.0), (196.0, 1e-6, 0.9)):
        now = _reaching(computer, loss, ratio, lambda s: 1.0, lr=1e-7, sensitivity=sensitivity)
        assert _drive(Reach(plan), now) == []  # it learns, steps are not small, or epsilon holds them back


def test_a_run_killed_early_is_not_accused_of_a_low_rate(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    computer, plan = computer_and_plan
    now = itertools.islice(_reaching(computer, 196.0, 1e-6, lambda s: 1.0, lr=1e-7), 100)
    assert _drive(Reach(plan), now) == []


def test_decay_is_told_from_a_high_rate_by_the_size_of_the_weights(
    computer_and_plan: tuple[StepComputer, Plan],
) -> None:
    computer, plan = computer_and_plan
    shrinks = list(_reaching(computer, 100.0, 0.08, lambda s: 0.9**s + 0.2, lr=0.004, decay=20.0))
    (found,) = _drive(Reach(plan), iter(shrinks))
    assert found.code == "weight_decay_too_strong"
    assert found.override == "training.optimizer.weight_decay=0.01"
    assert "takes up to 8.0% of them in a step" in found.evidence
    assert _drive(Updates(plan), iter(shrinks)) == []  # what moves there is the decay
    grows = list(_reaching(computer, 100.0, 0.08, lambda s: 1.0 + s / 50, lr=0.3, decay=0.05))
    assert _drive(Reach(plan), iter(grows)) == []
    assert [f.code for f in _drive(Updates(plan), iter(grows))] == ["learning_rate_too_high"]
    learns = _reaching(computer, 50.0, 0.08, lambda s: 0.9**s + 0.2, lr=0.004, decay=20.0)
    assert _drive(Reach(plan), learns) == []


def test_a_flat_loss_below_the_floor_with_a_large_epsilon_points_to_it(
    computer_and_plan: tuple[StepComputer, Plan],
) -> None:
    computer, plan = computer_and_plan
    now = _blank_run(computer, lambda s: 60.0 + (s % 3), lambda s: 1.0, ratio=1e-5, sensitivity=0.95)
    found = sorted(_drive(Blanks(plan), now), key=lambda f: -f.support)
    assert [f.code for f in found] == ["adam_eps_regime", "blank_collapse"]


def test_a_relapse_is_a_collapse(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    computer, plan = computer_and_plan
    now = _blank_run(computer, lambda s: 80 - s / 4 if s < 180 else 75.0, lambda s: 0.6 if 60 < s < 180 else 0.99)
    found = [f for f in _drive(Blanks(plan), now) if f.severity != "note"]
    assert [f.code for f in found] == ["blank_collapse"]
    assert "relapse" in found[0].evidence


def test_spikes_and_large_updates(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    computer, plan = computer_and_plan
    calm = (_observed(computer, s, norm=5.0 + s % 3) for s in range(1, 200))
    assert _drive(Norms(plan), calm) == []
    spiky = (_observed(computer, s, norm=500.0 if s in (100, 120, 140) else 5.0) for s in range(1, 200))
    assert "gradient_spike" in [f.code for f in _drive(Norms(plan), spiky)]

    def far(loss: float) -> Iterator[ObservedStep]:
        return (_observed(computer, s, sample=_sample(s, ratio=0.1), train__ctc_loss=loss) for s in range(1, 150))

    assert [f.code for f in _drive(Updates(plan), far(110.0))] == ["learning_rate_too_high"]
    assert _drive(Updates(plan), far(40.0)) == []  # large steps that work are no fault


def test_one_giant_gradient_stays_in_the_second_moment(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    computer, plan = computer_and_plan

    def now(first: float) -> Iterator[ObservedStep]:
        for step in range(1, 200):
            one = _observed(computer, step, norm=first if step == 5 else 1.0)
            yield replace(one, view=replace(one.view, verdict=replace(one.view.verdict, action="step")))

    assert "second_moment_memory" in [f.code for f in _drive(Norms(plan), now(3000.0))]
    assert _drive(Norms(plan), now(10.0)) == []


def test_a_tight_clip_matters_only_where_steps_have_a_scale(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    computer, plan = computer_and_plan
    clipped = [_observed(computer, s, norm=500.0, sample=_sample(s, sensitivity=0.0)) for s in range(1, 100)]
    assert _drive(Updates(plan), iter(clipped)) == []
    stuck = [_observed(computer, s, norm=500.0, sample=_sample(s, 1e-6, sensitivity=1.0)) for s in range(1, 100)]
    assert [f.code for f in _drive(Updates(plan), iter(stuck))] == ["clipped_to_standstill"]


def test_a_dominating_parameter(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    computer, plan = computer_and_plan
    facts: dict[str, Any] = {"largest": ("head.weight", 0.999), "group_norms": {"encoder": 1.0, "ctc_decoder": 30.0}}
    now = (_observed(computer, s, sample=_sample(s, **facts)) for s in range(1, 20))
    assert [f.code for f in _drive(Updates(plan), now)] == ["dominating_parameter"]


def test_waiting_for_data_and_slowing_down(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    computer, plan = computer_and_plan
    waits = (_observed(computer, s, train__data_wait_seconds=0.3, train__step_seconds=0.05) for s in range(1, 60))
    assert [f.code for f in _drive(Pace(plan), waits)] == ["data_starvation"]
    slows = (
        _observed(computer, s, train__data_wait_seconds=0.0, train__step_seconds=0.05 if s < 40 else 0.5)
        for s in range(1, 90)
    )
    assert [f.code for f in _drive(Pace(plan), slows)] == ["throughput_drop"]
    noisy = (
        _observed(computer, s, train__data_wait_seconds=0.01, train__step_seconds=0.05 * (1 + s % 3))
        for s in range(1, 90)
    )
    assert _drive(Pace(plan), noisy) == []


def _validations(
    computer: StepComputer, plan: Plan, rates: list[float], losses: list[float], val: list[float], rate: float
) -> list[str]:
    detector, found = Validations(replace(plan, num_val_labels=2000)), []
    computer.progress.best_by, computer.progress.best = "", None
    for number, (per, loss, val_loss) in enumerate(zip(rates, losses, val, strict=True), start=1):
        step = 10 * number
        found += _drive(detector, iter([_observed(computer, step, train__ctc_loss=loss, rate=rate)]))
        found += list(detector.validated(step, {"val/per": per, "val/loss": val_loss}))
        if computer.progress.best is None or per < computer.progress.best[0]:
            computer.progress.best, computer.progress.best_step = [per, 0.0], step
    return [finding.code for finding in found]


def test_worse_with_a_high_rate_and_worse_by_heart(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    computer, plan = computer_and_plan
    worse = [0.5, 0.3, 0.36, 0.4, 0.45]
    assert _validations(computer, plan, worse, [60, 40, 38, 37, 36], [60, 42, 44, 45, 46], 1.0) == [
        "schedule_degradation"
    ]
    assert _validations(computer, plan, worse, [60, 30, 10, 5, 2], [60, 42, 50, 60, 70], 1.0) == ["overfitting"]
    assert (
        _validations(computer, plan, [0.5, 0.3, 0.31, 0.305, 0.31], [60, 40, 39, 38, 37], [60, 42, 42, 42, 42], 1.0)
        == []
    )


def test_never_better_than_blind_is_no_overfitting(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    computer, plan = computer_and_plan
    plan = replace(plan, val_floor=96.0)
    worse, falls = [0.8, 0.6, 0.66, 0.7, 0.75], [120.0, 30.0, 10.0, 5.0, 2.0]
    unlike = ["validation_unlike_training"]
    assert _validations(computer, plan, worse, falls, [140, 132, 150, 160, 185], 1.0) == unlike
    assert _validations(computer, plan, worse[:2], falls[:2], [140, 132], 1.0) == unlike
    assert _validations(computer, plan, worse[:2], [120, 99], [140, 132], 1.0) == []  # nothing learnt: another cause
    assert _validations(computer, plan, worse, falls, [140, 80, 100, 110, 120], 1.0) == ["overfitting"]


@pytest.mark.slow
def test_the_floors_are_kept_for_the_explainer(tiny_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = _prepare(tiny_t15, tmp_path)
    few = RunMonitor(prepared).plan
    assert few.floor is not None
    assert few.val_floor is None  # constants fitted to so few trials flatter
    monkeypatch.setattr(monitor, "FEWEST_VALIDATION_TRIALS", len(prepared.val_indices))
    plan = RunMonitor(prepared).plan
    floors = read_diagnosed(start(prepared, RunWatch(prepared))).floors
    assert floors == {"train": plan.floor, "val": plan.val_floor}
    assert all(5 < floor < 500 for floor in floors.values())


def test_a_metric_that_is_not_there(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    _, plan = computer_and_plan
    (found,) = Validations(plan).validated(5, {"val/loss": 3.0})
    assert found.code == "metric_missing"


def test_speakers_and_sessions_drawn(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    _, plan = computer_and_plan
    speakers = itertools.cycle(["F02", "M08"])
    two = {name: replace(trial, speaker=next(speakers)) for name, trial in plan.trials.items()}
    draws = Draws(replace(plan, trials=two), steps=60, speakers=["F02"])
    draws.draws = dict.fromkeys({trial.session for trial in two.values()}, 100)
    assert [f.code for f in draws.judge(60)] == ["single_speaker_audio"]
    first, second = sorted({trial.session for trial in plan.trials.values()})
    uneven = Draws(plan, steps=60, draws={first: 900, second: 100})
    assert [f.code for f in uneven.judge(60)] == ["session_imbalance"]
    assert list(Draws(plan, steps=60, draws={first: 500, second: 480}).judge(60)) == []


def test_a_validation_that_does_not_come(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    computer, plan = computer_and_plan
    found = _drive(Events(plan), (_observed(computer, s) for s in range(1, 20)))
    assert [f.code for f in found] == ["per_epoch_counter"]


def test_what_a_detector_remembers_survives_json(computer_and_plan: tuple[StepComputer, Plan]) -> None:
    computer, plan = computer_and_plan
    now = list(_blank_run(computer, lambda s: 99.0 + (s % 3), lambda s: 1.0))
    whole = _drive(Blanks(plan), iter(now))
    first, second = Blanks(plan), Blanks(plan)
    found = _drive(first, iter(now[:120]))
    recall(second, json.loads(json.dumps(remembered(first))))
    assert found + _drive(second, iter(now[120:])) == whole


# ── the floor ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_floor_of_two_single_labels_is_a_coin() -> None:
    assert input_blind_floor([[1], [2]], [1, 1], 3) == pytest.approx(math.log(2), abs=1e-3)


def test_the_floor_is_a_minimum_over_constant_logits() -> None:
    generator = torch.Generator().manual_seed(1)
    targets = [torch.randint(1, 6, (4,), generator=generator).tolist() for _ in range(20)]
    floor = input_blind_floor(targets, [12] * 20, 6)
    labels, lengths = torch.tensor(targets), torch.full((20,), 12)
    for _ in range(50):
        z_V = torch.randn(6, generator=generator)
        nats = ctc_loss(z_V.expand(20, 12, 6), labels, lengths, torch.full((20,), 4)).mean()
        assert float(nats) >= floor - 1e-4


def test_the_floor_takes_less_than_a_second() -> None:
    generator = torch.Generator().manual_seed(1)
    targets = [torch.randint(1, 41, (25,), generator=generator).tolist() for _ in range(200)]
    began = time.process_time()
    input_blind_floor(targets, [100] * 200, 41)
    assert time.process_time() - began < 2.0
