"""What happens around the optimiser steps of a run: its records, its validation, its checkpoints, its end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer

from sottovoce.core.checkpoints import (
    load_optimizer_tensors,
    load_weights,
    optimizer_tensors,
    read_state,
    read_tensors,
    write_checkpoint,
)
from sottovoce.core.errors import CheckpointError, ConfigurationError, TrainingAborted
from sottovoce.core.symbols import symbol_table
from sottovoce.evaluation.inference import TextDecoder
from sottovoce.training.guard import Verdict
from sottovoce.training.module import DecoderTraining, Progress
from sottovoce.training.preparation import Prepared
from sottovoce.training.recorder import RunRecorder, WindowMeans
from sottovoce.training.validation import Validation


class RunLoop:
    """What happens after every optimiser step: the run's records, its validation and its checkpoints."""

    def __init__(self, prepared: Prepared, run_dir: Path) -> None:
        self.config = prepared.config
        self.run_dir = run_dir
        self.stopped_by_user = False
        table = symbol_table(self.config.data.symbols)
        vocabulary = prepared.vocabulary
        text_decoder = TextDecoder(
            self.config.evaluation.decoder,
            table,
            vocabulary.lexicon if vocabulary else None,
            vocabulary is not None and vocabulary.isolated_words,
        )
        self.validation = Validation(
            prepared.trial_set, prepared.val_indices, text_decoder, self.config.evaluation.batch_size
        )
        self.module = DecoderTraining(
            self.config, prepared.model, prepared.pipeline, table.blank, self.begin, self.after_step
        )
        self.window = WindowMeans()
        self.skipped_trials = prepared.skipped
        self.notices = list(_notices(prepared))
        self._recorder: RunRecorder | None = None
        self._optimizer_state: dict[str, torch.Tensor] = {}
        self._resumed = False
        self._previous_handlers: dict[int, Any] = {}

    @property
    def last_checkpoint(self) -> Path:
        """What a resumed run continues from."""
        return self.run_dir / "checkpoints" / "last"

    def restore(self) -> None:
        """Take the state of the last checkpoint; the optimiser's follows once it exists."""
        folder = self.last_checkpoint
        _, state = read_state(folder)
        load_weights(self.module.model, folder)
        self._optimizer_state = read_tensors(folder, "optimizer")
        try:
            self.module.progress = Progress(**state["progress"])
            self.module.guard.skipped.update(state["skipped"])
            self.module.guard.in_a_row = state["skipped_in_a_row"]
            self.window = WindowMeans(**state["window"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{folder} holds a state that this version does not know ({error})") from error
        self._resumed = True

    def begin(self) -> None:
        """Before the first step of this process."""
        load_optimizer_tensors(self._optimizer, self._optimizer_state, self.module.named)
        self._optimizer_state = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous_handlers[number] = signal.signal(number, self._request_stop)
        if self.module.global_rank != 0:
            return
        step = self.module.progress.step
        self._recorder = RunRecorder(self.run_dir, self.config.training.steps, step)
        if self._resumed:
            self._recorder.event(step, "resumed")
        else:
            for fault in self.skipped_trials:
                self._recorder.event(0, "trial_skipped", **fault.as_dict())
            if self.skipped_trials:
                self._recorder.say(
                    f"left out {len(self.skipped_trials)} unusable trials (data.on_fault=skip); see events.jsonl"
                )
        for notice in self.notices:
            self._recorder.say(notice)
        count = sum(p.numel() for p in self.module.named.values())
        self._recorder.say(f"{self.run_dir}: {count:,} parameters, step {step} of {self.config.training.steps}")

    def after_step(self, verdict: Verdict, metrics: dict[str, float]) -> None:
        """Log, validate and save as the configuration says."""
        training, step = self.config.training, self.module.progress.step
        self.stopped_by_user = self.module.anywhere(self.stopped_by_user)  # all processes stop at the same step
        if verdict.skipped:
            self._event("step_skipped", code=verdict.cause, evidence=verdict.evidence)
        else:
            self.window.add(metrics)
        if step % training.log_every_steps == 0 and self.window.count:
            means = self.window.take()
            if self._recorder is not None:
                self._recorder.metrics(step, "train", means)
                self._recorder.show(step, {name: means[name] for name in ("train/loss", "train/gradient_norm")})
        finished = step == training.steps
        if finished and self._recorder is not None and self.module.guard.skipped:
            causes = ", ".join(f"{count} × {cause}" for cause, count in self.module.guard.skipped.items())
            self._recorder.say(f"skipped steps: {causes}, of {step}; see events.jsonl")
        if step % training.validate_every_steps == 0 or finished:
            self._validate()
        if step % training.checkpoint_every_steps == 0 or finished or self.stopped_by_user:
            self._save("last")
        if self.stopped_by_user:
            self.module.trainer.should_stop = True

    def aborted(self, reason: TrainingAborted) -> None:
        """The guard gave up: keep the last good weights and say why."""
        verdict = self.module.guard.last_skip
        assert verdict is not None
        self._event("step_skipped", code=verdict.cause, evidence=verdict.evidence)
        self._save("last")
        self._event("run_aborted", code="too_many_bad_steps", message=str(reason))

    def close(self) -> None:
        """After the last step, or when the run ends early."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        if self._recorder is not None:
            self._recorder.close()

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return cast(LightningOptimizer, self.module.optimizers()).optimizer

    def _event(self, event: str, **details: Any) -> None:
        if self._recorder is not None:
            self._recorder.event(self.module.progress.step, event, **details)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by_user:
            raise KeyboardInterrupt
        self.stopped_by_user = True

    def _validate(self) -> None:
        if not self.validation.indices:
            return
        values = self.validation.values(self.module)
        if self._recorder is None:
            return
        progress = self.module.progress
        self._recorder.metrics(progress.step, "val", values)
        named = (f"{name.removeprefix('val/')} {value:.3g}" for name, value in values.items())
        self._recorder.say(f"step {progress.step}: validation  {'  '.join(named)}")
        metric = f"val/{self.config.training.selection_metric}"
        if metric not in values:
            raise ConfigurationError(
                f"training.selection_metric={self.config.training.selection_metric} cannot be computed with this data "
                f"and decoder; choose one of {', '.join(name.removeprefix('val/') for name in values)}"
            )
        sign = -1 if metric == "val/wra" else 1
        now = (sign * values[metric], values["val/loss"])
        if progress.best is None or now < tuple(progress.best):
            progress.best, progress.best_step = list(now), progress.step
            self._save("best", values)

    def _save(self, name: str, values: dict[str, float] | None = None) -> None:
        if self._recorder is None:
            return
        module = self.module
        parts = {"model": module.model.state_dict()}
        if name == "last":
            parts["optimizer"] = optimizer_tensors(self._optimizer, {p: n for n, p in module.named.items()})
        state = {
            "progress": asdict(module.progress),
            "skipped": dict(module.guard.skipped),
            "skipped_in_a_row": module.guard.in_a_row,
            "window": asdict(self.window),
            "validation": values,
        }
        write_checkpoint(self.run_dir / "checkpoints" / name, module.progress.step, parts, state)
        self._event("checkpoint_saved", checkpoint=name)


def _notices(prepared: Prepared) -> Iterator[str]:
    """What the person who starts the run should know about its data."""
    trials = prepared.trial_set.trials
    if not prepared.val_indices:
        yield "no validation trials: nothing is validated, and checkpoints/last is what evaluate and decode will use"
    trained = {trials[i].session for i in prepared.train_indices}
    untrained = sorted({trials[i].session for i in prepared.val_indices} - trained)
    if untrained and prepared.model.session_adapter is not None:
        others = f" and {len(untrained) - 1} more" if len(untrained) > 1 else ""
        yield f"no training trials in the session {untrained[0]}{others}: the adapter stays the identity"
