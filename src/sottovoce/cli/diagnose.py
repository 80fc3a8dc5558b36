"""`sottovoce diagnose RUN|CAPSULE`: what went wrong and why, with the evidence and the fix."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sottovoce

if TYPE_CHECKING:
    from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun
    from sottovoce.verbs.diagnose import Diagnosis

DESCRIPTION = """What went wrong in a run, or in one bad step of it, and why: the cause, the evidence, the fix.
  sottovoce diagnose runs/t15_gru-001
  sottovoce diagnose runs/t15_gru-001/capsules/42 --replay
--replay computes the bad step again and says which loss term, which trial, which module and which number format it
takes; with a run, for each of its capsules, and names those that are damaged. --explain prints the page of a code that
a finding has named. Exit 0: healthy; 1: there are errors or warnings; 2: neither run nor capsule, damaged, nothing
recorded yet, or no such code."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "path", type=Path, nargs="?", metavar="RUN|CAPSULE", help="a run's directory, or one of its capsules/STEP"
    )
    target.add_argument("--explain", metavar="CODE", help="print the page of this cause, and nothing else")
    parser.add_argument("--replay", action="store_true", help="compute bad steps again and take them apart")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 1 when there are errors or warnings.

    Raises:
        CheckpointError: the path is neither a run nor a capsule, cannot be read, or has recorded nothing yet.
        ConfigurationError: a code to explain that the catalogue does not have.
    """
    if arguments.explain is not None:
        return _explain(arguments.explain, arguments.json)
    found = sottovoce.diagnose(arguments.path, arguments.replay)
    if arguments.json:
        print(json.dumps(_as_json(found)))
    else:
        _print(found)
    for message in found.damaged:
        print(f"sottovoce: {message}", file=sys.stderr)
    return (2 if found.damaged else 0) if found.healthy else 1


def _explain(code: str, as_json: bool) -> int:
    from sottovoce.verbs.diagnose import cause_page

    page = cause_page(code)
    print(json.dumps({"code": code, "page": page}) if as_json else page, end="\n" if as_json else "")
    return 0


def _as_json(found: Diagnosis) -> dict[str, Any]:
    findings = [finding.as_dict() for finding in found.findings]
    return {
        "path": str(found.path),
        "kind": found.kind,
        "healthy": found.healthy,
        "findings": findings,
        "replays": [{"step": replayed.capsule.step} | replayed.as_dict() for replayed in found.replays],
        "damaged": list(found.damaged),
    }


def _print(found: Diagnosis) -> None:
    from sottovoce.diagnosis.capsules.replay import summary

    for replayed in found.replays:
        print(summary(replayed))
    for finding in found.findings:
        print(finding.as_text)
    if found.healthy and found.record is not None:
        print(f"{found.path}: {_verdict(found.record)}")
    elif found.healthy:
        print(f"{found.path}: healthy" + (", see the notes" if found.findings else ": nothing was found"))
    if found.record is not None and not found.record.finished and not found.record.aborted:
        print(_unfinished(found.record))


def _verdict(record: DiagnosedRun) -> str:
    """What to say where nothing was found, with the figures to judge it by."""
    from sottovoce.diagnosis.explainer.rules_learnt import how_it_stands, knows_nothing

    stands = how_it_stands(record)
    if knows_nothing(record):
        return f"nothing was found, but it has not learnt yet, and had too few steps to say why. {stands}"
    return f"healthy: nothing was found. {stands or 'It has not been validated yet'}"


def _unfinished(record: DiagnosedRun) -> str:
    from sottovoce.diagnosis.explainer.rules_failed import failure_of

    resumable = "last" in record.checkpoints
    how = f"go on with: sottovoce train resume={record.run_dir}" if resumable else "it has saved no checkpoint yet"
    why = "it still trains or was stopped" if failure_of(record) is None else "it ended by an error"
    return f"{record.run_dir}: not finished, {why}; last record: step {record.last_step}; {how}"
