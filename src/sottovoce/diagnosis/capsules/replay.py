"""A bad step computed again from its capsule, held against what the run saw, and taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.capsules.capsule import Capsule
from sottovoce.diagnosis.capsules.isolation import Isolation, isolate
from sottovoce.diagnosis.capsules.reading import read_capsule
from sottovoce.diagnosis.capsules.recompute import device_of, same_losses
from sottovoce.diagnosis.capsules.root_causes import BEYOND_THE_REPLAY, root_causes, where
from sottovoce.diagnosis.causes import found
from sottovoce.training.environment import describe_environment


@dataclass(frozen=True)
class Replayed:
    """What came of it."""

    capsule: Capsule
    isolation: Isolation
    reproduced: bool
    """The same losses and gradients are not finite, or the same excess came back."""
    exact: bool
    """Every loss is the same number, bit for bit."""
    differences: tuple[str, ...]
    """What is not as it was when the capsule was written: versions, processor, device."""
    findings: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        """What `diagnose --replay --json` adds."""
        isolated = self.isolation
        return {
            "reproduced": self.reproduced,
            "exact": self.exact,
            "differences": list(self.differences),
            "terms": list(isolated.terms),
            "trials": list(isolated.trials),
            "module_forward": None if isolated.forward is None else str(isolated.forward),
            "module_outlier": None if isolated.outlier is None else str(isolated.outlier),
            "module_backward": None if isolated.backward is None else str(isolated.backward),
            "operation": None if isolated.operation is None else str(isolated.operation),
            "bad_by_dtype": isolated.by_dtype,
            "bad_on_fresh_weights": None if isolated.fresh is None else isolated.fresh.is_bad,
        }


def replay(folder: Path) -> Replayed:
    """Compute the step of the capsule in `folder` again, from the capsule alone, and find its cause.

    Raises:
        CheckpointError: it is no capsule, or cannot be computed again with this version.
    """
    capsule = read_capsule(folder)
    isolated = isolate(capsule)
    exact = same_losses(capsule.losses, isolated.whole.losses)
    reproduced = _reproduced(capsule, isolated, exact)
    differences = _differences(capsule)
    findings = root_causes(capsule, isolated) if reproduced else []
    if not findings:
        findings = (
            [as_told(capsule, BEYOND_THE_REPLAY)] if reproduced else [_not_reproduced(capsule, isolated, differences)]
        )
    return Replayed(capsule, isolated, reproduced, exact, differences, tuple(findings))


def as_told(capsule: Capsule, fix: str = "") -> Finding:
    """What the guard said of the step, as a finding: the symptom, not yet the cause. `fix` replaces the catalogue's."""
    verdict = capsule.verdict
    evidence = f"The guard refused step {capsule.step}: {verdict.evidence}."
    return found(str(verdict.cause), evidence, "guard", step=capsule.step, fix=fix)


def _reproduced(capsule: Capsule, isolated: Isolation, exact: bool) -> bool:
    """The same things went wrong; numbers may differ in their last digits."""
    if isolated.bad_weights:
        return True
    told, now = capsule.verdict, isolated.whole
    if told.cause in ("nonfinite_loss", "nonfinite_gradient", "poisoned_weights"):
        bad = {name for name, summary in told.gradients.items() if summary.nonfinite}
        losses = {key for key, nats in capsule.losses.items() if not -float("inf") < nats < float("inf")}
        return now.is_bad and losses == set(now.bad_losses) and (bad == set(now.bad_gradients) or not bad)
    if told.cause == "gradient_spike":
        return now.norm > told.gradient_norm / 2
    if told.cause == "zero_loss":
        return not any(now.losses.values())
    return exact or now.losses.keys() == capsule.losses.keys()


def _not_reproduced(capsule: Capsule, isolated: Isolation, differences: tuple[str, ...]) -> Finding:
    bad = isolated.whole.bad_gradients or [f"{loss} of {trial}" for loss, trial in isolated.whole.bad_losses]
    now = f"not finite now: {', '.join(bad[:3])}" if bad else "all losses and gradients are finite now"
    also = f"; different here: {', '.join(differences)}" if differences else ", with the same versions and threads"
    evidence = (
        f"The guard refused step {capsule.step} ({capsule.verdict.cause}: {capsule.verdict.evidence}); {now}{also}."
    )
    return found("not_reproduced", evidence, "explainer", step=capsule.step, support=0.5)


def _differences(capsule: Capsule) -> tuple[str, ...]:
    """What can make numbers differ. The number of threads is set as it was."""
    now, then = describe_environment(capsule.config.seed), capsule.environment
    pairs = [("sottovoce", then.get("commit"), now["commit"]), ("python", then.get("python"), now["python"])]
    pairs += [(name, then.get("packages", {}).get(name), now["packages"][name]) for name in ("torch", "numpy")]
    pairs.append(("processor", then.get("machine", {}).get("processor"), now["machine"]["processor"]))
    pairs.append(("device", capsule.device, device_of(capsule).type))
    pairs.append(("training.compile", capsule.config.training.compile, False))
    return tuple(f"{name} {a} → {b}" for name, a, b in pairs if a != b)


def summary(replayed: Replayed) -> str:
    """A line for a person: did it come back, and where is it?"""
    came_back = "comes back" if replayed.reproduced else "does not come back"
    digits = ", bit for bit" if replayed.exact else ""
    changed = f" (different here: {', '.join(replayed.differences)})" if replayed.differences else ""
    return f"step {replayed.capsule.step} {came_back}{digits}{changed}: {where(replayed.isolation)}"
