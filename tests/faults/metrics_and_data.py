"""Exhibits of tables G and H: metrics, decoding, selection; data and splits."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import torch

from sottovoce.core.hypothesis import Hypothesis
from sottovoce.core.symbols import PHONEMES
from sottovoce.core.trial import Trial
from sottovoce.decoding import greedy
from sottovoce.decoding.alignment import Span
from sottovoce.evaluation import records, scoring
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.metrics import Rate, error_rates
from sottovoce.training import validation
from sottovoce.training.loop import RunLoop
from sottovoce.training.preparation import Prepared
from tests.faults.scene import Exhibit, Scene


def fraction_with_a_percent_sign(scene: Scene) -> None:
    def wrong(value: float | None) -> str:
        return "–" if value is None else f"{value:.1f} %"

    for place in ("sottovoce.metrics.error_rates.percent", "sottovoce.metrics.percent"):
        scene.patch.setattr(place, wrong)


def mean_of_rates(scene: Scene) -> None:
    """Every trial counts the same, however long it is."""

    def wrong(self: Rate, other: Rate) -> Rate:
        return Rate(self.count + round(1000 * other.count / max(other.total, 1)), self.total + 1000)

    scene.patch.setattr(Rate, "__add__", wrong)


def blanks_dropped_first(scene: Scene) -> None:
    def wrong(best_S: torch.Tensor, blank: int = 0) -> list[Span]:
        kept = [(frame, symbol) for frame, symbol in enumerate(best_S.tolist()) if symbol != blank]
        firsts = [here for i, here in enumerate(kept) if i == 0 or here[1] != kept[i - 1][1]]
        return [Span(symbol, frame, frame + 1) for frame, symbol in firsts]

    scene.patch.setattr(greedy, "greedy_spans", wrong)


def place_by_place(scene: Scene) -> None:
    def wrong(reference: Sequence[Any], hypothesis: Sequence[Any]) -> tuple[int, int, int, int]:
        different = sum(a != b for a, b in zip(reference, hypothesis, strict=False))
        return (
            different,
            max(len(reference) - len(hypothesis), 0),
            max(len(hypothesis) - len(reference), 0),
            len(reference),
        )

    scene.patch.setattr(error_rates, "error_counts", wrong)


def symbols_shifted_by_one(scene: Scene) -> None:
    """Evaluation decodes ids - 1, as the published distillation's `vocab_offset`."""
    exact = greedy.greedy_spans

    def wrong(best_S: torch.Tensor, blank: int = 0) -> list[Span]:
        return [replace(span, symbol=max(span.symbol - 1, 1)) for span in exact(best_S, blank)]

    scene.patch.setattr(greedy, "greedy_spans", wrong)


def evaluation_shifted_by_one(scene: Scene) -> None:
    """The program that evaluates writes the hypotheses with another table; training has decoded with the right one."""
    exact = records._record

    def shifted(score: scoring.TrialScore, evaluation: scoring.Evaluation) -> dict[str, Any]:
        symbols = [PHONEMES.symbols[max(i - 1, 1)] for i in score.hypothesis.symbols]
        return exact(score, evaluation) | {"symbols": symbols}

    scene.trained.append(lambda: scene.patch.setattr(records, "_record", shifted))


def evaluation_smooths_otherwise(scene: Scene) -> None:
    """ "Valid" smoothing in evaluation, "same" in training."""
    exact = FeaturePipeline.evaluate

    def wrong(pipeline: FeaturePipeline, batch: Any) -> Any:
        made = exact(pipeline, batch)
        return replace(made, signal=made.signal[:, 4:-4], lengths_B=(made.lengths_B - 8).clamp(min=0))

    scene.patch.setattr(FeaturePipeline, "evaluate", wrong)


def evaluation_standardises_otherwise(scene: Scene) -> None:
    exact = FeaturePipeline.evaluate

    def wrong(pipeline: FeaturePipeline, batch: Any) -> Any:
        made = exact(pipeline, batch)
        return replace(made, signal=made.signal * 1.5)

    scene.patch.setattr(FeaturePipeline, "evaluate", wrong)


def best_by_moving_average(scene: Scene) -> None:
    """The checkpoint is kept where the mean of the last three validations is lowest."""
    exact = RunLoop._ranked_if_main
    seen: list[tuple[float, float]] = []

    def averaged(loop: RunLoop, values: dict[str, float]) -> tuple[float, float]:
        seen.append(exact(loop, values))
        rates, losses = zip(*seen[-3:], strict=True)
        return statistics.fmean(rates), statistics.fmean(losses)

    scene.patch.setattr(RunLoop, "_ranked_if_main", averaged)


