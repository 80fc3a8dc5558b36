"""Evaluating a run on a split: corpus error rates with intervals, hypotheses, and examples for the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sottovoce.core.errors import DataError
from sottovoce.core.splits import Split
from sottovoce.data.loading import PreparedTrials
from sottovoce.decoding.decoder import Decoder
from sottovoce.evaluation.emissions import DecodedTrial, decoded
from sottovoce.evaluation.opening import data_config, open_own
from sottovoce.evaluation.records import write_evaluation
from sottovoce.evaluation.scoring import Evaluation, choose_examples, score
from sottovoce.runs.examples import Example, Examples, write_examples
from sottovoce.runs.trained_decoder import TrainedDecoder


def evaluate_run(
    run: TrainedDecoder,
    split: Split,
    decoders: Sequence[Decoder],
    progress: Callable[[int, int], None] | None = None,
) -> list[Evaluation]:
    """Decode and score every trial of `split`, an evaluation for each decoder; the model runs once.

    The files go into the run's directory. `progress` is called with the trials decoded and their number.

    Raises:
        DataError: the split is empty or has no labels, or the model gives NaN.
    """
    root = data_config(run).data_root
    trial_set = open_own(run, ("train", split) if split != "train" else ("train",))
    indices = trial_set.indices(split, run.left_out)
    if not indices:
        raise DataError(f"{root} has no {split} trials")
    if any(trial_set.trials[i].labels is None for i in indices):
        raise DataError(
            f"the {split} trials of {root} have no labels to compare with; write hypotheses with sottovoce decode"
        )
    trials = decoded(run, trial_set, indices, decoders, progress)
    training_texts = {trial_set.trials[i].text or "" for i in trial_set.indices("train")}
    note = _note(run, trial_set, split)
    evaluations = []
    for place, decoder in enumerate(decoders):
        evaluation = score(
            [(one.trial, one.hypotheses[place]) for one in trials],
            run.table,
            decoder=decoder.name,
            seed=run.seed,
            training_texts=training_texts if split != "train" else None,
        )
        evaluation = replace(evaluation, notes=(*evaluation.notes, *note))
        write_evaluation(run.run_dir, evaluation)
        _write_examples(run, evaluation, trials)
        evaluations.append(evaluation)
    return evaluations


def _note(run: TrainedDecoder, trial_set: PreparedTrials, split: Split) -> tuple[str, ...]:
    """How many trials were left out, if any."""
    unusable = sum(trial_id in run.left_out for trial_id in (t.trial_id for t in trial_set.trials if t.split == split))
    unusable += sum(fault.severity == "error" for fault in trial_set.skipped)
    return (f"{unusable} trials were left out (left_out.json)",) if unusable else ()


def _write_examples(run: TrainedDecoder, evaluation: Evaluation, trials: Sequence[DecodedTrial]) -> None:
    """Keep the posteriors of the best, the median and the worst trial."""
    examples = []
    for role, i in choose_examples(evaluation.scores).items():
        scored = evaluation.scores[i]
        texts = scored.reference_text, scored.hypothesis_text
        symbols = scored.trial.labels or (), scored.hypothesis.symbols
        examples.append(Example(role, scored.trial.trial_id, *symbols, *texts, trials[i].log_probs_SV))
    content = Examples(evaluation.split, evaluation.decoder, run.table.name, run.frame_ms, tuple(examples))
    write_examples(run.run_dir, content)
