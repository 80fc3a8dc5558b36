"""What is kept of an evaluation: its rates, and one record for each hypothesis."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sottovoce.core.symbols import symbol_table
from sottovoce.evaluation.scoring import Evaluation, TrialScore
from sottovoce.runs.evaluations import write_evaluation_files


def write_evaluation(run_dir: Path, evaluation: Evaluation) -> Path:
    """Keep an evaluation with its run; returns the file of its rates.

    A line of the hypotheses holds the texts as they were compared, the symbols as printed, and `counts`: for each
    metric [substitutions, deletions, insertions, reference length].
    """
    name = f"{evaluation.split}.{evaluation.decoder}"
    lines = [_record(score, evaluation) for score in evaluation.scores]
    return write_evaluation_files(run_dir, name, evaluation.as_dict(), lines)


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
