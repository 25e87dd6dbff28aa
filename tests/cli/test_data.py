"""`vivavoce data`: corpora made, imported, converted and counted from the command line; one line for what is wrong."""

import json
from functools import partial

import pytest

import vivavoce
from vivavoce.data.clips import read_manifest


@pytest.fixture
def run(command):
    return partial(command, "data")


def test_digits_then_dialogues_then_lhotse_and_back(run, tmp_path):
    out = tmp_path / "corpus"
    options = ("--processes", 1, "--sample-rate", 16000, "--margin", 0.05, "--rate", "0.9:1.1")
    code, said, _ = run("synth", out, "--voices", "espeak:en-us,espeak:en", "--variants", "f1,m2", *options)
    assert code == 0 and "40 clips, 40 made now, 0 skipped" in said
    code, said, _ = run("synth", out, "--kind", "dialogues", "--count", 2, "--processes", 1)
    assert code == 0 and "42 clips, 2 made now" in said
    code, said, _ = run("synth", out, "--kind", "dialogues", "--count", 2, "--processes", 1)
    assert code == 0 and "42 clips, 0 made now" in said
    code, said, _ = run("lhotse", out, "-o", tmp_path / "cuts.jsonl.gz")
    assert code == 0 and "42 cuts" in said
    assert run("lhotse", tmp_path / "cuts.jsonl.gz", "-o", tmp_path / "back.jsonl")[0] == 0
    clips = list(read_manifest(tmp_path / "back.jsonl"))
    assert len(clips) == 42 and {clip.channels for clip in clips} == {1, 2}
    code, said, _ = run("stats", tmp_path / "back.jsonl", "--by", "language", "--json")
    groups = {row["language"]: row for row in json.loads(said)["groups"]}
    assert code == 0 and groups["en"]["clips"] == groups["en-us"]["clips"] == 20
    code, said, _ = run("stats", out)
    assert code == 0 and "42 clips" in said and "synthesized by espeak" in said and "GPL" in said


def test_own_sentences_and_scripts_with_augmentation(run, tmp_path):
    (tmp_path / "s.txt").write_text("Good morning.\n\nWhere is the station?\n")
    (tmp_path / "a.yaml").write_text("{noise: {snr: [3, 20], color: pink}, level: {dbfs: -30}}")
    out = tmp_path / "corpus"
    code, _, _ = run(
        *("synth", out, "--kind", "sentences", "--texts", tmp_path / "s.txt", "--voices", "espeak:en+f2"),
        *("--augment", tmp_path / "a.yaml", "--each", 2, "--name", "mine", "--source", "my own"),
    )
    clips = list(read_manifest(out / "manifest.jsonl"))
    assert code == 0 and len(clips) == 4 and {clip.source for clip in clips} == {"my own"}
    for clip in clips:
        level = float((clip.load().samples ** 2).mean()) ** 0.5
        assert level == pytest.approx(10 ** (-30 / 20), rel=0.01) and clip.id.startswith("mine/")
    turns = [{"channel": 0, "text": "one plus two"}, {"channel": 1, "text": "is three", "gap": 0.1}]
    (tmp_path / "d.jsonl").write_text(json.dumps({"id": "d/1", "turns": turns}) + "\n")
    voices = ("--voices", "espeak:fr,espeak:de")
    assert run("synth", out, "--kind", "dialogues", "--texts", tmp_path / "d.jsonl", *voices)[0] == 0
    (dialogue,) = [clip for clip in read_manifest(out / "manifest.jsonl") if clip.id == "d/1"]
    assert vivavoce.read(dialogue.path).channels == 2 and dialogue.speaker == "espeak_fr+espeak_de"


def test_turns_join_a_corpus_and_are_listed_alone(run, tmp_path):
    out, voices = tmp_path / "corpus", ("--voices", "espeak:en-us,espeak:en", "--processes", 1)
    assert run("synth", out, "--kind", "dialogues", "--count", 1, *voices)[0] == 0
    code, said, _ = run("synth", out, "--kind", "turns", "--count", 1, "--sample-rate", 16000, "--seed", 5, *voices)
    assert code == 0 and "2 clips, 1 made now" in said
    (row,) = [json.loads(line) for line in (out / "data.jsonl").read_text().splitlines()]
    audio = vivavoce.read(out / row["path"])
    assert row["path"] == "audio/turns/00000.wav" and (audio.channels, audio.sample_rate) == (2, 16000)
    assert json.loads((out / "audio/turns/00000.json").read_text())["alignments"][0][2] == "SPEAKER_OTHER"


def test_import_reports_what_it_skips(run, pack, tmp_path):
    (tmp_path / "audio").mkdir()
    source = next((pack / "audio" / "an4").glob("*.flac"))
    (tmp_path / "audio" / "good.flac").write_bytes(source.read_bytes())
    (tmp_path / "audio" / "bad.flac").write_text("nothing to hear")
    out = tmp_path / "m.jsonl"
    code, said, complaints = run("import", tmp_path / "audio", "-o", out, "--license", "BSD", "--source", "AN4")
    assert code == 0 and "1 clips" in said and "1 skipped" in said and "skipped bad" in complaints
    (clip,) = read_manifest(out)
    assert clip.path == tmp_path / "audio" / "good.flac" and clip.license == "BSD"
    code, said, _ = run("import", pack, "-o", tmp_path / "pack.jsonl")
    assert code == 0 and "2983 clips" in said


