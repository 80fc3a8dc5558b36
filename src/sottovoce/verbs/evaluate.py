"""Error rates of a run."""

from __future__ import annotations

from pathlib import Path

from sottovoce.core.splits import Split
from sottovoce.evaluation.evaluate import evaluate_run
from sottovoce.evaluation.scoring import Evaluation
from sottovoce.runs.trained_decoder import load
from sottovoce.verbs.listener import Progress


def evaluate(
    run_dir: Path | str,
    split: Split = "val",
    decoder: str | None = None,
    beam_size: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Corpus error rates of a run's best checkpoint, with 95 % intervals; also in RUN/evaluation/SPLIT.DECODER.json.

    `decoder` and `beam_size` stand in for the run's own.

    Raises:
        CheckpointError: not a run directory, or a damaged one.
        DataError: the split is empty or has no labels.
        ConfigurationError: the decoder needs what the run lacks.
    """
    loaded = load(Path(run_dir)).with_beam(beam_size, decoder)
    return evaluate_run(loaded, split, decoder, progress)
