"""REST by plain HTTP: what is answered, to the sample and to the word."""

import base64
import io
import json
import time

import numpy as np
import soundfile

import vivavoce
from serving.rest_calls import SPEECH, TEXT, call, error_of, events, sound, spoken, wav
from vivavoce.audio import Audio
from vivavoce.dialogue import Piece
from vivavoce.serving.access import Access, Key, digest_of
from vivavoce.serving.sound_formats import bytes_of
from vivavoce.systems.signal_models import FRAME, RATE


def test_speech_is_what_the_model_says(serve):
    port, _ = serve("tone", ("rest",))
    expected = bytes_of(vivavoce.load("tone").reply([("user", TEXT)], task="speak").audio.samples[0])
    status, body, headers = call(port, "/v1/audio/speech", {**SPEECH, "response_format": "wav"})
    assert status == 200 and headers["content-type"] == "audio/wav" and headers["transfer-encoding"] == "chunked"
    assert body[4:8] == body[40:44] == b"\xff\xff\xff\xff" and body[44:] == expected
    own = {**SPEECH, "response_format": "pcm", "voice": {"id": "tone"}}
    status, body, headers = call(port, "/v1/audio/speech", own)
    assert (status, headers["content-type"], body) == (200, "audio/pcm", expected)
    _, body, headers = call(port, "/v1/audio/speech", {**SPEECH, "response_format": "flac", "speed": 1})
    assert soundfile.read(io.BytesIO(body), dtype="int16")[0].tobytes() == expected
    _, body, headers = call(port, "/v1/audio/speech", SPEECH)
    assert headers["content-type"] == "audio/mpeg" and soundfile.info(io.BytesIO(body)).format == "MP3"
    other = call(port, "/v1/audio/speech", {**SPEECH, "response_format": "pcm", "seed": 9})[1]
    assert other != expected and len(other) == len(expected)


def test_speech_as_events_is_the_same_sound(serve):
    port, _ = serve("tone", ("rest",))
    asked = {**SPEECH, "response_format": "pcm", "stream_format": "sse"}
    status, body, headers = call(port, "/v1/audio/speech", asked)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    *deltas, done = events(body)
    assert {event["type"] for event in deltas} == {"speech.audio.delta"} and len(deltas) >= 9
    heard = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    assert heard == call(port, "/v1/audio/speech", {**SPEECH, "response_format": "pcm"})[1]
    usage = {"input_tokens": 3, "output_tokens": 9, "total_tokens": 12}
    assert done == {"type": "speech.audio.done", "usage": usage}


def test_a_recording_is_written_down_in_every_form(serve):
    port, _ = serve("tone", ("rest",))
    two = Audio(np.concatenate([sound().samples, sound().samples], 1), RATE)  # two sounds of 0.4 s, at 0 and 0.8 s

    def ask(*fields, path="transcriptions"):
        return call(port, f"/v1/audio/{path}", ([("model", "tone"), *fields], wav(two)))

    status, body, _ = ask()
    usage = {"type": "duration", "seconds": 1.6}
    assert status == 200 and json.loads(body) == {"text": "sound sound", "usage": usage}
    status, body, headers = ask(("response_format", "text"), ("temperature", "0"), ("chunking_strategy", "auto"))
    assert body == b"sound sound\n" and headers["content-type"].startswith("text/plain")
    assert ask(("response_format", "srt"))[1].decode() == (
        "1\n00:00:00,000 --> 00:00:00,880\nsound sound\n\n")
    assert ask(("response_format", "vtt"))[1].decode() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:00.880\nsound sound\n\n")
    found = json.loads(ask(("response_format", "verbose_json"), ("timestamp_granularities[]", "word"))[1])
    assert [word["word"] for word in found["words"]] == ["sound", "sound"] and found["duration"] == 1.6
    assert [word["end"] for word in found["words"]] == [0.08, 0.88] and "segments" not in found
    assert found["task"] == "transcribe" and found["language"] == "und"
    found = json.loads(ask(("response_format", "verbose_json"), ("language", "en"))[1])
    assert [row["text"] for row in found["segments"]] == ["sound sound"] and found["language"] == "en"
    *deltas, done, last = events(ask(("stream", "true"))[1])
    assert [event["delta"] for event in deltas] == ["sound", " sound"] and last == "[DONE]"
    assert (done["type"], done["text"]) == ("transcript.text.done", "sound sound")
    assert done["usage"]["input_token_details"]["audio_tokens"] == done["usage"]["input_tokens"] == 20
    translated = json.loads(ask(path="translations")[1])
    assert translated["text"] == "tone tone number 2 ends"  # this model's translation is its answer


