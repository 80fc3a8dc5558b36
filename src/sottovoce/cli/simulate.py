"""`sottovoce simulate DIR`: write a simulated data set in an official layout, with its ground truth."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import sottovoce
from sottovoce.cli.progress import progress_bar
from sottovoce.data.simulate.settings import SimulationSettings

if TYPE_CHECKING:
    from sottovoce.data.simulate.simulation import SimulationSummary


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.description = __doc__
    default = SimulationSettings()
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder to write; must be empty or absent")
    parser.add_argument("--layout", choices=("t15",), default="t15", help="official layout to write (default: t15)")
    for name, kind, text in (
        (
            "sessions",
            int,
            "recording days, 1 to 45; as in the real data the first has training trials only, if not alone",
        ),
        ("trials", int, "training trials of each session, 1 to 9999"),
        ("val-trials", int, "validation trials of each session that has any, 0 to 9999 (default: a fifth of --trials)"),
        ("test-trials", int, "test trials of each session that has any, 0 to 9999 (default: a fifth of --trials)"),
        ("seed", int, "equal seeds and settings give equal bytes, at least 0"),
        ("electrodes", int, "electrodes in 4 areas, a multiple of 4 up to 1024; features are twice as many"),
        ("snr", float, "depth of tuning, 0 to 10; 0 = electrodes that know nothing of speech"),
        ("drift", float, "change of the electrodes from session to session, 0 to 2.5; 1 = moderate"),
        ("dead-fraction", float, "share of electrodes whose features are exactly 0, 0 to 0.5"),
        ("block-trials", int, "trials of a block, at least 1; the speaking mode alternates from block to block"),
        ("bins-per-phoneme", float, "mean duration of a phoneme in bins of 20 ms, 6 to 40"),
    ):
        value = getattr(default, name.replace("-", "_"))
        shown = text if value is None else f"{text} (default: {value})"
        parser.add_argument(f"--{name}", type=kind, default=value, metavar="N" if kind is int else "X", help=shown)
    parser.add_argument("--overwrite", action="store_true", help="replace the simulation in DIR, and nothing else")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Write the data set and say what was written.

    Raises:
        ConfigurationError: an option is out of its range.
        DataError: the folder holds something else, or cannot be written.
    """
    settings = SimulationSettings(
        sessions=arguments.sessions,
        trials=arguments.trials,
        val_trials=arguments.val_trials,
        test_trials=arguments.test_trials,
        seed=arguments.seed,
        electrodes=arguments.electrodes,
        snr=arguments.snr,
        drift=arguments.drift,
        dead_fraction=arguments.dead_fraction,
        block_trials=arguments.block_trials,
        bins_per_phoneme=arguments.bins_per_phoneme,
    )
    with progress_bar("simulating trials", quiet=arguments.json) as progress:
        summary = sottovoce.simulate_t15(arguments.directory, settings, progress, overwrite=arguments.overwrite)
    if arguments.json:
        print(
            json.dumps(
                {
                    "trials": summary.trials,
                    "sessions": len(summary.sessions),
                    "seed": summary.seed,
                    "directory": str(summary.directory),
                    "trials_by_split": summary.trials_by_split,
                    "channels": summary.channels,
                    "bins": summary.bins,
                }
            )
        )
    else:
        print(_summary(summary))
    return 0


def _summary(summary: SimulationSummary) -> str:
    from sottovoce.core.trial import BIN_MS

    splits = ", ".join(f"{count} {split}" for split, count in summary.trials_by_split.items())
    minutes = summary.bins * BIN_MS / 60_000
    return (
        f"{summary.directory}: {summary.trials} trials ({splits}) in {len(summary.sessions)} sessions, "
        f"{summary.channels} features, {minutes:.1f} min, seed {summary.seed}"
    )
