"""`sottovoce evaluate RUN`: corpus error rates with 95 % intervals."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sottovoce.cli.progress import progress_bar
from sottovoce.core.trial import SPLITS
from sottovoce.evaluation.config import DECODERS
from sottovoce.evaluation.evaluate import evaluate_run
from sottovoce.evaluation.loaded_run import load_run
from sottovoce.evaluation.scoring import METRICS, Evaluation
from sottovoce.metrics import percent


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = subparsers.add_parser("evaluate", help="error rates of a run's best checkpoint, with intervals")
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument("--split", choices=SPLITS, default="val", help="which trials (default: val)")
    parser.add_argument("--decoder", choices=DECODERS, help="default: the run's own (evaluation.decoder)")
    parser.add_argument("--beam-size", type=int, help="of the transducer's search (default: evaluation.beam_size)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print; the same goes into RUN/evaluation/SPLIT.DECODER.json."""
    loaded = load_run(arguments.run_dir).with_beam(arguments.beam_size, arguments.decoder)
    with progress_bar(f"decoding {arguments.split}", quiet=arguments.json) as progress:
        evaluation = evaluate_run(loaded, arguments.split, arguments.decoder, progress)
    print(json.dumps(evaluation.as_dict()) if arguments.json else table(evaluation))
    return 0


def summary(evaluation: Evaluation) -> str:
    """One line: each rate with its interval."""
    overall, parts = evaluation.overall, []
    for metric in METRICS:
        if metric in overall.rates:
            low, high = overall.ci95.get(metric, (None, None))
            interval = f" [{percent(low)}, {percent(high)}]" if low is not None else ""
            parts.append(f"{metric.upper()} {overall.rates[metric].percent()}{interval}")
    return f"{evaluation.split} ({overall.num_trials} trials, {evaluation.decoder}): " + "  ".join(parts)


def table(evaluation: Evaluation) -> str:
    """The summary, then a line a group, then the notes."""
    lines = [summary(evaluation), ""]
    for kind, groups in evaluation.by_group.items():
        lines.append(f"{kind:<20}{'trials':>8}" + "".join(f"{metric.upper():>10}" for metric in METRICS))
        for name, metrics in groups.items():
            cells = (metrics.rates[m].percent() if m in metrics.rates else "–" for m in METRICS)
            lines.append(f"{name:<20}{metrics.num_trials:>8}" + "".join(f"{cell:>10}" for cell in cells))
        lines.append("")
    blank, empty = evaluation.overall.blank.percent(), evaluation.overall.empty.percent()
    lines.append(f"blank frames {blank}, empty hypotheses {empty}")
    return "\n".join([*lines, *(f"note: {note}" for note in evaluation.notes)])
