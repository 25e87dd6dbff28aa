"""REST with the stock `openai` client: of this environment, and of others that are named by $VIVAVOCE_CLIENTS."""

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import vivavoce
from serving.rest_calls import sound, wav
from vivavoce.audio import Audio
from vivavoce.serving.app import Server, create_app
from vivavoce.serving.core import Core
from vivavoce.serving.rest.formats import wav_header
from vivavoce.serving.run import running
from vivavoce.serving.settings import ServerSettings
from vivavoce.serving.sound_formats import bytes_of, samples_of
from vivavoce.systems.signal_models import RATE

openai = pytest.importorskip("openai", reason="the published client is what is proved with")

HERE = Path(__file__).resolve().parent
RECORDING = HERE.parents[1] / "examples" / "recordings" / "three-four-george-joined.wav"
TEXT = "three plus four is seven"
OTHERS = ("openai-1.109.1", "openai-2.8.0", "openai-2.54.0")


@contextlib.contextmanager
def served(name):
    core = Core(vivavoce.load(name), name, ServerSettings(rows=1))
    with running(create_app(Server(core, drain=0.0), ("rest",))) as port:
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def tone():
    with served("tone") as url:
        yield url


@pytest.fixture(scope="module")
def mini():
    with served("mini") as url:
        yield openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)


def python_of(name):
    """The interpreter of a named environment of clients; the test skips where there is none."""
    if name == "this one":
        return sys.executable
    folder = os.environ.get("VIVAVOCE_CLIENTS")
    python = Path(folder or "missing") / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"$VIVAVOCE_CLIENTS/{name}/bin/python is not there: set it to a folder of environments")
    return str(python)


def sums(data):
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("name", ["this one", *OTHERS])
def test_every_call_of_the_published_client(tone, tmp_path, name):
    python = python_of(name)
    question = Audio(np.concatenate([sound().samples, sound().samples], 1), RATE)
    path = tmp_path / "question.wav"
    path.write_bytes(wav(question))
    script = HERE / "rest_clients" / "openai_rest.py"
    done = subprocess.run(
        [python, script, tone, "tone", path, TEXT], capture_output=True, text=True, timeout=120, check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    model = vivavoce.load("tone")
    said = bytes_of(model.reply([("user", TEXT)], task="speak").audio.samples[0])
    answer = model.reply([("user", question)])
    answered = bytes_of(answer.audio.samples[0])
    first, both = found["sync"], found["async"]
    assert name == "this one" or found["version"] == name.removeprefix("openai-")
    assert first["models"] == ["tone"] and first["model"] == "vivavoce"
    assert first["speech"] == sums(wav_header(RATE) + said)
    assert first["streamed_speech"] == {**sums(said), "type": "audio/pcm"} and both["speech"] == sums(said)
    assert first["transcription"] == first["transcription_done"] == both["transcription"] == "sound sound"
    assert first["transcription_text"].strip() == "sound sound" and first["words"] == ["sound", "sound"]
    assert first["transcription_srt"].startswith("1\n00:00:00,000 --> ") and first["segments"] == ["sound sound"]
    assert first["transcription_events"] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]
    assert first["transcription_deltas"] == ["sound", " sound"] and first["translation"] == answer.text
    frames = -(-len(answered) // 2 // 1920)
    assert first["chat"] == {
        "transcript": answer.text, "content": None, **sums(wav_header(RATE, len(answered)) + answered),
        "audio_tokens": frames, "finish": "stop",
    }  # fmt: skip
    assert first["second"] == model.reply([("user", question), ("user", question)]).text and both["chat"] == answer.text
    assert first["chunks"] == {
        "transcript": answer.text, **sums(answered), "id": "audio_", "expires": True, "finish": "stop",
        "usage": 20 + frames + len(answer.text.split()),
    }  # fmt: skip
    wrong = {"kind": "BadRequestError", "status": 400}
    assert first["refused"] == {
        "model": {"kind": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"},
        "voice": {**wrong, "code": "unknown_voice", "param": "voice"},
        "text": {**wrong, "code": "no_text_input", "param": "messages[0].content"},
        "file": {**wrong, "code": "invalid_audio", "param": "file"},
    }


def test_who_leaves_an_asynchronous_stream_is_let_go(tone):
    async def go():
        client = openai.AsyncOpenAI(base_url=tone, api_key="none", max_retries=0, timeout=60)
        asked = {"model": "tone", "messages": turn(wav(sound())), "stream": True}
        for _ in range(20):  # more than may wait at once
            stream = await client.chat.completions.create(**asked)
            async for _ in stream:
                break
            await stream.close()
        whole = [chunk async for chunk in await client.chat.completions.create(**asked)]
        return "".join(chunk.choices[0].delta.content or "" for chunk in whole)

    assert asyncio.run(go()) == "tone number 1 ends"


def turn(data):
    sound = {"data": base64.b64encode(data).decode(), "format": "wav"}
    return [{"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}]


def test_mini_writes_down_the_digits_of_a_recording(mini):
    with RECORDING.open("rb") as file:
        found = mini.audio.transcriptions.create(
            model="mini", file=file, response_format="verbose_json", timestamp_granularities=["word", "segment"]
        )
    assert found.text == "three four" and abs(found.duration - 1.288) < 0.01
    three, four = found.words
    assert (three.word, four.word) == ("three", "four")
    # the two were joined with a pause; a word's end is where its speech ends, within a frame or two
    assert 0.0 <= three.start < three.end <= 0.72 <= four.end <= found.duration and three.end <= four.start < four.end
    assert " ".join(segment.text for segment in found.segments) == "three four"


def test_mini_answers_a_recording_by_voice(mini):
    options = {"modalities": ["text", "audio"], "audio": {"voice": "default", "format": "wav"}}
    done = mini.chat.completions.create(model="mini", messages=turn(RECORDING.read_bytes()), **options)
    audio = done.choices[0].message.audio
    assert audio.transcript == TEXT
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(audio.data)), dtype="float32")
    assert rate == 16_000 and 2.0 < len(samples) / rate < 4.0 and np.sqrt(np.mean(samples**2)) > 0.02
    words = []
    for chunk in mini.chat.completions.create(model="mini", messages=turn(RECORDING.read_bytes()), stream=True):
        words.append(chunk.choices[0].delta.content or "")
    assert "".join(words) == TEXT


def test_mini_says_what_it_can_say_and_names_the_word_it_cannot(mini):
    with mini.audio.speech.with_streaming_response.create(
        model="mini", voice="mini", input=TEXT, response_format="pcm"
    ) as answer:
        data = b"".join(answer.iter_bytes())
    found = samples_of(data)  # at 24 kHz, as headerless PCM is
    assert 1.5 < len(found) / 24_000 < 4.0 and np.sqrt(np.mean(found**2)) > 0.02
    assert np.abs(found[: 24_000 // 4]).max() > 0.05  # it begins at once
    with pytest.raises(openai.BadRequestError, match="'fish' is not in the vocabulary: zero, one") as refused:
        mini.audio.speech.create(model="mini", voice="default", input="three fish")
    assert refused.value.param == "input"
    with pytest.raises(openai.BadRequestError, match="mini lacks the task 'translate'") as refused:
        mini.audio.translations.create(model="mini", file=RECORDING)
    assert refused.value.code == "no_task_translate"
    with pytest.raises(openai.BadRequestError, match="mini takes audio") as refused:
        mini.chat.completions.create(model="mini", messages=[{"role": "user", "content": "three plus four"}])
    assert refused.value.code == "no_text_input"
