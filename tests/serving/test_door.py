"""Connections that are nobody's conversation: each has an end, takes no room, and is told why where it can be."""

import asyncio
import contextlib
import gc
import io
import json
import select
import socket
import time
from dataclasses import replace

import numpy as np
import pytest
import soundfile

import vivavoce
from serving.fuzz.case import CLOSE, PING, TEXT, frame, request, text, upgrade
from serving.fuzz.runner import serving
from serving.fuzz.watch import watching
from serving.moshi_clients.raw import PATIENT
from serving.realtime_clients.raw import base64_of, connected, run, silence
from serving.waiting import nobody_left
from vivavoce.serving.conversation import Client
from vivavoce.serving.core import Core
from vivavoce.serving.door import Doorkeeper, Patience
from vivavoce.serving.input_ring import InputRing
from vivavoce.serving.json_text import DEEPEST, Json, parsed
from vivavoce.serving.realtime.input import GIVEN, Input
from vivavoce.serving.realtime.items import MOST_ITEMS
from vivavoce.serving.realtime.link import Link
from vivavoce.serving.realtime.settings import Invalid
from vivavoce.serving.settings import ServerSettings
from vivavoce.systems.signal_models import SignalModel

QUICK = Patience(head=1.0, stall=1.0, linger=1.0, connections=6)


@pytest.fixture
def door(request):
    """(port, server, its connections, what went wrong) of a server with little patience; nothing may go wrong."""
    patience = getattr(request, "param", QUICK)
    with serving("echo", door=patience, ws_ping_interval=100.0) as (port, server, loop), watching(loop) as watch:
        yield port, server, watch
        assert not watch.found, watch.found[:2]


def opened(port, data=b"", room=None):
    """A socket with something sent."""
    made = socket.socket()
    if room is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    made.connect(("127.0.0.1", port))
    made.settimeout(60)
    made.sendall(data)
    return made


def answer(made):
    """(status, code) of what comes until the end; (None, None) of nothing."""
    data = b""
    while more := made.recv(65_536):
        data += more
    if not data:
        return None, None
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body)["error"]["code"]


def ended(made, seconds=60.0):
    """Whether the server cuts the connection off, whose client neither reads nor says anything."""
    poll = select.poll()
    poll.register(made, 0)  # errors and the end are told in any case
    return bool(poll.poll(1000 * seconds))


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\nHost", upgrade("/api/chat")[:-2],
    b"POST /v1/audio/speech HTT"])
def test_a_head_that_does_not_come_is_not_waited_for(door, head):
    port, _, _ = door
    with opened(port, head) as made:
        assert answer(made) == (408, "request_timeout")


def test_a_body_that_goes_on_after_its_answer_is_not_read_for_ever(door):
    port, _, _ = door
    with opened(port, request("POST", "/nowhere", [("Content-Length", "1000000")])) as made:
        assert b"404" in made.recv(65_536)
        made.settimeout(0.1)
        end, closed = time.monotonic() + 20, False
        while not closed and time.monotonic() < end:
            try:
                made.sendall(b"x")
                closed = made.recv(65_536) == b""
            except TimeoutError:
                continue
            except OSError:
                closed = True
        assert closed


@pytest.mark.parametrize("path", ["/v1/capabilities", "/metrics", "/v1/audio/speech"])
def test_nonsense_behind_a_request_is_no_fault_of_the_servers(door, path):
    port, _, _ = door
    body = b'{"model": "echo", "input": "' + b"one two " * 50 + b'", "voice": "default", "response_format": "pcm"}'
    asks = request("POST", path, [], body) if "speech" in path else request("GET", path)
    for pause in (0.0, 0.0, 0.02):
        with opened(port, asks if pause else asks + b"\0 nonsense\r\n\r\n") as made:
            time.sleep(pause)
            with contextlib.suppress(OSError):
                made.sendall(b"\0 nonsense\r\n\r\n")
                while made.recv(65_536):
                    pass
    time.sleep(0.2)


@pytest.mark.parametrize("door", [replace(QUICK, head=100.0)], indirect=True)
def test_one_address_has_so_many_connections_and_no_more(door):
    port, _, _ = door
    many = [opened(port) for _ in range(QUICK.connections)]
    with opened(port) as one:
        assert answer(one) == (503, "too_many_connections")
    for made in many:
        made.close()  # and then there is room again
    end, found = time.monotonic() + 20, b""
    while b"200 OK" not in found and time.monotonic() < end:
        with contextlib.suppress(ConnectionError), opened(port) as one:
            one.sendall(request("GET", "/health", [("Connection", "close")]))
            found = one.recv(65_536)
    assert b"200 OK" in found


def test_all_together_have_what_the_process_can_open():
    keeper = Doorkeeper(Patience(connections=1000, all=10))
    peers = [type("Peer", (), {"client": (f"10.0.0.{at}", 1)}) for at in range(11)]
    assert keeper.full(peers, "10.0.0.3") and not keeper.full(peers[:10], "10.0.0.3")
    assert Doorkeeper(Patience()).most < 10**6


