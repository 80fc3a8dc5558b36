"""Benchmarks: ours beside others, interleaved in one process, as ratios."""

from typing import Final

BENCHMARKS: Final = ("distillation", "encoder", "guard", "train-step", "transducer-loss")
"""`train-step` is `bench_train_step` in `train_step.py`, and so on."""
