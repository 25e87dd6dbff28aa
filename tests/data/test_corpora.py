"""Corpora in: every layout as it is published, manifests, CutSets; what is broken is reported, skipped, counted."""

import json
from dataclasses import replace

import numpy as np
import pytest

import vivavoce
from vivavoce.data.clips import Clip, Segment, Word, from_row, read_manifest, to_row, write_manifest
from vivavoce.data.corpora import check_ids, detect, open_corpus
from vivavoce.data.cuts import read_cuts, to_cut, write_cuts
from vivavoce.data.stats import stats
from vivavoce.errors import AudioError, DataError, RequestError


def tone(path, seconds=0.5, rate=16_000, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(np.arange(round(seconds * rate)) * 0.1)
    vivavoce.write(path, vivavoce.Audio(np.stack([wave / (c + 1) for c in range(channels)]), rate))


def text(path, words):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(words, encoding="utf-8")


def test_folder(tmp_path):
    tone(tmp_path / "a" / "one.wav", 0.25)
    tone(tmp_path / "b" / "two.flac", 0.5, 8_000, channels=2)
    tone(tmp_path / "three.ogg", 0.5)
    text(tmp_path / "a" / "one.txt", "  eins \n")
    text(tmp_path / "b" / "two.lab", "zwei")
    corpus = open_corpus(tmp_path, license="CC0-1.0", source="mine", language="de")
    one, two, three = corpus.clips
    assert (one.id, one.text, one.duration, one.orig_sample_rate, one.channels) == ("a/one", "eins", 0.25, 16_000, 1)
    assert (two.id, two.text, two.orig_sample_rate, two.channels) == ("b/two", "zwei", 8_000, 2) and three.text is None
    assert {(clip.license, clip.source, clip.language) for clip in corpus.clips} == {("CC0-1.0", "mine", "de")}
    assert one.load().samples.shape == (1, 4000) and two.load(16_000).samples.shape == (2, 8000)
    with pytest.raises(RequestError, match="neither licence nor source"):
        open_corpus(tmp_path)


def test_librispeech(tmp_path):
    tone(tmp_path / "LibriSpeech/dev/84/121/84-121-0000.flac")
    tone(tmp_path / "LibriSpeech/dev/84/121/84-121-0001.flac")
    text(tmp_path / "LibriSpeech/dev/84/121/84-121.trans.txt", "84-121-0000 GO DO YOU HEAR\n84-121-0001 YES\n")
    text(tmp_path / "LibriSpeech/SPEAKERS.TXT", ";ID |SEX| SUBSET\n84   | F | dev | 8.02 | Christie Nowak\n")
    for place in (tmp_path, tmp_path / "LibriSpeech", tmp_path / "LibriSpeech" / "dev"):
        assert detect(place) == "librispeech"
        corpus = open_corpus(place)
        assert [clip.text for clip in corpus.clips] == ["GO DO YOU HEAR", "YES"]
        assert corpus.clips[0].speaker == "librispeech_84" and corpus.clips[0].license == "CC-BY-4.0"
        assert corpus.clips[0].extra["subset"] == "dev" and corpus.clips[0].language == "en"
    assert open_corpus(tmp_path / "LibriSpeech").clips[0].extra["gender"] == "F"


def test_ljspeech(tmp_path):
    tone(tmp_path / "wavs/LJ001-0001.wav", rate=22_050)
    tone(tmp_path / "wavs/LJ001-0002.wav", rate=22_050)
    rows = 'LJ001-0001|in 1455, "so"|in fourteen fifty-five, "so"\nLJ001-0002|being modern.|being modern.\n'
    text(tmp_path / "metadata.csv", rows + "LJ001-0003|lost|lost\n")
    corpus = open_corpus(tmp_path)
    assert [clip.text for clip in corpus.clips] == ['in fourteen fifty-five, "so"', "being modern."]
    assert corpus.clips[0].extra["text_raw"] == 'in 1455, "so"' and "Public domain" in corpus.clips[0].license
    assert [identity for identity, _ in corpus.skipped] == ["LJ001-0003"]


@pytest.mark.parametrize("release", ["0.92", "0.80"])
def test_vctk(tmp_path, release):
    if release == "0.92":
        tone(tmp_path / "wav48_silence_trimmed/p225/p225_001_mic1.flac", rate=48_000)
        tone(tmp_path / "wav48_silence_trimmed/p225/p225_001_mic2.flac", rate=48_000)
        tone(tmp_path / "wav48_silence_trimmed/p280/p280_002_mic2.flac", rate=48_000)
    else:
        tone(tmp_path / "wav48/p225/p225_001.wav", rate=48_000)
        tone(tmp_path / "wav48/p280/p280_002.wav", rate=48_000)
    text(tmp_path / "txt/p225/p225_001.txt", "Please call Stella.\n")
    info = "ID  AGE  GENDER  ACCENTS  REGION\np225  23  F    English    Southern  England\n"
    text(tmp_path / "speaker-info.txt", info)
    corpus = open_corpus(tmp_path)
    assert [(clip.id, clip.text) for clip in corpus.clips] == [("p225_001", "Please call Stella."), ("p280_002", None)]
    assert corpus.clips[0].speaker == "vctk_p225" and corpus.clips[0].extra == {"gender": "F", "accent": "English"}
    assert corpus.clips[0].path.name in ("p225_001_mic1.flac", "p225_001.wav")


def test_corrupt_files_are_skipped_and_counted(tmp_path):
    tone(tmp_path / "good.wav")
    text(tmp_path / "text.wav", "this is no audio at all")
    (tmp_path / "empty.flac").write_bytes(b"")
    tone(tmp_path / "cut.flac", 2.0)
    whole = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    quick = open_corpus(tmp_path, license="x", source="y")
    assert sorted(name for name, _ in quick.skipped) == ["empty", "text"]
    corpus = open_corpus(tmp_path, license="x", source="y", verify=True)
    assert [clip.id for clip in corpus.clips] == ["good"] and len(corpus.skipped) == 3
    assert all(reason for _, reason in corpus.skipped)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no audio found"):
        open_corpus(tmp_path / "none", license="x", source="y")
    with pytest.raises(DataError, match="no such file"):
        open_corpus(tmp_path / "nowhere")


def test_rows_survive_a_round_trip_with_unknown_fields(tmp_path):
    segment = Segment(0.1, 0.4, "hi you", "s", 1, (Word("hi", 0.1, 0.2), Word("you", 0.2, 0.4)), {"mood": "calm"})
    tone(tmp_path / "audio" / "x.wav", channels=2)
    clip = Clip("x", "audio/x.wav", 0.5, "CC0-1.0", "mine", "hi you", "s", "en", 16_000, 2, (segment,))
    clip = replace(clip, extra={"split": "test", "n": [1, 2]}, root=str(tmp_path))
    assert write_manifest(tmp_path / "m.jsonl", [clip]) == 1
    (again,) = read_manifest(tmp_path / "m.jsonl")
    assert again == clip and again.words == segment.words
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "m.jsonl").write_bytes((tmp_path / "m.jsonl").read_bytes())
    assert next(read_manifest(tmp_path / "manifests" / "m.jsonl")).path == tmp_path / "audio" / "x.wav"
    write_manifest(tmp_path / "manifests" / "up.jsonl", [clip])  # audio outside the manifest's folder: absolute
    assert next(read_manifest(tmp_path / "manifests" / "up.jsonl")).path == tmp_path / "audio" / "x.wav"


