"""The transducer head: size, start, the predictor's state and both joints."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sottovoce.core.errors import ConfigurationError
from sottovoce.models.transducer import TransducerConfig, TransducerHead

SMALL = TransducerConfig(embedding_size=6, units=7, layers=2, joint_size=5, dropout=0.0)
FORMS = [
    SMALL,
    TransducerConfig(embedding_size=6, units=7, layers=1, joint_size=5, joint="source", dropout=0.0),
    TransducerConfig(embedding_size=6, units=7, layers=0, joint_size=5, dropout=0.0),
]


def _head(config: TransducerConfig, num_symbols: int = 4, blank: int = 0) -> TransducerHead:
    torch.manual_seed(0)
    return TransducerHead(config, 8, num_symbols, blank)


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_size_of_the_source_form_is_the_published_one() -> None:
    head = TransducerHead(TransducerConfig(joint="source"), encoder_size=512, num_symbols=41)
    assert _size(head.embedding) == 20_992
    assert _size(head.predictor) == 4_202_496
    assert _size(head.encoder_projection) + _size(head.predictor_projection) == 525_312
    assert _size(head.joint_layers) + _size(head.output) == 546_345
    assert _size(head) == 5_295_145


def test_size_of_the_default_form() -> None:
    # the source form without its two hidden layers of 512·512 + 512
    assert _size(TransducerHead(TransducerConfig(), 512, 41)) == 5_295_145 - 2 * 262_656


def test_size_without_recurrence() -> None:
    # embedding 41·512; linear 1024·512 + 512; projections 2·262,656; output 512·41 + 41
    assert _size(TransducerHead(TransducerConfig(layers=0), 512, 41)) == 20_992 + 524_800 + 525_312 + 21_033


@pytest.mark.parametrize("layers", [0, 2])
def test_start_values(layers: int) -> None:
    head = TransducerHead(TransducerConfig(layers=layers), 512, 41)
    assert 0.09 < float(head.embedding.weight.abs().max().detach()) <= 0.1
    for name, parameter in head.named_parameters():
        if "bias" in name:
            assert not parameter.any(), name
        elif "embedding" not in name:
            rows, columns = parameter.shape
            bound = (6 / (rows + columns)) ** 0.5
            assert 0.97 * bound < float(parameter.abs().max().detach()) < 1.00001 * bound, name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("config", FORMS)
def test_stepping_through_the_labels_equals_predict(config: TransducerConfig, training: bool) -> None:
    head = _head(config).train(training)
    for name, parameter in head.named_parameters():
        if "bias" in name:  # 0 at first
            torch.nn.init.normal_(parameter)
    targets = torch.tensor([[1, 1, 2, 3], [3, 2, 1, 1]])
    whole = head.predict(targets, torch.tensor([4, 4]))
    assert whole.shape == (2, 5, 5)
    state = head.start(2)
    for u, symbols in enumerate([torch.tensor([0, 0]), *targets.T]):
        state, output = head.advance(state, symbols)
        torch.testing.assert_close(output, whole[:, u], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("config", FORMS)
def test_logits_of_a_cell_are_those_of_its_frame_and_its_labels(config: TransducerConfig) -> None:
    head = _head(config)
    encoder, targets = torch.randn(2, 3, 8), torch.tensor([[1, 2], [3, 3]])
    lattice = head.logits(head.project(encoder), head.predict(targets, torch.tensor([2, 2])))
    assert lattice.shape == (2, 3, 3, 4)
    for b in range(2):
        for s in range(3):
            for u in range(3):
                frame = encoder[b : b + 1, s : s + 1]
                labels, length = targets[b : b + 1, :u], torch.tensor([u])
                hidden = head.project(frame)[:, 0] + head.predict(labels, length)[:, u]
                torch.testing.assert_close(lattice[b, s, u], head.joint(hidden)[0], atol=1e-6, rtol=1e-5)


def test_the_additive_joint_is_tanh_and_the_output_layer() -> None:
    head = _head(SMALL)
    frames, labels = (
        head.project(torch.randn(2, 3, 8)),
        head.predict(torch.ones(2, 2, dtype=torch.long), torch.tensor([2, 1])),
    )
    by_hand = (frames[:, :, None] + labels[:, None]).tanh() @ head.output.weight.T + head.output.bias
    torch.testing.assert_close(head.logits(frames, labels), by_hand)


@pytest.mark.parametrize("config", FORMS)
def test_padding_of_the_targets_changes_nothing(config: TransducerConfig) -> None:
    head = _head(config, blank=2)
    padded = head.predict(torch.tensor([[1, -1, 99], [0, 1, 3]]), torch.tensor([1, 3]))
    alone = head.predict(torch.tensor([[1]]), torch.tensor([1]))
    torch.testing.assert_close(padded[:1, :2], alone, atol=1e-6, rtol=1e-5)


def test_without_recurrence_only_the_last_two_symbols_count() -> None:
    head = _head(FORMS[2])
    outputs = head.predict(torch.tensor([[1, 2, 3], [3, 2, 3]]), torch.tensor([3, 3]))
    assert torch.equal(outputs[0, 3], outputs[1, 3])
    assert not torch.equal(outputs[0, 2], outputs[1, 2])


@pytest.mark.parametrize("config", FORMS)
def test_gradients_reach_every_parameter(config: TransducerConfig) -> None:
    head = _head(config)
    lattice = head.logits(
        head.project(torch.randn(2, 3, 8)), head.predict(torch.tensor([[1, 2], [3, 1]]), torch.tensor([2, 2]))
    )
    (lattice * torch.randn_like(lattice)).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    "setting",
    [{"embedding_size": 0}, {"units": 0}, {"joint_size": 0}, {"layers": -1}, {"joint": "product"}, {"dropout": 1.0}],
)
def test_senseless_settings_are_rejected(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=rf"model\.transducer\.{next(iter(setting))}="):
        TransducerConfig(**setting)


def test_the_blank_is_one_of_the_symbols() -> None:
    with pytest.raises(ConfigurationError, match="blank=4"):
        _head(SMALL, num_symbols=4, blank=4)
