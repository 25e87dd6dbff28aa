"""LiveKit's RealtimeModel, run by the interpreter that has it: livekit_session.py PORT QUESTION.wav

By voice activity, then by push to talk; a text, which the model cannot read. The last line is JSON.
"""

import asyncio
import base64
import importlib.metadata
import json
import sys
import wave

from livekit import rtc
from livekit.plugins.openai.realtime import RealtimeModel

SIZE = 2400


class Talk:
    """One session of the model's, and what came of it."""

    def __init__(self, port, **options):
        self.model = RealtimeModel(model="tone", base_url=f"http://127.0.0.1:{port}/v1", api_key="local", **options)
        self.session = self.model.session()
        self.answers, self.words, self.types, self.errors, self.tasks = [], [], [], [], set()
        self.session.on("generation_created", lambda event: self.keep(self.answer(event)))
        self.session.on("input_audio_transcription_completed", self.heard)
        self.session.on("openai_server_event_received", lambda event: self.types.append(event["type"]))
        self.session.on("error", lambda event: self.errors.append(str(event.error)))

    def heard(self, event):
        if event.is_final:
            self.words.append(event.transcript)

    def keep(self, work):
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def answer(self, event):
        """Collect one answer: its id, words, sound."""
        async for message in event.message_stream:

            async def audio(message=message):
                return b"".join([bytes(frame.data) async for frame in message.audio_stream])

            listening = asyncio.create_task(audio())
            text = "".join([piece async for piece in message.text_stream])
            self.answers.append((message.message_id, text, await listening))

    def ask(self, path):
        with wave.open(path, "rb") as file:
            data = file.readframes(file.getnframes())
        for at in range(0, len(data), 2 * SIZE):
            piece = data[at : at + 2 * SIZE].ljust(2 * SIZE, b"\0")
            self.session.push_audio(rtc.AudioFrame(piece, 24_000, 1, SIZE))

    async def until(self, test, what):
        for _ in range(1500):
            if test():
                return
            await asyncio.sleep(0.02)
        raise TimeoutError(f"{what}: {self.types} {self.errors}")

    async def close(self):
        await self.session.aclose()
        await self.model.aclose()


async def main(port, question):
    voice = Talk(port)
    await voice.session.update_instructions("Answer in tones.")
    voice.ask(question)
    await voice.until(lambda: voice.answers and voice.words, "the answer")
    await voice.until(lambda: "response.done" in voice.types, "its end")
    first = voice.answers[0]
    voice.session.truncate(message_id=first[0], modalities=["audio"], audio_end_ms=320)
    await voice.until(lambda: "conversation.item.truncated" in voice.types, "the cut")
    context = voice.session.chat_ctx.copy()
    context.add_message(role="user", content="hello")
    await voice.session.update_chat_ctx(context)
    known = [item.text_content for item in voice.session.chat_ctx.items if item.type == "message"]
    await voice.close()
    pushed = Talk(port, turn_detection=None)
    pushed.ask(question)
    pushed.session.commit_audio()
    generation = await pushed.session.generate_reply()
    await pushed.until(lambda: pushed.answers and pushed.words, "the second answer")
    await pushed.close()
    print(json.dumps({
        "version": importlib.metadata.version("livekit-agents"), "words": first[1], "user": voice.words,
        "audio": base64.b64encode(first[2]).decode(), "errors": [*voice.errors, *pushed.errors], "known": known,
        "types": voice.types, "second": pushed.answers[0][1], "second_types": pushed.types,
        "by_user": generation.user_initiated,
    }))  # fmt: skip


asyncio.run(main(*sys.argv[1:]))
