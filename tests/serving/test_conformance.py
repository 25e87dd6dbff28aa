"""Our own server, whole: nothing is wrong, and the documentation says what was found; the command around it."""

import asyncio
import importlib.util
import json
import re
import socket

import numpy as np
import pytest
import soundfile

from serving.waiting import nobody_left
from shown_commands import ROOT
from vivavoce.cli import main
from vivavoce.errors import RequestError
from vivavoce.serving.access import Access, Key, digest_of
from vivavoce.serving.conformance import runner, shapes, table
from vivavoce.serving.conformance.realtime_events import grammar
from vivavoce.serving.conformance.rules import FROM, TO
from vivavoce.serving.conformance.target import question_of, target_of
from vivavoce.serving.realtime.events import CLIENT_EVENTS
from vivavoce.serving.tls import tls_of

FACTS = {  # what the protocols have, beside Realtime's client events, which the server lists itself
    "live": (
        "session.start", "session.update", "session.input_audio.append", "session.input_audio.mute",
        "session.input_audio.unmute", "session.output_audio.fixture.play", "session.instructions.append",
        "session.thinking.append", "session.commentary.append", "decision.create", "decision.item.create",
        "decision.item.delete", "response.item.create", "response.create", "session.close",
    ),
    "realtime": tuple(CLIENT_EVENTS),
    "moshi": ("0x01 audio", "0x03 control"),
}  # fmt: skip


