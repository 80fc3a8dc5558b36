"""How the losses are scaled against each other: in values."""

from __future__ import annotations

import math

import pytest
import torch

from sottovoce.training.balance import GradientBalance
from sottovoce.training.branches.transducer import length_scaled


def test_the_length_scale_is_the_geometric_mean_of_a_trials_own_lengths_and_at_least_5() -> None:
    nats = length_scaled(torch.tensor([90.0, 90.0]), torch.tensor([90, 4]), torch.tensor([10, 2]), "length")
    assert nats.tolist() == pytest.approx([90 / math.sqrt(900), 90 / 5])


def test_the_frame_scale_is_half_a_trials_own_frames_and_at_least_1() -> None:
    nats = length_scaled(torch.tensor([90.0, 90.0]), torch.tensor([90, 1]), torch.tensor([10, 2]), "frames")
    assert nats.tolist() == pytest.approx([2.0, 90.0])


def test_the_balance_makes_the_transducers_gradient_as_large_as_ctcs() -> None:
    balance = GradientBalance(decay=0.5)
    assert balance.transducer_factor == 1.0
    for squares in (9.0, 7.0):  # two micro-batches: together a norm of 4
        balance.measure("ctc", squares)
    balance.measure("rnnt", 64.0)
    assert balance.transducer_factor == 1.0  # the step in progress changes nothing yet
    balance.settle(step_is_good=True)
    assert balance.transducer_factor == pytest.approx(0.5)
    balance.measure("ctc", 144.0)
    balance.measure("rnnt", 64.0)
    balance.settle(step_is_good=True)
    assert balance.transducer_factor == pytest.approx((0.5 * 4 + 0.5 * 12) / 8)


def test_a_step_that_is_skipped_leaves_no_trace_in_the_balance() -> None:
    balance = GradientBalance()
    for name, squares in (("ctc", 1.0), ("rnnt", 4.0)):
        balance.measure(name, squares)
    balance.settle(step_is_good=True)
    for name in ("ctc", "rnnt"):
        balance.measure(name, float("nan"))
    balance.settle(step_is_good=False)
    assert balance.transducer_factor == pytest.approx(0.5)
    balance.settle(step_is_good=True)
    assert balance.transducer_factor == pytest.approx(0.5)
