"""Each question to the layers, put to a model with that fault; the shipped recipes have none."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.preflight.layers import check_layers, check_precision
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.features import pipeline as feature_pipeline
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.features.smoothing import smooth
from sottovoce.models import ssm, stem, transformer
from sottovoce.models.gru import GRUEncoder
from sottovoce.models.patching import PatchConfig, patches
from sottovoce.models.ssm_mamba2 import Mamba2
from sottovoce.models.ssm_parts import ReverseByLength
from tests.diagnosis.test_known_answers import everything, same
from tests.diagnosis.untrained_runs import untrained_gru, untrained_ssm

Patch = pytest.MonkeyPatch
MAMBA1 = ("model.ssm={layers: 2, width: 16, state_size: 4, kind: mamba1, head_size: 64}",)


def codes(findings: Iterable[Finding]) -> list[str]:
    found = list(findings)
    assert all(f.evidence.endswith(".") for f in found)
    return [f.code for f in found]


def blocks(untrained: UntrainedRun) -> list[Mamba2]:
    return [part for part in untrained.computer.model.modules() if isinstance(part, Mamba2)]


@pytest.mark.parametrize(
    "more",
    [
        (),
        MAMBA1,
        ("model.stem.normalisation=batch", "training.precision=bfloat16"),
        ("model.stem=null", "model.ssm.bidirectional=false", "model.ssm.residual=layer"),
        ("model.ssm=null", "model.conv={width: 8, num_blocks: 1, stride: 1}"),
        ("model.ssm=null", "model.transformer={width: 8, layers: 2, heads: 2}"),
        (
            "model.stem=null",
            "model.ssm=null",
            "model.transformer={width: 8, layers: 2, heads: 2, bidirectional: false}",
        ),
    ],
)
def test_healthy_layers_get_nothing_and_stay_as_they_were(tiny_t15: Path, more: tuple[str, ...]) -> None:
    untrained = untrained_ssm(tiny_t15, *more)
    before = everything(untrained)
    assert codes(check_layers(untrained)) == []
    assert same(before, everything(untrained))


def test_a_healthy_gru(tiny_t15: Path) -> None:
    assert codes(check_layers(untrained_gru(tiny_t15))) == []


def test_step_sizes_that_an_initialiser_has_set_to_zero(tiny_t15: Path) -> None:
    untrained = untrained_ssm(tiny_t15)
    for block in blocks(untrained):
        nn.init.zeros_(block.dt_bias)
    (finding,) = check_layers(untrained)
    assert finding.code == "ssm_step_size_lost"
    assert "100% are 0.693" in finding.evidence


def test_memory_far_shorter_than_the_trials(tiny_t15: Path) -> None:
    untrained = untrained_ssm(tiny_t15, "model.ssm.dt_min=1.5", "model.ssm.dt_max=3")
    for block in blocks(untrained):
        nn.init.constant_(block.A_log, 2.7)
    assert codes(check_layers(untrained)) == ["ssm_memory_short"]


def dividing_scan(x: Any, dt: Any, a_H: Any, b: Any, c: Any, initial: Any, chunk_frames: int = 64) -> Any:
    """e^S · Σ b·x·e^−S, which overflows where S falls below −88."""
    total = (dt * a_H).cumsum(1)[..., None, None]
    b, c = (m.repeat_interleave(len(a_H) // m.shape[2], 2) for m in (b, c))
    added = (dt[..., None] * x)[..., None] * b[:, :, :, None]
    states = total.exp() * ((added * (-total).exp()).cumsum(1) + initial[:, None])
    return (states * c[:, :, :, None]).sum(-1), states[:, -1]


def test_a_scan_that_divides_by_its_decays(tiny_t15: Path) -> None:
    untrained = untrained_ssm(tiny_t15)
    for block in blocks(untrained):
        block.scan = partial(dividing_scan, chunk_frames=64)
    finding = next(iter(check_layers(untrained)))
    assert finding.code == "scan_overflow"
    assert "is not finite from frame" in finding.evidence


def test_decays_in_bfloat16(tiny_t15: Path) -> None:
    untrained = untrained_ssm(tiny_t15)
    blocks(untrained)[0].A_log.data = blocks(untrained)[0].A_log.data.bfloat16()
    assert codes(check_precision(untrained))[0] == "ssm_low_precision"


def test_a_scan_that_is_given_bfloat16_by_the_autocast(tiny_t15: Path, monkeypatch: Patch) -> None:
    """Nothing switches autocast off, so that the products before the scan come out in bfloat16."""
    softplus = nn.functional.softplus

    def of_a_product(x: torch.Tensor) -> torch.Tensor:
        return softplus(x @ torch.eye(x.shape[-1]))

    functional = SimpleNamespace(softplus=of_a_product, pad=nn.functional.pad, silu=nn.functional.silu)
    monkeypatch.setattr("sottovoce.models.ssm_mamba2.full_precision", lambda x: nullcontext())
    monkeypatch.setattr("sottovoce.models.ssm_mamba2.functional", functional)
    assert codes(check_precision(untrained_ssm(tiny_t15, "training.precision=bfloat16")))[0] == "ssm_low_precision"


def test_parameters_in_bfloat16(tiny_t15: Path) -> None:
    untrained = untrained_gru(tiny_t15)
    untrained.computer.model.bfloat16()
    assert codes(check_precision(untrained)) == ["bf16_parameters"]


def test_parameters_in_float16(tiny_t15: Path) -> None:
    untrained = untrained_gru(tiny_t15)
    untrained.computer.model.half()
    assert codes(check_precision(untrained)) == ["fp16_underflow"]


class MeanOverPadding(nn.Module):
    """A squeeze-excite mean over the whole tensor."""

    def forward(self, x_BTC: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        return x_BTC * torch.sigmoid(x_BTC.mean(1, keepdim=True))


def test_a_gate_that_averages_over_padding(tiny_t15: Path) -> None:
    untrained = untrained_ssm(tiny_t15)
    assert untrained.computer.model.stem is not None
    untrained.computer.model.stem.gate = MeanOverPadding()  # type: ignore[assignment]
    found = list(check_layers(untrained))
    assert found[-1].code == "padding_dependence"
    assert "evaluation" in found[-1].evidence
    assert "stem.gate (MeanOverPadding)" in found[-1].evidence


def test_a_trial_norm_over_padding(tiny_t15: Path, monkeypatch: Patch) -> None:
    plain = stem.standardised
    monkeypatch.setattr(stem, "standardised", lambda x, mask: plain(x, torch.ones_like(mask)) * mask)
    (finding,) = check_layers(untrained_ssm(tiny_t15, "model.stem.normalisation=trial"))
    assert finding.code == "padding_dependence"
    assert "stem" in finding.evidence


def test_a_batch_norm_over_padding_in_training_only(tiny_t15: Path, monkeypatch: Patch) -> None:
    forward = stem.MaskedBatchNorm.forward
    monkeypatch.setattr(stem.MaskedBatchNorm, "forward", lambda self, x, mask: forward(self, x, torch.ones_like(mask)))
    (finding,) = check_layers(untrained_ssm(tiny_t15, "model.stem.normalisation=batch"))
    assert finding.code == "padding_dependence"
    assert "training" in finding.evidence
    assert "stem.batch_norm (MaskedBatchNorm)" in finding.evidence


def test_features_normalised_over_padding(tiny_t15: Path, monkeypatch: Patch) -> None:
    untrained = untrained_gru(tiny_t15)
    monkeypatch.setattr(
        FeaturePipeline,
        "evaluate",
        lambda self, b: type(b)(**(vars(b) | {"signal": b.signal - b.signal.mean(1, True)})),
    )
    finding = next(f for f in check_layers(untrained) if f.code != "smoothing_shift")
    assert finding.code == "padding_dependence"
    assert "the feature pipeline" in finding.evidence


def test_a_reversal_that_ignores_lengths(tiny_t15: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(ReverseByLength, "__call__", lambda self, x: x.flip(1))
    (finding,) = check_layers(untrained_ssm(tiny_t15))
    assert finding.code == "reversal_reads_padding"
    assert "encoder.layers.0 (BidirectionalLayer)" in finding.evidence


def test_a_bidirectional_gru(tiny_t15: Path, monkeypatch: Patch) -> None:
    untrained = untrained_gru(tiny_t15)
    encoder = untrained.computer.model.encoder
    assert isinstance(encoder, GRUEncoder)
    both = nn.GRU(encoder.gru.input_size, 8, 2, batch_first=True, bidirectional=True)
    both.hidden_size = 16

    def forward(
        self: GRUEncoder, x: torch.Tensor, lengths: torch.Tensor, patch: PatchConfig | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return both_ways(self.gru, x if patch is None else patches(x, patch)), lengths

    monkeypatch.setattr(GRUEncoder, "forward", forward)
    encoder.gru = both
    assert "reversal_reads_padding" in codes(check_layers_of(untrained))


def both_ways(gru: nn.GRU, x: torch.Tensor) -> torch.Tensor:
    gru.hidden_size = 8
    y: torch.Tensor = gru(x)[0]
    gru.hidden_size = 16
    return y


def check_layers_of(untrained: UntrainedRun) -> Iterable[Finding]:
    """Without the comparison with the configuration, which knows no such GRU."""
    from sottovoce.diagnosis.preflight.padding import check_padding

    return check_padding(untrained)


def test_a_smoothing_that_is_half_a_bin_late(tiny_t15: Path, monkeypatch: Patch) -> None:
    def late(signal_BTC: torch.Tensor, taps: tuple[float, ...]) -> torch.Tensor:
        y = smooth(signal_BTC, taps)
        return (y + nn.functional.pad(y, (0, 0, 1, 0))[:, :-1]) / 2

    monkeypatch.setattr(feature_pipeline, "smooth", late)
    finding = next(iter(check_layers(untrained_gru(tiny_t15))))
    assert finding.code == "smoothing_shift"
    assert "+0.500 bins" in finding.evidence


class Fallback(nn.Module):
    """An LSTM in place of a state-space block."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.scan = None

    def start(self, batch_size: int) -> Any:
        return ()

    def forward(self, u: torch.Tensor, state: Any, scale: Any) -> Any:
        return self.lstm(u)[0], ()


