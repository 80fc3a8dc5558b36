"""The written-out backward pass against PyTorch's own layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sottovoce.models.gru import GRUConfig, GRUEncoder
from sottovoce.models.gru_recurrence import recurrence


def _encoder(layers: int, dropout: float = 0.0) -> GRUEncoder:
    torch.manual_seed(3)
    encoder = GRUEncoder(GRUConfig(units=5, layers=layers, dropout=dropout), 7).double()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return encoder


@pytest.mark.parametrize(("layers", "frames"), [(1, 1), (1, 6), (3, 9)])
def test_values_and_all_gradients_are_those_of_pytorchs_gru(layers: int, frames: int) -> None:
    encoder = _encoder(layers)
    x = torch.randn(4, frames, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, frames, 5, dtype=torch.float64)
    found = []
    for output in (
        encoder(x, torch.full((4,), frames))[0],
        encoder.step(encoder.start(4), x)[1],
    ):
        (output * weights).sum().backward()
        found.append([output.detach(), x.grad, *(p.grad for p in encoder.parameters())])
        x.grad = None
        encoder.zero_grad()
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


def test_gradcheck() -> None:
    torch.manual_seed(1)
    shapes = [(2, 4, 6), (2, 2), (6, 2), (6,)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(recurrence, inputs)


def test_only_training_takes_the_written_out_pass_and_dropout_acts_between_layers_only() -> None:
    encoder = _encoder(2, dropout=0.5)
    x, lengths = torch.randn(2, 6, 7, dtype=torch.float64), torch.tensor([6, 6])
    torch.manual_seed(0)
    dropped = encoder(x, lengths)[0]
    torch.manual_seed(0)
    torch.testing.assert_close(dropped, encoder(x, lengths)[0], rtol=0, atol=0)
    encoder.eval()
    trained = encoder(x, lengths)[0]
    with torch.no_grad():
        torch.testing.assert_close(trained, encoder(x, lengths)[0])
    assert not torch.allclose(dropped, trained)
    single = _encoder(1, dropout=0.5)
    torch.testing.assert_close(single(x, lengths)[0], single.eval()(x, lengths)[0])
