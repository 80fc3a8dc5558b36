"""Frames of a trial that arrives piece by piece are those of the whole trial."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.trial import Batch
from sottovoce.features.config import LogMelConfig, PreprocessorConfig
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.models.compose import DecoderModel, ModelConfig, build_model
from sottovoce.models.conv import ConvConfig
from sottovoce.models.encoders import ENCODERS
from sottovoce.models.flow_bridge import FlowBridgeConfig
from sottovoce.models.gru import GRUConfig
from sottovoce.models.patching import PatchConfig, patch_chunk, patches
from sottovoce.models.session_adapter import SessionAdapterConfig
from sottovoce.models.speaking_mode import SpeakingModeConfig
from sottovoce.models.ssm_config import SSMConfig
from sottovoce.models.stem import StemConfig
from sottovoce.models.transformer import TransformerConfig
from tests.streams import cuts, num_bytes, pieces

CHANNELS, SESSIONS = 5, 3
PLAIN = ModelConfig(gru=GRUConfig(8, 2), num_channels=CHANNELS, num_sessions=SESSIONS, num_symbols=7)
GRU = replace(PLAIN, session_adapter=SessionAdapterConfig(), patch=PatchConfig(14, 4))
MAMBA2 = SSMConfig(layers=3, width=16, state_size=4, head_size=4, bidirectional=False)
MAMBA1 = SSMConfig(layers=2, width=16, state_size=4, kind="mamba1", bidirectional=False)
TRANSFORMER = TransformerConfig(16, 2, heads=2, bidirectional=False)
CAUSAL = {
    "gru of bins": PLAIN,
    "gru of patches": GRU,
    "mamba2 of bins": replace(PLAIN, gru=None, ssm=MAMBA2),
    "mamba2 of patches": replace(GRU, gru=None, ssm=replace(MAMBA2, chunk_size=3)),
    "mamba1 of patches": replace(GRU, gru=None, ssm=MAMBA1, patch=PatchConfig(3, 3)),
    "transformer of bins": replace(PLAIN, gru=None, transformer=TRANSFORMER),
    "transformer of patches": replace(GRU, gru=None, transformer=TRANSFORMER),
}


def model_of(config: ModelConfig) -> DecoderModel:
    torch.manual_seed(0)
    model = build_model(config).eval().requires_grad_(False)
    for parameter in (model.session_adapter or torch.nn.Identity()).parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))  # sessions differ
    return model


MODELS = {name: model_of(config) for name, config in CAUSAL.items()}
by_model = pytest.mark.parametrize("name", CAUSAL)


def signal_of(streams: int, bins: int) -> torch.Tensor:
    return torch.randn(streams, bins, CHANNELS, generator=torch.Generator().manual_seed(bins))


def test_every_encoder_that_can_stream_is_held_against_the_whole_trial() -> None:
    """A new encoder has a line in `CAUSAL`, or in `WHOLE` where it never streams."""
    tested = {config.encoder_kind.section for config in CAUSAL.values()}
    tested |= {config.encoder_kind.section for config, _, _ in WHOLE.values()}
    assert tested == {kind.section for kind in ENCODERS}


@by_model
@settings(deadline=None, max_examples=25)
@given(data=st.data(), bins=st.integers(1, 60))
def test_any_pieces_give_the_frames_of_the_whole(name: str, data: st.DataObject, bins: int) -> None:
    model, signal, session_B = MODELS[name], signal_of(2, bins), torch.tensor([2, 0])
    state, frames, logits = model.start_state(2, session_B), [], []
    for piece in pieces(signal, data.draw(cuts(bins)), axis=1):
        state, encoded = model.step(state, piece)
        assert encoded.lengths_B.tolist() == [encoded.frames_BSE.shape[1]] * 2
        frames.append(encoded.frames_BSE)
        logits.append(model.ctc_logits(encoded))
    num_frames = model.output_lengths(bins)
    assert torch.cat(frames, 1).shape == (2, num_frames, model.encoder.output_size)
    if num_frames:
        whole = model.encode(signal, torch.tensor([bins, bins]), session_B)
        torch.testing.assert_close(torch.cat(frames, 1), whole.frames_BSE, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.cat(logits, 1), model.ctc_logits(whole), atol=1e-5, rtol=1e-5)


FRONT_ENDS = {
    "binned features": (PreprocessorConfig(CHANNELS, smoothing_sigma_bins=2.0), (CHANNELS,), 1),
    "waveforms": (PreprocessorConfig(CHANNELS, log_mel=LogMelConfig()), (), 160),
}


@by_model
@pytest.mark.parametrize("front_end", FRONT_ENDS)
@settings(deadline=None, max_examples=25)
@given(data=st.data(), bins=st.integers(14, 40))
def test_from_the_signal_to_the_logits(front_end: str, name: str, data: st.DataObject, bins: int) -> None:
    preprocessor, shape, hop = FRONT_ENDS[front_end]
    pipeline, model = FeaturePipeline(preprocessor), MODELS[name]
    signal = torch.randn(bins * hop, *shape, generator=torch.Generator().manual_seed(bins))
    features, state, logits = pipeline.start(), model.start_state(1, session=2), []
    for piece in [*pieces(signal, data.draw(cuts(len(signal)))), None]:
        features, some = pipeline.finish(features) if piece is None else pipeline.step(features, piece)
        state, encoded = model.step(state, some[None])
        logits.append(model.ctc_logits(encoded))
    one = torch.tensor([1])
    whole = pipeline.evaluate(Batch(signal[None].clone(), torch.tensor([len(signal)]), one[None], one, one + 1, ("t",)))
    expected, lengths_B = model(whole.signal, whole.lengths_B, whole.session_B)
    assert lengths_B.tolist() == [model.output_lengths(bins)]
    torch.testing.assert_close(torch.cat(logits, 1), expected, atol=1e-4, rtol=1e-4)


@by_model
def test_one_bin_at_a_time(name: str) -> None:
    model, signal = MODELS[name], signal_of(1, 45)
    state, frames = model.start_state(1, session=1), []
    for bin_1TC in pieces(signal, range(1, 45), axis=1):
        state, encoded = model.step(state, bin_1TC)
        frames.append(encoded.frames_BSE)
    whole = model.encode(signal, torch.tensor([45]), torch.tensor([1]))
    torch.testing.assert_close(torch.cat(frames, 1), whole.frames_BSE, atol=1e-5, rtol=1e-5)


@by_model
@settings(deadline=None, max_examples=25)
@given(data=st.data(), lengths=st.tuples(st.integers(15, 60), st.integers(0, 60), st.integers(1, 60)))
def test_streams_of_one_batch_end_one_after_the_other(
    name: str, data: st.DataObject, lengths: tuple[int, int, int]
) -> None:
    model, bins = MODELS[name], max(lengths)
    signal, lengths_B, session_B = signal_of(3, bins), torch.tensor(lengths), torch.tensor([0, 1, 2])
    state = model.start_state(3, session_B)
    frames: list[list[torch.Tensor]] = [[], [], []]
    start = 0
    for piece in pieces(signal, data.draw(cuts(bins)), axis=1):
        inside_B = (lengths_B - start).clamp(0, piece.shape[1])
        spoilt = piece.clone()
        for stream, inside in enumerate(inside_B.tolist()):
            spoilt[stream, inside:] = torch.nan  # what lies beyond a trial's end may be anything
        state, encoded = model.step(state, spoilt, inside_B)
        for stream, count in enumerate(encoded.lengths_B.tolist()):
            frames[stream].append(encoded.frames_BSE[stream, :count])
        start += piece.shape[1]
    whole = model.encode(signal, lengths_B, session_B)
    for stream, count in enumerate(model.output_lengths(lengths_B).tolist()):
        found = torch.cat(frames[stream])
        torch.testing.assert_close(found, whole.frames_BSE[stream, :count], atol=1e-5, rtol=1e-5)


@by_model
def test_the_state_is_a_value_of_bounded_size(name: str) -> None:
    model = MODELS[name]
    state, sizes = model.start_state(1), []
    for n in range(30):
        state, _ = model.step(state, signal_of(1, 4 + n % 3))
        sizes.append(num_bytes(state))
    assert model.encoder.state_grows == name.startswith("transformer")
    if not model.encoder.state_grows:
        assert max(sizes[15:]) <= max(sizes[:15])
    kept, chunk = copy.deepcopy(state), signal_of(1, 21)
    first, again, of_the_copy = (model.step(s, chunk)[1].frames_BSE for s in (state, state, kept))
    assert torch.equal(first, again) and torch.equal(first, of_the_copy)


def test_a_step_computes_its_own_frames_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(GRU)
    computed: list[int] = []
    step = model.encoder.step

    def counting(state: Any, x_BSD: torch.Tensor) -> tuple[Any, torch.Tensor]:
        computed.append(x_BSD.shape[1])
        return step(state, x_BSD)

    monkeypatch.setattr(model.encoder, "step", counting)
    state = model.start_state(1)
    for piece in pieces(signal_of(1, 38), [13, 14, 15, 30], axis=1):
        state, _ = model.step(state, piece)
        assert state.waiting_BTC.shape[1] < 14
    assert computed == [1, 4, 2]  # bins 14, 18 … 30, and 34 and 38


def test_patches_of_a_stream() -> None:
    config, signal = PatchConfig(3, 2), signal_of(1, 8)
    waiting, first = patch_chunk(signal[:, :0], signal[:, :2], config)
    assert first.shape == (1, 0, 3 * CHANNELS) and torch.equal(waiting, signal[:, :2])
    waiting, second = patch_chunk(waiting, signal[:, 2:6], config)
    assert torch.equal(second, patches(signal, config)[:, :2]) and torch.equal(waiting, signal[:, 4:6])


WHOLE = {
    "stem": (
        replace(CAUSAL["mamba2 of bins"], stem=StemConfig(width=16)),
        ["model.stem"],
        "train with model.stem=null",
    ),
    "conv": (replace(PLAIN, gru=None, conv=ConvConfig(8, 1)), ["model.conv"], "convolutions are centred"),
    "both directions": (
        replace(PLAIN, gru=None, ssm=replace(MAMBA2, bidirectional=True)),
        ["model.ssm"],
        "model.ssm.bidirectional=false",
    ),
    "attention ahead": (
        replace(PLAIN, gru=None, transformer=replace(TRANSFORMER, bidirectional=True)),
        ["model.transformer"],
        "model.transformer.bidirectional=false",
    ),
    "modulation": (
        replace(PLAIN, gru=None, ssm=MAMBA2, speaking_mode=SpeakingModeConfig()),
        ["model.speaking_mode"],
        "model.speaking_mode=null",
    ),
    "all of it": (
        replace(
            PLAIN,
            gru=None,
            stem=StemConfig(width=16),
            ssm=replace(MAMBA2, bidirectional=True),
            speaking_mode=SpeakingModeConfig(),
        ),
        ["model.stem", "model.speaking_mode", "model.ssm"],
        "model.stem: .*; model.speaking_mode: .*; model.ssm: ",
    ),
}


@pytest.mark.parametrize("what", WHOLE)
def test_what_needs_the_whole_trial_says_so(what: str) -> None:
    config, keys, message = WHOLE[what]
    model = build_model(config)
    assert [part.key for part in model.whole_trial_parts] == keys
    with pytest.raises(ConfigurationError, match=message):
        model.start_state(1)


def test_an_encoder_that_needs_the_whole_trial_refuses_to_start() -> None:
    sections = {"conv": ConvConfig(8, 1), "ssm": replace(MAMBA2, bidirectional=True)}
    sections |= {"transformer": replace(TRANSFORMER, bidirectional=True), "gru": GRUConfig(8, 1)}
    for kind in (kind for kind in ENCODERS if kind.section in sections):
        encoder = kind.encoder(sections[kind.section], 6)
        assert encoder.causal == (encoder.needs_whole_trial == "") == (kind.section == "gru")
        if not encoder.causal:
            with pytest.raises(ConfigurationError, match=f"model.{kind.section}: "):
                encoder.start(1)


def test_a_bridge_counts_only_where_it_is_used() -> None:
    bridge = FlowBridgeConfig(True, width=8, blocks=1, groups=2, heads=2)
    model = build_model(replace(PLAIN, flow_bridge=bridge)).eval()
    assert [part.key for part in model.whole_trial_parts] == []
    model.use_flow_bridge = True
    assert [part.key for part in model.whole_trial_parts] == ["model.flow_bridge"]


def test_a_mode_that_only_reports_does_not_stand_in_the_way() -> None:
    model = build_model(replace(PLAIN, speaking_mode=SpeakingModeConfig())).eval()
    assert model.whole_trial_parts == ()
    assert model.step(model.start_state(1), signal_of(1, 3))[1].mode is None


def test_what_a_stream_must_not_get() -> None:
    model = MODELS["gru of patches"]
    for session in (SESSIONS, -1, torch.tensor([0, 3])):
        with pytest.raises(ConfigurationError, match="the model has adapters of 3 sessions, 0 to 2"):
            model.start_state(2, session)
    state = model.start_state(2)
    for shape in ((2, 4, CHANNELS + 1), (1, 4, CHANNELS), (4, CHANNELS)):
        with pytest.raises(DataError, match=r"must be \[streams, bins, channels\], here \[2, any, 5\]"):
            model.step(state, torch.zeros(shape))
    with pytest.raises(DataError, match="not finite, the first at"):
        model.step(state, torch.full((2, 1, CHANNELS), torch.inf))
    for lengths in ((1,), (5, 1), (-1, 1)):
        with pytest.raises(DataError, match="must be 2 numbers from 0 to 4"):
            model.step(state, torch.zeros(2, 4, CHANNELS), torch.tensor(lengths))
    state, _ = model.step(state, torch.zeros(2, 4, CHANNELS), torch.tensor([4, 3]))
    with pytest.raises(DataError, match="stream 1 has ended after 3 bins, but the chunk has 4 more of it"):
        model.step(state, torch.zeros(2, 4, CHANNELS))
