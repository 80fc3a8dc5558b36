"""The composed GRU model against the published baseline, re-computed here from its description."""

from dataclasses import replace

import pytest
import torch

from sottovoce.core.errors import ConfigurationError
from sottovoce.models import ModelConfig, build_model
from sottovoce.models.compose import DecoderModel
from sottovoce.models.gru import GRUConfig, GRUEncoder
from sottovoce.models.patching import PatchConfig, patches
from sottovoce.models.session_adapter import SessionAdapterConfig
from sottovoce.training.composition import compose_config


def small(dropout: float = 0.0) -> DecoderModel:
    torch.manual_seed(0)
    return build_model(
        ModelConfig(
            session_adapter=SessionAdapterConfig(dropout),
            patch=PatchConfig(5, 2),
            gru=GRUConfig(8, 2, dropout),
            num_channels=3,
            num_sessions=4,
            num_symbols=6,
        )
    )


def test_the_official_model_has_the_official_number_of_parameters() -> None:
    config = compose_config(["recipe=t15_gru", "data.data_root=x"])
    with torch.device("meta"):
        model = build_model(replace(config.model, num_channels=512, num_sessions=45, num_symbols=41))
    counts = {name: p.numel() for name, p in model.named_parameters()}
    assert sum(counts.values()) == 44_315_177
    assert len(counts) == 113
    assert sum(n for name, n in counts.items() if name.startswith("session_adapter")) == 11_819_520
    assert sum(n for name, n in counts.items() if name.endswith("_l0")) == 18_289_152
    assert sum(n for name, n in counts.items() if name.startswith("head")) == 31_529
    assert counts["encoder.initial_state"] == 768


def test_initialisation_rules() -> None:
    model = small()
    assert model.session_adapter is not None
    assert isinstance(model.encoder, GRUEncoder)
    assert all(torch.equal(w, torch.eye(3)) for w in model.session_adapter.weights)
    assert all(not b.any() for b in model.session_adapter.biases)
    for name, weight in model.encoder.gru.named_parameters():
        if name.startswith("weight_hh"):
            assert torch.allclose(weight.T @ weight, torch.eye(8), atol=1e-5)
        elif name.startswith("weight_ih"):
            bound = (6 / sum(weight.shape)) ** 0.5
            assert 0.8 * bound < weight.abs().max().item() <= bound
        else:
            assert weight.abs().max().item() <= 8**-0.5
    assert model.encoder.initial_state.abs().max().item() <= (6 / 9) ** 0.5


def test_the_blank_can_be_given_a_lead() -> None:
    plain = small()
    torch.manual_seed(0)
    leading = build_model(replace(plain.config, blank_bias=2.0, blank=3))
    lead = leading.head.bias - plain.head.bias
    assert lead.tolist() == pytest.approx([0, 0, 0, 2, 0, 0], abs=1e-6)
    assert torch.equal(leading.head.weight, plain.head.weight)
    with pytest.raises(ConfigurationError, match="must be finite"):
        replace(plain.config, blank_bias=float("nan"))


def test_patches_are_time_major() -> None:
    signal = torch.arange(1 * 9 * 3).reshape(1, 9, 3)
    found = patches(signal, PatchConfig(5, 2))
    assert found.shape == (1, 3, 15)
    assert torch.equal(found[0, 1], signal[0, 2:7].flatten())


def test_forward_equals_the_formulas_gate_by_gate() -> None:
    """Affine, softsign, patches, PyTorch's GRU equations (gates r, z, n), linear: written out step by step."""
    model = small().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    signal, session = torch.randn(2, 11, 3), torch.tensor([2, 0])
    logits, frames = model(signal, torch.tensor([11, 11]), session)
    assert model.session_adapter is not None
    assert isinstance(model.encoder, GRUEncoder)
    gru = model.encoder.gru
    for b in range(2):
        weight, bias = model.session_adapter.weights[int(session[b])], model.session_adapter.biases[int(session[b])]
        x = signal[b] @ weight + bias
        x = x / (1 + x.abs())
        layer_input = torch.stack([x[s : s + 5].flatten() for s in (0, 2, 4, 6)])
        for layer in range(2):
            w_ih, w_hh = getattr(gru, f"weight_ih_l{layer}"), getattr(gru, f"weight_hh_l{layer}")
            b_ih, b_hh = getattr(gru, f"bias_ih_l{layer}"), getattr(gru, f"bias_hh_l{layer}")
            hidden, outputs = model.encoder.initial_state[0, 0], []
            for frame in layer_input:
                ir, iz, i_n = (w_ih @ frame + b_ih).chunk(3)
                hr, hz, hn = (w_hh @ hidden + b_hh).chunk(3)
                reset, update = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
                candidate = torch.tanh(i_n + reset * hn)
                hidden = (1 - update) * candidate + update * hidden
                outputs.append(hidden)
            layer_input = torch.stack(outputs)
        expected = layer_input @ model.head.weight.T + model.head.bias
        assert torch.allclose(logits[b], expected, atol=1e-5)
    assert frames.tolist() == [4, 4]


def test_padding_invariance() -> None:
    model = small().eval()
    signal, lengths, session = torch.randn(2, 30, 3), torch.tensor([30, 17]), torch.tensor([0, 1])
    signal[1, 17:] = 1e3
    together, frames = model(signal, lengths, session)
    alone, _ = model(signal[1:, :17], lengths[1:], session[1:])
    assert torch.allclose(together[1, : frames[1]], alone[0], atol=1e-5)


def test_carrying_the_state_equals_the_whole() -> None:
    encoder = small().eval().encoder
    x = torch.randn(2, 10, 15)
    whole, _ = encoder(x, torch.tensor([10, 10]))
    state, pieces = encoder.start(2), []
    for frame in x.split(3, dim=1):
        state, y = encoder.step(state, frame)
        pieces.append(y)
    assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-6)


@pytest.mark.parametrize("bins", range(5, 26))
def test_output_lengths_are_what_comes_out(bins: int) -> None:
    model = small().eval()
    logits, frames = model(torch.zeros(1, bins, 3), torch.tensor([bins]), torch.tensor([0]))
    assert logits.shape[1] == int(frames[0]) == model.output_lengths(bins)
    assert model.output_lengths(4) == 0
    assert model.bins_per_frame == 2


def test_sessions_absent_from_a_batch_get_no_gradient() -> None:
    model = small()
    logits, _ = model(torch.randn(2, 9, 3), torch.tensor([9, 9]), torch.tensor([3, 1]))
    logits.sum().backward()
    assert model.session_adapter is not None
    assert [weight.grad is not None for weight in model.session_adapter.weights] == [False, True, False, True]


def test_exactly_one_encoder() -> None:
    with pytest.raises(ConfigurationError, match="exactly one of the encoders"):
        ModelConfig()
    with pytest.raises(ConfigurationError, match="num_sessions"):
        build_model(
            ModelConfig(session_adapter=SessionAdapterConfig(), gru=GRUConfig(4, 1), num_channels=2, num_symbols=3)
        )


def test_dropout_only_between_layers() -> None:
    two_layers = small(0.3).encoder
    assert isinstance(two_layers, GRUEncoder)
    assert two_layers.gru.dropout == 0.3
    config = ModelConfig(gru=GRUConfig(4, 1, 0.3), num_channels=2, num_sessions=1, num_symbols=3)
    one_layer = build_model(config).encoder
    assert isinstance(one_layer, GRUEncoder)
    assert one_layer.gru.dropout == 0.0
