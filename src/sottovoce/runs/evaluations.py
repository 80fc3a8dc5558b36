"""The files of an evaluation: its rates, and one line for each hypothesis."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sottovoce.core.files import replace_text
from sottovoce.runs.directory import RunDirectory


def write_evaluation_files(
    run_dir: Path, name: str, result: Mapping[str, Any], hypotheses: Iterable[Mapping[str, Any]]
) -> Path:
    """Write `evaluation/NAME.json` and `hypotheses.NAME.jsonl`, each as a whole; return the first.

    `name` is `SPLIT.DECODER`. `reading.read_run` gives them back as `record.Evaluated`.
    """
    directory = RunDirectory(run_dir)
    replace_text(directory.hypotheses(name), "".join(json.dumps(line) + "\n" for line in hypotheses))
    replace_text(directory.evaluation(name), json.dumps(result, indent=2) + "\n")
    return directory.evaluation(name)
