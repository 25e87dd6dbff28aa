"""Recordings hold what was heard and said, survive a kill at any moment, and never disturb a conversation."""

import asyncio
import json
import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import vivavoce
from abuse import small_disk
from serving.recording_bench import ME, Bench, record, run, spoken, watched
from vivavoce.errors import DataError, RequestError
from vivavoce.serving.clock import Clock
from vivavoce.serving.conversation import Client
from vivavoce.serving.core import Core
from vivavoce.serving.recorded import (
    export_full_duplex_bench,
    find_recordings,
    read_recording,
    recover,
    timed_words,
)
from vivavoce.serving.recording import HEADER, Recorder
from vivavoce.serving.replay import compare, replay
from vivavoce.serving.settings import ServerSettings


@pytest.fixture(scope="module")
def speech():
    return spoken()


@pytest.fixture
def recorded(tmp_path, speech):
    """A recording of `tone`."""
    return record(tmp_path / "recorded", speech)


def test_the_log_tells_what_happened(tmp_path, speech):
    async def go():
        bench = Bench("tone", tmp_path)
        conversation = await bench.core.open(Client("moshi", "10.0.0.1", "somebody"), 3)
        assert bench.recorder.recording(conversation.id)
        for at in range(0, len(speech) // bench.size):
            conversation.hear(speech[at * bench.size : (at + 1) * bench.size])
            bench.tick()
        sound = vivavoce.Audio(np.zeros(4, np.float32), 8000)
        conversation.note("truncated", seconds=0.5, source="client", sound=sound)
        bench.tick(3)
        bench.end(conversation)
        assert not bench.recorder.recording(conversation.id)
        assert bench.recorder.file_of(conversation.id).stem.endswith(conversation.id)
        assert bench.recorder.file_of("*") is None and bench.recorder.file_of("nobody") is None
        return at + 1

    frames = run(go())
    [log] = find_recordings(tmp_path)
    text = log.read_text()
    events = [json.loads(line) for line in text.splitlines()]
    opened, closed = events[0], events[-1]
    assert (opened["event"], opened["model"], opened["dialect"], opened["seed"]) == ("opened", "tone", "moshi", 3)
    assert (opened["sample_rate"], opened["frame_size"], opened["rows"], opened["row"]) == (24_000, 1920, 2, 0)
    assert (closed["event"], closed["reason"], closed["frame"]) == ("closed", "closed", frames)
    assert closed["counts"]["skipped"] == 3 and "10.0.0.1" not in text and "somebody" not in text
    assert [e["t"] for e in events] == sorted(e["t"] for e in events)
    words = [e for e in events if e["event"] == "words"]
    assert all(e["t"] == pytest.approx(e["frame"] * 0.08, abs=1e-3) for e in words)
    turns = [e["kind"] for e in events if e["event"] == "turn"]
    assert turns.count("user_started") == turns.count("user_stopped") >= 2 and "model_started" in turns
    assert next(e for e in events if e["event"] == "truncated") | {"t": 0} == {
        "event": "truncated", "t": 0, "frame": frames, "seconds": 0.5, "source": "client", "sound": None,
    }  # fmt: skip
    assert (log.stat().st_mode & 0o077, log.with_suffix(".wav").stat().st_mode & 0o077) == (0, 0)


def test_only_those_who_agree_are_recorded(tmp_path):
    async def go():
        bench = Bench("echo", tmp_path, rows=3, agreed=lambda conversation: conversation.client.dialect == "asked")
        yes, no = await bench.core.open(Client("asked")), await bench.core.open(Client("not"))
        for conversation in (yes, no):
            conversation.hear(np.ones(bench.size, np.float32))
        bench.tick()
        assert bench.recorder.recording(yes.id) and not bench.recorder.recording(no.id)
        bench.end(yes, no)
        return yes.id

    identity = run(go())
    assert {path.suffix for path in tmp_path.iterdir()} == {".wav", ".jsonl"}
    assert all(identity in path.name for path in tmp_path.iterdir())


def test_a_recorder_that_cannot_even_begin_disturbs_nobody(tmp_path, caplog):
    async def go():
        bench = Bench("echo", tmp_path, agreed=lambda conversation: 1 / 0)
        conversation = await bench.core.open(ME)
        conversation.hear(np.ones(bench.size, np.float32))
        bench.tick()
        assert conversation.counts.frames == 1
        bench.end(conversation)

    run(go())
    assert "cannot be recorded" in caplog.text and not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be kept there"):
        Recorder(tmp_path / "file")


def test_a_full_disk_ends_the_recording_and_not_the_conversation(tmp_path, caplog):
    async def go():
        bench = Bench("echo", tmp_path)
        conversation = await bench.core.open(ME)
        seen = watched(conversation)
        with small_disk(100_000), caplog.at_level(logging.ERROR):  # six frames and a part of one
            for at in range(12):
                conversation.hear(np.full(bench.size, 0.1 + at / 100, np.float32))
                bench.tick()
            end = time.monotonic() + 20
            while bench.recorder.recording(conversation.id) and time.monotonic() < end:
                time.sleep(0.005)
            assert not bench.recorder.recording(conversation.id) and conversation.reason is None
            for _ in range(3):
                conversation.hear(np.zeros(bench.size, np.float32))
                bench.tick()
        assert len(seen) == 15
        bench.end(conversation)
        return seen

    seen = run(go())
    assert len([r for r in caplog.records if "ends here" in r.message]) == 1
    recording = read_recording(find_recordings(tmp_path)[0])
    assert recording.closed is None and recording.frames == 6
    assert np.array_equal(recording.heard, np.concatenate([f.heard for f in seen[:6]]))
    assert vivavoce.read(recording.log.with_suffix(".wav")).duration == pytest.approx(0.48)


def test_a_disk_that_is_too_slow_ends_the_recording_and_not_the_conversation(tmp_path, caplog, monkeypatch):
    stuck = threading.Event()

    async def go():
        bench = Bench("echo", tmp_path, behind=1.0)
        conversation = await bench.core.open(ME)
        for _ in range(40):
            conversation.hear(np.full(bench.size, 0.1, np.float32))
            bench.tick()
        assert conversation.counts.frames == 40 and bench.lockstep.failed is None
        assert not bench.recorder.recording(conversation.id)
        stuck.set()
        bench.end(conversation)

    from vivavoce.serving.recording import SoundFile

    add = SoundFile.add
    monkeypatch.setattr(SoundFile, "add", lambda self, sound: (stuck.wait(30), add(self, sound))[1])
    run(go())
    assert "1 s behind" in caplog.text
    assert read_recording(find_recordings(tmp_path)[0]).closed is None


PROGRAM = """
import asyncio, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from serving.recording_bench import ME, Bench

async def go():
    bench = Bench("tone", sys.argv[1])
    conversation = await bench.core.open(ME)
    for at in range(10_000_000):
        conversation.hear(np.full(bench.size, (at % 20 < 2) * 0.3, np.float32))
        bench.tick()
        conversation._out.clear()
        print(at, flush=True)

asyncio.run(go())
"""


def test_a_killed_server_leaves_a_recording_that_replays(tmp_path):
    here = Path(__file__).resolve()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(here.parents[1])]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in server.stdout:
        if int(line) >= 60:
            break
    server.send_signal(signal.SIGKILL)
    server.wait()
    server.stdout.close()
    [log] = find_recordings(tmp_path)
    assert vivavoce.read(log.with_suffix(".wav")).duration > 1.0  # its sizes are true
    recording = read_recording(log)
    assert recording.closed is None and recording.frames > 20
    found = compare(recording, replay(recording, vivavoce.load("tone"), tmp_path / "again", "tone"))
    assert found.same and found.samples == (recording.frames - 1) * 1920 and found.words[0].startswith("tone number 1")
    mended = recover(log)
    assert mended.closed["reason"] == "killed" and mended.frames == recording.frames
    assert compare(mended, replay(mended, vivavoce.load("tone"), tmp_path / "again", "tone")).first is None


