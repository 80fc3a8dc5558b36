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
from types import ModuleType
from typing import Any, Final

import sottovoce
from sottovoce.core.errors import ConfigurationError, SottovoceError, in_one_line
from sottovoce.core.text import is_unicode

VERBS: Final = {
    "simulate": "write a simulated data set",
    "check": "report the faults of a data set, or of a run before it starts",
    "train": "train a decoder",
    "evaluate": "error rates of a run's best checkpoint, with intervals",
    "decode": "write hypotheses for every trial of a data set",
    "report": "write report.html: curves, error rates, confusions, single trials",
    "diagnose": "say what went wrong in a run or a bad step, and why",
    "import_t15": "turn the published T15 checkpoint into a run",
    "bench": "measure, beside others, as ratios",
}
"""Each verb, the module of its name beside this one, with its line of help."""


class VerbParser(argparse.ArgumentParser):
    """The parser of one verb; its module is imported when it is asked to parse."""

    module: ModuleType | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As any parser; the namespace gets the function that runs the verb."""
        if self.module is None:
            self.module = importlib.import_module(f"sottovoce.cli.{self.prog.split()[-1]}")
            self.module.configure(self)
            self.set_defaults(run=self.module.run)
        return super().parse_known_args(args, namespace)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; none of their modules is imported yet."""
    parser = argparse.ArgumentParser("sottovoce", description=sottovoce.__doc__)
    parser.add_argument("--version", action="version", version=sottovoce.__version__)
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=VerbParser)
    for verb, line in VERBS.items():
        subparsers.add_parser(verb, help=line)
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
    try:
        if odd := [argument for argument in argv if not is_unicode(argument)]:
            raise ConfigurationError(f"{odd[0]!a} is not UTF-8; rename that file or folder")
        arguments = build_parser().parse_args(argv)
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
