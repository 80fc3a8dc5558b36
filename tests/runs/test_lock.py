"""Who may train a run, asked by real processes that are really killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sottovoce.core.errors import CheckpointError
from sottovoce.runs.lock import FILE_NAME, Holder, RunIsLockedError, locked

HOLDING = """
import os, sys, time
from pathlib import Path
from sottovoce.runs.lock import locked
with locked(Path(sys.argv[1])):
    if sys.argv[2] == "fork":
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
    print("held", flush=True)
    sys.stdin.readline()
"""
TAKING = """
import sys, time
from pathlib import Path
from sottovoce.runs.lock import RunIsLockedError, locked
sys.stdin.readline()
try:
    with locked(Path(sys.argv[1])) as before:
        print("taken", before.process, flush=True)
        sys.stdin.readline()
except RunIsLockedError as error:
    print("refused", error, flush=True)
"""


def process(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def line(of: subprocess.Popen[str]) -> str:
    assert of.stdout is not None
    return of.stdout.readline().strip()


def enter(to: subprocess.Popen[str]) -> None:
    assert to.stdin is not None
    to.stdin.write("\n")
    to.stdin.flush()


@contextmanager
def holder(run_dir: Path, how: str = "alone") -> Iterator[subprocess.Popen[str]]:
    held = process(HOLDING, str(run_dir), how)
    try:
        yield held
    finally:
        held.kill()
        held.communicate()


def test_only_one_process_holds_it_and_gives_it_back(tmp_path: Path) -> None:
    with holder(tmp_path) as held:
        assert line(held) == "held"
        before = (tmp_path / FILE_NAME).read_bytes()
        with pytest.raises(RunIsLockedError) as refused, locked(tmp_path):
            pass
        since = json.loads(before)["since"]
        assert f"{tmp_path} is being trained by process {held.pid} on " in str(refused.value)
        assert f" since {since}; wait for it, or stop it: kill {held.pid}" in str(refused.value)
        assert (tmp_path / FILE_NAME).read_bytes() == before
        enter(held)
        assert held.wait() == 0
    assert not list(tmp_path.iterdir())
    with locked(tmp_path) as ended:
        assert ended is None


def test_it_is_given_back_when_training_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_killed_process_loses_it_even_while_its_loaders_live(tmp_path: Path) -> None:
    with holder(tmp_path, "fork") as held:
        child = int(line(held))
        assert line(held) == "held"
        held.kill()  # not reaped yet: its entry in the process table is still there
        os.waitid(os.P_PID, held.pid, os.WEXITED | os.WNOWAIT)
        try:
            os.kill(child, 0)
            with locked(tmp_path) as ended:
                assert ended is not None
                assert ended.process == held.pid
                assert json.loads((tmp_path / FILE_NAME).read_text())["process"] == os.getpid()
        finally:
            os.kill(child, signal.SIGKILL)


def write(run_dir: Path, left: Holder) -> None:
    (run_dir / FILE_NAME).write_text(json.dumps(asdict(left)))


@pytest.mark.parametrize("started", ["1 of this boot", ""], ids=["a number that is used again", "no start time"])
def test_a_number_alone_is_no_process(tmp_path: Path, started: str) -> None:
    """Of a lock without a start time, from a system that tells none, the number has to do."""
    write(tmp_path, replace(Holder.this_process(), started=started))
    if started:
        with locked(tmp_path) as ended:
            assert ended is not None
            assert ended.started == started
    else:
        with pytest.raises(RunIsLockedError), locked(tmp_path):
            pass


def test_of_another_host_it_is_respected(tmp_path: Path) -> None:
    write(tmp_path, Holder("gpu-17", 1, "1 of another boot", "2026-11-30 08:00:00+00:00"))
    before = (tmp_path / FILE_NAME).read_bytes()
    expected = "by process 1 on gpu-17 since 2026-11-30 08:00:00.* Only if that process has ended: remove .*lock.json"
    with pytest.raises(RunIsLockedError, match=expected), locked(tmp_path):
        pass
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_what_is_no_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"host": 3}')
    expected = r"lock.json cannot be read .*; if nobody trains .*, remove it"
    with pytest.raises(CheckpointError, match=expected), locked(tmp_path):
        pass


def test_of_many_that_find_a_dead_lock_one_takes_it(tmp_path: Path) -> None:
    write(tmp_path, replace(Holder.this_process(), started="1 of this boot", process=4_000_000))
    takers = [process(TAKING, str(tmp_path)) for _ in range(6)]
    for taker in takers:
        enter(taker)
    said = [line(taker) for taker in takers]
    for taker in takers:
        taker.communicate("\n")
    winner = said.index("taken 4000000")
    others = [text for number, text in enumerate(said) if number != winner]
    assert all(f"is being trained by process {takers[winner].pid} on" in text for text in others)
    assert not list(tmp_path.iterdir())
