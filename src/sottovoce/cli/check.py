"""`sottovoce check PATH` and `sottovoce check recipe=NAME [key=value …]`: what is wrong, before any training.

With a path: the faults of a data set, every trial read. With a recipe and overrides, as `train` takes them: the faults
of its data, and what preflight finds on the run that `train` would start.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from sottovoce.cli.progress import progress_bar
from sottovoce.core.errors import ConfigurationError
from sottovoce.core.faults import summary_lines
from sottovoce.core.symbols import LETTERS, PHONEMES, TABLES, symbol_table
from sottovoce.data.checks import CheckReport, check_path, fatal_faults, unusable_trials
from sottovoce.data.config import LAYOUTS
from sottovoce.data.layout import detect_layout
from sottovoce.data.pronunciation import read_lexicon
from sottovoce.diagnosis.preflight import preflight
from sottovoce.diagnosis.preflight.memory import memory_of
from sottovoce.features.config import LogMelConfig
from sottovoce.training.composition import compose_config
from sottovoce.training.preparation import NoUsableTrials, Prepared, check_data, prepare

_OVERRIDE: Final = re.compile(r"[+~]*[a-z_][\w./]*=")
"""How `key=value` begins; a file or folder of such a name is a path all the same."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the verb and its options."""
    parser = subparsers.add_parser(
        "check", help="report the faults of a data set, or of a run before it starts", description=__doc__
    )
    parser.add_argument(
        "target", nargs="+", metavar="PATH", help="folder of a data set, or one file of it; or recipe=NAME key=value …"
    )
    parser.add_argument("--layout", choices=LAYOUTS, default="auto", help="insist on a layout (default: look)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    parser.add_argument("--patch-size", type=int, default=14, metavar="BINS", help="bins in one frame of the model")
    parser.add_argument("--patch-stride", type=int, default=4, metavar="BINS", help="bins from one frame to the next")
    parser.add_argument("--num-channels", type=int, metavar="N", help="channels every trial must have (default: most)")
    parser.add_argument("--max-sessions", type=int, metavar="N", help="T15: only the first N sessions")
    targets = "recordings: the targets (default: letters, or phonemes with --lexicon)"
    parser.add_argument("--symbols", choices=tuple(TABLES), help=targets)
    parser.add_argument("--lexicon", type=Path, metavar="FILE", help="recordings: pronouncing dictionary of the texts")
    parser.add_argument("--sample-rate", type=int, metavar="HZ", help="recordings: rate of the front end")
    parser.add_argument("--audio-channel", type=int, metavar="N", help="recordings: the channel to read, from 0")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 1 when a trial or file is unusable, or the run has an error, else 0.

    Raises:
        DataError: there is no data set to read.
    """
    if any(_OVERRIDE.match(target) and not Path(target).exists() for target in arguments.target):
        return _check_run(arguments.target, arguments.json)
    if len(arguments.target) > 1:
        raise ConfigurationError(f"{arguments.target[1]!r}: check takes one path, or recipe=NAME and key=value …")
    arguments.path = Path(arguments.target[0])
    letters = detect_layout(arguments.path) == "recordings" and arguments.lexicon is None
    table = symbol_table(arguments.symbols or (LETTERS if letters else PHONEMES).name)
    if arguments.max_sessions is not None and arguments.max_sessions < 1:
        raise ConfigurationError(f"--max-sessions {arguments.max_sessions}: must be at least 1")
    rate = arguments.sample_rate
    with progress_bar("reading trials", quiet=arguments.json) as report_progress:
        report = check_path(
            arguments.path,
            layout=arguments.layout,
            patch_size=arguments.patch_size,
            patch_stride=arguments.patch_stride,
            num_channels=arguments.num_channels,
            expected_symbols=table,
            max_sessions=arguments.max_sessions,
            lexicon=None if arguments.lexicon is None else read_lexicon(arguments.lexicon, table),
            front_end=None if rate is None else LogMelConfig(sample_rate_hz=rate, high_hz=rate / 2),
            audio_channel=arguments.audio_channel,
            progress=report_progress,
        )
    if arguments.json:
        faults = [fault.as_dict() for fault in report.faults]
        print(json.dumps({"trials": report.trials, "faults": faults}))
    else:
        print(_summary(arguments.path, report))
        for line in summary_lines(report.faults):
            print(line)
    return 1 if fatal_faults(report) else 0


def _check_run(overrides: Sequence[str], as_json: bool) -> int:
    """The faults of a configuration's data and the findings about its run; 1 where there is an error."""
    config = compose_config(overrides)
    with progress_bar("reading trials", quiet=as_json) as report_progress:
        report = check_data(config, report_progress)
    config = replace(config, data=replace(config.data, on_fault="skip"))  # what is left can still be looked at
    prepared: Prepared | None = None
    try:
        prepared = prepare(config, known=unusable_trials(report))
        skipped = prepared.skipped
    except NoUsableTrials as nothing_left:
        if not nothing_left.faults:
            raise
        skipped = nothing_left.faults
    faults = (*report.faults, *(f for f in skipped if f not in report.faults))
    findings = preflight(prepared) if prepared else []
    sound = all(finding.severity != "error" or finding.code == "memory_short" for finding in findings)
    memory = memory_of(prepared) if prepared and sound else None
    if as_json:
        of_both = {"faults": [f.as_dict() for f in faults], "findings": [f.as_dict() for f in findings]}
        print(json.dumps({"trials": report.trials, **of_both, "memory": asdict(memory) if memory else None}))
    else:
        print(_summary(Path(config.data.data_root), replace(report, faults=faults)))
        for line in (*summary_lines(faults), *(finding.told for finding in findings)):
            print(line)
        if memory is not None:
            print(f"memory: {memory}")
        if prepared is None:
            print("no training trial can be used, so that the run itself was not looked at")
    severities = [*(fault.severity for fault in faults), *(finding.severity for finding in findings)]
    return int("error" in severities or prepared is None)


def _summary(path: Path, report: CheckReport) -> str:
    errors = len(fatal_faults(report))
    warnings = len(report.faults) - errors
    return f"{path}: {report.trials} trials ({report.layout}), {errors} errors, {warnings} warnings"
