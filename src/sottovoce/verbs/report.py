"""The HTML report of a run, with what its diagnosis found."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.explainer import explain, pages
from sottovoce.reporting import write_report


def report(run_dir: str | PathLike[str], findings: Sequence[Finding] | None = None) -> Path:
    """Write `report.html` into a run's directory; returns the file. `findings`, where the run was diagnosed before.

    Raises:
        CheckpointError: not a run directory, or a damaged one.
    """
    run_dir = Path(run_dir)
    known = list(explain(run_dir) if findings is None else findings)
    return write_report(run_dir, known, pages(known))
