"""The lowest CTC loss that a model can reach without looking at its input.

A model that gives every frame the same distribution cannot do better than F = min over z of the mean CTC loss with
constant logits z. A training loss well below F proves that the input is used, however many blanks come out.

Legend: B trials, S frames, U labels, V symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch.nn import functional

MOST_TRIALS: Final = 32
"""Trials that the floor is computed from, spread evenly over their lengths."""
ITERATIONS: Final = 25
"""Of L-BFGS; it starts from the unigram distribution and needs about ten."""


def input_blind_floor(
    targets: Sequence[Sequence[int]], frames: Sequence[int], num_symbols: int, blank: int = 0
) -> float:
    """F in nats an utterance, over at most 32 of these trials; under a second for sentences.

    Args:
        targets: labels of each trial.
        frames: frames of each, enough for its labels.
        num_symbols: logit columns, blank included.

    >>> round(input_blind_floor([[1], [2]], [1, 1], 3), 4)  # ln 2: a coin
    0.6931
    """
    order = sorted(range(len(targets)), key=lambda i: frames[i])
    chosen = order[:: -(-len(order) // MOST_TRIALS)]
    lengths_B = torch.tensor([frames[i] for i in chosen])
    label_lengths_B = torch.tensor([len(targets[i]) for i in chosen])
    labels = torch.tensor([label for i in chosen for label in targets[i]], dtype=torch.int64)
    z_V = _unigram_logits(labels, int(lengths_B.sum()), num_symbols, blank).requires_grad_()
    optimizer = torch.optim.LBFGS([z_V], max_iter=ITERATIONS, line_search_fn="strong_wolfe")
    shape = (int(lengths_B.max()), len(chosen), num_symbols)

    def loss() -> torch.Tensor:
        log_probs_SBV = functional.log_softmax(z_V, dim=-1).expand(shape)
        nats_B = functional.ctc_loss(
            log_probs_SBV, labels, lengths_B, label_lengths_B, blank=blank, reduction="none", zero_infinity=False
        )
        return nats_B.mean()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(loss().detach())


def _unigram_logits(labels: torch.Tensor, num_frames: int, num_symbols: int, blank: int) -> torch.Tensor:
    """Each symbol at its share of all frames, what is left to the blank: where the search starts."""
    counts = torch.bincount(labels, minlength=num_symbols).double() + 0.01
    counts[blank] = max(num_frames - len(labels), 1)
    return counts.log()
