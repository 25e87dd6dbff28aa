"""LiveKit's GPTLiveModel in an AgentSession, without a room: `livekit_live.py URL MODEL QUESTION.wav SECONDS`.

The question is heard in real time, then silence; what the agent's session made of it is printed as JSON. Run by the
interpreter of an environment that has livekit-agents and livekit-plugins-openai.
"""

import asyncio
import json
import sys
import wave

import numpy as np
from livekit import rtc
from livekit.agents import Agent, AgentSession
from livekit.agents.voice import io
from livekit.plugins.openai.realtime import GPTLiveModel

RATE, SIZE = 24_000, 2400


class Microphone(io.AudioInput):
    """The question, then silence, 100 ms at a time, in real time."""

    def __init__(self, samples):
        super().__init__(label="question")
        self.samples, self.at, self.begin = samples, 0, None

    async def __anext__(self):
        clock = asyncio.get_running_loop().time
        self.begin = self.begin or clock()
        await asyncio.sleep(max(0.0, self.begin + self.at / RATE - clock()))
        part = self.samples[self.at : self.at + SIZE]
        self.at += SIZE
        data = np.pad(part, (0, SIZE - len(part))).astype("<i2").tobytes()
        return rtc.AudioFrame(data, RATE, 1, SIZE)


class Loudspeaker(io.AudioOutput):
    """Keeps what is played."""

    def __init__(self):
        super().__init__(label="answer", capabilities=io.AudioOutputCapabilities(pause=False), sample_rate=RATE)
        self.played, self.segment = [], 0.0

    async def capture_frame(self, frame):
        await super().capture_frame(frame)
        self.played.append(np.frombuffer(frame.data, "<i2"))
        self.segment += frame.duration

    def flush(self):
        super().flush()
        self.on_playback_finished(playback_position=self.segment, interrupted=False)
        self.segment = 0.0

    def clear_buffer(self):
        pass


async def main(url, model, path, seconds):
    with wave.open(path) as file:
        question = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    found = {"user": [], "assistant": [], "partial": [], "errors": []}
    llm = GPTLiveModel(model=model, delegation="client", api_key="none", base_url=url)
    session = AgentSession(llm=llm)

    @session.on("conversation_item_added")
    def added(event):
        found[event.item.role].append(event.item.text_content)

    @session.on("user_input_transcribed")
    def transcribed(event):
        found["partial"].append(event.transcript)

    @session.on("error")
    def failed(event):
        found["errors"].append(str(event.error))

    session.input.audio, session.output.audio = Microphone(question), Loudspeaker()
    loudspeaker = session.output.audio
    await session.start(Agent(instructions="be kind"))
    end = asyncio.get_running_loop().time() + float(seconds)
    while asyncio.get_running_loop().time() < end and not (found["user"] and found["assistant"]):
        await asyncio.sleep(0.05)
    await session.aclose()
    await llm.aclose()
    played = getattr(loudspeaker, "played", []) or []
    sound = np.concatenate(played) if played else np.zeros(1)
    found["seconds"], found["peak"] = len(sound) / RATE, float(np.abs(sound).max()) / 32768
    print(json.dumps(found))


asyncio.run(main(*sys.argv[1:]))
