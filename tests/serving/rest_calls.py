"""Plain HTTP for the tests of REST: requests, forms, sounds, server-sent events, a model that waits to be told."""

import base64
import http.client
import io
import json
import threading
import time

import numpy as np
import soundfile

from vivavoce.audio import Audio
from vivavoce.dialogue import Piece
from vivavoce.systems.signal_models import FRAME, RATE, SignalModel

TEXT = "three plus four"
SPEECH = {"model": "tone", "input": TEXT, "voice": "default"}


def call(port, path, body=None, headers=None, method=None):
    """(status, body, headers) of one request; a dict is sent as JSON, pairs of (fields, file) as a form."""
    headers = dict(headers or {})
    if isinstance(body, dict):
        body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
    elif isinstance(body, tuple):
        body, headers["Content-Type"] = form(*body)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.headers.items()}
    finally:
        connection.close()


def form(fields, file=None, name="q.wav"):
    """A multipart body and its type; `fields`: pairs."""
    head = '--XX\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
    parts = [head.format(key, value).encode() for key, value in fields]
    if file is not None:
        head = f'--XX\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        parts.append(head.encode() + file + b"\r\n")
    return b"".join([*parts, b"--XX--\r\n"]), "multipart/form-data; boundary=XX"


def error_of(found):
    status, body, _ = found
    return status, json.loads(body)["error"]["code"]


def sound(seconds=0.4, silence=0.4):
    """Noise and a little silence at the signal models' rate."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, int(seconds * RATE))
    return Audio(np.concatenate([noise, np.zeros(int(silence * RATE))]).astype(np.float32)[None], RATE)


def wav(audio):
    file = io.BytesIO()
    soundfile.write(file, audio.samples.T, audio.sample_rate, "FLOAT", format="WAV")
    return file.getvalue()


def spoken(*audios, **fields):
    """A chat with turns of sound."""
    parts = [{"type": "input_audio", "input_audio": {"data": base64.b64encode(wav(a)).decode(), "format": "wav"}}
             for a in audios]
    return {"model": "tone", "messages": [{"role": "user", "content": parts}], **fields}


def events(body):
    """The data of server-sent events; the last may be [DONE]."""
    lines = body.decode().split("\n\n")
    assert lines[-1] == "" and all(line.startswith("data: ") for line in lines[:-1])
    return [line if line == "[DONE]" else json.loads(line) for line in (line[6:] for line in lines[:-1])]


def wait_for(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    assert true()


class Patient(SignalModel):
    """Says a frame whenever it is told to go on, without an end; `left` is set when its listener has gone."""

    def __init__(self, steps=0, fails_at=None):
        super().__init__("tone")
        self.go, self.left, self.asked, self.fails_at = threading.Semaphore(steps), threading.Event(), 0, fails_at

    def reply(self, turns, stream=False, task="answer", seed=0, **limits):
        self.asked += 1
        return self.pieces()

    def pieces(self):
        try:
            number = 0
            while True:
                while not self.go.acquire(timeout=0.02):
                    yield Piece(0.0, "", np.zeros(0, np.float32), "")
                if number == self.fails_at:
                    raise RuntimeError("out of memory")
                yield Piece(0.1 * number, "word", np.full(FRAME, 0.25, np.float32), "word")
                number += 1
        finally:
            self.left.set()


NOISE = wav(sound())
SAID = spoken(sound())["messages"]


def chat(**fields):
    """A chat with one turn of noise."""
    return {"model": "tone", "messages": SAID, **fields}


def says(*parts, role="user"):
    """A chat with one message of these parts."""
    return {"model": "tone", "messages": [{"role": role, "content": list(parts)}]}
