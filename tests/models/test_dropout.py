"""Dropout from sixteen random bits a value."""

from __future__ import annotations

import pytest
import torch

from sottovoce.models.dropout import dropout


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_share_of_zeros_and_the_scale(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(500, 401, dtype=dtype)
    y = dropout(x, p, training=True)
    assert y.dtype == dtype
    kept = y[y != 0].double()
    torch.testing.assert_close(
        kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-2 if dtype == torch.bfloat16 else 2e-4, atol=0
    )
    share = 1 - len(kept) / x.numel()
    assert abs(share - p) < 4 * (p * (1 - p) / x.numel()) ** 0.5


def test_neighbours_are_independent() -> None:
    """Four values share one draw of 64 bits."""
    torch.manual_seed(1)
    kept = (dropout(torch.ones(40_000, 4), 0.3, training=True) != 0).double()
    correlations = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlations.abs().max() < 4 / 40_000**0.5


def test_gradients_pass_where_values_do() -> None:
    x = torch.randn(7, 5, requires_grad=True)
    y = dropout(x, 0.4, training=True)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x.detach(), y.detach())


def test_the_global_generator_decides_and_evaluation_changes_nothing() -> None:
    x = torch.randn(3, 9)
    found = []
    for _ in range(2):
        torch.manual_seed(4)
        found.append(dropout(x, 0.5, training=True))
    assert torch.equal(*found)
    assert not torch.equal(found[0], dropout(x, 0.5, training=True))
    assert dropout(x, 0.5, training=False) is x or torch.equal(dropout(x, 0.5, training=False), x)
    assert torch.equal(dropout(x, 0.0, training=True), x)
    assert dropout(x[:0], 0.5, training=True).shape == (0, 9)
