"""Each question of preflight, with the function it asks replaced by one that has been published with that fault."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sottovoce.core.checkpoints import write_checkpoint
from sottovoce.core.findings import Finding
from sottovoce.core.symbols import SymbolTable
from sottovoce.core.trial import Trial
from sottovoce.data.sampling import BatchPlan
from sottovoce.decoding import greedy, transducer_decoder
from sottovoce.decoding.alignment import Span
from sottovoce.diagnosis.preflight.exact_losses import ctc_nats, log_probabilities, transducer_nats
from sottovoce.diagnosis.preflight.known_answers import known_answers
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.evaluation import scoring
from sottovoce.losses.transducer import transducer_loss
from sottovoce.metrics import error_rates
from sottovoce.models.ctc_head import CTCHead
from sottovoce.models.transducer import TransducerHead
from sottovoce.training import guard, loop, validation
from sottovoce.training.loop import RunLoop
from tests.diagnosis.untrained_runs import untrained_gru, untrained_ssm
from tests.losses.slow_transducer import by_recursion
from tests.training.spoilt import exact_loss, spoil_loss

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def untrained(tiny_t15: Path) -> UntrainedRun:
    return untrained_gru(tiny_t15)


@pytest.fixture(scope="module")
def with_transducer(tiny_t15: Path) -> UntrainedRun:
    return untrained_ssm(tiny_t15)


def first(findings: Iterable[Finding]) -> str:
    """Code of the first finding; everything that is said must have evidence."""
    found = list(findings)
    assert all(f.evidence.endswith(".") for f in found)
    return found[0].code if found else ""


def everything(untrained: UntrainedRun) -> list[Any]:
    model = untrained.computer.model
    tensors = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    return [
        tensors,
        [p.grad for p in model.parameters()],
        [m.training for m in model.modules()],
        torch.get_rng_state(),
        copy.deepcopy(untrained.computer.progress),
        untrained.computer.guard.state(),
        [p for p in model.parameters() if p.requires_grad],
    ]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_healthy_runs_get_nothing_and_stay_as_they_were(untrained: UntrainedRun, with_transducer: UntrainedRun) -> None:
    for healthy in (untrained, with_transducer):
        before = everything(healthy)
        assert list(known_answers(healthy)) == []
        assert same(before, everything(healthy))


def test_a_percentage_that_is_a_fraction(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    monkeypatch.setattr(error_rates, "percent", lambda value: f"{value:.1f} %")
    assert first(known_answers(untrained)) == "unit_mismatch"


def test_a_rate_that_is_a_percentage(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    value = vars(error_rates.Rate)["value"].fget
    assert value is not None
    monkeypatch.setattr(error_rates.Rate, "value", property(lambda rate: 100 * (value(rate) or 0.0)))
    assert first(known_answers(untrained)) == "unit_mismatch"


def test_validation_that_reports_percent(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    values = validation.Validation.values
    monkeypatch.setattr(
        validation.Validation, "values", lambda self, m: {k: 100 * v for k, v in values(self, m).items()}
    )
    assert first(known_answers(untrained)) == "unit_mismatch"


def test_a_mean_of_rates(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    def mean(a: error_rates.Rate, b: error_rates.Rate) -> error_rates.Rate:
        """Every trial weighs the same, whatever its length."""
        return error_rates.Rate(a.count + 1000 * b.count // b.total, a.total + 1000)

    monkeypatch.setattr(error_rates.Rate, "__add__", mean)
    assert first(known_answers(untrained)) == "metric_aggregation"


def test_validation_that_drops_trials_without_errors(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    """The mean over what is left: three perfect trials and an empty one give 1."""
    score = scoring.score

    def dropping(hypotheses: Any, *args: Any, **options: Any) -> Any:
        return score([(t, h) for t, h in hypotheses if h.symbols != t.labels] or hypotheses, *args, **options)

    monkeypatch.setitem(vars(untrained.loop.validation), "score", dropping)
    assert first(known_answers(untrained)) == "metric_aggregation"


def test_symbols_compared_place_by_place(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    def positional(reference: Any, hypothesis: Any) -> tuple[int, int, int, int]:
        wrong = sum(a != b for a, b in zip(reference, hypothesis, strict=False))
        surplus = len(hypothesis) - len(reference)
        return wrong, max(-surplus, 0), max(surplus, 0), len(reference)

    monkeypatch.setattr(error_rates, "error_counts", positional)
    assert first(known_answers(untrained)) == "metric_is_positional"


def blanks_first(best_S: torch.Tensor, blank: int = 0) -> list[Span]:
    kept = [Span(symbol, frame, frame + 1) for frame, symbol in enumerate(best_S.tolist()) if symbol != blank]
    return [span for i, span in enumerate(kept) if not i or span.symbol != kept[i - 1].symbol]


def test_blanks_dropped_before_repeats_are_merged(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    monkeypatch.setattr(greedy, "greedy_spans", blanks_first)
    assert first(known_answers(untrained)) == "greedy_order"


def test_a_decoder_that_is_off_by_one(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    exact = greedy.greedy_spans
    monkeypatch.setattr(greedy, "greedy_spans", lambda *a: [replace(s, symbol=s.symbol - 1) for s in exact(*a)])
    found = list(known_answers(untrained))
    assert found[0].code == "tokenizer_offset"
    assert "an offset of -1" in found[0].evidence


def test_a_decoder_whose_blank_is_the_last_symbol(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    exact = greedy.greedy_spans
    monkeypatch.setattr(greedy, "greedy_spans", lambda best_S, blank: exact(best_S, 40))
    assert first(known_answers(untrained)) == "tokenizer_offset"


def test_a_loss_whose_blank_is_the_last_symbol(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    loss = exact_loss("ctc_loss")
    spoil_loss(monkeypatch, "ctc_loss", lambda x, *rest: loss(x.roll(1, -1), *rest[:-1], 0))
    assert first(known_answers(untrained)) == "tokenizer_offset"


def test_a_table_that_decodes_off_by_one(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    decode = SymbolTable.decode
    monkeypatch.setattr(SymbolTable, "decode", lambda self, ids: decode(self, [(i + 1) % len(self) for i in ids]))
    assert first(known_answers(untrained)) == "tokenizer_offset"


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_that_are_off_by_one(tiny_t15: Path, split: str) -> None:
    untrained = untrained_gru(tiny_t15)
    trial_set = untrained.prepared.trial_set
    trial_set.trials = tuple(
        replace(t, labels=tuple(s % 40 + 1 for s in t.labels)) if t.split == split and t.labels else t
        for t in trial_set.trials
    )
    assert first(known_answers(untrained)) == "tokenizer_offset"


def test_a_head_of_another_size(tiny_t15: Path) -> None:
    untrained = untrained_gru(tiny_t15)
    untrained.computer.model.head = CTCHead(16, 42)
    assert first(known_answers(untrained)) == "tokenizer_offset"


def test_a_selection_metric_that_the_data_do_not_give(tiny_t15: Path) -> None:
    untrained = untrained_gru(tiny_t15, "training.selection_metric=wer")
    assert list(known_answers(untrained)) == []
    trial_set = untrained.prepared.trial_set
    last = untrained.prepared.val_indices[-1]
    trial_set.trials = tuple(replace(t, text=None) if i == last else t for i, t in enumerate(trial_set.trials))
    (finding,) = known_answers(untrained)
    assert (finding.code, finding.severity) == ("metric_missing", "error")
    assert finding.fix == "training.selection_metric=per"


def test_a_renamed_metric(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    values = validation.Validation.values
    monkeypatch.setattr(
        validation.Validation,
        "values",
        lambda self, m: {k.replace("val/", "val_") if k == "val/per" else k: v for k, v in values(self, m).items()},
    )
    assert first(known_answers(untrained)) == "metric_missing"


def test_no_validation_trials(tiny_t15: Path) -> None:
    untrained = untrained_gru(tiny_t15)
    object.__setattr__(untrained.loop.validation, "indices", [])
    (finding,) = known_answers(untrained)
    assert (finding.code, finding.severity) == ("metric_missing", "warning")


def test_references_made_from_labels(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    score_trial = scoring._score_trial

    def proxy(trial: Trial, hypothesis: Any, table: SymbolTable) -> Any:
        spelled = " ".join("".join(table.decode(word)) for word in table.words(trial.labels or ()))
        return score_trial(replace(trial, text=spelled), hypothesis, table)

    monkeypatch.setattr(scoring, "_score_trial", proxy)
    assert first(known_answers(untrained)) == "reference_proxy"


def test_merged_phoneme_classes(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    count = error_rates.ErrorCounts.of

    def merged(cls: type, reference: Any, hypothesis: Any) -> Any:
        same_vowel = {2: 1, 3: 1}
        return count(*([same_vowel.get(s, s) for s in x] for x in (reference, hypothesis)))

    monkeypatch.setattr(error_rates.ErrorCounts, "of", classmethod(merged))
    finding = next(iter(known_answers(untrained)))
    assert finding.code == "reference_proxy"
    assert "AA as AE" in finding.evidence


def test_selection_on_test_trials(tiny_t15: Path) -> None:
    untrained = untrained_gru(tiny_t15)
    trial_set, chosen = untrained.prepared.trial_set, set(untrained.prepared.val_indices)
    trial_set.trials = tuple(replace(t, split="test") if i in chosen else t for i, t in enumerate(trial_set.trials))
    assert [f.code for f in known_answers(untrained)] == ["selection_on_test"]


def test_selection_on_training_trials(tiny_t15: Path) -> None:
    untrained = untrained_gru(tiny_t15)
    object.__setattr__(untrained.loop.validation, "indices", untrained.prepared.train_indices[:3])
    assert [f.code for f in known_answers(untrained)][:1] == ["selection_on_test"]


def test_a_training_trial_copied_into_validation(tiny_t15: Path) -> None:
    untrained = untrained_gru(tiny_t15)
    trial_set = untrained.prepared.trial_set
    original, copied = untrained.prepared.train_indices[0], untrained.prepared.val_indices[0]
    trials = list(trial_set.trials)
    trials[copied] = replace(trials[original], split="val", trial_id="copy")
    trial_set.trials = tuple(trials)
    trial_set._cache = {copied: trial_set.signal(original)}
    assert [f.code for f in known_answers(untrained)] == ["split_leak"]


def advancing_on_blank(encoder_BSH: Any, lengths_B: Any, head: Any, blank: int = 0, cap: int = 5) -> list[list[int]]:
    said: list[list[int]] = []
    for frames_SH, length in zip(encoder_BSH, lengths_B.tolist(), strict=True):
        state, output = head.advance(head.start(1), torch.tensor([blank]))
        said.append([])
        for frame_H in frames_SH[:length]:
            symbol = int(head.joint(frame_H + output[0]).argmax())
            said[-1] += [symbol] if symbol != blank else []
            state, output = head.advance(state, torch.tensor([symbol]))
    return said


def test_a_search_that_advances_on_blank(with_transducer: UntrainedRun, monkeypatch: Patch) -> None:
    monkeypatch.setattr(transducer_decoder, "greedy_transducer", advancing_on_blank)
    assert first(known_answers(with_transducer)) == "predictor_advances_on_blank"


def test_a_loss_whose_predictor_reads_blanks(with_transducer: UntrainedRun, monkeypatch: Patch) -> None:
    predict = TransducerHead.predict

    def reading_blanks(self: TransducerHead, targets_BU: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        between = torch.stack([torch.full_like(targets_BU, self.blank), targets_BU], -1).flatten(1)
        return predict(self, between, 2 * lengths_B)[:, ::2]

    monkeypatch.setattr(TransducerHead, "predict", reading_blanks)
    assert first(known_answers(with_transducer)) == "predictor_advances_on_blank"


def through(cast: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A CTC loss whose log-softmax is computed by `cast`."""

    def loss(logits_BSV: torch.Tensor, targets: Any, lengths: Any, target_lengths: Any, blank: int = 0) -> torch.Tensor:
        log_probs = cast(logits_BSV).float().transpose(0, 1)
        return nn.functional.ctc_loss(log_probs, targets, lengths, target_lengths, blank, reduction="none")

    return loss


