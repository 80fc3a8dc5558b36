"""`sottovoce evaluate RUN`: corpus error rates with 95 % intervals."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sottovoce.cli.progress import progress_bar
from sottovoce.core.splits import SPLITS


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument("--split", choices=SPLITS, default="val", help="which trials (default: val)")
    parser.add_argument(
        "--decoder",
        metavar="NAME[,NAME]",
        help="such as greedy, words or transducer, or several: greedy,words (default: the run's own, decoding.decoder)",
    )
    parser.add_argument(
        "--beam-size", type=int, help="of the transducer's search (default: decoding.transducer.beam_size)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print; the same goes into RUN/evaluation/SPLIT.DECODER.json."""
    from sottovoce.cli.error_rates import table
    from sottovoce.verbs.evaluate import evaluate_each

    names = arguments.decoder.split(",") if arguments.decoder is not None else ()
    with progress_bar(f"decoding {arguments.split}", quiet=arguments.json) as progress:
        evaluations = evaluate_each(arguments.run_dir, arguments.split, names, arguments.beam_size, progress)
    if not arguments.json:
        print("\n\n".join(map(table, evaluations)))
    elif len(evaluations) == 1:
        print(json.dumps(evaluations[0].as_dict()))
    else:
        print(json.dumps({evaluation.decoder: evaluation.as_dict() for evaluation in evaluations}))
    return 0
