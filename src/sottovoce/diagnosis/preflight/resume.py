"""A run is interrupted and continued before it has begun: in small, through the run's own loop and checkpoints."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch

from sottovoce.core.errors import CheckpointError
from sottovoce.core.findings import Finding
from sottovoce.core.splits import Split
from sottovoce.core.trial import Batch
from sottovoce.data.collation import StepPart
from sottovoce.data.speaking_modes import BlockModes
from sottovoce.decoding.config import DecodingConfig
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.features.config import AugmentationConfig, PreprocessorConfig
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.models.compose import ModelConfig, build_model
from sottovoce.models.gru import GRUConfig
from sottovoce.training.config import TrainingConfig
from sottovoce.training.mode_targets import ModeTargets
from sottovoce.training.preparation import Prepared, curriculum_of
from sottovoce.training.run import step_parts
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


def resume_answers(untrained: UntrainedRun) -> Iterator[Finding]:
    """Four steps in a row against two, a checkpoint and two more; and whether the sampler goes on where it was."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(()):
        prepared = _small(untrained.prepared)
        first = _Rehearsed(prepared, Path(folder), untrained)
        for step in range(STEPS_BEFORE):
            first.step(step)
        first.mark()
        first.save()
        kept = first.state()
        try:
            second = _Rehearsed(_small(untrained.prepared), Path(folder), untrained)
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
    yield from _sampler(untrained)


class _Silent:
    """A recorder that takes nothing down."""

    def metrics(self, step: int, split: Split, values: dict[str, float]) -> None:
        """Nothing."""

    def event(self, step: int, event: str, **details: Any) -> None:
        """Nothing."""

    def show(self, step: int, values: dict[str, float]) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class _Rehearsed:
    """The run's loop around a model of some hundred numbers, driven by hand."""

    def __init__(self, prepared: Prepared, folder: Path, untrained: UntrainedRun) -> None:
        self.watch = _NotingWatch()
        self.loop = type(untrained.loop)(prepared, folder, self.watch)
        self.loop.recorder = _Silent()
        self.computer = self.loop.computer
        self.loop.put_back_moments(self.computer.build_optimizer())

    def step(self, step: int) -> float:
        """One optimiser step as the trainer makes it; its loss."""
        record = self.computer.begin(self.loop.optimizer)
        self.computer.owners_checked = True  # a stage that trains nothing is told of by another check
        loss = self.computer.add(StepPart(step, 0, (0, 1), _batch(step))).loss
        loss.backward()  # type: ignore[no-untyped-call]
        self.computer.inspect(self.loop.optimizer)
        self.loop.optimizer.step()
        self.loop.optimizer.zero_grad()
        self.computer.finish()
        self.loop.after_step(record)
        return float(loss.detach())

    def mark(self) -> None:
        """Give everything that a checkpoint has to hold a value that a fresh run does not have."""
        computer = self.computer
        computer.guard.skipped["nonfinite_loss"], computer.guard.in_a_row = 3, 1
        computer.guard.recent = [False, True]
        computer.progress = replace(
            computer.progress, best=[0.5, 2.0], best_step=1, best_by="val/per greedy", trained=["encoder"]
        )
        computer.balance.norms.update(ctc=2.0, rnnt=3.0)
        computer.model.use_flow_bridge = True
        self.watch.note = "seen"
        assert computer.modes is not None
        computer.modes.modes = BlockModes({("session", 1): 0.25}, "pseudo")

    def save(self) -> None:
        """Write `checkpoints/last`."""
        self.loop.save("last")

    def restore(self) -> None:
        """Continue from it, the optimiser too."""
        self.loop.restore()
        self.loop.put_back_moments(self.loop.optimizer)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on or that a record is made of, comparable."""
        moments = {
            f"moments of {name}": [value.tolist() for _, value in sorted(self.loop.optimizer.state[p].items())]
            for name, p in self.computer.named.items()
        }
        return {
            "progress": asdict(self.computer.progress),
            "weights": {name: p.tolist() for name, p in self.computer.named.items()},
            "moments": moments,
            "guard": self.computer.guard.state(),
            "skipped steps": dict(self.computer.guard.skipped),
            "norms": list(self.computer.guard.norms),
            "recent steps": (list(self.computer.guard.recent), self.computer.guard.in_a_row),
            "window": asdict(self.loop.window),
            "balance": dict(self.computer.balance.norms),
            "use_flow_bridge": self.computer.model.use_flow_bridge,
            "watch": self.watch.note,
            "modes": self.computer.modes.state() if self.computer.modes is not None else [],
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
    small = replace(config, model=model, training=training, decoding=DecodingConfig())
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
        modes=ModeTargets((), BlockModes({}, "pseudo"), None),
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


def _sampler(untrained: UntrainedRun) -> Iterator[Finding]:
    """A loader that begins at a later step gives the batches that the first one gives there."""
    places: dict[int, list[Any]] = {}
    for first in (0, STEPS_BEFORE):
        parts = step_parts(untrained.prepared, first)
        for ahead in range(STEPS_BEFORE + STEPS_AFTER - first):
            step = parts.first_step + ahead
            places.setdefault(first + ahead, []).append((step, parts.plan.step(step).tolist()))
    for step, drawn in places.items():
        if any(other != drawn[0] for other in drawn[1:]):
            yield _incomplete(
                f"step {step + 1} shows the trials of step {drawn[0][0] + 1} ({_short(drawn[0][1])}) in a run without "
                f"interruption and those of step {drawn[1][0] + 1} ({_short(drawn[1][1])}) after one at step "
                f"{STEPS_BEFORE}"
            )
            return


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _incomplete(evidence: str) -> Finding:
    return found("incomplete_resume", f"{evidence[0].upper()}{evidence[1:]}.", "preflight")
