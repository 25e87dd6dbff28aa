"""The embedded model is asked from the page, by a recorded question, and answers by voice."""

import time

import numpy as np
import pytest

import vivavoce
from browser.talking import begin, hang_up, levels, likenesses, recorded, shift, until, words_of
from vivavoce import Audio


def words_in(model, samples):
    """What the model itself understands of some sound."""
    heard = Audio(np.pad(samples, (0, 24_000)).astype(np.float32)[None], 24_000)
    return model.reply([("user", heard)], task="transcribe").text


@pytest.mark.alone
def test_mini_is_asked_and_answers(serve, open_page, photograph, tmp_path):
    model = vivavoce.load("mini")
    port, server = serve(model, dialects=("live", "page"), rows=1)
    page = open_page(f"http://127.0.0.1:{port}/")
    begin(page, record=True)
    (conversation,) = server.core.live.values()
    said: list[np.ndarray] = []
    conversation.observers.append(lambda frame: said.append(frame.audio))
    answers = "[...document.querySelectorAll('.turn.model p')].map((p) => p.textContent)"
    page.wait(f"{answers}.some((words) => /three.*four.*seven/.test(words))", 90)
    page.wait("document.getElementById('latency').textContent.endsWith('ms')")
    photograph(page, "talking")
    there = len(said)
    assert until(lambda: len(said) >= there + 19, 60.0)  # 1.5 s: words are there before their sound is
    time.sleep(0.5)  # and before it is played
    assert "three" in words_of(page, "user") and "four" in words_of(page, "user")
    hang_up(page)
    assert page.evaluate("document.querySelector('.turn').className") == "turn user"
    user, model_said = recorded(page, tmp_path)
    asked, answered = np.flatnonzero(levels(user) > 0.02), np.flatnonzero(levels(model_said) > 0.01)
    assert len(asked) and len(answered) > 20  # 0.4 s of sound at least
    assert answered[0] > asked[0] + 20, "the answer begins after the question"
    assert until(lambda: not server.core.live)
    sent = Audio(np.concatenate(said)[None], model.sample_rate).resample(24_000).samples[0]
    assert "three four" in words_in(model, user) and "seven" in words_in(model, sent)
    alike = likenesses(sent, model_said, shift(sent, model_said))
    assert len(alike) > 2 and np.median(alike) > 0.95, alike  # what was sent is what was played, gaps aside
