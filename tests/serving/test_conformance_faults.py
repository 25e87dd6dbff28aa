"""Servers with a fault: the checks find it, name it, and find nothing else."""

import asyncio
from urllib.parse import quote

import pytest

from serving.faulty_server import faulty_server
from vivavoce.serving.conformance.runner import conform
from vivavoce.serving.conformance.target import target_of

REALTIME = (
    "realtime/v1/realtime/connect", "realtime/session.update/text", "realtime/session.update/wrong-value",
    "realtime/input_audio_buffer.append/no-base64", "realtime/input_audio_buffer.commit/push-to-talk",
    "realtime/input_audio_buffer.commit/empty", "realtime/response.create/push-to-talk",
    "realtime/response.create/format-pcmu", "realtime/response.cancel/nothing-runs", "realtime/message/no-JSON",
    "realtime/message/unknown-type",
)  # fmt: skip
LIVE = (
    "live/v1/live/sessions/connect", "live/session.input_audio.append/flow", "live/session.input_audio.mute/mute",
    "live/message/unknown-type", "live/session.close/close",
)  # fmt: skip
MOSHI = ("moshi/api/chat/connect", "moshi/audio/flow", "moshi/audio/no-Ogg")
REST = (
    "rest/v1/models/list", "rest/v1/audio/speech/pcm", "rest/v1/audio/speech/sse", "rest/v1/audio/speech/no-input",
    "rest/v1/audio/speech/no-JSON", "rest/v1/audio/transcriptions/json", "rest/v1/audio/transcriptions/stream",
    "rest/v1/audio/transcriptions/no-file",
)  # fmt: skip
DIALECTS = {"realtime": REALTIME, "live": LIVE, "moshi": MOSHI, "rest": REST}
WAITED = 3.0  # seconds, where waiting in vain is the fault: more than a busy machine stands still
CREATED, TRANSCRIPT = "realtime/from-server/session.created", "response.output_audio_transcript"


@pytest.fixture(scope="module")
def port():
    with faulty_server() as port:
        yield port


def found(port, fault, dialect, timeout=60.0, ids=None):
    """Id of a row -> its verdict and detail."""
    target = target_of(f"http://127.0.0.1:{port}/{quote(fault)}", timeout=timeout, pace=3.0)
    report = asyncio.run(conform(target, [dialect], DIALECTS[dialect] if ids is None else ids))
    return {row.id: (row.verdict, row.detail) for row in report.rows}


def wrong(rows):
    return {name: detail for name, (verdict, detail) in rows.items() if verdict == "wrong"}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_nothing_is_wrong_without_a_fault(port, dialect):
    rows = found(port, "none", dialect)
    assert not wrong(rows) and {rows[name][0] for name in DIALECTS[dialect]} == {"ok"}


