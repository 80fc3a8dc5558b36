"""`sottovoce train recipe=NAME [key=value …]` and `sottovoce train resume=RUN`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import yaml
from omegaconf import DictConfig

from sottovoce.cli.evaluate import summary
from sottovoce.cli.progress import progress_bar
from sottovoce.core.configuration import plain
from sottovoce.core.errors import ConfigurationError, SottovoceError, TrainingAborted
from sottovoce.core.findings import Finding
from sottovoce.core.records import read_json_lines
from sottovoce.core.trial import SPLITS
from sottovoce.diagnosis.explainer import explain, pages
from sottovoce.diagnosis.preflight import preflight
from sottovoce.diagnosis.watcher import RunWatch
from sottovoce.evaluation.evaluate import evaluate_run
from sottovoce.evaluation.loaded_run import load_run
from sottovoce.reporting import write_report
from sottovoce.training.composition import RECIPES, checked_overrides, compose_config, config_from, split_resume
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.run import is_main_process, resume, start

DESCRIPTION = """Train a decoder. Start from a recipe and override any key of its configuration:
  sottovoce train recipe=t15_gru data.data_root=FOLDER training.steps=2000
  sottovoce train resume=runs/t15_gru-001
With --multirun, comma-separated values and Hydra's launchers start one run for each combination."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = subparsers.add_parser(
        "train", help="train a decoder", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="recipe=NAME, resume=RUN, or a key to override"
    )
    parser.add_argument("--multirun", action="store_true", help="one run for each combination of listed values")
    parser.add_argument("--show-config", action="store_true", help="print the whole configuration and stop")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, evaluate the best checkpoint, write the report; the last line of stdout is `run: DIR`."""
    run_dir, overrides = split_resume(arguments.overrides)
    if run_dir is not None and (arguments.multirun or arguments.show_config):
        raise ConfigurationError("resume= goes with neither --multirun nor --show-config")
    if arguments.multirun:
        return _multirun(overrides)
    if run_dir is not None:
        with _explained():
            run_dir = resume(run_dir, overrides, _watch_again(run_dir))
        return _finish(run_dir)
    config = compose_config(overrides)
    if arguments.show_config:
        print(yaml.safe_dump(plain(config), sort_keys=False), end="")
        return 0
    with progress_bar("checking trials", quiet=not is_main_process()) as progress:
        prepared = prepare(config, progress=progress)
    return _finish(_started(prepared))


def _started(prepared: Prepared) -> Path:
    """The directory of the run, once it has been looked at and trained."""
    watch = RunWatch(prepared, _looked_at(prepared, "training.preflight=false trains all the same"))
    with _explained():
        return start(prepared, watch)


def _watch_again(run_dir: Path) -> Callable[[Prepared], RunWatch]:
    """What looks on while a run is continued; of what is found before, its records get what they do not hold yet."""

    def watch(prepared: Prepared) -> RunWatch:
        findings = _looked_at(prepared, "the run began without: undo what has changed since, in data, packages or code")
        file = run_dir / "events.jsonl"
        events = read_json_lines(file) if file.exists() else []
        known = {event.get("event") for event in events if event.get("source") in ("preflight", "linter")}
        for finding in findings:
            if finding.code in known:
                print(finding, file=sys.stderr)
        return RunWatch(prepared, [finding for finding in findings if finding.code not in known])

    return watch


@contextmanager
def _explained() -> Iterator[None]:
    """Where the guard ends the run: its diagnosis on stderr, and the report."""
    try:
        yield
    except TrainingAborted as error:
        if error.run_dir is not None and is_main_process():
            findings = explain(error.run_dir)
            for finding in findings:
                print(finding.told, file=sys.stderr)
            print(f"report: {write_report(error.run_dir, findings, pages(findings))}", file=sys.stderr)
        raise


def _looked_at(prepared: Prepared, otherwise: str) -> list[Finding]:
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
            print(finding.told, file=sys.stderr)
        raise TrainingAborted(
            f"preflight has found {errors} error{'s' * (errors > 1)}, nothing was trained; {otherwise}"
        )
    return findings


def _finish(run_dir: Path) -> int:
    """Evaluation and report of a finished run, by the main process alone; 1 where its diagnosis has an error."""
    if not is_main_process():
        return 0
    loaded = load_run(run_dir)
    trial_set = loaded.open(SPLITS)
    for split in SPLITS[1:]:
        indices = trial_set.indices(split, loaded.left_out)
        if indices and all(trial_set.trials[i].labels is not None for i in indices):
            with progress_bar(f"decoding {split}", quiet=False) as progress:
                evaluation = evaluate_run(loaded, split, progress=progress)
            print(summary(evaluation))
    findings = explain(run_dir)
    for finding in findings:
        print(finding.told, file=sys.stderr)
    print(f"report: {write_report(run_dir, findings, pages(findings))}")
    print(f"run: {run_dir}")
    return 1 if any(finding.severity == "error" for finding in findings) else 0


def _multirun(overrides: Sequence[str]) -> int:
    """Hand over to Hydra, which calls back once for each combination, here or through a launcher.

    A combination that fails says so and does not keep the others from running.
    """
    failed: list[SottovoceError] = []

    @hydra.main(version_base="1.3", config_path=f"pkg://{RECIPES}", config_name="config")
    def job(composed: DictConfig) -> Any:
        try:
            prepared = prepare(config_from(composed))
            _finish(_started(prepared))
        except SottovoceError as error:
            print(f"sottovoce: {error}", file=sys.stderr)
            failed.append(error)

    sys.argv = ["sottovoce train", "--multirun", *checked_overrides(overrides)]
    job()
    return failed[0].exit_code if failed else 0
