"""A run is interrupted and continued before it has begun: in small, through the run's own loop and checkpoints."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import torch

from sottovoce.core.errors import CheckpointError
from sottovoce.core.findings import Finding
from sottovoce.core.trial import Batch
from sottovoce.data.collation import StepPart
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.bindings import bound
from sottovoce.diagnosis.preflight.subject import Subject
from sottovoce.features.config import AugmentationConfig, PreprocessorConfig
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.models.compose import ModelConfig, build_model
from sottovoce.models.gru import GRUConfig
from sottovoce.training import loop as training_loop
from sottovoce.training import run as training_run
from sottovoce.training.config import TrainingConfig
from sottovoce.training.preparation import Prepared, curriculum_of
from sottovoce.training.watch import NoWatch

STEPS_BEFORE: Final = 2
STEPS_AFTER: Final = 2
CHANNELS: Final = 3
STEPS: Final = 100
"""Of the small run, which is never finished."""


class _NotingWatch(NoWatch):
    """A watch with something to remember."""

    def __init__(self) -> None:
        self.note = ""

    def state(self) -> dict[str, Any]:
        """The note."""
        return {"note": self.note}

    def restore(self, state: Any) -> None:
        """Take the note."""
        self.note = state["note"]


class _NotingModes:
    """Mode targets that were refreshed."""

    def __init__(self) -> None:
        self.note: list[list[Any]] = []

    def state(self) -> list[list[Any]]:
        """The note."""
        return self.note

    def restore(self, state: list[list[Any]]) -> None:
        """Take the note."""
        self.note = state


def resume_answers(subject: Subject) -> Iterator[Finding]:
    """Four steps in a row against two, a checkpoint and two more; and whether the sampler goes on where it was."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(()):
        prepared = _small(subject.prepared)
        first = _Rehearsed(prepared, Path(folder), subject)
        for step in range(STEPS_BEFORE):
            first.step(step)
        first.mark()
        first.save()
        kept = first.state()
        try:
            second = _Rehearsed(_small(subject.prepared), Path(folder), subject)
            second.restore()
        except (CheckpointError, KeyError, TypeError) as error:
            yield _incomplete(f"a checkpoint that has just been written cannot be continued from: {error}")
            return
    restored = second.state()
    lost = [name for name in kept if kept[name] != restored[name]]
    if lost:
        yield _incomplete(
            f"of what a checkpoint holds, {', '.join(lost)} is not the same after loading: {_short(kept[lost[0]])} was "
            f"saved, {_short(restored[lost[0]])} came back"
        )
        return
    with torch.random.fork_rng(()):
        for step in range(STEPS_BEFORE, STEPS_BEFORE + STEPS_AFTER):
            losses = first.step(step), second.step(step)
            if losses[0] != losses[1]:
                yield _incomplete(
                    f"step {step + 1} has the loss {losses[0]:.6g} in a run without interruption and {losses[1]:.6g} "
                    f"after a checkpoint at step {STEPS_BEFORE}"
                )
                return
    yield from _sampler(subject)


