"""A core that is stepped by hand and recorded, for tests of recordings and replays."""

import asyncio
from pathlib import Path

import numpy as np

import vivavoce
from vivavoce.serving.admission import Queue
from vivavoce.serving.clock import HandClock
from vivavoce.serving.conversation import Client
from vivavoce.serving.core import Core
from vivavoce.serving.lockstep import Lockstep
from vivavoce.serving.recorded import find_recordings, read_recording
from vivavoce.serving.recording import Recorder
from vivavoce.serving.settings import ServerSettings

ME = Client("test")


class Bench:
    """A core without its thread, recorded into `folder`: `tick()` is one frame of the clock."""

    def __init__(self, model, folder, rows=2, settings=(), **recorder):
        self.clock = HandClock()
        model = vivavoce.load(model) if isinstance(model, str) else model
        self.core = Core(model, model.name, ServerSettings(rows=rows, outbox=1e9, **dict(settings)), self.clock)
        made = model.duplex_rows(rows)
        self.core.lockstep = self.lockstep = Lockstep(made, self.clock, self.core.metrics, self.core.settings)
        self.core.rows, self.core.frame_size, self.core.sample_rate = rows, made.frame_size, made.sample_rate
        self.core.queue = Queue(self.core.settings.queue, rows)
        self.size, self.length = made.frame_size, made.frame_size / made.sample_rate
        self.recorder = Recorder(folder, **recorder).attach(self.core)

    def tick(self, frames=1):
        for _ in range(frames):
            self.lockstep.tick(self.clock.now())
            self.clock.advance(self.length)

    def end(self, *conversations):
        for conversation in conversations:
            conversation.close()
        self.tick()
        self.recorder.close(None)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def watched(conversation):
    """Frames as an observer beside the recorder sees them."""
    seen = []
    conversation.observers.append(seen.append)
    return seen


def spoken():
    """Somebody speaks, pauses for 2 s, and speaks again: samples at 24 kHz."""
    folder = Path(__file__).parents[2] / "examples/recordings"
    parts = [vivavoce.read(folder / f"{name}.wav") for name in ("three-four-george-joined", "seven-george")]
    heard = [np.concatenate([part.resample(24_000).samples[0], np.zeros(48_000, np.float32)]) for part in parts]
    return np.concatenate(heard)


def record(folder, speech, model="tone", seed=2, **recorder):
    async def go():
        bench = Bench(model, folder, **recorder)
        conversation = await bench.core.open(ME, seed)
        for at in range(0, len(speech) // bench.size):
            conversation.hear(speech[at * bench.size : (at + 1) * bench.size])
            bench.tick()
        bench.end(conversation)

    run(go())
    return read_recording(find_recordings(folder)[-1])
