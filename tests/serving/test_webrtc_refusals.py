"""What WebRTC calls are refused, what they may not do, and how they end: no row, no key's place, no thread is left."""

import asyncio
import contextlib
import http.client
import json
import sys
import threading
import time

import aioice.ice
import pytest
import websockets

from serving.realtime_clients.caller import Caller
from serving.realtime_clients.raw import run
from serving.test_webrtc_parts import OFFER
from serving.waiting import nobody_left
from vivavoce.serving.access import Access, Key, digest_of
from vivavoce.serving.webrtc import call as calls

CALLS = "/v1/realtime/calls"
SDP = {"Content-Type": "application/sdp"}


def request(port, path=CALLS, body=OFFER, headers=SDP, method="POST"):
    """(status, headers, body) of a request without a connection to follow."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(link):
        link.request(method, path, body, headers)
        answer = link.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def refusal(port, **options):
    """(status, code) of a request that is refused."""
    status, _, body = request(port, **options)
    return status, json.loads(body)["error"]["code"]


def form(**parts):
    """A form's headers and body."""
    head = '--x\r\nContent-Disposition: form-data; name="{}"\r\n\r\n'
    body = "".join(head.format(name) + value + "\r\n" for name, value in parts.items())
    return {"headers": {"Content-Type": "multipart/form-data; boundary=x"}, "body": body + "--x--\r\n"}


