"""The Realtime dialect over a model that takes turns: the session's rules are the model's, a stop is a stop."""

import asyncio

import numpy as np

from serving.realtime_clients.raw import SOUND, connected, noise, recording, run, silence
from vivavoce.dialogue import Piece
from vivavoce.systems.signal_models import FRAME, RATE, tone

WORDS = "one two three four five six seven eight nine ten".split()


class Counter:
    """Half-duplex: counts to ten in 3.2 s, whatever it is asked; `asked` is what it was given."""

    name, sample_rate, verbs = "counter", RATE, {"reply": "native"}

    def __init__(self):
        self.asked = []

    def reply(self, turns, stream=False, **limits):
        self.asked.append([(role, audio.duration, getattr(audio, "text", "")) for role, audio in turns])
        for at in range(40):
            word = WORDS[at // 4] if at % 4 == 0 else ""
            yield Piece(at * 0.08, word, tone(440.0, at * FRAME, FRAME))


def talking(serve, speed):
    model = Counter()
    port, server = serve(model, dialects=("realtime",), speed=speed, rows=1)
    return model, port, server


def test_a_turn_is_taken_when_the_sessions_rule_says_so(serve):
    model, port, server = talking(serve, 6)

    async def go():
        async with connected(port) as client:
            assert client.events[0]["capabilities"]["half_duplex"]
            turns = {"type": "server_vad", "silence_duration_ms": 250, "threshold": 0.4, "interrupt_response": False}
            await client.configure(audio={"input": {"turn_detection": turns}})
            await client.say(np.concatenate([recording("sentence-librispeech", 2.3), silence(0.5)]))
            done = (await client.until("response.done"))["response"]
            assert (done["status"], client.words()) == ("completed", " ".join(WORDS))
            ((role, seconds, _),) = model.asked[0]
            assert role == "user" and 1.8 < seconds < 2.8
            policy = server.core.lockstep.rows.policy_of(0)
            assert (policy.silence, policy.threshold, policy.interrupt, policy.automatic) == (0.25, 0.4, False, True)
            types = client.types()
            assert types.index("input_audio_buffer.committed") < types.index("response.created")

    run(go())


def test_who_breaks_in_stops_it_and_it_remembers_what_was_heard(serve):
    model, port, _ = talking(serve, 3)
    question = np.concatenate([recording("seven-george"), silence(0.7)])

    async def go():
        async with connected(port) as client:
            await client.say(question)
            while len(client.sound()) < 8 * FRAME:
                await client.next()
            await client.say(question)
            done = (await client.until("response.done"))["response"]
            assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
            item = done["output"][0]
            heard = item["content"][0]["transcript"].split()
            assert heard == WORDS[: len(heard)] and len(heard) < 10 and item["vivavoce"]["cut_by"] == "estimate"
            second = (await client.until("response.done"))["response"]
            assert client.words(second["id"]) == " ".join(WORDS)
            before, after = client.of("input_audio_buffer.speech_started")[1], client.of("response.done")[0]
            assert client.events.index(before) < client.events.index(after)
            # What the model is given of its own turn is what was heard of it.
            roles = [(role, text) for role, _, text in model.asked[-1]]
            assert roles == [("user", ""), ("model", " ".join(heard)), ("user", "")]
            cut = next(seconds for role, seconds, _ in model.asked[-1] if role == "model")
            assert abs(1000 * cut - item["vivavoce"]["cut_ms"]) < 1

    run(go())


def test_push_to_talk_and_a_cancelled_answer(serve):
    model, port, server = talking(serve, 3)

    async def go():
        async with connected(port) as client:
            await client.configure(audio={"input": {"turn_detection": None}})
            for number, seconds in enumerate((0.8, 0.5)):
                await client.say(noise(number, seconds))
                await client.send("input_audio_buffer.commit")
                await client.send("response.create")
                await client.until(SOUND)
                if number == 0:
                    await client.send("response.cancel")
                done = (await client.until("response.done"))["response"]
                assert done["status"] == ("cancelled" if number == 0 else "completed")
            first, second = model.asked
            assert len(first) == 1 and 0.7 < first[0][1] < 1.2
            assert [role for role, _, _ in second] == ["user", "model", "user"]
            assert second[1][1] < 3.0 and 0.4 < second[2][1] < 0.9
            item = done["output"][0]["id"]
            kind = "conversation.item.truncate"
            await client.ask(f"{kind}d", kind, item_id=item, content_index=0, audio_end_ms=700)
            rows = server.core.lockstep.rows
            while rows.history(0)[-1].cut != "client":
                await asyncio.sleep(0.02)
            last = rows.history(0)[-1]
            assert (last.role, last.text, len(last.samples)) == ("model", "one two three", round(0.7 * RATE))

    run(go())
