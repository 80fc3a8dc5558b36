"""Named random generators: every draw is a pure function of (seed, purpose, indices).

Because batch *n*, its augmentation and its dropout masks depend on nothing but the seed and *n*, a resumed run
needs no saved generator state to continue exactly, and a batch is the same whichever process prepares it.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import torch

Purpose = Literal["init", "sampling", "split", "augmentation", "dropout", "simulation", "bootstrap"]
_PURPOSES: Final[dict[Purpose, int]] = {
    "init": 1,
    "sampling": 2,
    "split": 3,
    "augmentation": 4,
    "dropout": 5,
    "simulation": 6,
    "bootstrap": 7,
}


def seed_for(seed: int, purpose: Purpose, *indices: int) -> int:
    """A 63-bit seed that depends on `seed`, `purpose` and every one of `indices` (all ≥ 0)."""
    words = np.random.SeedSequence(_entropy(seed, purpose, indices)).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def numpy_generator(seed: int, purpose: Purpose, *indices: int) -> np.random.Generator:
    """A NumPy generator for `purpose`, independent of every other purpose and index."""
    return np.random.default_rng(_entropy(seed, purpose, indices))


def torch_generator(seed: int, purpose: Purpose, *indices: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A PyTorch generator for `purpose`; CPU and CUDA give different numbers for the same seed."""
    return torch.Generator(device).manual_seed(seed_for(seed, purpose, *indices))


def _entropy(seed: int, purpose: Purpose, indices: tuple[int, ...]) -> list[int]:
    """NumPy pads entropy with zeros, so the number of indices is part of it: (3,) and (3, 0) must differ."""
    return [seed, _PURPOSES[purpose], len(indices), *indices]
