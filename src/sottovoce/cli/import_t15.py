"""`sottovoce import_t15 FOLDER --data DIR --out RUN`: the published T15 baseline as a run that can be evaluated."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import yaml

from sottovoce.core.checkpoints import write_checkpoint
from sottovoce.core.configuration import plain
from sottovoce.core.errors import ConfigurationError
from sottovoce.evaluation.left_out import write_left_out
from sottovoce.evaluation.loaded_run import CONFIG_FILE, write_sessions
from sottovoce.evaluation.vocabulary import write_vocabulary
from sottovoce.models.official_t15 import load_official_t15
from sottovoce.training.composition import compose_config


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = subparsers.add_parser(
        "import_t15", help="turn the published T15 checkpoint into a run", description=__doc__
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds best_checkpoint and args.yaml")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="data set in the T15 layout")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run directory to make")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write a run directory with the published weights."""
    model, sessions = load_official_t15(arguments.folder)
    config = compose_config(["recipe=t15_gru", f"data.data_root={arguments.data}"])
    assert model.config.num_channels is not None
    preprocessor = replace(config.preprocessor, num_channels=model.config.num_channels)
    config = replace(config, model=model.config, preprocessor=preprocessor)
    try:
        arguments.out.mkdir(parents=True)
    except FileExistsError:
        raise ConfigurationError(f"{arguments.out} exists already; choose another --out") from None
    (arguments.out / CONFIG_FILE).write_text(yaml.safe_dump(plain(config), sort_keys=False), encoding="utf-8")
    write_vocabulary(arguments.out, None)
    write_left_out(arguments.out, {})
    write_sessions(arguments.out, sessions)
    write_checkpoint(arguments.out / "checkpoints" / "best", 0, {"model": model.state_dict()}, {})
    count = sum(p.numel() for p in model.parameters())
    found = {"run": str(arguments.out), "parameters": count, "sessions": len(sessions)}
    print(
        json.dumps(found) if arguments.json else f"{count:,} parameters, {len(sessions)} sessions\nrun: {arguments.out}"
    )
    return 0
