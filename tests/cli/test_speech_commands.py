"""ask, resynth, encode, decode, bench: what they print, write and refuse; model and codec are of known behaviour."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vivavoce
from evaluation.fake_model import FakeModel
from vivavoce.audio import Audio, read, write
from vivavoce.codecs import PUBLISHED, build_codec


class Talker(FakeModel):
    """Answers every question with 0.2 s of silence and 0.3 s of a hum."""

    def reply(self, turns, task="answer", seed=0):
        ((role, audio),) = turns
        assert role == "user" and audio.duration > 0
        hum = 0.1 * np.sin(np.arange(4800) * 0.1)
        said = np.concatenate([np.zeros(3200), hum]).astype(np.float32)
        pieces = [(0.08, "four"), (0.16, "six")]
        return SimpleNamespace(text=f"four six {task}", user_text="ten", pieces=pieces, audio=Audio(said, 16000))

    def duplex_rows(self, rows):
        return SimpleNamespace(frame_size=1280, step=lambda frames, active: None)


class Halver:
    """A codec of two codebooks of 256: the high and the low byte of every second sample."""

    sample_rate, channels, frame_rate, codebooks, codebook_sizes = 8000, 1, 4000, 2, (256, 256)
    fingerprint = "halver-1"

    def encode(self, wave):
        value = ((wave[:, 0, ::2].clamp(-1, 1) + 1) * 32767.5).round().long()
        return torch.stack([value // 256, value % 256], dim=1)

    def decode(self, codes, lengths=None):
        value = (codes[:, 0] * 256 + codes[:, 1]) / 32767.5 - 1
        wave = value.repeat_interleave(2, dim=1)[:, None].float()
        return wave if lengths is None else wave[..., : int(lengths.max())]


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(vivavoce, "load", lambda name, **options: Talker(), raising=False)
    monkeypatch.setattr(vivavoce, "load_tokenizer", lambda name, codebooks=None, **place: Halver(), raising=False)


@pytest.fixture
def question(tmp_path):
    file = tmp_path / "question.wav"
    write(file, Audio(0.3 * np.sin(np.arange(9601) * 0.05).astype(np.float32), 16000))
    return file


def test_ask_writes_the_answer_and_tells(question, tmp_path, command):
    code, out, err = command("ask", question, "-o", tmp_path / "a.wav", "--page", tmp_path / "a.html")
    assert code == 0, err
    assert "it heard     ten" in out and "it said      four six answer" in out and "first audio  2" in out
    assert read(tmp_path / "a.wav").duration == pytest.approx(0.5)
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")


def test_ask_as_json_with_a_named_model_and_task(question, command):
    code, out, _ = command("ask", "some-model", question, "--task", "transcribe", "--json")
    told = json.loads(out)
    assert code == 0 and told["model"] == "some-model" and told["text"] == "four six transcribe"
    assert told["pieces"] == [[0.08, "four"], [0.16, "six"]]
    assert 200 <= told["first_audio_ms"] < 260 and told["heard"] == "ten" and told["seconds"] == 0.5


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda folder: [folder / "none.wav"], 1),
        (lambda folder: [folder], 1),
        (lambda folder: ["a", "b", "c"], 2),
        (lambda folder: [folder / "question.wav", "--device", "warp"], 2),
        (lambda folder: [folder / "question.wav", "--dtype", "int3"], 2),
        (lambda folder: [folder / "question.wav", "-o", folder / "no" / "folder" / "a.wav"], 1),
        (lambda folder: [folder / "question.wav", "-o", folder / "a.pdf"], 1),
    ],
)
def test_ask_refuses_in_one_line(question, tmp_path, command, make, code):
    left, _, err = command("ask", *make(tmp_path))
    assert left == code and err.startswith("error: ") and err.count("\n") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["question.wav"]


def test_resynth_gives_as_many_samples_as_it_was_given(question, tmp_path, command):
    code, out, err = command("resynth", "some-codec", question, "-o", tmp_path / "back.wav", "--json")
    told = json.loads(out)
    assert code == 0, err
    back = read(tmp_path / "back.wav")
    assert back.sample_rate == 8000 and len(back) == 4801  # 9601 samples at 16 kHz
    assert told["bits_per_second"] == 64000 and told["tokens_per_second"] == 8000 and told["codebooks"] == 2


def test_encode_and_decode_are_resynth(question, tmp_path, command):
    assert command("resynth", "c", question, "-o", tmp_path / "a.wav")[0] == 0
    assert command("encode", "c", question, "-o", tmp_path / "a.vvc")[0] == 0
    assert command("decode", "c", tmp_path / "a.vvc", "-o", tmp_path / "b.wav")[0] == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert 4800 < (tmp_path / "a.vvc").stat().st_size < 5200  # 2401 frames of two bytes, and a header


def test_a_codec_that_normalises_keeps_the_loudness(question, tmp_path, command, monkeypatch):
    small = {"filters": 2, "dim": 8, "codebooks": 2, "codebook_size": 16, "chunk": 960, "stride": 864, "quantizer": {}}
    codec = build_codec({**PUBLISHED["encodec-48khz"], **small, "sample_rate": 16000, "use_codebooks": 2}).eval()
    monkeypatch.setattr(vivavoce, "load_tokenizer", lambda name, codebooks=None, **place: codec, raising=False)
    quiet = tmp_path / "quiet.wav"
    write(quiet, Audio(read(question).samples * 0.1, 16000))
    for name in (question, quiet):
        assert command("resynth", "c", name, "-o", tmp_path / f"a-{name.name}")[0] == 0
        assert command("encode", "c", name, "-o", tmp_path / "a.vvc")[0] == 0
        assert command("decode", "c", tmp_path / "a.vvc", "-o", tmp_path / "b.wav")[0] == 0
        one, other = (read(tmp_path / each).samples for each in (f"a-{name.name}", "b.wav"))
        assert one.shape == other.shape and np.abs(one - other).max() < 1.1 / 32768  # chunks alone round otherwise
    loud, soft = (read(tmp_path / f"a-{name}.wav").samples for name in ("question", "quiet"))
    assert loud.shape == (2, 9601)
    assert np.sqrt((soft**2).mean() / (loud**2).mean()) == pytest.approx(0.1, rel=0.05)


def test_decode_refuses_damage_and_other_tokenizers(question, tmp_path, command, monkeypatch):
    command("encode", "c", question, "-o", tmp_path / "a.vvc")
    (tmp_path / "cut.vvc").write_bytes((tmp_path / "a.vvc").read_bytes()[:-5])
    for name in ("cut.vvc", "question.wav", "none.vvc"):
        code, _, err = command("decode", "c", tmp_path / name, "-o", tmp_path / "b.wav")
        assert code == 1 and err.startswith("error: ") and name in err
    monkeypatch.setattr(Halver, "fingerprint", "halver-2")
    code, _, err = command("decode", "d", tmp_path / "a.vvc", "-o", tmp_path / "b.wav")
    assert code == 1 and "another tokenizer ('c') than 'd'" in err
    assert not (tmp_path / "b.wav").exists()


def test_bench_tells_times(command):
    threads = torch.get_num_threads()
    code, out, err = command("bench", "--rows", "1", "--rows", "4", "--steps", "5", "--json")
    torch.set_num_threads(threads)
    told = json.loads(out)
    assert code == 0, err
    assert [step["rows"] for step in told["steps"]] == [1, 4] and told["peak_memory_mb"] > 50
    assert command("bench", "--rows", "0")[0] == 2 and command("bench", "--threads", "0")[0] == 2
