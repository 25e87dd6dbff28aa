"""Replies of REST while they are made: bytes come at once, who leaves ends them, who waits is counted."""

import http.client
import json

import pytest

from serving.rest_calls import NOISE, SPEECH, Patient, call, chat, error_of, events, form, says, wait_for
from vivavoce.serving.access import Access, Key, digest_of
from vivavoce.serving.dialects import rest as rest_dialect
from vivavoce.serving.rest import endpoint as rest_endpoint
from vivavoce.serving.rest.jobs import RestLimits
from vivavoce.serving.sound_formats import samples_of
from vivavoce.systems.signal_models import FRAME


def test_bytes_come_while_the_model_speaks(serve):
    model = Patient()
    port, _ = serve(model, ("rest",))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/audio/speech", json.dumps({**SPEECH, "response_format": "wav"}))
    model.go.release()
    answer = connection.getresponse()
    assert len(answer.read(44 + 2 * FRAME)) == 44 + 2 * FRAME
    for _ in range(3):  # each frame once it is made, and none before
        model.go.release()
        assert samples_of(answer.read(2 * FRAME)).tolist() == [0.25] * FRAME
    assert not model.left.is_set()
    connection.close()
    answer.close()
    assert model.left.wait(60)


@pytest.mark.parametrize("what", ["speech", "transcription", "chat", "chat stream"])
def test_who_goes_away_ends_the_reply(serve, what):
    model = Patient()
    port, _ = serve(model, ("rest",))
    upload, kind = form([("model", "tone")], NOISE)
    path, body, headers = {
        "speech": ("audio/speech", json.dumps(SPEECH), {}),
        "transcription": ("audio/transcriptions", upload, {"Content-Type": kind}),
        "chat": ("chat/completions", json.dumps(chat()), {}),
        "chat stream": ("chat/completions", json.dumps(chat(stream=True)), {}),
    }[what]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", f"/v1/{path}", body, headers)
    wait_for(lambda: model.asked)
    model.go.release()
    connection.close()  # without a word, before or in the middle of the answer
    assert model.left.wait(60)


def test_only_so_many_wait(serve, monkeypatch):
    monkeypatch.setattr(rest_endpoint, "LIMITS", RestLimits(waiting=1))
    model = Patient()
    port, _ = serve(model, ("rest",))
    connections = []
    for number in range(3):  # two run, one waits
        connections.append(http.client.HTTPConnection("127.0.0.1", port, timeout=30))
        connections[-1].request("POST", "/v1/audio/speech", json.dumps({**SPEECH, "response_format": "pcm"}))
        wait_for(lambda number=number: model.asked == min(2, number + 1))
    status, body, headers = 200, b"", {}
    wait_for(lambda: call(port, "/health")[0] == 200)
    for _ in range(50):  # the third is on its way
        status, body, headers = call(port, "/v1/chat/completions", chat())
        if status == 429:
            break
    assert (status, json.loads(body)["error"]["code"]) == (429, "too_many_requests")
    assert json.loads(body)["error"]["type"] == "rate_limit_error" and int(headers["retry-after"]) >= 1
    connections[0].close()
    wait_for(lambda: model.asked == 3)  # the one that waited has its worker
    for connection in connections:
        connection.close()


def test_one_client_has_so_many_requests(serve, monkeypatch):
    monkeypatch.setattr(rest_endpoint, "LIMITS", RestLimits(each=1))
    model = Patient()
    keys = {digest_of(k): Key(k, digest_of(k)) for k in ("me", "you")}
    port, _ = serve(model, ("rest",), access=Access(keys))
    me, you = {"Authorization": "Bearer me"}, {"Authorization": "Bearer you"}
    first = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    first.request("POST", "/v1/audio/speech", json.dumps(SPEECH), me)
    wait_for(lambda: model.asked)
    assert error_of(call(port, "/v1/audio/speech", {**SPEECH, "speed": 2}, me)) == (429, "too_many_requests")
    assert error_of(call(port, "/v1/audio/speech", {**SPEECH, "speed": 2}, you)) == (400, "unsupported_value")
    first.close()
    assert model.left.wait(60)
    wait_for(lambda: error_of(call(port, "/v1/audio/speech", {**SPEECH, "speed": 2}, me))[0] == 400)


def test_who_does_not_read_holds_no_worker(serve, monkeypatch):
    monkeypatch.setattr(rest_endpoint, "LIMITS", RestLimits(unsent=64 * 1024, patience=0.5))
    model = Patient()
    port, _ = serve(model, ("rest",))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/audio/speech", json.dumps({**SPEECH, "response_format": "wav"}))
    model.go.release(100_000)
    assert model.left.wait(60)
    connection.close()


def test_a_fault_of_the_model_is_told_before_and_in_the_middle(serve, capfd):
    port, _ = serve(Patient(steps=100, fails_at=0), ("rest",))
    for path, body in (("audio/speech", SPEECH), ("chat/completions", chat())):
        found = call(port, f"/v1/{path}", body)
        assert error_of(found) == (500, "server_error") and b"out of memory" not in found[1]
    assert "out of memory" in capfd.readouterr().err
    port, _ = serve(Patient(steps=100, fails_at=2), ("rest",))
    asked = {**SPEECH, "response_format": "pcm", "stream_format": "sse"}
    *deltas, last = events(call(port, "/v1/audio/speech", asked)[1])
    assert len(deltas) == 2 and last["error"]["code"] == "server_error"
    with pytest.raises(http.client.IncompleteRead):  # a file that is not whole must not look as if it were
        call(port, "/v1/audio/speech", {**SPEECH, "response_format": "pcm"})


def test_a_server_that_stops_says_so(serve):
    model = Patient(steps=1)
    port, server = serve(model, ("rest",))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    asked = {**SPEECH, "response_format": "pcm", "stream_format": "sse"}
    connection.request("POST", "/v1/audio/speech", json.dumps(asked))
    answer = connection.getresponse()
    server.core.stopping = True
    assert events(answer.read())[-1]["error"]["code"] == "stopping"
    status, body, headers = call(port, "/v1/audio/speech", SPEECH)
    assert (status, json.loads(body)["error"]["code"], headers["retry-after"]) == (503, "stopping", "5")


def test_nothing_is_left_behind(serve, monkeypatch):
    """After many requests, good and bad, no place is taken, no job runs, and what is kept is bounded."""
    made = []
    monkeypatch.setattr(rest_dialect, "Rest", lambda server: made.append(rest_endpoint.Rest(server)) or made[0])
    port, _ = serve("tone", ("rest",))
    rest = made[0]
    for number in range(40):
        call(port, "/v1/audio/speech", {**SPEECH, "speed": 1 + number % 2})
        call(port, "/v1/chat/completions", chat(max_tokens=1) if number % 2 else says())
    wait_for(lambda: not rest.jobs.running and not rest.jobs.requests)  # the last one's end may follow its answer
    assert len(rest.kept) == 20 and rest.held.size == 0
