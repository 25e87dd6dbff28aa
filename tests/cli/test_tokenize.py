"""`vivavoce tokenize`: a corpus to a store by name, going on with a begun one, one line for what is wrong."""

import json
import math
import os
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import soundfile
import torch

import vivavoce
from vivavoce.cli import main
from vivavoce.data.store import TokenStore
from vivavoce.errors import CheckpointError


class Sign:
    """A tokenizer of one codebook: whether the samples of each 10 ms sum to more than `bias`."""

    channels, frame_rate, codebook_sizes, sample_rate = 1, 100.0, (2,), 8000

    def __init__(self, bias: float):
        self.bias, self.fingerprint = bias, f"sign{bias}"

    def frames(self, samples):
        return samples // 80

    def encode(self, wave, lengths=None):
        return (wave[..., : wave.shape[-1] // 80 * 80].unflatten(-1, (-1, 80)).sum(-1) > self.bias).long()


@pytest.fixture
def run(command, monkeypatch):
    """The command with tokenizers called sign0 and sign1."""

    def load(name, codebooks=None, device="cpu", dtype=torch.float32, allow_pickle=False):
        if name == "pickled" and not allow_pickle:
            raise CheckpointError("a pickle: --allow-pickle")
        name = "sign0" if name == "pickled" else name
        if not name.startswith("sign"):
            raise CheckpointError(f"{name}: no such tokenizer")
        return Sign(float(name[4:]))

    monkeypatch.setattr(vivavoce, "load_tokenizer", load, raising=False)

    return partial(command, "tokenize")


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        wave = 0.1 * rng.standard_normal((1, 4000 + 800 * i)).astype(np.float32)
        vivavoce.write(folder / f"{i}.wav", vivavoce.Audio(wave, 8000))
    (folder / "bad.wav").write_text("no audio")
    return folder


FOLDER = ("--license", "CC0-1.0", "--source", "noise", "--device", "cpu")


def test_a_corpus_becomes_a_store_and_grows(run, capsys, corpus, tmp_path):
    store = tmp_path / "store"
    code, said, complaints = run("sign0", corpus, "-o", store, *FOLDER)
    assert code == 0 and "5 utterances, 5 made now, 1 skipped" in said and "skipped bad" in complaints
    read = TokenStore(store, {"voice": "sign0.0"})
    assert [row.id for row in read] == list("01234") and read.lengths().tolist() == [50, 60, 70, 80, 90]
    assert read[0].license == "CC0-1.0" and read[0].source == "noise"
    with pytest.raises(SystemExit, match="0"):
        main(["data", "stats", str(store)])
    said = capsys.readouterr().out
    assert "5 clips" in said and "noise; CC0-1.0" in said
    vivavoce.write(corpus / "new.wav", vivavoce.read(corpus / "0.wav"))
    code, said, _ = run("sign0", corpus, "-o", store, *FOLDER)
    assert code == 0 and "6 utterances, 1 made now" in said
    assert np.array_equal(TokenStore(store)[5].streams["voice"][0], read[0].streams["voice"][0])


def test_a_codec_directory(pack, tmp_path, capsys):
    from vivavoce.codecs import build_codec, save_codec

    torch.manual_seed(0)
    options = {"sample_rate": 16000, "filters": 2, "ratios": [10, 8, 4], "dim": 8, "codebooks": 2, "codebook_size": 16}
    save_codec(build_codec(options), tmp_path / "codec")
    corpus = tmp_path / "an4.jsonl"
    corpus.write_text((pack / "manifests" / "an4.jsonl").read_text().replace("audio/an4", f"{pack}/audio/an4"))
    for codebooks, levels in (((), 2), (("--codebooks", "1"), 1)):
        store = tmp_path / f"store{levels}"
        with pytest.raises(SystemExit, match="0"):
            main(["tokenize", str(tmp_path / "codec"), str(corpus), "-o", str(store), "--device", "cpu", *codebooks])
        assert "6 utterances, 6 made now, 0 skipped" in capsys.readouterr().out
        read = TokenStore(store, {"voice": vivavoce.load_tokenizer(tmp_path / "codec", codebooks=levels)})
        assert {row.streams["voice"][0].shape[0] for row in read} == {levels} and read.specs["voice"].size == 16
        assert [row.text[0] for row in read].count(None) == 1 and all("AN4" in row.license for row in read)


def test_pickles_only_when_asked(run, corpus, tmp_path):
    assert run("pickled", corpus, "-o", tmp_path / "store", *FOLDER)[0] == 1
    assert run("pickled", corpus, "-o", tmp_path / "store", *FOLDER, "--allow-pickle")[0] == 0


def test_what_it_would_take(run, corpus, tmp_path):
    """The sample is the whole of so small a corpus; its figures go up with the hours."""
    code, said, complaints = run("sign0", corpus, "--estimate", "--sample", "0.5", "--json", *FOLDER)
    told = json.loads(said)
    here, large = told["estimates"]
    seconds = sum(0.5 + 0.1 * i for i in range(5))
    assert code == 0 and "skipped" not in complaints.replace("skipped bad", "")
    assert told["sample"]["clips"] == 5 and here["hours"] == pytest.approx(seconds / 3600)
    assert told["sample"]["hours_per_second"] == pytest.approx(told["sample"]["hours"] / told["sample"]["seconds"])
    assert large["hours"] == 100_000 and large["bytes"] / here["bytes"] == pytest.approx(100_000 / here["hours"], 1e-3)
    assert large["process_hours"] == pytest.approx(100_000 / told["sample"]["hours_per_second"] / 3600)
    assert large["processes_for_7_days"] == math.ceil(large["process_hours"] / 168)
    assert not (tmp_path / "store").exists()
    code, said, _ = run("sign0", corpus, "--estimate", "--hours", "5", "--days", "0.5", *FOLDER)
    assert code == 0 and re.search(r"sample: 5 clips, .* h/s", said)
    assert re.search(r"5 h: .* 1 process in 0.5 days", said)


def test_its_speed_is_told(run, corpus, tmp_path):
    code, said, _ = run("sign0", corpus, "-o", tmp_path / "a", *FOLDER)
    assert code == 0 and re.search(r"0.00097\d* h at [\d.e-]+ h/s", said)
    told = json.loads(run("sign0", corpus, "-o", tmp_path / "b", "--json", *FOLDER)[1])
    assert told["rows"] == 5 and told["hours_per_second"] > 0


def test_a_recording_is_decoded_once_for_all_tokenizers(run, tmp_path, monkeypatch):
    """Short ones and long ones, which go through in pieces."""
    from vivavoce.audio import files

    opened, original = [], files.opened
    monkeypatch.setattr(files, "opened", lambda place: opened.append(str(place)) or original(place))
    monkeypatch.setattr("vivavoce.data.tokenize._LONG", 1.0)
    (tmp_path / "corpus").mkdir()
    rng = np.random.default_rng(0)
    for name, seconds in (("short", 0.5), ("long", 2.0)):
        wave = 0.1 * rng.standard_normal((1, round(8000 * seconds))).astype(np.float32)
        vivavoce.write(tmp_path / "corpus" / f"{name}.wav", vivavoce.Audio(wave, 8000))
    assert run("a=sign0", "b=sign1", "c=sign2", tmp_path / "corpus", "-o", tmp_path / "store", *FOLDER)[0] == 0
    assert sorted(name.rpartition("/")[2] for name in opened) == ["long.wav", "short.wav"]
    assert TokenStore(tmp_path / "store").lengths("c").tolist() == [200, 50]


PEAK = """
import resource, sys
from vivavoce.cli import main
try:
    main(sys.argv[1:])
except SystemExit as left:
    assert left.code == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


@pytest.mark.skipif(os.environ.get("VIVAVOCE_LONG") != "1", reason="an hour of audio: make check-long")
@pytest.mark.parametrize("kind", ["causal", "whole signals"])
def test_an_hour_takes_no_more_memory_than_a_minute_or_two(tmp_path, kind):
    from codec_families import narrow
    from small_codecs import small
    from vivavoce.codecs import save_codec

    codec = small("causal", ratios=[8, 8, 4]) if kind == "causal" else narrow("speechtokenizer")
    rate = codec.sample_rate
    save_codec(codec, tmp_path / "codec")
    peaks, found = {}, {}
    for name, minutes in (("minutes", 2), ("hour", 60)):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "a.wav"
        with soundfile.SoundFile(file, "w", rate, 1) as out:
            for minute in range(minutes):
                out.write(0.1 * np.random.default_rng(minute).standard_normal(rate * 60))
        for what, arguments in {
            "tokenize": ["tokenize", tmp_path / "codec", file.parent, "-o", tmp_path / f"{name}-store", *FOLDER],
            "encode": ["encode", tmp_path / "codec", file, "-o", tmp_path / f"{name}.vvc"],
            "decode": ["decode", tmp_path / "codec", tmp_path / f"{name}.vvc", "-o", tmp_path / f"{name}.wav"],
        }.items():
            command = [sys.executable, "-c", PEAK, *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[name, what] = int(done.stderr.split()[-1]) / 1024
        found[name] = TokenStore(tmp_path / f"{name}-store")[0].streams["voice"][0]
    for what in ("tokenize", "encode", "decode"):
        most = peaks["minutes", what] + 60
        assert peaks["hour", what] < most, peaks  # MiB; the hour's samples alone are 110 or 220
    assert len(vivavoce.read(tmp_path / "hour.wav")) == 60 * 60 * rate
    same = round(100 * codec.frame_rate)  # seconds of whole pieces in both
    assert np.array_equal(found["hour"][:, :same], found["minutes"][:, :same])


def test_several_tokenizers_are_several_streams(run, corpus, tmp_path):
    code, _, _ = run("low=sign0", "high=sign1", corpus, "-o", tmp_path / "store", *FOLDER)
    read = TokenStore(tmp_path / "store", {"low": "sign0.0", "high": "sign1.0"})
    assert code == 0 and read[0].streams["low"][0].sum() > read[0].streams["high"][0].sum()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("sign0", "-o", "OUT"), 2, "then the corpus"),
        (("nobody", "CORPUS", "-o", "OUT", *FOLDER), 1, "no such tokenizer"),
        (("sign0", "sign1", "CORPUS", "-o", "OUT", *FOLDER), 2, "units=sign0"),
        (("a=sign0", "a=sign1", "CORPUS", "-o", "OUT", *FOLDER), 2, "occurs twice"),
        (("sign0", "nowhere", "-o", "OUT", *FOLDER), 1, "no such file"),
        (("sign0", "CORPUS", "-o", "OUT"), 2, "neither licence nor source"),
        (("sign0", "CORPUS", "-o", "CORPUS/0.wav", *FOLDER), 1, "cannot be made"),
        (("sign1", "CORPUS", "-o", "BEGUN", *FOLDER), 1, "fingerprint sign0.0"),
        (("sign0", "CORPUS", *FOLDER), 2, "'--out'"),
    ],
)
def test_one_line_for_what_is_wrong(run, corpus, tmp_path, arguments, code, says):
    assert run("sign0", corpus, "-o", tmp_path / "begun", *FOLDER)[0] == 0
    places = {"OUT": tmp_path / "out", "CORPUS": corpus, "BEGUN": tmp_path / "begun"}
    filled = [str(places.get(a, str(a).replace("CORPUS", str(corpus)))) for a in arguments]
    found, _, complaint = run(*filled)
    assert found == code and says in complaint and "error: " in complaint and "Traceback" not in complaint
    assert [line for line in complaint.splitlines() if line.startswith("error: ")] == complaint.splitlines()[-1:]
