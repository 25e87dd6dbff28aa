"""A session with the beta client of the `openai` package, where it is installed: openai_beta.py PORT QUESTION.wav

The last line is JSON: what was said and heard. Each event is checked against the package's own model of it.
"""

import asyncio
import base64
import json
import sys
import wave
from typing import Any

import openai
from openai import AsyncOpenAI
from openai.types.beta.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

MODELS: Any = TypeAdapter(RealtimeServerEvent)


async def until(connection: Any, kind: str, seen: list) -> Any:
    """The next event of that type; all are noted."""
    while True:
        event = await asyncio.wait_for(connection.recv(), 30)
        seen.append(event)
        if not event.type.startswith("session."):  # its models are a closed list of names
            MODELS.validate_python(event.to_dict())
        if event.type == kind:
            return event


async def talk(port: int, question: str) -> dict:
    """Ask by push to talk."""
    with wave.open(question, "rb") as file:
        sound = file.readframes(file.getnframes())
    client = AsyncOpenAI(api_key="local", websocket_base_url=f"ws://127.0.0.1:{port}/v1")
    seen: list[Any] = []
    async with client.beta.realtime.connect(model="tone") as connection:
        await until(connection, "session.created", seen)
        await connection.session.update(session={
            "modalities": ["text", "audio"], "turn_detection": None, "output_audio_format": "pcm16",
            "input_audio_transcription": {"model": "whisper-1"},
        })  # fmt: skip
        updated = await until(connection, "session.updated", seen)
        await connection.input_audio_buffer.append(audio=base64.b64encode(sound).decode())
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        done = await until(connection, "response.done", seen)
        audio = b"".join(base64.b64decode(e.delta) for e in seen if e.type == "response.audio.delta")
    return {
        "version": openai.__version__, "modalities": sorted(updated.session.modalities),
        "words": done.response.output[0].content[0].transcript, "audio": base64.b64encode(audio).decode(),
        "types": [event.type for event in seen],
    }  # fmt: skip


print(json.dumps(asyncio.run(talk(int(sys.argv[1]), sys.argv[2]))))
