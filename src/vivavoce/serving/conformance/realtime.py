"""Checks of OpenAI Realtime, GA, as `openai` 3.52 has it: connections, sessions, what is no event, routes of HTTP."""

import json

from vivavoce.serving.conformance.realtime_session import (
    PATH,
    SERVER_VAD,
    RealtimeDialect,
    check_in_force,
)
from vivavoce.serving.conformance.rules import LINK, ROUTE, Checks, NotSupported, Skipped, Wrong, shown
from vivavoce.serving.conformance.target import NO_KEY, Form

CHECKS = Checks("realtime")
# An offer as a browser makes one: a track of Opus and a data channel. Nobody is behind its candidates.
OFFER = "\r\n".join((
    "v=0", "o=- 4611731400430051336 2 IN IP4 127.0.0.1", "s=-", "t=0 0", "a=group:BUNDLE 0 1",
    "a=msid-semantic: WMS", "m=audio 9 UDP/TLS/RTP/SAVPF 111", "c=IN IP4 0.0.0.0", "a=rtcp:9 IN IP4 0.0.0.0",
    "a=ice-ufrag:vvcf", "a=ice-pwd:vivavoceconformancecheck", "a=ice-options:trickle",
    "a=fingerprint:sha-256 " + ":".join(["AB"] * 32), "a=setup:actpass", "a=mid:0", "a=sendrecv", "a=rtcp-mux",
    "a=rtpmap:111 opus/48000/2", "a=fmtp:111 minptime=10;useinbandfec=1", "a=ssrc:1001 cname:vivavoce",
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "c=IN IP4 0.0.0.0", "a=ice-ufrag:vvcf",
    "a=ice-pwd:vivavoceconformancecheck", "a=ice-options:trickle", "a=fingerprint:sha-256 " + ":".join(["AB"] * 32),
    "a=setup:actpass", "a=mid:1", "a=sctp-port:5000", "a=max-message-size:262144", "",
))  # fmt: skip


# -- connections --


@CHECKS.of("WebSocket /v1/realtime", "connect", "a handshake with ?model=", "session.created, first", LINK)
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        session = link.of("session.created")[0]["session"]
        return f"model {shown(session.get('model'))}"


@CHECKS.of("WebSocket /v1/realtime", "browser", "the subprotocols of a browser, the key in one", "'realtime'", LINK)
async def _(on: RealtimeDialect) -> None:
    key = on.target.key or "none"
    async with on.talk(headers={}, protocols=["realtime", f"openai-insecure-api-key.{key}"]) as link:
        if link.socket.subprotocol != "realtime":
            raise Wrong(f"the subprotocol {shown(link.socket.subprotocol)} is chosen: browsers need 'realtime'")


@CHECKS.of("WebSocket /v1/realtime", "wrong key", "a key that there is not", "401, or error and close 1008", LINK)
async def _(on: RealtimeDialect) -> str:
    try:
        async with on.talk(headers={"Authorization": "Bearer no-key-of-this-server"}):
            pass
    except Skipped as refusal:
        return str(refusal).removeprefix(f"{NO_KEY}: ")
    raise Skipped("every key opens this server")


@CHECKS.of("WebSocket /v1/realtime", "close", "a close, 1000", "the closing handshake within 5 s", LINK)
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.socket.close()
        return f"closed with {await link.closed(6.0)}"


# -- session.update --


def _session(name: str, words: str, **asked: object) -> None:
    @CHECKS.of("session.update", name, words, "session.updated with all of it in force")
    async def _(on: RealtimeDialect) -> None:
        async with on.talk() as link:
            found = await link.configure(**asked)
            if notices := link.of("session.updated")[-1].get("notices"):
                raise NotSupported(f"taken, without effect: {notices[0]['message']}")
            check_in_force(found, asked)


_session("instructions", "instructions", instructions="Answer in one word.")
_session("server_vad", "turn_detection with all of server_vad", audio={"input": {"turn_detection": SERVER_VAD}})
_session(
    "semantic_vad", "turn_detection semantic_vad", audio={"input": {"turn_detection": {
        "type": "semantic_vad", "eagerness": "high", "create_response": True, "interrupt_response": True}}},
)  # fmt: skip
_session("no turn detection", "turn_detection null", audio={"input": {"turn_detection": None}})
for _kind in ("audio/pcmu", "audio/pcma"):
    _session(f"format {_kind[6:]}", f"{_kind} both ways",
             audio={"input": {"format": {"type": _kind}}, "output": {"format": {"type": _kind}}})  # fmt: skip
_session("format pcm", "audio/pcm both ways", audio={
    "input": {"format": {"type": "audio/pcm", "rate": 24000}}, "output": {"format": {"type": "audio/pcm"}}})
_session("text", "output_modalities text", output_modalities=["text"])
_session("max_output_tokens", "max_output_tokens", max_output_tokens=500)
_session("tools", "a function, tool_choice auto", tool_choice="auto", tools=[
    {"type": "function", "name": "weather", "description": "the weather", "parameters": {"type": "object"}}])
_session("transcription", "input transcription", audio={"input": {"transcription": {"model": "whisper-1"}}})
_session("speed", "audio.output.speed 1.2", audio={"output": {"speed": 1.2}})
_session("noise_reduction", "noise_reduction near_field", audio={"input": {"noise_reduction": {"type": "near_field"}}})


