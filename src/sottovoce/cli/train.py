"""`sottovoce train recipe=NAME [key=value …]` and `sottovoce train resume=RUN`."""

from __future__ import annotations

import argparse

from sottovoce.core.errors import ConfigurationError

DESCRIPTION = """Train a decoder. Start from a recipe and override any key of its configuration:
  sottovoce train recipe=t15_gru data.data_root=FOLDER training.steps=2000
  sottovoce train resume=runs/t15_gru-001
With --multirun, comma-separated values and Hydra's launchers start one run for each combination."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="recipe=NAME, resume=RUN, or a key to override"
    )
    parser.add_argument("--multirun", action="store_true", help="one run for each combination of listed values")
    parser.add_argument("--show-config", action="store_true", help="print the whole configuration and stop")


def run(arguments: argparse.Namespace) -> int:
    """Train, evaluate the best checkpoint, write the report; the last line of stdout is `run: DIR`."""
    from sottovoce.cli import training
    from sottovoce.training.composition import split_resume

    run_dir, overrides = split_resume(arguments.overrides)
    if run_dir is not None and (arguments.multirun or arguments.show_config):
        raise ConfigurationError("resume= goes with neither --multirun nor --show-config")
    if arguments.multirun:
        return training.train_each(overrides)
    if run_dir is not None:
        return training.resume(run_dir, overrides)
    return training.show(overrides) if arguments.show_config else training.train(overrides)
