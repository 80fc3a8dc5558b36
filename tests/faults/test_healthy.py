"""Healthy runs of different recipes and seeds: no error in any, and at most one warning in all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sottovoce.core.findings import Finding
from tests.faults.scene import Base, Exhibit, Scene, findings_of, record

RUNS: tuple[tuple[Base, tuple[str, ...]], ...] = (
    *(("gru", (f"seed={seed}",)) for seed in range(1, 7)),
    *(("gru", ("model.session_adapter=null", f"seed={seed}")) for seed in (11, 12)),
    *(
        ("gru", ("training.gradient_accumulation_steps=2", "training.batch_size=4", f"seed={seed}"))
        for seed in (13, 14)
    ),
    *(("gru", ("training.scheduler.name=constant", f"seed={seed}")) for seed in (15,)),
    *(("gru", ("training.loss_normalisation=per_token", f"seed={seed}")) for seed in (16,)),
    *(("gru", ("augmentation.white_noise_std=0.0", f"seed={seed}")) for seed in (17,)),
    *(("curriculum", (f"seed={seed}",)) for seed in (1, 2, 3, 4)),
    *(("curriculum", ("training.loss_scaling=length", f"seed={seed}")) for seed in (5,)),
    *(("curriculum", ("training.loss_scaling=gradient_norm", f"seed={seed}")) for seed in (6,)),
    *(("recordings", (f"seed={seed}",)) for seed in (1, 2, 3, 4)),
)
QUICK = (0, 6, 17)
"""Places of those that are part of the suite; `make museum` runs all."""


@pytest.mark.parametrize(
    ("base", "overrides"),
    [
        pytest.param(base, more, id="-".join((base, *more)), marks=[] if i in QUICK else [pytest.mark.museum])
        for i, (base, more) in enumerate(RUNS)
    ],
)
def test_a_healthy_run_gets_no_finding(
    base: Base, overrides: tuple[str, ...], neural: Path, voices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(monkeypatch, voices if base == "recordings" else neural, tmp_path)
    findings: list[Finding] = findings_of(Exhibit("healthy", "-", "", base=base, overrides=overrides), scene)
    record(Exhibit(f"healthy: {base} {' '.join(overrides)}", "-", ""), findings)
    assert not findings, "\n".join(str(finding) for finding in findings)
