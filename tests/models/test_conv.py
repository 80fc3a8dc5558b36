"""The convolutional encoder: padding, lengths, gradients and size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sottovoce.core.errors import ConfigurationError
from sottovoce.models.conv import ConvConfig, ConvEncoder

SMALL = ConvConfig(width=16, num_blocks=3, kernel_size=5, dropout=0.0)


def _encoder(config: ConvConfig, input_size: int = 6) -> ConvEncoder:
    torch.manual_seed(0)
    return ConvEncoder(config, input_size)


@pytest.mark.parametrize("spectral_channels", [0, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_trial_alone_equals_the_trial_padded(stride: int, spectral_channels: int) -> None:
    config = ConvConfig(width=16, num_blocks=3, kernel_size=5, stride=stride, spectral_channels=spectral_channels)
    encoder = _encoder(config).eval()
    lengths = torch.tensor([40, 23, 1, 8])
    x = torch.randn(4, 40, 6)  # what lies beyond a trial's end is noise, not zeros
    padded, frames = encoder(x, lengths)
    assert padded.shape == (4, int(frames[0]), encoder.output_size)
    for row, length in enumerate(lengths.tolist()):
        alone, alone_frames = encoder(x[row : row + 1, :length], lengths[row : row + 1])
        assert alone_frames[0] == frames[row] == alone.shape[1]
        torch.testing.assert_close(padded[row, : alone.shape[1]], alone[0], atol=1e-6, rtol=1e-5)
        assert not padded[row, alone.shape[1] :].any()


@pytest.mark.parametrize("spectral_channels", [0, 2])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (5, 2), (3, 3), (7, 4)])
def test_output_lengths_are_those_of_the_tensor(kernel: int, stride: int, spectral_channels: int) -> None:
    config = ConvConfig(
        width=4,
        num_blocks=1,
        kernel_size=3,
        input_kernel_size=kernel,
        stride=stride,
        spectral_channels=spectral_channels,
    )
    encoder = _encoder(config).eval()
    for num_bins in range(1, 4 * (kernel + stride) + 1):
        y, frames = encoder(torch.randn(1, num_bins, 6), torch.tensor([num_bins]))
        assert y.shape[1] == int(frames[0]) == encoder.output_lengths(num_bins) == -(-num_bins // stride)
    assert encoder.output_lengths(0) == 0


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, spectral_channels=4)])
def test_gradients_reach_every_parameter_and_are_finite(config: ConvConfig) -> None:
    encoder = _encoder(config)
    y, _ = encoder(torch.randn(3, 30, 6), torch.tensor([30, 12, 1]))
    (y * torch.randn_like(y)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_dropout_acts_in_training_only() -> None:
    encoder = _encoder(ConvConfig(width=16, num_blocks=1, dropout=0.5, input_dropout=0.5))
    x, lengths = torch.randn(1, 20, 6), torch.tensor([20])
    assert not torch.equal(encoder(x, lengths)[0], encoder(x, lengths)[0])
    encoder.eval()
    assert torch.equal(encoder(x, lengths)[0], encoder(x, lengths)[0])


def test_size_of_the_default_configuration() -> None:
    # input 40·192·5 + 192; norms 2·384; a block: 9·192 + 192, 384, 192·384 + 384, 384·192 + 192
    expected = 38_592 + 768 + 5 * (1_920 + 384 + 74_112 + 73_920)
    assert sum(p.numel() for p in _encoder(ConvConfig(), 40).parameters()) == expected == 791_040


def test_size_with_spectral_convolutions() -> None:
    # 1·16·25 + 16; 16·32·9 + 32; 40 bands become 20, then 10: 32·10·128 + 128; norms 2·256
    front = 416 + 4_640 + 41_088 + 512
    blocks = 5 * (9 * 128 + 128 + 256 + 128 * 256 + 256 + 256 * 128 + 128)
    config = ConvConfig(width=128, spectral_channels=16)
    assert sum(p.numel() for p in _encoder(config, 40).parameters()) == front + blocks == 383_936


@pytest.mark.parametrize(
    "setting",
    [
        {"width": 0},
        {"num_blocks": 0},
        {"stride": 0},
        {"expansion": 0},
        {"spectral_channels": -1},
        {"kernel_size": 4},
        {"input_kernel_size": -1},
        {"dropout": 1.0},
        {"input_dropout": -0.1},
    ],
)
def test_senseless_settings_are_rejected(setting: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.conv"):
        ConvConfig(**setting)
