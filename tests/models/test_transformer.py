"""The transformer encoder against attention written pair by pair; padding, direction, distance, precision, size."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from sottovoce.core.errors import ConfigurationError
from sottovoce.models.compose import DecoderModel, ModelConfig, build_model
from sottovoce.models.patching import PatchConfig
from sottovoce.models.speaking_mode import SpeakingModeConfig
from sottovoce.models.transformer import (
    FARTHEST,
    NUM_BUCKETS,
    Attention,
    DistanceScores,
    Layer,
    TransformerConfig,
    TransformerEncoder,
    buckets,
)
from sottovoce.training.optimizer import group_of
from tests.models.padding import assert_padding_changes_nothing

BOTH = TransformerConfig(width=12, layers=2, heads=3, expansion=2, dropout=0.0, input_dropout=0.0)
CAUSAL = replace(BOTH, bidirectional=False)


def encoder_of(config: TransformerConfig, input_size: int = 6) -> TransformerEncoder:
    torch.manual_seed(0)
    return TransformerEncoder(config, input_size)


def bucket_of(ahead: int, bidirectional: bool) -> int:
    """Raffel et al. 2020, one number at a time."""
    count = NUM_BUCKETS // 2 if bidirectional else NUM_BUCKETS
    offset = count if bidirectional and ahead > 0 else 0
    distance = abs(ahead) if bidirectional else max(-ahead, 0)
    single = count // 2
    if distance < single:
        return offset + distance
    growing = math.log(distance / single) / math.log(FARTHEST / single) * (count - single)
    return offset + min(single + int(growing + 1e-9), count - 1)


def attention_by_pairs(attention: Attention, table_HK: torch.Tensor, x_SE: torch.Tensor, causal: bool) -> torch.Tensor:
    """One trial, every query, key and head in turn."""
    num_frames, width = x_SE.shape
    heads = attention.heads
    size = width // heads
    together = x_SE @ attention.queries_keys_values.weight.T
    q, k, v = together[:, :width], together[:, width : 2 * width], together[:, 2 * width :]
    rows = []
    for i in range(num_frames):
        row = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            seen = range(i + 1) if causal else range(num_frames)
            scores = [
                q[i, part] @ k[j, part] / math.sqrt(size) + table_HK[h, bucket_of(j - i, not causal)] for j in seen
            ]
            powers = [score.exp() for score in scores]
            total = torch.stack(powers).sum()
            row.append(torch.stack([power / total * v[j, part] for j, power in zip(seen, powers, strict=True)]).sum(0))
        rows.append(torch.cat(row))
    return torch.stack(rows) @ attention.output.weight.T + attention.output.bias


def layer_norm(x: torch.Tensor, norm: Any) -> torch.Tensor:
    mean = x.mean(-1, keepdim=True)
    scale = ((x - mean) ** 2).mean(-1, keepdim=True).add(norm.eps).sqrt()
    return (x - mean) / scale * norm.weight + norm.bias


def encoder_by_pairs(encoder: TransformerEncoder, x_SD: torch.Tensor, causal: bool) -> torch.Tensor:
    """The whole encoder for one trial, from the formulas of its parts."""
    hidden = layer_norm(x_SD, encoder.input_norm) @ encoder.input.weight.T + encoder.input.bias
    hidden = layer_norm(hidden, encoder.embedding_norm)
    for layer in encoder.layers:
        assert isinstance(layer, Layer)
        normed = layer_norm(hidden, layer.attention_norm)
        hidden = hidden + attention_by_pairs(layer.attention, encoder.distance.bias_HK, normed, causal)
        norm, first, _, _, second = layer.perceptron
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        inner = layer_norm(hidden, norm) @ first.weight.T + first.bias
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        hidden = hidden + inner @ second.weight.T + second.bias
    return layer_norm(hidden, encoder.output_norm)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_t5(bidirectional: bool) -> None:
    ahead = torch.arange(-700, 701)
    found = buckets(ahead, bidirectional).tolist()
    assert found == [bucket_of(d, bidirectional) for d in ahead.tolist()]
    unused = {NUM_BUCKETS // 2} if bidirectional else set()  # nothing is ahead by 0
    assert set(found) == set(range(NUM_BUCKETS)) - unused
    # By hand, both ways: 8 single distances a side, then doubling every two buckets; those ahead come 16 later.
    by_hand = {0: 0, -7: 7, -8: 8, -11: 8, -12: 9, -16: 10, -128: 15, -700: 15, 1: 17, 8: 24, 700: 31}
    if bidirectional:
        assert {d: found[d + 700] for d in by_hand} == by_hand
    else:
        assert found[700:] == [0] * 701


@pytest.mark.parametrize("bidirectional", [True, False])
def test_distance_scores_stand_at_their_pairs(bidirectional: bool) -> None:
    scores = DistanceScores(2, bidirectional)
    found = scores(5)
    for i in range(5):
        for j in range(5):
            if j > i and not bidirectional:
                assert found[:, i, j].tolist() == [-math.inf] * 2
            else:
                assert torch.equal(found[:, i, j], scores.bias_HK[:, bucket_of(j - i, bidirectional)])


@pytest.mark.parametrize("config", [BOTH, CAUSAL])
def test_the_encoder_is_the_formula_pair_by_pair_and_so_are_its_gradients(config: TransformerConfig) -> None:
    encoder = encoder_of(config).double()
    x, weights = torch.randn(11, 6).double(), torch.randn(11, 12).double()
    expected = encoder_by_pairs(encoder, x, not config.bidirectional)
    found = encoder(x[None], torch.tensor([11]))[0][0]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    parameters = list(encoder.parameters())
    gradients = [torch.autograd.grad((y * weights).sum(), parameters) for y in (found, expected)]
    for got, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(got, slow, atol=1e-11, rtol=1e-8)
        assert got.abs().max() > 0


@pytest.mark.parametrize("config", [BOTH, CAUSAL])
def test_a_trial_alone_equals_the_trial_padded(config: TransformerConfig) -> None:
    encoder = encoder_of(config).eval()
    assert_padding_changes_nothing(encoder)


def test_gradients_are_those_of_the_trials_alone_and_finite_beside_an_empty_one() -> None:
    encoder = encoder_of(BOTH).double()
    x, lengths, weights = torch.randn(3, 30, 6).double(), torch.tensor([30, 11, 0]), torch.randn(3, 30, 12).double()
    parameters = list(encoder.parameters())
    together = torch.autograd.grad((encoder(x, lengths)[0] * weights).sum(), parameters)
    alone = [
        torch.autograd.grad((encoder(x[i : i + 1, :n], lengths[i : i + 1])[0] * weights[i, :n]).sum(), parameters)
        for i, n in enumerate(lengths.tolist())
        if n
    ]
    for whole, one, other in zip(together, *alone, strict=True):
        torch.testing.assert_close(whole, one + other, atol=1e-10, rtol=1e-8)
        assert whole.abs().max() > 0


def test_a_causal_encoder_never_looks_ahead_and_the_other_does() -> None:
    x, lengths = torch.randn(1, 20, 6).double(), torch.tensor([20])
    changed = x.clone()
    changed[:, 12] = torch.randn(6).double()
    for config, looks_ahead in ((CAUSAL, False), (BOTH, True)):
        encoder = encoder_of(config).eval().double()
        difference = (encoder(x, lengths)[0] - encoder(changed, lengths)[0]).abs().amax((0, 2))
        assert (difference[:12].max().item() > 1e-9) is looks_ahead
        assert difference[12:].min().item() > 0


def test_only_the_distance_tells_frames_apart() -> None:
    """Equal frames far from either end come out equal; with the same score at every distance, all do."""
    encoder = encoder_of(BOTH).eval().double()
    x, lengths = torch.randn(6).double().expand(1, 9, 6), torch.tensor([9])
    swapped = encoder(x.flip(1), lengths)[0]
    torch.testing.assert_close(encoder(x, lengths)[0], swapped)
    order = torch.tensor([3, 0, 8, 1, 5, 2, 7, 6, 4])
    y = torch.randn(1, 9, 6).double()
    assert (encoder(y, lengths)[0][:, order] - encoder(y[:, order], lengths)[0]).abs().max() > 1e-3
    torch.nn.init.constant_(encoder.distance.bias_HK, 0.7)
    torch.testing.assert_close(encoder(y, lengths)[0][:, order], encoder(y[:, order], lengths)[0])


def test_a_trial_far_longer_than_any_bucket_is_finite_and_uses_the_last_one() -> None:
    encoder = encoder_of(BOTH).eval()
    long = 4 * FARTHEST
    out, _ = encoder(torch.randn(1, long, 6), torch.tensor([long]))
    assert bool(out.isfinite().all())
    scores = encoder.distance(long)
    assert torch.equal(scores[:, 0, FARTHEST], scores[:, 0, -1])


def test_bfloat16_is_close_and_finite_forward_and_backward() -> None:
    encoder = encoder_of(BOTH)
    x, lengths = torch.randn(2, 30, 6), torch.tensor([30, 4])
    exact = encoder(x, lengths)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(x, lengths)[0]
    assert (rough.float() - exact).abs().max().item() < 0.1
    rough.float().square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in encoder.parameters())


def test_dropout_acts_in_training_alone() -> None:
    encoder = encoder_of(replace(BOTH, dropout=0.5, input_dropout=0.3))
    x, lengths = torch.randn(1, 12, 6), torch.tensor([12])
    assert not torch.equal(encoder(x, lengths)[0], encoder(x, lengths)[0])
    encoder.eval()
    assert torch.equal(encoder(x, lengths)[0], encoder(x, lengths)[0])


def test_a_length_beyond_the_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[5\] exceed the 4 frames"):
        encoder_of(BOTH)(torch.zeros(1, 4, 6), torch.tensor([5]))


def test_size_of_the_published_layers() -> None:
    # A layer: two norms, queries, keys and values without a bias, an output map, a perceptron; seven of them.
    width, patch = 384, 5 * 256
    layer = 4 * width + 3 * width**2 + width**2 + width + 8 * width**2 + 5 * width
    expected = 2 * patch + patch * width + width + 2 * width + 6 * NUM_BUCKETS + 7 * layer + 2 * width
    with torch.device("meta"):
        assert (
            sum(p.numel() for p in TransformerEncoder(TransformerConfig(), patch).parameters())
            == expected
            == 12_909_376
        )


def test_what_weight_decay_acts_on() -> None:
    undecayed = {name for name, _ in encoder_of(BOTH).named_parameters() if group_of(f"encoder.{name}") == "bias"}
    assert "distance.bias_HK" in undecayed
    assert undecayed == {name for name, _ in encoder_of(BOTH).named_parameters() if "bias" in name}
    assert DecoderModel.component_of("encoder.distance.bias_HK") == "encoder"


@pytest.mark.parametrize("bidirectional", [True, False])
def test_in_a_model_with_patches_and_a_speaking_mode(bidirectional: bool) -> None:
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(
            patch=PatchConfig(4, 2),
            transformer=replace(BOTH, bidirectional=bidirectional),
            speaking_mode=SpeakingModeConfig(),
            num_channels=5,
            num_symbols=7,
        )
    ).eval()
    lengths = torch.tensor([20, 9])
    encoded = model.encode(torch.randn(2, 20, 5), lengths, torch.zeros(2, dtype=torch.long))
    assert encoded.lengths_B.tolist() == model.output_lengths(lengths).tolist() == [9, 3]
    assert encoded.mode is not None
    assert model.ctc_logits(encoded).shape == (2, 9, 7)


def test_it_learns_what_only_the_neighbour_knows() -> None:
    """Each frame's label is the sign of the frame before it: distance must be used."""
    torch.manual_seed(0)
    encoder, head = TransformerEncoder(CAUSAL, 3), torch.nn.Linear(12, 2)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-2)
    lengths, accuracy = torch.full((16,), 12), 0.0
    for _ in range(150):
        x = torch.randn(16, 12, 3)
        target = (x[:, :-1, 0] > x[:, :-1, 1]).long()
        logits = head(encoder(x, lengths)[0][:, 1:])
        loss = functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        accuracy = (logits.argmax(-1) == target).float().mean().item()
    assert accuracy > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 5}, "heads=5: must divide the width, 384"),
        ({"layers": 0}, "layers=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"input_dropout": -0.1}, "input_dropout"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TransformerConfig(**settings)
