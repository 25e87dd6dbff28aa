"""Nobody hears anybody else: each conversation carries a tone of its own, all that is said and recorded is searched."""

import asyncio

import numpy as np
import pytest

from serving.canaries import (
    RATE,
    TONES,
    by_chat,
    by_live,
    by_moshi,
    by_moshi_resumed,
    by_realtime,
    carries,
    foreign,
    tone,
)
from serving.moshi_clients.raw import PATIENT, all_free, run
from vivavoce.dialogue import Piece
from vivavoce.serving.access import Access, Limits
from vivavoce.serving.conversation import Conversation
from vivavoce.serving.recorded import find_recordings, read_recording
from vivavoce.serving.recording import Recorder
from vivavoce.systems.signal_models import FRAME, SignalRows

VISITS = [  # dialect, how it leaves
    (by_moshi, {}), (by_live, {}), (by_realtime, {}), (by_chat, {}), (by_moshi, {"leaves": "killed"}),
    (by_live, {"leaves": "killed"}), (by_realtime, {"leaves": "cancelled"}), (by_realtime, {"leaves": "killed"}),
    (by_moshi_resumed, {}), (by_realtime, {"kind": "audio/pcmu"}),
]  # fmt: skip
WHOLE = [0, 1, 2, 8, 9]  # of them, those that hear all that they have said (a reply of echo in REST is its last frame)


def talk(serve, tmp_path, model="echo", **settings):
    access = Access(limits=Limits(conversations=50))
    port, server = serve(model, speed=8.0, access=access, **{**PATIENT, "grace": 8.0, "crowded": 6.0, **settings})
    server.recorder = Recorder(tmp_path).attach(server.core)
    return port, server


def searched(found, tmp_path, server):
    """[(Hz that is where it should not be, level, second)] in all that was heard, and in all recordings."""
    server.recorder.close()
    own = {name: hertz for name, _, hertz in found if name is not None}
    wrong = [one for _, sound, hertz in found for one in foreign(sound, hertz)]
    recordings = [read_recording(log) for log in find_recordings(tmp_path)]
    assert len(recordings) == len(own)
    for recording in recordings:
        hertz = own[recording.opened["id"]]
        for channel in (0, 1):
            wrong += foreign(recording.sound[:, channel], hertz)
    return wrong


def test_a_foreign_tone_is_found_and_nothing_else():
    clean = np.concatenate([np.zeros(RATE, np.float32), tone(700.0), np.zeros(RATE // 2, np.float32)])
    assert carries(clean, 700.0) and not carries(clean, 800.0) and not foreign(clean, 700.0)
    for at in (0, RATE // 3, RATE + 5000):
        leaked = clean.copy()
        leaked[at : at + FRAME] += tone(1500.0)[9600 : 9600 + FRAME]
        assert {hertz for hertz, _, _ in foreign(leaked, 700.0)} == {1500.0}
        leaked = clean.copy()
        leaked[at : at + FRAME] = tone(2300.0)[9600 : 9600 + FRAME]
        assert 2300.0 in {hertz for hertz, _, _ in foreign(leaked, 700.0)}


def test_nobody_hears_anybody_else_in_any_dialect(serve, tmp_path):
    port, server = talk(serve, tmp_path, rows=3)  # fewer than there are visitors: each row is somebody's at once again

    async def go():
        async def visit(at):
            how, options = VISITS[at % len(VISITS)]
            name, sound, _ = await how(port, TONES[at], **options)
            return name, sound, TONES[at]

        found = await asyncio.gather(*(visit(at) for at in range(2 * len(VISITS))))
        await all_free(server, 3)
        return found

    found = run(go())
    for at, (_, sound, hertz) in enumerate(found):
        assert len(sound) and (at % len(VISITS) not in WHOLE or carries(sound, hertz)), (at, hertz)
    assert searched(found, tmp_path, server) == []


class Repeats:
    """Half-duplex: says what it was told in the last turn."""

    name, sample_rate, verbs = "repeats", RATE, {"reply": "native"}

    def reply(self, turns, stream=False, **limits):
        samples = turns[-1][1].samples[0]
        for at in range(0, len(samples), FRAME):
            block = samples[at : at + FRAME]
            yield Piece(at / RATE, "again" if at == 0 else "", np.pad(block, (0, FRAME - len(block))))


def test_nobody_hears_anybody_else_of_a_model_that_takes_turns(serve, tmp_path):
    port, server = talk(serve, tmp_path, Repeats(), rows=2, gap=0.5)

    async def go():
        async def visit(at):
            leaves = ("close", "cancelled", "killed")[at % 3]
            name, sound, _ = await by_realtime(port, TONES[3 * at], leaves, push=True)
            return name, sound, TONES[3 * at]

        found = await asyncio.gather(*(visit(at) for at in range(6)))
        await all_free(server, 2)
        return found

    found = run(go())
    assert all(carries(sound, hertz) for _, sound, hertz in found[::3])
    assert searched(found, tmp_path, server) == []


def not_reset(monkeypatch):
    """A row that somebody else had keeps what it remembers."""
    monkeypatch.setattr(SignalRows, "reset", lambda self, row, seed=0, prompt=None: None)


def exchanged(monkeypatch):
    """What is computed for one row is once given to the next one."""
    step = SignalRows.step

    def wrong(self, frames, active=None):
        outs = step(self, frames, active)
        self.steps = getattr(self, "steps", 0) + 1
        loud = [at for at, out in enumerate(outs) if out is not None and np.abs(out.audio).max() > 0.1]
        if self.steps % 5 == 0 and len(loud) > 1:
            outs[loud[0]], outs[loud[1]] = outs[loud[1]], outs[loud[0]]
        return outs

    monkeypatch.setattr(SignalRows, "step", wrong)


def late(monkeypatch):
    """Frames of a conversation that is over are handed to who has its row now."""
    rows = {}
    deliver = Conversation.deliver

    def wrong(self, frames):
        before, kept = rows.get(self.row, (self, frames))
        rows[self.row] = self, frames
        deliver(self, frames if before is self else [*kept, *frames])

    monkeypatch.setattr(Conversation, "deliver", wrong)


@pytest.mark.parametrize("plant", [not_reset, exchanged, late])
def test_a_leak_that_was_planted_is_found(serve, tmp_path, monkeypatch, plant):
    plant(monkeypatch)
    port, server = talk(serve, tmp_path, rows=2)

    async def go():
        async def visit(at):
            how = by_moshi if at < 2 else by_live  # the first two are killed in the middle of what they say
            name, sound, _ = await how(port, TONES[at], "killed" if at < 2 else "close")
            return name, sound, TONES[at]

        found = await asyncio.gather(visit(0), visit(1))
        return [*found, *await asyncio.gather(visit(2), visit(3))]

    assert searched(run(go()), tmp_path, server)
