"""The user's words from a recogniser, where the model has no stream of them: in every dialect, and when it fails."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

import vivavoce
from serving.live_clients.raw import Client as LiveClient
from serving.realtime_clients.raw import connected, recording, run, silence
from serving.waiting import nobody_left
from vivavoce.cli import main
from vivavoce.dialogue.turn_detection import Turn
from vivavoce.serving.recognition import LONGEST, MARGIN, PAUSE, Recogniser
from warm_process import finish, start

RATE, FRAME = 1000, 100
TRANSCRIPT = "conversation.item.input_audio_transcription"


def wordless(name="tone"):
    """A model that says what it says, but not what the user says."""
    model = vivavoce.load(name)
    model.system.interaction = SimpleNamespace(transcribes=None, writes="text", speaks="voice", hears="user")
    return model


class Judge:
    """A recogniser that says how long and how loud each utterance was; `wait` holds it up."""

    name = "judge"

    def __init__(self, wait=None, fails=False):
        self.heard, self.wait, self.fails = [], wait, fails

    def __call__(self, audio):
        if self.wait is not None:
            self.wait.wait(120)
        if self.fails:
            raise RuntimeError("out of order")
        self.heard.append(audio)
        return f"{audio.duration:.1f} seconds"


def listener(transcriber):
    """A listener with its recogniser, and what these counted."""
    told = SimpleNamespace(times=[], faults=[])
    recogniser = Recogniser(transcriber, told.times.append, told.faults.append)
    return recogniser.listen(RATE, FRAME), recogniser, told


def follow(mine, turns, frames, level=1.0):
    """Steps of `mine` with `turns`: frame -> Turn; all that it says, with the frame."""
    said = []
    for index in range(frames):
        words = mine.step(np.full(FRAME, level, np.float32), turns.get(index, ()))
        said += [(index, words)] if words else []
    return said


def settled(mine):
    deadline = time.monotonic() + 60
    while mine._answered < mine._asked and time.monotonic() < deadline:
        time.sleep(0.005)


def test_an_utterance_with_its_margins_is_recognised_once():
    judge = Judge()
    mine, recogniser, told = listener(judge)
    turns = {25: [Turn("user_started", 2.0)], 41: [Turn("user_stopped", 4.0)]}
    assert not mine.busy and not follow(mine, turns, 42) and mine.busy
    said = follow(mine, {}, 10)
    settled(mine)
    said += follow(mine, {}, 2)
    assert [words for _, words in said] == ["2.6 seconds"] and not mine.busy
    assert len(judge.heard[0]) == round((2.0 + 2 * MARGIN) * RATE)
    assert len(told.times) == 1 and not told.faults
    recogniser.close()


def test_a_pause_is_no_end_and_who_never_pauses_is_cut():
    judge = Judge()
    mine, recogniser, _ = listener(judge)
    short = round((PAUSE - 0.2) / 0.1)
    turns = {5: [Turn("user_started", 0.4)], 20: [Turn("user_stopped", 2.0)], 20 + short: [Turn("user_started", 2.4)]}
    frames = round((LONGEST + 3) / 0.1)
    follow(mine, {**turns, frames - 1: [Turn("user_stopped", frames / 10)]}, frames)
    follow(mine, {}, 10)
    settled(mine)
    first, second = (audio.duration for audio in judge.heard)
    assert first == pytest.approx(LONGEST + MARGIN, abs=0.2)
    assert first + second == pytest.approx(frames / 10 - 0.4 + 2 * MARGIN, abs=0.3)  # nothing lost, nothing twice
    recogniser.close()


def test_nothing_waits_for_a_slow_recogniser_and_a_fault_is_counted():
    gate = threading.Event()
    mine, recogniser, told = listener(Judge(gate))
    turns = {1: [Turn("user_started", 0.1)], 4: [Turn("user_stopped", 0.4)]}
    assert not follow(mine, turns, 40) and mine.busy  # though it waits still
    gate.set()
    settled(mine)
    assert follow(mine, {}, 1) and not mine.busy
    recogniser.close()
    mine, recogniser, told = listener(Judge(fails=True))
    follow(mine, turns, 20)
    settled(mine)
    assert not follow(mine, {}, 1) and not mine.busy and told.faults == ["RuntimeError"]
    recogniser.close()


def test_realtime_tells_the_recognisers_words_however_late_they_come(serve):
    gate = threading.Event()
    judge = Judge(gate)
    port, server = serve(wordless(), dialects=("realtime",), speed=6, transcriber=judge)

    async def go():
        async with connected(port) as client:
            assert client.events[0]["session"]["audio"]["input"]["transcription"] is not None
            await client.say(np.concatenate([silence(0.8), recording("sentence-librispeech", 2.3)]))
            await client.until("rate_limits.updated")
            assert not client.of(f"{TRANSCRIPT}.completed")  # it is still to come
            gate.set()
            await client.have(f"{TRANSCRIPT}.completed")
            done = client.of(f"{TRANSCRIPT}.completed")[0]
            assert done["item_id"] == client.of("input_audio_buffer.committed")[0]["item_id"]
            assert done["transcript"] == "".join(e["delta"] for e in client.of(f"{TRANSCRIPT}.delta"))
            assert done["transcript"] == f"{judge.heard[0].duration:.1f} seconds"
            assert 1.5 <= judge.heard[0].duration <= 2.9

    run(go())
    nobody_left(server)
    assert server.core.metrics.recognised._sum.get() > 0


def test_live_tells_them_too_and_says_nothing_is_missing(serve):
    port, _ = serve(wordless(), dialects=("live",), speed=6, gap=60.0, lead=60.0, transcriber=Judge())

    async def go():
        async with LiveClient(port, speed=6) as client:
            await client.start("tone")
            await client.say(np.concatenate([recording("sentence-librispeech", 2.3), silence(1.5)]))
            await client.wait("session.input_transcript.delta")
            return client

    client = run(go())
    assert client.of("session.input_transcript.delta")[0]["delta"].strip().endswith("seconds")
    assert "no_input_transcript" not in [event.get("code") for event in client.of("info")]


def test_without_one_the_dialects_say_so_and_with_own_words_it_has_nothing_to_do(serve):
    port, _ = serve(wordless(), dialects=("realtime",))
    own, server = serve("tone", dialects=("realtime",), transcriber=Judge())

    async def go():
        async with connected(port) as client:
            assert client.events[0]["session"]["audio"]["input"]["transcription"] is None
        async with connected(own) as client:
            await client.say(silence(0.1))

    run(go())
    assert server.core.recogniser is None


def talk():
    """The command, which would serve for ever."""
    main(["talk", "mini", "--port", "0", "--transcriber", "pocketsphinx"])


def test_the_command_refuses_one_that_has_nothing_to_do(tmp_path):
    assert finish(start(__file__, "talk", errors=tmp_path / "errors"), 120) == 2
    assert "mini tells what the user says itself" in (tmp_path / "errors").read_text()
