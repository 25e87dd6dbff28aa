"""WebRTC calls over real sockets: a second aiortc asks, and hears the answer; events and turns as on a WebSocket."""

import asyncio

import numpy as np

import vivavoce
from serving.realtime_clients.caller import RATE, Caller
from serving.realtime_clients.raw import BEGIN, END, RECORDINGS, SOUND, USER, WORDS, base64_of, run
from serving.realtime_clients.raw import recording as recording_24
from serving.rest_calls import wait_for
from serving.test_realtime_half_duplex import Counter
from serving.waiting import nobody_left
from vivavoce.systems.signal_models import pitch

PLAYED = "output_audio_buffer."
TRANSCRIPT = "conversation.item.input_audio_transcription"


def recording(name, seconds=None):
    """A shipped recording [n] float32 at 48 kHz."""
    samples = vivavoce.read(RECORDINGS / f"{name}.wav").resample(RATE).samples[0]
    return samples if seconds is None else samples[: round(seconds * RATE)]


def hertz(samples):
    """The strongest frequency."""
    return float(np.argmax(np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 18))) * RATE / (1 << 18))


def loud(samples):
    """Seconds of it in which something is heard."""
    size = RATE // 50
    pieces = samples[: len(samples) // size * size].reshape(-1, size)
    return float(np.count_nonzero(np.abs(pieces).max(axis=1, initial=0) > 0.02)) / 50


def found_in(heard, said):
    """How alike each loud tenth of a second of `said` is to what was `heard` near where it should be: (median of the
    correlations, seconds between the two). A hole of a busy machine shifts what follows it."""
    size = 1 << (len(heard) + len(said)).bit_length()
    both = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(said, size)), size)[: len(heard)]
    late, piece, alike = int(np.argmax(both)), RATE // 10, []
    for at in range(0, len(said) - piece, piece):
        own = said[at : at + piece]
        if np.abs(own).max() > 0.05:
            near = heard[max(0, at + late - RATE // 4) : at + late + RATE // 4 + piece]
            if len(near) > piece:
                match = np.correlate(near, own, "valid")
                best = near[int(np.argmax(match)) :][:piece]
                alike.append(float(match.max() / (np.linalg.norm(own) * np.linalg.norm(best) + 1e-9)))
    return float(np.median(alike)), late / RATE


def test_a_question_and_its_answer(ring):
    """The events are those of a WebSocket, but for the sound, which is heard."""
    port, server = ring("tone")

    async def go():
        async with Caller(port) as caller:
            await caller.call()
            assert caller.answer.headers["content-type"] == "application/sdp" and caller.id.startswith("rtc_")
            (conversation,) = server.core.live.values()
            created = caller.of("session.created")[0]
            assert created["session"]["model"] == "tone" and "resume_token" not in created
            assert created["session"]["audio"]["input"]["turn_detection"]["type"] == "server_vad"
            caller.microphone.say(recording("sentence-librispeech", 2.3))
            await caller.until(f"{PLAYED}stopped")
            await caller.until(f"{TRANSCRIPT}.completed")
            kinds = [e["type"] for e in caller.events if not e["type"].startswith("conversation.item.input")]
            for one in (f"{PLAYED}started", f"{PLAYED}stopped"):
                kinds.remove(one)
            assert kinds == ["session.created", *USER, *BEGIN, WORDS, WORDS, WORDS, *END]
            order = [event["type"] for event in caller.events]
            assert order.index("response.content_part.added") < order.index(f"{PLAYED}started")
            assert order.index("response.done") < order.index(f"{PLAYED}stopped")
            response = caller.of("response.done")[0]["response"]
            assert {caller.of(f"{PLAYED}{one}")[0]["response_id"] for one in ("started", "stopped")} == {response["id"]}
            assert response["output"][0]["content"][0]["transcript"] == "tone number 1 ends"
            assert response["status"] == "completed" and not caller.of(SOUND, f"{PLAYED}cleared")
            await caller.hears(0.3)  # what is still on its way
            heard = caller.heard
            first, last = np.flatnonzero(np.abs(heard) > 0.1)[[0, -1]]
            assert abs(hertz(heard[first : first + RATE // 2]) - pitch(0)) < 2
            assert 0.9 < loud(heard) < 1.1  # 960 ms of it, holes of a busy machine not counted
            assert 0.2 < np.abs(heard[first:last]).max() < 0.3
            (told,) = server.core.sessions()
            assert told["dialect"] == "webrtc" and told["id"] == conversation.id and told["dropped"] == 0

    run(go())
    nobody_left(server)
    wait_for(lambda: not server.access.open)


def test_two_callers_hear_their_own_words(ring):
    """`echo` says what it hears: sample for sample, but for Opus, and nobody else's."""
    port, server = ring("echo")
    questions = [recording("sentence-librispeech", 3.0), recording("six-nine-lucas-joined", 3.0)]

    turns = {"type": "server_vad", "interrupt_response": False}

    async def ask(question):
        async with Caller(port) as caller:
            await caller.call(session={"type": "realtime", "audio": {"input": {"turn_detection": turns}}})
            caller.microphone.say(question)
            await caller.until(f"{PLAYED}stopped", seconds=30)
            await caller.hears(0.3)
            return caller.heard

    async def both():
        return await asyncio.gather(*map(ask, questions))

    heard = run(both())
    for own, other in ((0, 1), (1, 0)):
        alike, late = found_in(heard[own], questions[own])
        assert alike > 0.9, alike
        assert 0.1 < late < 5.0, late  # a frame of 80 ms twice, buffers on both sides, the network
        assert found_in(heard[own], questions[other])[0] < 0.7
    nobody_left(server)


def test_who_is_interrupted_has_said_what_was_sent(ring):
    """Cancelled, an answer is cut where its last packet ended: the caller has heard as much, to a packet or two."""
    port, server = ring("echo")
    notes = []
    server.core.on_open(lambda one: one.noters.append(lambda event, fields: notes.append((event, fields))))

    async def go():
        async with Caller(port) as caller:
            await caller.call()
            caller.microphone.say(0.3 * np.sin(np.arange(6 * RATE) * 2 * np.pi * 500 / RATE).astype(np.float32))
            await caller.until(f"{PLAYED}started")
            await caller.hears(1.0)
            caller.send("response.cancel")
            done = (await caller.until("response.done"))["response"]
            assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "client_cancelled")
            item = done["output"][0]
            cleared, truncated = caller.of(f"{PLAYED}cleared")[0], caller.of("conversation.item.truncated")[0]
            assert cleared["response_id"] == done["id"] and truncated["item_id"] == item["id"]
            end = truncated["audio_end_ms"]
            assert item["vivavoce"] == {"cut_ms": end, "cut_by": "sent"} and 800 < end < 3000
            assert ("truncated", {"item": item["id"], "seconds": end / 1000, "source": "sent"}) in notes
            await caller.hears(0.5)
            assert abs(loud(caller.heard) - end / 1000) < 0.1
            caller.send("output_audio_buffer.clear", event_id="again")  # as clients do after a cancel
            assert (await caller.until(f"{PLAYED}cleared", 2))["response_id"] == ""
            assert not caller.of(f"{PLAYED}stopped", "error")

    run(go())
    nobody_left(server)


def test_who_speaks_over_an_answer_ends_it(ring):
    port, server = ring("tone")
    question = recording("sentence-librispeech", 2.3)

    async def go():
        async with Caller(port) as caller:
            await caller.call()
            caller.microphone.say(question)
            await caller.until(f"{PLAYED}started")
            caller.microphone.say(question[round(0.35 * RATE) :])  # whose speech begins at once
            done = (await caller.until("response.done"))["response"]
            assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "turn_detected")
            (truncated,) = caller.of("conversation.item.truncated")
            assert truncated["item_id"] == done["output"][0]["id"] and 0 < truncated["audio_end_ms"] < 960
            assert caller.of(f"{PLAYED}cleared")[0]["response_id"] == done["id"]
            await caller.until(f"{PLAYED}stopped")  # the answer to what was said instead
            assert caller.of("response.done")[-1]["response"]["status"] == "completed"

    run(go())
    nobody_left(server)


def test_push_to_talk_and_what_cannot_be_appended(ring):
    port, server = ring("tone")
    push = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}

    async def go():
        async with Caller(port) as caller:
            await caller.call(session=push)
            session = caller.of("session.created")[0]["session"]
            assert session["audio"]["input"]["turn_detection"] is None
            caller.send("input_audio_buffer.append", audio="AAAA", event_id="mine")
            error = (await caller.until("error"))["error"]
            assert (error["code"], error["event_id"]) == ("append_not_supported", "mine")
            (conversation,) = server.core.live.values()
            caller.microphone.say(recording("sentence-librispeech", 1.0))
            await caller.microphone.plays(1.3)
            assert conversation.ring.taken == 0  # so far it is nobody's business
            caller.send("input_audio_buffer.clear")
            await caller.until("input_audio_buffer.cleared")
            caller.send("response.create")  # nothing was said
            caller.microphone.say(recording("sentence-librispeech", 2.3))
            await caller.microphone.plays(2.6)
            caller.send("response.cancel")
            caller.send("input_audio_buffer.commit")
            committed = await caller.until("input_audio_buffer.committed")
            caller.send("response.create", response={"metadata": {"asked": "yes"}})
            await caller.until(f"{PLAYED}stopped")
            done = caller.of("response.done")[-1]["response"]
            assert done["metadata"] == {"asked": "yes"} and done["status"] == "completed"
            assert done["output"][0]["content"][0]["transcript"] == "tone number 1 ends"
            caller.send("conversation.item.retrieve", item_id=committed["item_id"])
            part = (await caller.until("conversation.item.retrieved"))["item"]["content"][0]
            assert 2.3 < len(part["audio"]) * 3 / 4 / 48_000 < 6.0  # what was held since the buffer was cleared
            await caller.hears(0.2)
            assert 0.8 < loud(caller.heard) < 1.1

    run(go())
    nobody_left(server)


def test_an_answer_out_of_the_conversation_is_heard_and_can_be_cleared(ring):
    """It is whole long before it has been played: clearing it is what stops it."""
    port, _ = ring("tone")
    question = base64_of(recording_24("sentence-librispeech", 2.3))

    async def go():
        async with Caller(port) as caller:
            await caller.call()
            given = {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": question}]}
            caller.send("response.create", response={"conversation": "none", "input": [given]})
            done = (await caller.until("response.done"))["response"]
            assert done["output"][0]["content"][0]["transcript"] == "tone number 1 ends"
            assert (await caller.until(f"{PLAYED}started"))["response_id"] == done["id"]
            await caller.hears(0.2)
            caller.send("output_audio_buffer.clear")
            assert (await caller.until(f"{PLAYED}cleared"))["response_id"] == done["id"]
            await caller.hears(0.4)
            assert 0.1 < loud(caller.heard) < 0.7 and not caller.of(f"{PLAYED}stopped", "conversation.item.truncated")

    run(go())


def test_who_takes_turns_stops_at_once_and_remembers_what_was_sent(ring):
    port, server = ring(Counter())
    question = recording("seven-george")

    async def go():
        async with Caller(port) as caller:
            await caller.call(session={"type": "realtime"})
            caller.microphone.say(question)
            await caller.until(f"{PLAYED}started")
            assert caller.of("session.created")[0]["capabilities"]["half_duplex"]
            await caller.hears(0.7)
            caller.microphone.say(question)
            done = (await caller.until("response.done"))["response"]
            assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "turn_detected")
            end = caller.of("conversation.item.truncated")[0]["audio_end_ms"]
            words = done["output"][0]["content"][0]["transcript"].split()
            assert words == "one two three four five six seven eight nine ten".split()[: -(-end // 320)]
            await caller.hears(0.3)
            assert abs(loud(caller.heard) - end / 1000) < 0.25

    run(go())
    nobody_left(server)


def test_lost_packets_are_counted_and_heard_as_silence(ring):
    port, server = ring("echo")

    async def go():
        async with Caller(port) as caller:
            await caller.call()
            (conversation,) = server.core.live.values()
            caller.microphone.say(recording("sentence-librispeech", 1.5))
            await caller.microphone.plays(0.8)
            caller.microphone.jump = 10
            await caller.until(f"{PLAYED}stopped")
            assert conversation.counts.lost == 10 * 480

    run(go())
