import torch

from sottovoce.features.normalisation import normalise


def test_normalised_trials_have_mean_0_and_deviation_1() -> None:
    features = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(0)) * 3 + 5
    lengths = torch.tensor([20, 7, 1])
    normalised = normalise(features, lengths, "trial")
    for row, length in enumerate([20, 7]):
        valid = features[row, :length]
        expected = (valid - valid.mean(0)) / (valid.std(0) + 1e-5)
        torch.testing.assert_close(normalised[row, :length], expected)
        assert not normalised[row, length:].any()
    assert not normalised[2].any()


def test_levelled_trials_have_means_0_and_one_deviation_for_all_channels() -> None:
    features = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3, 4]) + 5
    levelled = normalise(features, torch.tensor([20, 7, 1]), "trial_mean")
    for row, length in enumerate([20, 7]):
        valid = features[row, :length]
        centred = valid - valid.mean(0)
        torch.testing.assert_close(levelled[row, :length], centred / (centred.std() + 1e-5))
        assert not levelled[row, length:].any()
    assert not levelled[2].any()