def test_an_lstm_in_place_of_a_missing_kernel(tiny_t15: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(ssm, "Mamba2", Fallback)
    finding = next(iter(check_layers(untrained_ssm(tiny_t15))))
    assert finding.code == "backend_replaced"
    assert "Fallback" in finding.evidence


def test_a_layer_of_another_size(tiny_t15: Path) -> None:
    untrained = untrained_ssm(tiny_t15)
    head = untrained.computer.model.transducer
    assert head is not None
    head.embedding = nn.Embedding(41, 7)
    assert codes(check_layers(untrained))[0] == "backend_replaced"


def test_a_transformer_with_other_heads_or_directions(tiny_t15: Path) -> None:
    given = ("model.ssm=null", "model.transformer={width: 8, layers: 2, heads: 2}")
    untrained = untrained_ssm(tiny_t15, *given)
    untrained.computer.model.encoder = transformer.TransformerEncoder(transformer.TransformerConfig(8, 2, heads=4), 16)
    assert codes(check_layers(untrained))[0] == "backend_replaced"
    untrained = untrained_ssm(tiny_t15, *given)
    encoder = untrained.computer.model.encoder
    assert isinstance(encoder, transformer.TransformerEncoder)
    encoder.distance.bidirectional = False
    (finding,) = check_layers(untrained)
    assert finding.code == "backend_replaced"
    assert "both directions" in finding.evidence


def test_attention_that_looks_at_the_padding(tiny_t15: Path, monkeypatch: Patch) -> None:
    untrained = untrained_ssm(tiny_t15, "model.ssm=null", "model.transformer={width: 8, layers: 2, heads: 2}")

    def unmasked(lengths_B: torch.Tensor, num_frames: int) -> torch.Tensor:
        return torch.ones(len(lengths_B), num_frames, dtype=torch.bool)

    monkeypatch.setattr(transformer, "valid_mask", unmasked)
    (finding,) = check_layers(untrained)
    assert finding.code == "padding_dependence"
    assert "encoder" in finding.evidence


def test_whole_trial_features_before_a_causal_encoder(tiny_t15: Path) -> None:
    (finding,) = check_layers(untrained_gru(tiny_t15, "preprocessor.normalisation=trial"))
    assert (finding.code, finding.severity) == ("noncausal_normalisation", "note")
    (finding,) = check_layers(untrained_ssm(tiny_t15, "model.ssm.bidirectional=false"))
    assert (finding.code, finding.severity) == ("noncausal_normalisation", "warning")
    assert "model.stem" in finding.evidence
    causal = ("model.ssm=null", "model.transformer={width: 8, layers: 1, heads: 2, bidirectional: false}")
    (finding,) = check_layers(untrained_ssm(tiny_t15, *causal))
    assert (finding.code, finding.severity) == ("noncausal_normalisation", "warning")
