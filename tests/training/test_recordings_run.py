"""A folder of recordings from end to end: two "words" that are tones, so that a small model learns them in seconds."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from sottovoce.cli.main import main

pytestmark = pytest.mark.slow

HERTZ = {"low": 300.0, "high": 1200.0}


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 words × 3 speakers × 8 takes, at two sample rates, with a manifest."""
    root = tmp_path_factory.mktemp("tones")
    generator = np.random.default_rng(0)
    rows = ["audio,text,speaker"]
    for s, speaker in enumerate(("ann", "bob", "cat")):
        for word, hertz in HERTZ.items():
            for take in range(8):
                rate = (8000, 16000)[take % 2]
                seconds = np.arange(int((0.3 + 0.02 * take) * rate)) / rate
                sound = 0.3 * np.sin(2 * np.pi * hertz * (1 + 0.05 * s) * seconds)
                sound += 0.01 * generator.standard_normal(len(seconds))
                name = f"{speaker}_{word}_{take}.wav"
                soundfile.write(root / name, sound.astype(np.float32), rate)
                rows.append(f"{name},{word},{speaker}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


def train(tones: Path, runs: Path, *more: str) -> int:
    return main(
        [
            "train", "recipe=recordings", f"data.data_root={tones}", f"runs_dir={runs}", "run_name=tones",
            "training.num_threads=1", "training.steps=80", "training.batch_size=8",
            "training.scheduler.warmup_steps=10", "training.validate_every_steps=40", "model.conv.width=32",
            "model.conv.num_blocks=2", *more,
        ]
    )  # fmt: skip


def test_held_out_takes_and_unlabelled_files(tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tones, tmp_path) == 0
    assert main(["evaluate", str(tmp_path / "tones"), "--split", "test", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["wra"] == 1.0
    assert set(found["by_group"]["speaker"]) <= {"ann", "bob", "cat"}

    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for name in ("ann_low_0.wav", "cat_high_3.wav"):
        (folder / f"x_{name}").symlink_to(tones / name)
    out = tmp_path / "words.jsonl"
    assert main(["decode", str(tmp_path / "tones"), str(folder), "--out", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert {r["trial_id"]: r["text"] for r in records} == {"x_ann_low_0.wav": "low", "x_cat_high_3.wav": "high"}
    assert all(0.5 < r["words"][0]["confidence"] <= 1 for r in records)
    assert {candidate["text"] for candidate in records[0]["n_best"]} == {"low", "high"}
    assert all("".join(candidate["symbols"]) == candidate["text"] for candidate in records[0]["n_best"])


def test_a_held_out_speaker_is_the_test_split_and_nothing_else(
    tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tones, tmp_path, "data.held_out_speakers=[cat]", "training.steps=20") == 0
    groups = {}
    for split in ("train", "val", "test"):
        capsys.readouterr()
        assert main(["evaluate", str(tmp_path / "tones"), "--split", split, "--json"]) == 0
        groups[split] = set(json.loads(capsys.readouterr().out)["by_group"]["speaker"])
    assert groups == {"train": {"ann", "bob"}, "val": {"ann", "bob"}, "test": {"cat"}}
    assert main(["decode", str(tmp_path / "tones"), str(tones), "--out", str(tmp_path / "all")]) == 0
    assert len((tmp_path / "all").read_text().splitlines()) == 48


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("data.held_out_speakers=[kat]",), "cat"),
        (("data.symbols=phonemes",), "lexicon"),
        (("preprocessor.log_mel.high_hz=9000",), "half the sample rate must hold; got 0, 9000 and 8000"),
        (("preprocessor.log_mel=null",), "looks like a folder of recordings"),
    ],
)
def test_mistakes_are_named(
    tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    if "log_mel=null" in more[0]:
        more = (*more, "augmentation.speed=0", "augmentation.formant=0", "data.symbols=phonemes")
    assert train(tones, tmp_path, *more) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_run_keeps_the_dictionary_it_began_with(
    tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    (there / "dict.txt").write_text("LOW  L UH1\nHIGH  HH AY1\n")
    monkeypatch.chdir(there)
    small = ("training.steps=4", "training.scheduler.warmup_steps=1", "training.preflight=false")
    assert train(tones, tmp_path, "data.symbols=phonemes", "data.lexicon=dict.txt", *small) == 0
    monkeypatch.chdir(here)
    run = tmp_path / "tones"
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["lexicon"] == str(there / "dict.txt")

    (there / "dict.txt").rename(here / "moved.txt")
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["symbols"] == "phonemes"
    hypotheses = [json.loads(line) for line in (run / "hypotheses.val.words.jsonl").read_text().splitlines()]
    targets = {"low": ["L", "UH", "|"], "high": ["HH", "AY", "|"]}
    assert all(h["reference_symbols"] == targets[h["reference"]] for h in hypotheses)
    assert main(["decode", str(run), str(tones), "--out", "words.jsonl"]) == 0

    assert main(["train", f"resume={run}"]) == 2
    assert "set data.lexicon to a pronouncing dictionary" in capsys.readouterr().err
    (here / "other.txt").write_text("LOW  L UH1\nHIGH  HH IY1\n")
    assert main(["train", f"resume={run}", "data.lexicon=other.txt"]) == 2
    assert f"other.txt holds other words or pronunciations than the dictionary that {run}" in capsys.readouterr().err
    assert main(["train", f"resume={run}", "data.lexicon=moved.txt"]) == 0