def test_a_softmax_in_bfloat16(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    spoil_loss(monkeypatch, "ctc_loss", through(lambda x: x.bfloat16().log_softmax(-1)))
    assert first(known_answers(untrained)) == "low_precision_loss"


def test_a_softmax_that_keeps_the_precision_of_its_logits(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    spoil_loss(monkeypatch, "ctc_loss", through(lambda x: x.log_softmax(-1)))
    assert first(known_answers(untrained)) == "low_precision_loss"


def test_probabilities_that_float16_rounds_to_zero(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    spoil_loss(monkeypatch, "ctc_loss", through(lambda x: x.softmax(-1).log()))
    assert first(known_answers(untrained)) == "fp16_underflow"


def test_a_lattice_that_drifts(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    loss = exact_loss("ctc_loss")
    spoil_loss(monkeypatch, "ctc_loss", lambda x, *rest: loss(x, *rest) * (1 + 3e-5))
    assert first(known_answers(untrained)) == "lattice_drift"


def test_a_transducer_lattice_in_bfloat16(with_transducer: UntrainedRun, monkeypatch: Patch) -> None:
    loss = exact_loss("fused_transducer_loss")
    spoil_loss(monkeypatch, "fused_transducer_loss", lambda *inputs: loss(*inputs).bfloat16().float() * 1.001)
    assert first(known_answers(with_transducer)) == "lattice_drift"


def test_a_clip_norm_over_everything(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    inspect = guard.GradientGuard.inspect

    def over_everything(self: Any, parameters: Any, losses: Any, *rest: Any, model: Any = None, **named: Any) -> Any:
        every = parameters if model is None else dict(model.named_parameters())
        return inspect(self, every, losses, *rest[:3], **named)

    monkeypatch.setattr(guard.GradientGuard, "inspect", over_everything)
    assert first(known_answers(untrained)) == "unowned_gradients"


def test_gradients_that_nobody_zeroes(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    monkeypatch.setattr(guard, "unowned", lambda parameters, model, others: {})
    assert first(known_answers(untrained)) == "unowned_gradients"


def test_a_clip_of_the_first_group_only(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    clip = nn.utils.clip_grads_with_norm_
    monkeypatch.setattr(nn.utils, "clip_grads_with_norm_", lambda p, limit, norm: clip(p[:1], limit, norm))
    assert first(known_answers(untrained)) == "clip_before_unscale"


@pytest.mark.parametrize("field", ["progress", "guard", "window", "balance", "use_flow_bridge", "watch", "modes"])
def test_a_checkpoint_without_a_field(untrained: UntrainedRun, monkeypatch: Patch, field: str) -> None:
    def leaving_out(folder: Any, step: int, parts: Any, state: dict[str, Any]) -> None:
        write_checkpoint(folder, step, parts, {name: value for name, value in state.items() if name != field})

    monkeypatch.setattr(loop, "write_checkpoint", leaving_out)
    assert first(known_answers(untrained)) == "incomplete_resume"


def test_moments_that_are_not_saved(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    monkeypatch.setattr(loop, "optimizer_tensors", lambda *_: {})
    assert first(known_answers(untrained)) == "incomplete_resume"


def test_progress_that_is_not_restored(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    restore = RunLoop.restore

    def forgetful(self: RunLoop) -> None:
        before = self.computer.progress
        restore(self)
        self.computer.progress = before

    monkeypatch.setattr(RunLoop, "restore", forgetful)
    assert first(known_answers(untrained)) == "incomplete_resume"


def test_a_sampler_with_a_memory(untrained: UntrainedRun, monkeypatch: Patch) -> None:
    step, calls = BatchPlan.step, []

    def remembering(self: BatchPlan, number: int) -> Any:
        calls.append(number)
        return step(self, len(calls) - 1)

    monkeypatch.setattr(BatchPlan, "step", remembering)
    assert first(known_answers(untrained)) == "incomplete_resume"


def test_exact_losses_are_those_of_others() -> None:
    torch.manual_seed(0)
    logits_SV = torch.randn(9, 5, dtype=torch.float64)
    expected = nn.functional.ctc_loss(
        logits_SV.log_softmax(-1),
        torch.tensor([2, 2, 1]),
        torch.tensor([9]),
        torch.tensor([3]),
        blank=4,
        reduction="sum",
    )
    assert ctc_nats(log_probabilities(logits_SV), [2, 2, 1], 4) == pytest.approx(float(expected), rel=1e-12)
    logits_SWV = torch.randn(6, 4, 5, dtype=torch.float64)
    exact = transducer_nats(log_probabilities(logits_SWV), [2, 2, 1], 0)
    assert exact == pytest.approx(float(by_recursion(logits_SWV, [2, 2, 1], 0)), rel=1e-12)
    lengths = torch.tensor([6]), torch.tensor([3])
    assert exact == pytest.approx(float(transducer_loss(logits_SWV[None], torch.tensor([[2, 2, 1]]), *lengths)))
