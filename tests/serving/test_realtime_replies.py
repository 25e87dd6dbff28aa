"""Responses out of the conversation, and models that can more than talk: texts, instructions, functions."""

import asyncio
import base64
from types import SimpleNamespace

import numpy as np

import vivavoce
from serving.realtime_clients.raw import BEGIN, END, SOUND, WORDS, base64_of, connected, noise, recording, run
from serving.waiting import nobody_left
from vivavoce.audio import Audio
from vivavoce.dialogue import Piece
from vivavoce.serving.realtime.replies import spoken_part
from vivavoce.serving.sound_formats import bytes_of, samples_of
from vivavoce.systems.signal_models import FRAME, RATE, SignalModel, SignalRows, tone

ITEMS = ("conversation.item.added", "conversation.item.done")
QUIET = {"audio": {"input": {"turn_detection": None}}}


def spoken(samples):
    part = {"type": "input_audio", "audio": base64_of(samples)}
    return {"type": "message", "role": "user", "content": [part]}


def test_an_answer_aside_leaves_the_conversation_alone(serve):
    port, _ = serve("tone", dialects=("realtime",), speed=8)

    async def go():
        async with connected(port) as client:
            await client.configure(**QUIET)
            asked = {"conversation": "none", "input": [spoken(noise(1, 0.6))], "metadata": {"for": "me"}}
            await client.send("response.create", response=asked, event_id="aside")
            await client.until("rate_limits.updated")
            types = [kind for kind in [*BEGIN, WORDS, SOUND, WORDS, SOUND, WORDS, SOUND, *END] if kind not in ITEMS]
            assert client.types(["session"]) == types
            response = client.of("response.done")[0]["response"]
            assert response["metadata"] == {"for": "me"} and response["conversation_id"] is None
            assert response["output"][0]["content"][0]["transcript"] == "tone number 1 ends"
            assert np.array_equal(client.sound(), samples_of(bytes_of(tone(440.0, 0, 12 * FRAME))))
            assert response["usage"]["input_token_details"]["audio_tokens"] == 8  # 0.6 s
            # The same in words, and about what the conversation has heard, by reference and by default.
            await client.say(noise(2, 0.4))
            await client.send("input_audio_buffer.commit")
            item = (await client.until("input_audio_buffer.committed"))["item_id"]
            for given in ({"input": [{"type": "item_reference", "id": item}]}, {}):
                asked = {"conversation": "none", "output_modalities": ["text"], **given}
                await client.send("response.create", response=asked)
                done = (await client.until("response.done"))["response"]
                assert done["output"][0]["content"] == [{"type": "output_text", "text": "tone number 1 ends"}]
                await client.send("conversation.item.retrieve", item_id=done["output"][0]["id"])
                assert (await client.until("error"))["error"]["code"] == "item_retrieve_invalid_item_id"

    run(go())


def test_what_is_said_over_the_user_is_the_answer_only_if_it_is_all():
    loud, still = np.full(FRAME, 0.5, np.float32), np.zeros(FRAME, np.float32)
    early = [Piece(-0.32, "", still), Piece(-0.24, "one", loud), Piece(-0.16, "", still), Piece(-0.08, "two", loud)]
    after = [Piece(0.0, "", still), Piece(0.08, "three", loud), Piece(0.16, "", still)]

    def said(pieces):
        return [(len(audio), words) for audio, words in spoken_part(pieces)]

    assert said([*early, *after]) == [(0, "one"), (0, "two"), (FRAME, "three")]
    assert said([*early, after[0]]) == [(FRAME, "one"), (FRAME, ""), (FRAME, "two")]
    assert said(after) == [(FRAME, "three")] and said([early[0], after[0]]) == []


def test_an_echo_aside_is_heard(serve):
    port, _ = serve("echo", dialects=("realtime",), speed=8)

    async def go():
        async with connected(port) as client:
            await client.configure(**QUIET)
            question = noise(3, 0.4)
            whole = spoken(np.pad(question, (0, 24_000)))  # of which nothing comes back once it is over
            await client.send("response.create", response={"conversation": "none", "input": [whole]})
            await client.until("response.done")
            assert client.words() == "echo" and np.array_equal(client.sound(), question)

    run(go())


