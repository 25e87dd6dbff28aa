"""A small server of all dialects that keeps to the protocols but for one fault, which its path names.

`/none/v1/realtime` has no fault; `/hangs/v1/realtime` the fault `hangs`. What a fault does is where its name stands.
"""

import asyncio
import base64
import contextlib
import json
import threading
import time

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from vivavoce.serving.opus import OggOpusOut
from vivavoce.serving.sound_formats import bytes_of

RATE = 24_000
WORDS = ["seven", " of", " nine"]


def tone(seconds, rate=RATE):
    return (0.25 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(data):
    return base64.b64encode(data).decode()


class Talk:
    """One WebSocket of JSON: numbered events out, commands in."""

    def __init__(self, socket):
        self.socket, self.fault, self.number = socket, socket.path_params["fault"], 0

    async def send(self, kind, **fields):
        self.number += 0 if self.fault == "same event_id" and kind == "session.updated" else 1
        event = {"type": kind, "event_id": f"event_{id(self)}_{self.number}", **fields}
        if self.fault == "no event_id":
            del event["event_id"]
        if self.fault == "binary":
            await self.socket.send_bytes(json.dumps(event).encode())
        else:
            await self.socket.send_text(json.dumps(event))

    async def run(self):
        await self.socket.accept()
        try:
            await self.begin()
            while True:
                message = await self.socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                try:
                    event = json.loads(message.get("text") or "")
                except ValueError:
                    event = None
                if not isinstance(event, dict) or "type" not in event:
                    if self.fault == "closes on no JSON":
                        await self.socket.close(1011)
                        return
                    await self.refuse(None, "invalid_event")
                else:
                    await self.obey(event, event["type"], event.get("event_id"))
        except (WebSocketDisconnect, RuntimeError):
            return


class Realtime(Talk):
    """OpenAI Realtime with push to talk."""

    async def begin(self):
        form = {"type": "audio/pcm", "rate": RATE}
        self.session = {
            "type": "realtime", "output_modalities": ["audio"], "instructions": "",
            "audio": {"input": {"format": form, "turn_detection": None}, "output": {"format": form}},
        }
        self.held, self.items, self.last = 0, 0, None
        if self.fault != "no session.created":
            await self.send("session.created", session=self.session)

    async def refuse(self, event_id, code):
        about = {} if self.fault == "error without event_id" else {"event_id": event_id}
        wordless = self.fault == "error without words" and code == "response_cancel_not_active"
        message = {} if wordless else {"message": "no"}
        await self.send("error", error={"type": "invalid_request_error", "code": code, **message, **about})

    async def obey(self, event, kind, event_id):
        if kind == "session.update":
            if event["session"].get("output_modalities") == ["smell"]:
                return await self.refuse(event_id, "invalid_value")
            if self.fault != "update is not applied":
                self.session = merged(self.session, event["session"])
            return await self.send("session.updated", session=self.session)
        if kind == "input_audio_buffer.append":
            try:
                self.held += len(base64.b64decode(event["audio"], validate=True))
            except (ValueError, KeyError):
                return await self.refuse(event_id, "invalid_value")
            return None
        if kind == "input_audio_buffer.commit":
            if not self.held and self.fault != "empty commit is taken":
                return await self.refuse(event_id, "input_audio_buffer_commit_empty")
            return await self.commit()
        if kind == "response.create":
            return await self.respond()
        if kind == "response.cancel":
            return await self.refuse(event_id, "response_cancel_not_active")
        if self.fault == "breaks off":
            return self.socket.scope["extensions"]["break_off"]()
        if self.fault == "passes over":
            return None
        return await self.refuse(event_id, "invalid_value")

    async def commit(self):
        self.held, self.items = 0, self.items + 1
        name = f"item_{self.items}"
        committed = "item_of_nobody" if self.fault == "another item_id" else name
        await self.send("input_audio_buffer.committed", item_id=committed, previous_item_id=self.last)
        item = {"id": name, "type": "message", "role": "user", "content": [{"type": "input_audio", "transcript": None}]}
        for kind in ("conversation.item.added", "conversation.item.done"):
            await self.send(kind, item=item, previous_item_id=self.last)
        self.last = name
        if self.fault == "answers unasked":
            await self.respond()

    async def respond(self):
        if self.fault == "hangs":
            return
        self.items += 1
        response, name = f"resp_{self.items}", f"item_{self.items}"
        kind = self.session["audio"]["output"]["format"]["type"]
        where = {"response_id": response, "item_id": name, "output_index": 0, "content_index": 0}
        item = {"id": name, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        state = {"id": response, "object": "realtime.response", "status": "in_progress", "output": []}
        part = {"type": "audio", "transcript": ""}
        sound = {"audio/pcm": bytes_of(tone(0.6)), "audio/pcmu": bytes_of(tone(0.6, 8000), "audio/pcmu")}
        data = sound["audio/pcm" if self.fault == "another format" else kind]
        data = data[:-1] if self.fault == "half a sample" else data
        begun = [
            ("response.created", {"response": state}),
            ("response.output_item.added", {"response_id": response, "output_index": 0, "item": item}),
            ("conversation.item.added", {"item": item, "previous_item_id": self.last}),
            ("response.content_part.added", {**where, "part": part}),
        ]
        deltas = [("response.output_audio_transcript.delta", {**where, "delta": word}) for word in WORDS]
        pieces = [data[at : at + 4800] for at in range(0, len(data), 4800)]
        deltas += [("response.output_audio.delta", {**where, "delta": encoded(piece)}) for piece in pieces]
        if self.fault == "no base64":
            deltas[-1][1]["delta"] = "!!"
        text = "".join(WORDS[:2] if self.fault == "deltas do not add up" else WORDS)
        if self.fault == "delta too soon":
            begun[3], deltas[0] = deltas[0], begun[3]
        done = {**item, "status": "completed", "content": [{"type": "output_audio", "transcript": "".join(WORDS)}]}
        usage = {"total_tokens": 9, "input_tokens": 4, "output_tokens": 6 if self.fault == "usage" else 5}
        usage = None if self.fault == "no usage" else usage
        ended = {**state, "status": "completed", "output": [done], "usage": usage}
        end = [
            ("response.output_audio.done", where),
            ("response.output_audio_transcript.done", {**where, "transcript": text}),
            ("response.content_part.done", {**where, "part": {**part, "transcript": "".join(WORDS)}}),
            ("response.output_item.done", {"response_id": response, "output_index": 0, "item": done}),
            ("conversation.item.done", {"item": done, "previous_item_id": self.last}),
            ("response.done", {"response": ended}),
        ]
        if self.fault == "no transcript.done":
            del end[1]
        if self.fault == "done too soon":
            end.insert(0, end.pop())
        if self.fault == "no item.done":
            del end[3]
        for kind_, fields in [*begun, *deltas, *end]:
            await self.send(kind_, **fields)
        self.last = name


class Live(Talk):
    """OpenAI Live: silence flows, and words now and then."""

    started = False

    async def begin(self):
        self.flowing = None

    async def refuse(self, event_id, code):
        about = {} if event_id is None or self.fault == "error without event_id" else {"client_event_id": event_id}
        error = {"type": "invalid_request_error", "code": code, "message": "no"}
        await self.send("error", error={**error, **about}, **about)

    async def obey(self, event, kind, event_id):
        answers = {} if self.fault == "no client_event_id" else {"client_event_id": event_id}
        if kind == "session.start" and not self.started:
            self.started = True
            self.session = {"id": "sess_1", "model": "fake", "status": "active", "expires_at": int(time.time()) + 60}
            if self.fault == "no expires_at":
                del self.session["expires_at"]
            self.session["audio"] = event["session"].get("audio")
            await self.send("session.started", session=self.session, **answers)
            if self.fault != "does not flow":
                self.flowing = asyncio.create_task(self.flow())
        elif kind == "session.input_audio.append" and self.started:
            base64.b64decode(event["audio"])
        elif kind in ("session.input_audio.mute", "session.input_audio.unmute"):
            await self.send(kind.replace("mute", "muted"), **answers)
        elif kind == "session.close":
            if self.flowing:
                self.flowing.cancel()
            reason = "done" if self.fault == "another reason" else "close_requested"
            await self.send("session.closed", reason=reason, session=self.session, usage={"seconds": 1.0}, **answers)
            if self.fault != "does not close":
                await self.socket.close(1011 if self.fault == "another code" else 1000)
        elif self.fault != "passes over":
            await self.refuse(event_id, "unknown_event")

    async def flow(self):
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self.say_nothing()

    async def say_nothing(self):
        clock = asyncio.get_running_loop().time
        begin = clock()
        for at in range(1000):
            sound = np.zeros(2400, np.float32)
            await self.send("session.output_audio.delta", delta=encoded(bytes_of(sound)))
            if at in (3, 6):
                start = 600 - at * 100 if self.fault == "words go back" else at * 100
                words = {"delta": " word", "start_ms": start, "end_ms": start + 200}
                await self.send("session.output_transcript.delta", **words)
            await asyncio.sleep(max(0.0, begin + (at + 1) * 0.1 / 3 - clock()))


def merged(old, new):
    return {**old, **{k: merged(old.get(k) or {}, v) if isinstance(v, dict) else v for k, v in new.items()}}


async def moshi(socket):
    """Silence flows from the handshake on."""
    fault, out = socket.path_params["fault"], OggOpusOut(RATE)
    await socket.accept()
    try:
        if fault == "full":
            await socket.send_bytes(b"\x05full")
            return await socket.close(1013)
        if fault == "word before the handshake":
            await socket.send_bytes(b"\x02 early")
        if fault != "no handshake":
            await socket.send_bytes(b"\x00" + (b"\x01" if fault == "short handshake" else b""))
        if fault == "strange kind":
            await socket.send_bytes(b"\x07\x01hello")
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return None
            data = message.get("bytes") or b""
            if fault == "dies of noise" and data[:1] == b"\x01" and not data[1:].startswith(b"OggS"):
                return await socket.close(1011)
            if fault == "silent" or data[:1] != b"\x01":
                continue
            pages = out.encode(np.zeros(1920, np.float32))
            if fault == "wrong checksum":
                pages = pages[:22] + b"\0\0\0\0" + pages[26:]
            await socket.send_bytes(b"\x01" + pages)
            if fault == "no UTF-8":
                await socket.send_bytes(b"\x02\xff\xfe")
    except (WebSocketDisconnect, RuntimeError):
        return None


# -- HTTP --


def problem(fault, status, code):
    if fault == "errors as HTML":
        return HTMLResponse("<h1>Bad Request</h1>", status)
    if fault == "errors in another form":
        return JSONResponse({"detail": code}, status)
    return JSONResponse({"error": {"message": "no", "type": "invalid_request_error", "code": code}}, status)


async def models(request):
    card = {"id": "fake", "object": "model", "created": 1, "owned_by": "me"}
    if request.path_params["fault"] == "model without created":
        del card["created"]
    return JSONResponse({"object": "list", "data": [card]})


async def speech(request):
    fault = request.path_params["fault"]
    try:
        body = await request.json()
    except ValueError:
        return Response("oops", 500) if fault == "500" else problem(fault, 400, "invalid_json")
    if "input" not in body and fault != "takes anything":
        return problem(fault, 400, "missing_required_parameter")
    if fault == "hangs":
        await asyncio.sleep(5)
    sound = bytes_of(tone(0.5))
    if body.get("stream_format") == "sse":
        lines = [{"type": "speech.audio.delta", "audio": encoded(sound)}]
        if fault != "no speech.audio.done":
            usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
            lines.append({"type": "speech.audio.done", "usage": usage})
        return stream(lines)
    if fault == "big end first":
        sound = np.frombuffer(sound, "<i2").astype(">i2").tobytes()
    return Response(sound, media_type="text/plain" if fault == "wrong content type" else "audio/pcm")


async def transcriptions(request):
    fault = request.path_params["fault"]
    form = await request.form()
    if "file" not in form:
        return problem(fault, 400, "missing_required_parameter")
    if form.get("stream") == "true":
        if fault == "chunks of chat":
            return stream([{"object": "chat.completion.chunk", "id": "1", "choices": []}])
        text = "seven" if fault == "deltas do not add up" else "seven of"
        deltas = [{"type": "transcript.text.delta", "delta": word} for word in WORDS[:2]]
        return stream([*deltas, {"type": "transcript.text.done", "text": text}])
    return JSONResponse({"words": "seven"} if fault == "no text" else {"text": "seven"})


def stream(lines):
    data = (f"data: {json.dumps(line)}\n\n".encode() for line in lines)
    return StreamingResponse(data, media_type="text/event-stream")


async def missing(request):
    return problem(request.path_params["fault"], 404, "not_found")


def breakable(app):
    """The application, whose WebSockets can be broken off without a close."""

    async def run(scope, receive, send):
        def break_off():
            raise ConnectionAbortedError

        if scope["type"] == "websocket":
            scope["extensions"] = {**(scope.get("extensions") or {}), "break_off": break_off}
        await app(scope, receive, send)

    return run


@contextlib.contextmanager
def faulty_server():
    """`with faulty_server() as port:`."""

    async def realtime(socket):
        await Realtime(socket).run()

    async def live(socket):
        await Live(socket).run()

    app = Starlette(routes=[
        WebSocketRoute("/{fault}/v1/realtime", realtime), WebSocketRoute("/{fault}/v1/live/sessions", live),
        WebSocketRoute("/{fault}/api/chat", moshi), Route("/{fault}/v1/models", models),
        Route("/{fault}/v1/audio/speech", speech, methods=["POST"]),
        Route("/{fault}/v1/audio/transcriptions", transcriptions, methods=["POST"]),
        Route("/{fault}/{rest:path}", missing, methods=["GET", "POST"]),
    ])  # fmt: skip
    config = uvicorn.Config(breakable(app), port=0, log_level="critical", lifespan="off", ws="websockets-sansio")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
