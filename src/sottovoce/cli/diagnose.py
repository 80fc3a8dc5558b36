"""`sottovoce diagnose RUN|CAPSULE`: what went wrong and why, with the evidence and the fix."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import Any

from sottovoce.core.errors import CheckpointError, ConfigurationError
from sottovoce.core.findings import Finding
from sottovoce.diagnosis.capsules.capsule import FOLDER, capsules_of, is_capsule
from sottovoce.diagnosis.capsules.reading import read_capsule
from sottovoce.diagnosis.capsules.replay import Replayed, as_told, replay, summary
from sottovoce.diagnosis.causes import causes
from sottovoce.diagnosis.explainer.explainer import explain_record
from sottovoce.diagnosis.explainer.reading import read_run
from sottovoce.diagnosis.explainer.rules_failed import failure_of
from sottovoce.diagnosis.explainer.rules_learnt import how_it_stands, knows_nothing
from sottovoce.diagnosis.explainer.run_record import RunRecord
from sottovoce.diagnosis.pages import pages

DESCRIPTION = """What went wrong in a run, or in one bad step of it, and why: the cause, the evidence, the fix.
  sottovoce diagnose runs/t15_gru-001
  sottovoce diagnose runs/t15_gru-001/capsules/42 --replay
--replay computes the bad step again and says which loss term, which trial, which module and which number format it
takes; with a run, for each of its capsules, and names those that are damaged. --explain prints the page of a code that
a finding has named. Exit 0: healthy; 1: there are errors or warnings; 2: neither run nor capsule, damaged, nothing
recorded yet, or no such code."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = subparsers.add_parser(
        "diagnose",
        help="say what went wrong in a run or a bad step, and why",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "path", type=Path, nargs="?", metavar="RUN|CAPSULE", help="a run's directory, or one of its capsules/STEP"
    )
    target.add_argument("--explain", metavar="CODE", help="print the page of this cause, and nothing else")
    parser.add_argument("--replay", action="store_true", help="compute bad steps again and take them apart")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 1 when there are errors or warnings.

    Raises:
        CheckpointError: the path is neither a run nor a capsule, cannot be read, or has recorded nothing yet.
        ConfigurationError: a code to explain that the catalogue does not have.
    """
    if arguments.explain is not None:
        return _explain(arguments.explain, arguments.json)
    path: Path = arguments.path
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {what}; give the directory of a run, or a capsule in its folder {FOLDER}")
    of_capsule = is_capsule(path)
    replays: list[Replayed] = []
    damaged: list[str] = []
    record: RunRecord | None = None
    if of_capsule:
        replays = [replay(path)] if arguments.replay else []
        findings = [] if arguments.replay else [as_told(read_capsule(path))]
    else:
        record = read_run(path)
        findings = list(explain_record(record))
        if not record.metrics and not findings:
            raise CheckpointError(
                f"{path} has recorded nothing yet: metrics.jsonl has no line, so there is nothing to diagnose; "
                "look again after training.log_every_steps steps"
            )
        if arguments.replay:
            replays, damaged = _replay_all(path)
    findings = [*(finding for replayed in replays for finding in replayed.findings), *findings]
    healthy = all(finding.severity == "note" for finding in findings)
    if arguments.json:
        kind = "capsule" if of_capsule else "run"
        print(json.dumps(_as_json(path, kind, healthy, findings, replays) | {"damaged": damaged}))
    else:
        _print(findings, replays)
        if healthy and record is not None:
            print(f"{path}: {_verdict(record)}")
        elif healthy:
            print(f"{path}: healthy" + (", see the notes" if findings else ": nothing was found"))
        if record is not None and not record.finished and not record.aborted:
            print(_unfinished(record))
    for message in damaged:
        print(f"sottovoce: {message}", file=sys.stderr)
    return (2 if damaged else 0) if healthy else 1


def _replay_all(run_dir: Path) -> tuple[list[Replayed], list[str]]:
    """The capsules of a run computed again, and why others could not be."""
    replays, damaged = [], []
    for step in sorted(capsules_of(run_dir)):
        try:
            replays.append(replay(run_dir / FOLDER / str(step)))
        except (CheckpointError, ConfigurationError) as error:
            damaged.append(" ".join(str(error).split()))
    return replays, damaged


def _explain(code: str, as_json: bool) -> int:
    if code not in causes():
        near = difflib.get_close_matches(code, causes(), 3, 0.4)
        raise ConfigurationError(
            f"there is no cause {code!r}; " + (f"the nearest are {', '.join(near)}" if near else "no name is like it")
        )
    page = pages()[f"{code}.md"]
    print(json.dumps({"code": code, "page": page}) if as_json else page, end="\n" if as_json else "")
    return 0


def _as_json(path: Path, kind: str, healthy: bool, findings: list[Finding], replays: list[Replayed]) -> dict[str, Any]:
    return {
        "path": str(path),
        "kind": kind,
        "healthy": healthy,
        "findings": [finding.as_dict() | {"override": finding.override, "page": finding.page} for finding in findings],
        "replays": [{"step": replayed.capsule.step} | replayed.as_dict() for replayed in replays],
    }


def _print(findings: list[Finding], replays: list[Replayed]) -> None:
    for replayed in replays:
        print(summary(replayed))
    for finding in findings:
        print(finding.told)


def _verdict(record: RunRecord) -> str:
    """What to say where nothing was found, with the figures to judge it by."""
    stands = how_it_stands(record)
    if knows_nothing(record):
        return f"nothing was found, but it has not learnt yet, and had too few steps to say why. {stands}"
    return f"healthy: nothing was found. {stands or 'It has not been validated yet'}"


def _unfinished(record: RunRecord) -> str:
    resumable = "last" in record.checkpoints
    how = f"go on with: sottovoce train resume={record.run_dir}" if resumable else "it has saved no checkpoint yet"
    why = "it still trains or was stopped" if failure_of(record) is None else "it ended by an error"
    return f"{record.run_dir}: not finished, {why}; last record: step {record.last_step}; {how}"