def test_a_piece_of_a_recording(tmp_path):
    tone(tmp_path / "x.wav", 1.0)
    clip = Clip("p", "x.wav", 0.25, "CC0-1.0", "mine", start=0.5, root=str(tmp_path))
    assert from_row(to_row(clip), root=tmp_path) == clip
    whole = vivavoce.read(tmp_path / "x.wav")
    assert clip.load() == whole[0.5:0.75]
    begins = replace(clip, start=0.0)
    assert from_row(to_row(begins), root=tmp_path) == begins and begins.load() == whole[:0.25]
    with pytest.raises(AudioError, match=r"clip 'p'.*nothing there"):
        replace(clip, start=3.0).load()
    (tmp_path / "t.wav").write_text("no audio")
    with pytest.raises(AudioError, match=r"clip 'p'.*is a text file"):
        replace(clip, audio="t.wav").load()
    with pytest.raises(AudioError, match=r"clip 'p'.*no such file"):
        replace(clip, audio="y.wav").load()


ROW = '{"id": "a", "audio": "a", "duration": 1, "license": "x", "source": "y"'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: list found"),
        ('{"id": "a"}', "line 2: field 'audio' is missing"),
        ('{"id": 3, "audio": "a", "duration": 1, "license": "x", "source": "y"}', "line 2: field 'id' is 3"),
        ('{"id": "a", "audio": "a", "duration": "long", "license": "x", "source": "y"}', "line 2: a number"),
        ('{"id": "a", "audio": "a", "duration": -1, "license": "x", "source": "y"}', "line 2: a duration of -1"),
        ('{"id": "a", "audio": "a", "duration": NaN, "license": "x", "source": "y"}', "line 2: a duration of nan"),
        ('{"id": "a", "audio": "a", "duration": 1, "license": "x", "source": "y", "segments": [3]}', "line 2"),
        ('{"id": "a", "audio": "a", "duration": 1e12, "license": "x", "source": "y"}', "line 2: a duration of 1000"),
        (f"{ROW}, " + '"channels": -1}', "line 2: -1 channels"),
        (f"{ROW}, " + '"channels": 1e999}', "line 2: a number"),
        (f"{ROW}, " + '"segments": [{"start": 0, "end": NaN}]}', "line 2: a number or segment"),
        ('{"id": "a", "audio": "a", "duration": 1, "license": "x", "source": "y", "text": 4}', "line 2: field 'text'"),
    ],
)
def test_bad_rows_say_the_line_and_the_field(tmp_path, line, says):
    good = '{"id": "a", "audio": "a.wav", "duration": 1, "license": "x", "source": "y"}'
    text(tmp_path / "m.jsonl", f"{good}\n{line}\n")
    with pytest.raises(DataError, match=says):
        list(read_manifest(tmp_path / "m.jsonl"))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        list(read_manifest(tmp_path / "b.jsonl"))


