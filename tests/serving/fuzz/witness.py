"""A well-behaved conversation beside the hostile ones: it hears exactly what it has said, without a gap."""

import asyncio
import base64
import json
import time

import numpy as np
from websockets.asyncio.client import connect

from vivavoce.serving.sound_formats import bytes_of, samples_of

FRAME, RATE = 1920, 24_000
AHEAD = 200  # frames that may be unanswered


class Witness:
    """Talks to `echo` in OpenAI Live, in real time of a clock of `speed`, from `begin` to `end`."""

    def __init__(self, port: int, speed: float):
        self.port, self.speed = port, speed
        self.said, self.heard = list[np.ndarray](), list[np.ndarray]()
        self.times: list[float] = []

    async def begin(self) -> None:
        """Until the conversation has begun."""
        self._socket = await connect(f"ws://127.0.0.1:{self.port}/v1/live/sessions", compression=None, max_size=None)
        await self._socket.send(json.dumps({"type": "session.start", "session": {"model": "echo"}}))
        while json.loads(await self._socket.recv())["type"] != "session.started":
            pass
        self._tasks = [asyncio.create_task(self._say()), asyncio.create_task(self._hear())]

    async def _say(self) -> None:
        rng, began = np.random.default_rng(5), time.monotonic()
        while True:
            block = samples_of(bytes_of(rng.uniform(-0.5, 0.5, FRAME).astype(np.float32)))
            self.said.append(block)
            audio = base64.b64encode(bytes_of(block)).decode()
            await self._socket.send(json.dumps({"type": "session.input_audio.append", "audio": audio}))
            while len(self.said) - len(self.heard) > AHEAD:  # of a machine that is too slow for this clock
                await asyncio.sleep(0.02)
            await asyncio.sleep(max(0.0, began + len(self.said) * FRAME / RATE / self.speed - time.monotonic()))

    async def _hear(self) -> None:
        async for message in self._socket:
            event = json.loads(message)
            if event["type"] == "session.output_audio.delta":
                self.heard.append(samples_of(base64.b64decode(event["delta"])))
                self.times.append(time.monotonic())
            elif event["type"] not in ("session.output_transcript.delta", "session.input_transcript.delta",
                                       "session.usage.updated"):  # fmt: skip
                raise AssertionError(f"the witness was told {event}")

    def ok(self) -> bool:
        """Whether it still goes on."""
        return not any(task.done() for task in self._tasks)

    async def end(self) -> tuple[float, float]:
        """Say goodbye; returns (seconds of sound heard, longest wait for the next piece of it). Raises `AssertionError`
        where it was not what had been said."""
        for task in self._tasks:
            if task.done():
                task.result()
        await asyncio.sleep(1.0 / self.speed)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._socket.close()
        heard, said = np.concatenate(self.heard), np.concatenate([np.zeros(FRAME, np.float32), *self.said])
        assert len(heard) > FRAME, "the witness has heard nothing"
        wrong = np.flatnonzero(heard != said[: len(heard)])
        assert not len(wrong), f"sample {wrong[0]} of {len(heard)} heard: {kind_of(heard, said, wrong[0])}"
        assert len(said) - len(heard) < 5 * RATE * self.speed, "the witness was not answered in time"
        return len(heard) / RATE, float(np.max(np.diff(self.times), initial=0.0))


def kind_of(heard: np.ndarray, said: np.ndarray, at: int) -> str:
    """What is there instead of what was said."""
    block = heard[at : at + 64]
    if not block.any():
        return f"silence, {np.flatnonzero(np.append(heard[at:], 1.0))[0]} samples of it"
    found = np.flatnonzero(np.lib.stride_tricks.sliding_window_view(said, len(block))[:, 0] == block[0])
    place = next((i for i in found if np.array_equal(said[i : i + len(block)], block)), None)
    return "somebody else's" if place is None else f"its own of {place - at} samples later"
