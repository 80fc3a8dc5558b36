"""What is frozen: not run, not moved, its statistics kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.monitor.plan import ObservedStep, Plan, monitored
from sottovoce.models.compose import DecoderModel
from sottovoce.training.branches import BRANCHES
from sottovoce.training.optimizer import SESSION_MODULE
from sottovoce.training.step import StepComputer


@dataclass
class Frozen:
    """Row B3: what is frozen is not run, does not move, and keeps its statistics."""

    plan: Plan
    reported: list[str] = field(default_factory=list)
    learning: list[str] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    """Norm of each frozen tensor."""
    runs: dict[str, int] = field(default_factory=dict)
    """Forward passes in training of each decoder's modules in the step in progress."""

    def watch_decoders(self, computer: StepComputer) -> None:
        """Count the forward passes of the decoders that can be switched off."""
        for loss, branch in computer.branches.items():
            decoder = branch.own_part(computer.model)
            for child in decoder.modules() if decoder is not None else ():
                if not list(child.children()):
                    child.register_forward_pre_hook(self._count(loss))

    def _count(self, loss: str) -> Callable[[torch.nn.Module, object], None]:
        def hook(child: torch.nn.Module, inputs: object) -> None:
            if child.training:
                self.runs[loss] = self.runs.get(loss, 0) + 1

        return hook

    def look(self, now: ObservedStep) -> Iterator[Finding]:
        """After every step."""
        runs, self.runs = self.runs, {}
        learning = sorted(now.activity.rates)
        if learning != self.learning or now.view.verdict.action == "roll_back":
            self.learning, self.sums = learning, {}
        if "frozen_branch_leaks" in self.reported:
            return
        evidence = self._runs(now, runs)
        if not evidence and now.sample is not None:
            evidence = self._moves(now)
        if evidence:
            self.reported.append("frozen_branch_leaks")
            yield monitored("frozen_branch_leaks", evidence, now.step)

    def _runs(self, now: ObservedStep, runs: dict[str, int]) -> str:
        rates, weights = now.activity.rates, now.activity.weights
        computed = {name for name, _ in now.view.record.losses}
        for loss, component in ((name, branch.component) for name, branch in BRANCHES.items()):
            if component in rates:
                continue
            if loss in weights or loss in computed:
                return f"{component} is frozen at step {now.step}, but its loss {loss} is computed and counts."
            if runs.get(loss):
                return f"{component} is switched off at step {now.step}, but was run {runs[loss]} times in training."
        return ""

    def _moves(self, now: ObservedStep) -> str:
        model = now.view.computer.model
        entries = [*model.named_parameters(), *model.named_buffers()]
        frozen = {name: t for name, t in entries if _is_frozen(name, now) and t.is_floating_point()}
        if not frozen:
            return ""
        tensors = [t.detach() for t in frozen.values()]
        norms = dict(zip(frozen, torch.stack(torch._foreach_norm(tensors)).tolist(), strict=True))
        moved = [name for name, norm in norms.items() if self.sums.get(name, norm) != norm]
        self.sums = norms
        return f"{moved[0]} belongs to a frozen component and has changed up to step {now.step}." if moved else ""


def _is_frozen(name: str, now: ObservedStep) -> bool:
    return DecoderModel.component_of(name) not in now.activity.rates and not name.startswith(SESSION_MODULE)
