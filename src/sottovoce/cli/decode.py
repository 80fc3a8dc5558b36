"""`sottovoce decode RUN DATA --out FILE.jsonl`: hypotheses for signals, labelled or not."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from sottovoce.cli.progress import progress_bar
from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.symbols import SymbolTable
from sottovoce.core.trial import SPLITS
from sottovoce.evaluation.config import DECODERS
from sottovoce.evaluation.loaded_run import load_run
from sottovoce.evaluation.scoring import Hypothesis


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = subparsers.add_parser("decode", help="write hypotheses for every trial of a data set")
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument(
        "data", type=Path, metavar="DATA", help="T15 folder, or any folder of recordings; no labels needed"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="one JSON object a trial")
    parser.add_argument("--split", choices=SPLITS, help="T15: only this split (default: all)")
    parser.add_argument("--decoder", choices=DECODERS, help="default: the run's own (evaluation.decoder)")
    parser.add_argument("--beam-size", type=int, help="of the transducer's search (default: evaluation.beam_size)")
    parser.add_argument(
        "--on-fault", choices=("raise", "skip"), help="unusable trials: stop, or leave them out (default: as the run)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Decode; the file appears when it is complete."""
    if not arguments.out.name or arguments.out.is_dir():
        raise ConfigurationError(f"--out {arguments.out}: must be the name of a file")
    loaded = load_run(arguments.run_dir).with_beam(arguments.beam_size, arguments.decoder)
    skip = (arguments.on_fault or loaded.data.on_fault) == "skip"
    loaded = replace(loaded, data=replace(loaded.data, on_fault="skip" if skip else "raise"))
    text_decoder = loaded.text_decoder(arguments.decoder)
    trial_set = loaded.open_other(arguments.data, (arguments.split,) if arguments.split else SPLITS)
    if not trial_set.trials:
        raise DataError(f"{arguments.data} has no {arguments.split or ''} trials")
    indices, faults = loaded.usable(trial_set) if skip else (list(range(len(trial_set.trials))), [])
    for line in [*map(str, trial_set.skipped), *faults]:
        print(f"left out: {line}", file=sys.stderr)
    with progress_bar("decoding", quiet=arguments.json) as progress:
        outputs = loaded.outputs(trial_set, indices, text_decoder.decoder, progress)
    lines = [json.dumps(_record(text_decoder(output), loaded.table)) + "\n" for output in outputs]
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = arguments.out.with_name(arguments.out.name + ".writing")
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(arguments.out)
    except OSError as error:
        raise DataError(f"{arguments.out} cannot be written ({error.strerror})") from error
    skipped = len(trial_set.skipped) + len(faults)
    found = {"trials": len(lines), "file": str(arguments.out), "skipped": skipped}
    print(json.dumps(found) if arguments.json else f"{len(lines)} hypotheses in {arguments.out}")
    return 0


def _record(hypothesis: Hypothesis, table: SymbolTable) -> dict[str, Any]:
    trial = hypothesis.trial
    return {
        "trial_id": trial.trial_id,
        "split": trial.split,
        "session": trial.session,
        "text": hypothesis.text,
        "symbols": list(table.decode(hypothesis.symbols)),
        "score": hypothesis.score,
        "word_confidences": list(hypothesis.word_confidences),
        "n_best": [
            {"symbols": list(table.decode(candidate.symbols)), "text": candidate.text, "score": candidate.score}
            for candidate in hypothesis.n_best
        ],
    }
