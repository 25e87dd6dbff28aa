"""A session with the `openai` package, run by the interpreter that has it: openai_session.py PORT QUESTION.wav

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
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

MODELS: Any = TypeAdapter(RealtimeServerEvent)

async def until(connection: Any, kind: str, seen: list) -> Any:
    """The next event of that type; all are noted."""
    while True:
        event = await asyncio.wait_for(connection.recv(), 30)
        seen.append(event)
        if not event.type.startswith("vivavoce."):
            MODELS.validate_python(event.to_dict())
        if event.type == kind:
            return event


async def talk(port: int, question: str) -> dict:
    """Ask by voice, cut the answer, ask by push to talk, ask for words aside, make a mistake."""
    with wave.open(question, "rb") as file:
        sound = file.readframes(file.getnframes())
    url = f"127.0.0.1:{port}/v1"
    client = AsyncOpenAI(api_key="local", base_url=f"http://{url}", websocket_base_url=f"ws://{url}")
    seen: list[Any] = []
    async with client.realtime.connect(model="tone") as connection:
        await until(connection, "session.created", seen)
        vad = {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 400}
        await connection.session.update(session={
            "type": "realtime", "output_modalities": ["audio"],
            "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24000}, "turn_detection": vad}},
        })  # fmt: skip
        updated = await until(connection, "session.updated", seen)
        silence = updated.session.audio.input.turn_detection.silence_duration_ms
        for at in range(0, len(sound), 9600):
            await connection.input_audio_buffer.append(audio=base64.b64encode(sound[at : at + 9600]).decode())
        spoken = await until(connection, "response.done", seen)
        deltas = [e for e in seen if e.type == "response.output_audio.delta"]
        audio = b"".join(base64.b64decode(e.delta) for e in deltas)
        item = spoken.response.output[0]
        await connection.conversation.item.truncate(item_id=item.id, content_index=0, audio_end_ms=320)
        await until(connection, "conversation.item.truncated", seen)
        await connection.conversation.item.retrieve(item_id=item.id)
        cut = (await until(connection, "conversation.item.retrieved", seen)).item.content[0].transcript
        await connection.response.cancel(event_id="mine")
        error = (await until(connection, "error", seen)).error
        await connection.session.update(
            session={"type": "realtime", "audio": {"input": {"turn_detection": None}}, "output_modalities": ["text"]}
        )
        await until(connection, "session.updated", seen)
        await connection.input_audio_buffer.append(audio=base64.b64encode(sound).decode())
        await connection.input_audio_buffer.commit()
        await connection.response.create(response={"metadata": {"turn": "second"}})
        written = (await until(connection, "response.done", seen)).response
        part = {"type": "input_audio", "audio": base64.b64encode(sound).decode()}
        user = {"type": "message", "role": "user", "content": [part]}
        await connection.response.create(response={"conversation": "none", "input": [user]})
        aside = (await until(connection, "response.done", seen)).response
    return {
        "version": openai.__version__, "silence": silence, "types": [e.type for e in seen],
        "classes": sorted({type(e).__name__ for e in seen}), "audio": base64.b64encode(audio).decode(),
        "words": item.content[0].transcript, "cut": cut, "code": error.code, "event_id": error.event_id,
        "written": written.output[0].content[0].text, "metadata": written.metadata,
        "tokens": spoken.response.usage.total_tokens, "aside": aside.output[0].content[0].text,
    }  # fmt: skip


print(json.dumps(asyncio.run(talk(int(sys.argv[1]), sys.argv[2]))))
