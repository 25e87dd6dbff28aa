"""Other people's clients of Moshi's protocol, as they are published, against our server."""

import asyncio
import contextlib
import importlib
import importlib.util
import io
import json
import os
import re
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

import vivavoce
from serving.moshi_clients.raw import FRAME, PATIENT, RATE, Client, all_free, run
from vivavoce.serving.opus import PACKET, OggOpusIn, OggOpusOut, SphnPages
from vivavoce.systems.signal_models import pitch

HERE = Path(__file__).parent


def interpreter(name):
    """The Python of one client's environment, a folder in `$VIVAVOCE_CLIENTS`; the test skips where there is none."""
    path = Path(os.environ.get("VIVAVOCE_CLIENTS") or "none") / name / "bin" / "python"
    if not path.exists():
        pytest.skip(f"no environment with {name}: VIVAVOCE_CLIENTS must name a folder that has {name}/bin/python")
    return path


# -- Kyutai's own, on a sound card that is none --


class SoundCard(types.ModuleType):
    """In place of `sounddevice`: a microphone that hears `question`, then silence, and a speaker that is kept."""

    def __init__(self, question, seconds_a_frame):
        super().__init__("sounddevice")
        self.question, self.pace, self.played = question.reshape(-1, FRAME), seconds_a_frame, []

    def InputStream(self, samplerate, channels, blocksize, callback):
        frames = iter([*self.question, *np.zeros((10_000, FRAME), np.float32)])
        return self._stream(lambda: callback(next(frames)[:, None], FRAME, None, None))

    def OutputStream(self, samplerate, channels, blocksize, callback):
        def play():
            block = np.zeros((blocksize, channels), np.float32)
            callback(block, blocksize, None, None)
            self.played.append(block[:, 0].copy())

        return self._stream(play)

    @contextlib.contextmanager
    def _stream(self, tick):
        over = threading.Event()

        def work():
            while not over.wait(self.pace):
                tick()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def kyutai(monkeypatch, card):
    """The package's client, without the rest of the package: that loads models."""
    found = importlib.util.find_spec("moshi")
    if found is None:
        pytest.skip("the package moshi is not installed")
    monkeypatch.setitem(sys.modules, "sounddevice", card)
    folder = types.ModuleType("kyutai")
    folder.__path__ = list(found.submodule_search_locations)
    for name in ("kyutai", "kyutai.client", "kyutai.client_utils"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "kyutai", folder)
    return importlib.import_module("kyutai.client"), importlib.import_module("kyutai.client_utils")


async def conversation(client, utils, port, enough):
    """Kyutai's `run`, until `enough(words)`; (words, warnings and errors until then)."""
    words, complaints = io.StringIO(), io.StringIO()
    printer = utils.RawPrinter(words, complaints)
    task = asyncio.create_task(client.run(printer, types.SimpleNamespace(url=f"http://127.0.0.1:{port}")))
    while not enough(words.getvalue()):
        assert not task.done(), complaints.getvalue()
        await asyncio.sleep(0.02)
    found = words.getvalue(), re.findall(r"(?:Warning|Error): (.*)", complaints.getvalue())
    task.cancel()
    await asyncio.wait({task})
    return found


def loud_frames(frames):
    return np.array([frame for frame in frames if np.abs(frame).max() > 1e-4])


def test_kyutais_client_hears_what_its_microphone_heard(serve, monkeypatch):
    pytest.importorskip("aiohttp")
    port, server = serve("echo", ("moshi",), 4.0, **PATIENT)
    sentence = vivavoce.read(HERE.parents[1] / "examples/recordings/sentence-librispeech.wav").resample(RATE)
    speech = sentence.samples[0, : 30 * FRAME]
    card = SoundCard(speech, 0.02)
    client, utils = kyutai(monkeypatch, card)
    theirs = SphnPages()  # the client's own encoder
    coded = OggOpusIn(RATE).decode(b"".join(theirs(packet) for packet in speech.reshape(-1, PACKET)))
    said = np.concatenate([np.zeros(FRAME, np.float32), coded])
    expected = loud_frames(OggOpusIn(RATE).decode(OggOpusOut(RATE).encode(said)).reshape(-1, FRAME))

    words, complaints = run(
        conversation(client, utils, port, lambda words: len(loud_frames(card.played)) >= len(expected))
    )
    assert len(expected) > 25 and np.array_equal(loud_frames(card.played)[: len(expected)], expected)
    assert words.startswith(" echo")
    assert complaints == ["unknown message kind 0"]  # the handshake: it says so of its own server's too
    run(all_free(server, 4))


def test_kyutais_client_prints_the_models_words(serve, monkeypatch):
    pytest.importorskip("aiohttp")
    port, server = serve("tone", ("moshi",), 4.0, **PATIENT)
    time = np.arange(5 * FRAME) / RATE
    card = SoundCard((0.3 * np.sin(2 * np.pi * 300 * time)).astype(np.float32), 0.02)
    client, utils = kyutai(monkeypatch, card)
    words, _ = run(conversation(client, utils, port, lambda words: "ends" in words))
    assert words == " tone number 1 ends"
    run(all_free(server, 4))


# -- LiveKit's plugin for PersonaPlex --


def test_livekits_plugin_comes_again_when_refused_and_gets_one_answer_a_question(serve):
    """It makes its own query: what it wants besides is in the path. It connects anew after a refusal, but for 1000."""
    python = interpreter("livekit")
    port, server = serve("tone", ("moshi",), 4.0, rows=1, queue=0, **PATIENT)

    async def go():
        async with Client(port) as occupant:
            await occupant.talk()
            plugin = await asyncio.create_subprocess_exec(
                python, HERE / "moshi_clients" / "livekit_plugin.py",
                f"ws://127.0.0.1:{port}/with/silence=drop", "5", "4.0",
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            try:
                complaint = await plugin.stdout.readline()
                assert complaint, (await plugin.stderr.read()).decode()
                assert json.loads(complaint) == {"kind": "error", "recoverable": True}
                await occupant.socket.close()
                lines = [json.loads(line) async for line in plugin.stdout]
            finally:
                with contextlib.suppress(ProcessLookupError):
                    plugin.kill()
                await plugin.wait()
        answers = [line for line in lines if line["kind"] == "answer"]
        assert [line["text"] for line in answers] == [" tone number 1 ends", " tone number 2 ends"]
        for line in answers:
            assert abs(line["hertz"] - pitch(5)) < 2  # its seed is honoured
            assert 0.85 < line["loud"] < 1.0 <= line["seconds"] < 1.7  # twelve frames, and the end of a turn
        await all_free(server, 1)

    run(go(), 150)  # its imports take their time