def page_writer():
    """docs/show_protocols.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("show_protocols", ROOT / "docs" / "show_protocols.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def writer():
    return page_writer()


@pytest.fixture(scope="module")
def report(writer):
    return writer.look()


def test_nothing_is_wrong_with_our_own_server(report):
    assert not [(row.id, row.detail) for row in report.wrong]
    assert report.there == list(runner.DIALECTS) and report.seconds < 60
    counts = {name: sum(found.values()) for name, found in report.summary.items()}
    assert all(count >= 30 for count in counts.values()), counts
    good = [row for row in report.rows if row.verdict == "ok"]
    assert len(good) > 200 and {row.way for row in good} == {"client", "server", "connection", "http"}


def test_each_event_of_the_protocols_has_a_row(report):
    for dialect, events in FACTS.items():
        rows = {row.event for row in report.rows if row.dialect == dialect and row.way == TO}
        assert set(events) <= rows, set(events) - rows
    for dialect in runner.DIALECTS:
        known = set(runner.Dialect(dialect, target_of("x"), [], print, 1).speaker.events)
        assert known == {row.event for row in report.rows if row.dialect == dialect and row.way == FROM}


def test_what_came_is_what_a_conversation_has(report):
    rows = {row.id: row for row in report.rows}
    for name in ("response.output_audio.delta", "response.done", "input_audio_buffer.speech_stopped", "error"):
        row = rows[f"realtime/from-server/{name}"]
        assert row.verdict == "ok" and int(row.detail.split()[0]) > 0, row
    assert rows["beta/from-server/response.audio.delta"].verdict == "ok"
    assert "tone number 1 ends" in rows["realtime/response.create/push-to-talk"].detail
    assert rows["realtime/conversation.item.create/user-text"].verdict == "not supported"
    assert "text_input" in rows["realtime/conversation.item.create/user-text"].detail
    assert rows["realtime/v1/realtime/wrong-key"].verdict == "skipped"


def test_the_page_says_what_was_found(report, writer):
    page = writer.PAGE.read_text(encoding="utf-8")
    found = writer.written(page, report)
    for there, here in zip(page.splitlines(), found.splitlines()):
        assert there == here, "run: python docs/show_protocols.py"
    assert page == found
    tables = re.findall(r"<!-- table of (\w+) -->\n(.*?)<!-- end", page, re.DOTALL)
    assert {name for name, _ in tables} == set(runner.DIALECTS) and all("| yes |" in text for _, text in tables)


def test_the_other_model_that_ships(serve):
    port, server = serve("echo", speed=3.0)
    target = target_of(f"ws://127.0.0.1:{port}/v1/realtime", timeout=30.0, pace=3.0)
    ids = ("realtime/response.create", "live/session.input_audio.append", "moshi/audio", "rest/v1/chat/completions")
    report = asyncio.run(runner.conform(target, ids=ids))
    assert not [(row.id, row.detail) for row in report.wrong]
    assert set(report.there) == {"realtime", "live", "moshi", "rest"}
    nobody_left(server)


# -- the command --


def command(capsys, *arguments):
    """Exit code, what was printed, what was said on stderr."""
    with pytest.raises(SystemExit) as left:
        main(["conformance", *map(str, arguments)])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def test_the_command_prints_a_row_for_each_event(serve, capsys):
    port, server = serve("tone", dialects=("realtime", "rest"), speed=3.0)
    url = f"http://127.0.0.1:{port}"
    code, out, err = command(capsys, url, "--dialect", "realtime", "--check", "realtime/response.create/push-to-talk")
    assert code == 0 and "nothing is wrong" in out and "1 of 1 checks" in err
    rows = [line.split() for line in out.splitlines()]
    assert ["response.done", "server", "←", "ok", "1", "came"] in rows
    assert ["response.create", "client", "→", "push-to-talk", "ok"] in [row[:5] for row in rows]
    code, out, err = command(capsys, url, "--check", "realtime/input_audio_buffer.commit", "--json")
    found = json.loads(out)
    assert code == 0 and err == "" and found["summary"]["realtime"]["ok"] >= 2
    assert {row["id"] for row in found["rows"] if row["way"] == "client"} == {
        "realtime/input_audio_buffer.commit/push-to-talk", "realtime/input_audio_buffer.commit/empty",
    }  # fmt: skip
    nobody_left(server)


def test_what_is_not_there_is_said(serve, capsys):
    port, _ = serve("tone", dialects=("rest",))
    url = f"127.0.0.1:{port}"
    code, out, err = command(capsys, url, "--dialect", "live", "--dialect", "moshi")
    assert code == 2 and "nothing of live, moshi can be talked to there" in err
    assert "not there" in out and "ok" not in out.replace("token", "")
    assert command(capsys, url, "--check", "rest/v1/models", "--check", "live/v1/live/sessions/connect")[0] == 0


def test_routes_that_are_not_there_are_not_wrong(serve):
    port, _ = serve("tone", dialects=("moshi",))
    target = target_of(f"http://127.0.0.1:{port}", timeout=30.0)
    report = asyncio.run(runner.conform(target, ["rest", "realtime", "live"]))
    rows = {row.id: row.verdict for row in report.rows if row.way != FROM}
    there = {name for name, verdict in rows.items() if verdict != "not there"}
    assert there == {"rest/route/unknown", "rest/v1/audio/speech/wrong-method"}


def test_bad_requests(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for arguments, words in (
        ((f"http://127.0.0.1:{port}",), "nobody answers there (connection refused)"),
        (("ftp://x",), "'ftp://x' is no address of a server"),
        ((), "a URL is needed"),
        (("http://127.0.0.1:1", "--dialect", "morse"), "dialect 'morse': there are moshi"),
        (("http://127.0.0.1:1", "--check", "realtime/smell"), "--check realtime/smell: there is no such check"),
        (("http://127.0.0.1:1", "--model", "smell=x"), "--model smell=…: there are realtime"),
    ):
        code, _, err = command(capsys, *arguments)
        assert code == 2 and words in err, err
    soundfile.write(tmp_path / "q.wav", np.zeros(24_000), 24_000)
    code, _, err = command(capsys, "http://127.0.0.1:1", "--audio", tmp_path / "q.wav")
    assert code == 2 and "silence: nobody would answer it" in err


def test_the_list_names_every_check(capsys):
    code, out, _ = command(capsys, "--list", "--json")
    listed = json.loads(out)
    ids = [each["id"] for each in listed]
    assert code == 0 and len(ids) == len(set(ids)) > 200 and all(each["sends"] and each["expects"] for each in listed)
    assert {name.split("/")[0] for name in ids} == set(runner.DIALECTS)


# -- keys, certificates, room --


def test_a_key_is_asked_for(serve):
    access = Access({digest_of("right"): Key("k", digest_of("right"))})
    port, _ = serve("tone", access=access)
    ids = (
        *(f"realtime/v1/realtime/{name}" for name in ("connect", "browser", "wrong-key", "close", "client_secrets")),
        "rest/route", "rest/v1/models",
        "live/v1/live/sessions/connect", "moshi/api/chat/connect",
    )  # fmt: skip

    def rows(key):
        report = asyncio.run(runner.conform(target_of(f"http://127.0.0.1:{port}", key=key, timeout=30.0), ids=ids))
        return {row.id: (row.verdict, row.detail) for row in report.rows}

    found = rows("right")
    assert not [(name, row) for name, row in found.items() if row[0] == "wrong"]
    assert found["realtime/v1/realtime/wrong-key"] == ("ok", "invalid_api_key: this key is not known")
    assert found["rest/route/wrong-key"] == ("ok", "401 invalid_api_key")
    without = rows(None)
    assert without["rest/v1/models/list"][0] == "skipped" and "does not open it" in without["rest/v1/models/list"][1]
    assert not [(name, row) for name, row in without.items() if row[0] == "wrong"]
    for name in ("realtime/v1/realtime/connect", "live/v1/live/sessions/connect", "moshi/api/chat/connect"):
        assert without[name][0] == "skipped" and "no key was given" in without[name][1], without[name]


def test_a_certificate_of_ones_own(capsys, tmp_path, monkeypatch):
    import vivavoce
    from vivavoce.serving.app import Server, create_app
    from vivavoce.serving.core import Core
    from vivavoce.serving.run import running
    from vivavoce.serving.settings import ServerSettings

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    app = create_app(Server(Core(vivavoce.load("tone"), "tone", ServerSettings(rows=2)), drain=0.0))
    with running(app, **tls_of("auto", "127.0.0.1").options()) as port:
        ids = ("--check", "realtime/v1/realtime/connect", "--check", "rest/v1/models/list")
        code, _, err = command(capsys, f"https://127.0.0.1:{port}", *ids)
        assert code == 2 and "its certificate is not trusted" in err and "--insecure" in err
        code, out, _ = command(capsys, f"https://127.0.0.1:{port}", *ids, "--insecure")
        assert code == 0 and "nothing is wrong" in out
        code, _, err = command(capsys, f"http://127.0.0.1:{port}", *ids)
        assert code == 1 and "wrong" in _


def test_a_server_of_one_row_is_asked_one_after_another(serve):
    port, server = serve("tone", rows=1, queue=0, speed=3.0)
    ids = ("realtime/input_audio_buffer.commit", "realtime/message", "moshi/api/chat")
    report = asyncio.run(runner.conform(target_of(f"http://127.0.0.1:{port}", timeout=30.0, pace=3.0), ids=ids))
    verdicts = {row.id: (row.verdict, row.detail) for row in report.rows if row.way != FROM}
    assert set(verdict for verdict, _ in verdicts.values()) == {"ok"}, verdicts
    assert "refused" in verdicts["moshi/api/chat/two-at-once"][1]
    nobody_left(server)


# -- the parts --


def test_shapes():
    shape = {"id": str, "?code": str, "kind": ("a", None), "parts": [{"n": int}], "size": float}
    good = {"id": "x", "kind": None, "parts": [{"n": 1}], "size": 2, "more": True}
    assert shapes.faults(good, shape) == [] and shapes.faults({**good, "code": None, "size": 1.5}, shape) == []
    for change, words in (
        ({"id": 3}, "id: 3, a string is expected"), ({"kind": "b"}, "kind: 'b', 'a' or null are expected"),
        ({"parts": [{"n": True}]}, "parts[0].n: True, a whole number is expected"), ({"code": 4}, "code: 4, a string"),
        ({"size": "2"}, "size: '2', a number"), ({"parts": {}}, "parts: {}, a list is expected"),
    ):  # fmt: skip
        assert any(fault.startswith(words) for fault in shapes.faults({**good, **change}, shape)), words
    assert shapes.faults({k: v for k, v in good.items() if k != "id"}, shape) == ["id is missing"]
    assert shapes.faults([], shape) == ["it: [], an object is expected"]


def test_grammar_of_a_cancelled_answer():
    """What has been cut to what was heard says less than its deltas, and that is right; more would not be."""
    place = {"response_id": "r", "item_id": "i", "output_index": 0, "content_index": 0}
    item = {"id": "i", "type": "message", "role": "assistant", "content": []}
    delta = "response.output_audio_transcript.delta"

    def events(transcript):
        made = [
            ("response.created", {"response": {"id": "r", "status": "in_progress"}}),
            ("response.output_item.added", {"response_id": "r", "output_index": 0, "item": item}),
            ("response.content_part.added", {**place, "part": {}}),
            (delta, {**place, "delta": "seven"}), (delta, {**place, "delta": " of"}),
            ("response.output_audio_transcript.done", {**place, "transcript": transcript}),
            ("response.content_part.done", {**place, "part": {}}),
            ("response.output_item.done", {"response_id": "r", "output_index": 0, "item": item}),
            ("response.done", {"response": {
                "id": "r", "status": "cancelled", "output": [item], "status_details": {"reason": "turn_detected"}}}),
        ]  # fmt: skip
        return [{"type": kind, "event_id": str(at), **fields} for at, (kind, fields) in enumerate(made)]

    assert list(grammar(events("seven"))) == [] and list(grammar(events("seven of"))) == []
    assert [kind for kind, _ in grammar(events("nine"))] == ["response.output_audio_transcript.done"]


def test_addresses_and_questions(tmp_path):
    target = target_of("wss://host:8/x/v1/realtime?voice_prompt=a&text_prompt=")
    assert target.base == "https://host:8/x"
    assert target.socket_url("/api/chat", {"seed": "1"}) == "wss://host:8/x/api/chat?voice_prompt=a&text_prompt=&seed=1"
    for url, base in (("h:80", "http://h:80"), ("http://h/v1/", "http://h"), ("ws://h/api/chat", "http://h")):
        assert target_of(url).base == base
    for url in ("ftp://h", "http://", "http://h:99999999"):
        with pytest.raises(RequestError):
            target_of(url)
    assert 0.5 < len(question_of()) / 24_000 < 2 and np.abs(question_of()).max() == pytest.approx(0.5, abs=0.01)
    soundfile.write(tmp_path / "long.wav", np.ones(16_000 * 20) * 0.1, 16_000)
    with pytest.raises(RequestError, match=r"20\.0 s of sound"):
        question_of(tmp_path / "long.wav")
    target.listed = ["other", "gpt-realtime"]
    assert target.model("realtime") == "gpt-realtime" and target.model("speech") == "other"
    target.models = {"": "mine", "speech": "voice"}
    assert target.model("live") == "mine" and target.model("speech") == "voice"


def test_the_documentations_table():
    row = runner.Row("rest", "rest/x/a", "POST /x", "http", "ok")
    other = runner.Row("rest", "rest/x/b", "POST /x", "http", "not supported", "no_task: tone lacks | it")
    alone = runner.Row("rest", "rest/y/c", "POST /y", "http", "not there", "answers 404")
    lines = table.markdown([row, other, alone]).splitlines()
    assert lines[2] == "| `POST /x` | HTTP | in part | b: no_task: the model lacks \\| it |"
    assert lines[3] == "| `POST /y` | HTTP | no | c: not there |"