class Texts(SignalModel):
    """`tone`, which also answers texts: slowly, with what it was told, and by calling functions that it is given."""

    capabilities = ("instructions", "tools")

    def __init__(self):
        super().__init__("tone")
        self.read, self.asked = [], []

    @property
    def tasks(self):
        return {**super().tasks, "answer": ("audio", "text")}

    def duplex_rows(self, rows):
        made = SignalRows("tone", rows)
        made.read = lambda row, role, text: self.read.append((role, text))
        made.instruct = lambda row, text: self.read.append(("instructions", text))
        made.cancel = lambda row: self.read.append(("cancel", row))
        return made

    def reply(self, turns, stream=False, instructions="", tools=(), **limits):
        self.asked.append((turns, instructions, tools))
        if any(text == "fail" for _, text in turns):
            raise ValueError("no such thing")
        if not stream:
            silent = Audio(np.zeros((1, 0), np.float32), RATE)
            return SimpleNamespace(text="", audio=silent, calls=[(tools[0]["name"], '{"x": 1}')])
        return self._slowly()

    def _slowly(self):
        for number in range(200):
            if number:
                asyncio.run(asyncio.sleep(0.01))
            yield Piece(number * 0.08, f"word{number}", np.full(FRAME, 0.1, np.float32))


def test_a_model_that_reads_is_given_texts_instructions_and_functions(serve):
    model = Texts()
    port, server = serve(model, dialects=("realtime",), speed=8)
    text = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "good morning"}]}
    tool = {"type": "function", "name": "light", "description": "…", "parameters": {"type": "object"}}

    async def go():
        async with connected(port) as client:
            able = client.events[0]["capabilities"]
            assert able["text_input"] and able["tools"] and able["instructions"] and able["reads"] and able["follows"]
            updated = await client.ask("session.updated", "session.update", session={
                "type": "realtime", "instructions": "Be brief.", "tools": [tool], **QUIET})
            assert updated["session"]["tools"] == [tool] and "notices" not in updated
            await client.ask("conversation.item.added", "conversation.item.create", item=text)
            output = {"type": "function_call_output", "call_id": "call_1", "output": "done"}
            added = await client.ask("conversation.item.added", "conversation.item.create", item=output)
            assert added["item"]["call_id"] == "call_1" and added["item"]["output"] == "done"
            # An answer that calls a function.
            asked = {"conversation": "none", "input": [text], "tool_choice": "auto"}
            await client.send("response.create", response=asked)
            done = (await client.until("response.done"))["response"]
            call = done["output"][0]
            assert (call["type"], call["name"], call["arguments"]) == ("function_call", "light", '{"x": 1}')
            told = client.of("response.function_call_arguments.done")[0]
            assert told["call_id"] == call["call_id"] and told["name"] == "light"
            # One that goes on, and is cancelled by its id.
            asked = {"conversation": "none", "input": [text], "tools": []}
            await client.send("response.create", response=asked)
            response = (await client.until("response.created"))["response"]["id"]
            await client.until(WORDS)
            await client.send("response.cancel", response_id=response)
            done = (await client.until("response.done"))["response"]
            assert done["status_details"]["reason"] == "client_cancelled"
            assert 1 <= len(client.words(response).split()) < 150
            # One that fails ends as failed, and nothing else does.
            broken = {**text, "content": [{"type": "input_text", "text": "fail"}]}
            await client.send("response.create", response={**asked, "input": [broken]})
            done = (await client.until("response.done"))["response"]
            assert done["status"] == "failed" and done["status_details"]["error"]["code"] == "model_failed"
            await client.configure(instructions="Be long.")
            while ("instructions", "Be long.") not in model.read:
                await asyncio.sleep(0.02)
        assert ("user", "good morning") in model.read
        assert ("tool", {"call_id": "call_1", "output": "done"}) in model.read
        assert model.asked[0] == ([("user", "good morning")], "Be brief.", [tool])
        assert model.asked[1][1:] == ("Be brief.", ())

    run(go())
    nobody_left(server)


def test_an_arithmetic_question_is_heard_and_answered_in_words(serve):
    """The embedded model, at its own pace, asked by push to talk and by voice."""
    port, _ = serve(vivavoce.load("mini"), dialects=("realtime",), rows=1)

    async def go():
        async with connected(port, "model=mini") as client:
            assert client.events[0]["session"]["model"] == "mini"
            await client.say(recording("three-four-george-joined"))
            done = (await client.until("response.done", 60))["response"]
            assert done["output"][0]["content"][0]["transcript"] == "three plus four is seven"
            assert client.words() == "three plus four is seven"
            words = await client.have("conversation.item.input_audio_transcription.completed")
            assert words["transcript"] == "three four"
            sound = samples_of(b"".join(base64.b64decode(e["delta"]) for e in client.of(SOUND)))
            assert 1.0 < len(sound) / 24_000 < 4.0 and np.abs(sound).max() > 0.05
            tokens = done["usage"]["output_token_details"]
            assert tokens["text_tokens"] == 5 and tokens["audio_tokens"] % 8 == 0

    run(go(), 120)
