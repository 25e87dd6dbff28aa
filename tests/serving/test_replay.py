"""A recorded conversation goes through a model once more: the same to the sample, or where it differs."""

import json
from pathlib import Path

import numpy as np
import pytest

import vivavoce
from serving.recording_bench import ME, Bench, record, run, spoken, watched
from vivavoce.dialogue.reply_rows import duplex_from_reply
from vivavoce.dialogue.turn_policy import TurnPolicy
from vivavoce.dialogue.turns import Piece
from vivavoce.errors import DataError, RequestError
from vivavoce.serving.recorded import find_recordings, read_recording
from vivavoce.serving.recording import HEADER
from vivavoce.serving.replay import compare, replay


@pytest.fixture(scope="module")
def speech():
    return spoken()


@pytest.fixture
def recorded(tmp_path, speech):
    """A recording of `tone`."""
    return record(tmp_path / "recorded", speech)


@pytest.fixture(scope="module")
def mini():
    return vivavoce.load("mini")


async def roughly(bench, conversation, samples, other=None):
    """A client as they are: pieces of odd sizes, too late now and then, and once far too much."""
    chance, at = np.random.default_rng(5), 0
    while at < len(samples):
        if chance.random() < 0.08:
            bench.tick(int(chance.integers(1, 12)))  # longer than the gap that counts as silence, sometimes
        sent = int(chance.integers(1, 4 * bench.size))
        if chance.random() < 0.03:
            sent = 12 * bench.size  # more than the ring holds
        conversation.hear(samples[at : at + sent])
        at += sent
        if other is not None:
            other.hear(np.random.default_rng(at).normal(0, 0.05, bench.size).astype(np.float32))
        bench.tick(max(1, round(sent / bench.size)))
    bench.tick(9)


@pytest.mark.parametrize("name", ["echo", "tone", "mini"])
def test_a_rough_conversation_replays_to_the_sample(name, tmp_path, speech, request):
    model = request.getfixturevalue("mini") if name == "mini" else vivavoce.load(name)

    async def go():
        bench = Bench(model, tmp_path, rows=3, settings={"ring": 0.6})
        spoken = vivavoce.Audio(speech[None, : 60_000 if name == "mini" else None], 24_000)
        samples = spoken.resample(bench.core.sample_rate).samples[0]
        other = await bench.core.open(ME, 11)
        conversation = await bench.core.open(ME, 7)
        seen = watched(conversation)
        await roughly(bench, conversation, samples, other)
        bench.tick(0 if name == "mini" else 30)
        bench.end(conversation, other)
        return conversation, seen

    conversation, seen = run(go())
    counts = conversation.counts
    assert counts.skipped > 10 and counts.silent > 5 and counts.dropped > 1000
    path = next(tmp_path.glob(f"*{conversation.id}.jsonl"))
    recording = read_recording(path)
    assert np.array_equal(recording.heard, np.concatenate([f.heard for f in seen]))
    assert np.array_equal(recording.said, np.concatenate([f.audio for f in seen]))
    assert recording.words() == [(f.index, f.text) for f in seen if f.text]
    assert recording.words("user") == [(f.index, f.user_text) for f in seen if f.user_text]
    told = vivavoce.read(path.with_suffix(".wav"))  # another reader
    assert np.array_equal(told.samples.T, recording.sound) and told.sample_rate == recording.sample_rate
    assert recording.frames == counts.frames and recording.opened["seed"] == 7
    again = replay(recording, model, tmp_path / "replayed", name)
    found = compare(recording, again)
    assert found.same and found.samples == counts.frames * recording.frame_size and found.first is None
    assert np.array_equal(again.sound, recording.sound) and again.words() == recording.words()
    if name == "tone":
        assert recording.words()[:2] == [(recording.words()[0][0], "tone"), (recording.words()[1][0], "number 1")]
        assert len(found.gaps[0]) >= 1 and found.gaps[0] == found.gaps[1]
    else:
        assert recording.said.any()


