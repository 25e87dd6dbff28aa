"""Who looks on at a Live session hears both sides, may not speak, and never holds the conversation up."""

import asyncio
import base64
import itertools

import numpy as np
import pytest

from serving.live_clients.raw import Client, burst, narrow, noise, run
from serving.waiting import nobody_left
from vivavoce.serving.access import Access, Key, digest_of
from vivavoce.serving.sound_formats import samples_of

SPEED = 5
# however slow the machine: nothing is heard, or left out, that was not said
EXACT = {"gap": 60.0, "lead": 60.0, "stale": 60.0}
KEYS = {digest_of(name): Key(name, digest_of(name), scopes) for name, scopes in (
    ("talker", ("talk",)), ("ears", ("observe",)), ("both", ("talk", "observe")),
)}  # fmt: skip


def bearer(name):
    return {"additional_headers": {"Authorization": f"Bearer {name}"}}


def heard(client, kind, field):
    return samples_of(b"".join(base64.b64decode(event[field]) for event in client.of(kind)))


@pytest.mark.parametrize(("kind", "rate"), [("audio/pcm", 24_000), ("audio/pcmu", 8000)])
def test_an_observer_hears_both_sides_at_24_khz_with_times(serve, kind, rate):
    port, _ = serve("echo", dialects=("live",), speed=SPEED, **EXACT)
    said = noise(1.5, rate=rate)

    async def go():
        async with Client(port, speed=SPEED) as owner:
            session = await owner.start(kind=kind, rate=rate)
            async with Client(port, path=f"/{session['id']}/attach", query="graceful_close=true") as observer:
                started = await observer.wait("session.started")
                assert started["session"]["id"] == session["id"] and "resume_token" not in started["session"]
                await owner.say(said[: rate // 2])
                await owner.send("session.input_audio.mute")
                await owner.wait("session.input_audio.muted")
                await owner.say(said[rate // 2 :])
                await owner.send("session.close")
                closed = await observer.wait("session.closed")
                assert closed["reason"] == "close_requested" and await observer.closed() == 1000
                await owner.wait("session.closed")
                return owner, observer

    owner, observer = run(go())
    user = heard(observer, "session.input_audio.append", "audio")
    assert len(user) >= 1.4 * 24_000  # also while the model does not hear it
    assert np.abs(user[30_000:]).max() > 0.1
    deltas = observer.of("session.output_audio.delta")
    assert all(0 < e["end_ms"] - e["start_ms"] <= 100 for e in deltas) and deltas[0]["start_ms"] == 80
    assert all(a["end_ms"] <= b["start_ms"] for a, b in itertools.pairwise(deltas))
    model = heard(observer, "session.output_audio.delta", "delta")
    lag = np.argmax(np.correlate(model[: 2 * 24_000], user[:9600], "valid"))
    assert lag == pytest.approx(1920, abs=3)  # the echo of the first sound, a frame later
    assert all("start_ms" not in event for event in owner.of("session.output_audio.delta"))
    words = [[e for e in client.events if "transcript" in e["type"]] for client in (owner, observer)]
    assert words[0] == words[1] and words[0]


def test_who_comes_late_hears_from_then_on_and_commands_with_the_right_key(serve):
    port, server = serve("echo", dialects=("live",), speed=SPEED, access=Access(KEYS))

    async def go():
        async with Client(port, speed=SPEED, **bearer("both")) as owner:
            path = f"/{(await owner.start())['id']}/attach"
            await owner.say(burst(0.4, 0.4))
            async with Client(port, path=path, **bearer("talker")) as no:
                assert (await no.closed(), no.codes()) == (1008, ["scope_missing"])
            async with Client(port, path="/sess_x/attach", **bearer("ears")) as no:
                assert (await no.closed(), no.codes()) == (1008, ["session_not_found"])
            ears, both = (Client(port, path=path, **bearer(name)) for name in ("ears", "both"))
            async with ears, both:
                await both.wait("session.started")
                await ears.wait("session.started")
                for observer, code in ((ears, "scope_missing"), (both, None)):
                    await observer.send("session.input_audio.mute", event_id="m")
                    if code:
                        assert (await observer.wait("error", client_event_id="m"))["error"]["code"] == code
                    await observer.send("session.input_audio.append", audio="", event_id="a")
                    found = await observer.wait("error", client_event_id="a")
                    assert found["error"]["code"] == "not_the_owner"
                await owner.wait("session.input_audio.muted", client_event_id="m")
                await both.send("session.start", session={"model": "echo"}, event_id="s")
                found = await both.wait("error", client_event_id="s")
                assert found["error"]["code"] == "session_already_started"
                await owner.say(noise(0.5))
                await both.send("session.close")
                assert (await owner.wait("session.closed"))["reason"] == "close_requested"
                await ears.closed()
                return ears.of("session.output_audio.delta")

    deltas = run(go())
    assert deltas[0]["start_ms"] >= 300
    nobody_left(server)


def test_an_observer_who_does_not_read_is_dropped_and_the_conversation_goes_on(serve, monkeypatch):
    monkeypatch.setattr("vivavoce.serving.dialects.live.OBSERVER_OUTBOX", 500_000)
    port, server = serve("echo", dialects=("live",), speed=20)

    async def go():
        async with Client(port, speed=20) as owner:
            path = f"/{(await owner.start())['id']}/attach"
            slow, quick = Client(port, path=path, max_queue=1, sock=narrow(port)), Client(port, path=path)
            async with slow, quick:
                await slow.wait("session.started")
                await quick.wait("session.started")
                slow._reading.cancel()
                for number in range(100):  # 64 kB each: more than a socket holds
                    await owner.append(bytes(48_000))
                    await quick.wait("session.input_audio.append", number + 1)
                slow._reading = asyncio.create_task(slow._read())
                assert (await slow.closed(), slow.codes()) == (1008, ["slow_client"])
                before = len(owner.of("session.output_audio.delta"))
                await owner.wait("session.output_audio.delta", before + 20)
                await owner.send("session.close")
                await quick.wait("session.closed")
                assert (await quick.closed(), quick.codes()) == (1000, [])

    run(go())
    nobody_left(server)
