"""REST: bodies of the published schemas with something wrong in them, forms, and files that are no sound."""

import base64
import gzip
import io
import json
import random
import struct
import zipfile
from functools import cache
from typing import Any

import numpy as np
import soundfile

from serving.fuzz.case import Case, random_of, request
from serving.fuzz.ogg import damaged, pages
from serving.fuzz.plain import plain, slow
from serving.fuzz.schemas import draw
from serving.fuzz.values import base64_text, broken, mutate

JSON_PATHS = ["/v1/audio/speech", "/v1/chat/completions"]
FORM_PATHS = ["/v1/audio/transcriptions", "/v1/audio/translations"]


@cache
def wav(seconds: float = 0.2) -> bytes:
    """A little noise as a file."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, int(seconds * 24_000)).astype(np.float32)
    soundfile.write(file, noise, 24_000, "PCM_16", format="WAV")
    return file.getvalue()


@cache
def files() -> tuple[bytes, ...]:
    """What people, and others, upload as sound."""
    silence, made = np.zeros(3 * 3600 * 8000, np.int16), []
    for form, subtype in (("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "OPUS"), ("OGG", "VORBIS"), ("AIFF",
        "PCM_16"),
                          ("AU", "PCM_16"), ("CAF", "PCM_16"), ("RF64", "PCM_16"), ("WAVEX", "FLOAT")):  # fmt: skip
        file = io.BytesIO()
        soundfile.write(file, silence[:4000], 8000, subtype, format=form)
        made.append(file.getvalue())
    bomb = io.BytesIO()  # hours of silence in a few kilobytes
    soundfile.write(bomb, silence, 8000, "PCM_16", format="FLAC")
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.wav", bytes(10**6))
    packed = gzip.compress(wav())
    program = b"\x7fELF\x02\x01\x01" + bytes(200)
    windows = b"MZ" + bytes(58) + b"\x80\0\0\0" + bytes(64) + b"PE\0\0" + bytes(200)
    mp4 = struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 0, b"isom") + struct.pack(">I4s", 2**31, b"moov") + bytes(500)
    webm = b"\x1a\x45\xdf\xa3" + b"\x01" + b"\xff" * 7 + bytes(300)
    texts = [
        b"", b"hello", b"<html></html>", b"#EXTM3U\nhttp://127.0.0.1/x", b"RIFF", b"fLaC", b"OggS",
        b"ID3\x04" + bytes(50),
    ]
    twice = wav() + wav()
    huge = wav()[:40] + b"\xff\xff\xff\xff" + wav()[44:]
    rates = wav()[:24] + struct.pack("<I", 2**31 - 1) + wav()[28:]
    channels = wav()[:22] + struct.pack("<H", 65_535) + wav()[24:]
    return (*made, bomb.getvalue(), zipped.getvalue(), packed, program, windows, mp4, webm, *texts, twice, huge,
        rates, channels,
            b"\xff\xf1" + bytes(300), b"\xff\xfb\x90\x00" * 200, b"".join(pages()))  # fmt: skip


def make(seed: int, number: int) -> Case:
    """Case `number` of this dialect."""
    rng = random_of("rest", seed, number)
    case = Case("rest", number, "")
    case.owes, case.leaves = "answer", "fin"
    share = rng.random()
    if share < 0.02:
        body, kind = form(rng)
        return slow(case, rng, request("POST", FORM_PATHS[0], [("Content-Type", kind), ("Content-Length",
            "9999999")]), body)
    if share < 0.1:
        return plain(case, rng, rng.choice([*JSON_PATHS, *FORM_PATHS, "/v1/models", "/v1/capabilities",
            "/v1/models/é%00"]))
    if share < 0.6:
        return bodies(case, rng)
    return forms(case, rng)


def sound_of(rng: random.Random) -> bytes:
    """A file: good, hurt, or none."""
    if rng.random() < 0.3:
        return rng.choice(files())
    if rng.random() < 0.2:
        return b"".join(damaged(rng))
    data = bytearray(rng.choice([wav(), files()[0], files()[2]]))
    for _ in range(rng.choice([0, 1, 3, 30])):
        data[rng.randrange(min(len(data), rng.choice([60, len(data)])))] = rng.randrange(256)
    return bytes(data[: rng.randrange(len(data))]) if rng.random() < 0.2 else bytes(data)


@cache
def params() -> tuple[Any, ...]:
    """The published parameters of the two JSON paths."""
    from openai.types.audio.speech_create_params import SpeechCreateParams
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

    return SpeechCreateParams, CompletionCreateParamsNonStreaming


def bodies(case: Case, rng: random.Random) -> Case:
    """JSON of the published schemas, mutated; the beginnings are such that some of it works."""
    case.kind = "json"
    which = rng.randrange(2)
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav()).decode(), "format": "wav"}}
    good: dict[str, Any] = [
        {"model": "echo", "input": "some words", "voice": "default", "response_format": "pcm"},
        {"model": "echo", "messages": [{"role": "user", "content": [part]}], "modalities": ["text", "audio"],
         "audio": {"format": "wav", "voice": "default"}},
    ][which]  # fmt: skip
    if rng.random() < 0.5:
        extra = draw(params()[which], rng)
        for name in rng.sample(sorted(extra), min(len(extra), rng.randrange(4))):
            good[name] = extra[name]
    if rng.random() < 0.3:
        good["stream" if which else "stream_format"] = True if which else "sse"
        if which:
            good["audio"] = {"format": "pcm16", "voice": "default"}
    if which and rng.random() < 0.4:
        part["input_audio"] = {"data": rng.choice([base64_text(rng, wav()), base64.b64encode(sound_of(rng)).decode()])}
    body = mutate(good, rng, rng.choice([0.0, 0.05, 0.15, 0.4]))
    words = broken(body, rng) if rng.random() < 0.4 else json.dumps(body)
    data = words.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        data = rng.choice([b"\xff\xfe", b"\0"]) + data if rng.random() < 0.5 else words.encode("utf-16",
            "surrogatepass")
    kind = rng.choice(["application/json", "application/json", "text/plain", "application/json; charset=utf-16", "",
        "x" * 300])
    chunked = rng.random() < 0.2
    if chunked:
        at, pieces = 0, b""
        while at < len(data):
            size = rng.choice([1, 10, 1000, 20_000])
            pieces += f"{len(data[at : at + size]):x}\r\n".encode() + data[at : at + size] + b"\r\n"
            at += size
        return case.send(request("POST", JSON_PATHS[which], [("Content-Type", kind), ("Transfer-Encoding", "chunked")],
                                 pieces + b"0\r\n\r\n"))  # fmt: skip
    case.send(request("POST", JSON_PATHS[which], [("Content-Type", kind), ("Content-Length", str(len(data)))], data))
    if rng.random() < 0.1:
        case.split(rng, rng.choice([1, 10, 200]))
    return case


def form(rng: random.Random) -> tuple[bytes, str]:
    """A multipart body and its type; much of it is as it should be."""
    mark = rng.choice(["XX", "XX", "X" * 70, "é", "", "--", '"', "X" * 3000])
    line = f"--{mark}\r\n".encode()
    parts = []
    fields = [
        ("model", "echo"), ("response_format", "verbose_json"), ("timestamp_granularities[]", "word"),
        ("stream", "true"), ("language", "en"), ("temperature", "0"), ("prompt", "x"), ("include[]", "logprobs"),
        ("chunking_strategy", "auto"),
    ]  # fmt: skip
    for name, value in [fields[0], *rng.sample(fields[1:], rng.randrange(3))]:
        if rng.random() < 0.15:
            name = rng.choice(["file", "", "x", "model", "é", "a" * 3000, "[]", 'a"b', "\r\nX: y"])
        if rng.random() < 0.15:
            value = rng.choice(["", "NaN", "1e999", "x" * 70_000, "é\ud800", "\0", "true", "-1"])
        head = rng.choice([f'Content-Disposition: form-data; name="{name}"'] * 6 + [
            f"Content-Disposition: form-data; name={name}", "Content-Disposition: form-data",
            "Content-Disposition: attachment", "", "X: y",
            f'Content-Disposition: form-data; name="{name}"; name="y"', "Content-Disposition: " + "x" * 9000,
            f'Content-Disposition: form-data; name="{name}"\r\nContent-Transfer-Encoding: base64',
            f'Content-Disposition: form-data; name="{name}"\r\nContent-Type: text/plain; charset=nonsense',
        ])  # fmt: skip
        parts.append(head.encode("utf-8", "surrogatepass") + b"\r\n\r\n" + value.encode("utf-8",
            "surrogatepass") + b"\r\n")
    name = rng.choice(["q.wav", "q.mp3", "", "../../x", "x" * 3000, "\0", "é", 'a"b', "q.wav\r\nX: y"])
    kind = rng.choice(["audio/wav", "text/html", "", "multipart/mixed; boundary=YY", "x" * 2000])
    file = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: {kind}\r\n\r\n'.encode()
    inside = sound_of(rng)
    if rng.random() < 0.1:  # one in the other
        inside = b"--YY\r\n" + file + wav() + b"\r\n--YY--\r\n"
    parts += [file + inside + b"\r\n"] * rng.choice([0, 1, 1, 1, 1, 1, 1, 2])
    if rng.random() < 0.1:
        parts = parts * rng.choice([0, 3, 100])
    body = b"".join(line + part for part in parts)
    body += rng.choice([f"--{mark}--\r\n".encode()] * 6 + [b"", b"--", f"--{mark}".encode(),
        f"\r\n--{mark}--\r\n--{mark}--\r\n".encode()])
    kind = rng.choice([f"multipart/form-data; boundary={mark}"] * 6 + [
        "multipart/form-data", "multipart/form-data; boundary=", f"multipart/mixed; boundary={mark}",
        "multipart/form-data; boundary=ZZ", f'multipart/form-data; boundary="{mark}"',
        "application/x-www-form-urlencoded", "application/json", "",
        f"multipart/form-data; boundary={mark}; boundary=ZZ", f"multipart/form-data; charset=x; boundary={mark}",
    ])  # fmt: skip
    return body, kind


def forms(case: Case, rng: random.Random) -> Case:
    """Multipart, whole, cut, or with bytes changed."""
    case.kind = "multipart"
    body, kind = form(rng)
    if rng.random() < 0.2 and body:
        changed = bytearray(body)
        for _ in range(rng.choice([1, 5, 50])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        body = bytes(changed)
    if rng.random() < 0.1:
        body = body[: rng.randrange(len(body) + 1)]
    case.send(request("POST", rng.choice(FORM_PATHS), [("Content-Type", kind), ("Content-Length", str(len(body)))],
        body))
    if rng.random() < 0.1:
        case.split(rng, rng.choice([1, 10, 100]))
    return case
