"""`sottovoce bench NAME`: ours beside others, interleaved in one process, as ratios."""

from __future__ import annotations

import argparse
import json

from sottovoce.bench import BENCHMARKS
from sottovoce.core.errors import ConfigurationError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.description = __doc__
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each contestant (default: 20)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print one row a contestant and shape."""
    if arguments.rounds < 1 or (arguments.threads is not None and arguments.threads < 1):
        raise ConfigurationError("--rounds and --threads must be at least 1")
    import torch

    from sottovoce.bench.measure import benchmark
    from sottovoce.bench.rows import HEADER, conditions

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = benchmark(arguments.name)(arguments.rounds)
    if arguments.json:
        print(json.dumps({"conditions": conditions(), "rows": [row.as_dict() for row in rows]}))
    else:
        print("\n".join([conditions(), HEADER, *map(str, rows)]))
    return 0
