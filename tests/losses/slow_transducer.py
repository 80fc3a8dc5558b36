"""The transducer loss the obvious ways, in float64: every alignment written out, and the recursions cell by cell."""

from __future__ import annotations

import itertools
import math

import torch


def by_enumeration(logits_SWV: torch.Tensor, target: list[int], blank: int) -> float:
    """−ln of the sum over all orders of T blanks and U labels that end with a blank."""
    log_p, frames = logits_SWV.double().log_softmax(-1), len(logits_SWV)
    found = []
    for places in itertools.combinations(range(frames - 1 + len(target)), len(target)):
        t = u = 0
        total = 0.0
        for move in range(frames + len(target)):
            if move in places:
                total, u = total + log_p[t, u, target[u]].item(), u + 1
            else:
                total, t = total + log_p[t, u, blank].item(), t + 1
        found.append(total)
    return -math.log(math.fsum(math.exp(total) for total in found))


def alpha_beta(logits_SWV: torch.Tensor, target: list[int], blank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """α and β of every cell, each [T, U+1], by the recursions; differentiable."""
    log_p, frames, rows = logits_SWV.double().log_softmax(-1), len(logits_SWV), len(target) + 1
    alpha: dict[tuple[int, int], torch.Tensor] = {(0, 0): log_p.new_zeros(())}
    beta = {(frames - 1, rows - 1): log_p[-1, rows - 1, blank]}
    cells = list(itertools.product(range(frames), range(rows)))
    for t, u in cells[1:]:
        ways = [alpha[t - 1, u] + log_p[t - 1, u, blank]] if t else []
        ways += [alpha[t, u - 1] + log_p[t, u - 1, target[u - 1]]] if u else []
        alpha[t, u] = torch.logsumexp(torch.stack(ways), 0)
    for t, u in cells[-2::-1]:
        ways = [beta[t + 1, u] + log_p[t, u, blank]] if t + 1 < frames else []
        ways += [beta[t, u + 1] + log_p[t, u, target[u]]] if u + 1 < rows else []
        beta[t, u] = torch.logsumexp(torch.stack(ways), 0)
    both = [torch.stack([values[cell] for cell in cells]).view(frames, rows) for values in (alpha, beta)]
    return both[0], both[1]


def by_recursion(logits_SWV: torch.Tensor, target: list[int], blank: int) -> torch.Tensor:
    """−ln P = −(α + ln p(blank)) of the last cell; autograd gives its gradient."""
    alpha, _ = alpha_beta(logits_SWV, target, blank)
    return -alpha[-1, -1] - logits_SWV.double().log_softmax(-1)[-1, len(target), blank]
