"""What `sottovoce train` prints while runs train."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from omegaconf import DictConfig

import sottovoce
from sottovoce.cli.error_rates import summary
from sottovoce.cli.progress import progress_bar
from sottovoce.core.configuration import plain
from sottovoce.core.errors import SottovoceError, TrainingAborted
from sottovoce.core.findings import Finding
from sottovoce.runs.directory import RunDirectory
from sottovoce.training.composition import RECIPES, checked_overrides, compose_config, config_from
from sottovoce.training.config import RunConfig


class Printer:
    """Prints what a run says: results on stdout, findings on stderr."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.report: Path | None = None
        """Written by the main process alone."""
        self.listener = sottovoce.Listener(
            progress=lambda what: progress_bar(what, quiet=False),
            evaluated=lambda evaluation: print(summary(evaluation)),
            found=self._found,
            found_again=lambda finding: print(finding, file=sys.stderr),
            reported=self._reported,
        )

    def _found(self, finding: Finding) -> None:
        self.findings.append(finding)
        print(finding.as_text, file=sys.stderr)

    def _reported(self, path: Path) -> None:
        self.report = path


def show(overrides: Sequence[str]) -> int:
    """Print a whole configuration."""
    print(yaml.safe_dump(plain(compose_config(overrides)), sort_keys=False), end="")
    return 0


def train(config: RunConfig | Sequence[str]) -> int:
    """Train a run; 1 where its diagnosis has an error."""
    return _printed(lambda listener: sottovoce.train(config, listener))


def resume(run_dir: Path, overrides: Sequence[str]) -> int:
    """Continue a run; 1 where its diagnosis has an error."""
    return _printed(lambda listener: sottovoce.resume(run_dir, overrides, listener))


def _printed(verb: Callable[[sottovoce.Listener], RunDirectory]) -> int:
    printer = Printer()
    try:
        run_dir = verb(printer.listener)
    except TrainingAborted:
        if printer.report is not None:
            print(f"report: {printer.report}", file=sys.stderr)
        raise
    if printer.report is not None:
        print(f"report: {printer.report}\nrun: {run_dir}")
    return 1 if any(finding.severity == "error" for finding in printer.findings) else 0


def train_each(overrides: Sequence[str]) -> int:
    """Hand over to Hydra, which calls back once for each combination, here or through a launcher.

    A combination that fails says so and does not keep the others from running.
    """
    failed: list[SottovoceError] = []

    @hydra.main(version_base="1.3", config_path=f"pkg://{RECIPES}", config_name="config")
    def job(composed: DictConfig) -> Any:
        try:
            train(config_from(composed))
        except SottovoceError as error:
            print(f"sottovoce: {error}", file=sys.stderr)
            failed.append(error)

    sys.argv = ["sottovoce train", "--multirun", *checked_overrides(overrides)]
    job()
    return failed[0].exit_code if failed else 0
