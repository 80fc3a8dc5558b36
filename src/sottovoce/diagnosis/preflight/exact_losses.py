"""CTC and transducer losses of one trial in float64, frame by frame: slow and obvious, what a run's are held against.

Legend: S frames, U labels, W = U+1 rows of the lattice, V symbols.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float64]


def log_probabilities(logits: torch.Tensor) -> FloatArray:
    """Log-softmax over the last axis, in float64."""
    array: FloatArray = logits.detach().double().log_softmax(-1).cpu().numpy()
    return array


def ctc_nats(log_p_SV: FloatArray, target: Sequence[int], blank: int) -> float:
    """−ln of the summed probability of all alignments (Graves et al. 2006, section 4.1); +inf where there is none.

    >>> round(ctc_nats(np.log(np.full((2, 3), 1 / 3)), [1], 0), 6)  # 1-, -1 and 11 of 9 paths
    1.098612
    """
    states = np.full(2 * len(target) + 1, blank)
    states[1::2] = target
    skips = np.zeros(len(states), bool)
    skips[2:] = (states[2:] != blank) & (states[2:] != states[:-2])
    alpha = np.full(len(states), -np.inf)
    alpha[:2] = log_p_SV[0, states[:2]]
    with np.errstate(invalid="ignore"):
        for log_p_V in log_p_SV[1:]:
            arriving = alpha.copy()
            arriving[1:] = np.logaddexp(arriving[1:], alpha[:-1])
            arriving[2:] = np.where(skips[2:], np.logaddexp(arriving[2:], alpha[:-2]), arriving[2:])
            alpha = arriving + log_p_V[states]
    return -float(np.logaddexp.reduce(alpha[-2:]))


def transducer_nats(log_p_SWV: FloatArray, target: Sequence[int], blank: int) -> float:
    """−ln of the summed probability of all alignments (Graves 2012, section 2.4).

    >>> round(transducer_nats(np.log(np.full((1, 2, 2), 1 / 2)), [1], 0), 6)  # the label, then the blank
    1.386294
    """
    num_labels = len(target)
    label_SU = log_p_SWV[:, np.arange(num_labels), np.asarray(target, dtype=np.int64)]
    said_SW = np.concatenate([np.zeros((len(label_SU), 1)), np.cumsum(label_SU, 1)], 1)
    arriving_W = np.full(num_labels + 1, -np.inf)
    arriving_W[0] = 0.0
    for said_W, blank_W in zip(said_SW, log_p_SWV[:, :, blank], strict=True):
        alpha_W = said_W + np.logaddexp.accumulate(arriving_W - said_W)
        arriving_W = alpha_W + blank_W
    return -float(arriving_W[-1])
