from pathlib import Path

import numpy as np
import pytest
import torch

from sottovoce.core.trial import Batch, Trial
from sottovoce.data.collation import collate
from sottovoce.features.augmentation import Draws
from sottovoce.features.config import AugmentationConfig, MaskConfig, PreprocessorConfig
from sottovoce.features.pipeline import FeaturePipeline

CHANNELS = 6
LOUD = AugmentationConfig(
    gain_std=0.1,
    white_noise_std=0.5,
    constant_offset_std=0.2,
    random_walk_std=0.05,
    random_cut_bins=2,
    time_mask=MaskConfig(1.0, 2, 5),
    channel_mask=MaskConfig(1.0, 1, 2),
)


class Trials:
    """Three trials of different lengths."""

    sessions: tuple[str, ...] = ("a",)

    def __init__(self, lengths: tuple[int, ...] = (40, 25, 60)) -> None:
        generator = np.random.default_rng(0)
        self._signals = [generator.standard_normal((n, CHANNELS)).astype(np.float32) for n in lengths]
        self.trials = tuple(Trial(f"t{i}", "train", "a", n, (1, 2), None, Path("x")) for i, n in enumerate(lengths))

    def signal(self, index: int) -> np.ndarray:
        return self._signals[index]


def draws(step: int, positions: tuple[int, ...]) -> Draws:
    return Draws(seed=1, step=step, positions=positions, device=torch.device("cpu"))


def rows(batch: Batch) -> list[torch.Tensor]:
    return [signal[:length] for signal, length in zip(batch.signal, batch.lengths_B.tolist(), strict=True)]


@pytest.mark.parametrize("normalisation", ["none", "trial"])
def test_a_trial_comes_out_the_same_alone_and_beside_others(normalisation: str) -> None:
    pipeline = FeaturePipeline(PreprocessorConfig(CHANNELS, normalisation=normalisation), LOUD)
    trials = Trials()
    together = rows(pipeline.evaluate(collate(trials, [0, 1, 2])))
    trained = rows(pipeline.train(collate(trials, [0, 1, 2]), draws(5, (0, 1, 2))))
    for i in range(3):
        assert torch.allclose(rows(pipeline.evaluate(collate(trials, [i])))[0], together[i], atol=1e-6)
        alone = rows(pipeline.train(collate(trials, [i]), draws(5, (i,))))[0]
        assert torch.allclose(alone, trained[i], atol=1e-6)


def test_training_without_augmentation_is_evaluation() -> None:
    pipeline = FeaturePipeline(PreprocessorConfig(CHANNELS))
    trained = pipeline.train(collate(Trials(), [0, 1, 2]), draws(0, (0, 1, 2)))
    evaluated = pipeline.evaluate(collate(Trials(), [0, 1, 2]))
    assert torch.equal(trained.signal, evaluated.signal)
    assert torch.equal(trained.lengths_B, evaluated.lengths_B)


def test_augmentation_is_a_function_of_seed_step_and_position() -> None:
    pipeline = FeaturePipeline(PreprocessorConfig(CHANNELS), LOUD)

    def train(step: int, position: int) -> Batch:
        return pipeline.train(collate(Trials(), [0]), draws(step, (position,)))

    first = train(3, 1)
    assert torch.equal(first.signal, train(3, 1).signal)
    other_position, other_step = train(3, 2), train(4, 1)
    assert not torch.equal(first.signal, other_position.signal)
    assert first.signal.shape != other_step.signal.shape or not torch.equal(first.signal, other_step.signal)
    assert torch.equal(first.lengths_B, other_position.lengths_B)  # one cut for the whole batch


def test_sizes_of_the_augmentations() -> None:
    """On a signal of zeros each operation shows its own statistics."""
    trials = Trials((4000,))
    trials._signals = [np.zeros((4000, CHANNELS), np.float32)]
    plain = PreprocessorConfig(CHANNELS, smoothing_sigma_bins=0.0)

    def augmented(augmentation: AugmentationConfig) -> torch.Tensor:
        pipeline = FeaturePipeline(plain, augmentation)
        return pipeline.train(collate(trials, [0]), draws(0, (0,))).signal[0]

    assert augmented(AugmentationConfig(white_noise_std=0.7)).std().item() == pytest.approx(0.7, rel=0.02)
    offset = augmented(AugmentationConfig(constant_offset_std=0.3))
    assert torch.equal(offset, offset[:1].expand_as(offset))
    assert offset[0].unique().numel() == CHANNELS
    steps = augmented(AugmentationConfig(random_walk_std=0.1)).diff(dim=0)
    assert steps.std().item() == pytest.approx(0.1, rel=0.02)


def test_cuts_take_every_number_of_bins_up_to_the_limit() -> None:
    pipeline = FeaturePipeline(PreprocessorConfig(CHANNELS), AugmentationConfig(random_cut_bins=2))
    lengths = {int(pipeline.train(collate(Trials(), [0]), draws(s, (0,))).lengths_B[0]) for s in range(30)}
    assert lengths == {38, 39, 40}
    assert pipeline.shortest_length(40, training=True) == 38
    assert pipeline.shortest_length(40, training=False) == 40


def test_masks_cover_what_they_say() -> None:
    trials = Trials((50,))
    trials._signals = [np.ones((50, CHANNELS), np.float32)]
    plain = PreprocessorConfig(CHANNELS, smoothing_sigma_bins=0.0)
    time = FeaturePipeline(plain, AugmentationConfig(time_mask=MaskConfig(1.0, 1, 10)))
    channels = FeaturePipeline(plain, AugmentationConfig(channel_mask=MaskConfig(1.0, 1, 2)))
    masked_bins, masked_channels = set(), set()
    for step in range(60):
        bins = time.train(collate(trials, [0]), draws(step, (0,))).signal[0] == 0
        assert torch.equal(bins.all(1), bins.any(1))
        masked_bins.add(int(bins.all(1).sum()))
        columns = channels.train(collate(trials, [0]), draws(step, (0,))).signal[0] == 0
        assert torch.equal(columns.all(0), columns.any(0))
        masked_channels.add(int(columns.all(0).sum()))
    assert masked_bins == set(range(11))
    assert masked_channels == {0, 1, 2}
    never = FeaturePipeline(plain, AugmentationConfig(time_mask=MaskConfig(0.0, 1, 10)))
    assert bool((never.train(collate(trials, [0]), draws(0, (0,))).signal == 1).all())


def test_padding_stays_zero() -> None:
    pipeline = FeaturePipeline(PreprocessorConfig(CHANNELS), LOUD)
    batch = pipeline.train(collate(Trials(), [0, 1, 2]), draws(2, (0, 1, 2)))
    for row, length in zip(batch.signal, batch.lengths_B.tolist(), strict=True):
        assert not row[length:].any()