def test_a_recording_cut_anywhere_is_read_and_mended(recorded, tmp_path):
    log, wav = recorded.log.read_bytes(), recorded.log.with_suffix(".wav").read_bytes()
    first = log.index(b"\n") + 1
    chance = np.random.default_rng(0)
    for cut_log, cut_wav in zip(chance.integers(first, len(log), 25), chance.integers(HEADER, len(wav), 25)):
        folder = tmp_path / f"{cut_log}-{cut_wav}"
        folder.mkdir()
        (folder / recorded.log.name).write_bytes(log[:cut_log])
        (folder / recorded.opened["wav"]).write_bytes(wav[:cut_wav])
        part = read_recording(folder / recorded.log.name)
        assert part.frames == (cut_wav - HEADER) // (8 * 1920) and log.startswith(log[:cut_log])
        mended = recover(folder / recorded.opened["wav"])
        samples = (cut_wav - HEADER) // 8
        assert mended.closed["reason"] == "killed" and len(mended.sound) == samples
        if samples:
            whole = vivavoce.read(folder / recorded.opened["wav"])
            assert np.array_equal(whole.samples.T, recorded.sound[:samples])
        assert mended.words() == recorded.words()[: len(mended.words())]
        assert (folder / recorded.log.name).read_bytes().startswith(log[: log[:cut_log].rfind(b"\n") + 1])
    before = recorded.log.read_bytes()
    assert recover(recorded.log).closed["reason"] == "closed" and recorded.log.read_bytes() == before


