"""Evaluating a run on a split: corpus error rates with intervals, hypotheses, and examples for the report."""

from __future__ import annotations

from sottovoce.core.errors import DataError
from sottovoce.core.trial import Split
from sottovoce.evaluation.loaded_run import LoadedRun
from sottovoce.evaluation.records import write_evaluation
from sottovoce.evaluation.scoring import Evaluation, score


def evaluate_run(run: LoadedRun, split: Split, decoder: str | None = None) -> Evaluation:
    """Decode and score every trial of `split`; the files go into the run's directory.

    Raises:
        DataError: the split is empty or has no labels.
        ConfigurationError: the decoder needs a lexicon and there is none.
    """
    text_decoder = run.text_decoder(decoder)
    trial_set = run.open(("train", split) if split != "train" else ("train",))
    indices = trial_set.indices(split)
    if not indices:
        raise DataError(f"{run.data.data_root} has no {split} trials")
    if any(trial_set.trials[i].labels is None for i in indices):
        raise DataError(
            f"the {split} trials of {run.data.data_root} have no labels to compare with; "
            "write hypotheses with sottovoce decode"
        )
    outputs = run.outputs(trial_set, indices)
    training_texts = {trial_set.trials[i].text or "" for i in trial_set.indices("train")}
    evaluation = score(
        [text_decoder(output) for output in outputs],
        run.table,
        decoder=text_decoder.decoder,
        seed=run.seed,
        training_texts=training_texts if split != "train" else None,
    )
    write_evaluation(run.run_dir, evaluation)
    return evaluation