def test_the_pack_and_its_lhotse_round_trip(pack, tmp_path):
    corpus = open_corpus(pack)
    assert len(corpus.clips) == 2983 and not corpus.skipped and corpus.hours * 60 == pytest.approx(58.6, abs=0.1)
    chosen = [clip for clip in corpus.clips if clip.id.partition("/")[0] in ("dialogue_sim", "jfk", "an4", "nonspeech")]
    assert write_cuts(chosen, tmp_path / "cuts.jsonl.gz") == (len(chosen), [])
    again = read_cuts(tmp_path / "cuts.jsonl.gz")
    assert not again.skipped and detect(tmp_path / "cuts.jsonl.gz") == "lhotse"
    for before, after in zip(chosen, again.clips, strict=True):
        assert after.path == before.path.absolute()
        assert after.duration == pytest.approx(before.duration, abs=1e-3)
        assert replace(after, audio=before.audio, root=before.root, duration=before.duration) == before
        assert len(after.load()) == len(before.load())
    write_cuts(chosen, tmp_path / "again.jsonl.gz")
    assert (tmp_path / "cuts.jsonl.gz").read_bytes() == (tmp_path / "again.jsonl.gz").read_bytes()


def test_lhotse_reads_our_cuts_and_we_its(pack, tmp_path):
    from lhotse import CutSet

    (dialogue,) = [clip for clip in open_corpus(pack).clips if clip.id == "dialogue_sim/dlg00"]
    write_cuts([dialogue], tmp_path / "one.jsonl.gz")
    (cut,) = CutSet.from_file(tmp_path / "one.jsonl.gz")
    assert np.abs(cut.load_audio() - dialogue.load().samples).max() < 1e-4
    assert [s.text for s in cut.supervisions] == [s.text for s in dialogue.segments]
    assert cut.custom["license"] == dialogue.license
    assert read_cuts(tmp_path / "one.jsonl.gz").clips[0].start is None  # all of its file
    # What others make of it: windows are pieces of the file, resampled and mixed cuts have no file of their own.
    windows = CutSet.from_cuts([cut]).cut_into_windows(10.0)
    windows.to_file(tmp_path / "windows.jsonl.gz")
    pieces = read_cuts(tmp_path / "windows.jsonl.gz").clips
    assert [piece.start for piece in pieces] == [0, 10, 20, 30]
    ours, theirs = pieces[1].load().samples, list(windows)[1].load_audio()
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-4
    made = [cut.resample(8000), cut.pad(duration=60.0)]
    CutSet.from_cuts(made).to_file(tmp_path / "made.jsonl.gz")
    changed = read_cuts(tmp_path / "made.jsonl.gz")
    assert not changed.clips and len(changed.skipped) == 2


