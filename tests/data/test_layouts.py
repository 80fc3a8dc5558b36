"""What every layout of the tuple keeps to, and the line that is said where a path is not the layout that is wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.faults import Fault
from sottovoce.core.signals import SignalKind
from sottovoce.core.splits import SPLITS
from sottovoce.data.checks import check_data_set, check_path, unusable_trials
from sottovoce.data.config import DataConfig
from sottovoce.data.layout import Layout, Reading
from sottovoce.data.layouts import LAYOUTS, detect_layout, named_layout, trainable_layout
from sottovoce.data.loading import open_data, read_data_set
from sottovoce.data.purpose import Patching, Purpose
from sottovoce.data.recordings_layout import AUDIO_FILE, LISTED_RECORDINGS, LOOSE_RECORDINGS
from sottovoce.data.t12 import T12
from sottovoce.data.t15_layout import T15, T15_FILE, T15_FILES
from sottovoce.data.uaspeech import UASPEECH
from sottovoce.features.config import LogMelConfig, PreprocessorConfig
from tests.data.builders import T15Trial, noise, write_session, write_sound_folder, write_t15_file, write_wav

BAD = T15Trial(noise(80, 512, seed=4), stored={"n_time_steps": 142})


def _t15(folder: Path) -> Path:
    """Every trial has a fault: a wrong session, and one trial of each split an error."""
    for i, split in enumerate(SPLITS):
        trials = [T15Trial(noise(seed=10 * i + n), block=10 * i + n) for n in range(2)]
        session = write_session(folder, "t15.2023.08.13", {})
        write_t15_file(session / f"data_{split}.hdf5", [*trials, BAD], session="t15.2023.08.14")
    return folder


def _listed(folder: Path) -> Path:
    """Every recording is silent, and one cannot be read."""
    for i, split in enumerate(SPLITS):
        write_wav(folder / "r" / f"{split}.wav", np.zeros(16000, np.float32))
        write_wav(folder / "r" / f"bad{i}.wav", np.zeros(16000, np.float32)).write_bytes(b"no sound")
    rows = [f"r/{name}.wav,low,ann,{split}" for i, split in enumerate(SPLITS) for name in (split, f"bad{i}")]
    (folder / "manifest.csv").write_text("\n".join(["audio,text,speaker,split", *rows]))
    return folder


def _loose(folder: Path) -> Path:
    for take in range(10):
        write_wav(folder / f"7_theo_{take}.wav", np.zeros(16000, np.float32))
    (folder / "7_theo_3.wav").write_bytes(b"no sound")
    return folder


def _t12(folder: Path) -> Path:
    (folder / "competitionData" / "train").mkdir(parents=True)
    return folder


def _uaspeech(folder: Path) -> Path:
    write_wav(folder / "audio" / "F02" / "a.wav")
    (folder / "mlf").mkdir()
    return folder


def _t15_files(folder: Path) -> Path:
    folder.mkdir()
    write_t15_file(folder / "a.hdf5", [T15Trial(), BAD])
    return folder


@dataclass(frozen=True)
class Example:
    layout: Layout
    write: Callable[[Path], Path]


EXAMPLES = [
    Example(T15, _t15),
    Example(T12, _t12),
    Example(LISTED_RECORDINGS, _listed),
    Example(UASPEECH, _uaspeech),
    Example(T15_FILES, _t15_files),
    Example(T15_FILE, lambda folder: _t15_files(folder) / "a.hdf5"),
    Example(LOOSE_RECORDINGS, _loose),
    Example(AUDIO_FILE, lambda folder: write_wav(folder / "a.wav")),
]
TRAINABLE = [example for example in EXAMPLES if example.layout.recipe]
PREPROCESSORS = {
    SignalKind.BINNED: PreprocessorConfig(),
    SignalKind.WAVEFORM: PreprocessorConfig(num_channels=80, log_mel=LogMelConfig()),
}
CONFIGS = {SignalKind.BINNED: "phonemes", SignalKind.WAVEFORM: "letters"}


def what(example: Example) -> str:
    return f"{example.layout.what} ({example.layout.marks})"


def config_of(layout: Layout, root: Path, on_fault: str = "skip") -> DataConfig:
    return DataConfig(data_root=str(root), symbols=CONFIGS[layout.signal], on_fault=on_fault)


def test_every_layout_has_an_example() -> None:
    assert [example.layout for example in EXAMPLES] == list(LAYOUTS)


@pytest.mark.parametrize("example", EXAMPLES, ids=what)
def test_a_layout_recognises_its_own_and_comes_before_those_that_would_take_it(
    example: Example, tmp_path: Path
) -> None:
    path = example.write(tmp_path / "set")
    assert detect_layout(path) is example.layout
    others = [e.layout for e in EXAMPLES if path.is_dir() and e.layout.is_folder(path)]
    assert all(LAYOUTS.index(example.layout) <= LAYOUTS.index(other) for other in others)


@pytest.mark.parametrize("example", EXAMPLES, ids=what)
def test_what_is_read_can_be_named_and_what_is_not_says_what_to_do(example: Example, tmp_path: Path) -> None:
    path, layout = example.write(tmp_path / "set"), example.layout
    if not layout.unread:
        assert named_layout(path, "auto") is named_layout(path, layout.family) is layout
        assert check_path(path).layout == layout.name
        return
    for call in (lambda: named_layout(path, "auto"), lambda: named_layout(path, "t15"), lambda: check_path(path)):
        with pytest.raises(DataError, match=r"^not_this_layout: .* looks like ") as caught:
            call()
        assert str(caught.value).endswith(f"({layout.unread})")
        assert layout.looks_like in str(caught.value)
    with pytest.raises(ConfigurationError, match="choose one of auto, t15, recordings"):
        named_layout(path, layout.family)
    with pytest.raises(DataError, match="this version does not read"):
        layout.read(path, Reading())


@pytest.mark.parametrize("signal", SignalKind)
@pytest.mark.parametrize("example", EXAMPLES, ids=what)
def test_a_recipe_takes_its_kind_of_signal_and_the_line_names_the_one_that_would_fit(
    example: Example, signal: SignalKind, tmp_path: Path
) -> None:
    path, layout = example.write(tmp_path / "set"), example.layout
    config = config_of(layout, path)
    if layout.recipe and layout.signal == signal:
        assert trainable_layout(path, config, signal) is layout
        return
    with pytest.raises(DataError) as caught:
        open_data(config, PREPROCESSORS[signal], SPLITS, 0)
    line = str(caught.value)
    assert line.startswith(f"not_this_layout: {path} looks like {layout.looks_like}, which a recipe for {signal} ")
    assert ("; give " in line, "\n" in line) == (True, False)
    assert (f"or train it with recipe={layout.recipe}" in line) == bool(layout.recipe)


@pytest.mark.parametrize("example", TRAINABLE, ids=what)
def test_check_and_open_name_trials_and_faults_alike(example: Example, tmp_path: Path) -> None:
    """Every trial of the examples has a fault, so that the check names each of them."""
    root, layout = example.write(tmp_path / "set"), example.layout
    config, preprocessor = config_of(layout, root), PREPROCESSORS[layout.signal]
    read, data_set = read_data_set(config, layout.signal)
    report = check_data_set(read, data_set, Purpose())
    named = {fault.trial_id for fault in report.faults if fault.trial_id}
    opened = open_data(config, preprocessor, SPLITS, 0, data_set=data_set)
    left_out = {fault.trial_id for fault in opened.skipped}
    ids = [trial.trial_id for trial in opened.trials]
    assert len(ids) == len(set(ids)) > 0
    assert named == left_out.union(ids)
    assert report.trials == len(ids) + len(left_out - set(ids))
    unusable = unusable_trials(report)
    assert {trial_id for trial_id in ids if trial_id not in unusable} < named
    same = {(fault.file, fault.trial, fault.trial_id) for fault in report.faults}
    assert {(fault.file, fault.trial, fault.trial_id) for fault in opened.skipped} <= same


@pytest.mark.parametrize("example", TRAINABLE, ids=what)
def test_a_data_set_that_was_checked_opens_like_one_that_was_not(example: Example, tmp_path: Path) -> None:
    root, layout = example.write(tmp_path / "set"), example.layout
    config, preprocessor = config_of(layout, root), PREPROCESSORS[layout.signal]
    read, data_set = read_data_set(config, layout.signal)
    check_data_set(read, data_set, Purpose())
    for splits in (SPLITS, ("train", "val"), ("test",)):
        fresh = open_data(config, preprocessor, splits, 0)
        again = open_data(config, preprocessor, splits, 0, data_set=data_set)
        assert (again.trials, again.sessions, again.skipped) == (fresh.trials, fresh.sessions, fresh.skipped)
        assert {trial.split for trial in fresh.trials} == set(splits)
        for index in range(len(fresh.trials)):
            assert len(fresh.signal(index)) == fresh.trials[index].num_steps


@pytest.mark.parametrize("example", TRAINABLE, ids=what)
def test_the_first_fault_ends_it_unless_it_is_skipped(example: Example, tmp_path: Path) -> None:
    root, layout = example.write(tmp_path / "set"), example.layout
    with pytest.raises(DataError) as caught:
        open_data(config_of(layout, root, "raise"), PREPROCESSORS[layout.signal], SPLITS, 0)
    assert str(root) in str(caught.value)


def test_faults_of_files_name_no_trial(tmp_path: Path) -> None:
    root = write_sound_folder(tmp_path)
    (root / "t15.2023.08.13" / "data_train.hdf5").write_bytes(b"not HDF5")
    (fault,) = [f for f in check_path(root).faults if f.severity == "error"]
    assert (fault.file, fault.trial, fault.trial_id) == ("t15.2023.08.13/data_train.hdf5", "", "")
    assert Fault("f", "", "c", "error", "m").trial_id == ""


def test_single_files_are_checked_and_never_opened(tmp_path: Path) -> None:
    path = write_t15_file(tmp_path / "data_val.hdf5", [T15Trial()])
    assert detect_layout(path) is T15_FILE
    with pytest.raises(DataError, match=r"belongs to no session; give the folder that holds the session folders"):
        T15_FILE.read(path, Reading()).open(SPLITS, DataConfig(), PreprocessorConfig(), 0)


def test_labels_in_other_symbols_are_refused(tmp_path: Path) -> None:
    config = DataConfig(data_root=str(write_sound_folder(tmp_path)), symbols="letters")
    with pytest.raises(ConfigurationError, match=r"data\.symbols=letters: T15 files hold phonemes"):
        open_data(config, PreprocessorConfig(), SPLITS, 0)


def test_recordings_need_a_front_end(tmp_path: Path) -> None:
    data_set = LOOSE_RECORDINGS.read(_loose(tmp_path / "set"), Reading())
    with pytest.raises(ConfigurationError, match=r"need preprocessor\.log_mel"):
        data_set.open(SPLITS, DataConfig(symbols="letters"), PreprocessorConfig(), 0)


def test_layouts(tmp_path: Path) -> None:
    write_sound_folder(tmp_path / "t15")
    write_wav(tmp_path / "wavs" / "deep" / "down" / "a.wav")
    (tmp_path / "listed").mkdir()
    (tmp_path / "listed" / "manifest.csv").write_text("audio,text\n")
    (tmp_path / "t12" / "competitionData" / "train").mkdir(parents=True)
    (tmp_path / "mats" / "train").mkdir(parents=True)
    (tmp_path / "mats" / "train" / "t12.2022.05.24.mat").touch()
    (tmp_path / "uaspeech" / "audio").mkdir(parents=True)
    (tmp_path / "uaspeech" / "mlf").mkdir()
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "a.h5").touch()
    found = {path.name: detect_layout(path) for path in tmp_path.iterdir()}
    assert found == {
        "t15": T15,
        "wavs": LOOSE_RECORDINGS,
        "listed": LISTED_RECORDINGS,
        "t12": T12,
        "mats": T12,
        "uaspeech": UASPEECH,
        "loose": T15_FILES,
    }
    assert detect_layout(tmp_path / "t15" / "t15.2023.08.13" / "data_val.hdf5") is T15_FILE
    assert detect_layout(tmp_path / "wavs" / "deep" / "down" / "a.wav") is AUDIO_FILE


def test_what_cannot_be_read_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "competitionData").mkdir()
    with pytest.raises(DataError) as caught:
        trainable_layout(tmp_path, DataConfig(), SignalKind.BINNED)
    assert str(caught.value) == (
        f"not_this_layout: {tmp_path} looks like T12 (competitionData or *.mat), which a recipe for binned "
        "features (without preprocessor.log_mel) cannot read; give the folder that holds the session folders "
        "(reading T12 is not part of this version yet)"
    )
    with pytest.raises(DataError, match=r"looks like T12 .* \(reading T12 is not part of this version yet\)"):
        check_path(tmp_path)
    write_wav(tmp_path / "set" / "1_theo_0.wav")
    with pytest.raises(
        DataError,
        match=r"looks like a folder of recordings .*, expected a T15 data set .*, or train it with recipe=recordings$",
    ):
        check_path(tmp_path / "set", layout="t15")
    with pytest.raises(DataError, match=r"looks like a T15 data set .*, or train it with recipe=t15_gru$"):
        check_path(write_sound_folder(tmp_path / "neural"), layout="recordings")
    assert named_layout(tmp_path / "set", "recordings") is LOOSE_RECORDINGS


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        check_path(tmp_path / "none")
    with pytest.raises(DataError, match=r"looked for folders t15\.YYYY\.MM\.DD, .*, found nothing: it is empty"):
        check_path(tmp_path)
    for i in range(7):
        (tmp_path / f"{i}.txt").touch()
    with pytest.raises(DataError, match=r"found 0\.txt, 1\.txt, 2\.txt, 3\.txt, 4\.txt and 2 more"):
        check_path(tmp_path)
    with pytest.raises(DataError, match=r"0\.txt is not a file ending in"):
        check_path(tmp_path / "0.txt")
    with pytest.raises(DataError, match=r"data\.data_root is not set"):
        detect_layout(Path("???"))


@pytest.mark.parametrize("sizes", [(0, 4), (14, 0)])
def test_a_geometry_that_does_not_exist(sizes: tuple[int, int]) -> None:
    with pytest.raises(ConfigurationError, match="patch size and stride must be at least 1"):
        Patching(*sizes)
