"""A bad step comes back from its capsule, and its cause is named."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from sottovoce.core.errors import CheckpointError
from sottovoce.core.trial import Batch
from sottovoce.data.collation import StepPart, collate
from sottovoce.diagnosis.capsules.replay import Replayed, replay, summary
from sottovoce.training.composition import compose_config
from sottovoce.training.loop import RunLoop
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.run import start
from sottovoce.training.step import ComputedPart
from tests.diagnosis.bad_runs import (
    BATCH_STATISTICS,
    Injection,
    bad_run,
    first_capsule,
    foreign_code,
    long_labels,
    lost_weights,
    spoilt_signal,
)
from tests.training.small_runs import overrides
from tests.training.spoilt import exact_loss, spoil_loss

pytestmark = pytest.mark.slow

Spoil = Callable[[torch.Tensor], torch.Tensor | None]


def replayed(data: Path, runs: Path, inject: Injection, *more: str) -> Replayed:
    return replay(first_capsule(bad_run(data, runs, inject, *more)))


def nothing(prepared: Prepared, loop: RunLoop) -> None:
    """No injection beside the patched program."""


def test_an_infeasible_target_comes_back_bit_for_bit(tiny_t15: Path, tmp_path: Path) -> None:
    bad: list[str] = []
    found = replayed(tiny_t15, tmp_path, lambda p, r: bad.append(long_labels(p, r)), "augmentation.white_noise_std=0.5")
    assert found.reproduced
    assert found.exact
    assert found.isolation.whole.gradients == found.capsule.verdict.gradients
    (finding,) = found.findings
    assert finding.code == "ctc_infeasible"
    assert finding.step == found.capsule.step
    assert bad[0] in finding.evidence
    assert found.isolation.trials == (bad[0],)
    assert found.isolation.terms == ("ctc",)
    assert found.isolation.by_dtype == {"float32": True, "float64": True}
    assert "comes back, bit for bit" in summary(found)


def test_a_step_of_a_transformer_comes_back_bit_for_bit(tiny_t15: Path, tmp_path: Path) -> None:
    encoder = ("model.gru=null", "model.session_adapter=null", "model.transformer={width: 16, layers: 2, heads: 2}")
    bad: list[str] = []
    found = replayed(tiny_t15, tmp_path, lambda p, r: bad.append(long_labels(p, r)), *encoder)
    assert found.reproduced
    assert found.exact
    assert found.isolation.whole.gradients == found.capsule.verdict.gradients
    assert [f.code for f in found.findings] == ["ctc_infeasible"]
    assert found.isolation.trials == (bad[0],)


def test_padded_labels(tiny_t15: Path, tmp_path: Path) -> None:
    def inject(prepared: Prepared, loop: RunLoop) -> None:
        from dataclasses import replace

        trials = list(prepared.trial_set.trials)
        i = prepared.train_indices[3]
        trials[i] = replace(trials[i], labels=(*(trials[i].labels or ()), *([40] * 200)))
        prepared.trial_set.trials = tuple(trials)

    found = replayed(tiny_t15, tmp_path, inject)
    assert [f.code for f in found.findings] == ["label_padding"]
    assert "labels are all 40" in found.findings[0].evidence


def test_a_signal_that_is_not_finite(tiny_t15: Path, tmp_path: Path) -> None:
    found = replayed(tiny_t15, tmp_path, spoilt_signal)
    assert found.exact
    assert [f.code for f in found.findings] == ["nonfinite_features"]
    assert len(found.isolation.trials) == 1
    assert found.isolation.forward is not None


def test_a_step_with_teachers_comes_back_without_them(tiny_t15: Path, tmp_path: Path) -> None:
    """The capsule holds what they said."""
    teacher = start(prepare(compose_config(overrides(tiny_t15, tmp_path, "teacher"))))
    asked = f"training.distillation.teachers=[{teacher}]"
    capsule = first_capsule(bad_run(tiny_t15, tmp_path, spoilt_signal, asked))
    shutil.rmtree(teacher)
    found = replay(capsule)
    assert found.exact
    assert [f.code for f in found.findings] == ["nonfinite_features"]
    assert found.isolation.terms == ("ctc", "distillation")
    assert len(found.isolation.trials) == 1


@pytest.mark.parametrize("spoil", [lambda kept: None, lambda kept: kept[:, 1:], lambda kept: kept.double()])
def test_lessons_that_do_not_fit_their_batch(tiny_t15: Path, tmp_path: Path, spoil: Spoil) -> None:
    teacher = start(prepare(compose_config(overrides(tiny_t15, tmp_path, "teacher"))))
    asked = f"training.distillation.teachers=[{teacher}]"
    capsule = first_capsule(bad_run(tiny_t15, tmp_path, spoilt_signal, asked))
    (file,) = (capsule / "process-0").glob("batch-*.safetensors")
    tensors = load_file(file)
    changed = {name: spoil(kept) if name == "1.log_q_BSV" else kept for name, kept in tensors.items()}
    save_file({name: kept.contiguous() for name, kept in changed.items() if kept is not None}, file)
    with pytest.raises(CheckpointError, match="log_q_BSV"):
        replay(capsule)


def test_a_number_out_of_scale(tiny_t15: Path, tmp_path: Path) -> None:
    bad: list[str] = []
    found = replayed(tiny_t15, tmp_path, lambda p, r: bad.append(spoilt_signal(p, r, 3e38)))
    (finding,) = found.findings
    assert (finding.code, finding.severity) == ("scale_outlier", "error")
    assert finding.evidence.startswith("All losses are finite, but not the square of the gradient's norm")
    assert f"{bad[0]}: its signal reaches 3e+38 at bin 5, channel 2; an ordinary trial" in finding.evidence
    assert finding.fix.startswith("Look at bin 5, channel 2 of that trial")
    assert found.isolation.trials == (bad[0],)


def drawn_twice(value: float) -> Injection:
    """Every batch holds one trial twice, behind others; with `value` in its signal."""

    def inject(prepared: Prepared, loop: RunLoop) -> str:
        forward, index = loop.computer.add, prepared.train_indices[3]
        trial = spoilt_signal(prepared, loop, value)
        twice = collate(prepared.trial_set, [index, index])

        def with_it(part: StepPart) -> ComputedPart:
            width = max(part.batch.signal.shape[1], twice.signal.shape[1])
            labels = max(part.batch.labels_BU.shape[1], twice.labels_BU.shape[1])

            def joined(name: str, size: int) -> torch.Tensor:
                both = [getattr(batch, name) for batch in (part.batch, twice)]
                padding = [(0, 0) * (x.dim() - 2) + (0, size - x.shape[1]) for x in both]
                return torch.cat([functional.pad(x, pad) for x, pad in zip(both, padding, strict=True)])

            batch = Batch(
                joined("signal", width),
                torch.cat([part.batch.lengths_B, twice.lengths_B]),
                joined("labels_BU", labels),
                torch.cat([part.batch.label_lengths_B, twice.label_lengths_B]),
                torch.cat([part.batch.session_B, twice.session_B]),
                (*part.batch.trial_ids, *twice.trial_ids),
            )
            return forward(StepPart(part.step, part.micro_batch, (*part.positions, 90, 91), batch))

        loop.computer.add = with_it  # type: ignore[method-assign]
        return trial

    return inject


def test_the_trial_that_spoils_its_batch_is_named(tiny_t15: Path, tmp_path: Path) -> None:
    """Its batch mates' losses are NaN too, and come before it."""
    found = replayed(tiny_t15, tmp_path, drawn_twice(3e38), *BATCH_STATISTICS, "training.max_bad_steps=2")
    (guilty,) = found.isolation.trials
    assert next(iter(found.isolation.whole.losses))[1] != guilty
    assert len(found.isolation.whole.bad_losses) > 1
    (finding,) = found.findings
    assert finding.code == "scale_outlier"
    assert finding.evidence.startswith(f"{guilty}: ctc loss nan: its signal reaches 3e+38")
    assert f"only where it is drawn twice, trial {guilty}" in summary(found)


