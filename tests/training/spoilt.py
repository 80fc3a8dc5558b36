"""Losses that are wrong, put where a run will find them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sottovoce.training.branches import BRANCHES


def exact_loss(function: str) -> Callable[..., Any]:
    """The loss function of this name that some branch calls."""
    return next(branch.functions[function] for branch in BRANCHES.values() if function in branch.functions)


def spoil_loss(patch: pytest.MonkeyPatch, function: str, wrong: Callable[..., Any]) -> None:
    """Let the branch that calls the loss function of this name call `wrong` instead."""
    name, branch = next((name, branch) for name, branch in BRANCHES.items() if function in branch.functions)
    patch.setitem(BRANCHES, name, replace(branch, functions={**branch.functions, function: wrong}))
