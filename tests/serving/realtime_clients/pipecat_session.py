"""pipecat's OpenAIRealtimeLLMService in a pipeline, where it is installed: pipecat_session.py PORT QUESTION.wav

The question goes in in real time, then silence; the frames that came out are printed as JSON.
"""

import asyncio
import base64
import importlib.metadata
import json
import sys
import wave

from pipecat.frames.frames import (
    ErrorFrame,
    InputAudioRawFrame,
    LLMContextFrame,
    OutputAudioRawFrame,
    ProposedUserStartedSpeakingFrame,
    ProposedUserStoppedSpeakingFrame,
    TranscriptionFrame,
    TTSTextFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.tests.utils import SleepFrame, run_test

RATE, SIZE = 24_000, 2400


async def main(port, path):
    with wave.open(path, "rb") as file:
        question = file.readframes(file.getnframes())
    question += bytes(2 * RATE * 3)
    service = OpenAIRealtimeLLMService(
        api_key="local", base_url=f"ws://127.0.0.1:{port}/v1/realtime",
        settings=OpenAIRealtimeLLMService.Settings(model="tone", system_instruction="Answer in tones."),
    )  # fmt: skip
    sent = [LLMContextFrame(LLMContext([])), SleepFrame(sleep=0.5)]
    for at in range(0, len(question), 2 * SIZE):
        sent += [InputAudioRawFrame(question[at : at + 2 * SIZE], RATE, 1), SleepFrame(sleep=0.1)]
    down, up = await run_test(service, frames_to_send=sent, start_timeout=30.0)
    frames = [*down, *up]
    played = b"".join(frame.audio for frame in down if isinstance(frame, OutputAudioRawFrame))
    print(json.dumps({
        "version": importlib.metadata.version("pipecat-ai"), "audio": base64.b64encode(played).decode(),
        "words": " ".join(frame.text.strip() for frame in down if isinstance(frame, TTSTextFrame)),
        "user": [frame.text for frame in frames if isinstance(frame, TranscriptionFrame)],
        "errors": [frame.error for frame in frames if isinstance(frame, ErrorFrame)],
        "turns": [
            type(frame).__name__ for frame in down
            if isinstance(frame, ProposedUserStartedSpeakingFrame | ProposedUserStoppedSpeakingFrame)
        ],
    }))  # fmt: skip


asyncio.run(main(*sys.argv[1:]))