def metric_under_another_name(scene: Scene) -> None:
    exact = validation.Validation.values

    def renamed(self: Any, module: Any) -> dict[str, float]:
        return {("per" if name == "val/per" else name): value for name, value in exact(self, module).items()}

    scene.patch.setattr(validation.Validation, "values", renamed)


def reference_from_symbols(scene: Scene) -> None:
    """The reference is spelled from the labels instead of taken from the sentence."""
    exact = scoring._score_trial

    def proxy(trial: Trial, hypothesis: Hypothesis, table: Any) -> scoring.TrialScore:
        spelled = replace(trial, text=" ".join(table.decode(trial.labels or ())))
        return exact(spelled, hypothesis, table)

    scene.patch.setattr(scoring, "_score_trial", proxy)


def training_sentences_in_validation(scene: Scene) -> None:
    """Half of the validation trials are trials of training."""
    scene.data = shutil.copytree(scene.data, scene.folder / "leaked")
    for train_file in scene.data.rglob("data_train.hdf5"):
        if not train_file.with_name("data_val.hdf5").exists():
            continue
        with h5py.File(train_file) as train, h5py.File(train_file.with_name("data_val.hdf5"), "r+") as val:
            for target, source in list(zip(sorted(val), sorted(train), strict=False))[: len(val) // 2]:
                for item in list(val[target]):
                    del val[target][item]
                for item in train[source]:
                    train.copy(f"{source}/{item}", val[target])
                for name, value in train[source].attrs.items():
                    if name not in ("block_num", "trial_num"):
                        val[target].attrs[name] = value


def selection_on_the_test_split(scene: Scene) -> None:
    def peek(prepared: Prepared) -> Prepared:
        trials = tuple(
            replace(trial, split="test") if i in prepared.val_indices else trial
            for i, trial in enumerate(prepared.trial_set.trials)
        )
        prepared.trial_set.trials = trials
        return prepared

    scene.prepared.append(peek)


def one_session_is_tiny(scene: Scene) -> None:
    def shrink(prepared: Prepared) -> Prepared:
        trials, first = prepared.trial_set.trials, prepared.trial_set.sessions[0]
        own = [i for i in prepared.train_indices if trials[i].session == first]
        return replace(prepared, train_indices=[i for i in prepared.train_indices if i not in own[2:]])

    scene.prepared.append(shrink)


def one_speaker_for_all(scene: Scene) -> None:
    """A cache by prompt: the first speaker's recording stands for everybody's."""
    scene.data = shutil.copytree(scene.data, scene.folder / "cached")
    first: dict[str, Path] = {}
    for file in sorted(scene.data.glob("*.wav")):
        prompt = file.stem.split("_")[1]
        shutil.copyfile(first.setdefault(prompt, file), scene.folder / "one.wav")
        shutil.copyfile(scene.folder / "one.wav", file)


EXHIBITS = (
    Exhibit("a fraction with a percent sign", "G1", "unit_mismatch", fraction_with_a_percent_sign),
    Exhibit("mean of the trials' rates", "G2", "metric_aggregation", mean_of_rates),
    Exhibit("blanks dropped before repeats are merged", "G3", "greedy_order", blanks_dropped_first),
    Exhibit("symbols compared place by place", "G4", "metric_is_positional", place_by_place),
    Exhibit("decoded symbols shifted by one", "G5", "tokenizer_offset", symbols_shifted_by_one),
    Exhibit("written hypotheses shifted by one", "G5", "tokenizer_offset", evaluation_shifted_by_one,
            overrides=("training.steps=480",), slow=True),
    Exhibit("evaluation smooths otherwise", "G6", "train_eval_mismatch", evaluation_smooths_otherwise),
    Exhibit("evaluation scales otherwise", "G6", "train_eval_mismatch", evaluation_standardises_otherwise),
    Exhibit("checkpoint chosen by a moving average", "G7", "moving_average_checkpoint", best_by_moving_average,
            overrides=("training.scheduler.name=constant", "training.optimizer.lr=0.01", "training.steps=240",
                       "training.validate_every_steps=10")),
    Exhibit("selection metric under another name", "G9", "metric_missing", metric_under_another_name),
    Exhibit("reference spelled from the symbols", "G10", "reference_proxy", reference_from_symbols),
    Exhibit("training sentences in validation", "H1", "split_leak", training_sentences_in_validation),
    Exhibit("selection on the test split", "H2", "selection_on_test", selection_on_the_test_split),
    Exhibit("a session of two trials", "H4", "session_imbalance", one_session_is_tiny,
            overrides=("data.sessions_per_batch=2",),
            slow=True),
    Exhibit("one speaker's recordings for all", "H10", "single_speaker_audio", one_speaker_for_all, "recordings"),
)  # fmt: skip
