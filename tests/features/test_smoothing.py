import pytest
import torch

from sottovoce.features.smoothing import (
    finish_smoothing,
    gaussian_taps,
    smooth,
    smooth_chunk,
    start_smoothing,
)

TAPS = gaussian_taps(2.0)


def test_taps_are_the_published_nine() -> None:
    assert [round(tap, 5) for tap in TAPS] == [
        0.02763, 0.06628, 0.12383, 0.18017, 0.20416, 0.18017, 0.12383, 0.06628, 0.02763
    ]  # fmt: skip
    assert sum(TAPS) == pytest.approx(1.0)


def test_equals_a_depthwise_convolution() -> None:
    signal = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(0))
    kernel = torch.tensor(TAPS).repeat(3, 1, 1)
    expected = torch.nn.functional.conv1d(signal.transpose(1, 2), kernel, padding="same", groups=3).transpose(1, 2)
    assert torch.allclose(smooth(signal, TAPS), expected, atol=1e-6)


def test_an_impulse_stays_where_it_is() -> None:
    impulse = torch.zeros(1, 41, 1)
    impulse[0, 20] = 1
    smoothed = smooth(impulse, TAPS)[0, :, 0]
    assert float((smoothed * torch.arange(41)).sum()) == pytest.approx(20.0, abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 4, 9, 100])
@pytest.mark.parametrize("bins", [1, 5, 37])
def test_streaming_equals_the_whole_trial(chunk: int, bins: int) -> None:
    signal = torch.randn(bins, 2, generator=torch.Generator().manual_seed(1))
    state, pieces = start_smoothing(2, TAPS), []
    for start in range(0, bins, chunk):
        state, piece = smooth_chunk(state, signal[start : start + chunk], TAPS)
        pieces.append(piece)
    pieces.append(finish_smoothing(state, TAPS))
    assert torch.allclose(torch.cat(pieces), smooth(signal[None], TAPS)[0], atol=1e-6)
