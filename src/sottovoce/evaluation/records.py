"""The files of an evaluation: its rates, and one line for each hypothesis."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sottovoce.core.symbols import symbol_table
from sottovoce.evaluation.scoring import Evaluation, TrialScore
from sottovoce.runs.directory import RunDirectory


def write_evaluation(run_dir: Path, evaluation: Evaluation) -> Path:
    """Write `evaluation/SPLIT.DECODER.json` and `hypotheses.SPLIT.DECODER.jsonl`; return the first.

    Each file is replaced as a whole, so a reader never meets half of one. A line of the second holds the
    texts as they were compared, the symbols as printed, and `counts`: for each metric
    [substitutions, deletions, insertions, reference length].
    """
    name = f"{evaluation.split}.{evaluation.decoder}"
    lines = [json.dumps(_record(score, evaluation)) + "\n" for score in evaluation.scores]
    _replace(RunDirectory(run_dir).hypotheses(name), "".join(lines))
    path = RunDirectory(run_dir).evaluation(name)
    _replace(path, json.dumps(evaluation.as_dict(), indent=2) + "\n")
    return path


def _record(score: TrialScore, evaluation: Evaluation) -> dict[str, Any]:
    table, trial, hypothesis = symbol_table(evaluation.symbols), score.trial, score.hypothesis
    counts = {"per": score.per, "wer": score.wer, "cer": score.cer}
    return {
        "trial_id": trial.trial_id,
        "session": trial.session,
        "speaker": trial.speaker,
        "reference": score.reference_text,
        "hypothesis": score.hypothesis_text,
        "reference_symbols": table.decode(trial.labels or ()),
        "symbols": table.decode(hypothesis.symbols),
        "counts": {name: list(asdict(c).values()) for name, c in counts.items() if c is not None},
        "num_frames": hypothesis.num_frames,
        "blank_frames": hypothesis.blank_frames,
        "score": hypothesis.score,
        "words": [asdict(word) for word in hypothesis.words],
        "n_best": [{"symbols": table.decode(c.symbols), "text": c.text, "score": c.score} for c in hypothesis.n_best],
    }


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
