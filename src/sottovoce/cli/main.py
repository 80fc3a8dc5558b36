"""The command line: `sottovoce VERB …`, one module a verb.

Exit 0 = done; 1 = it ran and found what it looks for (faults, an aborted run); 2 = wrong usage, wrong configuration or
unreadable input, with one clear line on stderr.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Final

import sottovoce
from sottovoce.core.errors import ConfigurationError, SottovoceError, in_one_line
from sottovoce.core.text import is_unicode

VERBS: Final = ("simulate", "check", "train", "evaluate", "decode", "report", "diagnose", "import_t15", "bench")


def build_parser(verbs: Sequence[str] = VERBS) -> argparse.ArgumentParser:
    """The parser of `verbs`; each module adds its own and the function that runs it."""
    parser = argparse.ArgumentParser("sottovoce", description=sottovoce.__doc__)
    parser.add_argument("--version", action="version", version=sottovoce.__version__)
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in verbs:
        importlib.import_module(f"sottovoce.cli.{verb}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    # OpenMP threads that spin long while they wait make a step eight times slower on a busy machine
    # (docs/decisions/007); set before PyTorch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a terminal or a path need not be UTF-8
    argv = sys.argv[1:] if argv is None else argv
    named = [verb for verb in VERBS if argv and verb == argv[0]]  # the others need not be imported
    try:
        if odd := [argument for argument in argv if not is_unicode(argument)]:
            raise ConfigurationError(f"{odd[0]!a} is not UTF-8; rename that file or folder")
        arguments = build_parser(named or VERBS).parse_args(argv)
        code: int = arguments.run(arguments)
    except SottovoceError as error:
        print(f"sottovoce: {in_one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("sottovoce: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing left to say
        return 0
    except OSError as error:  # what no reader or writer has put into words: permissions, a full disk
        print(f"sottovoce: {_refusal(error)}", file=sys.stderr)
        return 2
    return code


def _refusal(error: OSError) -> str:
    """What the system refused, and what to do."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = f"{error.filename}: {error.strerror}" if error.filename else " ".join(str(error).split())
    return f"{what}; {'make room' if full else 'check that it is there and that you may read and write it'}"


if __name__ == "__main__":
    sys.exit(main())
