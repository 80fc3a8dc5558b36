"""`sottovoce decode RUN DATA --out FILE.jsonl`: hypotheses for signals, labelled or not."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import sottovoce
from sottovoce.cli.progress import progress_bar
from sottovoce.core.splits import SPLITS


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument(
        "data", type=Path, metavar="DATA", help="T15 folder, or any folder of recordings; no labels needed"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="one JSON object a trial")
    parser.add_argument("--split", choices=SPLITS, help="T15: only this split (default: all)")
    parser.add_argument(
        "--decoder",
        metavar="NAME",
        help="such as greedy, words or transducer (default: the run's own, decoding.decoder)",
    )
    parser.add_argument(
        "--beam-size", type=int, help="of the transducer's search (default: decoding.transducer.beam_size)"
    )
    parser.add_argument(
        "--on-fault", choices=("raise", "skip"), help="unusable trials: stop, or leave them out (default: as the run)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Decode; the file appears when it is complete."""
    from sottovoce.verbs.decode import refuse_no_file, write_hypotheses

    refuse_no_file(arguments.out)
    with progress_bar("decoding", quiet=arguments.json) as progress:
        decoded = sottovoce.decode(
            arguments.run_dir,
            arguments.data,
            split=arguments.split,
            decoder=arguments.decoder,
            beam_size=arguments.beam_size,
            on_fault=arguments.on_fault,
            progress=progress,
        )
    for line in decoded.left_out:
        print(f"left out: {line}", file=sys.stderr)
    write_hypotheses(arguments.out, decoded)
    trials = len(decoded.hypotheses)
    found = {"trials": trials, "file": str(arguments.out), "skipped": len(decoded.left_out)}
    print(json.dumps(found) if arguments.json else f"{trials} hypotheses in {arguments.out}")
    return 0
