"""The state-space encoder: size, initial values, padding, direction, streaming, modulation, precision."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from sottovoce.core.errors import ConfigurationError
from sottovoce.models.encoder import Modulation
from sottovoce.models.ssm import BidirectionalLayer, CausalLayer, SSMEncoder
from sottovoce.models.ssm_config import SSMConfig
from sottovoce.models.ssm_cuda import mamba_ssm_scan
from sottovoce.models.ssm_mamba2 import ssd
from sottovoce.models.ssm_parts import NEVER_DECAYED, Scan
from tests.models.padding import assert_padding_changes_nothing

BOTH = SSMConfig(layers=3, width=16, state_size=4, head_size=8, chunk_size=8, dropout=0.0)
CAUSAL = replace(BOTH, bidirectional=False)


def encoder_of(config: SSMConfig, input_size: int = 16, kind: str = "mamba2") -> SSMEncoder:
    torch.manual_seed(0)
    config = config if kind == "mamba2" else replace(config, kind=kind, head_size=SSMConfig.head_size)
    return SSMEncoder(config, input_size)


def size(config: SSMConfig, input_size: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in SSMEncoder(config, input_size).parameters())


def test_size_with_mamba1_is_the_published_one() -> None:
    # A block: in_proj, conv, x_proj, Δ, A_log, D, out_proj, LayerNorm; a layer: two blocks, two linear maps; LayerNorm.
    block = 262_144 + 2_560 + 73_728 + 8_704 + 32_768 + 512 + 131_072 + 512
    expected = 8 * (2 * block + 2 * 262_656) + 1_024
    assert size(SSMConfig(kind="mamba1"), 512) == expected == 12_395_520


def test_size_with_mamba2() -> None:
    # in_proj 256·(2·512 + 2·64 + 8), conv (512 + 128)·5, Δ bias, A_log and D 8 each, norm 512, out_proj, LayerNorm.
    block = 256 * 1_160 + 3_200 + 24 + 512 + 131_072 + 512
    expected = 8 * (2 * block + 2 * 262_656) + 1_024
    assert size(SSMConfig(), 512) == expected == 11_120_000
    assert size(SSMConfig(), 40) == expected + 40 * 512 + 512


@pytest.mark.parametrize("kind", ["mamba2", "mamba1"])
def test_the_whole_encoder_starts_with_the_step_sizes_it_should(kind: str) -> None:
    torch.manual_seed(0)
    encoder = SSMEncoder(SSMConfig(kind=kind, layers=3, width=128), 32)
    values = dict(encoder.named_parameters())
    undecayed = [name for name in values if name.split(".")[-1] in NEVER_DECAYED]
    assert len(undecayed) == 3 * 2 * 3
    for name in undecayed:
        value = values[name].detach()
        assert value.dtype == torch.float32
        if name.endswith("dt_bias"):
            dt = functional.softplus(value)
            assert dt.min().item() >= 0.001 - 1e-6
            assert dt.max().item() <= 0.1 + 1e-6
        elif name.endswith("A_log") and kind == "mamba1":
            torch.testing.assert_close(value.exp(), torch.arange(1.0, 65).repeat(128, 1))
        elif name.endswith("A_log"):
            assert value.exp().min().item() >= 1
            assert value.exp().max().item() <= 16
        else:
            assert name.endswith("D")
            assert torch.equal(value, torch.ones_like(value))


@pytest.mark.parametrize("kind", ["mamba2", "mamba1"])
def test_setting_every_linear_layers_bias_leaves_the_step_sizes_alone(kind: str) -> None:
    encoder = encoder_of(CAUSAL, kind=kind)
    before = {name: p.clone() for name, p in encoder.named_parameters() if name.endswith("dt_bias")}

    def zero(module: nn.Module) -> None:
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    encoder.apply(zero)
    assert len(before) == 3
    assert all(torch.equal(encoder.get_parameter(name), value) for name, value in before.items())


@pytest.mark.parametrize("kind", ["mamba2", "mamba1"])
@pytest.mark.parametrize("config", [BOTH, CAUSAL, replace(BOTH, residual="block")])
def test_a_trial_alone_equals_the_trial_padded(config: SSMConfig, kind: str) -> None:
    encoder = encoder_of(config, 6, kind).eval()
    assert_padding_changes_nothing(encoder)


def test_gradients_are_those_of_the_trials_alone() -> None:
    encoder = encoder_of(BOTH, 6).double()
    x, lengths, weights = torch.randn(2, 30, 6).double(), torch.tensor([30, 11]), torch.randn(2, 30, 16).double()
    parameters = list(encoder.parameters())
    together = torch.autograd.grad((encoder(x, lengths)[0] * weights).sum(), parameters)
    alone = [
        torch.autograd.grad((encoder(x[i : i + 1, :n], lengths[i : i + 1])[0] * weights[i, :n]).sum(), parameters)
        for i, n in enumerate(lengths.tolist())
    ]
    for whole, one, other in zip(together, *alone, strict=True):
        torch.testing.assert_close(whole, one + other, atol=1e-10, rtol=1e-8)
        assert whole.abs().max() > 0


@pytest.mark.parametrize("kind", ["mamba2", "mamba1"])
def test_a_causal_encoder_never_looks_ahead_and_the_other_does(kind: str) -> None:
    x, lengths = torch.randn(1, 20, 16).double(), torch.tensor([20])
    changed = x.clone()
    changed[:, 12] = 0
    for config, looks_ahead in ((CAUSAL, False), (BOTH, True)):
        encoder = encoder_of(config, kind=kind).eval().double()
        difference = (encoder(x, lengths)[0] - encoder(changed, lengths)[0]).abs().amax((0, 2))
        assert (difference[:12].max().item() > 1e-9) is looks_ahead
        assert difference[12:].min().item() > 0


@pytest.mark.parametrize("kind", ["mamba2", "mamba1"])
@pytest.mark.parametrize("pieces", [(1,) * 21, (5, 1, 2, 13), (21,), (2, 19)])
def test_carrying_the_state_equals_the_whole(kind: str, pieces: tuple[int, ...]) -> None:
    encoder = encoder_of(CAUSAL, 6, kind).eval().double()
    x, modulation = torch.randn(2, 21, 6).double(), _modulation(2, 16, 0.3)
    for acting in (None, modulation):
        whole, _ = encoder(x, torch.tensor([21, 21]), None if acting is None else lambda *_: modulation)
        state, found = encoder.start(2), []
        for piece in x.split(pieces, 1):
            state, y = encoder.step(state, piece, acting)
            found.append(y)
        torch.testing.assert_close(torch.cat(found, 1), whole, atol=1e-10, rtol=1e-8)


def test_both_directions_cannot_stream() -> None:
    encoder = encoder_of(BOTH)
    for call in (lambda: encoder.start(1), lambda: encoder.step((), torch.zeros(1, 1, 16))):
        with pytest.raises(ConfigurationError, match="bidirectional=true"):
            call()


def _modulation(batch: int, width: int, size: float) -> Modulation:
    torch.manual_seed(5)
    return Modulation(size * torch.randn(batch).double(), size * torch.randn(batch, width).double())


@pytest.mark.parametrize("kind", ["mamba2", "mamba1"])
@pytest.mark.parametrize("config", [BOTH, CAUSAL])
def test_a_conditioner_sees_the_hidden_state_and_zeros_change_nothing(config: SSMConfig, kind: str) -> None:
    encoder = encoder_of(replace(config, condition_after=2), kind=kind).eval()
    x, lengths = torch.randn(2, 20, 16), torch.tensor([20, 9])
    calls = []

    def conditioner(hidden_BSE: torch.Tensor, lengths_B: torch.Tensor) -> Modulation:
        calls.append((hidden_BSE, lengths_B))
        return Modulation(torch.zeros(2), torch.zeros(2, 16))

    plain, _ = encoder(x, lengths)
    assert torch.equal(encoder(x, lengths, conditioner)[0], plain)
    ((hidden, given),) = calls
    assert hidden.shape == (2, 20, 16)
    assert not hidden[1, 9:].any()
    assert given is lengths

    only_second = Modulation(torch.tensor([0.0, 0.5]), torch.zeros(2, 16))
    changed = (encoder(x, lengths, lambda *_: only_second)[0] - plain).abs().amax((1, 2))
    assert changed[0].item() == 0
    assert changed[1].item() > 1e-5


def test_the_time_scale_multiplies_the_step_size_and_the_gain_the_block() -> None:
    encoder = encoder_of(replace(CAUSAL, layers=2)).eval().double()
    x, modulation = torch.randn(3, 15, 16).double(), _modulation(3, 16, 0.5)
    first, layer = encoder.layers
    assert isinstance(first, CausalLayer)
    assert isinstance(layer, CausalLayer)
    hidden, _ = first.step(x, None, None)
    for b in range(3):
        ssm, u = layer.block.ssm, layer.block.norm(hidden[b : b + 1])
        captured: list[torch.Tensor] = []

        def scan(*inputs: torch.Tensor, captured: list[torch.Tensor] = captured) -> Any:
            x, dt, a, b, c, initial = inputs
            captured.append(dt)
            return ssd(x, dt, a, b, c, initial)

        ssm.scan = scan
        plain, _ = ssm(u, ssm.start(1), None)
        faster, _ = ssm(u, ssm.start(1), modulation.log_time_scale_B[b : b + 1].exp())
        torch.testing.assert_close(captured[1], captured[0] * modulation.log_time_scale_B[b].exp())
        assert not torch.allclose(plain, faster)
        expected = encoder.output_norm(hidden[b : b + 1] + faster * (1 + modulation.gain_BE[b]))
        found, _ = encoder(x, torch.tensor([15, 15, 15]), lambda *_: modulation)
        torch.testing.assert_close(found[b : b + 1], expected)


def test_a_bidirectional_layer_is_its_formula() -> None:
    encoder = encoder_of(replace(BOTH, layers=1)).eval().double()
    (layer,) = encoder.layers
    assert isinstance(layer, BidirectionalLayer)
    x = torch.randn(1, 12, 16).double()
    h = x @ layer.split.weight.T + layer.split.bias
    ahead, _ = layer.ahead(h[..., :8], None)
    back = layer.back(h[..., 8:].flip(1), None)[0].flip(1)
    length = torch.tensor([12])
    merged = torch.cat([ahead, back], -1) @ layer.merge.weight.T + layer.merge.bias
    torch.testing.assert_close(encoder(x, length)[0], encoder.output_norm(x + merged))
    layer.skip_layer = False
    merged = (torch.cat([ahead, back], -1) + h) @ layer.merge.weight.T + layer.merge.bias
    torch.testing.assert_close(encoder(x, length)[0], encoder.output_norm(merged))


def test_with_the_skip_around_the_layer_depth_keeps_the_input() -> None:
    """Without it, sixteen linear maps in a row mix a trial's frames' directions until little of the input is left."""
    torch.manual_seed(0)
    x, length = torch.randn(1, 30, 32), torch.tensor([30])
    kept = {}
    for residual in ("layer", "block"):
        encoder = SSMEncoder(SSMConfig(width=32, head_size=8, residual=residual), 32).eval()
        kept[residual] = functional.cosine_similarity(encoder(x, length)[0], x, dim=-1).mean().item()
    assert kept["layer"] > 0.5
    assert abs(kept["block"]) < 0.2


@pytest.mark.parametrize("kind", ["mamba2", "mamba1"])
@pytest.mark.parametrize("config", [BOTH, CAUSAL])
def test_float32_is_float64_to_its_precision(config: SSMConfig, kind: str) -> None:
    encoder = encoder_of(config, kind=kind)
    x, lengths = torch.randn(2, 60, 16), torch.tensor([60, 37])
    weights = torch.randn(2, 60, 16)
    found = torch.autograd.grad((encoder(x, lengths)[0] * weights).sum(), list(encoder.parameters()))
    y = encoder(x, lengths)[0].detach()
    encoder.double()
    expected, _ = encoder(x.double(), lengths)
    torch.testing.assert_close(y.double(), expected.detach(), atol=1e-5, rtol=1e-5)
    exact = torch.autograd.grad((expected * weights.double()).sum(), list(encoder.parameters()))
    for a, b in zip(found, exact, strict=True):
        assert (a - b).abs().max().item() <= 1e-5 * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("kind", ["mamba2", "mamba1"])
def test_the_recurrence_stays_in_float32_under_autocast(kind: str) -> None:
    encoder = encoder_of(CAUSAL, kind=kind)
    dtypes: set[torch.dtype] = set()

    def noting(scan: Scan, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dtypes.update(x.dtype for x in inputs)
        return scan(*inputs)

    for layer in encoder.layers:
        assert isinstance(layer, CausalLayer)
        layer.block.ssm.scan = partial(noting, layer.block.ssm.scan)
    x, lengths = torch.randn(2, 20, 16), torch.tensor([20, 20])
    exact, _ = encoder(x, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = encoder(x, lengths)
    assert dtypes == {torch.float32}
    assert (y - exact).abs().max().item() < 0.1
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in encoder.parameters())


def test_lengths_beyond_the_tensor_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"lengths \[4, 9\] exceed the 5 frames"):
        encoder_of(BOTH)(torch.zeros(2, 5, 16), torch.tensor([4, 9]))


def test_a_conditioner_needs_a_layer_before_and_one_after() -> None:
    with pytest.raises(ConfigurationError, match="layers=1"):
        encoder_of(replace(BOTH, layers=1))(
            torch.zeros(1, 5, 16), torch.tensor([5]), lambda *_: Modulation(torch.zeros(1), torch.zeros(1, 16))
        )
    assert [SSMConfig(layers=n).layers_before_conditioner for n in (2, 3, 8)] == [1, 1, 6]


def test_a_missing_back_end_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="mamba_ssm is not installed"):
        SSMEncoder(replace(BOTH, backend="mamba_ssm"), 16)


def test_the_cuda_back_end_refuses_a_cpu() -> None:
    with pytest.raises(ConfigurationError, match="CUDA devices only, not on cpu"):
        mamba_ssm_scan(*(torch.zeros(1),) * 6, chunk_frames=64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_cuda_kernels_equal_ours() -> None:
    pytest.importorskip("mamba_ssm")
    config = SSMConfig(layers=2, width=256, dropout=0.0)
    torch.manual_seed(0)
    ours = SSMEncoder(config, 256).cuda()
    theirs = SSMEncoder(replace(config, backend="mamba_ssm"), 256).cuda()
    theirs.load_state_dict(ours.state_dict())
    x, lengths = torch.randn(2, 100, 256, device="cuda"), torch.tensor([100, 61], device="cuda")
    found, expected = theirs(x, lengths)[0], ours(x, lengths)[0]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "setting",
    [
        {"kind": "s4"},
        {"residual": "none"},
        {"backend": "cuda"},
        {"layers": 0},
        {"width": 0},
        {"width": 31},
        {"state_size": 0},
        {"conv_kernel": 0},
        {"chunk_size": 0},
        {"head_size": 48},
        {"groups": 3},
        {"dropout": 1.0},
        {"dt_min": 0.0},
        {"dt_min": 0.2},
        {"dt_floor": 0.2},
        {"condition_after": 0},
        {"condition_after": 8},
        {"bidirectional": False, "residual": "block"},
        {"kind": "mamba1", "head_size": 32},
        {"kind": "mamba1", "groups": 2},
        {"kind": "mamba1", "backend": "mamba_ssm"},
    ],
)
def test_senseless_settings_are_rejected(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.ssm"):
        SSMConfig(**setting)