def test_an_answer_in_chat_is_the_models_reply(serve):
    port, _ = serve("tone", ("rest",))
    expected = vivavoce.load("tone").reply([("user", sound())])
    asked = spoken(sound(), modalities=["text", "audio"], audio={"voice": "default", "format": "wav"})
    status, body, _ = call(port, "/v1/chat/completions", asked)
    found = json.loads(body)
    choice, = found["choices"]
    message = choice["message"]
    assert status == 200 and found["object"] == "chat.completion" and choice["finish_reason"] == "stop"
    assert message["content"] is None and message["audio"]["transcript"] == expected.text == "tone number 1 ends"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(message["audio"]["data"])), dtype="int16")
    assert rate == RATE and samples.tobytes() == bytes_of(expected.audio.samples[0])
    frames = -(-len(expected.audio) // FRAME)
    assert found["usage"] == {
        "prompt_tokens": 10, "completion_tokens": frames + 4, "total_tokens": frames + 14,
        "prompt_tokens_details": {"audio_tokens": 10, "text_tokens": 0, "cached_tokens": 0},
        "completion_tokens_details": {"audio_tokens": frames, "text_tokens": 4, "reasoning_tokens": 0},
    }
    assert 3500 < message["audio"]["expires_at"] - time.time() < 3700
    for name in ("flac", "mp3", "opus", "pcm16"):
        asked["audio"]["format"] = name
        audio = json.loads(call(port, "/v1/chat/completions", asked)[1])["choices"][0]["message"]["audio"]
        data = base64.b64decode(audio["data"])
        if name == "pcm16":
            assert data == samples.tobytes()
        else:
            assert abs(soundfile.info(io.BytesIO(data)).duration - len(samples) / RATE) < 0.1
    written = json.loads(call(port, "/v1/chat/completions", spoken(sound()))[1])
    assert written["choices"][0]["message"]["content"] == "tone number 1 ends"
    assert "audio" not in written["choices"][0]["message"]


def test_an_answer_as_a_stream_is_the_same(serve):
    port, _ = serve("tone", ("rest",))
    sounding = {"modalities": ["text", "audio"], "audio": {"voice": "default", "format": "pcm16"}, "stream": True}
    asked = spoken(sound(), **sounding, stream_options={"include_usage": True})
    *chunks, used, done = events(call(port, "/v1/chat/completions", asked)[1])
    assert done == "[DONE]" and used["choices"] == [] and used["usage"]["completion_tokens_details"]["text_tokens"] == 4
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"} and len({c["id"] for c in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant" and deltas[0]["audio"]["id"].startswith("audio_")
    assert "".join(d.get("audio", {}).get("transcript", "") for d in deltas) == "tone number 1 ends"
    data = b"".join(base64.b64decode(d.get("audio", {}).get("data", "")) for d in deltas)
    assert data == bytes_of(vivavoce.load("tone").reply([("user", sound())]).audio.samples[0])
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop" and deltas[-1]["audio"]["expires_at"] > time.time()
    *chunks, done = events(call(port, "/v1/chat/completions", spoken(sound(), stream=True))[1])
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "tone number 1 ends"
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}


def test_an_answer_ends_at_the_tokens_that_were_asked_for(serve):
    port, _ = serve("tone", ("rest",))
    found = json.loads(call(port, "/v1/chat/completions", spoken(sound(), max_completion_tokens=1))[1])
    assert found["choices"][0]["message"]["content"] == "tone" and found["choices"][0]["finish_reason"] == "length"
    asked = spoken(sound(), modalities=["text", "audio"], audio={"format": "pcm16"}, max_tokens=6)
    found = json.loads(call(port, "/v1/chat/completions", asked)[1])
    assert 0 < found["usage"]["completion_tokens"] <= 6 and found["choices"][0]["finish_reason"] == "length"


def test_a_chat_goes_on_from_the_models_own_answers(serve):
    keys = {digest_of(k): Key(k, digest_of(k)) for k in ("me", "you")}
    port, _ = serve("tone", ("rest",), access=Access(keys))
    me, you = {"Authorization": "Bearer me"}, {"Authorization": "Bearer you"}
    first = spoken(sound(), modalities=["text", "audio"], audio={"format": "wav"}, seed=3)
    answer = json.loads(call(port, "/v1/chat/completions", first, me)[1])["choices"][0]["message"]
    turn, other = first["messages"][0], spoken(sound(0.2))["messages"][0]

    def ask(*history, headers=me, **fields):
        found = call(port, "/v1/chat/completions", {"model": "tone", "messages": [*history, other], **fields}, headers)
        return json.loads(found[1])["choices"][0]["message"]["content"] if found[0] == 200 else error_of(found)[1]

    by_id = {"role": "assistant", "content": None, "audio": {"id": answer["audio"]["id"]}}
    by_words = {"role": "assistant", "content": "tone number 1 ends"}
    assert ask() == "tone number 1 ends"  # of a conversation of its own
    assert ask(turn, by_id) == ask(turn, answer) == ask(turn, by_words) == "tone number 2 ends"
    assert ask(turn, {"role": "assistant", "content": [{"type": "text", "text": "tone number 1 ends"}]}) == (
        "tone number 2 ends")
    assert ask(turn, by_id, seed=3) == "tone number 2 ends" and ask(turn, by_id, seed=4) == "history_seed"
    assert ask(turn, by_id, headers=you) == "audio_not_found"
    assert ask(turn, {"role": "assistant", "audio": {"id": "audio_x"}}) == "audio_not_found"
    assert ask(other, by_id) == ask(turn, turn, by_id) == "history_mismatch"
    assert ask(turn, {"role": "assistant", "content": "seven"}) == "history_not_own"
    assert ask(turn, by_words, headers=you) == "history_not_own"


