"""The doctor on corpora: each planted fault is found and named, and a healthy one has none."""

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from doctor.planted import RATE, audio, babble, change, corpus, found, nothing, rows_of, write_rows
from vivavoce.data.clips import Clip
from vivavoce.doctor.examine import doctor
from vivavoce.doctor.listening import listen
from vivavoce.errors import DataError, RequestError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "recordings"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    return corpus(tmp_path_factory.mktemp("corpus") / "c")


@pytest.fixture
def planted(healthy, tmp_path) -> Path:
    shutil.copytree(healthy, tmp_path / "c")
    return tmp_path / "c"


def test_nothing_is_wrong_with_a_healthy_one(healthy):
    report = doctor([str(healthy)], quiet=True)
    nothing(report)
    assert report.unchecked == [] and len(report.checked) == 12
    assert "24 clips" in report.facts[0] and "16000 Hz" in report.facts[1]


def test_nothing_is_wrong_with_recordings_of_people(pack):
    nothing(doctor([str(EXAMPLES)], quiet=True))
    for name in ("an4", "dialogue_sim", "jfk", "ljspeech", "vctk"):
        nothing(doctor([str(pack / "manifests" / f"{name}.jsonl")], sample=6, quiet=True))


def test_nothing_is_wrong_with_a_synthetic_one(tmp_path):
    pytest.importorskip("espeakng_loader")
    from vivavoce.data import spoken

    jobs = spoken.plan(["zero", "seven", "three plus four is seven"], ["espeak:en-us", "espeak:en"], "s", 1,
                       (0.9, 1.2), (1, 1), 0)  # fmt: skip
    spoken.make(jobs, tmp_path, 1, quiet=True)
    nothing(doctor([str(tmp_path)], quiet=True))


def damaged(folder: Path) -> None:
    path, _ = audio(folder, 3)
    path.write_bytes(path.read_bytes()[:9000])


def not_finite(folder: Path) -> None:
    path, samples = audio(folder, 3)
    samples[700] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")


def rewritten(number: int, make, **options):
    """The audio of a clip replaced by `make(samples)`."""

    def plant(folder: Path) -> None:
        path, samples = audio(folder, number)
        soundfile.write(path, make(samples), options.get("rate", RATE), subtype="PCM_16")

    return plant


def replaced(number: int, **fields):
    return lambda folder: change(folder, number, **fields)


def low_level_clipping(samples: np.ndarray) -> np.ndarray:
    """Cut flat at a third of full scale, as by a gain that was turned down afterwards."""
    return np.clip(8 * samples, -0.33, 0.33)


def copied(one: int, other: int):
    def plant(folder: Path) -> None:
        shutil.copy(audio(folder, one)[0], audio(folder, other)[0])
        change(folder, other, duration=rows_of(folder)[one]["duration"])

    return plant


def short(folder: Path) -> None:
    path, samples = audio(folder, 3)
    soundfile.write(path, samples[1000:1300], RATE)
    change(folder, 3, duration=300 / RATE, text=None, segments=[])


def same_id(folder: Path) -> None:
    change(folder, 3, id="c/02")


