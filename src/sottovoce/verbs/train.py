"""A run from its configuration to its report: prepare, preflight, train, evaluate, diagnose, report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from sottovoce.core.checkpoints import has_checkpoint
from sottovoce.core.errors import TrainingAborted
from sottovoce.core.findings import Finding
from sottovoce.core.records import read_json_lines
from sottovoce.core.splits import SPLITS
from sottovoce.diagnosis.explainer import explain
from sottovoce.diagnosis.preflight import preflight
from sottovoce.diagnosis.watcher import RunWatch
from sottovoce.evaluation.evaluate import evaluate_run
from sottovoce.evaluation.opening import open_own
from sottovoce.runs.directory import RunDirectory
from sottovoce.runs.trained_decoder import load
from sottovoce.training import run as training_run
from sottovoce.training.composition import compose_config
from sottovoce.training.config import RunConfig
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.run import is_main_process
from sottovoce.verbs.listener import Listener
from sottovoce.verbs.report import report


def train(config: RunConfig | Sequence[str], listener: Listener | None = None) -> RunDirectory:
    """Train a decoder, evaluate its best checkpoint, diagnose the run and write its report.

    `config` may be what the command takes: `["recipe=demo", "data.data_root=data"]`. Without a listener nothing is
    shown.

    Raises:
        ConfigurationError: the configuration is wrong, or contradicts the data.
        DataError: a trial that cannot be used.
        TrainingAborted: preflight has found an error (nothing is trained), or the guard has ended the run.
    """
    listener, quiet = _of_main_process(listener), listener is None
    with listener.progress("checking trials") as progress:
        given = [config] if isinstance(config, str) else config
        composed = given if isinstance(given, RunConfig) else compose_config(given)
        prepared = prepare(composed, progress=progress)
    findings = _preflight(prepared, "training.preflight=false trains all the same", listener)
    with _diagnosed_if_aborted(listener):
        run_dir = training_run.start(prepared, RunWatch(prepared, findings), quiet)
    return _finish(run_dir, listener)


def resume(
    run_dir: str | PathLike[str], overrides: Sequence[str] = (), listener: Listener | None = None
) -> RunDirectory:
    """Continue a run where its last checkpoint was written; the rest as `train`.

    `overrides` may change where it runs and where its data lie.

    Raises:
        CheckpointError: not a run directory, or its checkpoint is damaged.
        ConfigurationError: an override that would make it another run.
        TrainingAborted: as for `train`, or what the checkpoint holds is not finite. Nothing has been changed.
    """
    run_dir, listener, quiet = Path(run_dir), _of_main_process(listener), listener is None

    def watch(prepared: Prepared) -> RunWatch:
        return _watch_again(run_dir, prepared, listener)

    with _diagnosed_if_aborted(listener):
        training_run.resume(run_dir, overrides, watch, quiet)
    return _finish(run_dir, listener)


def _of_main_process(listener: Listener | None) -> Listener:
    """The listener in the main process of a run, nobody in the others."""
    return listener if listener is not None and is_main_process() else Listener()


def _preflight(prepared: Prepared, otherwise: str, listener: Listener) -> list[Finding]:
    """What preflight has found, by the main process alone.

    Raises:
        TrainingAborted: an error, with what to do `otherwise`; nothing has been written.
    """
    if not prepared.config.training.preflight or not is_main_process():
        return []
    findings = preflight(prepared)
    errors = sum(finding.severity == "error" for finding in findings)
    if errors:
        for finding in findings:
            listener.found(finding)
        raise TrainingAborted(
            f"preflight has found {errors} error{'s' * (errors > 1)}, nothing was trained; {otherwise}"
        )
    return findings


def _watch_again(run_dir: Path, prepared: Prepared, listener: Listener) -> RunWatch:
    """What looks on while a run is continued; of what preflight finds, its records get what they do not hold yet."""
    otherwise = "the run began without: undo what has changed since, in data, packages or code"
    findings = _preflight(prepared, otherwise, listener)
    directory = RunDirectory(run_dir)
    begun = has_checkpoint(directory.last)  # otherwise the records begin anew
    events = read_json_lines(directory.events) if begun and directory.events.exists() else []
    known = {event.get("event") for event in events if event.get("source") in ("preflight", "linter")}
    for finding in findings:
        if finding.code in known:
            listener.found_again(finding)
    return RunWatch(prepared, [finding for finding in findings if finding.code not in known])


@contextmanager
def _diagnosed_if_aborted(listener: Listener) -> Iterator[None]:
    """Where the guard ends the run: its diagnosis and its report, then the error."""
    try:
        yield
    except TrainingAborted as error:
        if error.run_dir is not None and is_main_process():
            _diagnose(error.run_dir, listener)
        raise


def _finish(run_dir: Path, listener: Listener) -> RunDirectory:
    """Evaluate, diagnose and report a finished run, by the main process alone."""
    if is_main_process():
        loaded = load(run_dir)
        trial_set = open_own(loaded, SPLITS)
        for split in SPLITS[1:]:
            indices = trial_set.indices(split, loaded.left_out)
            if indices and all(trial_set.trials[i].labels is not None for i in indices):
                with listener.progress(f"decoding {split}") as progress:
                    (evaluation,) = evaluate_run(loaded, split, loaded.decoders(), progress)
                listener.evaluated(evaluation)
        _diagnose(run_dir, listener)
    return RunDirectory(run_dir)


def _diagnose(run_dir: Path, listener: Listener) -> None:
    findings = explain(run_dir)
    for finding in findings:
        listener.found(finding)
    listener.reported(report(run_dir, findings))
