"""Half-duplex models in lockstep: turns are found, replies given out frame by frame, cut exactly, never waited for."""

import logging
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vivavoce
from vivavoce.audio.voice_activity import speech_segments
from vivavoce.dialogue.reply_rows import ReplyRows, duplex_from_reply
from vivavoce.dialogue.reply_stream import ReplyStream
from vivavoce.dialogue.turn_policy import TurnAudio, TurnPolicy
from vivavoce.dialogue.turns import Piece
from vivavoce.errors import AudioError, RequestError

RATE, FRAME = 24_000, 1920
WORDS = "one two three four five six seven eight nine ten".split()


def sound(seed, samples):
    return np.random.default_rng(seed).uniform(0.1, 0.5, samples).astype(np.float32)


class Speaker:
    """Replies with `WORDS`, a piece of `size` samples each; notes what it was asked, and whether it was left early."""

    name, sample_rate, verbs = "speaker", RATE, {"reply": "native"}

    def __init__(self, size=2500, words=WORDS, user_text="heard you", gate=None):
        self.size, self.words, self.user_text, self.gate = size, words, user_text, gate
        self.asked, self.computed, self.left = [], 0, 0

    def sounds(self, seed=0):
        """All that a reply sounds like."""
        return np.concatenate([sound(100 * seed + n, self.size) for n in range(len(self.words))])

    def reply(self, turns, stream=False, seed=0):
        assert stream
        self.asked.append(turns)
        done = False
        try:
            for n, word in enumerate(self.words):
                if self.gate is not None:
                    self.gate.acquire()
                self.computed += 1
                said = Piece(n * self.size / RATE, word, sound(100 * seed + n, self.size), "" if n else self.user_text)
                yield said
            done = True
        finally:
            self.left += not done


class ByHand:
    """An executor that does its work when it is told to."""

    def __init__(self):
        self.work = []

    def submit(self, function):
        self.work.append(function)

    def run(self):
        while self.work:
            self.work.pop(0)()


@pytest.fixture(scope="module")
def recordings():
    """Name -> samples at 24 kHz, from just before the voice to just behind it."""
    folder, found = Path(__file__).parents[2] / "examples/recordings", {}
    for name in ("three-four-george-joined", "three-lucas", "seven-george", "sentence-librispeech"):
        audio = vivavoce.read(folder / f"{name}.wav")
        segments = speech_segments(audio)
        found[name] = audio[max(0.0, segments[0][0] - 0.1) : segments[-1][1] + 0.1].resample(RATE).samples[0]
    return found


def quiet(seconds):
    return np.zeros(round(seconds * RATE), np.float32)


def framed(*parts):
    signal = np.concatenate(parts)
    return np.pad(signal, (0, -len(signal) % FRAME)).reshape(-1, FRAME)


def talk(rows, signal, row=0, hand=None):
    """Outputs of `row` while it hears `signal`, the others silence; the executor `hand` works between frames."""
    outs = []
    for frame in signal:
        frames = np.zeros((rows.rows, FRAME), np.float32)
        frames[row] = frame
        outs.append(rows.step(frames)[row])
        if hand is not None:
            hand.run()
    return outs


def audio_of(outs):
    return np.concatenate([out.audio for out in outs])


def said_frames(outs):
    return [n for n, out in enumerate(outs) if out.audio.any()]