# fault -> (how it is planted, the check, how bad, what the first place must say)
FAULTS = {
    "missing file": (lambda folder: audio(folder, 3)[0].unlink(), "unreadable", "fault", "03.wav: no such file"),
    "empty file": (lambda folder: audio(folder, 3)[0].write_bytes(b""), "unreadable", "fault", "0 bytes"),
    "cut short": (damaged, "unreadable", "fault", "truncated"),
    "not audio": (lambda folder: audio(folder, 3)[0].write_text("text\n" * 99), "unreadable", "fault", "text file"),
    "NaN": (not_finite, "unreadable", "fault", "sample 700 of channel 0 is nan"),
    "two of one id": (same_id, "ids", "fault", None),
    "another rate": (rewritten(3, lambda x: x[::2], rate=8000), "sample-rates", "look", "c/03 (8000 Hz)"),
    "clipped at full scale": (rewritten(3, lambda x: np.clip(20 * x, -1, 1)), "clipping", "fault", "c/03 ("),
    "clipped and turned down": (rewritten(3, low_level_clipping), "clipping", "fault", "c/03 ("),
    "silent": (rewritten(3, lambda x: 0 * x), "silence", "fault", "c/03"),
    "mostly silent": (
        rewritten(3, lambda x: np.where(np.arange(len(x)) < 5000, x, 0)), "silence", "look", "c/03 (8",
    ),
    "very quiet": (rewritten(3, lambda x: 0.01 * x), "silence", "look", "c/03 (-5"),
    "offset": (rewritten(3, lambda x: x + 0.05), "offset", "fault", "c/03 (0.05"),
    "too short": (short, "too-short", "fault", "c/03 (18.8 ms)"),
    "wrong duration": (replaced(3, duration=9.0), "durations", "fault", "c/03 (9.00 s said"),
    "words outside": (
        replaced(3, segments=[{"start": 0, "end": 70, "text": "x"}]), "durations", "fault", "c/03 (70.00 s of",
    ),
    "another clip's text": (replaced(3, text="so many words " * 12), "texts", "fault", "c/03 ("),
    "half a text": (replaced(4, text="so"), "texts", "look", "c/04 (1."),
    "speaker on both sides": (replaced(4, split="train"), "splits", "fault", "s4"),
    "recording on both sides": (copied(0, 4), "splits", "fault", "c/04 = c/00"),
    "a copy": (copied(0, 3), "duplicates", "look", "c/03 = c/00"),
    "no licence": (replaced(3, license="unknown"), "licences", "look", "c/03"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_found(kind, planted):
    plant, check, severity, place = FAULTS[kind]
    plant(planted)
    finding = found(doctor([str(planted)], quiet=True), check)
    assert finding.severity == severity and finding.what and finding.remedy
    assert place is None or (finding.where[0].startswith(place) or place in finding.where[0]), finding.where
    assert place is None or finding.count == 1


def test_what_is_not_hit_stays_unnamed(planted):
    """A finding names the clips that it is of, all of them and no others."""
    for number in (3, 9, 15):
        path, samples = audio(planted, number)
        soundfile.write(path, samples + 0.05, RATE)
    report = doctor([str(planted)], quiet=True)
    assert [f.check for f in report.findings] == ["offset"]
    assert [where.split()[0] for where in report.findings[0].where] == ["c/03", "c/09", "c/15"]


def test_rates_below_the_recipes(planted, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("system: x\nsample_rate: 24000\nstreams: {a: {width: 3}}\n")
    finding = found(doctor([str(planted)], recipe=str(recipe), quiet=True), "sample-rates")
    assert finding.count == 24 and "below the recipe's 24000 Hz" in finding.what and "16000 Hz" in finding.where[0]


def test_parts_of_a_corpus_are_its_splits(healthy, tmp_path):
    """Two manifests whose names say what they are for; rows say nothing."""
    rows = [{k: v for k, v in row.items() if k != "split"} for row in rows_of(healthy)]
    for row in rows:
        row["audio"] = str(healthy / row["audio"])
    for name, some in (("train", rows[:14]), ("test", rows[12:])):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name, some)
        (tmp_path / name / "manifest.jsonl").rename(tmp_path / f"{name}.jsonl")
    report = doctor([str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")], quiet=True)
    kinds = [(f.what.split()[0], f.severity) for f in report.findings if f.check == "splits"]
    assert kinds == [("clips", "fault"), ("all", "look")]  # the split is by no speaker at all
    assert "c/12 = c/12" in next(f for f in report.findings if f.check == "splits").where


def test_a_sample_is_heard_and_all_rows_are_read(planted):
    change(planted, 7, license="unknown")
    report = doctor([str(planted)], sample=5, quiet=True)
    assert "5 heard" in report.facts[0] and found(report, "licences").where == ("c/07",)


def test_many_places_are_counted_and_a_hundred_named(planted):
    rows = rows_of(planted)
    write_rows(planted, [{**row, "id": f"{row['id']}-{n}", "license": "unknown"} for n in range(6) for row in rows])
    finding = found(doctor([str(planted)], sample=2, quiet=True), "licences")
    assert finding.count == 144 and len(finding.where) == 100


def test_memory_is_that_of_a_block(tmp_path):
    """Three minutes are heard with memory for about ten seconds."""
    soundfile.write(tmp_path / "long.wav", np.tile(babble(9, 0), 20), RATE)
    clip = Clip("long", "long.wav", 180.0, "CC0", "made", root=str(tmp_path))
    tracemalloc.start()
    figures = listen(clip)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert figures["seconds"] == 180 and most < 12e6, "three minutes of samples alone are 11.5 MB, in float32"


def test_a_piece_of_a_recording_is_heard_by_itself(tmp_path):
    samples = np.concatenate([np.zeros(RATE, np.float32), babble(2, 1), np.zeros(RATE, np.float32)])
    soundfile.write(tmp_path / "whole.wav", samples, RATE)
    piece = listen(Clip("p", "whole.wav", 2.0, "CC0", "made", start=1.0, root=str(tmp_path)))
    whole = listen(Clip("w", "whole.wav", 4.0, "CC0", "made", root=str(tmp_path)))
    assert piece["seconds"] == 2 and piece["silent"] < 0.2 < 0.4 < whole["silent"]
    assert piece["digest"] != whole["digest"]


def test_what_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(RequestError, match="nothing of that name"):
        doctor([str(tmp_path / "none")])
    with pytest.raises(DataError, match="no audio found"):
        doctor([str(tmp_path)])
    (tmp_path / "m.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"m\.jsonl, line 1: not JSON"):
        doctor([str(tmp_path / "m.jsonl")])
