"""REST refuses what it cannot do as it was asked, with a status, a code, the parameter and words; nothing breaks."""

import base64
import http.client
import io
import json

import numpy as np
import pytest
import soundfile

import vivavoce
from serving.rest_calls import NOISE, SAID, SPEECH, Patient, call, chat, error_of, form, says, wait_for, wav
from vivavoce.audio import Audio
from vivavoce.serving.access import Access, Key, Limits, digest_of
from vivavoce.serving.app import Server, create_app
from vivavoce.serving.core import Core
from vivavoce.serving.rest import endpoint as rest_endpoint
from vivavoce.serving.rest import requests as rest_requests
from vivavoce.serving.rest.jobs import RestLimits
from vivavoce.serving.run import running
from vivavoce.serving.settings import ServerSettings
from vivavoce.systems.signal_models import RATE, SignalModel

LONG = io.BytesIO()
soundfile.write(LONG, np.zeros(700 * 8000, np.float32), 8000, format="FLAC")


def piece(data, kind="input_audio"):
    return {"type": kind, kind: {"data": data, "format": "wav"}}


NAN = base64.b64encode(wav(Audio(np.full((1, 99), np.nan, np.float32), RATE))).decode()


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("audio/speech", {**SPEECH, "model": "tts-1"}, 404, "model_not_found", "model"),
        ("audio/speech", {"model": "tone", "input": "x"}, 400, "missing_required_parameter", "voice"),
        ("audio/speech", {"model": "tone", "voice": "default"}, 400, "missing_required_parameter", "input"),
        ("audio/speech", {"input": "x", "voice": "default"}, 400, "missing_required_parameter", "model"),
        ("audio/speech", {**SPEECH, "voice": "alloy"}, 400, "unknown_voice", "voice"),
        ("audio/speech", {**SPEECH, "input": " \n"}, 400, "empty_string", "input"),
        ("audio/speech", {**SPEECH, "input": 7}, 400, "invalid_type", "input"),
        ("audio/speech", {**SPEECH, "input": "x" * 4097}, 400, "string_too_long", "input"),
        ("audio/speech", {**SPEECH, "input": "\ud800"}, 400, "invalid_value", "input"),
        ("audio/speech", {**SPEECH, "response_format": "ogg"}, 400, "unsupported_value", "response_format"),
        ("audio/speech", {**SPEECH, "stream_format": "ws"}, 400, "unsupported_value", "stream_format"),
        ("audio/speech", {**SPEECH, "speed": 1.5}, 400, "unsupported_value", "speed"),
        ("audio/speech", {**SPEECH, "speed": 9}, 400, "invalid_value", "speed"),
        ("audio/speech", {**SPEECH, "speed": "fast"}, 400, "invalid_value", "speed"),
        ("audio/speech", {**SPEECH, "instructions": "whisper"}, 400, "no_instructions", "instructions"),
        ("audio/speech", {**SPEECH, "respnse_format": "wav"}, 400, "unknown_parameter", "respnse_format"),
        ("audio/speech", b"{", 400, "invalid_json", None), ("audio/speech", b"[1]", 400, "invalid_json", None),
        ("audio/speech", b"", 400, "invalid_json", None), ("audio/speech", b"\xff\xfe", 400, "invalid_json", None),
        ("audio/speech", b'{"speed": NaN}', 400, "invalid_json", None),
        ("audio/speech", b"[" * 20_000, 400, "invalid_json", None),
        ("chat/completions", b"[" + b"1," * 60_000 + b"1]", 400, "invalid_json", None),
        ("audio/speech", b"x" * 70_000, 413, "request_too_large", None),
        ("chat/completions", {"model": "tone"}, 400, "invalid_messages", "messages"),
        ("chat/completions", chat(messages=[]), 400, "invalid_messages", "messages"),
        ("chat/completions", chat(messages="hi"), 400, "invalid_messages", "messages"),
        ("chat/completions", chat(messages=["hi"]), 400, "invalid_type", "messages[0]"),
        ("chat/completions", chat(messages=[{}] * 300), 400, "invalid_messages", "messages"),
        ("chat/completions", chat(messages=[{"role": "user", "content": "hi"}]), 400, "no_text_input",
         "messages[0].content"),
        ("chat/completions", says({"type": "text", "text": "hi"}, *SAID[0]["content"]), 400, "no_text_input",
         "messages[0].content"),
        ("chat/completions", says(*SAID[0]["content"], role="system"), 400, "no_instructions", "messages[0].role"),
        ("chat/completions", chat(messages=[*SAID, {"role": "assistant", "content": "x"}]), 400, "invalid_messages",
         "messages"),
        ("chat/completions", chat(messages=[{"role": "assistant", "content": "x"}, *SAID]), 400, "invalid_messages",
         "messages"),
        ("chat/completions", chat(messages=[{"role": "tool", "content": "x"}]), 400, "no_tools", "messages[0].role"),
        ("chat/completions", chat(messages=[{"role": "king", "content": "x"}]), 400, "unsupported_value",
         "messages[0].role"),
        ("chat/completions", says(), 400, "empty_message", "messages[0].content"),
        ("chat/completions", says({"type": "image_url", "image_url": {"url": "x"}}), 400, "no_image_input",
         "messages[0].content[0].type"),
        ("chat/completions", says(3), 400, "invalid_type", "messages[0].content[0]"),
        ("chat/completions", says({"type": "input_audio"}), 400, "missing_required_parameter",
         "messages[0].content[0].input_audio"),
        ("chat/completions", says({"type": "input_audio", "input_audio": {}}), 400, "missing_required_parameter",
         "messages[0].content[0].input_audio.data"),
        ("chat/completions", says(piece("$$$$")), 400, "invalid_request", "messages[0].content"),
        ("chat/completions", says(piece("")), 400, "invalid_audio", "messages[0].content"),
        ("chat/completions", says(piece("aGVsbG8gdGhlcmU=")), 400, "invalid_audio", "messages[0].content"),
        ("chat/completions", says(piece(NAN)), 400, "invalid_audio", "messages[0].content"),
        ("chat/completions", chat(modalities=["smell"]), 400, "unsupported_value", "modalities"),
        ("chat/completions", chat(modalities=["text", "audio"]), 400, "missing_required_parameter", "audio"),
        ("chat/completions", chat(modalities=["audio"], audio={"voice": "default"}), 400,
         "missing_required_parameter", "audio.format"),
        ("chat/completions", chat(modalities=["audio"], audio={"format": "wav", "voice": "alloy"}), 400,
         "unknown_voice", "audio.voice"),
        ("chat/completions", chat(modalities=["audio"], audio={"format": "wav"}, stream=True), 400,
         "unsupported_value", "audio.format"),
        ("chat/completions", chat(audio={"format": "wav"}), 400, "invalid_value", "audio"),
        ("chat/completions", chat(stream="yes"), 400, "invalid_type", "stream"),
        ("chat/completions", chat(stream_options={"include_usage": True}), 400, "invalid_value", "stream_options"),
        ("chat/completions", chat(n=2), 400, "unsupported_value", "n"),
        ("chat/completions", chat(temperature=0.7), 400, "unsupported_value", "temperature"),
        ("chat/completions", chat(top_p=0.5), 400, "unsupported_value", "top_p"),
        ("chat/completions", chat(tools=[{"type": "function"}]), 400, "no_tools", "tools"),
        ("chat/completions", chat(logprobs=True), 400, "no_logprobs", "logprobs"),
        ("chat/completions", chat(stop=["x"]), 400, "unsupported_value", "stop"),
        ("chat/completions", chat(response_format={"type": "json_object"}), 400, "unsupported_value",
         "response_format"),
        ("chat/completions", chat(max_tokens=0), 400, "invalid_value", "max_tokens"),
        ("chat/completions", chat(seed=1.5), 400, "invalid_value", "seed"),
        ("chat/completions", chat(best_of=3), 400, "unknown_parameter", "best_of"),
        ("audio/transcriptions", {"model": "tone"}, 400, "invalid_content_type", None),
        ("audio/transcriptions", ([("model", "tone")],), 400, "missing_required_parameter", "file"),
        ("audio/transcriptions", ([("model", "tone"), ("file", "x")],), 400, "invalid_type", "file"),
        ("audio/transcriptions", ([], NOISE), 400, "missing_required_parameter", "model"),
        ("audio/transcriptions", ([("model", "whisper-1")], NOISE), 404, "model_not_found", "model"),
        ("audio/transcriptions", ([("model", "tone")], b"no sound at all"), 400, "invalid_audio", "file"),
        ("audio/transcriptions", ([("model", "tone")], b""), 400, "invalid_audio", "file"),
        ("audio/transcriptions", ([("model", "tone")], NOISE[:-500]), 400, "invalid_audio", "file"),
        ("audio/transcriptions", ([("model", "tone")], LONG.getvalue()), 400, "invalid_audio", "file"),
        ("audio/transcriptions", ([("model", "tone"), ("model", "tone")], NOISE), 400, "invalid_form", "model"),
        ("audio/transcriptions", ([("model", "tone"), ("response_format", "diarized_json")], NOISE), 400,
         "no_task_diarize", "response_format"),
        ("audio/transcriptions", ([("model", "tone"), ("response_format", "xml")], NOISE), 400, "unsupported_value",
         "response_format"),
        ("audio/transcriptions", ([("model", "tone"), ("timestamp_granularities[]", "word")], NOISE), 400,
         "unsupported_value", "timestamp_granularities"),
        ("audio/transcriptions", ([("model", "tone"), ("stream", "true"), ("response_format", "srt")], NOISE), 400,
         "unsupported_value", "response_format"),
        ("audio/transcriptions", ([("model", "tone"), ("stream", "maybe")], NOISE), 400, "invalid_type", "stream"),
        ("audio/transcriptions", ([("model", "tone"), ("include[]", "logprobs")], NOISE), 400, "no_logprobs",
         "include"),
        ("audio/transcriptions", ([("model", "tone"), ("prompt", "digits")], NOISE), 400, "no_instructions", "prompt"),
        ("audio/transcriptions", ([("model", "tone"), ("temperature", "0.5")], NOISE), 400, "unsupported_value",
         "temperature"),
        ("audio/transcriptions", ([("model", "tone"), ("chunking_strategy", '{"type": "server_vad"}')], NOISE), 400,
         "unsupported_value", "chunking_strategy"),
        ("audio/transcriptions", ([(f"x{n}", "y") for n in range(99)], NOISE), 400, "invalid_form", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_wrong_is_said_with_a_code(one_server, path, body, status, code, param):
    found, text, _ = call(one_server, f"/v1/{path}", body)
    error = json.loads(text)["error"]
    assert (found, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error" and len(error["message"]) > 8


@pytest.fixture(scope="module")
def one_server():
    core = Core(vivavoce.load("tone"), "tone", ServerSettings(rows=1))
    with running(create_app(Server(core, drain=0.0), ("rest",))) as port:
        yield port


def test_a_form_cut_anywhere_is_an_error_and_nothing_worse(one_server):
    data, kind = form([("model", "tone")], NOISE)
    for at in (0, 3, 30, 60, 90, 150, 5000):
        status, body, _ = call(one_server, "/v1/audio/transcriptions", data[:at], {"Content-Type": kind}, "POST")
        assert status == 400 and json.loads(body)["error"]["code"]
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=YY"):
        status, body, _ = call(one_server, "/v1/audio/transcriptions", data, {"Content-Type": kind}, "POST")
        assert status == 400 and json.loads(body)["error"]["code"]


def test_a_task_that_the_model_lacks_is_named(serve):
    class Mute(SignalModel):
        tasks = {"answer": ("audio", "text")}  # noqa: RUF012

    port, _ = serve(Mute("tone"), ("rest",))
    assert error_of(call(port, "/v1/audio/speech", SPEECH)) == (400, "no_task_speak")
    upload = ([("model", "tone")], NOISE)
    assert error_of(call(port, "/v1/audio/transcriptions", upload)) == (400, "no_task_transcribe")
    assert error_of(call(port, "/v1/audio/translations", upload)) == (400, "no_task_translate")
    both = says({"type": "text", "text": "hi"}, *SAID[0]["content"])
    assert error_of(call(port, "/v1/chat/completions", both)) == (400, "mixed_input")


def test_keys_and_their_scopes(serve):
    ears = Key("ears", digest_of("ears"), ("talk",))
    keys = {digest_of("all"): Key("all", digest_of("all")), ears.sha256: ears}
    port, _ = serve("tone", ("rest",), access=Access(keys))
    assert error_of(call(port, "/v1/audio/speech", SPEECH)) == (401, "missing_api_key")
    assert error_of(call(port, "/v1/models")) == (401, "missing_api_key")
    assert error_of(call(port, "/v1/audio/speech", SPEECH, {"Authorization": "Bearer ears"})) == (403, "scope_missing")
    assert call(port, "/v1/models", headers={"Authorization": "Bearer ears"})[0] == 200
    assert call(port, "/v1/audio/speech", SPEECH, {"X-API-Key": "all"})[0] == 200
    evil = {"Origin": "https://evil.example", "Authorization": "Bearer all"}
    assert error_of(call(port, "/v1/audio/speech", SPEECH, evil)) == (403, "origin_not_allowed")


def test_uploads_are_bounded_however_they_are_sent(serve):
    port, _ = serve("tone", ("rest",), access=Access(limits=Limits(body=200_000)))
    data, kind = form([("model", "tone")], bytes(400_000))
    found = call(port, "/v1/audio/transcriptions", data, {"Content-Type": kind})
    assert error_of(found) == (413, "request_too_large")

    def chunks():
        for at in range(0, len(data), 10_000):
            yield data[at : at + 10_000]

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/audio/transcriptions", chunks(), {"Content-Type": kind}, encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 413 and json.loads(answer.read())["error"]["code"] == "request_too_large"


def test_all_uploads_together_are_bounded(serve, monkeypatch):
    monkeypatch.setattr(rest_endpoint, "LIMITS", RestLimits(held=100_000))
    model = Patient()
    port, _ = serve(model, ("rest",))
    data, kind = form([("model", "tone")], NOISE)  # 77 kB
    assert 50_000 < len(data) < 100_000
    first = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    first.request("POST", "/v1/audio/transcriptions", data, {"Content-Type": kind})
    wait_for(lambda: model.asked)
    status, body, headers = call(port, "/v1/audio/transcriptions", data, {"Content-Type": kind})
    assert (status, json.loads(body)["error"]["code"], headers["retry-after"]) == (429, "too_many_uploads", "10")
    first.close()
    assert model.left.wait(60)
    wait_for(lambda: call(port, "/v1/audio/transcriptions", ([("model", "x")], NOISE))[0] == 404)


def test_a_body_that_does_not_come_is_given_up(serve, monkeypatch):
    monkeypatch.setattr(rest_requests, "IDLE", 0.2)
    port, _ = serve("tone", ("rest",))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("POST", "/v1/audio/speech")
    connection.putheader("Content-Length", "100")
    connection.putheader("Expect", "100-continue")
    connection.endheaders(b"{")
    answer = connection.getresponse()
    assert answer.status == 408 and json.loads(answer.read())["error"]["code"] == "request_timeout"
