"""What happens around the optimiser steps of a run: its records, its validation, its checkpoints, its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from sottovoce.core.checkpoints import (
    load_optimizer_tensors,
    load_weights,
    optimizer_tensors,
    read_state,
    read_tensors,
    write_checkpoint,
)
from sottovoce.core.errors import CheckpointError, SottovoceError, TrainingAborted, in_one_line
from sottovoce.core.findings import Finding
from sottovoce.core.symbols import symbol_table
from sottovoce.decoding.greedy import GreedyDecoder
from sottovoce.runs.directory import RunDirectory
from sottovoce.runs.lock import Holder
from sottovoce.runs.names import Event, Metric, unprefixed, validation_rate
from sottovoce.runs.trained_decoder import decoder_parts
from sottovoce.training.branches import DENOISING
from sottovoce.training.environment import peak_memory_mib
from sottovoce.training.guard import Verdict
from sottovoce.training.opening_records import open_records
from sottovoce.training.preparation import Prepared
from sottovoce.training.processes import pair_of_main
from sottovoce.training.recorder import Recorder, WindowMeans
from sottovoce.training.stage_changes import (
    announce_flow_bridge,
    announce_stage,
    announce_unfrozen,
    measure_flow_bridge,
    refresh_modes,
)
from sottovoce.training.state import restore_state, step_state
from sottovoce.training.step import StepComputer, StepRecord
from sottovoce.training.stop_signals import StopSignals
from sottovoce.training.validation import Validation, ranked
from sottovoce.training.watch import NoWatch, StepView, Watch


def last_checkpoint(run_dir: Path) -> Path:
    """What the run in `run_dir` is continued from, where it has been written."""
    return RunDirectory(run_dir).last


class RunLoop:
    """What happens after every optimiser step: the run's records, its validation and its checkpoints."""

    def __init__(
        self,
        prepared: Prepared,
        run_dir: Path,
        watch: Watch | None = None,
        ended: Holder | None = None,
        quiet: bool = False,
    ) -> None:
        """`ended`: the process that trained the run before, where it could not give back its lock. `quiet` records
        everything and shows nothing."""
        self.watch: Watch = watch or NoWatch()
        self.config = prepared.config
        self.run_dir = run_dir
        self.signals = StopSignals()
        table = symbol_table(self.config.data.symbols)
        parts = decoder_parts(table, prepared.vocabulary, prepared.model)
        decoding = self.config.decoding
        self.validation = Validation(
            prepared.trial_set,
            prepared.val_indices,
            table,
            decoder=decoding.in_training().build(parts),
            until_trained=GreedyDecoder(table, parts.lexicon),
            batch_size=decoding.batch_size,
        )
        self.curriculum = prepared.curriculum
        self.computer = StepComputer(
            self.config,
            prepared.model,
            prepared.pipeline,
            table.blank,
            self.curriculum,
            prepared.modes,
            prepared.teachers,
        )
        self._train_indices = prepared.train_indices
        self.window = WindowMeans()
        self._prepared = prepared
        self.recorder: Recorder | None = None
        """Of the main process, from `begin` on."""
        self.optimizer: torch.optim.Optimizer
        """From `begin` on."""
        self._optimizer_state: dict[str, torch.Tensor] = {}
        self._resumed = False
        self._ended = ended
        self._quiet = quiet

    @property
    def last_checkpoint(self) -> Path:
        """What a resumed run continues from."""
        return last_checkpoint(self.run_dir)

    def restore(self) -> None:
        """Take the state of the last checkpoint; the optimiser's follows once it exists."""
        folder = self.last_checkpoint
        _, state = read_state(folder)
        load_weights(self.computer.model, folder)
        self._optimizer_state = read_tensors(folder, "optimizer")
        try:
            self.window = restore_state(state, self.computer)
            self.watch.restore(state["watch"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{folder} holds a state that this version does not know ({error})") from error
        self._resumed = True

    @property
    def is_over(self) -> bool:
        """No further step shall be taken: the last one is done, or somebody has asked the run to stop."""
        return self.signals.received or self.curriculum.finished(self.computer.progress.position)

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the first step of this process; `optimizer` gets the moments of the last checkpoint."""
        self.run_dir = self.computer.processes.broadcast(self.run_dir)  # the main process has made it
        self.put_back_moments(optimizer)
        self.signals.listen()
        if self.computer.processes.rank == 0:
            before = self._resumed, self._ended
            self.recorder = open_records(self._prepared, self.computer, self.run_dir, *before, self._quiet)
        self._tell(self.watch.begin(self.run_dir, self.computer, optimizer))
        self.computer.guard.keep(self.computer.named, optimizer, self.computer.model)

    def put_back_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the run's optimiser, and give it the moments that `restore` has found."""
        self.optimizer = optimizer
        load_optimizer_tensors(optimizer, self._optimizer_state, self.computer.named)
        self._optimizer_state = {}

    def before_update(self, record: StepRecord) -> None:
        """The guard has decided and the weights have not moved yet."""
        assert record.verdict is not None
        self.watch.before_update(self.computer, record.verdict)

    def after_step(self, record: StepRecord) -> None:
        """Log, validate and save as the configuration says."""
        training, step, verdict = self.config.training, self.computer.progress.step, record.verdict
        assert verdict is not None
        (self.signals.received,) = self.computer.agreed([self.signals.received])  # all stop at the same step
        if verdict.skipped:
            self._bad_step(step, verdict)
        else:
            self.window.add(record.metrics)
        self._tell(self.watch.after_step(self._view(step, verdict)))
        if step % training.log_every_steps == 0 and self.window.counts:
            means = self.window.take() | {Metric.PEAK_MEMORY_MIB: peak_memory_mib(self.computer.device)}
            if self.recorder is not None:
                self.recorder.metrics(step, "train", means)
                self.recorder.show(step, {name: means[name] for name in (Metric.TRAIN_LOSS, Metric.GRADIENT_NORM)})
        progress = self.computer.progress
        stage = self.curriculum.stage(progress.position)
        stage_is_over = step - progress.position.first_step == stage.steps
        if step % training.validate_every_steps == 0 or stage_is_over:
            self._validate()
            refresh_modes(self.computer, self.validation, self._train_indices, self.recorder)
        out_of_patience = stage.config.patience is not None and progress.position.waited >= stage.config.patience
        if stage_is_over or out_of_patience:
            self._end_stage(complete=stage_is_over)
        finished = self.curriculum.finished(progress.position)
        if not finished:
            announce_unfrozen(self.computer, stage, self.recorder)
        if step % training.checkpoint_every_steps == 0 or stage_is_over or out_of_patience or self.signals.received:
            self.save("last")
        if finished and self.recorder is not None and self.computer.guard.skipped:
            causes = ", ".join(f"{count} × {cause}" for cause, count in self.computer.guard.skipped.items())
            self.recorder.say(f"skipped steps: {causes}, of {step}; see events.jsonl")
        if finished:
            self._tell(self.watch.finished(step))
            self._event(Event.RUN_FINISHED)

    def _view(self, step: int, verdict: Verdict) -> StepView:
        """The step as the watch sees it."""
        computer = self.computer
        return StepView(step, verdict, computer.current, computer, self.optimizer, self._stage_name)

    def _end_stage(self, complete: bool) -> None:
        progress = self.computer.progress
        stage = self.curriculum.stage(progress.position)
        if stage.config.weight_of(DENOISING.name):
            self._try_flow_bridge()
        reason = "all its steps are done" if complete else "no better for a while"
        best = {"best": progress.best, "best_step": progress.best_step}
        self._event(Event.STAGE_FINISHED, stage=stage.name, complete=complete, reason=reason, **best)
        progress.position = progress.position.next_stage(progress.step)
        if not self.curriculum.finished(progress.position):
            announce_stage(self.computer, self.recorder)

    def _try_flow_bridge(self) -> None:
        """Keep the flow bridge in use only if the validation trials come out better over it than ever before."""
        progress = self.computer.progress
        if progress.best is None:
            return  # nothing was validated
        without, metric = progress.best[0], self._selection_metric
        values, now = measure_flow_bridge(self.computer, self.validation, self._ranked_if_main, without)
        if self.computer.model.use_flow_bridge:
            progress.best, progress.best_step = list(now), progress.step
            self.save("best", values)
        announce_flow_bridge(self.computer, metric, values, now[0], without, self.recorder)

    def aborted(self, reason: TrainingAborted) -> None:
        """The guard gave up: keep the last good weights and say why."""
        guard = self.computer.guard
        verdict = guard.last_skip
        assert verdict is not None
        step = self.computer.progress.step + 1  # the one that was not finished
        self._bad_step(step, verdict)
        if self.computer.record is not None:  # otherwise no step had begun that anybody could look at
            self._tell(self.watch.after_step(self._view(step, verdict)))
        if verdict.action == "skip" or guard.can_roll_back:
            self.save("last")
        self._event(Event.RUN_ABORTED, code="too_many_bad_steps", message=str(reason))

    def _bad_step(self, step: int, verdict: Verdict) -> None:
        event = Event.ROLLED_BACK if verdict.action == "roll_back" else Event.STEP_SKIPPED
        if self.recorder is not None:
            self.recorder.event(step, event, **verdict.as_event())

    def _tell(self, findings: Iterable[Finding]) -> None:
        """Record what the watch has found, and say it."""
        for finding in findings:
            if self.recorder is not None:
                step = self.computer.progress.step if finding.step is None else finding.step
                self.recorder.event(step, finding.code, **finding.as_event())
                self.recorder.say(str(finding))

    def __enter__(self) -> Self:
        """Around the training of this process."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record the error that ends the run, if one does, and close the records."""
        if isinstance(error, Exception) and not isinstance(error, TrainingAborted):
            code = error.code if isinstance(error, SottovoceError) else None
            with contextlib.suppress(CheckpointError):  # a full disk may be what has ended it
                self._event(Event.RUN_FAILED, **({"code": code} if code else {}), message=in_one_line(error))
        self.close()

    def close(self) -> None:
        """After the last step, or when the run ends early."""
        self.signals.restore()
        if self.recorder is not None:
            self.recorder.close()

    @property
    def _stage_name(self) -> str:
        """Of the stage that the last step belonged to, until it is ended."""
        return self.curriculum.stage(self.computer.progress.position).name

    def _event(self, event: str, **details: Any) -> None:
        if self.recorder is not None:
            self.recorder.event(self.computer.progress.step, event, **details)

    @property
    def _selection_metric(self) -> str:
        stage = self.curriculum.stage(self.computer.progress.position)
        return validation_rate(stage.config.metric or self.config.training.selection_metric)

    def _validate(self) -> None:
        if not self.validation.indices:
            return
        values = self.validation.values(self.computer)  # only the main process gets any
        progress = self.computer.progress
        if self.recorder is not None:
            self._record_validation(values)
            self._tell(self.watch.validated(progress.step, values))
        now = pair_of_main(self.computer.processes, self._ranked_if_main(values), self.computer.device)
        best_by = f"{self._selection_metric} {self.validation.decoder_now(progress.trained).name}"
        if progress.best_by != best_by:
            progress.best = None
            progress.position = replace(progress.position, best=None, waited=0)
        progress.position = progress.position.validated(now, not self.curriculum.holds_back(progress.position))
        if progress.best is None or now < tuple(progress.best):
            progress.best, progress.best_step, progress.best_by = list(now), progress.step, best_by
            self.save("best", values)

    def _record_validation(self, values: dict[str, float]) -> None:
        assert self.recorder is not None
        progress = self.computer.progress
        self.recorder.metrics(progress.step, "val", values)
        named = (f"{unprefixed(name)} {value:.3g}" for name, value in values.items())
        self.recorder.say(f"step {progress.step}: validation  {'  '.join(named)}")

    def _ranked_if_main(self, values: dict[str, float]) -> tuple[float, float]:
        """`ranked` in the main process; the others get no values."""
        return ranked(values, self._selection_metric) if self.recorder is not None else (0.0, 0.0)

    def save(self, name: str, values: dict[str, float] | None = None) -> None:
        """Write the checkpoint `name` (main process); `last` is also the copy that the guard rolls back to."""
        computer, optimizer = self.computer, self.optimizer
        if name == "last" and (lost := computer.guard.keep(computer.named, optimizer, computer.model)):
            self._bad_step(computer.progress.step, lost)
        if self.recorder is None:
            return
        parts, state = self.checkpoint(optimizer if name == "last" else None, values)
        write_checkpoint(RunDirectory(self.run_dir).checkpoint(name), self.computer.progress.step, parts, state)
        self._event(Event.CHECKPOINT_SAVED, checkpoint=name)

    def checkpoint(
        self, optimizer: torch.optim.Optimizer | None, values: dict[str, float] | None = None
    ) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
        """Tensors by part and the other state of a checkpoint; without `optimizer` one to evaluate only."""
        computer = self.computer
        parts = {"model": computer.model.state_dict()}
        if optimizer is not None:
            parts["optimizer"] = optimizer_tensors(optimizer, {p: n for n, p in computer.named.items()})
        state = step_state(computer) | {
            "watch": self.watch.state(),
            "window": asdict(self.window),
            "validation": values,
        }
        return parts, state
