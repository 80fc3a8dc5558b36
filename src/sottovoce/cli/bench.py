"""`sottovoce bench NAME`: ours beside others, interleaved in one process, as ratios."""

from __future__ import annotations

import argparse
import json

import torch

from sottovoce.bench.distillation import bench_distillation
from sottovoce.bench.encoder import bench_encoder
from sottovoce.bench.guard import bench_guard
from sottovoce.bench.rows import HEADER, conditions
from sottovoce.bench.train_step import bench_train_step
from sottovoce.bench.transducer_loss import bench_transducer_loss
from sottovoce.core.errors import ConfigurationError

BENCHMARKS = {
    "distillation": bench_distillation,
    "encoder": bench_encoder,
    "guard": bench_guard,
    "train-step": bench_train_step,
    "transducer-loss": bench_transducer_loss,
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = subparsers.add_parser("bench", help="measure, beside others, as ratios", description=__doc__)
    parser.add_argument("name", choices=tuple(BENCHMARKS), metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each contestant (default: 20)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print one row a contestant and shape."""
    if arguments.rounds < 1 or (arguments.threads is not None and arguments.threads < 1):
        raise ConfigurationError("--rounds and --threads must be at least 1")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = BENCHMARKS[arguments.name](arguments.rounds)
    if arguments.json:
        print(json.dumps({"conditions": conditions(), "rows": [row.as_dict() for row in rows]}))
    else:
        print("\n".join([conditions(), HEADER, *map(str, rows)]))
    return 0
