"""The Realtime session object: how updates merge, what is wrong with them, and the beta's spelling of all of it."""

import numpy as np
import pytest

from serving.realtime_clients.raw import RATE, base64_of, connected, noise, run
from vivavoce.serving.realtime.settings import (
    BETA_FORMATS,
    Invalid,
    beta_param,
    beta_session,
    default_session,
    from_beta,
    looks_like_beta,
    merge,
)


def session(**audio_input):
    return merge(default_session(True), {"audio": {"input": audio_input}})


def test_what_is_left_out_stays_and_null_clears():
    first = session(turn_detection={"type": "server_vad", "threshold": 0.8})
    rules = first["audio"]["input"]["turn_detection"]
    assert rules["threshold"] == 0.8 and rules["silence_duration_ms"] == 500 and rules["create_response"] is True
    second = merge(first, {"audio": {"input": {"turn_detection": {"silence_duration_ms": 200}}}, "instructions": "x"})
    rules = second["audio"]["input"]["turn_detection"]
    assert (rules["threshold"], rules["silence_duration_ms"], second["instructions"]) == (0.8, 200, "x")
    assert first["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 500  # the first is as it was
    third = merge(second, {"audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}}}})
    assert third["audio"]["input"]["turn_detection"] == {
        "type": "semantic_vad", "eagerness": "low", "create_response": True, "interrupt_response": True,
    }  # fmt: skip
    cleared = merge(third, {"audio": {"input": {"turn_detection": None, "transcription": None}}, "instructions": None})
    assert cleared["audio"]["input"]["turn_detection"] is cleared["audio"]["input"]["transcription"] is None
    assert cleared["instructions"] == ""
    assert merge(cleared, {"max_output_tokens": None})["max_output_tokens"] == "inf"
    assert merge(cleared, {"audio": {"output": None}})["audio"]["output"]["speed"] == 1.0
    again = merge(cleared, {"audio": {"input": {"transcription": {"model": "x", "language": "en"}}}})
    again = merge(again, {"audio": {"input": {"transcription": {"language": None}}}})
    assert again["audio"]["input"]["transcription"] == {"model": "x", "language": None}


@pytest.mark.parametrize(
    ("update", "param"),
    [
        ({"audio": 7}, "session.audio"),
        ({"audio": {"input": {"smell": 1}}}, "session.audio.input.smell"),
        ({"audio": {"input": {"turn_detection": {"type": "telepathy"}}}}, "session.audio.input.turn_detection.type"),
        ({"audio": {"input": {"turn_detection": {"type": "semantic_vad", "threshold": 0.1}}}},
         "session.audio.input.turn_detection.threshold"),
        ({"audio": {"input": {"turn_detection": {"prefix_padding_ms": True}}}},
         "session.audio.input.turn_detection.prefix_padding_ms"),
        ({"audio": {"output": {"format": {"type": "audio/mp3"}}}}, "session.audio.output.format.type"),
        ({"audio": {"output": {"format": {"type": "audio/pcmu", "bits": 8}}}}, "session.audio.output.format.bits"),
        ({"audio": {"output": {"voice": ["x"]}}}, "session.audio.output.voice"),
        ({"max_output_tokens": "many"}, "session.max_output_tokens"),
        ({"max_output_tokens": float("nan")}, "session.max_output_tokens"),
        ({"tools": [{"type": "function"}]}, "session.tools[0].name"),
        ({"tools": {}}, "session.tools"),
        ({"type": "telephone"}, "session.type"),
        ({"include": [1]}, "session.include[0]"),
        ({"instructions": "x" * 200_000}, "session.instructions"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(update, param):
    with pytest.raises(Invalid) as found:
        merge(default_session(True), update)
    assert found.value.param == param and found.value.code in ("invalid_value", "unknown_parameter")


def test_the_beta_is_flat_both_ways():
    update = {
        "modalities": ["text", "audio"], "voice": "sage", "input_audio_format": "g711_ulaw",
        "output_audio_format": "g711_alaw", "input_audio_transcription": {"model": "whisper-1"},
        "turn_detection": {"type": "server_vad", "threshold": 0.7}, "temperature": 0.9,
        "max_response_output_tokens": 77, "tools": [], "instructions": "Hello",
    }  # fmt: skip
    assert looks_like_beta(update) and not looks_like_beta({"type": "realtime"}) and not looks_like_beta({"audio": {}})
    whole = merge(default_session(True), from_beta(update))
    assert whole["audio"]["input"]["format"] == {"type": "audio/pcmu"} and whole["max_output_tokens"] == 77
    flat = beta_session(whole)
    assert "audio" not in flat and "output_modalities" not in flat
    for name, value in update.items():
        if name == "turn_detection":
            assert flat[name]["threshold"] == 0.7 and flat[name]["silence_duration_ms"] == 500
        else:
            assert flat[name] == value, name
    assert merge(whole, from_beta({"turn_detection": {"type": "none"}}))["audio"]["input"]["turn_detection"] is None
    for wrong in ({"input_audio_format": "mp3"}, {"audio": {}, "voice": "x"}):
        with pytest.raises(Invalid):
            from_beta(wrong)
    assert beta_param("session.audio.input.turn_detection.threshold") == "session.turn_detection.threshold"
    assert beta_param("session.tools[0].name") == "session.tools[0].name"
    assert set(BETA_FORMATS.values()) == {"pcm16", "g711_ulaw", "g711_alaw"}


BETA_ORDER = [
    "input_audio_buffer.committed", "conversation.item.created", "response.created", "response.output_item.added",
    "conversation.item.created", "response.content_part.added", "response.audio_transcript.delta",
    "response.audio.delta", "response.audio_transcript.delta", "response.audio.delta",
    "response.audio_transcript.delta", "response.audio.delta", "response.audio.done",
    "response.audio_transcript.done", "response.content_part.done", "response.output_item.done", "response.done",
    "rate_limits.updated",
]  # fmt: skip


@pytest.mark.parametrize("how", ["header", "subprotocol", "update"])
def test_clients_of_the_beta_are_answered_in_their_spelling(serve, how):
    port, _ = serve("tone", dialects=("realtime",), speed=8)
    options = {
        "header": {"headers": {"OpenAI-Beta": "realtime=v1"}},
        "subprotocol": {"protocols": ["realtime", "openai-insecure-api-key.x", "openai-beta.realtime-v1"]},
        "update": {},
    }[how]

    async def go():
        async with connected(port, "model=tone", path="/v1/realtime/", **options) as client:
            created = client.events[0]["session"]
            assert ("modalities" in created) == (how != "update")
            if how != "update":
                assert (await client.next())["type"] == "conversation.created"
            update = {"turn_detection": None, "modalities": ["audio", "text"], "output_audio_format": "pcm16"}
            updated = await client.ask("session.updated", "session.update", session=update)
            assert updated["session"]["turn_detection"] is None and "audio" not in updated["session"]
            assert updated["session"]["modalities"] == ["text", "audio"]
            first = len(client.events)
            await client.say(noise(1, 0.6))
            await client.send("input_audio_buffer.commit")
            await client.send("response.create", response={"modalities": ["text", "audio"]})
            await client.until("rate_limits.updated")
            without = ["session", "conversation.item.input", "conversation.created"]
            client.events = client.events[first:]
            assert client.types(without) == BETA_ORDER
            response = client.of("response.done")[0]["response"]
            assert response["output"][0]["content"] == [{"type": "audio", "transcript": "tone number 1 ends"}]
            assert response["modalities"] == ["text", "audio"] and response["output_audio_format"] == "pcm16"
            assert len(client.sound(name="response.audio.delta")) >= 12 * 1920
            await client.send("session.update", session={"turn_detection": {"type": "server_vad", "threshold": 9}})
            assert (await client.until("error"))["error"]["param"] == "session.turn_detection.threshold"

    run(go())


def test_a_transcription_session_only_writes(serve):
    port, _ = serve("tone", dialects=("realtime",), speed=8)

    async def go():
        async with connected(port, "intent=transcription") as client:
            found = client.events[0]["session"]
            assert found["type"] == "transcription" and set(found["audio"]) == {"input"}
            await client.send("response.create")
            assert (await client.until("error"))["error"]["code"] == "invalid_value"
            await client.say(np.concatenate([noise(1, 0.6), np.zeros(RATE, np.float32), noise(2, 0.6)]))
            first = await client.until("conversation.item.input_audio_transcription.completed")
            assert set(first["transcript"].split()) == {"sound"}
            assert not client.of("response.created")
            await client.ask("input_audio_buffer.cleared", "input_audio_buffer.clear")
            await client.send("input_audio_buffer.append", audio=base64_of(noise(3, 0.5)))
            await client.send("input_audio_buffer.commit")
            await client.until("input_audio_buffer.committed")

    run(go())
