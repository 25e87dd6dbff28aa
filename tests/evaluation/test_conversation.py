"""Recording a conversation, its timing, and the page made of it; with a model whose behaviour is known."""

import io
import re
import wave

import numpy as np
import pytest

from evaluation.fake_model import FakeModel
from vivavoce.audio import Audio
from vivavoce.errors import RequestError
from vivavoce.evaluation.conversation import converse, first_sound, join_text, last_sound
from vivavoce.evaluation.conversation_page import conversation_page, draw, wav_bytes


def question(seconds: float = 0.4, rate: int = 16000) -> Audio:
    """A tone of `seconds` followed by 0.1 s of silence."""
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return Audio(np.concatenate([tone, np.zeros(round(0.1 * rate))]).astype(np.float32), rate)


def test_all_is_kept_on_one_time_axis():
    talk = converse(FakeModel(), question())
    # the tone fills frames 0..4; the seventh silent frame is frame 11, its answer sounds one frame later
    assert talk.question_seconds == pytest.approx(0.4, abs=0.011)
    assert len(talk.heard) == len(talk.said) == (len(talk.step_seconds) + 1) * 1280
    assert first_sound(talk.said, 16000) == pytest.approx(12 * 0.08, abs=0.011)
    assert talk.answer_latency == pytest.approx(12 * 0.08 - 0.4, abs=0.03)
    assert talk.model_text == [(pytest.approx(0.08 * (12 + i)), w) for i, w in enumerate(("three", "plus", "four"))]
    assert talk.transcript("model") == "three plus four" and talk.transcript("user") == "three"
    assert talk.tokens["voice"].shape == (len(talk.step_seconds), 8)
    assert talk.tokens["text"].shape == (len(talk.step_seconds), 1)
    assert 0 < talk.real_time_factor < 0.5
    assert talk.duration == pytest.approx(0.08 * (12 + 3 + 10), abs=0.09)  # it stops 0.8 s after the answer


def test_no_answer_ends_after_the_wait():
    talk = converse(FakeModel(answers=False), question(), wait=1.0)
    assert talk.answer_latency is None and talk.transcript("model") == ""
    assert 1.0 < talk.duration < 1.8


def test_other_rates_are_resampled():
    assert converse(FakeModel(), question(rate=44100)).question_seconds == pytest.approx(0.4, abs=0.03)


def test_a_model_without_duplex_is_refused():
    model = FakeModel()
    model.verbs = {"features": "native"}
    with pytest.raises(RequestError, match="no verb 'duplex'"):
        converse(model, question())


def test_sound_is_found():
    samples = np.zeros(16000, np.float32)
    assert first_sound(samples, 16000) is None and last_sound(samples, 16000) == 1.0
    samples[4000:8000] = 0.1
    assert first_sound(samples, 16000) == pytest.approx(0.25) and last_sound(samples, 16000) == pytest.approx(0.5)


def test_pieces_become_text():
    assert join_text(["three", "plus"]) == "three plus"
    assert join_text([" three", " pl", "us"]) == "three plus"
    assert join_text([]) == ""


def test_the_page_stands_alone():
    talk = converse(FakeModel(), question(), name="three <b>")
    page = conversation_page([talk, talk], "what it says", ["a note & more"])
    assert not re.findall(r"(?:src|href)='(?!data:|#)", page)  # nothing is fetched from elsewhere
    assert page.count("<audio") == 6 and page.count("data:image/png;base64,") == 2
    assert "three &lt;b&gt;" in page and "<b>" not in page and "a note &amp; more" in page
    assert "three plus four" in page and f"{1000 * talk.answer_latency:.0f} ms" in page


def test_picture_and_sound_are_real_files():
    talk = converse(FakeModel(), question())
    assert draw(talk).startswith(b"\x89PNG")
    with wave.open(io.BytesIO(wav_bytes(np.stack([talk.heard, talk.said]), 16000))) as file:
        assert file.getnchannels() == 2 and file.getnframes() == len(talk.heard) and file.getframerate() == 16000