class TakesTurns:
    """A half-duplex model that says no more of itself than it must: it counts the turns that it is given."""

    name, sample_rate, verbs = "counter", 16_000, {"reply": "native", "duplex": "derived"}

    def __init__(self):
        self.given = []

    def duplex_rows(self, rows):
        return vivavoce.load("tone").duplex_rows(rows)

    def reply(self, turns, stream=False):
        self.given.append(turns)
        count = len(turns)
        return iter([Piece(0.0, f"{count} turns", np.full(1600, count / 8, np.float32)), Piece(0.1, "", np.zeros(9))])


def test_a_model_that_takes_turns_is_given_its_own(serve):
    model = TakesTurns()
    port, _ = serve(model, ("rest",))
    asked = spoken(sound(), modalities=["text", "audio"], audio={"format": "pcm16"}, model="counter")
    first = json.loads(call(port, "/v1/chat/completions", asked)[1])["choices"][0]["message"]
    assert first["audio"]["transcript"] == "1 turns"
    history = {"role": "assistant", "audio": {"id": first["audio"]["id"]}}
    other = spoken(sound(0.2))["messages"][0]
    asked |= {"messages": [*asked["messages"], history, other], "stream": True}
    *chunks, _ = events(call(port, "/v1/chat/completions", asked)[1])
    assert "".join(c["choices"][0]["delta"].get("audio", {}).get("transcript", "") for c in chunks) == "3 turns"
    assert [role for role, _ in model.given[1]] == ["user", "model", "user"]
    own = model.given[1][1][1]
    assert own.sample_rate == 16_000 and own.samples[0].tolist() == [0.125] * 1600 + [0.0] * 9
    again = chunks[0]["choices"][0]["delta"]["audio"]["id"]  # of an answer that was streamed
    asked["messages"] += [{"role": "assistant", "audio": {"id": again}}, other]
    call(port, "/v1/chat/completions", asked)
    assert len(model.given[2]) == 5 and model.given[2][3][1].samples[0, 0] == 0.375
    assert error_of(call(port, "/v1/chat/completions", {**spoken(sound(), seed=3), "model": "counter"})) == (
        400, "invalid_request")
    found, = json.loads(call(port, "/v1/capabilities")[1])["data"]
    assert found["duplex"] == "half" and found["tasks"] == {"answer": ["audio"]} and found["streams"] == {}


def test_parts_of_one_message_are_one_turn(serve):
    port, _ = serve("tone", ("rest",))
    whole = json.loads(call(port, "/v1/chat/completions", spoken(sound(), sound()))[1])
    assert whole["usage"]["prompt_tokens_details"]["audio_tokens"] == 20
    assert whole["choices"][0]["message"]["content"] == "tone tone number 2 ends"  # it heard both, one after the other


def test_models_and_what_they_can_do(serve):
    port, _ = serve("echo", ("rest",))
    _, body, _ = call(port, "/v1/models")
    card, = json.loads(body)["data"]
    assert (card["id"], card["object"], card["owned_by"]) == ("echo", "model", "vivavoce") and card["created"] > 1e9
    assert json.loads(call(port, "/v1/models/echo")[1]) == card
    assert error_of(call(port, "/v1/models/some/one")) == (404, "model_not_found")
    found, = json.loads(call(port, "/v1/capabilities")[1])["data"]
    assert (found["id"], found["duplex"], found["sample_rate"], found["frame_size"]) == ("echo", "full", RATE, FRAME)
    assert found["tasks"]["speak"] == ["text"] and found["tasks"]["answer"] == ["audio"]
    assert found["endpoints"]["/v1/audio/translations"] and found["speech_formats"]["wav"]["streams"]
    assert found["limits"]["input_seconds"] == 600.0 and found["languages"] is None


def test_the_parts_of_mini_are_told():
    from vivavoce.schema import read_recipe
    from vivavoce.serving.capabilities import capabilities, greedy
    from vivavoce.systems import assemble

    model = assemble(read_recipe("mini", "smoke"))
    found = capabilities(model, "mini", 1280)
    assert found["tasks"] == {"answer": ["audio"], "transcribe": ["audio"], "speak": ["text"]}
    assert not found["endpoints"]["/v1/audio/translations"] and found["verbs"]["reply"] == "derived"
    assert found["streams"]["user"] == {"modality": "frames", "part": "hears", "width": 16}
    assert found["streams"]["text"] == {"modality": "text", "part": "writes", "levels": 1, "vocabulary": 22}
    assert found["streams"]["voice"]["part"] == "speaks" and json.dumps(found)
    assert greedy(model) and greedy(vivavoce.load("tone"))
    assert not greedy(assemble(read_recipe("mini", "smoke", {"stages.dialogue.decode.sampling": {"temperature": 1.0}})))