def test_voices(run):
    code, said, _ = run("voices", "--language", "en")
    assert code == 0 and "espeak:en-us\ten-us\t22050 Hz" in said
    assert "klatt" in run("voices", "--variants")[1].split()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("synth", "OUT", "--kind", "songs"), 2, "digits, sentences, dialogues"),
        (("synth", "OUT", "--kind", "sentences"), 2, "--texts"),
        (("synth", "OUT", "--kind", "sentences", "--texts", "nowhere.txt"), 2, "nowhere.txt"),
        (("synth", "OUT", "--voices", "espeak:xx"), 2, "no language 'xx'"),
        (("synth", "OUT", "--rate", "fast"), 2, "0.9:1.2"),
        (("synth", "OUT", "--rate", "1.2:0.9"), 2, "0.9:1.2"),
        (("synth", "OUT", "--augment", "nowhere.yaml"), 2, "nowhere.yaml"),
        (("synth", "OUT", "--kind", "dialogues", "--voices", "espeak:en"), 2, "two voices"),
        (("synth", "OUT", "--rate", "inf"), 2, "0.9:1.2"),
        (("synth", "OUT", "--margin", "-3"), 2, "--margin"),
        (("synth", "OUT", "--margin", "nan"), 2, "margin"),
        (("synth", "OUT", "--seed", "-1"), 2, "--seed"),
        (("synth", "OUT", "--voices", ""), 2, "--voices"),
        (("synth", "OUT", "--name", "../x", "--voices", "espeak:en"), 2, "'../x/"),
        (("synth", "OUT", "--name", "/x", "--voices", "espeak:en"), 2, "'/x/"),
        (("synth", "OUT", "--kind", "dialogues", "--texts", "ESCAPE"), 2, "'../../escaped/x'"),
        (("synth", "OUT", "--kind", "dialogues", "--texts", "LIST"), 2, "list.jsonl, line 1"),
        (("synth", "OUT", "--kind", "turns", "--texts", "LIST"), 2, "leave out --texts"),
        (("synth", "OUT", "--kind", "turns", "--voices", "espeak:en"), 2, "two voices"),
        (("import", "EMPTY", "-o", "OUT", "--layout", "vctk"), 1, "vctk"),
        (("import", "BAD", "-o", "OUT", "--license", "x", "--source", "y"), 1, "none of its 1 files"),
        (("lhotse", "BAD", "-o", "CUTS"), 2, "--license"),
        (("lhotse", "BAD", "-o", "CUTS", "--license", "x", "--source", "y"), 1, "none of its 1 files"),
        (("stats", "BAD"), 1, "none of its 1 files"),
        (("import", "nowhere", "-o", "OUT"), 1, "no such file"),
        (("import", "EMPTY", "-o", "OUT", "--license", "x", "--source", "y"), 1, "no audio found"),
        (("import", "EMPTY", "-o", "OUT", "--layout", "odd"), 2, "librispeech"),
        (("lhotse", "EMPTY/none.jsonl", "-o", "OUT"), 1, "no such file"),
        (("stats", "EMPTY"), 1, "no audio found"),
    ],
)
def test_one_line_for_what_is_wrong(run, tmp_path, arguments, code, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.wav").write_text("nothing to hear")
    turns = [{"channel": 0, "text": "one"}]
    (tmp_path / "escape.jsonl").write_text(json.dumps({"id": "../../escaped/x", "turns": turns}))
    (tmp_path / "list.jsonl").write_text("[1]")
    places = {"OUT": str(tmp_path / "out.jsonl"), "EMPTY": str(tmp_path / "empty"), "BAD": str(tmp_path / "bad")}
    places |= {name.upper(): str(tmp_path / f"{name}.jsonl") for name in ("escape", "list")}
    places["CUTS"] = str(tmp_path / "cuts.jsonl.gz")
    filled = [places.get(a, a.replace("EMPTY", places["EMPTY"])) for a in arguments]
    found, _, complaint = run(*filled)
    skipped, last = complaint.splitlines()[:-1], complaint.splitlines()[-1]
    assert found == code and says in last and last.startswith("error: ") and "fault" not in last, complaint
    assert all(line.startswith("skipped ") for line in skipped)
    assert not (tmp_path / "cuts.jsonl.gz").exists() and not (tmp_path / "out.jsonl" / "manifest.jsonl").exists()
    assert not list(tmp_path.rglob("*.flac"))


def test_words_are_timed_and_dialogues_written_for_moshi_finetune(run, tmp_path):
    talks = tmp_path / "talks"
    assert run("synth", talks, "--kind", "dialogues", "--count", 1, "--processes", 1)[0] == 0
    (clip,) = read_manifest(talks / "manifest.jsonl")
    row = {"id": "x", "audio": str(clip.path), "duration": 1, "license": "l", "source": "s", "channels": 2}
    (tmp_path / "untimed.jsonl").write_text(json.dumps(row) + "\n")
    code, said, err = run("stereo", tmp_path / "untimed.jsonl", "-o", tmp_path / "none")
    assert code == 1 and "'vivavoce data align' finds them" in err
    code, said, _ = run("stereo", talks, "-o", tmp_path / "out")
    assert code == 0 and "out/data.jsonl: 1 dialogues" in said
    code, said, _ = run("stats", tmp_path / "out", "--json")
    assert code == 0 and json.loads(said)["groups"][0]["with_words"] == 1
    code, said, _ = run("align", talks, "-o", tmp_path / "again.jsonl", "--by", f"textgrid:{talks}")
    assert code == 0 and "1 clips, 0 aligned now" in said  # the synthesizer said when each word is said
    assert run("align", talks, "-o", tmp_path / "a.jsonl", "--by", "whisper")[0] == 2
    assert run("align", talks, "-o", tmp_path / "a.json", "--by", "pocketsphinx")[0] == 2