@CHECKS.of("session.update", "one thing", "one field, then another", "what was left out stays as it was")
async def _(on: RealtimeDialect) -> None:
    async with on.talk() as link:
        await link.configure(audio={"input": {"turn_detection": None}})
        found = await link.configure(output_modalities=["audio"])
        check_in_force(found, {"audio": {"input": {"turn_detection": None}}, "output_modalities": ["audio"]})


@CHECKS.of("session.update", "wrong value", "output_modalities ['smell']", "error; nothing is changed")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        before = await link.configure(output_modalities=["audio"])
        session = {"type": "realtime", "output_modalities": ["smell"], "instructions": "Whisper."}
        code = await link.refused("session.update", ["session.updated"], session=session)
        after = await link.configure(output_modalities=["audio"])
        check_in_force(after, {"instructions": before.get("instructions")})
        return code


@CHECKS.of("session.update", "transcription session", "?intent=transcription", "a session of type transcription")
async def _(on: RealtimeDialect) -> None:
    async with on.talk(query={"intent": "transcription"}) as link:
        session = link.of("session.created")[0]["session"]
        if session.get("type") != "transcription":
            raise NotSupported(f"session.created tells a session of type {shown(session.get('type'))}")


# -- what is no event --


def _garbage(name: str, words: str, message: str | bytes) -> None:
    @CHECKS.of("any message", name, words, "error; the session goes on")
    async def _(on: RealtimeDialect) -> str:
        async with on.talk() as link:
            link.mark, link.ids = len(link.events), []
            await link.write(message)
            code = await link.error()
            await link.alive(words)
            return code


_garbage("no JSON", "a text that is no JSON", "{this is no JSON")
_garbage("no object", "JSON that is no object", "[1, 2, 3]")
_garbage("no type", "an object without a type", json.dumps({"event": "session.update"}))
_garbage("binary", "a binary message", b"\x00\x01\x02")


@CHECKS.of("any message", "unknown type", "an event of no type that there is", "error with our event_id")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        code = await link.refused("conversation.smell.create")
        about = link.of("error")[-1]["error"].get("event_id")
        if about != link.ids[0]:
            raise Wrong(f"the error's event_id is {shown(about)}, {shown(link.ids[0])} was the client's event")
        await link.alive("an unknown event")
        return code


@CHECKS.of("any message", "missing field", "append without audio", "error that names the parameter")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        code = await link.refused("input_audio_buffer.append")
        param = link.of("error")[-1]["error"].get("param")
        await link.alive("an event that lacks a field")
        return f"{code}, param {shown(param)}"


# -- over HTTP --


@CHECKS.of("POST /v1/realtime/client_secrets", "secret", "a session", "a secret that opens a WebSocket", ROUTE)
async def _(on: RealtimeDialect) -> str:
    target = on.target
    wanted = {"session": {"type": "realtime", "model": target.model("realtime")}}
    made = (await target.http("POST", f"{PATH}/client_secrets", wanted)).good().json()
    if not isinstance(made.get("value"), str) or not isinstance(made.get("expires_at"), int):
        raise Wrong(f"{shown(made)}: value and expires_at are expected")
    if not isinstance(made.get("session"), dict):
        raise Wrong("the session is missing")
    async with on.talk(headers={"Authorization": f"Bearer {made['value']}"}):
        return f"{made['value'][:3]}…"


@CHECKS.of("POST /v1/realtime/sessions", "secret", "a session of the beta", "client_secret in a flat session", ROUTE)
async def _(on: RealtimeDialect) -> None:
    wanted = {"model": on.target.model("realtime"), "modalities": ["audio", "text"]}
    made = (await on.target.http("POST", f"{PATH}/sessions", wanted)).good().json()
    secret = made.get("client_secret")
    if not isinstance(secret, dict) or not isinstance(secret.get("value"), str):
        raise Wrong(f"client_secret is {shown(secret)}: value and expires_at are expected")
    if "modalities" not in made:
        raise Wrong("the session is not flat: it has no modalities")


@CHECKS.of("POST /v1/realtime/calls", "WebRTC", "an SDP offer and a session", "201, an SDP answer, Location", ROUTE)
async def _(on: RealtimeDialect) -> str:
    target = on.target
    session = json.dumps({"type": "realtime", "model": target.model("realtime")})
    reply = await target.http("POST", f"{PATH}/calls", Form([("sdp", OFFER), ("session", session)]))
    reply.good()
    if reply.status != 201 or not reply.body.startswith(b"v=0"):
        begins = shown(reply.body[:30].decode(errors="replace"))
        raise Wrong(f"answers {reply.status} {begins}: 201 with an SDP answer is expected")
    place = reply.headers.get("location", "")
    if not place.rstrip("/").rpartition("/")[2] or "/realtime/calls/" not in place:
        raise Wrong(f"Location is {shown(place)}: …/v1/realtime/calls/CALL_ID is expected")
    ended = await target.http("POST", f"{PATH}/calls/{place.rstrip('/').rpartition('/')[2]}/hangup", {})
    return f"and hangup answers {ended.status}"

