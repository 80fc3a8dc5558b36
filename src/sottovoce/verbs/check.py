"""What is wrong before any training: with a data set, or with a run's data, settings and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.findings import Finding
from sottovoce.core.symbols import LETTERS, PHONEMES, symbol_table
from sottovoce.data.checks import CheckReport, check_path, unusable_trials
from sottovoce.data.layouts import AUTO, detect_layout
from sottovoce.data.pronunciation import read_lexicon
from sottovoce.data.purpose import Patching, Purpose
from sottovoce.diagnosis.preflight import preflight
from sottovoce.diagnosis.preflight.memory import MemoryEstimate, memory_of
from sottovoce.features.config import LogMelConfig
from sottovoce.training.composition import compose_config
from sottovoce.training.config import RunConfig
from sottovoce.training.preparation import NoUsableTrials, Prepared, check_data, prepare
from sottovoce.verbs.listener import Progress


@dataclass(frozen=True)
class RunCheck:
    """What was found on a run that has not begun."""

    data_root: str
    data: CheckReport
    """The faults of its data, also those that only its model's frames show."""
    findings: tuple[Finding, ...]
    """What preflight says of the run; nothing where it has no usable training trial."""
    memory: MemoryEstimate | None
    """What a step needs, where the run is sound enough to be asked."""
    has_usable_trials: bool

    @property
    def has_errors(self) -> bool:
        """Whether `train` would refuse it."""
        severities = [*(fault.severity for fault in self.data.faults), *(f.severity for f in self.findings)]
        return "error" in severities or not self.has_usable_trials


def check(
    path: str | PathLike[str],
    *,
    layout: str = AUTO,
    patch_size: int = 14,
    patch_stride: int = 4,
    num_channels: int | None = None,
    max_sessions: int | None = None,
    symbols: str | None = None,
    lexicon: str | PathLike[str] | None = None,
    sample_rate_hz: int | None = None,
    audio_channel: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Read every trial of a data set, or of one file of it, and report each fault.

    `patch_size` and `patch_stride`, in bins, are those of the model that it is for. T15 only: `max_sessions`. Of
    recordings: `symbols` (default: letters, or phonemes with a `lexicon`), the pronouncing dictionary `lexicon`, the
    front end's `sample_rate_hz` and the channel to read.

    Raises:
        DataError: there is no data set to read.
        ConfigurationError: an argument is out of its range.
    """
    path = Path(path)
    if max_sessions is not None and max_sessions < 1:
        raise ConfigurationError(f"max_sessions={max_sessions}: must be at least 1")
    stored = detect_layout(path).stored_symbols
    table = symbol_table(symbols or stored or (LETTERS if lexicon is None else PHONEMES).name)
    front_end = (
        None if sample_rate_hz is None else LogMelConfig(sample_rate_hz=sample_rate_hz, high_hz=sample_rate_hz / 2)
    )
    return check_path(
        path,
        layout,
        Purpose(
            symbols=table,
            lexicon=None if lexicon is None else read_lexicon(Path(lexicon), table),
            patching=Patching(patch_size, patch_stride),
            num_channels=num_channels,
            front_end=front_end,
            audio_channel=audio_channel,
        ),
        max_sessions,
        progress,
    )


def check_run(config: RunConfig | Sequence[str], progress: Progress | None = None) -> RunCheck:
    """Read every trial of a configuration's data, and ask preflight about the run; nothing is trained or written.

    `config` may be what `train` takes: `["recipe=demo", "data.data_root=data"]`. `progress` is called with the trials
    read and their number.

    Raises:
        ConfigurationError: the configuration is wrong, or contradicts the data.
        DataError: there is no data set to read.
    """
    config = config if isinstance(config, RunConfig) else compose_config(config)
    report = check_data(config, progress)
    config = replace(config, data=replace(config.data, on_fault="skip"))  # what is left can still be looked at
    prepared: Prepared | None = None
    try:
        prepared = prepare(config, known=unusable_trials(report), data_set=report.data_set)
        skipped = prepared.skipped
    except NoUsableTrials as nothing_left:
        if not nothing_left.faults:
            raise
        skipped = nothing_left.faults
    faults = (*report.faults, *(fault for fault in skipped if fault not in report.faults))
    findings = preflight(prepared) if prepared else []
    sound = all(finding.severity != "error" or finding.code == "memory_short" for finding in findings)
    memory = memory_of(prepared) if prepared and sound else None
    return RunCheck(
        config.data.data_root, replace(report, faults=faults), tuple(findings), memory, prepared is not None
    )