def gone(server, seconds=60.0):
    """Wait until nothing is left of any call."""
    nobody_left(server, seconds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not server.access.open and not [t for t in threading.enumerate() if t.name == "audio-decoder"]:
            return
        time.sleep(0.02)
    raise AssertionError(f"left: {server.access.open}, {[t.name for t in threading.enumerate()]}")


def test_what_is_no_offer_is_refused_with_its_code(ring):
    port, server = ring("tone")
    for options, expected in (
        ({"body": "hello"}, (400, "invalid_offer")),
        ({"body": b"\xff\xfe"}, (400, "invalid_offer")),
        ({"body": OFFER.replace("sendrecv", "inactive")}, (400, "no_audio")),
        ({"body": OFFER}, (201, None)),
        ({"body": OFFER.replace("a=mid:1", "a=mid:0")}, (400, "invalid_offer")),
        ({"body": OFFER.replace("BUNDLE 0 1", "BUNDLE 7 0 1")}, (400, "invalid_offer")),
        ({"body": "v=0\n" + 2**17 * "x"}, (400, "offer_too_large")),
        ({"body": 2**21 * "x"}, (413, "request_too_large")),
        ({"body": json.dumps({"sdp": OFFER}), "headers": {"Content-Type": "application/json"}},
         (400, "invalid_content_type")),
        (form(session="{}"), (400, "missing_required_parameter")),
        (form(sdp=OFFER, session="{"), (400, "invalid_json")),
        (form(sdp=OFFER, session="[]"), (400, "invalid_type")),
        (form(sdp=OFFER, session='{"fly": 1}'), (400, "unknown_parameter")),
        (form(sdp=OFFER, session='{"type": "realtime", "audio": {"output": {"speed": 1.5}}}'), (400, "unsupported")),
        ({**form(sdp=OFFER), "body": "no form"}, (400, "invalid_form")),
        ({"path": CALLS + "?model=other&strict=1"}, (400, "model_not_found")),
        ({"path": "/v1/realtime?model=tone", "body": ""}, (400, "invalid_offer")),
        ({"path": CALLS + "/rtc_nobody/hangup"}, (404, "call_not_found")),
        ({"path": CALLS + "/rtc_nobody/accept"}, (400, "sip_not_supported")),
        ({"path": CALLS + "/rtc_nobody/refer"}, (400, "sip_not_supported")),
        ({"path": CALLS + "/rtc_nobody/reject"}, (400, "sip_not_supported")),
        ({"method": "GET"}, (405, "method_not_allowed")),
    ):  # fmt: skip
        status, _, body = request(port, **options)
        code = None if status == 201 else json.loads(body)["error"]["code"]
        assert (status, code) == expected, (options, body)
    assert len(server.access.open) == 1  # the one that could be answered waits for somebody to come


def test_keys_origins_and_numbers(ring):
    keys = {digest_of(name): Key(name, digest_of(name), scopes, 1) for name, scopes in (
        ("talker", ("talk",)), ("other", ("talk",)), ("reader", ("rest",)),
    )}  # fmt: skip
    port, server = ring("tone", access=Access(keys, origins=("https://example.org",)))

    def bearer(name):
        return {**SDP, "Authorization": f"Bearer {name}"}

    assert refusal(port) == (401, "missing_api_key")
    assert refusal(port, headers=bearer("nobody")) == (401, "invalid_api_key")
    assert refusal(port, headers=bearer("reader")) == (403, "scope_missing")
    assert refusal(port, headers={**bearer("talker"), "Origin": "https://evil.org"}) == (403, "origin_not_allowed")

    async def go():
        async with Caller(port, key="talker") as caller:
            await caller.call()
            assert refusal(port, headers=bearer("talker")) == (429, "too_many_conversations")
            hangup = f"{CALLS}/{caller.id}/hangup"
            assert refusal(port, path=hangup, body="") == (401, "missing_api_key")
            assert refusal(port, path=hangup, body="", headers=bearer("other")) == (404, "call_not_found")
            url = f"ws://127.0.0.1:{port}/v1/realtime?call_id={caller.id}"
            async with websockets.connect(url, additional_headers={"Authorization": "Bearer other"}) as watcher:
                assert json.loads(await watcher.recv())["error"]["code"] == "call_not_found"
                await watcher.wait_closed()
                assert watcher.close_code == 1008
            assert request(port, path=hangup, body="", headers=bearer("talker"))[0] == 200

    run(go())
    gone(server)
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    for origin, status in (("https://example.org", 200), ("https://evil.org", 400)):
        found = request(port, body=None, headers={"Origin": origin, **asked}, method="OPTIONS")
        allowed = {name.lower(): value for name, value in found[1].items()}.get("access-control-allow-origin")
        assert (found[0], allowed) == (status, origin if status == 200 else None)
    found = request(port, body="x", headers={**bearer("talker"), "Origin": "https://example.org"})
    told = {name.lower(): value for name, value in found[1].items()}
    assert told["access-control-allow-origin"] == "https://example.org"
    assert "Location" in told["access-control-expose-headers"]


def test_who_comes_when_all_rows_are_taken_waits_and_then_talks(ring):
    port, server = ring("tone", rows=1, queue=1)

    async def go():
        async with Caller(port) as first, Caller(port) as second, Caller(port) as third:
            await first.call()
            await second.call(created=False)
            place = await second.until("vivavoce.queue")
            assert (place["position"], place["eta_seconds"]) == (1, None) and not second.of("session.created")
            status, headers, body = request(port)
            assert (status, json.loads(body)["error"]["code"]) == (429, "queue_full")
            assert int(headers.get("Retry-After") or headers["retry-after"]) >= 1
            await first.close()
            await second.until("session.created")
            # Whoever leaves while waiting leaves the queue, too.
            await third.call(created=False)
            await third.until("vivavoce.queue")
            await third.close()
            while len(server.core.queue):
                await asyncio.sleep(0.02)
            assert len(server.core.live) == 1

    run(go())
    gone(server)


def test_an_offer_that_nobody_follows_up_costs_no_row(ring, monkeypatch):
    monkeypatch.setattr(calls, "CONNECT", 3.0)
    port, server = ring("tone", rows=1, queue=1)
    for _ in range(2):  # one for the row that there is, one that would wait
        assert request(port)[0] == 201
    assert refusal(port) == (429, "queue_full")
    assert not server.core.live and len(server.core.lockstep.free) == 1
    gone(server)
    monkeypatch.setattr(calls, "CONNECT", 0.1)
    assert request(port)[0] == 201
    gone(server)


def test_who_vanishes_without_a_word_frees_the_row(ring, monkeypatch):
    """As when a laptop is shut: nothing comes any more, and checks are not answered."""
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.3)
    monkeypatch.setattr(aioice.ice, "CONSENT_FAILURES", 2)
    port, server = ring("tone")

    async def go():
        caller = Caller(port)
        await caller.call()
        connection = caller.peer.sctp.transport.transport._connection
        for protocol in connection._protocols:  # the cable is pulled
            protocol.transport.sendto = lambda *packet: None
            protocol.datagram_received = lambda *packet: None
        await asyncio.to_thread(nobody_left, server)
        await caller.close()

    run(go())
    gone(server)


