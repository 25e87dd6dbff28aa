"""The Realtime dialect over real sockets: turns, their events in order, and what is in them, sample by sample."""

import asyncio
import base64

import numpy as np
import pytest

from serving.realtime_clients.raw import (
    BEGIN,
    END,
    RATE,
    SOUND,
    USER,
    WORDS,
    base64_of,
    connected,
    noise,
    recording,
    run,
    silence,
)
from serving.waiting import nobody_left
from vivavoce.serving.realtime.user import UserSide
from vivavoce.serving.sound_formats import bytes_of, samples_of
from vivavoce.systems.signal_models import FRAME, tone

TRANSCRIPT = "conversation.item.input_audio_transcription"
ANSWER = samples_of(bytes_of(tone(440.0, 0, 12 * FRAME)))  # what `tone` says, as 16 bits


def test_a_spoken_turn_and_its_answer_in_order(serve):
    port, server = serve("tone", dialects=("realtime",), speed=6)

    async def go():
        async with connected(port) as client:
            session = client.events[0]["session"]
            assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 500
            assert session["model"] == "tone" and session["object"] == "realtime.session"
            await client.say(np.concatenate([silence(0.8), recording("sentence-librispeech", 2.3)]))
            await client.until("rate_limits.updated")
            await client.have(f"{TRANSCRIPT}.completed")
            assert client.types(without=["conversation.item.input"]) == [
                "session.created", *USER, *BEGIN, WORDS, SOUND, WORDS, SOUND, WORDS, SOUND, *END
            ]  # fmt: skip
            started, stopped, committed, added = (client.of(kind)[0] for kind in USER[:4])
            item = committed["item_id"]
            assert item == started["item_id"] == stopped["item_id"] == added["item"]["id"]
            assert committed["previous_item_id"] is None and added["previous_item_id"] is None
            assert added["item"]["content"] == [{"type": "input_audio", "transcript": None}]
            # The recording's speech begins a third of a second in; 300 ms of padding before it are the turn's too.
            assert 700 <= started["audio_start_ms"] <= 1000 and 3000 <= stopped["audio_end_ms"] <= 3400
            told = "".join(event["delta"] for event in client.of(f"{TRANSCRIPT}.delta"))
            done = client.of(f"{TRANSCRIPT}.completed")[0]
            assert set(told.split()) == {"sound"} and done["transcript"] == told and done["item_id"] == item
            response = client.of("response.done")[0]["response"]
            assert client.words() == "tone number 1 ends" == response["output"][0]["content"][0]["transcript"]
            assert response["status"] == "completed" and response["output"][0]["status"] == "completed"
            assert client.of("conversation.item.added")[1]["previous_item_id"] == item
            sound = client.sound()
            assert np.array_equal(sound[: len(ANSWER)], ANSWER) and not sound[len(ANSWER) :].any()
            assert len(sound) <= 18 * FRAME  # with the pause of half a second that ends it
            usage = response["usage"]
            assert usage["output_token_details"] == {"text_tokens": 4, "audio_tokens": len(sound) // FRAME}
            assert 25 <= usage["input_token_details"]["audio_tokens"] <= 35  # a turn of two seconds, and its margins
            assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
            assert len({event["event_id"] for event in client.events}) == len(client.events)
        assert all(event["event_id"] for event in client.events)

    run(go())
    nobody_left(server)


def test_people_do_not_hear_each_other(serve):
    port, server = serve("echo", dialects=("realtime",), speed=6, rows=2)
    sounds = [noise(1, 1.6), noise(2, 1.6)]

    async def go(mine, other):
        async with connected(port) as client:
            await client.say(mine)
            await client.until("response.done")
            heard = client.sound()
            assert np.array_equal(heard[: len(mine)], mine) and not heard[len(mine) :].any()
            assert not np.array_equal(heard[:FRAME], other[:FRAME])

    async def both():
        await asyncio.gather(go(sounds[0], sounds[1]), go(sounds[1], sounds[0]))

    run(both())
    nobody_left(server)


def test_push_to_talk_is_heard_when_it_is_committed_and_answered_when_it_is_asked(serve):
    port, server = serve("tone", dialects=("realtime",), speed=8)

    async def go():
        async with connected(port) as client:
            session = await client.configure(audio={"input": {"turn_detection": None}})
            assert session["audio"]["input"]["turn_detection"] is None
            await client.say(noise(3, 0.8))
            (conversation,) = server.core.live.values()
            while conversation.counts.frames < 20:
                await asyncio.sleep(0.02)
            assert conversation.ring.taken == 0  # so far it is nobody's business
            await client.send("input_audio_buffer.commit")
            await client.send("response.create", response={"metadata": {"topic": "noise"}})
            await client.until("rate_limits.updated")
            await client.have(f"{TRANSCRIPT}.completed")
            assert client.types(without=["conversation.item.input"]) == [
                "session.created", "session.updated", *USER[2:], *BEGIN, WORDS, SOUND, WORDS, SOUND, WORDS, SOUND, *END
            ]  # fmt: skip
            created = client.of("response.created")[0]["response"]
            assert created["metadata"] == {"topic": "noise"} and created["status"] == "in_progress"
            assert client.of(f"{TRANSCRIPT}.completed")[0]["transcript"] == "sound"
            assert np.array_equal(client.sound()[: len(ANSWER)], ANSWER)
            item = client.of("input_audio_buffer.committed")[0]["item_id"]
            kept = await client.ask("conversation.item.retrieved", "conversation.item.retrieve", item_id=item)
            part = kept["item"]["content"][0]
            assert np.array_equal(samples_of(base64.b64decode(part["audio"])), noise(3, 0.8))
            assert part["transcript"] == "sound"

    run(go())


def test_what_nobody_has_asked_for_is_held_until_somebody_does(serve):
    port, server = serve("tone", dialects=("realtime",), speed=8)

    async def go():
        async with connected(port) as client:
            await client.configure(audio={"input": {"turn_detection": None}})
            await client.say(noise(3, 0.8))
            await client.send("input_audio_buffer.commit")
            await client.have(f"{TRANSCRIPT}.completed")
            (conversation,) = server.core.live.values()
            frames = conversation.counts.frames
            while conversation.counts.frames < frames + 40:  # the model is through with its answer
                await asyncio.sleep(0.02)
            assert not client.of("response.created")
            await client.send("response.create")
            done = await client.until("response.done")
            assert done["response"]["status"] == "completed" and client.words() == "tone number 1 ends"
            assert np.array_equal(client.sound()[: len(ANSWER)], ANSWER)
            # Nothing new was said, so there is nothing more to say.
            await client.send("response.create")
            nothing = (await client.until("response.done"))["response"]
            assert (nothing["status"], nothing["output"]) == ("completed", [])
            assert client.types()[-2:] == ["response.created", "response.done"]
            # An answer to what was followed by something else is none any more.
            await client.say(noise(2, 0.5))
            await client.send("input_audio_buffer.commit")
            frames = conversation.counts.frames
            while conversation.counts.frames < frames + 40:
                await asyncio.sleep(0.02)
            await client.say(noise(3, 0.5))
            await client.send("input_audio_buffer.commit")
            await client.send("response.create")
            last = (await client.until("response.done"))["response"]
            assert client.words(last["id"]) == "tone number 3 ends"

    run(go())


def test_a_model_may_be_kept_from_answering_unasked(serve):
    port, _ = serve("tone", dialects=("realtime",), speed=8)

    async def go():
        async with connected(port) as client:
            turns = {"type": "server_vad", "create_response": False, "silence_duration_ms": 200}
            await client.configure(audio={"input": {"turn_detection": turns}})
            await client.say(np.concatenate([recording("sentence-librispeech", 2.3), silence(0.3)]))
            await client.have(f"{TRANSCRIPT}.completed")
            assert not client.of("response.created")
            await client.send("response.create")
            await client.until("response.done")
            assert client.words() == "tone number 1 ends"

    run(go())


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma"])
def test_telephone_sound_goes_in_and_out_as_a_stream(serve, kind):
    port, _ = serve("echo", dialects=("realtime",), speed=6, gap=4.0)
    line = 0.8 * np.convolve(noise(5, 0.5), np.hanning(9) / 4, "same").astype(np.float32)  # 1.5 s at 8 kHz

    async def go():
        async with connected(port) as client:
            sound = {"format": {"type": kind}}
            session = await client.configure(audio={"input": sound, "output": sound})
            assert session["audio"]["input"]["format"] == session["audio"]["output"]["format"] == {"type": kind}
            await client.say(line, kind, piece=0.02)  # 20 ms a packet, as telephones send
            done = await client.until("response.done")
            assert done["response"]["audio"]["output"]["format"] == {"type": kind}
            heard = client.sound(kind=kind)
            # Somewhere in it is the line as it was, twice coded and twice resampled: no seams.
            at = int(np.argmax(np.correlate(heard, line[2000:4000], "valid"))) - 2000
            error = heard[at + 400 : at + len(line) - 400] - line[400:-400]
            assert 10 * np.log10(np.mean(line**2) / np.mean(error**2)) > 25
            assert 1.5 <= len(heard) / 8000 < 2.2

    run(go())


def test_an_answer_is_cut_where_hearing_ended_word_by_word(serve):
    port, _ = serve("tone", dialects=("realtime",), speed=8)

    async def go():
        async with connected(port) as client:
            await client.say(noise(1, 0.6))
            response = (await client.until("response.done"))["response"]
            item, whole = response["output"][0]["id"], round(len(client.sound()) / 24)
            # Words stand at 0, 320 and 640 ms; one whose frame has not begun was not heard.
            for end, words in ((641, "tone number 1 ends"), (640, "tone number 1"), (321, "tone number 1"),
                               (320, "tone"), (1, "tone"), (0, ""), (99_999, "tone number 1 ends")):  # fmt: skip
                cut = await client.ask(
                    "conversation.item.truncated", "conversation.item.truncate", item_id=item, content_index=0,
                    audio_end_ms=end,
                )  # fmt: skip
                assert cut["audio_end_ms"] == min(end, whole) and cut["content_index"] == 0
                got = await client.ask("conversation.item.retrieved", "conversation.item.retrieve", item_id=item)
                part = got["item"]["content"][0]
                assert part["transcript"] == words
                assert len(base64.b64decode(part["audio"])) == 2 * round(cut["audio_end_ms"] * 24)
                assert got["item"]["vivavoce"] == {"cut_ms": cut["audio_end_ms"], "cut_by": "client"}

    run(go())


def test_an_answer_that_is_cancelled_is_silent_from_then_on(serve):
    port, server = serve("echo", dialects=("realtime",), speed=3)
    long, short = noise(1, 8.0), noise(2, 0.4)

    async def go():
        async with connected(port) as client:
            await client.say(long)
            await client.until(SOUND)
            response = client.of("response.created")[0]["response"]["id"]
            await client.send("response.cancel", response_id=response)
            done = (await client.until("response.done"))["response"]
            assert (done["status"], done["id"]) == ("cancelled", response)
            assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
            assert client.types()[-len(END) + 1 :] == END[:-1]
            item = done["output"][0]
            assert item["status"] == "incomplete" and item["vivavoce"]["cut_by"] == "estimate"
            sent = len(client.sound()) / RATE * 1000
            assert 0 <= item["vivavoce"]["cut_ms"] <= sent < 8000
            # What the model still says of it is for nobody, though another is asked for; what it says next is heard.
            await client.send("response.create")
            (conversation,) = server.core.live.values()
            while conversation.model_turns.speaking or conversation.ring.waiting:
                await asyncio.sleep(0.05)
            await client.say(short)
            second = await client.until("response.done")
            heard = client.sound(second["response"]["id"])
            assert np.array_equal(heard[: len(short)], short)
            assert np.array_equal(client.sound(response), long[: len(client.sound(response))])

    run(go())


def test_who_speaks_over_an_answer_ends_it(serve):
    port, server = serve("tone", dialects=("realtime",), speed=4)
    notes = []
    server.core.on_open(lambda one: one.noters.append(lambda event, fields: notes.append((event, fields))))

    async def go():
        async with connected(port) as client:
            await client.say(recording("six-nine-lucas-joined"))  # two words, and a pause in which `tone` begins
            first = (await client.until("response.done"))["response"]
            assert first["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
            item = first["output"][0]
            assert item["vivavoce"]["cut_by"] == "estimate" and item["vivavoce"]["cut_ms"] <= 80
            assert item["content"][0]["transcript"] in ("tone", "")  # heard, or not yet
            second = (await client.until("response.done"))["response"]
            assert (second["status"], client.words(second["id"])) == ("completed", "tone number 2 ends")
            starts = client.of("input_audio_buffer.speech_started")
            assert len(starts) == 2 and starts[1]["audio_start_ms"] > starts[0]["audio_start_ms"]
            assert notes == [("truncated", {"item": item["id"], "seconds": item["vivavoce"]["cut_ms"] / 1000,
                                            "source": "estimate"})]  # fmt: skip

    run(go())


def test_a_client_that_cuts_what_is_being_said_hears_no_more_of_it(serve):
    port, _ = serve("echo", dialects=("realtime",), speed=4)

    async def go():
        async with connected(port) as client:
            await client.say(noise(1, 8.0))
            item = (await client.until(SOUND))["item_id"]
            await client.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=40)
            done = (await client.until("response.done"))["response"]
            assert done["status"] == "cancelled" and done["output"][0]["vivavoce"] == {"cut_ms": 40, "cut_by": "client"}
            types = client.types()
            assert types.index("conversation.item.truncated") < types.index("response.output_audio.done")

    run(go())


def test_words_alone_where_words_are_asked_for(serve):
    port, _ = serve("tone", dialects=("realtime",), speed=8)

    async def go():
        async with connected(port) as client:
            await client.configure(output_modalities=["text"])
            await client.say(noise(1, 0.6))
            response = (await client.until("response.done"))["response"]
            assert response["output"][0]["content"] == [{"type": "output_text", "text": "tone number 1 ends"}]
            assert client.words(name="response.output_text.delta") == "tone number 1 ends"
            assert client.of("response.content_part.added")[0]["part"] == {"type": "text", "text": ""}
            assert client.of("response.output_text.done")[0]["text"] == "tone number 1 ends"
            assert not client.of(SOUND, WORDS) and response["usage"]["output_token_details"]["audio_tokens"] == 0

    run(go())


def test_an_answer_has_as_many_tokens_as_it_may_have(serve):
    port, _ = serve("tone", dialects=("realtime",), speed=8)

    async def go():
        async with connected(port) as client:
            await client.configure(max_output_tokens=6)
            await client.say(noise(1, 0.6))
            response = (await client.until("response.done"))["response"]
            assert response["status"] == "incomplete"
            assert response["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
            assert response["output"][0]["content"][0]["transcript"] == "tone"  # with "number 1" they would be eight
            assert response["usage"]["output_tokens"] == 5

    run(go())


def test_sound_that_is_given_as_an_item_is_heard_once(serve):
    port, _ = serve("tone", dialects=("realtime",), speed=8)
    speech = recording("sentence-librispeech", 2.3)

    async def go():
        async with connected(port) as client:
            part = {"type": "input_audio", "audio": base64_of(speech)}
            item = {"type": "message", "role": "user", "content": [part], "id": "mine"}
            await client.send("conversation.item.create", item=item)
            await client.send("response.create")
            await client.until("response.done")
            assert client.words() == "tone number 1 ends"
            assert not client.of("input_audio_buffer.speech_started", "input_audio_buffer.committed")
            mine, answer = client.of("conversation.item.added")
            assert mine["item"]["id"] == answer["previous_item_id"] == "mine"
            gone = await client.ask("conversation.item.deleted", "conversation.item.delete", item_id="mine")
            assert gone["item_id"] == "mine"
            await client.send("conversation.item.retrieve", item_id="mine")
            assert (await client.until("error"))["error"]["code"] == "item_retrieve_invalid_item_id"

    run(go())


def test_who_says_nothing_for_long_is_asked(serve):
    port, _ = serve("tone", dialects=("realtime",), speed=10)

    async def go():
        async with connected(port) as client:
            turns = {"type": "server_vad", "idle_timeout_ms": 1500}
            await client.configure(audio={"input": {"turn_detection": turns}})
            await client.say(recording("sentence-librispeech", 2.3))
            await client.until("response.done")
            idle = await client.until("input_audio_buffer.timeout_triggered")
            await client.until("response.done")
            assert client.of("input_audio_buffer.committed")[-1]["item_id"] == idle["item_id"]
            assert idle["audio_end_ms"] >= idle["audio_start_ms"]

    run(go())


@pytest.mark.parametrize("whole", [True, False])
def test_a_semantic_rule_ends_turns_sooner_or_later(serve, monkeypatch, whole):
    port, server = serve("echo", dialects=("realtime",), speed=2)
    asked, waited = [], []

    def rule(turn):
        asked.append(turn.duration)
        return 0.9 if whole else 0.1

    def end(self, turn, seconds):
        waited.append(self._now - seconds)
        ends(self, turn, seconds)

    server.core.end_of_turn = rule
    ends = UserSide._end
    monkeypatch.setattr(UserSide, "_end", end)

    async def go():
        async with connected(port) as client:
            turns = {"type": "semantic_vad", "eagerness": "high", "create_response": False}
            await client.configure(audio={"input": {"turn_detection": turns}})
            await client.say(recording("seven-george"))
            await client.until("input_audio_buffer.speech_stopped", 40)
            assert waited[0] < 1.9 if whole else 2.0 <= waited[0] < 2.2
            assert asked and 0.3 < asked[0] < 2.5

    run(go())
