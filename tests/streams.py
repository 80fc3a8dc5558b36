"""What the tests of streams share: a signal cut anywhere, and the size of a state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from hypothesis import strategies as st


def cuts(length: int, most: int = 12) -> st.SearchStrategy[list[int]]:
    """Places to cut a signal of `length` at, in order; equal neighbours make empty pieces."""
    return st.lists(st.integers(0, length), max_size=most).map(sorted)


def pieces(signal: torch.Tensor, places: Sequence[int], axis: int = 0) -> Iterator[torch.Tensor]:
    """`signal` cut at these places along `axis`; together they are all of it."""
    for start, end in zip([0, *places], [*places, signal.shape[axis]], strict=True):
        yield signal.narrow(axis, start, end - start)


def num_bytes(state: Any) -> int:
    """Bytes of the memory that the tensors of a state hold on to, views by all of what they are views of."""
    if isinstance(state, torch.Tensor):
        return state.untyped_storage().nbytes()
    if is_dataclass(state):
        return sum(num_bytes(getattr(state, field.name)) for field in fields(state))
    return sum(map(num_bytes, state)) if isinstance(state, (tuple, list)) else 0