def test_sound_faster_than_time_ends_the_call(ring, monkeypatch):
    monkeypatch.setattr(calls, "TOO_MUCH", 1.0)
    port, server = ring("tone")

    async def go():
        async with Caller(port, speed=20.0) as caller:
            await caller.call(created=False)
            assert (await caller.until("error"))["error"]["code"] == "too_fast"

    run(go())
    gone(server)


def test_a_session_that_is_over_says_why_and_hangs_up(ring):
    port, server = ring("tone", session=4.0, warn=3.0)

    async def go():
        async with Caller(port) as caller:
            await caller.call()
            await caller.until("vivavoce.session.expiring")
            assert (await caller.until("error"))["error"]["code"] == "session_expired"
            while caller.peer.connectionState == "connected":
                await asyncio.sleep(0.02)

    run(go())
    gone(server)


def test_a_server_that_stops_ends_its_calls(ring):
    port, server = ring("tone")
    stopping = threading.Event()

    async def go():
        async with Caller(port) as caller:
            await caller.call()
            loop = next(iter(server.core.live.values()))._wake._loop
            asyncio.run_coroutine_threadsafe(server.core.stop(), loop)
            assert (await caller.until("error"))["error"]["code"] == "stopping"
            stopping.set()
            assert refusal(port) == (503, "stopping")

    run(go())
    assert stopping.is_set()
    gone(server)


def test_without_its_extra_a_call_says_what_to_install(ring, monkeypatch):
    port, _ = ring("tone", dialects=("realtime", "rest"))
    there = json.loads(request(port, path="/v1/capabilities", body=None, method="GET", headers={})[2])["data"][0]
    monkeypatch.setitem(sys.modules, "aiortc", None)
    status, headers, body = request(port)
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (501, "webrtc_not_installed")
    assert "pip install 'vivavoce[webrtc]'" in error["message"]
    assert headers.get("x-should-retry") == "false"
    away = json.loads(request(port, path="/v1/capabilities", body=None, method="GET", headers={})[2])["data"][0]
    assert (there["endpoints"][CALLS], away["endpoints"][CALLS]) == (True, False)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_offers_cost_nothing(ring, monkeypatch, seed):
    """What is cut, repeated, exchanged or made strange is answered or refused, never a fault of the server's."""
    import random

    monkeypatch.setattr(calls, "CONNECT", 0.2)
    port, server = ring("tone")
    chance = random.Random(seed)
    lines = OFFER.splitlines()
    for _ in range(25):
        damaged = lines[:]
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(1, len(damaged))
            kind = chance.randrange(5)
            if kind == 0:
                del damaged[at]
            elif kind == 1:
                damaged.insert(at, chance.choice(damaged))
            elif kind == 2:
                other = chance.randrange(1, len(damaged))
                damaged[at], damaged[other] = damaged[other], damaged[at]
            elif kind == 3:
                damaged[at] = damaged[at][: chance.randrange(len(damaged[at]) + 1)]
            else:
                letter = chance.randrange(len(damaged[at]) + 1)
                damaged[at] = damaged[at][:letter] + chance.choice(["-1", "é", "99999999999", ":", " ", "\0", "{"])
        status, _, body = request(port, body="\r\n".join(damaged).encode())
        if status != 201:
            error = json.loads(body)["error"]
            assert status in (400, 429) and error["code"] and error["message"], (status, body)
    assert not server.core.live
    gone(server)