@pytest.mark.parametrize("opening", [
    upgrade("/api/chat").replace(b"GET", b"HEAD", 1), upgrade("/v1/realtime").replace(b"GET", b"get", 1),
    upgrade("/v1/live/sessions?" + "a=b&" * 3000), upgrade("/v1/realtime", [(f"X-{at}", "y") for at in range(150)]),
    upgrade("/v1/realtime", [("Cookie", "x" * 9000)]), upgrade("/v1/realtime", key="é"),
    upgrade("/v1/realtime", [("Sec-WebSocket-Protocol", "é")]),
    upgrade("/v1/realtime", [("Sec-WebSocket-Extensions", "é; é")]),
])  # fmt: skip
def test_an_opening_that_cannot_be_read_is_answered(door, opening):
    port, _, _ = door
    with opened(port, opening) as made:
        assert answer(made) == (400, "invalid_handshake")


def test_bad_text_and_a_goodbye_in_one_piece_end_the_connection(door):
    port, server, _ = door
    for data in (frame(TEXT, b"x\x80") + frame(CLOSE, b"\x03\xe8"), frame(CLOSE, b"\x03\xe8") + frame(TEXT, b"x\x80")):
        with opened(port, upgrade("/v1/realtime")) as made:
            assert b"101" in made.recv(200)
            made.sendall(data)
            with contextlib.suppress(ConnectionError):
                while made.recv(65_536):
                    pass
    nobody_left(server)


def test_who_does_not_answer_a_goodbye_is_not_waited_for(door):
    port, server, _ = door
    with opened(port, upgrade("/v1/realtime?resume=x")) as made:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while made.recv(65_536):
                pass
        assert time.monotonic() - began < 8.0  # uvicorn waits for ten seconds
    assert not server.core.live


def test_who_never_reads_is_cut_off(door):
    port, server, _ = door
    with opened(port, room=4096) as plain:
        with contextlib.suppress(ConnectionError):  # it may be cut off while it still sends
            plain.sendall(request("GET", "/metrics") * 3000)  # answers that nobody takes
        assert ended(plain)
    part = {"type": "input_audio", "audio": "QEBA" * 100_000}
    item = {"id": "mine", "type": "message", "role": "user", "content": [part]}
    with opened(port, upgrade("/v1/realtime"), room=4096) as deaf:
        with contextlib.suppress(ConnectionError):
            deaf.sendall(text(json.dumps({"type": "conversation.item.create", "item": item})))
            deaf.sendall(text(json.dumps({"type": "conversation.item.retrieve", "item_id": "mine"})) * 60)
        assert ended(deaf)
    nobody_left(server)


def test_pings_of_who_does_not_read_are_not_kept(door):
    port, _, _ = door
    with opened(port, upgrade("/v1/realtime"), room=4096) as made:
        sent, waiting = 0, [0]
        assert b"101" in made.recv(200)
        (own,) = [one for one in gc.get_objects() if type(one).__name__ == "Socket" and not one.transport.is_closing()]
        with contextlib.suppress(OSError):  # cut off, or not taken any more: both are well
            for _ in range(4000):
                sent += made.send(frame(PING, b"x" * 125) * 100)
                waiting.append(own.transport.get_write_buffer_size())
        assert sent > 8 * 2**20 and max(waiting) < 2**20


# -- JSON --


@pytest.mark.parametrize("words", ["NaN", "[Infinity]", '{"a": 1e999}', "[" * (DEEPEST + 2) + "]" * (DEEPEST + 2),
    "[" * 10**5,
                                   "1" * 5000, "", "{", None])  # fmt: skip
def test_json_that_others_cannot_read_or_copy_is_none(words):
    with pytest.raises(ValueError, match=r"."):
        parsed(words)


def test_json_that_is_some():
    assert parsed(b'{"a": [1, 2.5, "\\ud800", null]}') == {"a": [1, 2.5, "\ud800", None]}
    assert parsed("[" * DEEPEST + "]" * DEEPEST)
    assert Json({"a": "\ud800é"}).body == b'{"a":"\\ud800\\u00e9"}'


@pytest.mark.parametrize(("path", "body", "status"), [
    ("/v1/realtime/client_secrets", '{"session": {"type": "realtime", "truncation": NaN}}', 400),
    ("/v1/realtime/client_secrets", '{"session": {"type": "realtime", "truncation": 1e999}}', 400),
    ("/v1/realtime/client_secrets", '{"session": {"type": "realtime", "truncation": ' + "[" * 500 + "]" * 500 + "}}",
    400),
    ("/v1/realtime/client_secrets", '{"session": {"type": "realtime", "\\ud800": 1}}', 400),
    ("/v1/realtime/client_secrets", '{"session": {"type": "realtime", "instructions": "\\ud800"}}', 200),
    ("/v1/audio/speech", '{"model": "echo", "input": "x", "voice": "default", "\\ud800": 1}', 400),
    ("/v1/audio/speech", '{"model": "echo", "input": "x", "voice": {"id": "\\ud800"}}', 400),
    ("/v1/chat/completions", '{"model": "echo", "modalities": ["\\ud800"], "messages": []}', 400),
])  # fmt: skip
def test_json_that_hurts_is_refused_and_half_characters_come_back_as_they_were(door, path, body, status):
    port, _, _ = door
    with opened(port, request("POST", path, [("Connection", "close")], body.encode())) as made:
        data = b""
        while more := made.recv(65_536):
            data += more
    assert int(data.split(b" ")[1]) == status, data[:300]