def test_a_turn_is_answered_frame_by_frame_and_remembered(recordings):
    model, hand = Speaker(), ByHand()
    rows = ReplyRows(model, 1, executor=hand)
    signal = framed(quiet(1), recordings["three-four-george-joined"], quiet(4))
    outs = talk(rows, signal, hand=hand)
    said = said_frames(outs)
    assert said == list(range(said[0], said[0] + -(-10 * 2500 // FRAME)))
    assert np.array_equal(audio_of(outs)[said[0] * FRAME :][: 10 * 2500], model.sounds())
    # each word at the frame in which its piece begins
    texts = {n - said[0]: out.text for n, out in enumerate(outs) if out.text}
    expected: dict[int, str] = {}
    for n, word in enumerate(WORDS):
        expected[n * 2500 // FRAME] = f"{expected.get(n * 2500 // FRAME, '')} {word}".strip()
    assert texts == expected
    assert [out.user_text for out in outs if out.user_text] == ["heard you"]
    # the voice ends after 1 + 1.3 s, then 0.5 s of silence; the reply begins in the frame after the one that hears that
    end = 1 + len(recordings["three-four-george-joined"]) / RATE - 0.1
    assert end + 0.5 <= said[0] * 0.08 <= end + 0.9
    user, answer = rows.history(0)
    assert (user.role, user.text, user.cut) == ("user", "heard you", None)
    heard, start = np.concatenate(signal), round(user.began * RATE)
    assert np.array_equal(user.samples, heard[start : start + len(user.samples)])
    assert 0.6 <= user.began <= 0.9 and end + 0.1 <= user.began + len(user.samples) / RATE <= end + 0.4
    assert (answer.role, answer.text, answer.cut) == ("model", " ".join(WORDS), None)
    assert answer.began == pytest.approx((said[0] + 1) * 0.08)
    assert np.array_equal(model.asked[0][0][1].samples[0], user.samples) and model.left == 0
    assert not rows.replying(0) and rows.errors(0) == []


def test_the_user_breaks_in_and_what_was_not_said_is_forgotten(recordings):
    model, hand = Speaker(words=WORDS * 4), ByHand()
    rows = ReplyRows(model, 1, executor=hand)
    signal = framed(recordings["three-four-george-joined"], quiet(2.5), recordings["three-lucas"], quiet(2))
    outs = talk(rows, signal, hand=hand)
    said = said_frames(outs)
    first = [n for n in said if n - said[0] == said.index(n)]  # without a gap
    voice = (len(recordings["three-four-george-joined"]) + 2.5 * RATE) / FRAME
    assert voice <= first[-1] <= voice + 4  # 0.1 s before the voice, and what voice activity needs to know
    user, answer, second = rows.history(0)
    assert answer.cut == "frames" and second.role == "user"
    assert np.array_equal(answer.samples, model.sounds()[: len(first) * FRAME])
    given = [word for n, word in enumerate(WORDS * 4) if n * 2500 // FRAME < len(first)]
    assert answer.text.split() == given and len(given) < 30
    # and this is what the model is asked with the next time
    roles = [(role, audio.text, audio.samples.shape[1]) for role, audio in model.asked[1]]
    assert roles[:2] == [("user", "heard you", len(user.samples)), ("model", " ".join(given), len(first) * FRAME)]
    assert roles[2][0] == "user" and len(roles) == 3


def test_a_stop_ends_the_computing(recordings):
    """As much is computed as was needed, with and without a worker."""
    for workers in (0, 1):
        gate = threading.Semaphore(5 if workers else 1000)
        model = Speaker(words=WORDS * 4, gate=gate)
        rows = ReplyRows(model, 1, workers=workers)
        outs = talk(rows, framed(recordings["three-lucas"], quiet(0.9)))
        if workers:
            eventually(lambda model=model: model.computed == 5)
        outs += talk(rows, framed(quiet(0.32)))
        before = len(said_frames(outs))
        assert before
        rows.cancel(0)
        gate.release()
        eventually(lambda model=model: model.left == 1)
        assert not said_frames(talk(rows, framed(quiet(1))))
        computed = -(-before * FRAME // 2500)
        assert model.computed == (6 if workers else computed)
        assert [turn.cut for turn in rows.history(0)] == [None, "frames"]
        assert np.array_equal(rows.history(0)[1].samples, model.sounds()[: before * FRAME])
        rows.close()


def eventually(true, patience=60.0):
    end = time.monotonic() + patience
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    assert true()


def test_who_goes_on_before_the_answer_begins_was_not_through(recordings):
    model, hand = Speaker(), ByHand()
    rows = ReplyRows(model, 1, executor=hand)
    signal = framed(quiet(0.5), recordings["three-lucas"], quiet(0.8), recordings["seven-george"], quiet(0.8))
    outs = talk(rows, signal)  # nothing is computed meanwhile
    assert not said_frames(outs) and len(hand.work) == 2
    outs = talk(rows, framed(quiet(2)), hand=hand)
    assert len(model.asked) == 1 and len(model.asked[0]) == 1  # the first was cancelled before it began
    user, answer = rows.history(0)
    length = (len(recordings["three-lucas"]) + len(recordings["seven-george"])) / RATE + 0.8
    assert length - 0.3 <= len(user.samples) / RATE <= length + 0.5
    assert answer.text == " ".join(WORDS)
    heard, start = np.concatenate(signal), round(user.began * RATE)
    assert np.array_equal(user.samples, heard[start : start + len(user.samples)])


def test_without_interruption_the_model_speaks_on_and_answers_afterwards(recordings):
    model, hand = Speaker(words=WORDS * 2), ByHand()
    rows = ReplyRows(model, 1, TurnPolicy(interrupt=False), executor=hand)
    outs = talk(rows, framed(recordings["three-lucas"], quiet(1), recordings["seven-george"], quiet(5)), hand=hand)
    said = audio_of(outs)[said_frames(outs)[0] * FRAME :]
    both = np.pad(model.sounds(), (0, -len(model.sounds()) % FRAME))
    assert np.array_equal(said[: 2 * len(both)], np.concatenate([both, both]))  # the second right behind the first
    assert [turn.role for turn in rows.history(0)] == ["user", "model", "user", "model"]
    assert not [turn for turn in rows.history(0) if turn.cut]


def test_a_short_sound_does_not_stop_the_model_where_that_is_asked_for(recordings):
    for after, cut in ((1.0, None), (0.0, "frames")):
        model, hand = Speaker(words=WORDS * 2), ByHand()
        rows = ReplyRows(model, 1, TurnPolicy(interrupt_after=after), executor=hand)
        talk(rows, framed(recordings["three-lucas"], quiet(1), recordings["three-lucas"], quiet(4)), hand=hand)
        assert rows.history(0)[1].cut == cut
        assert len(model.asked) == (1 if cut is None else 2)


def test_a_semantic_rule_ends_turns_and_patience_ends_its_doubts(recordings):
    def run(ends, patience=1.5, hand=None, tail=3.0):
        model = Speaker()
        rows = ReplyRows(model, 1, TurnPolicy(silence=0.2, ends=ends, patience=patience), executor=hand or ByHand())
        signal = framed(recordings["three-lucas"], quiet(tail))
        outs = []
        for frame in signal:
            outs += talk(rows, frame[None])
            if hand is not None:
                hand.run()
            else:  # replies are computed, the rule never answers
                rows._submit.__self__.work[:] = [w for w in rows._submit.__self__.work if not answer(w)]
        said = said_frames(outs)
        return (said[0] * 0.08 if said else None), rows, model

    def answer(work):
        if isinstance(work.__self__, ReplyStream):
            work()
            return True
        return False

    asked = []

    def unsure(turn):
        asked.append(turn)
        return 0.2

    voice = 0.48  # ends there, by voice activity
    soon, *_ = run(lambda turn: True, hand=ByHand())
    late, *_ = run(unsure, hand=ByHand())
    never, *_ = run(unsure, hand=None)
    assert voice + 0.2 <= soon <= voice + 0.6 and voice + 1.5 <= late <= voice + 1.9 and never == late
    assert len(asked) == 1 and asked[0].duration == pytest.approx(voice + 0.3, abs=0.15)
    failed, rows, _ = run(lambda turn: 1 / 0, hand=ByHand())
    assert failed == soon and rows.errors(0) == ["ends: ZeroDivisionError: division by zero"]

    # who pauses and goes on has one turn
    hand, answers = ByHand(), iter([0.1, 0.9])
    rows = ReplyRows(Speaker(), 1, TurnPolicy(silence=0.2, ends=lambda turn: next(answers)), executor=hand)
    talk(rows, framed(recordings["three-lucas"], quiet(0.6), recordings["seven-george"], quiet(3)), hand=hand)
    assert [turn.role for turn in rows.history(0)] == ["user", "model"]
    assert len(rows.history(0)[0].samples) / RATE > 1.5


def test_a_turn_without_end_ends(recordings):
    model, hand = Speaker(words=WORDS[:2]), ByHand()
    rows = ReplyRows(model, 1, TurnPolicy(longest=1.0), executor=hand)
    talk(rows, framed(recordings["sentence-librispeech"], quiet(3)), hand=hand)
    lengths = [len(turn.samples) / RATE for turn in rows.history(0) if turn.role == "user"]
    assert len(lengths) >= 3 and max(lengths) <= 1.0 + 0.08 + 1e-6
    assert [turn.cut for turn in rows.history(0) if turn.role == "model"].count("frames") == 0
    assert len(model.asked[0]) == 1


def test_a_noise_is_no_turn(recordings):
    model, hand = Speaker(), ByHand()
    rows = ReplyRows(model, 1, TurnPolicy(shortest=2.0), executor=hand)
    talk(rows, framed(recordings["three-lucas"], quiet(2)), hand=hand)
    assert not model.asked and rows.history(0) == []


def test_a_reply_that_fails_is_an_empty_turn_and_the_row_goes_on(recordings, caplog):
    class Failing(Speaker):
        def reply(self, turns, stream=False):
            self.asked.append(turns)
            if len(self.asked) == 1:
                raise ValueError("secret words")
            if len(self.asked) == 2:
                return half(self)
            return Speaker().reply(turns, stream)

    def half(self):
        yield Piece(0.0, "half", sound(1, 4000))
        yield Piece(0.1, "", np.full(100, np.nan, np.float32))

    model, hand = Failing(), ByHand()
    rows = ReplyRows(model, 1, executor=hand)
    with caplog.at_level(logging.INFO):
        outs = talk(rows, framed(*[recordings["three-lucas"], quiet(2)] * 3), hand=hand)
    turns = rows.history(0)
    assert [turn.role for turn in turns] == ["user", "model"] * 3
    assert (len(turns[1].samples), turns[1].error) == (0, "ValueError: secret words")
    assert np.array_equal(turns[3].samples[:4000], sound(1, 4000)) and "NaN" in turns[3].error
    assert turns[5].error is None and turns[5].text == " ".join(WORDS)
    assert len(rows.errors(0)) == 2 and "ValueError" in caplog.text and "secret" not in caplog.text
    assert [len(turns) for turns in model.asked] == [1, 2, 4]  # what was not said is not told
    assert "one" in " ".join(out.text for out in outs)


def test_a_reset_row_gets_nothing_of_before(recordings):
    model, hand = Speaker(), ByHand()
    rows = ReplyRows(model, 1, executor=hand)
    talk(rows, framed(recordings["three-lucas"], quiet(1)))
    assert len(hand.work) == 1
    rows.reset(0, seed=3)
    hand.run()
    assert not said_frames(talk(rows, framed(quiet(2)), hand=hand)) and rows.history(0) == []
    # one that is under way in a thread, too
    gate = threading.Semaphore(3)
    model = Speaker(gate=gate)
    rows = ReplyRows(model, 1, workers=1)
    talk(rows, framed(recordings["three-lucas"], quiet(1)))
    eventually(lambda: model.computed == 3)
    rows.reset(0)
    gate.release(10)
    eventually(lambda: model.left == 1)
    assert not said_frames(talk(rows, framed(quiet(1)))) and model.computed == 4
    rows.close()


def test_a_step_waits_for_nobody_and_workers_are_bounded(recordings):
    """Four rows, two workers, models that do not move: every step goes through; two are asked, then the others."""
    gate = threading.Semaphore(0)
    model = Speaker(gate=gate, words=WORDS[:2])
    rows = ReplyRows(model, 4, workers=2)
    signal = framed(recordings["three-lucas"], quiet(1.5))
    for frame in signal:
        assert all(not out.audio.any() for out in rows.step(np.tile(frame, (4, 1))))
    eventually(lambda: len(model.asked) == 2)
    time.sleep(0.05)
    assert len(model.asked) == 2 and all(rows.replying(row) for row in range(4))
    gate.release(8)
    eventually(lambda: len(model.asked) == 4 and model.computed == 8)
    outs = [rows.step(np.zeros((4, FRAME), np.float32)) for _ in range(6)]
    for row in range(4):
        said = audio_of([out[row] for out in outs])
        start = np.flatnonzero(said)[0]
        assert np.array_equal(said[start : start + 5000], model.sounds(row))
    rows.close()


def test_rows_say_what_they_say_alone_and_held_rows_are_held(recordings):
    parts = {
        0: framed(quiet(0.3), recordings["three-lucas"], quiet(2.5)),
        1: framed(recordings["seven-george"], quiet(1.2), recordings["three-lucas"], quiet(3)),
        2: framed(quiet(1.1), recordings["three-four-george-joined"], quiet(3)),
    }
    model = Speaker(words=WORDS * 2)
    alone = {}
    for row, signal in parts.items():
        single = ReplyRows(model, 3, workers=0)
        single.reset(row, seed=row + 5)
        alone[row] = talk(single, signal, row)
        assert said_frames(alone[row])
    together, at = ReplyRows(model, 3, workers=0), {0: 0, 1: 0, 2: 0}
    said = {row: [] for row in parts}
    for row in parts:
        together.reset(row, seed=row + 5)
    chance = np.random.default_rng(0)
    while any(at[row] < len(parts[row]) for row in parts):
        active = [at[row] < len(parts[row]) and chance.random() < 0.7 for row in parts]
        frames = sound(9, 3 * FRAME).reshape(3, FRAME)  # what a held row does not hear
        for row, on in enumerate(active):
            if on:
                frames[row] = parts[row][at[row]]
                at[row] += 1
        for row, out in enumerate(together.step(frames, active)):
            assert (out is None) == (not active[row])
            said[row] += [out] if out is not None else []
    for row in parts:
        assert np.array_equal(audio_of(said[row]), audio_of(alone[row]))
        assert [out.text for out in said[row]] == [out.text for out in alone[row]]


def test_the_history_is_bounded(recordings):
    model, hand = Speaker(words=WORDS[:3]), ByHand()
    rows = ReplyRows(model, 1, TurnPolicy(keep=3), executor=hand)
    talk(rows, framed(*[recordings["three-lucas"], quiet(1.3)] * 4), hand=hand)
    assert [turn.role for turn in rows.history(0)] == ["model", "user", "model"]
    assert max(len(turns) for turns in model.asked) == 4  # three of before, and the one that is answered
    rows = ReplyRows(model, 1, TurnPolicy(keep_seconds=1.5), executor=hand)
    talk(rows, framed(*[recordings["three-lucas"], quiet(1.3)] * 4), hand=hand)
    assert sum(len(turn.samples) for turn in rows.history(0)) <= 1.5 * RATE
    rows = ReplyRows(model, 1, TurnPolicy(remembers=("user",)), executor=hand)
    talk(rows, framed(*[recordings["three-lucas"], quiet(1.3)] * 2), hand=hand)
    assert [role for role, _ in model.asked[-1]] == ["user", "user"] and len(rows.history(0)) == 4


def test_push_to_talk(recordings):
    model, hand = Speaker(words=WORDS * 3), ByHand()
    rows = ReplyRows(model, 1, TurnPolicy(automatic=False), executor=hand)
    signal = framed(recordings["three-lucas"], quiet(1), recordings["seven-george"], quiet(1))
    talk(rows, signal, hand=hand)
    assert not model.asked
    rows.end_turn(0)
    outs = talk(rows, framed(recordings["three-lucas"], quiet(0.5)), hand=hand)  # does not stop the model
    assert said_frames(outs)[0] <= 1 and len(said_frames(outs)) == len(outs) - said_frames(outs)[0]
    assert len(model.asked[0][0][1]) / RATE == pytest.approx(len(signal) * 0.08, abs=0.35)
    rows.end_turn(0)
    assert rows.history(0)[1].cut == "frames" and len(model.asked) == 1
    talk(rows, framed(quiet(0.3)), hand=hand)
    assert len(model.asked) == 2 and [role for role, _ in model.asked[1]] == ["user", "model", "user"]
    rows.cancel(0)
    rows.end_turn(0)  # nothing was said since
    rows.clear(0)
    talk(rows, framed(recordings["three-lucas"]), hand=hand)
    rows.clear(0)
    rows.end_turn(0)
    assert len(model.asked) == 2 and not hand.work
    talk(rows, framed(0.02 * sound(1, FRAME)), hand=hand)  # too quiet for voice activity
    rows.end_turn(0)
    hand.run()
    assert len(model.asked) == 3


def test_a_client_that_knows_what_was_heard(recordings):
    model, hand = Speaker(), ByHand()
    rows = ReplyRows(model, 1, executor=hand)
    rows.truncate(0, 1.0)  # before anything was said
    talk(rows, framed(recordings["three-lucas"], quiet(1.2)), hand=hand)
    assert rows.replying(0)
    rows.truncate(0, 0.25)
    answer = rows.history(0)[1]
    assert (answer.cut, answer.text, len(answer.samples)) == ("client", "one two three", 6000) and not rows.replying(0)
    rows.truncate(0, 99.0)  # more than there is
    assert len(rows.history(0)[1].samples) == 6000
    rows.truncate(0, -1.0)
    assert rows.history(0)[1].text == "" and len(rows.history(0)[1].samples) == 0


def test_turns_of_before_are_told(recordings):
    model, hand = Speaker(), ByHand()
    rows = ReplyRows(model, 2, executor=hand)
    before = [("user", vivavoce.Audio(sound(1, 8000), 8000)), ("model", TurnAudio(sound(2, RATE), RATE, "yes"))]
    rows.reset(1, 4, {"turns": before})
    assert rows.prompted == []
    talk(rows, framed(recordings["three-lucas"], quiet(2)), row=1, hand=hand)
    turns = model.asked[0]
    assert [role for role, _ in turns] == ["user", "model", "user"] and turns[1][1].text == "yes"
    assert turns[0][1].samples.shape == (1, RATE) and rows.history(1)[-1].text == " ".join(WORDS)
    assert np.array_equal(rows.history(1)[-1].samples[:2500], sound(400, 2500))  # the seed goes to the model
    for prompt, message in (
        ({"voice": 1}, "no such stream"), ([1], "a mapping"), ({"turns": [("system", "x")]}, "a turn is"),
        ({"user": "words"}, r"vivavoce\.read"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=message):
            rows.reset(1, 0, prompt)
    assert len(rows.history(1)) == 4  # as before


def test_policies_change_in_the_middle_and_nonsense_is_refused(recordings):
    rows = ReplyRows(Speaker(), 2, workers=0)
    rows.set_policy(1, replace(rows.policy_of(1), silence=1.5))
    outs = {row: [] for row in (0, 1)}
    for frame in framed(recordings["three-lucas"], quiet(3)):
        for row, out in enumerate(rows.step(np.tile(frame, (2, 1)))):
            outs[row].append(out)
    assert said_frames(outs[1])[0] - said_frames(outs[0])[0] == pytest.approx(1.0 / 0.08, abs=1)
    rows.reset(1)
    assert rows.policy_of(1) == TurnPolicy()
    for wrong in ({"silence": -1}, {"threshold": 1.0}, {"longest": 0}, {"patience": float("nan")}, {"keep": 1.5}):
        with pytest.raises(RequestError, match="turns"):
            TurnPolicy(**wrong)
    with pytest.raises(AudioError, match=r"expected \[2, 1920\]"):
        rows.step(np.zeros((2, 5)))
    with pytest.raises(AudioError, match="row 1"):
        rows.step(np.array([[0.0] * FRAME, [np.nan] * FRAME]))
    rows.step(np.array([[0.0] * FRAME, [np.nan] * FRAME]), [True, False])
    with pytest.raises(RequestError, match="rows 0 to 1"):
        rows.cancel(2)
    with pytest.raises(RequestError, match="active"):
        rows.step(np.zeros((2, FRAME)), [True])
    with pytest.raises(RequestError, match="no verb 'reply'"):
        ReplyRows(object(), 1)


class OnlyReply:
    """A model of which only the verb `reply` is there."""

    def __init__(self, model):
        self.verbs = {"reply": "native"}
        self.name, self.sample_rate, self.reply = model.name, model.sample_rate, model.reply


def test_duplex_is_derived_from_reply(recordings):
    tone = vivavoce.load("tone")
    assert duplex_from_reply(tone) is tone
    derived = duplex_from_reply(OnlyReply(tone))
    assert derived.verbs == {"reply": "native", "duplex": "derived", "duplex_rows": "derived"}
    assert derived.name == "tone" and derived.duplex_rows(3).rows == 3
    signal = framed(recordings["three-four-george-joined"], quiet(2.5))
    once, again = (
        [session.step(frame) for frame in signal] for session in (derived.duplex(seed=4), derived.duplex(seed=4))
    )
    assert np.array_equal(audio_of(once), audio_of(again))
    assert [out.text for out in once if out.text] == ["tone", "number 1", "ends"]
    # tone answers 320 ms after the last sound, and the pause in which the turn was found is over by then
    said, voice = said_frames(once), len(recordings["three-four-george-joined"]) / RATE
    assert voice + 0.3 <= said[0] * 0.08 <= voice + 0.9 and len(said) in (12, 13)
    with pytest.raises(RequestError, match="neither duplex nor reply"):
        duplex_from_reply(object())
    with pytest.raises(AttributeError):
        _ = derived.loglik
