"""Commands in processes of their own that do not import PyTorch again: each is forked from one that has.

The server has only imported, so that it has no threads and no state that a fork could break. A command gets its own
arguments and output files, and may be killed like any other process; the server says how it ended. One at a time.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path
from tempfile import mkdtemp


class Running:
    """A command that has been started."""

    def __init__(self, arguments: list[str], before: str = "") -> None:
        """`before` is Python that runs first."""
        self.arguments, self.returncode = arguments, None
        folder = Path(mkdtemp(prefix="sottovoce-test-"))
        self._stdout, self._stderr = (folder / name for name in ("stdout", "stderr"))
        self._server = _server()
        assert self._server.stdin is not None
        request = {"arguments": arguments, "before": before, "folder": str(Path.cwd()), "outputs": str(folder)}
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()
        self.pid = int(self._answer())

    returncode: int | None

    def poll(self) -> int | None:
        """The exit code, as `subprocess` gives it; None while it runs."""
        assert self._server.stdout is not None
        if self.returncode is None and select.select([self._server.stdout], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code, once it has ended."""
        if self.returncode is None:
            self.returncode = int(self._answer())
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """What it has written to stdout and stderr, once it has ended."""
        self.wait()
        stdout, stderr = (file.read_text(encoding="utf-8", errors="replace") for file in (self._stdout, self._stderr))
        return stdout, stderr

    def _answer(self) -> bytes:
        assert self._server.stdout is not None
        return self._server.stdout.readline()  # unbuffered: never more than this line is taken


def run(arguments: list[str], before: str = "") -> subprocess.CompletedProcess[str]:
    """The command with these arguments to its end."""
    running = Running(arguments, before)
    return subprocess.CompletedProcess(arguments, running.wait(), *running.communicate())


@cache
def _server() -> subprocess.Popen[bytes]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.training.warm"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[bytes]) -> None:
    assert server.stdin is not None and server.stdout is not None
    server.stdin.close()
    server.stdout.close()
    server.wait()


def _serve() -> None:
    import sottovoce.cli.train
    import sottovoce.verbs.train  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(request: dict[str, str | list[str]]) -> None:
    """This process runs the command, and ends."""
    code, arguments = 1, list(request["arguments"])
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{request['outputs']}/{name}", os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(str(request["folder"]))
        sys.argv = ["sottovoce", *arguments]
        exec(str(request["before"]), {"sys": sys})
        from sottovoce.cli.main import main

        code = main(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
