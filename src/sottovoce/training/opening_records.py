"""The records of a run are opened, and the person who started it is told what to know before the first step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sottovoce.core.configuration import plain
from sottovoce.runs.lock import Holder
from sottovoce.runs.names import Event
from sottovoce.training.notices import notices
from sottovoce.training.preparation import Prepared, steps_per_epoch
from sottovoce.training.recorder import Recorder, RunRecorder
from sottovoce.training.stage_changes import announce_stage, announce_teachers
from sottovoce.training.step import StepComputer
from sottovoce.training.tracking import Tracker


def open_records(
    prepared: Prepared, computer: StepComputer, run_dir: Path, resumed: bool, ended: Holder | None, quiet: bool
) -> Recorder:
    """The main process's recorder; `ended` is the process whose lock was taken over. `quiet` shows nothing."""
    config, step = prepared.config, computer.progress.step
    per_epoch = steps_per_epoch(config, len(prepared.train_indices))
    tracker = Tracker(config.wandb, run_dir, plain(config), per_epoch) if config.wandb.enabled else None
    total_steps = prepared.curriculum.total_steps
    recorder = RunRecorder(run_dir, total_steps, step, tracker, quiet)
    if resumed:
        recorder.event(step, Event.RESUMED)
    else:
        _left_out(prepared, recorder)
    if ended is not None:
        recorder.say(f"took over the lock of {ended}, which has ended")
    for notice in notices(prepared):
        recorder.say(notice)
    count = sum(p.numel() for p in computer.named.values())
    recorder.say(f"{run_dir}: {count:,} parameters, step {step} of {total_steps}")
    if not resumed:
        announce_teachers(computer, recorder)
        announce_stage(computer, recorder)
    return recorder


def _left_out(prepared: Prepared, recorder: Recorder) -> None:
    for fault in prepared.skipped:
        recorder.event(0, Event.TRIAL_SKIPPED, **fault.as_dict())
    if prepared.skipped:
        codes = Counter(fault.fault for fault in prepared.skipped)
        reasons = ", ".join(f"{count} × {code}" for code, count in codes.items())
        recorder.say(f"left out {len(prepared.skipped)} trials ({reasons}); see events.jsonl")