def test_what_is_no_recording_is_said_to_be_none(recorded, tmp_path):
    log, wav = recorded.log, recorded.log.with_suffix(".wav")
    lines = log.read_text().splitlines(keepends=True)
    with pytest.raises(DataError, match="no such recording"):
        find_recordings(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no recordings"):
        find_recordings(tmp_path / "empty")
    for text, message in (
        ("", "first line"), ('{"event": "closed"}\n', "first line"), ("[1]\n", "line 1: not an event"),
        (lines[0] + "{\n" + lines[1], "line 2: not JSON"), ('{"event": "opened", "version": 99}\n', "version 99"),
        ('{"event": "opened", "version": 1, "wav": "x.wav"}\n', "'sample_rate' is missing"),
        (lines[0].replace("24000", "16000"), "not this recording"),
    ):  # fmt: skip
        log.write_text(text)
        with pytest.raises(DataError, match=message):
            read_recording(log)
    log.write_text("".join(lines))
    for content, message in ((b"", "not a recording's sound"), (b"RIFF" + bytes(200), "not a recording's sound")):
        wav.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_recording(log)
    vivavoce.write(wav, vivavoce.Audio(np.zeros((2, 100), np.float32), 24_000))  # 16 bits
    with pytest.raises(DataError, match="32-bit float"):
        read_recording(log)
    wav.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_recording(log)


def test_a_live_server_records_until_it_is_stopped(tmp_path, speech):
    async def go():
        core = Core(vivavoce.load("echo"), "echo", ServerSettings(rows=2), Clock(speed=20))
        recorder = Recorder(tmp_path).attach(core)
        await core.start()
        conversation = await core.open(ME)
        for at in range(20):
            conversation.hear(speech[at * 1920 : (at + 1) * 1920])
            await asyncio.sleep(0.004)
        said = 0
        async for _ in conversation.frames():
            said += 1
            if said == 20:
                break
        await core.stop()
        recorder.close(None)
        assert not [thread for thread in threading.enumerate() if thread.name == "vivavoce-recorder"]

    run(go())
    recording = read_recording(find_recordings(tmp_path)[0])
    assert recording.closed["reason"] == "shutdown" and recording.frames >= 20
    heard = recording.heard[np.flatnonzero(recording.heard)[0] :]
    assert np.array_equal(recording.said[1920:], recording.heard[:-1920]) and len(heard)


def test_as_full_duplex_bench_has_it(recorded, tmp_path):
    export_full_duplex_bench(recorded, tmp_path / "1")
    heard, said = (vivavoce.read(tmp_path / "1" / name) for name in ("input.wav", "output.wav"))
    assert len(heard) == len(said) == len(recorded.sound) and heard.channels == said.channels == 1
    assert np.abs(said.samples[0] - recorded.sound[:, 1]).max() <= 1 / 32768
    told = json.loads((tmp_path / "1" / "output.json").read_text())
    assert told["text"].startswith("tone number 1 ends") and told.keys() == {"text", "chunks"}
    first = [chunk["text"] for chunk in told["chunks"][:4]]
    assert first == ["tone", "number", "1", "ends"]
    frame = recorded.words()[0][0]
    start, end = told["chunks"][0]["timestamp"]
    # the word begins with the tone, as it is heard, and lasts to the next one
    assert start == pytest.approx((frame + 1) * 0.08) and end == pytest.approx(start + 4 * 0.08, abs=0.002)
    sounds = np.flatnonzero(np.abs(said.samples[0]) > 0.01)
    assert sounds[0] / 24_000 == pytest.approx(start, abs=0.002)
    assert all(a["timestamp"][1] <= b["timestamp"][0] + 1e-6 or a["timestamp"][0] == b["timestamp"][0]
               for a, b in zip(told["chunks"], told["chunks"][1:]))  # fmt: skip


def test_pieces_of_words_become_words(recorded):
    recorded.events[:] = [event for event in recorded.events if event["event"] != "words"]
    for frame, text in ((3, " hel"), (4, "lo"), (6, " you"), (9, "."), (12, " so long")):
        recorded.events.insert(-1, {"event": "words", "t": 0.0, "frame": frame, "text": text, "user_text": ""})
    assert [(round(start / 0.08), word) for start, _, word in timed_words(recorded)] == [
        (4, "hello"), (7, "you."), (13, "so"), (13, "long"),
    ]  # fmt: skip
