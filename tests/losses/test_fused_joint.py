"""The fused joint is the plain one, block by block."""

import re

import pytest
import torch
from torch.autograd import gradcheck

from sottovoce.losses import fused_joint, fused_transducer_loss, transducer_loss

TARGETS, FRAMES, LABELS = (
    torch.tensor([[1, 1, 4], [3, -1, 9], [2, 2, 9]]),
    torch.tensor([6, 4, 1]),
    torch.tensor([3, 0, 2]),
)
NAMES = ("encoder", "predictor", "weight", "bias")


def _inputs(dtype: torch.dtype, num_units: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 6, num_units), (3, 4, num_units), (5, num_units), (5,))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def _fused(*inputs: torch.Tensor) -> torch.Tensor:
    encoder, predictor, weight, bias = inputs
    return fused_transducer_loss(encoder, predictor, weight, bias, TARGETS, FRAMES, LABELS)


def _plain(*inputs: torch.Tensor) -> torch.Tensor:
    encoder, predictor, weight, bias = inputs
    logits = torch.tanh(encoder[:, :, None] + predictor[:, None]) @ weight.T + bias
    return transducer_loss(logits, TARGETS, FRAMES, LABELS)


@pytest.mark.parametrize("block", [1, 40, 1 << 19])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_of_the_plain_joint(
    monkeypatch: pytest.MonkeyPatch, block: int, dtype: torch.dtype
) -> None:
    """However the frames are cut into blocks."""
    monkeypatch.setattr(fused_joint, "BLOCK", block)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    fused, plain = _inputs(dtype), _inputs(dtype)
    nats, expected = _fused(*fused), _plain(*plain)
    assert nats.dtype == dtype
    torch.testing.assert_close(nats, expected, rtol=tolerance, atol=0)
    (nats * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, ours, theirs in zip(NAMES, fused, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=tolerance, atol=tolerance, msg=name)
    assert fused[0].grad is not None
    assert fused[0].grad[1, 4:].count_nonzero() == 0


def test_gradcheck() -> None:
    assert gradcheck(_fused, _inputs(torch.float64, num_units=2))


def test_blank_may_be_any_symbol() -> None:
    inputs = _inputs(torch.float64)
    encoder, predictor, weight, bias = inputs
    targets = (TARGETS - 1) % 5
    nats = fused_transducer_loss(
        encoder, predictor, weight.roll(-1, 0), bias.roll(-1, 0), targets, FRAMES, LABELS, blank=4
    )
    torch.testing.assert_close(nats, _fused(*inputs), rtol=1e-12, atol=0)


def test_padding_is_not_read_and_a_bad_utterance_is_alone() -> None:
    inputs = [x.detach() for x in _inputs(torch.float32)]
    expected = _fused(*inputs)
    inputs[0][1, 4:] = inputs[1][1, 1:] = torch.nan
    assert torch.equal(_fused(*inputs), expected)
    inputs[0][2, 0, 0] = torch.nan
    assert _fused(*inputs).isfinite().tolist() == [True, True, False]


def test_half_precision_is_computed_in_float32_under_autocast_too() -> None:
    inputs = [x.detach().bfloat16() for x in _inputs(torch.float32)]
    expected = _fused(*(x.float() for x in inputs))
    inputs = [x.requires_grad_() for x in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nats = _fused(*inputs)
        nats.sum().backward()
    assert torch.equal(nats, expected)
    assert inputs[0].grad is not None
    assert inputs[0].grad.dtype == torch.bfloat16


def test_bad_input_is_named() -> None:
    encoder, predictor, weight, bias = _inputs(torch.float32)
    with pytest.raises(ValueError, match="utterance 1: 7 frames, but it must be 1 to 6"):
        fused_transducer_loss(encoder, predictor, weight, bias, TARGETS, torch.tensor([6, 7, 1]), LABELS)
    with pytest.raises(ValueError, match="do not fit"):
        fused_transducer_loss(encoder, predictor[:2], weight, bias, TARGETS, FRAMES, LABELS)
    with pytest.raises(ValueError, match=re.escape("[B, S, H], [B, U+1, H], [V, H], [V]")):
        fused_transducer_loss(encoder[0], predictor, weight, bias, TARGETS, FRAMES, LABELS)
