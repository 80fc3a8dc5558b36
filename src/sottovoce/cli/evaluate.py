"""`sottovoce evaluate RUN`: corpus error rates with 95 % intervals."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import sottovoce
from sottovoce.cli.progress import progress_bar
from sottovoce.core.splits import SPLITS
from sottovoce.decoding.evaluation_config import DECODERS


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument("--split", choices=SPLITS, default="val", help="which trials (default: val)")
    parser.add_argument("--decoder", choices=DECODERS, help="default: the run's own (evaluation.decoder)")
    parser.add_argument("--beam-size", type=int, help="of the transducer's search (default: evaluation.beam_size)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print; the same goes into RUN/evaluation/SPLIT.DECODER.json."""
    from sottovoce.cli.error_rates import table

    with progress_bar(f"decoding {arguments.split}", quiet=arguments.json) as progress:
        evaluation = sottovoce.evaluate(
            arguments.run_dir, arguments.split, arguments.decoder, arguments.beam_size, progress
        )
    print(json.dumps(evaluation.as_dict()) if arguments.json else table(evaluation))
    return 0
