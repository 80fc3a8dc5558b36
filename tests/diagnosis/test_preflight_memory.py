"""What the longest batch takes: the estimate against batches of that size, what is available, and the verdict."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sottovoce.cli.main import main
from sottovoce.data.collation import collate
from sottovoce.diagnosis.preflight import memory, memory_limits, preflight
from sottovoce.diagnosis.preflight.memory import TEMPORARIES, MemoryEstimate, estimate_memory
from sottovoce.diagnosis.preflight.rehearsal import rehearse, saved_bytes
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.training.composition import compose_config
from sottovoce.training.preparation import prepare

pytestmark = pytest.mark.slow

GIB = 1 << 30
DEMO = ("recipe=demo", "model.gru.units=24")
CURRICULUM = ("recipe=mode_ssm_small", "model.stem.width=32", "model.ssm={layers: 2, width: 32, head_size: 8}")
TRANSFORMER = ("recipe=demo", "model.gru=null", "model.transformer={width: 8, layers: 3, heads: 8}")


def configured(data: Path, *more: str) -> tuple[str, ...]:
    return (*more, f"data.data_root={data}", "preprocessor.num_channels=16", "data.num_workers=0")


@pytest.mark.parametrize("recipe", [DEMO, CURRICULUM, TRANSFORMER], ids=["gru", "transducer", "transformer"])
@pytest.mark.parametrize("size", [2, 12])
def test_the_estimate_is_what_a_batch_of_the_longest_trial_keeps(
    recipe: tuple[str, ...], size: int, tiny_t15: Path
) -> None:
    prepared = prepare(compose_config(configured(tiny_t15, *recipe, f"training.batch_size={size}")))
    untrained, trials = UntrainedRun.of(prepared), prepared.trial_set.trials
    longest = max(prepared.train_indices, key=lambda i: trials[i].num_steps)
    with untrained.untouched():
        rehearsals = [rehearse(untrained, step_kind) for step_kind in untrained.step_kinds]
        step_kind = max(rehearsals, key=lambda rehearsal: rehearsal.saved_bytes).step_kind
        estimate = estimate_memory(untrained, rehearsals)
        batch = collate(prepared.trial_set, [longest] * size)
        kept = saved_bytes(untrained, step_kind, batch)
    signals = 2 * batch.signal.numel() * batch.signal.element_size()
    labels = max(len(trials[i].labels or ()) for i in prepared.train_indices)
    assert len(trials[longest].labels or ()) > 0.7 * labels  # else the batch would not be the largest there is
    assert 0.9 < (estimate.activations - signals) / (TEMPORARIES * kept) < 1.3


@pytest.mark.parametrize(("share", "severity"), [(0.5, None), (0.9, "warning"), (1.9, "warning"), (2.1, "error")])
def test_far_too_large_is_an_error_and_close_a_warning(
    share: float, severity: str | None, tiny_t15: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate = MemoryEstimate(GIB, GIB, GIB, round(3 * GIB / share))
    monkeypatch.setattr(memory, "estimate_memory", lambda *_: estimate)
    findings = [f for f in preflight(prepare(compose_config(configured(tiny_t15, *DEMO)))) if f.code == "memory_short"]
    assert [finding.severity for finding in findings] == ([severity] if severity else [])


def test_a_batch_that_cannot_fit_ends_check_and_train(
    tiny_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "available_to_cpu", lambda processes: GIB)
    huge = (*configured(tiny_t15, "recipe=demo"), "training.batch_size=3000", f"runs_dir={tmp_path / 'runs'}")
    assert main(["check", *huge, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["memory"]["activations"] > 2 * printed["memory"]["available"]
    assert "memory_short" in [f["code"] for f in printed["findings"] if f["severity"] == "error"]
    assert main(["train", *huge]) == 1
    assert "error: memory_short" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_the_process_holds_counts(tiny_t15: Path) -> None:
    prepared = prepare(compose_config(configured(tiny_t15, *DEMO)))
    estimate, weights = memory.memory_of(prepared), 4 * sum(p.numel() for p in prepared.model.parameters())
    assert estimate.weights == 4 * weights
    assert estimate.process == pytest.approx(memory_limits.held(), rel=0.1)
    assert estimate.process > 100 << 20  # PyTorch alone


@pytest.mark.parametrize(
    ("groups", "files", "available"),
    [
        ("", {}, 8),
        ("0::/a/b", {"a/b/memory.max": "max"}, 8),
        ("0::/a/b", {"a/b/memory.max": f"{5 * GIB}"}, 5),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": f"{4 * GIB}"}, 4),
        ("0::/outside", {"memory.max": f"{3 * GIB}"}, 3),  # the container's own group, mounted as the root
        ("3:cpu,memory:/a\n2:cpuset:/", {"memory/a/memory.limit_in_bytes": f"{2 * GIB}"}, 2),
        ("3:memory:/a", {"memory/a/memory.limit_in_bytes": "9223372036854771712"}, 8),
        ("0::/a", {"a/memory.max": f"{64 * GIB}"}, 8),
    ],
)
def test_available_is_what_is_free_and_no_more_than_the_containers_limit(
    groups: str, files: dict[str, str], available: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc, groups_folder = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: {32 << 20} kB\nMemAvailable: {7 << 20} kB\n")
    (proc / "self/statm").write_text(f"999999 {GIB // os.sysconf('SC_PAGE_SIZE')} 0 0\n")
    (proc / "self/cgroup").write_text(groups)
    for name, text in files.items():
        (groups_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (groups_folder / name).write_text(text + "\n")
    monkeypatch.setattr(memory_limits, "PROC", proc)
    monkeypatch.setattr(memory_limits, "CGROUPS", groups_folder)
    assert memory_limits.available_to_cpu() == available * GIB
    assert memory_limits.available_to_cpu(2) == available * GIB // 2
