"""Evaluating a run on a split: corpus error rates with intervals, hypotheses, and examples for the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sottovoce.core.errors import DataError
from sottovoce.core.examples import Example, Examples, write_examples
from sottovoce.core.splits import Split
from sottovoce.evaluation.inference import TrialOutput, outputs, text_decoder
from sottovoce.evaluation.opening import data_config, open_own
from sottovoce.evaluation.records import write_evaluation
from sottovoce.evaluation.scoring import Evaluation, choose_examples, score
from sottovoce.runs.trained_decoder import TrainedDecoder


def evaluate_run(
    run: TrainedDecoder,
    split: Split,
    decoder: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Decode and score every trial of `split`; the files go into the run's directory.

    `progress` is called with the trials decoded and their number.

    Raises:
        DataError: the split is empty or has no labels.
        ConfigurationError: the decoder needs a lexicon and there is none.
    """
    to_text = text_decoder(run, decoder)
    root = data_config(run).data_root
    trial_set = open_own(run, ("train", split) if split != "train" else ("train",))
    indices = trial_set.indices(split, run.left_out)
    if not indices:
        raise DataError(f"{root} has no {split} trials")
    if any(trial_set.trials[i].labels is None for i in indices):
        raise DataError(
            f"the {split} trials of {root} have no labels to compare with; write hypotheses with sottovoce decode"
        )
    found = outputs(run, trial_set, indices, to_text.decoder, progress)
    training_texts = {trial_set.trials[i].text or "" for i in trial_set.indices("train")}
    evaluation = score(
        [(output.trial, to_text(output)) for output in found],
        run.table,
        decoder=_label(run, to_text.decoder),
        seed=run.seed,
        training_texts=training_texts if split != "train" else None,
    )
    unusable = sum(trial_id in run.left_out for trial_id in (t.trial_id for t in trial_set.trials if t.split == split))
    unusable += sum(fault.severity == "error" for fault in trial_set.skipped)
    if unusable:
        note = f"{unusable} trials were left out (left_out.json)"
        evaluation = replace(evaluation, notes=(*evaluation.notes, note))
    write_evaluation(run.run_dir, evaluation)
    _write_examples(run, evaluation, found)
    return evaluation


def _label(run: TrainedDecoder, decoder: str) -> str:
    """Names the evaluation's files: another beam is another decoder."""
    beam_size = run.evaluation.beam_size
    return f"{decoder}_beam_{beam_size}" if decoder == "transducer" and beam_size > 1 else decoder


def _write_examples(run: TrainedDecoder, evaluation: Evaluation, found: Sequence[TrialOutput]) -> None:
    """Keep the posteriors of the best, the median and the worst trial."""
    examples = []
    for role, i in choose_examples(evaluation.scores).items():
        scored = evaluation.scores[i]
        texts = scored.reference_text, scored.hypothesis_text
        symbols = scored.trial.labels or (), scored.hypothesis.symbols
        examples.append(Example(role, scored.trial.trial_id, *symbols, *texts, found[i].log_probs_SV))
    content = Examples(evaluation.split, evaluation.decoder, run.table.name, run.frame_ms, tuple(examples))
    write_examples(run.run_dir, content)