# dialect, fault -> id of a row that is wrong (its end), words of its detail; nothing else may be wrong
FAULTS = [
    ("realtime", "same event_id", "from-server/session.updated", "event_id was another event's already"),
    ("realtime", "error without event_id", "message/unknown-type", "error's event_id is None"),
    ("realtime", "error without words", "response.cancel/nothing-runs", "the error says nothing"),
    ("realtime", "update is not applied", "session.update/text", "['audio'], ['text'] was asked for"),
    ("realtime", "empty commit is taken", "input_audio_buffer.commit/empty", "it is taken, an error is"),
    ("realtime", "answers unasked", "input_audio_buffer.commit/push-to-talk", "response.created came, though"),
    ("realtime", "another item_id", "commit/push-to-talk", "not that of input_audio_buffer.committed"),
    ("realtime", "hangs", "response.create/push-to-talk", "no response.created in 3 s"),
    ("realtime", "breaks off", "message/unknown-type", "closed with 1006"),
    ("realtime", "passes over", "message/unknown-type", "no error in 3 s"),
    ("realtime", "closes on no JSON", "message/no-JSON", "closed with 1011"),
    ("realtime", "half a sample", "from-server/response.output_audio.delta", "no whole number of samples"),
    ("realtime", "no base64", "from-server/response.output_audio.delta", "no base64"),
    ("realtime", "another format", "response.create/format-pcmu", "the sound is not audio/pcmu"),
    ("realtime", "deltas do not add up", f"from-server/{TRANSCRIPT}.done", "the deltas add up to 'seven of nine'"),
    ("realtime", "delta too soon", f"from-server/{TRANSCRIPT}.delta", "comes before response.content_part.added"),
    ("realtime", "done too soon", "from-server/response.output_item.done", "comes after response.done"),
    ("realtime", "no transcript.done", f"from-server/{TRANSCRIPT}.done", "never comes"),
    ("realtime", "no item.done", "from-server/response.output_item.done", "never comes for an item"),
    ("realtime", "no usage", "from-server/response.done", "has no usage"),
    ("realtime", "usage", "from-server/response.done", "4 and 6 tokens are not 9 in total"),
    ("live", "no client_event_id", "from-server/session.started", "client_event_id of session.start"),
    ("live", "no expires_at", "from-server/session.started", "session.expires_at is missing"),
    ("live", "error without event_id", "message/unknown-type", "client_event_id is None"),
    ("live", "passes over", "message/unknown-type", "no error in 3 s"),
    ("live", "does not flow", "session.input_audio.append/flow", "no session.output_audio.delta in 3 s"),
    ("live", "words go back", "from-server/session.output_transcript.delta", "start_ms 0 is before"),
    ("live", "another reason", "session.close/close", "the reason is 'done'"),
    ("live", "another code", "session.close/close", "closed with 1011, 1000 is expected"),
    ("live", "does not close", "session.close/close", "does not close the connection in 3 s"),
    ("moshi", "word before the handshake", "from-server/0x02 text", "comes before the handshake"),
    ("moshi", "short handshake", "from-server/0x00 handshake", "has 2 bytes"),
    ("moshi", "strange kind", "from-server/0x07 coloured text", "comes unasked"),
    ("moshi", "dies of noise", "audio/no-Ogg", "the connection was closed with 1011"),
    ("moshi", "wrong checksum", "from-server/0x01 audio", "wrong checksum"),
    ("moshi", "no UTF-8", "from-server/0x02 text", "is no UTF-8"),
    ("moshi", "silent", "audio/flow", "no sound in 3 s"),
    ("rest", "model without created", "models/list", "data[0].created is missing"),
    ("rest", "errors as HTML", "speech/no-input", "the content type is 'text/html'"),
    ("rest", "errors in another form", "transcriptions/no-file", "has not OpenAI's form: error is missing"),
    ("rest", "500", "speech/no-JSON", "answers 500"),
    ("rest", "takes anything", "speech/no-input", "answers 200, a refusal is expected"),
    ("rest", "hangs", "speech/pcm", "no answer in 3 s"),
    ("rest", "big end first", "speech/pcm", "no 16-bit PCM"),
    ("rest", "wrong content type", "speech/pcm", "the content type is 'text/plain'"),
    ("rest", "no speech.audio.done", "speech/sse", "the last 'speech.audio.delta'"),
    ("rest", "no text", "transcriptions/json", "text is missing"),
    ("rest", "deltas do not add up", "transcriptions/stream", "the deltas add up to 'seven of'"),
    ("rest", "chunks of chat", "transcriptions/stream", "the last None"),
]
# what the same fault makes wrong besides
BESIDE = {
    ("realtime", "error without event_id"): {"from-server/error"},
    ("live", "error without event_id"): {"from-server/error"},
    ("realtime", "error without words"): {"from-server/error"},
    ("realtime", "update is not applied"): {"response.create/format-pcmu"},
    ("realtime", "hangs"): {"response.create/format-pcmu"},
    ("realtime", "no base64"): {"response.create/format-pcmu"},
    ("moshi", "wrong checksum"): {"audio/flow"},
    ("realtime", "no item.done"): {"from-server/response.done"},
    ("live", "no client_event_id"): {"session.input_audio.muted", "session.input_audio.unmuted"},
    ("live", "no expires_at"): {"from-server/session.closed"},
    ("live", "another reason"): {"from-server/session.closed"},
    ("moshi", "silent"): {"audio/no-Ogg"},
    ("rest", "errors as HTML"): {"speech/no-JSON", "transcriptions/no-file"},
    ("rest", "errors in another form"): {"speech/no-JSON", "speech/no-input"},
    ("rest", "hangs"): {"speech/sse"},
    ("rest", "chunks of chat"): {"from-server/chat.completion.chunk"},
}


@pytest.mark.parametrize(("dialect", "fault", "row", "words"), FAULTS, ids=lambda value: str(value)[:40])
def test_a_fault_is_found_and_nothing_else(port, dialect, fault, row, words):
    waits = f"in {WAITED:g} s" in words
    rows = wrong(found(port, fault, dialect, **({"timeout": WAITED} if waits else {})))
    named = [detail for name, detail in rows.items() if name.endswith(row)]
    assert named and words in named[0], rows
    expected = {row, *BESIDE.get((dialect, fault), set())}
    assert not [name for name in rows if not any(name.endswith(end) for end in expected)], rows


def test_what_ends_everything(port):
    rows = found(port, "no session.created", "realtime", WAITED, ids=())
    assert "no session.created in 3 s" in rows["realtime/v1/realtime/connect"][1]
    assert rows["realtime/response.create/unasked"] == ("skipped", "no conversation can be begun: see the first check")
    rows = found(port, "binary", "realtime", WAITED, ids=("realtime/v1/realtime/connect",))
    assert "a message is binary" in wrong(rows)["realtime/from-server/any event"]
    rows = found(port, "no event_id", "realtime", ids=("realtime/v1/realtime/connect",))
    assert wrong(rows) == {CREATED: "event_id is missing"}
    rows = found(port, "no handshake", "moshi", WAITED, ids=())
    assert "no handshake in 3 s" in rows["moshi/api/chat/connect"][1]


def test_what_is_full_is_not_wrong(port):
    rows = found(port, "full", "moshi", ids=("moshi/api/chat/connect",))
    assert rows["moshi/api/chat/connect"][0] == "skipped" and "'full'" in rows["moshi/api/chat/connect"][1]