def test_a_symptom_of_a_replay_does_not_send_back_to_the_replay(
    tiny_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = exact_loss("ctc_loss")
    spoil_loss(monkeypatch, "ctc_loss", lambda logits, *rest: right(logits, *rest) * math.nan)
    found = replayed(tiny_t15, tmp_path, nothing, "training.max_bad_steps=2")
    assert [f.code for f in found.findings] == ["nonfinite_loss"]
    assert "replay cannot narrow it down" in found.findings[0].fix
    assert "--replay" not in found.findings[0].fix


def test_lost_weights_acquit_the_batch(tiny_t15: Path, tmp_path: Path) -> None:
    found = replayed(tiny_t15, tmp_path, lost_weights)
    assert [f.code for f in found.findings] == ["poisoned_weights"]
    assert "head.bias" in found.findings[0].evidence
    assert found.isolation.fresh is not None
    assert not found.isolation.fresh.is_bad


def test_half_precision_overflow(tiny_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = exact_loss("ctc_loss")
    spoil_loss(monkeypatch, "ctc_loss", lambda logits, *rest: right((logits * 1e6).half().float(), *rest))
    found = replayed(tiny_t15, tmp_path, nothing, "training.max_bad_steps=2")
    assert [f.code for f in found.findings] == ["fp16_overflow"]
    assert found.isolation.operation is not None
    assert found.isolation.operation.dtype == torch.float16


def test_infinities_in_a_lattice(tiny_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is finite, its gradient is not: padded frames hold only −∞."""
    right = exact_loss("ctc_loss")

    def ragged(logits: torch.Tensor, targets: torch.Tensor, frames: torch.Tensor, *rest: object) -> torch.Tensor:
        valid = torch.arange(logits.shape[1]) < frames[:, None]
        masked = logits + torch.zeros(valid.shape).masked_fill(~valid, -math.inf)[:, :, None]
        total = torch.logaddexp(masked[..., 0], masked[..., 1])
        return right(logits, targets, frames, *rest) + torch.where(valid, total, 0).sum(1) * 1e-3

    spoil_loss(monkeypatch, "ctc_loss", ragged)
    found = replayed(tiny_t15, tmp_path, nothing, "data.use_length_bucketing=false", "training.max_bad_steps=2")
    assert found.capsule.verdict.cause == "nonfinite_gradient"
    assert [f.code for f in found.findings] == ["infinite_padding"]
    assert "out of infinities" in found.findings[0].evidence


def test_what_no_capsule_can_hold_is_said_not_to_come_back(tiny_t15: Path, tmp_path: Path) -> None:
    found = replayed(tiny_t15, tmp_path, foreign_code)
    assert not found.reproduced
    assert found.exact  # the losses are the same; the gradient was changed afterwards
    assert [f.code for f in found.findings] == ["not_reproduced"]


def test_replaying_leaves_the_caller_as_it_was(tiny_t15: Path, tmp_path: Path) -> None:
    run_dir = bad_run(tiny_t15, tmp_path, long_labels)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    replay(first_capsule(run_dir))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
