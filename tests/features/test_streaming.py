"""Features of a trial that arrives piece by piece are those of the whole trial."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.trial import Batch
from sottovoce.features.config import LogMelConfig, PreprocessorConfig
from sottovoce.features.pipeline import FeaturePipeline, FeatureState
from tests.streams import cuts, num_bytes, pieces

CHANNELS = 6
SMOOTHED = PreprocessorConfig(CHANNELS)
SPECTRA = (
    LogMelConfig(),
    LogMelConfig(num_fft=401, pre_emphasis=0.0),  # an odd number, and a window of nearly that length
    LogMelConfig(window_ms=5, hop_ms=20),  # gaps between the windows
    LogMelConfig(sample_rate_hz=8000, high_hz=4000, num_fft=256),
)


def whole(pipeline: FeaturePipeline, signal: torch.Tensor) -> torch.Tensor:
    one = torch.tensor([1])
    batch = Batch(signal[None].clone(), torch.tensor([len(signal)]), one[None], one, one, ("trial",))
    features = pipeline.evaluate(batch)
    return features.signal[0, : int(features.lengths_B[0])]


def streamed(pipeline: FeaturePipeline, signal: torch.Tensor, places: list[int]) -> torch.Tensor:
    state, features = pipeline.start(), []
    for piece in pieces(signal, places):
        state, some = pipeline.step(state, piece)
        features.append(some)
    state, rest = pipeline.finish(state)
    assert state.ended
    return torch.cat([*features, rest])


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), bins=st.integers(1, 40), sigma=st.sampled_from([0.0, 0.5, 2.0]))
def test_binned_features(data: st.DataObject, bins: int, sigma: float) -> None:
    pipeline = FeaturePipeline(PreprocessorConfig(CHANNELS, smoothing_sigma_bins=sigma))
    signal = noise(bins, CHANNELS)
    found = streamed(pipeline, signal, data.draw(cuts(bins)))
    torch.testing.assert_close(found, whole(pipeline, signal), atol=1e-6, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), samples=st.integers(1, 2400), sigma=st.sampled_from([0.0, 2.0]))
@pytest.mark.parametrize("config", SPECTRA)
def test_the_spectrum_of_a_waveform(config: LogMelConfig, data: st.DataObject, samples: int, sigma: float) -> None:
    bands = 20
    pipeline = FeaturePipeline(PreprocessorConfig(bands, smoothing_sigma_bins=sigma, log_mel=config))
    signal = 0.1 * noise(samples)
    found = streamed(pipeline, signal, data.draw(cuts(samples)))
    assert len(found) == samples // config.hop_samples
    torch.testing.assert_close(found, whole(pipeline, signal), atol=1e-4, rtol=1e-4)


def test_one_sample_at_a_time() -> None:
    pipeline = FeaturePipeline(PreprocessorConfig(20, log_mel=LogMelConfig()))
    signal = noise(1200)
    found = streamed(pipeline, signal, list(range(1, 1200)))
    torch.testing.assert_close(found, whole(pipeline, signal), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [None, *SPECTRA])
def test_features_come_as_soon_as_the_latency_says(config: LogMelConfig | None) -> None:
    pipeline = FeaturePipeline(PreprocessorConfig(20, smoothing_sigma_bins=2.0, log_mel=config))
    assert pipeline.latency_bins == 4
    hop = config.hop_samples if config is not None else 1
    if config is None:
        needed, signal = 4 + 1, noise(40, 20)
    else:
        needed, signal = 4 * hop + pipeline.latency_samples, noise(40 * hop)
    for arrived, frames in ((needed - 1, 0), (needed, 1), (needed + 3 * hop - 1, 3), (needed + 3 * hop, 4)):
        assert len(pipeline.step(pipeline.start(), signal[:arrived])[1]) == frames
    assert FeaturePipeline(PreprocessorConfig(20, log_mel=LogMelConfig())).latency_samples == 200  # half a window


def test_the_state_is_a_value_of_bounded_size() -> None:
    for preprocessor, shape in ((SMOOTHED, (50, CHANNELS)), (PreprocessorConfig(20, log_mel=LogMelConfig()), (777,))):
        pipeline, sizes = FeaturePipeline(preprocessor), []
        state = pipeline.start()
        for _ in range(40):
            state, _ = pipeline.step(state, noise(*shape))
            sizes.append(num_bytes(state))
        assert max(sizes) < 4 * (2 * 4 * 20 + 1 + 400 + 160)  # smoothing, pre-emphasis, a window and a hop
        kept = copy.deepcopy(state)
        first, second = (pipeline.step(s, noise(*shape))[1] for s in (state, state))
        assert torch.equal(first, second)
        assert torch.equal(first, pipeline.step(kept, noise(*shape))[1])


def test_what_a_stream_must_not_get() -> None:
    pipeline = FeaturePipeline(SMOOTHED)
    state = pipeline.start()
    with pytest.raises(DataError, match=r"shape \[3, 7\].*here \[any, 6\]"):
        pipeline.step(state, torch.zeros(3, 7))
    with pytest.raises(DataError, match="1 values that are not finite"):
        pipeline.step(state, torch.full((1, CHANNELS), 1.0).index_fill(1, torch.tensor(2), torch.nan))
    ended, _ = pipeline.finish(state)
    for call in (lambda: pipeline.step(ended, torch.zeros(1, CHANNELS)), lambda: pipeline.finish(ended)):
        with pytest.raises(DataError, match="has ended"):
            call()
    with pytest.raises(DataError, match=r"must be \[samples\]"):
        waveform = FeaturePipeline(PreprocessorConfig(20, log_mel=LogMelConfig()))
        waveform.step(waveform.start(), torch.zeros(3, 7))
    assert pipeline.finish(FeatureState())[1].shape == (0, CHANNELS)


@pytest.mark.parametrize("sigma", [0.0, 2.0])
@pytest.mark.parametrize("config", [None, LogMelConfig()])
def test_the_last_features_are_where_the_pieces_were(config: LogMelConfig | None, sigma: float) -> None:
    pipeline = FeaturePipeline(PreprocessorConfig(20, smoothing_sigma_bins=sigma, log_mel=config))
    assert pipeline.finish(pipeline.start("meta"))[1].device.type == "meta"


@pytest.mark.parametrize("kind", ["trial", "trial_mean"])
def test_a_norm_over_the_trial_needs_the_whole_trial(kind: str) -> None:
    assert FeaturePipeline(SMOOTHED).whole_trial_parts == ()
    pipeline = FeaturePipeline(PreprocessorConfig(CHANNELS, normalisation=kind))
    assert [part.key for part in pipeline.whole_trial_parts] == [f"preprocessor.normalisation={kind}"]
    with pytest.raises(ConfigurationError, match=f"normalisation={kind}: .* set preprocessor.normalisation=none"):
        pipeline.start()
