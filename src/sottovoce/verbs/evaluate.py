"""Error rates of a run."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from sottovoce.core.splits import Split
from sottovoce.evaluation.evaluate import evaluate_run
from sottovoce.evaluation.scoring import Evaluation
from sottovoce.runs.trained_decoder import load
from sottovoce.verbs.listener import Progress


def evaluate(
    run_dir: str | PathLike[str],
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
    (evaluation,) = evaluate_each(run_dir, split, () if decoder is None else (decoder,), beam_size, progress)
    return evaluation


def evaluate_each(
    run_dir: str | PathLike[str],
    split: Split = "val",
    decoders: Sequence[str] = (),
    beam_size: int | None = None,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """As `evaluate` with each of several decoders; the model runs once for all of them.

    Raises:
        CheckpointError: not a run directory, or a damaged one.
        DataError: the split is empty or has no labels.
        ConfigurationError: a decoder needs what the run lacks, or none of them keeps a beam.
    """
    run = load(Path(run_dir))
    return evaluate_run(run, split, run.decoders(decoders, beam_size), progress)