def test_words_become_alignments(tmp_path):
    tone(tmp_path / "x.wav")
    segment = Segment(0.0, 0.5, "hi you", "s", 0, (Word("hi", 0.1, 0.2), Word("you", 0.2, 0.4)))
    clip = Clip("x", "x.wav", 0.5, "CC0-1.0", "mine", "hi you", segments=(segment,), root=str(tmp_path))
    items = to_cut(clip).supervisions[0].alignment["word"]
    assert [(i.symbol, i.start, i.duration) for i in items] == [("hi", 0.1, 0.1), ("you", 0.2, 0.2)]
    write_cuts([clip, replace(clip, audio="gone.wav")], tmp_path / "c.jsonl.gz")
    assert read_cuts(tmp_path / "c.jsonl.gz").clips[0].words == segment.words


def test_bad_cutsets(tmp_path):
    (tmp_path / "x.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="not a CutSet"):
        read_cuts(tmp_path / "x.jsonl.gz")
    with pytest.raises(RequestError, match=r"\.jsonl\.gz"):
        write_cuts([], tmp_path / "x.tar")
    with pytest.raises(DataError, match="cannot be written"):
        write_cuts([], tmp_path / "none" / "x.jsonl.gz")


@pytest.mark.parametrize(
    ("layout", "files", "says"),
    [
        ("vctk", {}, "no audio found in the layout 'vctk'"),
        ("ljspeech", {"metadata.csv": "x|caf\xe9\n".encode("latin-1")}, "metadata.csv: not text in UTF-8"),
        ("librispeech", {"a.trans.txt": b"no/such HELLO\n"}, None),
    ],
)
def test_a_layout_that_is_not_there_is_told(tmp_path, layout, files, says):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    if says is None:
        assert open_corpus(tmp_path, layout).skipped
        return
    with pytest.raises(DataError, match=says):
        open_corpus(tmp_path, layout)


def test_a_long_line_of_ljspeech_is_read(tmp_path):
    (tmp_path / "wavs").mkdir()
    tone(tmp_path / "wavs" / "x.wav")
    text(tmp_path / "metadata.csv", f"x|{'la ' * 70_000}\n")
    (clip,) = open_corpus(tmp_path).clips
    assert len(clip.text) == 209_999


def test_names_that_differ_in_the_suffix_alone_are_told_apart(tmp_path):
    for name in ("a.wav", "a.flac", "b.wav"):
        tone(tmp_path / name)
    clips = open_corpus(tmp_path, license="x", source="y").clips
    assert [clip.id for clip in clips] == ["a.flac", "a.wav", "b"]
    with pytest.raises(DataError, match=r"the id 'b' stands for .*b\.wav and .*b\.wav"):
        check_ids([*clips, clips[-1].relative_to(tmp_path)])


def test_stats(pack):
    groups = stats(open_corpus(pack / "manifests" / "fsdd.jsonl").clips)
    (fsdd,) = groups.values()
    assert (fsdd.clips, len(fsdd.speakers), fsdd.with_text, fsdd.rates) == (2500, 5, 2500, {8000})
    assert fsdd.hours * 60 == pytest.approx(17.6, abs=0.1) and fsdd.licenses == {"CC-BY-SA-4.0"}
    splits = stats(open_corpus(pack / "manifests" / "fsdd.jsonl").clips, by="split")
    assert splits["test"].clips + splits["train"].clips == 2500
    assert json.dumps(sorted(splits)) == '["test", "train"]'
