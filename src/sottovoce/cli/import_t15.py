"""`sottovoce import_t15 FOLDER --data DIR --out RUN`: the published T15 baseline as a run that can be evaluated."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import sottovoce


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.description = __doc__
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds best_checkpoint and args.yaml")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="data set in the T15 layout")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run directory to make")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Write a run directory with the published weights."""
    made = sottovoce.import_t15(arguments.folder, arguments.data, arguments.out)
    if arguments.json:
        found = {"run": str(made.run_dir), "parameters": made.parameters, "sessions": len(made.sessions)}
        print(json.dumps(found))
    else:
        print(f"{made.parameters:,} parameters, {len(made.sessions)} sessions\nrun: {made.run_dir}")
    return 0
