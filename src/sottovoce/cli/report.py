"""`sottovoce report RUN`: write the run's HTML report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line's parser."""
    parser = subparsers.add_parser("report", help="write report.html: curves, error rates, confusions, single trials")
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="directory of a run")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a line")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the report and say where it is; 0.

    Raises:
        CheckpointError: not a run directory, or a damaged one.
    """
    from sottovoce.diagnosis.explainer import explain, pages
    from sottovoce.reporting import write_report  # these take a while to import; the other verbs need none of it

    findings = explain(arguments.run_dir)
    path = write_report(arguments.run_dir, findings, pages(findings))
    print(json.dumps({"file": str(path)}) if arguments.json else f"report: {path}")
    return 0
