"""One reply: pieces of any length are the same sound and words, given out by the clock."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vivavoce.dialogue.reply_stream import ReplyStream
from vivavoce.dialogue.turns import LOUD, Piece

RATE, FRAME = 24_000, 1920


def sound(seed, samples):
    return np.random.default_rng(seed).uniform(0.1, 0.5, samples).astype(np.float32)


def eventually(true, patience=60.0):
    end = time.monotonic() + patience
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    assert true()


def frames_of(stream, late=0, most=2000):
    """All frames that a stream gives, and their words."""
    audio, words = [], []
    while not stream.over and len(audio) < most:
        frame, text, _ = stream.frame(FRAME, late)
        late += FRAME
        audio.append(frame)
        words.append(text)
    return (np.concatenate(audio) if audio else np.zeros(0, np.float32)), words


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12), st.booleans())
def test_pieces_of_any_length_are_the_same_sound(lengths, worker):
    whole = sound(1, sum(lengths))
    ends = np.cumsum(lengths)
    pieces = [Piece(0.0, f"w{n}", whole[end - length : end]) for n, (length, end) in enumerate(zip(lengths, ends))]
    stream = ReplyStream(lambda: iter(pieces), RATE, 60.0, (lambda run: run()) if worker else None)
    audio, words = frames_of(stream)
    assert np.array_equal(audio[: len(whole)], whole) and not audio[len(whole) :].any()
    assert len(audio) - len(whole) < 2 * FRAME and stream.over and stream.error is None
    assert " ".join(word for word in words if word) == " ".join(piece.text for piece in pieces)
    for n, (length, end) in enumerate(zip(lengths, ends)):
        where = [frame for frame, text in enumerate(words) if f"w{n}" in text.split()]
        assert where == [(end - length) // FRAME] or (end == len(whole) and where == [len(words) - 1])


def test_time_that_has_passed_is_not_waited_for_again():
    """Pieces from 1 s before the end of the turn on; their sound begins 1.5 s after it."""
    silence = [Piece(-1.0 + n / 4, "", np.zeros(6000, np.float32)) for n in range(10)]
    voice = [Piece(1.5, "hello", sound(1, 6000)), Piece(1.75, "", np.zeros(48_000, np.float32))]
    for late, waits in ((0.0, 1.5), (0.8, 0.7), (3.0, 0.0)):
        stream = ReplyStream(lambda: iter([*silence, *voice]), RATE, 60.0)
        audio, words = frames_of(stream, round(late * RATE))
        first = int(np.flatnonzero(audio)[0]) / RATE
        assert waits - 0.08 <= first <= waits + 0.081
        assert words.index("hello") == int(first / 0.08)
        assert len(audio) / RATE <= waits + 0.08 + 2.25 + 0.081
    # all that follows the last sound is known to be silence where a worker is ahead: the reply is over before it
    stream = ReplyStream(lambda: iter([*silence, *voice]), RATE, 60.0, lambda run: run())
    assert len(frames_of(stream, 3 * RATE)[0]) / RATE <= 0.5
    # pieces that begin later than the turn's end
    stream = ReplyStream(lambda: iter([Piece(0.5, "x", sound(1, 100))]), RATE, 60.0)
    assert np.flatnonzero(frames_of(stream)[0])[0] == RATE // 2


def test_replies_without_end_or_sound():
    def endless(text, samples):
        while True:
            yield Piece(0.0, text, sound(1, samples))

    stream = ReplyStream(lambda: endless("la", 4800), RATE, 2.0)
    audio, _ = frames_of(stream)
    assert len(audio) == pytest.approx(2 * RATE, abs=FRAME) and "longer than 2 s" in str(stream.error)
    stream = ReplyStream(lambda: endless("words", 0), RATE, 2.0, lambda run: run())
    audio, words = frames_of(stream)
    assert "longer than" in str(stream.error) and len(audio) == FRAME and words[0].startswith("words words")
    stream = ReplyStream(lambda: iter([]), RATE, 2.0)
    assert not stream.frame(FRAME, 0)[0].any() and stream.over and not stream.begun and stream.error is None
    stream = ReplyStream(lambda: 7, RATE, 2.0)
    stream.frame(FRAME, 0)
    assert stream.over and isinstance(stream.error, TypeError)
    stream = ReplyStream(lambda: iter([Piece(0.0, " so", None), Piece(0.0, " it", sound(1, 9))]), RATE, 2.0)
    assert stream.frame(FRAME, 0)[1] == " so it"


def test_silence_while_the_next_frame_is_computed():
    """A worker that is behind leaves a gap, not a crack: whole frames, and all of them."""
    gate, sent = threading.Semaphore(0), [sound(n, 2500) for n in range(4)]

    def slowly():
        for n, samples in enumerate(sent):
            gate.acquire()
            yield Piece(n / 10, "", samples)

    with ThreadPoolExecutor(1) as pool:
        stream = ReplyStream(slowly, RATE, 60.0, pool.submit)
        said = []
        for _ in range(4):
            assert not stream.frame(FRAME, 0)[0].any()
            gate.release()
            eventually(lambda: len(stream._ready) == 1 or stream._done)
            frame, *_ = stream.frame(FRAME, 0)
            said.append(frame)
        gate.release()
        eventually(lambda: stream._done)
        said += [stream.frame(FRAME, 0)[0] for _ in range(3)]
    loud = [frame for frame in said if np.abs(frame).max() > LOUD]
    assert np.array_equal(np.concatenate(loud)[:10_000], np.concatenate(sent)) and stream.over
