"""Made corpora: rows complete, resumable after kill -9, the same whatever the number of processes; dialogues."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import types

import numpy as np
import pytest

import vivavoce
from vivavoce.data import dialogues, flite, jobs, spoken
from vivavoce.data.clips import read_manifest
from vivavoce.data.dialogues import Script, Turn
from vivavoce.errors import AudioError, DataError, RecipeError, RequestError

VOICES = ["espeak:en-us+f3", "espeak:en-gb-scotland"]


def plan(**options):
    return spoken.plan(["seven", "three plus four"], VOICES, "t", 2, (0.8, 1.25), (0.8, 1.25), **options)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.flac"))}


def test_rows_say_what_was_made(tmp_path):
    made = spoken.make(plan(sample_rate=16_000, margin=0.05), tmp_path, processes=1, quiet=True)
    clips = list(read_manifest(made.manifest))
    assert made.clips == made.fresh == len(clips) == 8 and not made.failed
    assert len({clip.extra["synthesis"]["rate"] for clip in clips}) == 8
    for clip in clips:
        audio = vivavoce.read(clip.path)
        assert audio.sample_rate == 16_000 and clip.duration == pytest.approx(audio.duration, abs=1e-5)
        assert clip.license and clip.source == "synthesized by espeak"
        assert clip.language in ("en-us", "en-gb-scotland") and clip.speaker.startswith("espeak_en-")
        assert [word.text for word in clip.words] == clip.text.split()
        assert -0.02 < clip.words[0].start < 0.1 and clip.duration - 0.12 < clip.words[-1].end <= clip.duration


def test_an_unchanged_plan_makes_nothing_and_a_changed_one_only_what_changed(tmp_path):
    spoken.make(plan(), tmp_path, processes=1, quiet=True)
    before = files(tmp_path)
    assert spoken.make(plan(), tmp_path, processes=1, quiet=True).fresh == 0
    jobs = plan()[:-1]
    changed = [*jobs[:-1], plan(margin=0.0)[6]]
    assert spoken.make(changed, tmp_path, processes=1, quiet=True).fresh == 1
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [job.id for job in jobs]
    assert sum(files(tmp_path)[name] != data for name, data in before.items()) == 1
    other = spoken.plan(["one"], VOICES[:1], "other")
    assert spoken.make(other, tmp_path, processes=1, quiet=True).clips == 8  # another name joins the corpus


def test_two_processes_make_the_same_files(tmp_path):
    recipe = {"noise": {"snr": [5, 30]}, "speed": {"factor": [0.9, 1.1]}}
    one = spoken.make(plan(augment=recipe), tmp_path / "one", processes=1, quiet=True)
    two = spoken.make(plan(augment=recipe), tmp_path / "two", processes=2, quiet=True)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert one.manifest.read_bytes() == two.manifest.read_bytes()
    assert files(tmp_path / "one") != (spoken.make(plan(), tmp_path / "dry", 1, True), files(tmp_path / "dry"))[1]


def test_kill_9_loses_nothing_finished_and_leaves_nothing_half(tmp_path):
    script = textwrap.dedent(
        f"""
        import time
        from vivavoce.data import spoken
        texts = [f"number {{i}}, then some more words to say" for i in range(40)]
        say = spoken.say
        spoken.say = lambda job: (time.sleep(0.05), say(job))[1]  # much is left when it is killed, however late that is
        if __name__ == "__main__":
            spoken.make(spoken.plan(texts, {VOICES}, "t"), {str(tmp_path / "killed")!r}, processes=1, quiet=True)
        """
    )
    (tmp_path / "job.py").write_text(script)
    process = subprocess.Popen([sys.executable, str(tmp_path / "job.py")])
    journal = tmp_path / "killed" / ".journal.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (journal.exists() and journal.read_text().count("\n") >= 10):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "manifest.jsonl").exists()
    finished = journal.read_text().count("\n")
    with journal.open("a") as file:
        file.write('{"id": "t/espeak_en-us+f3/00039')  # as a kill in the middle of a line leaves it
    for path in (tmp_path / "killed").rglob("*.flac"):
        vivavoce.read(path)
    jobs = spoken.plan([f"number {i}, then some more words to say" for i in range(40)], VOICES, "t")
    made = spoken.make(jobs, tmp_path / "killed", processes=1, quiet=True)
    assert 10 <= finished < 80 and made.clips == 80 and made.fresh == 80 - finished
    spoken.make(jobs, tmp_path / "whole", processes=1, quiet=True)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert made.manifest.read_bytes() == (tmp_path / "whole" / "manifest.jsonl").read_bytes()
    left = [path.name for path in (tmp_path / "killed").rglob("*") if path.name.startswith(".")]
    assert not left


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="counts processes in /proc")
def test_workers_leave_when_their_parent_is_killed(tmp_path):
    script = textwrap.dedent(
        f"""
        from vivavoce.data import spoken
        texts = [f"number {{i}}, then some more words to say" for i in range(2000)]
        if __name__ == "__main__":
            spoken.make(spoken.plan(texts, {VOICES}, "t"), {str(tmp_path / "out")!r}, processes=2, quiet=True)
        """
    )
    (tmp_path / "job.py").write_text(script)
    command = [sys.executable, str(tmp_path / "job.py")]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not list((tmp_path / "out").rglob("*.flac")):
        time.sleep(0.02)
    assert members(process.pid) >= 3  # itself, two workers (and Python's resource tracker)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and members(process.pid):
        time.sleep(0.1)
    assert members(process.pid) == 0


def members(session):
    """How many living processes belong to a session."""
    count = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            count += fields[0] != "Z" and int(fields[3]) == session
    return count


def test_a_full_disk_is_an_error_of_the_whole(tmp_path, monkeypatch):
    def refuse(*_):
        raise AudioError("no space")

    monkeypatch.setattr(spoken, "say", refuse)
    made = spoken.make(plan(), tmp_path / "a", processes=1, quiet=True)
    assert made.clips == 0 and len(made.failed) == 8
    monkeypatch.setattr(jobs.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=0))
    with pytest.raises(DataError, match=r"disk is full \(no space\)"):
        spoken.make(plan(), tmp_path / "b", processes=1, quiet=True)


def test_what_cannot_be_said_is_reported_and_the_rest_made(tmp_path):
    jobs = [
        spoken.Utterance("t/a", "fine", VOICES[0]),
        spoken.Utterance("t/b", "fine", VOICES[0], rate=50.0),
        spoken.Utterance("t/c", "", VOICES[0]),
    ]
    made = spoken.make(jobs, tmp_path, processes=1, quiet=True)
    assert made.clips == 1 and [identity for identity, _ in made.failed] == ["t/b", "t/c"]
    assert "rate 50" in made.failed[0][1]
    with pytest.raises(RequestError, match="no variant"):
        spoken.make([spoken.Utterance("t/a", "fine", "espeak:en+xyz")], tmp_path, quiet=True)
    with pytest.raises(RequestError, match="same id"):
        spoken.make([jobs[0], jobs[0]], tmp_path, quiet=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made"):
        spoken.make(jobs, tmp_path / "file", quiet=True)
    made.manifest.write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match=r"manifest.jsonl, line 1: damaged"):
        spoken.make(jobs, tmp_path, quiet=True)


@pytest.mark.skipif(flite.program() is None, reason="the program 'flite' is not installed")
def test_flite_rows(tmp_path):
    made = spoken.make(
        spoken.plan(["nine"], ["flite:rms", "flite:kal"], pitch=(1.1, 1.2), sample_rate=24_000), tmp_path, 1, True
    )
    rms, kal = read_manifest(made.manifest)
    assert (rms.extra["synthesis"]["pitch"], rms.orig_sample_rate, kal.orig_sample_rate) == (1.0, 16_000, 8_000)
    assert kal.extra["synthesis"]["pitch"] > 1


def rms(wave):
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if len(wave) else 0.0


def test_dialogue_places_turns_as_written():
    script = Script(
        "d/0",
        (Turn(0, "three plus four"), Turn(1, "is seven", gap=0.5), Turn(0, "yes", gap=-0.3)),
        ("espeak:en-us+f3", "espeak:en-gb"),
        sample_rate=16_000,
    )
    audio, (first, second, third) = dialogues.render(script)
    assert audio.channels == 2 and audio.sample_rate == 16_000
    assert first.start == pytest.approx(0.4) and second.start - first.end == pytest.approx(0.5)
    assert second.end - third.start == pytest.approx(0.3) and [s.channel for s in (first, second, third)] == [0, 1, 0]
    assert audio.duration == pytest.approx(max(second.end, third.end) + 0.4, abs=1e-3)
    for segment in (first, second, third):
        channel = audio.channel(segment.channel)
        assert rms(channel[segment.start : segment.end].samples[0]) > 0.01
        assert all(segment.start - 0.02 <= w.start < w.end <= segment.end + 0.02 for w in segment.words)
    assert rms(audio.channel(0)[first.end + 0.01 : third.start - 0.01].samples[0]) == 0
    assert rms(audio.channel(1)[0 : second.start - 0.01].samples[0]) == 0


def test_breaking_in_silences_the_other():
    text = "one two three four five six seven eight nine"
    script = Script("d/1", (Turn(0, text), Turn(1, "stop", gap=-1.5, stops=0.3), Turn(0, "sorry", gap=0.2)))
    audio, (first, second, third) = dialogues.render(script)
    assert first.end == pytest.approx(second.start + 0.3) and first.extra["stopped"]
    assert 0 < len(first.words) < 9 and first.text == " ".join(text.split()[: len(first.words)])
    assert rms(audio.channel(0)[first.end + 0.001 : third.start - 0.001].samples[0]) == 0
    assert third.start - max(first.end, second.end) == pytest.approx(0.2)


@pytest.mark.parametrize("identity", ["../../out/x", "/away/x", "", "a//b", "a/..", "a/.", "a\\b", "a\nb", "a\0b", 3])
def test_an_id_never_leads_out_of_the_folder(identity, tmp_path):
    script = Script(identity, (Turn(0, "yes"),))
    for make, job in (
        (dialogues.make, script),
        (spoken.make, spoken.Utterance(identity, "yes", VOICES[0])),
    ):
        with pytest.raises(RequestError, match="cannot be an id"):
            make([job], tmp_path / "deep" / "out", processes=1, quiet=True)
    assert not list(tmp_path.rglob("*.flac")) and not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("texts", "voices", "options", "says"),
    [
        ([], VOICES, {}, "nothing to say"),
        (["yes"], [], {}, "nothing to say"),
        (["yes"], VOICES, {"margin": -3}, "margin"),
        (["yes"], VOICES, {"margin": float("nan")}, "margin"),
        (["yes"], VOICES, {"sample_rate": 3}, "sample_rate"),
        (["yes"], VOICES, {"tempo": 3}, "tempo"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(texts, voices, options, says):
    with pytest.raises(RequestError, match=says):
        spoken.plan(texts, voices, **options)


def test_generated_dialogues(tmp_path):
    scripts = dialogues.generate(6, [*VOICES, "espeak:en+m3"], seed=1, sample_rate=16_000)
    assert scripts == dialogues.generate(6, [*VOICES, "espeak:en+m3"], seed=1, sample_rate=16_000)
    assert scripts[:3] == dialogues.generate(3, [*VOICES, "espeak:en+m3"], seed=1, sample_rate=16_000)
    turns = [turn for script in scripts for turn in script.turns]
    assert any(turn.gap < 0 for turn in turns) and any(turn.stops for turn in turns)
    made = dialogues.make(scripts, tmp_path, processes=2, quiet=True)
    for clip in read_manifest(made.manifest):
        assert clip.channels == 2 == vivavoce.read(clip.path).channels
        assert {segment.channel for segment in clip.segments} == {0, 1} and clip.license and clip.extra["simulated"]
        assert clip.speaker.count("+espeak") == 1 or "+" in clip.speaker
    assert dialogues.make(scripts, tmp_path, processes=1, quiet=True).fresh == 0


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "list of 'turns'"),
        ({"id": "x", "turns": [{"channel": 2, "text": "a"}]}, r"turns\[0\]"),
        ({"id": "x", "turns": [{"channel": 0, "text": "a", "loud": 1}]}, "loud"),
        ({"id": "x", "turns": [{"channel": 0, "text": "a"}], "tempo": 3}, "tempo"),
        ([1], "a mapping with 'id'"),
        ({"id": 3, "turns": [{"channel": 0, "text": "a"}]}, "id: .*valid string"),
        ({"turns": [{"channel": 0, "text": "a"}]}, "id: Field required"),
        ({"id": "x", "turns": [3]}, r"turns\[0\]: 3 found"),
        ({"id": "x", "turns": [{"channel": 0, "text": "a", "gap": 1e9}]}, r"turns\[0\]: gap"),
        ({"id": "x", "turns": [{"channel": 0, "text": "a"}], "voices": ["espeak:en"]}, "voices"),
        ({"id": "x", "turns": [{"channel": 0, "text": "a"}], "augment": {"noise": {"snr": "x"}}}, "augment.noise: snr"),
    ],
)
def test_bad_scripts_say_where(row, says):
    with pytest.raises(RecipeError, match=says):
        dialogues.parse(row)