def test_commands_and_prompts_are_recorded_and_replayed(tmp_path, mini):
    """mini is told to say something in the middle, after a prompt of ids."""

    async def go():
        bench = Bench(mini, tmp_path, rows=1)
        conversation = await bench.core.open(ME, 5, {"text": [0, 0, 3]})
        for at in range(26):
            conversation.hear(np.random.default_rng(at).normal(0, 0.01, bench.size).astype(np.float32))
            if at == 8:
                conversation.command(lambda rows, row: rows.say(row, "three plus four", within=4))
            bench.tick()
        bench.end(conversation)

    run(go())
    recording = read_recording(find_recordings(tmp_path)[0])
    [command] = recording.commands
    assert (command["verb"], command["arguments"], command["options"]) == ("say", ["three plus four"], {"within": 4})
    assert "three plus four" in " ".join(text for _, text in recording.words())
    assert recording.prompt == {"text": [0, 0, 3]}
    assert compare(recording, replay(recording, mini, tmp_path / "again", "mini")).same


def test_sound_of_a_prompt_is_kept_beside(tmp_path):
    """`tone` answers what it heard before the conversation began."""
    prompt = {"user": vivavoce.Audio(np.tile(np.float32([0.2, -0.2]), 3000), 24_000)}

    async def go(prompt):
        bench = Bench("tone", tmp_path / str(prompt is None))
        conversation = await bench.core.open(ME, 0, prompt)
        for _ in range(12):
            conversation.hear(np.zeros(bench.size, np.float32))
            bench.tick()
        bench.end(conversation)
        return read_recording(find_recordings(bench.recorder.folder)[0])

    recording, without = run(go(prompt)), run(go(None))
    assert np.array_equal(recording.prompt["user"].samples, prompt["user"].samples)
    assert recording.words()[0][1] == "tone" and not without.words()
    assert compare(recording, replay(recording, vivavoce.load("tone"), tmp_path / "again", "tone")).same


class Speaker:
    """A half-duplex model: it counts the turns that it was given."""

    name, sample_rate = "speaker", 24_000

    def __init__(self):
        self.verbs = {"reply": "native"}

    def reply(self, turns, stream=False, seed=0):
        for n in range(12):
            sound = np.random.default_rng(seed + n).uniform(0.1, 0.3, 3000).astype(np.float32)
            yield Piece(n / 8, f"{len(turns)}.{n}", sound, "" if n else "heard")