class _Rehearsed:
    """The run's loop around a model of some hundred numbers, driven by hand."""

    def __init__(self, prepared: Prepared, folder: Path, subject: Subject) -> None:
        self.watch = _NotingWatch()
        self.loop = cast(Any, type(subject.loop)(prepared, folder, self.watch))
        self.loop._recorder = SimpleNamespace(event=_ignored, say=_ignored, metrics=_ignored, show=_ignored)
        self.module = cast(Any, self.loop.module)
        self.optimizer = self.module.configure_optimizers()
        self.module.optimizers = lambda: SimpleNamespace(optimizer=self.optimizer)

    def step(self, step: int) -> float:
        """One optimiser step as the trainer makes it; its loss."""
        part = StepPart(step, 0, (0, 1), _batch(step))
        loss = self.module.training_step(part, step)
        loss.backward()
        self.module.owners_checked = True  # a stage that trains nothing is told of by another check
        self.module.on_before_optimizer_step(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.module.on_train_batch_end(None, part, step)
        return float(loss.detach())

    def mark(self) -> None:
        """Give everything that a checkpoint has to hold a value that a fresh run does not have."""
        guard, progress, position = self.module.guard, self.module.progress, self.module.progress.position
        guard.skipped["nonfinite_loss"], guard.in_a_row, guard.recent = 3, 1, [False, True]
        self.module.progress = replace(
            progress, best=[0.5, 2.0], best_step=1, best_by="val/per greedy", trained=["encoder"], position=position
        )
        self.module.balance.norms.update(ctc=2.0, rnnt=3.0)
        self.module.model.use_flow_bridge = True
        self.watch.note = "seen"
        self.module.modes.note = [["session", 1, 0.25]]

    def save(self) -> None:
        """Write `checkpoints/last`."""
        self.loop._save("last")

    def restore(self) -> None:
        """Continue from it, the optimiser too."""
        self.loop.restore()
        ((_, put_back),) = bound("load_optimizer_tensors", training_loop)
        put_back(self.optimizer, self.loop._optimizer_state, self.module.named)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on or that a record is made of, comparable."""
        moments = {
            f"moments of {name}": [value.tolist() for _, value in sorted(self.optimizer.state[p].items())]
            for name, p in self.module.named.items()
        }
        return {
            "progress": asdict(self.module.progress),
            "weights": {name: p.tolist() for name, p in self.module.named.items()},
            "moments": moments,
            "guard": self.module.guard.state(),
            "skipped steps": dict(self.module.guard.skipped),
            "norms": list(self.module.guard.norms),
            "recent steps": (list(self.module.guard.recent), self.module.guard.in_a_row),
            "window": asdict(self.loop.window),
            "balance": dict(self.module.balance.norms),
            "use_flow_bridge": self.module.model.use_flow_bridge,
            "watch": self.watch.note,
            "modes": self.module.modes.note,
        }


def _small(prepared: Prepared) -> Prepared:
    """The run with a GRU of two units on three channels, one stage, and no data; everything else as it is."""
    config = prepared.config
    model = ModelConfig(
        gru=GRUConfig(2, 1),
        head_dropout=0.5,
        num_channels=CHANNELS,
        num_sessions=1,
        num_symbols=prepared.model.head.out_features,
    )
    training = TrainingConfig(
        steps=STEPS,
        batch_size=2,
        max_grad_norm=config.training.max_grad_norm,
        optimizer=config.training.optimizer,
        scheduler=replace(config.training.scheduler, warmup_steps=1, max_steps=None),
        guard=replace(config.training.guard, num_capsules=0),
        validate_every_steps=STEPS,
        checkpoint_every_steps=STEPS,
        log_every_steps=STEPS,
    )
    evaluation = replace(config.evaluation, decoder="greedy")
    small = replace(config, model=model, training=training, evaluation=evaluation)
    torch.manual_seed(0)
    built = build_model(model)
    pipeline = FeaturePipeline(PreprocessorConfig(CHANNELS, 0.0), AugmentationConfig(white_noise_std=0.5))
    return replace(
        prepared,
        config=small,
        model=built,
        pipeline=pipeline,
        val_indices=[],
        curriculum=curriculum_of(small, built, len(prepared.train_indices)),
        modes=cast(Any, _NotingModes()),
    )


def _batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    return Batch(
        torch.randn(2, 9, CHANNELS, generator=generator),
        torch.tensor([9, 7]),
        torch.tensor([[1, 2], [2, 0]]),
        torch.tensor([2, 1]),
        torch.tensor([0, 0]),
        ("one", "two"),
    )


def _sampler(subject: Subject) -> Iterator[Finding]:
    """A loader that begins at a later step gives the batches that the first one gives there."""
    trainer: Any = SimpleNamespace(world_size=1, global_rank=0)
    places: dict[int, list[Any]] = {}
    before = subject.module.progress
    try:
        for first in (0, STEPS_BEFORE):
            subject.module.progress = replace(before, step=first)
            parts: Any = training_run._loader(subject.prepared, subject.module, trainer).dataset
            for ahead in range(STEPS_BEFORE + STEPS_AFTER - first):
                step = parts.first_step + ahead
                places.setdefault(first + ahead, []).append((step, parts.plan.step(step).tolist()))
    finally:
        subject.module.progress = before
    for step, drawn in places.items():
        if any(other != drawn[0] for other in drawn[1:]):
            yield _incomplete(
                f"step {step + 1} shows the trials of step {drawn[0][0] + 1} ({_short(drawn[0][1])}) in a run without "
                f"interruption and those of step {drawn[1][0] + 1} ({_short(drawn[1][1])}) after one at step "
                f"{STEPS_BEFORE}"
            )
            return


def _ignored(*_: Any, **__: Any) -> None:
    """Nothing is recorded."""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _incomplete(evidence: str) -> Finding:
    return found("incomplete_resume", f"{evidence[0].upper()}{evidence[1:]}.", "preflight")
