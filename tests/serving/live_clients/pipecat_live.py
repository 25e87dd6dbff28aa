"""pipecat's OpenAILiveLLMService in a pipeline: `pipecat_live.py URL MODEL QUESTION.wav SECONDS`.

The question goes in in real time, then silence; the frames that came out are printed as JSON. Run by the interpreter
of an environment that has pipecat-ai.
"""

import asyncio
import json
import sys
import wave

import numpy as np
from pipecat.frames.frames import (
    ErrorFrame,
    InputAudioRawFrame,
    LLMContextFrame,
    OutputAudioRawFrame,
    TranscriptionFrame,
    TTSTextFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.openai.live.llm import OpenAILiveLLMService
from pipecat.tests.utils import SleepFrame, run_test

RATE, SIZE = 24_000, 2400


async def main(url, model, path, seconds):
    with wave.open(path) as file:
        question = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    question = np.pad(question, (0, int(float(seconds) * RATE)))
    service = OpenAILiveLLMService(
        api_key="none",
        base_url=url.replace("http", "ws") + "/live/sessions",
        settings=OpenAILiveLLMService.Settings(model=model),
    )
    sent = [LLMContextFrame(LLMContext([{"role": "system", "content": "be kind"}])), SleepFrame(sleep=0.5)]
    for at in range(0, len(question), SIZE):
        audio = question[at : at + SIZE].astype("<i2").tobytes()
        sent += [InputAudioRawFrame(audio, RATE, 1), SleepFrame(sleep=0.1)]
    down, up = await run_test(service, frames_to_send=sent, start_timeout=30.0)
    played = [frame.audio for frame in down if isinstance(frame, OutputAudioRawFrame)]
    sound = np.frombuffer(b"".join(played), "<i2") if played else np.zeros(1)
    found = {
        "assistant": "".join(frame.text for frame in down if isinstance(frame, TTSTextFrame)),
        "user": [frame.text for frame in up if isinstance(frame, TranscriptionFrame)],
        "errors": [frame.error for frame in [*down, *up] if isinstance(frame, ErrorFrame)],
        "seconds": len(sound) / RATE,
        "peak": float(np.abs(sound).max()) / 32768,
    }
    print(json.dumps(found))


asyncio.run(main(*sys.argv[1:]))