def test_a_body_that_does_not_come_is_given_up_by_who_makes_keys(door, monkeypatch):
    port, _, _ = door
    monkeypatch.setattr("vivavoce.serving.dialects.realtime.BODY_SECONDS", 0.5)
    with opened(port, request("POST", "/v1/realtime/client_secrets", [("Content-Length", "50")])) as made:
        assert answer(made)[1] == "request_timeout"
    with opened(port, request("POST", "/v1/realtime/client_secrets", [("Content-Length", "50")])):
        pass  # who leaves in the middle is no fault
    time.sleep(0.3)


# -- one client's storm is nobody else's wait --


class Storm:
    """A WebSocket that has a thousand messages at once."""

    def __init__(self):
        self.left = 1000

    async def receive(self):
        self.left -= 1
        return {"type": "websocket.receive", "text": "{}"} if self.left >= 0 else {"type": "websocket.disconnect"}

    async def send_text(self, words):
        pass


def test_a_storm_of_messages_lets_others_have_their_turn():
    async def go():
        link, turns = Link(Storm(), 1000, 1e9, 10**9, 60.0), [0]
        link.start(lambda message: link.post({"type": "error"}))

        async def others():
            while True:
                turns[0] += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(others())
        await link.read()
        other.cancel()
        link.writing.cancel()
        assert turns[0] >= 1000

    asyncio.run(go())


class Told:
    """A conversation as far as its input is concerned."""

    sample_rate = 24_000

    def __init__(self):
        self.ring = InputRing(1920, 24_000 * 30, 0.0)

    def hear(self, samples):
        self.ring.put(samples, 0.0)

    def end_input(self):
        pass


def test_what_waits_to_be_heard_is_bounded():
    taken = Input(Told(), "audio/pcm", lambda: True)
    minute = 60 * 24_000
    for _ in range(int(GIVEN / 60)):
        taken.room(minute)
        taken.give(np.zeros(minute, np.float32))
    with pytest.raises(Invalid) as refused:
        for _ in range(4):
            taken.room(minute)
            taken.give(np.zeros(minute, np.float32))
    assert refused.value.code == "input_audio_buffer_full"


def test_a_conversation_has_so_many_items_however_they_come(serve, monkeypatch):
    assert MOST_ITEMS < 10_000
    monkeypatch.setattr("vivavoce.serving.realtime.items.MOST_ITEMS", 3)
    port, _ = serve("echo", dialects=("realtime",), speed=8.0)

    async def go():
        async with connected(port) as client:
            await client.configure(audio={"input": {"turn_detection": None}})
            for _ in range(5):
                await client.send("input_audio_buffer.append", audio=base64_of(silence(0.1)))
                await client.send("input_audio_buffer.commit")
            assert (await client.until("error"))["error"]["code"] == "too_many_items"

    run(go())


# -- the end, and files --


def test_a_second_stop_cuts_the_wait_for_conversations_short():
    async def go():
        core = Core(SignalModel("echo"), "echo", ServerSettings(**{**PATIENT, "rows": 1}))
        await core.start()
        conversation = await core.open(Client("test"))
        hurry = []
        stopping = asyncio.create_task(core.stop(1e6, lambda: bool(hurry)))
        await asyncio.sleep(0.2)
        assert not stopping.done() and conversation.reason is None
        hurry.append(True)
        await asyncio.wait_for(stopping, 60)
        assert conversation.reason == "shutdown"

    asyncio.run(go())


def test_an_mp3_that_does_not_say_how_long_it_is_is_read(tmp_path):
    sine = (0.2 * np.sin(np.arange(48_000) * 0.1)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, sine, 44_100, "MPEG_LAYER_III", format="MP3", bitrate_mode="CONSTANT", compression_level=0.5)
    data = file.getvalue()
    bare = data[data.find(data[:2], 4) :]  # without its first frame, which says it
    path = tmp_path / "bare.mp3"
    for head in (b"", b"ID3\x04\0\0\0\0\x02\x00" + bytes(256)):
        path.write_bytes(head + bare)
        assert soundfile.info(path).frames != (found := vivavoce.read(path)).samples.shape[1] >= 48_000
        assert np.abs(found.samples[0, 2000:46_000]).max() > 0.15
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(vivavoce.errors.AudioError, match="truncated"):
        vivavoce.read(path)
