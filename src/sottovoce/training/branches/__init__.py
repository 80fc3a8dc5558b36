"""The losses that a run can train with, one file each; `BRANCHES` is the list that everything else reads."""

from __future__ import annotations

from typing import Final

from sottovoce.training.branches.branch import Branch as Branch
from sottovoce.training.branches.branch import PartInputs as PartInputs
from sottovoce.training.branches.ctc import CTC as CTC
from sottovoce.training.branches.denoising import DENOISING as DENOISING
from sottovoce.training.branches.distillation import DISTILLATION as DISTILLATION
from sottovoce.training.branches.speaking_mode import SPEAKING_MODE as SPEAKING_MODE
from sottovoce.training.branches.transducer import TRANSDUCER as TRANSDUCER

BRANCHES: Final = {branch.name: branch for branch in (CTC, TRANSDUCER, SPEAKING_MODE, DISTILLATION, DENOISING)}
"""By name, in the order in which they are computed."""
