"""Conversations that each carry a tone of their own, in every dialect, and the search for a tone where it does not
belong."""

import asyncio
import base64
import json

import numpy as np

from serving.live_clients.raw import Client as LiveClient
from serving.moshi_clients.raw import Client as MoshiClient
from serving.realtime_clients.raw import SOUND, connected
from serving.rest_calls import call, spoken
from vivavoce.audio import Audio
from vivavoce.serving.sound_formats import samples_of

RATE, FRAME, LEVEL = 24_000, 1920, 0.25
TONES = tuple(float(hertz) for hertz in range(300, 3300, 100))  # within what a telephone's format carries
FOREIGN = 0.1  # of a tone's level: half a frame of somebody else's has five times that


def tone(hertz, seconds=1.2):
    """A tone with soft edges, [seconds * RATE]."""
    time = np.arange(round(seconds * RATE)) / RATE
    edge = np.clip(np.minimum(time, time[::-1]) / 0.03, 0, 1)
    return (LEVEL * np.sin(np.pi / 2 * edge) ** 2 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def levels(sound):
    """Of each tone in each window of a frame, [windows, tones]; 1 is the level at which they are said."""
    sound = np.pad(sound, (FRAME, 2 * FRAME))
    windows = np.lib.stride_tricks.sliding_window_view(sound, FRAME)[:: FRAME // 4]
    taper = np.hanning(FRAME)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(FRAME) / RATE, TONES))
    return 2 * np.abs((windows * taper) @ waves) / taper.sum() / LEVEL


def foreign(sound, own):
    """[(Hz, level, second)] of tones in a sound that are not `own`."""
    found = levels(sound)
    others = [at for at, hertz in enumerate(TONES) if hertz != own]
    # An edge of one's own tone is heard in all of them a little: what is foreign stands above its neighbours.
    return [
        (TONES[at], round(float(found[window, at]), 3), round((window / 4 - 1) * FRAME / RATE, 2))
        for window, at in zip(*np.nonzero(found > FOREIGN))
        if at in others and found[window, at] > 0.3 * found[window, TONES.index(own) if own in TONES else at]
    ]


def carries(sound, own):
    """Whether the tone that was said is heard, for half a second at least."""
    return int((levels(sound)[:, TONES.index(own)] > 0.7).sum()) >= 0.5 * RATE / (FRAME / 4)


async def by_moshi(port, hertz, leaves="close", resume=False):
    """(conversation's id, what was heard, its token)."""
    async with MoshiClient(port, "metadata=1&resume=1" if resume else "metadata=1") as client:
        await client.talk()
        await client.until(client.metadata, "metadata")
        found = client.metadata()[0]
        sound = tone(hertz)
        await client.say(sound[: len(sound) // 2] if leaves == "killed" else sound)
        if leaves == "killed":
            await client.hear(3 * FRAME)
            client.drop()
            return found["conversation"], client.heard(), found.get("resume_token")
        heard = await client.hear(len(sound) - FRAME)
    return found["conversation"], heard, found.get("resume_token")


async def by_moshi_resumed(port, hertz):
    """A connection that breaks in the middle, and the conversation that goes on over another one."""
    name, first, token = await by_moshi(port, hertz, "killed", resume=True)
    async with MoshiClient(port, f"metadata=1&resume={token}") as client:
        await client.talk()
        await client.until(client.metadata, "metadata")
        assert client.metadata()[0]["conversation"] == name
        sound = tone(hertz)
        await client.say(sound)
        second = await client.hear(len(sound) - FRAME)
    return name, np.concatenate([first, np.zeros(FRAME, np.float32), second]), token


async def by_live(port, hertz, leaves="close"):
    """(conversation's id, what was heard, its token)."""
    async with LiveClient(port) as client:
        session = await client.start()
        sound = tone(hertz)
        await client.say(sound[: len(sound) // 2] if leaves == "killed" else sound, pace=False)
        wanted = 4 * FRAME if leaves == "killed" else len(sound) - FRAME
        while len(client.audio()) < wanted:
            await asyncio.sleep(0.02)
        if leaves == "killed":
            client.socket.transport.abort()
        else:
            await client.send("session.close")
            await client.wait("session.closed")
        return session["id"], client.audio(), session["resume_token"]


async def by_realtime(port, hertz, leaves="close", kind="audio/pcm", push=False):
    """(conversation's id, what was heard, its token): of an answer to the end, cancelled, or of a client that is
    killed in it."""
    async with connected(port) as client:
        created = client.of("session.created")[0]
        session, token = created["session"]["id"], created["resume_token"]
        form = {"format": {"type": kind}}
        rules = {"turn_detection": None} if push else {}
        await client.configure(audio={"input": {**form, **rules}, "output": form})
        sound = tone(hertz)
        # What follows keeps the row going until the answer is over, as an open microphone does.
        said = np.concatenate([sound, np.zeros(2 * RATE, np.float32)])
        await client.say(said if kind == "audio/pcm" else said[::3], kind)
        if push:
            await client.send("input_audio_buffer.commit")
            await client.send("response.create")
        await client.until(SOUND)
        if leaves == "killed":
            client.socket.transport.abort()
        elif leaves == "cancelled":
            await client.send("response.cancel")
            await client.until("response.done")
        else:
            await client.until("response.done")
        heard = client.sound(kind=kind)
        return session, heard if kind == "audio/pcm" else np.repeat(heard, 3), token


async def by_chat(port, hertz, leaves="close"):
    """(None, what was heard, None) of REST."""
    body = spoken(Audio(tone(hertz)[None], RATE), modalities=["text", "audio"], audio={"format": "wav",
        "voice": "default"})
    loop = asyncio.get_running_loop()
    status, answer, _ = await loop.run_in_executor(None, call, port, "/v1/chat/completions", {**body, "model": "echo"})
    assert status == 200, answer
    data = base64.b64decode(json.loads(answer)["choices"][0]["message"]["audio"]["data"])
    return None, samples_of(data[44:]), None
