"""Recognisers by name: pocketsphinx on real speech, our own, and published formats against transformers."""

import numpy as np
import pytest
import torch

import vivavoce
from published_models import ctc_recogniser
from vivavoce.audio import Audio
from vivavoce.errors import CheckpointError, RequestError
from vivavoce.evaluation.transcribers import load_transcriber


def sentence():
    return vivavoce.read("examples/recordings/sentence-librispeech.wav")


@pytest.fixture(scope="module")
def ctc(tmp_path_factory):
    """A small wav2vec 2.0 with a CTC head and its processor, in transformers' format, and both in memory."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("ctc")
    model, processor = ctc_recogniser(folder)
    return folder, model, processor


def test_sphinx_hears_words_of_a_recording_and_none_in_silence():
    sphinx = load_transcriber("pocketsphinx")
    words = sphinx(sentence()).split()
    assert {"not", "allowed", "say"} <= set(words)
    assert sphinx(sentence()) == " ".join(words)  # nothing stays from one to the next
    assert sphinx(Audio(np.zeros((1, 0), np.float32), 8000)) == ""


def test_mini_writes_down_digits():
    assert load_transcriber("mini")(vivavoce.read("examples/recordings/three-four-george-joined.wav")) == "three four"


def test_a_published_recogniser_says_what_transformers_says(ctc):
    folder, model, processor = ctc
    heard = load_transcriber(folder)
    audio = sentence()
    given = processor(audio.resample(16000).mono().samples[0], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = processor.batch_decode(model(**given).logits.argmax(-1))[0].strip()
    assert len(set(expected)) > 5 and heard(audio) == expected
    assert heard(audio.resample(44100)) != "" and heard(Audio(np.zeros((1, 0), np.float32), 16000)) == ""


def test_an_hour_is_heard_in_pieces(ctc):
    folder, _, _ = ctc
    long = Audio(np.tile(sentence().resample(16000).samples, 20), 16000)  # 88 s
    assert len(load_transcriber(folder)(long)) > 10 * len(load_transcriber(folder)(sentence()))


def test_what_is_no_recogniser_is_refused(tmp_path, ctc):
    with pytest.raises(RequestError, match="no task 'transcribe'"):
        load_transcriber(_codec(tmp_path))
    with pytest.raises(RequestError):
        load_transcriber("nothing-of-this-name")
    folder, _, _ = ctc
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match="broken"):
        load_transcriber(broken)


def _codec(tmp_path):
    """A model directory that cannot transcribe."""
    from vivavoce.systems import build, save

    save(build("speech-codec", size="smoke"), tmp_path / "codec")
    return str(tmp_path / "codec")
