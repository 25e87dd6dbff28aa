"""Every REST call of the `openai` client of this environment against a server; prints what came as one JSON object.

python openai_rest.py BASE_URL MODEL RECORDING.wav TEXT
"""

import asyncio
import base64
import hashlib
import json
import sys

import openai

URL, MODEL, RECORDING, TEXT = sys.argv[1:]


def turn():
    with open(RECORDING, "rb") as file:
        data = base64.b64encode(file.read()).decode()
    return [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]}]


def plain(value):
    return value.model_dump() if hasattr(value, "model_dump") else value


def audio_of(delta):
    """Newer clients know the audio of a chunk, older ones keep it as it came."""
    return plain(getattr(delta, "audio", None)) or {}


def sums(data):
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def refused(call):
    try:
        call()
    except openai.APIStatusError as error:
        return {"kind": type(error).__name__, "status": error.status_code, "code": error.code, "param": error.param}
    return None


def synchronous():
    client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0, timeout=60)
    spoken = {"model": MODEL, "voice": "default", "input": TEXT, "response_format": "wav"}
    found = {
        "models": [model.id for model in client.models.list().data],
        "model": client.models.retrieve(MODEL).owned_by,
        "speech": sums(client.audio.speech.create(**spoken).content),
    }
    with client.audio.speech.with_streaming_response.create(**{**spoken, "response_format": "pcm"}) as answer:
        pieces = list(answer.iter_bytes())
    found["streamed_speech"] = {**sums(b"".join(pieces)), "type": answer.headers["content-type"]}

    def write(**options):
        with open(RECORDING, "rb") as file:
            return client.audio.transcriptions.create(model=MODEL, file=file, **options)

    found["transcription"] = write().text
    found["transcription_text"] = write(response_format="text")
    found["transcription_srt"] = write(response_format="srt")
    verbose = write(response_format="verbose_json", timestamp_granularities=["word", "segment"])
    found["words"] = [word.word for word in verbose.words]
    found["segments"] = [segment.text for segment in verbose.segments]
    stream = [event for event in write(stream=True)]
    found["transcription_events"] = [event.type for event in stream]
    found["transcription_deltas"] = [event.delta for event in stream if event.type == "transcript.text.delta"]
    found["transcription_done"] = stream[-1].text
    with open(RECORDING, "rb") as file:
        found["translation"] = client.audio.translations.create(model=MODEL, file=file).text

    sound = {"modalities": ["text", "audio"], "audio": {"voice": "default", "format": "wav"}}
    done = client.chat.completions.create(model=MODEL, messages=turn(), **sound)
    message = done.choices[0].message
    found["chat"] = {
        "transcript": message.audio.transcript, "content": message.content,
        **sums(base64.b64decode(message.audio.data)),
        "audio_tokens": done.usage.completion_tokens_details.audio_tokens, "finish": done.choices[0].finish_reason,
    }
    history = [*turn(), {"role": "assistant", "audio": {"id": message.audio.id}}, *turn()]
    found["second"] = client.chat.completions.create(model=MODEL, messages=history).choices[0].message.content
    chunks = list(client.chat.completions.create(
        model=MODEL, messages=turn(), modalities=["text", "audio"], audio={"voice": "default", "format": "pcm16"},
        stream=True, stream_options={"include_usage": True},
    ))  # fmt: skip
    audios = [audio_of(chunk.choices[0].delta) for chunk in chunks if chunk.choices]
    found["chunks"] = {
        "transcript": "".join(audio.get("transcript") or "" for audio in audios),
        **sums(b"".join(base64.b64decode(audio.get("data") or "") for audio in audios)),
        "id": next(audio["id"] for audio in audios if audio.get("id"))[:6],
        "expires": any(audio.get("expires_at") for audio in audios),
        "finish": [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1],
        "usage": chunks[-1].usage.total_tokens,
    }
    found["refused"] = {
        "model": refused(lambda: client.audio.speech.create(**{**spoken, "model": "tts-1"})),
        "voice": refused(lambda: client.audio.speech.create(**{**spoken, "voice": "alloy"})),
        "text": refused(lambda: client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hello"}])),
        "file": refused(lambda: client.audio.transcriptions.create(model=MODEL, file=("x.wav", b"nothing"))),
    }  # fmt: skip
    return found


async def asynchronous():
    client = openai.AsyncOpenAI(base_url=URL, api_key="none", max_retries=0, timeout=60)
    async with client.audio.speech.with_streaming_response.create(
        model=MODEL, voice="default", input=TEXT, response_format="pcm"
    ) as answer:
        speech = b"".join([piece async for piece in answer.iter_bytes()])

    async def written():
        with open(RECORDING, "rb") as file:
            stream = await client.audio.transcriptions.create(model=MODEL, file=file, stream=True)
            return [event async for event in stream][-1].text

    async def said():
        stream = await client.chat.completions.create(model=MODEL, messages=turn(), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    transcription, chat = await asyncio.gather(written(), said())
    return {"speech": sums(speech), "transcription": transcription, "chat": chat}


print(json.dumps({"version": openai.__version__, "sync": synchronous(), "async": asyncio.run(asynchronous())}))