def test_half_duplex_models_talk_through_the_core_and_replay(tmp_path, speech):
    async def go():
        bench = Bench(duplex_from_reply(Speaker(), TurnPolicy(silence=0.4), workers=0), tmp_path)
        conversation = await bench.core.open(ME, 9)
        for at in range(0, len(speech) // bench.size):
            if at == 20:
                conversation.command(lambda rows, row: rows.set_policy(row, TurnPolicy(silence=0.41, prefix=0.1)))
            if at == 32:
                conversation.command(lambda rows, row: rows.cancel(row))
            conversation.hear(speech[at * bench.size : (at + 1) * bench.size])
            bench.tick()
        history = bench.lockstep.rows.history(conversation.row)
        bench.end(conversation)
        return history

    history = run(go())
    assert [turn.role for turn in history] == ["user", "model"] * 2 and history[1].cut == "frames"
    recording = read_recording(find_recordings(tmp_path)[0])
    assert recording.opened["policy"]["silence"] == 0.4 and [c["verb"] for c in recording.commands] == [
        "set_policy", "cancel",
    ]  # fmt: skip
    words = [text for _, text in recording.words()]
    assert words[0].startswith("1.0") and "3.11" in " ".join(words) and "1.11" not in " ".join(words)
    assert len(recording.gaps()) == 2 and all(0.2 < gap < 0.9 for gap in recording.gaps())
    again = replay(recording, Speaker(), tmp_path / "again")
    assert compare(recording, again).same and again.opened["policy"] == recording.opened["policy"]
    # in real time replies are computed beside the clock: the same words, perhaps a little later
    live = replay(recording, duplex_from_reply(Speaker()), tmp_path / "live", speed=8.0)
    assert compare(recording, live).words[1].startswith("1.0")


def test_differences_are_found_where_they_are(recorded, tmp_path, speech, mini):
    tone = vivavoce.load("tone")
    again = replay(recorded, tone, tmp_path / "a", "tone")
    assert again.opened["dialect"] == "replay" and compare(recorded, again).same
    sound = np.array(recorded.sound)
    sound[7000, 1] += 0.25
    sound[9000, 1] -= 0.5
    wav = again.log.with_suffix(".wav")
    wav.write_bytes(wav.read_bytes()[:HEADER] + sound.tobytes())
    found = compare(recorded, read_recording(again.log))
    assert (found.first, found.frame, found.differing) == (7000 - 1920, 2, 2) and not found.same and found.same_words
    assert found.largest == pytest.approx(0.5)
    echo = compare(recorded, replay(recorded, vivavoce.load("echo"), tmp_path / "b", "echo"))
    assert not echo.same and echo.words[0].startswith("tone number 1 ends") and echo.words[1].startswith("echo")
    short = record(tmp_path / "short", speech[: 12 * 1920])
    slower = replay(short, mini, tmp_path / "c", "mini")  # at 16 kHz
    other = compare(short, slower)
    assert other.samples is None and not other.same
    assert slower.frames == short.frames == 12 and slower.sample_rate == 16_000
    heard = vivavoce.Audio(short.heard[None], 24_000).resample(16_000).samples[0]
    assert np.array_equal(heard, slower.heard)
    with pytest.raises(DataError, match="choose another folder"):
        replay(recorded, tone, recorded.log.parent)
    with pytest.raises(DataError, match="broke off, frame 0"):
        broken = vivavoce.load("tone")
        broken.duplex_rows = lambda rows: Failing(vivavoce.load("tone").duplex_rows(rows))
        replay(recorded, broken, tmp_path / "d")


class Failing:
    """Rows that do not take any seed."""

    def __init__(self, rows):
        self._rows = rows

    def __getattr__(self, name):
        return getattr(self._rows, name)

    def reset(self, row, seed, prompt):
        raise RequestError("no seeds here")


# -- the command --


def test_the_command_replays_and_compares(command, recorded, tmp_path):
    code, out, _ = command("replay", recorded.log, "--same", "--device", "cpu")
    assert code == 0 and "tone number 1 ends" in out and f"the same, {recorded.frames * 1920} samples" in out
    assert (recorded.log.parent / "replayed" / recorded.log.name).exists()
    code, out, _ = command("replay", recorded.log.parent, "--model", "echo", "--same", "--out", tmp_path / "echo")
    assert code == 1 and "differs from sample" in out and "echo" in out
    assert command("replay", recorded.log, "--model", "echo", "--out", tmp_path / "echo")[0] == 0
    wav = recorded.log.with_suffix(".wav")
    code, out, _ = command("replay", wav, "--json", "--speed", "40", "--rows", 1, "--out", tmp_path / "j")
    [told] = json.loads(out)
    assert code == 0 and told["same"] and told["model"] == "tone" and told["first"] is None
    assert told["samples"] == recorded.frames * 1920 and Path(told["replay"]).exists()


def test_the_command_says_what_is_wrong(command, recorded, tmp_path):
    for arguments, message, expected in (
        ([tmp_path / "missing"], "no such recording", 1), ([recorded.log, "--speed", "fast"], "--speed fast", 2),
        ([recorded.log, "--speed", "0"], "--speed 0", 2), ([recorded.log, "--model", "nobody"], "nobody", 2),
        ([recorded.log, "--out", recorded.log.parent], "choose another folder", 1),
    ):  # fmt: skip
        code, _, err = command("replay", *arguments)
        assert code == expected and message in err and len(err.splitlines()) == 1
    lines = recorded.log.read_text().splitlines(keepends=True)
    recorded.log.write_text("".join([lines[0].replace('"model": "tone", ', ""), *lines[1:]]))
    assert "give --model" in command("replay", recorded.log)[2]
