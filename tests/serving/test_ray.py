"""A server of several processes, whole: real replicas under Ray Serve on this machine, real sockets, one of them
killed."""

import asyncio
import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import soundfile
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed

from serving.live_clients.raw import Client, noise, run
from serving.realtime_clients.raw import connected
from vivavoce.serving.cluster.names import replica_of

SCRIPT = Path(__file__).with_name("ray_cluster.py")
STARTED, ENDED = 300.0, 60.0  # seconds, on a machine that does something else too
SETTINGS = {
    "model": "echo", "replicas": "2:3", "cpus": 0, "rows": 2, "queue": 4, "drain": 10, "local": True, "spare": 0,
    "look_back": 2, "upscale_delay": 1, "downscale_delay": 600, "session": 900, "idle": 600,
}


@contextlib.contextmanager
def started(*command, ready):
    """A process whose output says that it is ready: (process, the match of `ready`). Ended, whatever happens."""
    environment = {**os.environ, "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5"}
    process = subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )
    said, patience = "", threading.Timer(STARTED, process.kill)
    patience.start()
    try:
        for line in process.stdout:
            said += line
            if found := re.search(ready, line):
                patience.cancel()
                yield process, found
                break
        else:
            raise AssertionError(f"it ended before it was ready: {said}")
    finally:
        patience.cancel()
        process.terminate()
        try:
            process.wait(ENDED)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def tell(process, *words):
    """A command to `ray_cluster.py` -> its answer."""
    process.stdin.write(" ".join(words) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def ask(port, path, body=None):
    """GET, or POST of JSON -> (status, what came: JSON or text)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None)
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text) if text.startswith("{") else text
    finally:
        connection.close()


async def figures(port, path, true=lambda found: True):
    """A page of figures, fresh (one is shown for a second), and as soon as it is as it should be: a replica that is too
    slow to answer is left out of it."""
    for left in range(30, 0, -1):
        await asyncio.sleep(1.1)
        status, found = await asyncio.to_thread(ask, port, path)
        assert status == 200 and (left > 1 or true(found)), found
        if true(found):
            return found


async def until(true, seconds=60.0):
    """Wait until `await true()` is."""
    async with asyncio.timeout(seconds):
        while not (found := await true()):
            await asyncio.sleep(0.2)
        return found


def where(client):
    """The replica that a client talks to."""
    return replica_of(client.session["id"])


async def echoes(client, seed, seconds=1.2):
    """Say something that nobody else says, and hear it, sample for sample."""
    said, begin = noise(seconds, seed), len(client.audio())
    await client.say(said, pace=False)

    async def heard():
        audio = client.audio()[begin:]
        if len(audio) < len(said):
            return False
        likely = np.correlate(audio, said[:2400], "valid")
        at = int(likely.argmax())
        return len(audio) >= at + len(said) and np.abs(audio[at : at + len(said)] - said).max() < 1e-3

    await until(heard)


async def opened(port, stack, **options):
    """A client with a conversation."""
    client = await stack.enter_async_context(Client(port, **options))
    await client.start("echo")
    return client


def test_two_replicas_are_one_server_and_lose_no_more_than_what_dies_with_one():
    with started(str(SCRIPT), json.dumps(SETTINGS), ready=r'"port": (\d+)') as (process, found):
        port = int(found[1])
        run(scenario(port, process), 400)
        assert json.loads(process.stdout.readline()) == {"stopped": True}
        assert process.wait(ENDED) == 0


async def scenario(port, process):
    async with contextlib.AsyncExitStack() as stack:
        first, second = [await opened(port, stack) for _ in range(2)]
        assert where(first) != where(second)
        await asyncio.gather(echoes(first, 1), echoes(second, 2))
        await shows_all(port, {where(first), where(second)})
        first = await resumes(port, stack, first)
        await guests_of_a_key(port, stack, {where(first), where(second)})
        await chats(port)
        late = await waits_for_a_third(port, stack, {where(first), where(second)})
        late = await survives(port, stack, process, first, second, late)
        await drains(port, stack, process, [second, late])


async def shows_all(port, names):
    """Figures are of both."""
    health = await figures(port, "/health", lambda found: found["replicas"].keys() == names)
    assert health["status"] == "ok" and health["rows"] == 4 and health["conversations"] == 2
    assert await figures(port, "/v1/queue", lambda found: found == {"waiting": 0, "free": 2, "eta_seconds": 0.0})
    sessions = (await figures(port, "/v1/sessions", lambda found: len(found["data"]) == 2))["data"]
    assert {row["replica"] for row in sessions} == names
    assert all(replica_of(row["id"]) == row["replica"] for row in sessions)
    text = await figures(port, "/metrics", lambda found: all(f'replica="{name}"' in found for name in names))
    for family in text_string_to_metric_families(text):
        if family.name in ("vivavoce_rows", "vivavoce_conversations"):
            count = {"vivavoce_rows": 2, "vivavoce_conversations": 1}[family.name]
            assert {s.labels["replica"]: s.value for s in family.samples} == dict.fromkeys(names, count)


async def resumes(port, stack, client):
    """A connection that breaks goes on at the replica that has its conversation, and somebody may look on there."""
    token, session = client.session["resume_token"], client.session["id"]
    client.socket.transport.abort()
    for _ in range(2):  # of two replicas, chance alone would find the right one twice in a quarter of cases
        again = await stack.enter_async_context(Client(port, query=f"resume={token}"))
        again.session = (await again.wait("session.started"))["session"]
        assert again.session["id"] == session and await again.wait("info", code="resumed")
        onlooker = await stack.enter_async_context(Client(port, path=f"/{session}/attach"))
        assert (await onlooker.wait("session.started"))["session"]["id"] == session
        await onlooker.socket.close()
        if _ == 0:
            again.socket.transport.abort()
    await echoes(again, 3)
    async with Client(port, query=f"resume={token[:-4]}xxxx") as thief:
        assert (await thief.closed(), thief.codes()) == (1008, ["resume_unknown"])
    return again


async def guests_of_a_key(port, stack, names):
    """An ephemeral key that one replica has made opens conversations, as it says, at both."""
    session = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
    status, made = await asyncio.to_thread(ask, port, "/v1/realtime/client_secrets", {"session": session})
    assert status == 200 and made["value"].startswith("ek_"), made
    seen = set()
    for _ in range(2):
        protocols = ["realtime", f"openai-insecure-api-key.{made['value']}"]
        client = await stack.enter_async_context(connected(port, query="model=echo", protocols=protocols))
        created = client.events[0]
        assert created["session"]["audio"]["input"]["turn_detection"] is None
        seen.add(replica_of(created["session"]["id"]) or replica_of(json.dumps(created).split('resume_token": "')[1]))
    assert seen == names


async def chats(port):
    """A chat goes on from an answer, whichever replica has given it."""

    def said(seed):
        file = io.BytesIO()
        soundfile.write(file, noise(0.4, seed), 24_000, format="WAV")
        sound = {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"}
        return {"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}

    question = said(20)
    asked = {"model": "echo", "modalities": ["text", "audio"], "audio": {"voice": "default", "format": "pcm16"}}
    status, answer = await asyncio.to_thread(ask, port, "/v1/chat/completions", {**asked, "messages": [question]})
    assert status == 200, answer
    given = {"role": "assistant", "audio": {"id": answer["choices"][0]["message"]["audio"]["id"]}}
    for _ in range(6):  # all at one replica by chance: once in 64 times
        body = {**asked, "messages": [question, given, said(21)]}
        status, more = await asyncio.to_thread(ask, port, "/v1/chat/completions", body)
        assert status == 200, more


async def waits_for_a_third(port, stack, names):
    """All rows are taken: who comes then waits, a third replica is started, and the client has a row there."""
    assert await figures(port, "/v1/queue", lambda found: found["free"] == 0)
    late = await opened(port, stack)
    assert late.codes()[0] == "queue" and where(late) not in names
    await echoes(late, 4)
    assert await figures(port, "/v1/queue", lambda found: found["waiting"] == 0)  # nowhere is a place kept for it
    return late


async def survives(port, stack, process, first, second, late):
    """A replica is killed: its clients are told, come again at once, and the others notice nothing."""
    talking = asyncio.create_task(echoes(second, 5, 3.0))
    began = time.monotonic()
    assert await asyncio.to_thread(tell, process, "kill", where(first)) == {"killed": [where(first)]}
    assert await first.closed() == 1012 and "connect again" in first.reason
    back = await opened(port, stack)
    assert time.monotonic() - began < 10 and where(back) == where(late)
    await asyncio.gather(talking, echoes(back, 6))
    if late.code is not None:  # it was the one by which this client had come: its conversation is at the third
        assert late.code == 1012
        token, session = late.session["resume_token"], late.session["id"]
        late = await stack.enter_async_context(Client(port, query=f"resume={token}"))
        late.session = (await late.wait("session.started"))["session"]
        assert late.session["id"] == session
    await echoes(late, 7)
    assert second.code is None and late.code is None
    async with Client(port, query=f"resume={first.session['resume_token']}") as gone:
        assert (await gone.closed(), gone.codes()) == (1008, ["resume_unknown"])

    async def whole():  # Serve puts another in its place
        health = await figures(port, "/health")
        whole = len(health["replicas"]) == 3 and where(first) not in health["replicas"]
        return whole and (health["rows"], health["conversations"], health["queue"]) == (6, 4, 0)

    await until(whole, 180.0)
    return late


async def drains(port, stack, process, clients):
    """The end: nobody new, those who talk have their seconds, and are told."""
    process.stdin.write("stop\n")
    process.stdin.flush()
    await asyncio.sleep(1.5)
    began = time.monotonic()
    async with Client(port) as new:
        with contextlib.suppress(ConnectionClosed):  # it may have been sent away before it asked
            await new.send("session.start", session={"model": "echo"}, event_id="start")
        assert await new.closed() == 1012
    await echoes(clients[0], 8, 0.5)
    for client in clients:
        assert await client.closed() == 1012
        assert client.events[-1]["type"] == "session.closed"
    assert time.monotonic() - began < SETTINGS["drain"] + 60


def test_the_command_serves_on_two_processes_and_ends_by_a_signal(tmp_path):
    command = ["-m", "vivavoce", "talk", "tone", "--replicas", "2", "--rows", "1", "--port", "0"]
    with started(*command, ready=r"talk to tone at http://127\.0\.0\.1:(\d+): 1 \+ 1 at once") as (process, found):
        port = int(found[1])

        async def go():
            async with Client(port) as client:
                await client.start("tone")
                process.send_signal(signal.SIGINT)
                await client.say(noise(1.0))
                await client.wait("session.output_transcript.delta")  # it has its time
                await client.send("session.close")
                assert await client.closed() == 1000

        run(go(), 120)
        assert process.wait(ENDED) == 0
