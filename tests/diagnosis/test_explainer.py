"""The explainer: each fault written into the records of a healthy run is named first; a healthy run gets nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sottovoce.core.hypothesis import Hypothesis
from sottovoce.core.symbols import LETTERS, PHONEMES
from sottovoce.core.trial import Trial
from sottovoce.diagnosis import causes as catalogue
from sottovoce.diagnosis.explainer.explainer import explain, pages
from sottovoce.diagnosis.ranking import ranked
from sottovoce.evaluation.records import write_evaluation
from sottovoce.evaluation.scoring import score
from sottovoce.runs.examples import Example, Examples, write_examples
from sottovoce.training.composition import compose_config
from sottovoce.training.preparation import prepare
from sottovoce.training.run import start
from tests.diagnosis.run_directories import STEPS, Curve, RunDirectory
from tests.training.small_runs import overrides

Change = Callable[[RunDirectory], None]
SAID = PHONEMES.encode("DH AH | K AE T |".split())


def first(folder: Path) -> str:
    findings = explain(folder)
    return findings[0].code if findings else ""


def codes(run: RunDirectory) -> list[str]:
    return [finding.code for finding in explain(run.write())]


def with_curve(name: str, curve: Callable[[int], float]) -> Change:
    def change(run: RunDirectory) -> None:
        (run.validation if name.startswith("val/") else run.curves)[name] = curve

    return change


def until(end: int, curve: Curve) -> Curve:
    return lambda step: curve(step) if step < end else math.nan


def lost_from(step: int) -> Change:
    """Every loss is NaN from one step on."""

    def change(run: RunDirectory) -> None:
        for name in ("train/loss", "train/ctc_loss"):
            run.curves[name] = until(step, run.curves[name])

    return change


def curves(**by_name: Callable[[int], float]) -> Change:
    def change(run: RunDirectory) -> None:
        for name, curve in by_name.items():
            with_curve(name.replace("__", "/"), curve)(run)

    return change


def test_a_healthy_run_gets_nothing(tmp_path: Path) -> None:
    assert explain(RunDirectory(tmp_path).write(), include_notes=True) == []


@pytest.mark.parametrize("kept", ["all", "metrics.jsonl", "events.jsonl"])
def test_a_run_that_was_killed_is_not_at_fault(tmp_path: Path, kept: str) -> None:
    run = RunDirectory(tmp_path)
    run.is_finished = False
    run.write()
    for name in ("metrics.jsonl", "events.jsonl"):
        if kept not in ("all", name):
            (tmp_path / name).unlink()
    assert explain(tmp_path) == []
    assert [f.code for f in explain(tmp_path, include_notes=True)] == ["clean_run_interrupted"]


def test_an_error_that_ended_the_run_comes_first(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.is_finished = False
    run.skipped("zero_loss", 200)
    run.events.append({"step": 400, "event": "run_failed", "message": "RuntimeError: out of memory"})
    run.write()
    first, second = explain(tmp_path)
    assert (first.code, first.severity) == ("ended_by_error", "error")
    assert "after step 400: RuntimeError: out of memory" in first.evidence
    assert second.code == "zero_loss"
    run.events.append({"step": 400, "event": "resumed"})
    run.write()
    assert [finding.code for finding in explain(tmp_path)] == ["zero_loss"]


@pytest.mark.slow
def test_real_small_runs_are_healthy(tiny_t15: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        run_dir = start(prepare(compose_config(overrides(tiny_t15, tmp_path, f"run{seed}", f"seed={seed}"))))
        assert explain(run_dir) == []


LOUD = curves(
    train__ctc_loss=lambda s: 40 if s < 150 else 200 + s,
    train__gradient_norm=lambda s: 3 if s < 150 or s % 30 else 90,
)
FAULTS: dict[str, tuple[str, Change]] = {
    "flat rate": ("schedule_not_stepped", with_curve("learning_rate/other", lambda s: 0.004)),
    "too large steps": ("learning_rate_too_high", LOUD),
    "turns while the rate is high": (
        "schedule_degradation",
        lambda run: curves(
            val__per=lambda s: 0.3 if s == 120 else 0.45,
            val__loss=lambda s: 6 + s / 100,
            train__ctc_loss=lambda s: 30.0,
            learning_rate__other=lambda s: min(s, 20) / 20 * 0.004,
        )(with_constant_rate(run)),
    ),
    "turns while the loss falls": (
        "overfitting",
        curves(val__per=lambda s: 0.3 if s == 200 else 0.45, val__loss=lambda s: 6 + s / 100),
    ),
    "clip": ("clipped_to_standstill", with_curve("train/gradient_norm", lambda s: 4000.0)),
    "all blank": (
        "blank_collapse",
        curves(train__blank_fraction=lambda s: 1.0, train__ctc_loss=lambda s: 16.0, val__per=lambda s: 1.0),
    ),
    "slow": ("throughput_drop", with_curve("train/step_seconds", lambda s: 0.05 if s < 250 else 0.5)),
    "zero term": ("zero_loss", with_curve("train/mode_loss", lambda s: 0.0)),
    "zeros now and then": (
        "swallowed_exception",
        with_curve("train/ctc_loss", lambda s: 0.0 if s % 40 == 0 else 20.0),
    ),
    "nan": ("poisoned_weights", lost_from(130)),
    "unlike terms": ("reduction_mismatch", with_curve("train/transducer_loss", lambda s: 2600 * math.exp(-s / 80))),
    "total": ("reduction_mismatch", with_curve("train/loss", lambda s: (5 + 95 * math.exp(-s / 80)) / 26)),
    "no metric": ("metric_missing", lambda run: no_metric(run)),
    "nan metric": ("metric_missing", lambda run: nan_metric(run)),
    "no best": ("metric_missing", lambda run: setattr(run, "best_step", 0)),
    "unit": ("unit_mismatch", curves(val__wer=lambda s: 0.01, val__blank_fraction=lambda s: 1.0)),
    "test split": ("selection_on_test", with_curve("test/per", lambda s: 0.3)),
    "moments": ("optimizer_recreated", lambda run: setattr(run, "optimizer_steps", 250)),
}


def with_constant_rate(run: RunDirectory) -> RunDirectory:
    scheduler = replace(run.config.training.scheduler, name="constant")
    run.config = replace(run.config, training=replace(run.config.training, scheduler=scheduler))
    run.curves["learning_rate/other"] = run.rate
    return run


def no_metric(run: RunDirectory) -> None:
    run.validation = {"val/loss": run.validation["val/loss"]}
    run.best_step = 0


def nan_metric(run: RunDirectory) -> None:
    run.validation |= {"val/per": lambda s: math.nan, "val/wer": lambda s: 0.5}
    run.best_step = 0


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_first(tmp_path: Path, name: str) -> None:
    code, change = FAULTS[name]
    run = RunDirectory(tmp_path, steps=700 if code == "blank_collapse" else STEPS)
    change(run)
    if name == "turns while the rate is high":
        run.curves["learning_rate/other"] = run.rate
    findings = explain(run.write())
    assert findings[0].code == code, [str(f) for f in findings]
    assert any(character.isdigit() for character in findings[0].evidence)


def test_the_plateau_of_every_ctc_model_is_no_collapse(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    curves(train__blank_fraction=lambda s: 1.0, val__per=lambda s: 1.0)(run)
    assert codes(run) == ["not_learnt"]
    assert [f.code for f in explain(tmp_path, include_notes=True)] == ["not_learnt", "blank_plateau"]


def test_symbols_by_chance_before_the_plateau_are_no_turning_point(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.validation["val/per"] = lambda s: 0.78 if s == 80 else 0.95
    assert codes(run) == ["not_learnt"]


def test_a_short_run_that_ends_on_the_plateau_is_no_collapse(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    curves(train__blank_fraction=lambda s: 1.0, train__ctc_loss=lambda s: 96.0, val__per=lambda s: 1.0)(run)
    assert codes(run) == ["not_learnt"]


def test_a_large_epsilon_behind_all_blank_is_ambiguous_or_first(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "training.optimizer.eps=0.1", steps=700)
    curves(train__blank_fraction=lambda s: 1.0, train__ctc_loss=lambda s: 16.0, val__per=lambda s: 1.0)(run)
    assert first(run.write()) == "adam_eps_regime"


def test_moving_average_and_loss_as_gates(tmp_path: Path) -> None:
    rates = {40: 0.6, 80: 0.5, 120: 0.2, 160: 0.45, 200: 0.35, 240: 0.34, 280: 0.33}
    run = RunDirectory(tmp_path / "a")
    run.validation["val/per"] = lambda s: rates.get(s, 0.5)
    run.best_step = 280  # the least mean of three and of four
    assert first(run.write()) == "moving_average_checkpoint"
    run = RunDirectory(tmp_path / "b")
    run.validation |= {"val/per": lambda s: rates.get(s, 0.5), "val/loss": lambda s: 3.0 if s == 360 else 9.0}
    run.best_step = 360
    assert first(run.write()) == "selection_gate"


def test_trials_that_never_fit(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    trials = [("ctc", "s1/train/3"), ("rnnt", "s1/train/4"), ("ctc", "s1/train/5"), ("rnnt", "s1/train/5")]
    run.skipped("nonfinite_loss", 31, 92, 150, losses=dict.fromkeys(trials, math.inf))
    findings = explain(run.write())
    codes = [f.code for f in findings]
    assert codes[0] == "ctc_infeasible"
    assert "nonfinite_loss" in codes
    assert "s1/train/3 (inf, 3 ×)" in findings[0].evidence
    assert "Ambiguous between ctc_infeasible and label_padding" in findings[0].tell_apart
    assert findings[0].step == 31


def test_lengths_decide_where_the_data_are_at_hand(tiny_t15: Path, tmp_path: Path) -> None:
    """Two patches of a size that leaves no trial enough frames."""
    run = RunDirectory(
        tmp_path,
        f"data.data_root={tiny_t15}",
        "preprocessor.num_channels=16",
        "model.patch.size=40",
        "model.patch.stride=40",
    )
    run.skipped("nonfinite_loss", 31, 92, losses={"t15.2023.08.13/train/trial_0003": math.inf})
    finding = explain(run.write())[0]
    assert finding.code == "ctc_infeasible"
    assert "which need" in finding.evidence
    assert finding.tell_apart.startswith("Ambiguous") is False


def test_a_whole_batch_of_nan_after_growing_norms_is_the_learning_rate(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.curves["train/gradient_norm"] = lambda s: 2.0 * math.exp(s / 60)
    run.skipped("nonfinite_loss", 301, 302, losses=dict.fromkeys("abcdefghijklmnop", math.nan))
    assert first(run.write()) == "learning_rate_too_high"


def test_gradients_that_are_not_finite(tmp_path: Path) -> None:
    """A fault of a loss reaches all layers below it; that of a single parameter is not guessed at."""
    run = RunDirectory(tmp_path / "all")
    run.skipped("nonfinite_gradient", 31, parameters=[f"encoder.gru.weight_ih_l{n}" for n in range(7)])
    assert first(run.write()) == "infinite_padding"
    run = RunDirectory(tmp_path / "one")
    run.skipped("nonfinite_gradient", 31, parameters=["encoder.initial_state"])
    capsule = run.folder / "capsules" / "31"
    capsule.mkdir(parents=True)
    (finding,) = explain(run.write())
    assert (finding.code, finding.severity) == ("nonfinite_gradient", "warning")
    assert finding.fix.startswith(f"sottovoce diagnose {capsule} --replay finds")


def test_findings_of_the_run_itself_are_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.happened(
        0, "stale_optimizer", **catalogue.found("stale_optimizer", "2 names.", "preflight", fix="F.").as_event()
    )
    run.happened(0, "blank_plateau", **catalogue.found("blank_plateau", "Flat.", "monitor", severity="note").as_event())
    (finding,) = explain(run.write())
    assert (finding.code, finding.evidence, finding.source, finding.fix) == (
        "stale_optimizer",
        "2 names.",
        "preflight",
        "F.",
    )


def staged(folder: Path, *more: str) -> RunDirectory:
    stages = (
        "[{name: warm, steps: 100, components: [preprocessor, encoder, ctc_decoder], loss_weights: {ctc: 1.0}},"
        "{name: joint, steps: 300, components: [preprocessor, encoder, ctc_decoder, rnnt_decoder],"
        "loss_weights: {ctc: 0.3, rnnt: 1.0}, patience: 2}]"
    )
    given = (
        "training.steps=null",
        f"training.stages={stages}",
        "model.transducer={}",
        "training.rnnt_warmup_batches=50",
    )
    run = RunDirectory(folder, *given, *more)
    parts = ["ctc_decoder", "encoder", "preprocessor"]
    run.events = []
    run.happened(0, "stage_started", stage="warm", num_steps=100, loss_weights={"ctc": 1.0}, components=parts)
    run.happened(100, "stage_finished", stage="warm", complete=True)
    weights = {"ctc": 0.3, "rnnt": 1.0}
    run.happened(100, "stage_started", stage="joint", num_steps=300, loss_weights=weights, components=parts)
    run.curves["learning_rate/encoder.other"] = run.curves.pop("learning_rate/other")
    return run


def released(run: RunDirectory) -> None:
    counts = {"trainable_parameters": 6000, "trainable_before": 5000}
    run.happened(150, "unfrozen", components=["rnnt_decoder"], **counts)


def test_stages(tmp_path: Path) -> None:
    run = staged(tmp_path / "never")
    assert first(run.write()) == "per_epoch_counter"
    run = staged(tmp_path / "still")
    released(run)
    run.curves["train/transducer_loss"] = lambda s: 120.0 + s % 3
    run.write()
    keep_from(run.folder, "train/transducer_loss", 151)
    assert first(run.folder) == "stale_optimizer"
    run = staged(tmp_path / "healthy")
    released(run)
    run.curves["train/transducer_loss"] = lambda s: 120.0 * math.exp(-(s - 150) / 80)
    run.write()
    assert first(run.folder) == "frozen_branch_leaks"  # recorded from the first step on
    keep_from(run.folder, "train/transducer_loss", 151)
    assert explain(run.folder) == []
    run = staged(tmp_path / "once")
    run.happened(140, "stage_finished", stage="joint", complete=False)
    run.is_finished = False
    run.steps = 140
    assert first(run.write()) == "stage_one_epoch"


def keep_from(folder: Path, name: str, step: int) -> None:
    path = folder / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if name not in line or json.loads(line)["step"] >= step]
    path.write_text("\n".join(lines) + "\n")


def test_a_resumed_run_that_is_not_the_same(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "whole")
    run.happened(200, "resumed")
    assert explain(run.write()) == []
    run = RunDirectory(tmp_path / "jump")
    run.happened(200, "resumed")
    run.curves["train/ctc_loss"] = lambda s: 20.0 if s <= 200 else 20 + 40 * math.exp(-(s - 200) / 20)
    assert first(run.write()) == "incomplete_resume"


def test_a_log_that_no_run_has_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 403, "split": "train", "name": "train/loss", "value": 3.0}\n')
    assert first(tmp_path) == "unprovenanced_log"


def evaluated(folder: Path, decoded: list[tuple[int, ...]], blanks: int = 8, **changed: object) -> Path:
    run = RunDirectory(folder)
    run.validation["val/per"] = lambda s: 0.1  # replaced below by what the evaluation says
    hypotheses = [
        (Trial(f"s/val/{i}", "val", "s", 60, SAID[: 7 - i % 3], "the cat", Path("x")), Hypothesis(symbols, 14, blanks))
        for i, symbols in enumerate(decoded)
    ]
    path = write_evaluation(folder, score(hypotheses, PHONEMES, decoder="greedy"))
    result = json.loads(path.read_text())
    run.validation["val/per"] = lambda s: max(result["per"], 1.0 - s / 100)
    path.write_text(json.dumps(result | changed))
    return run.write()


def test_evaluations(tmp_path: Path) -> None:
    right = [SAID[: 7 - i % 3] for i in range(6)]
    assert explain(evaluated(tmp_path / "right", right)) == []
    shifted = [tuple(i + 1 for i in symbols if i < 40) for symbols in right]
    assert first(evaluated(tmp_path / "shifted", shifted)) == "tokenizer_offset"
    some = [*right[:4], (), SAID[:3]]
    assert first(evaluated(tmp_path / "percent", some, per=100 * rate_of(some))) == "unit_mismatch"
    assert first(evaluated(tmp_path / "mean", some, per=mean_of(some))) == "metric_aggregation"
    empty: list[tuple[int, ...]] = [()] * 6
    assert first(evaluated(tmp_path / "empty", empty, per=0.01)) == "unit_mismatch"


@pytest.mark.parametrize(
    ("opening", "blanks", "trials", "named"),
    [(5, 0, 12, True), (5, 2, 12, False), (None, 0, 12, False), (5, 0, 8, False)],
    ids=["a label for the blank", "the blank is used", "nothing is said too early", "too few trials"],
)
def test_a_label_in_the_blanks_place(
    tmp_path: Path, opening: int | None, blanks: int, trials: int, named: bool
) -> None:
    right = [SAID[: 7 - i % 3] for i in range(trials)]
    decoded = [(opening, *symbols) if opening and i % 3 else symbols for i, symbols in enumerate(right)]
    found = [finding for finding in explain(evaluated(tmp_path, decoded, blanks)) if finding.code == "blank_supplanted"]
    assert bool(found) == named
    assert all("0.0% of the frames" in finding.evidence for finding in found)


def rate_of(decoded: list[tuple[int, ...]]) -> float:
    lengths = [7 - i % 3 for i in range(len(decoded))]
    return sum(n - len(d) for n, d in zip(lengths, decoded, strict=True)) / sum(lengths)


def mean_of(decoded: list[tuple[int, ...]]) -> float:
    lengths = [7 - i % 3 for i in range(len(decoded))]
    return sum((n - len(d)) / n for n, d in zip(lengths, decoded, strict=True)) / len(decoded)


def test_places_compared_one_by_one(tmp_path: Path) -> None:
    folder = evaluated(tmp_path, [(5, *SAID[: 7 - i % 3]) for i in range(6)])
    path = folder / "hypotheses.val.greedy.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        places = sum(a != b for a, b in zip(record["reference_symbols"], record["symbols"], strict=False))
        record["counts"]["per"] = [places, 0, 0, len(record["reference_symbols"])]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    per = sum(r["counts"]["per"][0] for r in records) / sum(r["counts"]["per"][3] for r in records)
    result = folder / "evaluation" / "val.greedy.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"per": per}))
    assert first(folder) == "metric_is_positional"


def test_blanks_dropped_before_repeats_are_merged(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path).write()
    log_probs = np.log(np.full((5, 41), 0.001, np.float32))
    log_probs[range(5), [5, 5, 0, 5, 7]] = np.log(0.9)
    for hypothesis, expected in (((5, 5, 7), ""), ((5, 7), "greedy_order")):
        example = Example("best", "s/val/0", (5, 5, 7), hypothesis, None, None, log_probs)
        write_examples(folder, Examples("val", "greedy", "phonemes", 80.0, (example,)))
        assert first(folder) == expected


def test_roots_come_before_what_follows_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = dict(catalogue.causes())
    entries["label_padding"] = replace(entries["label_padding"], consequences=("ctc_infeasible",))
    entries["ctc_infeasible"] = replace(entries["ctc_infeasible"], consequences=("nonfinite_loss",))
    monkeypatch.setattr(catalogue, "causes", lambda: entries)
    given = [catalogue.found(c, "E.", "monitor", step=1) for c in ("nonfinite_loss", "ctc_infeasible", "label_padding")]
    found = ranked([replace(given[0], support=1.0), given[1], replace(given[2], support=0.3)])
    assert [f.code for f in found] == ["label_padding", "ctc_infeasible", "nonfinite_loss"]
    assert found[2].evidence == "E. Follows from ctc_infeasible or label_padding."


def test_pages_hold_what_the_catalogue_says(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.curves["train/mode_loss"] = lambda s: 0.0
    assert set(pages(explain(run.write()))) >= {"zero_loss"}


def test_letters_of_a_reference_that_is_not_the_sentence(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path).write()
    trial = Trial("s/val/0", "val", "s", 60, LETTERS.encode("the|cat"), "dhe cat", Path("x"))
    write_evaluation(
        folder, score([(trial, Hypothesis(LETTERS.encode("the|cat"), 14, 8, "the cat"))], LETTERS, decoder="words")
    )
    assert first(folder) == "reference_proxy"


# ── has it learnt? ──────────────────────────────────────────────────────────────────────────────────────────────────

FLOORS: dict[str, float | None] = {"train": 96.0, "val": 100.0}


def with_floors(folder: Path, train: float, val: float, per: float, steps: int = STEPS) -> RunDirectory:
    """A run whose losses go from 200 to these nats within a hundred steps and stay there."""
    run = RunDirectory(folder, steps=steps)
    run.floors = FLOORS
    curves(
        train__ctc_loss=lambda s: max(train, 200 - 2 * s),
        train__blank_fraction=lambda s: 0.5,
        val__loss=lambda s: max(val, 200 - 2 * s),
        val__per=lambda s: per,
    )(run)
    return run


@pytest.mark.parametrize(
    ("train", "val", "per", "expected"),
    [
        (103.0, 103.0, 0.99, ["not_learnt"]),
        (94.0, 98.0, 0.77, ["not_learnt"]),  # symbols by chance: the loss tells
        (80.0, 94.0, 0.93, ["not_learnt"]),  # below the floor, and nothing is decoded
        (94.0, 95.3, 0.82, []),
        (60.0, 130.0, 0.45, ["validation_unlike_training"]),  # decoded, but more improbable than constant answers
        (60.0, 130.0, 0.85, ["validation_unlike_training", "not_learnt"]),
        (60.0, 94.0, 0.82, []),
    ],
)
def test_the_last_validation_is_compared_with_the_floor(
    train: float, val: float, per: float, expected: list[str], tmp_path: Path
) -> None:
    assert codes(with_floors(tmp_path, train, val, per)) == expected


def test_the_evidence_says_where_it_stands(tmp_path: Path) -> None:
    (found,) = explain(with_floors(tmp_path, 103.0, 103.0, 0.99).write())
    assert (found.severity, found.step) == ("warning", STEPS)
    assert found.evidence == f"At step {STEPS}: PER 0.99, validation loss 103, 1.03 of the input-blind floor 100."


def test_sets_unlike_each_other_are_named_after_three_validations_and_with_the_losses(tmp_path: Path) -> None:
    run = with_floors(tmp_path, 20.0, 130.0, 0.6, steps=120)
    run.validation["val/loss"] = lambda s: 132.0 + s / 10
    (found,) = explain(run.write())
    assert (found.code, found.step) == ("validation_unlike_training", 40)
    for number in ("20", "0.21", "96", "136", "1.36", "100", "144"):
        assert number in found.evidence


def test_worse_than_blind_at_its_best_is_no_overfitting(tmp_path: Path) -> None:
    turns = curves(val__per=lambda s: 0.3 if s == 200 else 0.45, val__loss=lambda s: 132 + s / 10)
    run = RunDirectory(tmp_path / "unlike")
    turns(run)
    run.floors = FLOORS
    assert codes(run) == ["validation_unlike_training"]
    unknown = RunDirectory(tmp_path / "unknown")
    turns(unknown)
    assert codes(unknown) == ["overfitting"]


@pytest.mark.parametrize(("falls", "expected"), [(0.03, []), (0.0, ["not_learnt"])])
def test_a_loss_that_still_falls_below_the_floor_is_on_its_way(
    falls: float, expected: list[str], tmp_path: Path
) -> None:
    run = with_floors(tmp_path, 92.0, 94.0, 0.93)
    run.validation["val/loss"] = lambda s: 94.0 - falls * (s - 200)
    assert codes(run) == expected


@pytest.mark.parametrize(
    ("then", "rise", "expected"), [(0.325, 0.02, ["overfitting"]), (0.325, 0.0, []), (0.31, 0.02, [])]
)
def test_a_slightly_worse_metric_counts_where_the_validation_loss_rises_too(
    then: float, rise: float, expected: list[str], tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    curves(
        val__per=lambda s: 0.3 if s == 200 else then + 0.004 * (s // 40 % 2),
        val__loss=lambda s: 10 + rise * s,
    )(run)
    assert codes(run) == expected


@pytest.mark.parametrize(("last", "expected"), [(40, []), (200, []), (280, ["not_learnt"])])
def test_a_run_that_was_stopped_early_has_not_had_its_chance(last: int, expected: list[str], tmp_path: Path) -> None:
    run = with_floors(tmp_path, 103.0, 103.0, 0.99, steps=last)
    training = replace(
        run.config.training, steps=500, scheduler=replace(run.config.training.scheduler, warmup_steps=100)
    )
    run.config, run.planned, run.is_finished = replace(run.config, training=training), 500, False
    assert codes(run) == expected


def test_a_cause_comes_before_what_it_shows(tmp_path: Path) -> None:
    run = with_floors(tmp_path, 103.0, 103.0, 0.99)
    details = {"severity": "warning", "evidence": "Seen.", "source": "monitor", "support": 0.5}
    run.happened(200, "clipped_to_standstill", **details)
    assert codes(run) == ["clipped_to_standstill", "not_learnt"]


@pytest.mark.parametrize(
    ("per", "divergence", "codes"),
    [
        (0.95, lambda s: 150.0, ["teacher_audio_mismatch"]),
        (0.95, lambda s: 150 * math.exp(-s / 200), []),  # on its way
        (0.55, lambda s: 60.0, []),
    ],
)
def test_a_student_that_stays_far_from_good_teachers(
    tmp_path: Path, per: float, divergence: Curve, codes: list[str]
) -> None:
    run = RunDirectory(tmp_path, "training.preflight=false")
    run.curves["train/distillation_loss"] = divergence
    run.validation["val/per"] = lambda s: per + 0.001 * (400 - s) / 400
    run.happened(0, "taught_by", teachers=["runs/a", "runs/b"], per=[0.4, 0.5])
    found = [finding for finding in explain(run.write()) if finding.code.startswith("teacher")]
    assert [finding.code for finding in found] == codes
    assert all("PER of 45.0 % in their own validation, the student has 95.0 %" in f.evidence for f in found)


def test_teachers_without_a_known_rate_are_no_reason(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "training.preflight=false")
    run.curves["train/distillation_loss"] = lambda s: 150.0
    run.validation["val/per"] = lambda s: 0.95
    run.happened(0, "taught_by", teachers=["runs/a"], per=[None])
    assert not [finding for finding in explain(run.write()) if finding.code.startswith("teacher")]


def test_a_student_that_preflight_has_looked_at_is_too_small_rather_than_taught_wrongly(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.curves["train/distillation_loss"] = lambda s: 150.0
    run.validation["val/per"] = lambda s: 0.95
    run.happened(0, "taught_by", teachers=["runs/a"], per=[0.4])
    assert not [finding for finding in explain(run.write()) if finding.code.startswith("teacher")]


@pytest.mark.parametrize(
    ("gain", "named"),
    [
        (lambda s: 0.2 + 0.1 * (s // 40 % 2), True),
        (lambda s: 0.2 + s / 400, False),  # little, but growing
        (lambda s: 30.0, False),
    ],
    ids=["nothing is heard", "begins to hear", "hears"],
)
def test_own_labels_are_no_likelier_than_another_trials(tmp_path: Path, gain: Curve, named: bool) -> None:
    run = RunDirectory(tmp_path)
    run.validation |= {"val/pairing_gain": gain, "val/loss": lambda s: 85 + 400 / s, "val/per": lambda s: 0.74}
    found = [finding for finding in explain(run.write()) if finding.code == "input_ignored"]
    assert bool(found) == named
    assert all("nats likelier than another trial's" in finding.evidence for finding in found)
