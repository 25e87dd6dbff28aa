"""LiveKit's PersonaPlex plugin talks to a server; run by an interpreter that has it: `python livekit_plugin.py URL`.

It asks twice, the second time once the first answer is over; each line that is printed is a JSON object: errors that
the plugin reports, then the answers as it hands them to an agent.
"""

import asyncio
import json
import sys

import aiohttp
import numpy as np
from livekit import rtc
from livekit.plugins.nvidia import realtime

RATE, PIECE = 16_000, 640  # 40 ms at a rate of its own: the plugin resamples


def tell(**what):
    """One line."""
    print(json.dumps(what), flush=True)


async def speak(session, questions, speed):
    """A microphone: what is in `questions`, else silence, for ever."""
    question = np.tile((8000 * np.sin(np.arange(20) * 2 * np.pi / 20)).astype(np.int16), 320)  # 400 ms of 800 Hz
    waiting = np.zeros(0, np.int16)
    while True:
        if not questions.empty():
            questions.get_nowait()
            waiting = question
        piece, waiting = waiting[:PIECE], waiting[PIECE:]
        piece = np.pad(piece, (0, PIECE - len(piece)))
        session.push_audio(rtc.AudioFrame(piece.tobytes(), RATE, 1, PIECE))
        await asyncio.sleep(PIECE / RATE / speed)


async def answer(event):
    """A generation, whole: its words, and the pitch and length of what is heard of it."""
    async for message in event.message_stream:

        async def words(message=message):
            return "".join([piece async for piece in message.text_stream])

        async def sound(message=message):
            return [np.frombuffer(frame.data, np.int16) async for frame in message.audio_stream]

        text, pieces = await asyncio.gather(words(), sound())
        heard = np.concatenate(pieces) / 32768
        loud = heard[np.abs(heard) > 0.02]
        spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard)), 2**19))
        hertz = float(np.argmax(spectrum) * 24_000 / 2**19)
        tell(kind="answer", text=text, hertz=hertz, loud=len(loud) / 24_000, seconds=len(heard) / 24_000)


async def main(url, seed, speed):
    """Two questions, two answers."""
    async with aiohttp.ClientSession() as http:
        model = realtime.RealtimeModel(
            base_url=url, seed=seed, text_prompt="You are terse.", silence_threshold_ms=700, http_session=http
        )
        session = model.session()
        answers, questions = asyncio.Queue(), asyncio.Queue()
        session.on("generation_created", answers.put_nowait)
        session.on("error", lambda error: tell(kind="error", recoverable=error.recoverable))
        speaking = asyncio.create_task(speak(session, questions, speed))
        for _ in range(2):
            await session._handshake_event.wait()  # what is said before is old by the time it is sent
            questions.put_nowait("?")
            await answer(await answers.get())
        speaking.cancel()
        await session.aclose()


asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
