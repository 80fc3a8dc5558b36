"""Training: one optimiser, one guard, steps that are pure functions of the seed."""

from sottovoce.training.guard import GradientGuard as GradientGuard
from sottovoce.training.guard_callback import GuardCallback as GuardCallback
