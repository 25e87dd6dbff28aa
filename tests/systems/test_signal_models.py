"""tone and echo: what they say is known to the sample, rows are independent, every verb and task answers."""

import numpy as np
import pytest

import vivavoce
from vivavoce.errors import RequestError
from vivavoce.systems.model import VERBS
from vivavoce.systems.signal_models import ANSWER, FRAME, PAUSE, RATE, TASKS, pitch, tone

rng = np.random.default_rng(0)


def sound(frames):
    return rng.uniform(-0.3, 0.3, frames * FRAME).astype(np.float32)


def talk(session, samples):
    return [session.step(samples[at : at + FRAME]) for at in range(0, len(samples), FRAME)]


def test_echo_says_what_it_heard_a_frame_ago():
    signal = sound(5)
    outs = talk(vivavoce.load("echo").duplex(), np.concatenate([signal, np.zeros(FRAME, np.float32)]))
    assert np.array_equal(np.concatenate([out.audio for out in outs])[FRAME:], signal)
    assert [out.text for out in outs] == ["", "echo", "", "", "", ""]
    assert [out.user_text for out in outs] == ["sound", "", "", "", "", ""]


def test_tone_answers_after_its_pause_and_stops_when_spoken_to():
    silence = np.zeros(FRAME, np.float32)
    outs = talk(vivavoce.load("tone").duplex(), np.concatenate([sound(3), np.tile(silence, 20)]))
    answer = outs[3 + PAUSE - 1 :][:ANSWER]
    assert not any(out.audio.any() for out in outs[: 3 + PAUSE - 1])
    assert np.array_equal(np.concatenate([out.audio for out in answer]), np.concatenate(
        [tone(440.0, at * FRAME, FRAME) for at in range(ANSWER)]))
    assert [out.text for out in outs if out.text] == ["tone", "number 1", "ends"]
    assert not outs[3 + PAUSE - 1 + ANSWER].audio.any()
    cut = talk(vivavoce.load("tone").duplex(), np.concatenate([sound(3), np.tile(silence, 6), sound(1), silence]))
    assert cut[8].audio.any() and not cut[9].audio.any() and not cut[10].audio.any()


def test_rows_do_not_notice_each_other_and_held_ones_stay():
    signal = np.concatenate([sound(3), np.zeros(8 * FRAME, np.float32)])
    alone = talk(vivavoce.load("tone").duplex(seed=5), signal)
    rows = vivavoce.load("tone").duplex_rows(3)
    rows.step(rng.uniform(-1, 1, (3, FRAME)), None)
    rows.reset(1, seed=5)
    found = []
    for at in range(0, len(signal), FRAME):
        block = rng.uniform(-1, 1, (3, FRAME)).astype(np.float32)
        assert rows.step(block, [True, False, True])[1] is None
        block[1] = signal[at : at + FRAME]
        found.append(rows.step(block, [False, True, True])[1])
    assert all(np.array_equal(a.audio, b.audio) and a.text == b.text for a, b in zip(found, alone))
    assert pitch(5) != pitch(0)


@pytest.mark.parametrize("name", ["tone", "echo"])
def test_every_verb_and_task_answers(name):
    model = vivavoce.load(name)
    audio = vivavoce.Audio(sound(6)[None], RATE)
    assert set(model.verbs) == set(VERBS) and model.parameters == 0
    for task in TASKS:
        turn = ("user", "two words" if task == "speak" else audio)
        done = model.reply([turn], task=task)
        pieces = list(model.reply([turn], task=task, stream=True))
        if task == "speak":
            assert done.text == "two words" and done.audio.samples.shape[1] == 6 * FRAME
            assert np.array_equal(np.concatenate([piece.audio for piece in pieces]), done.audio.samples[0])
        elif task == "transcribe":
            assert done.text == "sound"
        else:
            assert done.user_text == "sound" and done.text
    assert model.resynth(audio).audio.samples.tolist() == audio.samples.tolist()
    assert model.features(audio).values.shape == (6, 1)
    filled = model.fill("duplex", {"user": audio})
    assert filled["audio"].samples.shape == (1, 6 * FRAME)
    assert model.loglik([[("text", "ab", True), ("audio", audio, False)]]) == [{"text": (-2 * np.log(256), 2)}]
    with pytest.raises(RequestError, match="sing"):
        model.reply([("user", audio)], task="sing")
