"""`sottovoce report RUN`: write the run's HTML report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import sottovoce


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="directory of a run")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a line")


def run(arguments: argparse.Namespace) -> int:
    """Write the report and say where it is; 0.

    Raises:
        CheckpointError: not a run directory, or a damaged one.
    """
    path = sottovoce.report(arguments.run_dir)
    print(json.dumps({"file": str(path)}) if arguments.json else f"report: {path}")
    return 0
