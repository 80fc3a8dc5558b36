"""`sottovoce check PATH` and `sottovoce check recipe=NAME [key=value …]`: what is wrong, before any training.

With a path: the faults of a data set, every trial read. With a recipe and overrides, as `train` takes them: the faults
of its data, and what preflight finds on the run that `train` would start.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sottovoce
from sottovoce.cli.progress import progress_bar
from sottovoce.core.errors import ConfigurationError
from sottovoce.core.symbols import TABLES

if TYPE_CHECKING:
    from sottovoce.data.checks import CheckReport

_OVERRIDE: Final = re.compile(r"[+~]*[a-z_][\w./]*=")
"""How `key=value` begins; a file or folder of such a name is a path all the same."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.description = __doc__
    parser.add_argument(
        "target", nargs="+", metavar="PATH", help="folder of a data set, or one file of it; or recipe=NAME key=value …"
    )
    parser.add_argument(
        "--layout", metavar="NAME", default="auto", help="insist on a layout: t15, recordings (default: look)"
    )
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


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 1 when a trial or file is unusable, or the run has an error, else 0.

    Raises:
        DataError: there is no data set to read.
    """
    if any(_OVERRIDE.match(target) and not Path(target).exists() for target in arguments.target):
        return _check_run(arguments)
    if len(arguments.target) > 1:
        raise ConfigurationError(f"{arguments.target[1]!r}: check takes one path, or recipe=NAME and key=value …")
    return _check_path(Path(arguments.target[0]), arguments)


def _check_path(path: Path, arguments: argparse.Namespace) -> int:
    from sottovoce.core.faults import summary_lines
    from sottovoce.data.checks import fatal_faults

    with progress_bar("reading trials", quiet=arguments.json) as report_progress:
        report = sottovoce.check(
            path,
            layout=arguments.layout,
            patch_size=arguments.patch_size,
            patch_stride=arguments.patch_stride,
            num_channels=arguments.num_channels,
            max_sessions=arguments.max_sessions,
            symbols=arguments.symbols,
            lexicon=arguments.lexicon,
            sample_rate_hz=arguments.sample_rate,
            audio_channel=arguments.audio_channel,
            progress=report_progress,
        )
    if arguments.json:
        faults = [fault.as_dict() for fault in report.faults]
        print(json.dumps({"trials": report.trials, "faults": faults}))
    else:
        print(_summary(path, report))
        for line in summary_lines(report.faults):
            print(line)
    return 1 if fatal_faults(report) else 0


def _check_run(arguments: argparse.Namespace) -> int:
    """The faults of a configuration's data and the findings about its run; 1 where there is an error."""
    from sottovoce.core.faults import summary_lines

    with progress_bar("reading trials", quiet=arguments.json) as report_progress:
        found = sottovoce.check_run(arguments.target, report_progress)
    faults, findings, memory = found.data.faults, found.findings, found.memory
    if arguments.json:
        of_both = {"faults": [f.as_dict() for f in faults], "findings": [f.as_dict() for f in findings]}
        print(json.dumps({"trials": found.data.trials, **of_both, "memory": asdict(memory) if memory else None}))
    else:
        print(_summary(Path(found.data_root), found.data))
        for line in (*summary_lines(faults), *(finding.as_text for finding in findings)):
            print(line)
        if memory is not None:
            print(f"memory: {memory}")
        if not found.has_usable_trials:
            print("no training trial can be used, so that the run itself was not looked at")
    return int(found.has_errors)


def _summary(path: Path, report: CheckReport) -> str:
    from sottovoce.data.checks import fatal_faults

    errors = len(fatal_faults(report))
    warnings = len(report.faults) - errors
    return f"{path}: {report.trials} trials ({report.layout}), {errors} errors, {warnings} warnings"
