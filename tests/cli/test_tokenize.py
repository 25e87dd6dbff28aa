"""`vivavoce tokenize`: a corpus to a store by name, going on with a begun one, one line for what is wrong."""

from functools import partial

import numpy as np
import pytest
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

    def load(name, codebooks=None, device="cpu", dtype=torch.float32):
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
