import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.core.lengths import adjacent_repeats, conv_length, ctc_frames_needed, log_mel_length
from sottovoce.losses import ctc_loss


@pytest.mark.parametrize(
    ("bins", "t15", "t12"),
    [(13, 0, 0), (14, 1, 0), (32, 5, 1), (35, 6, 1), (36, 6, 2), (100, 22, 18)],
)
def test_patch_lengths_of_the_public_models(bins: int, t15: int, t12: int) -> None:
    assert conv_length(bins, 14, 4) == t15
    assert conv_length(bins, 32, 4) == t12
    assert conv_length(torch.tensor([bins]), 14, 4).tolist() == [t15]


@given(st.integers(1, 80), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3), st.integers(1, 3))
def test_conv_length_is_what_comes_out_of_a_convolution(
    length: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    if length + 2 * padding < dilation * (kernel - 1) + 1:
        assert conv_length(length, kernel, stride, padding, dilation) == 0
        return
    out = torch.nn.functional.conv1d(
        torch.zeros(1, 1, length), torch.zeros(1, 1, kernel), stride=stride, padding=padding, dilation=dilation
    )
    assert conv_length(length, kernel, stride, padding, dilation) == out.shape[2]


def test_official_t15_length_for_every_trial_length() -> None:
    assert all(conv_length(t, 14, 4) == int((t - 14) / 4 + 1) for t in range(14, 2500))


def test_conformer_subsampling_length() -> None:
    twice = [conv_length(conv_length(t, 3, 2, 1), 3, 2, 1) for t in (1, 10, 100)]
    assert twice == [1, 3, 25]
    assert [((t - 1) // 2 + 1 - 1) // 2 + 1 for t in (1, 10, 100)] == twice


def test_log_mel_length() -> None:
    assert [log_mel_length(n, 160) for n in (0, 159, 160, 16000)] == [0, 0, 1, 100]


@given(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.integers(-2, 2))
def test_ctc_is_finite_exactly_where_the_frames_suffice(labels: list[int], margin: int) -> None:
    frames = ctc_frames_needed(labels) + margin
    if frames < 1:
        return
    nats = ctc_loss(
        torch.zeros(1, frames, 4), torch.tensor([labels]), torch.tensor([frames]), torch.tensor([len(labels)])
    )
    assert bool(nats.isfinite()) == (margin >= 0)


def test_repeats() -> None:
    assert adjacent_repeats([3, 3, 5, 5, 5, 2]) == 3
    assert adjacent_repeats([]) == 0
