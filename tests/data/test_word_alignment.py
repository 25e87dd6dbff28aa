"""When words are said: Viterbi against all paths, published recognisers, pocketsphinx, files of other programs."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vivavoce.audio import Audio, write
from vivavoce.data.align import align
from vivavoce.data.aligners import CtcAligner, load_aligner, spelled
from vivavoce.data.clips import Clip, Segment, read_manifest
from vivavoce.data.ctc_alignment import forced_path, token_spans
from vivavoce.data.synthesis import synthesize
from vivavoce.data.word_times import read_alignments, read_rttm, read_textgrid
from vivavoce.errors import CheckpointError, DataError, RequestError


def likeliest(log_probs, tokens, blank):
    """The best of all sequences of frames that collapse to the tokens: score, and the frames' labels."""
    best = (-np.inf, ())
    for labels in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        said = [label for label, _ in itertools.groupby(labels) if label != blank]
        if said == list(tokens):
            best = max(best, (sum(log_probs[t, label] for t, label in enumerate(labels)), labels))
    return best


@pytest.mark.parametrize("tokens", [(1,), (1, 2), (1, 1), (2, 1, 2), (1, 2, 2), ()])
@pytest.mark.parametrize("blank", [0, 3])
def test_the_path_is_the_best_of_all(tokens, blank):
    tokens = [(token + blank) % 4 for token in tokens] if blank else tokens
    rng = np.random.default_rng(len(tokens))
    for _ in range(3):
        log_probs = np.log(rng.dirichlet(np.ones(4), 6))
        path = forced_path(log_probs, tokens, blank)
        labels = [blank if token < 0 else tokens[token] for token in path]
        score, _ = likeliest(log_probs, tokens, blank)
        assert [label for label, _ in itertools.groupby(labels) if label != blank] == list(tokens)
        assert sum(log_probs[t, label] for t, label in enumerate(labels)) == pytest.approx(score)
        assert (np.diff(path[path >= 0]) >= 0).all()


def test_spans_of_tokens_and_texts_that_cannot_fit():
    path = np.array([-1, 0, 0, -1, 1, 2, 2, -1])
    assert token_spans(path, 3).tolist() == [[1, 3], [4, 5], [5, 7]]
    with pytest.raises(DataError, match="3 frames of sound are too few for a text of 3 tokens"):
        forced_path(np.zeros((3, 4)), [1, 1, 2])  # a blank is needed between the equal ones


def recogniser(folder, **attributes):
    """A directory as transformers writes wav2vec 2.0 with a CTC head: letters, `|` between words, pad as the blank."""
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHRLDUCMW'"]
    (folder / "vocab.json").write_text(json.dumps({letter: n for n, letter in enumerate(letters)}))
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8, 8), conv_stride=(10, 8, 4), conv_kernel=(10, 8, 4), num_feat_extract_layers=3,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, pad_token_id=0, **attributes,
    )  # fmt: skip
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


def test_a_published_recogniser_says_when_each_word_is_said(tmp_path, monkeypatch):
    aligner = load_aligner(f"ctc:{recogniser(tmp_path / 'ctc')}")
    audio = Audio(np.random.default_rng(0).standard_normal((1, 16000)).astype(np.float32) * 0.1, 16000)
    log_probs = aligner._log_probs(audio)
    assert log_probs.shape[1] == 21 and np.allclose(np.exp(log_probs).sum(-1), 1, atol=1e-4)
    # What the network says: "the", then "lion", then nothing; a frame is 20 ms.
    letters = {letter: n for n, letter in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHRLDUCMW'"])}
    said = np.full((50, 21), -9.0)
    for at, token in [(5, "T"), (7, "H"), (9, "E"), (11, "|"), (20, "L"), (22, "I"), (25, "O"), (28, "N")]:
        said[at, letters[token]] = 0.0
    said[:, 0] = np.where(said.max(-1) == 0, -9.0, 0.0)
    monkeypatch.setattr(CtcAligner, "_log_probs", lambda self, audio: said)
    words = aligner.words(audio, "The — 42 lion!")  # of dash and number the vocabulary writes nothing
    assert [word.text for word in words] == ["The", "lion!"]
    assert [(round(w.start, 3), round(w.end, 3)) for w in words] == [(0.1, 0.2), (0.4, 0.58)]
    heard = aligner.hear(audio)
    assert [word.text.upper() for word in heard] == ["THE", "LION"] and heard[1].start == words[1].start
    with pytest.raises(DataError, match="too few for a text"):
        aligner.words(audio, "the " * 20)


def test_long_recordings_are_heard_in_pieces_and_frames_stay_in_place(tmp_path, monkeypatch):
    aligner = CtcAligner(recogniser(tmp_path / "ctc"))
    wave = np.random.default_rng(0).standard_normal((1, 3 * 16000)).astype(np.float32) * 0.1
    monkeypatch.setattr(aligner._features, "do_normalize", False)
    whole = aligner._log_probs(Audio(wave, 16000))
    monkeypatch.setattr("vivavoce.data.aligners.PIECE", 0.96)
    monkeypatch.setattr("vivavoce.data.aligners.AROUND", 0.24)
    pieces = aligner._log_probs(Audio(wave, 16000))
    assert abs(len(pieces) - len(whole)) <= 3
    near = np.abs(pieces[10:40] - whole[10:40]).mean()
    assert near < 0.3 * np.abs(pieces[10:40] - whole[40:70]).mean()


def test_names_of_aligners():
    for name in ("whisper", "ctc", "ctc:", "pocketsphinx:x"):
        with pytest.raises(RequestError, match="there are pocketsphinx and ctc:DIRECTORY"):
            load_aligner(name)


def test_a_directory_that_is_no_recogniser_is_refused(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no CTC recogniser that transformers can load"):
        load_aligner(f"ctc:{tmp_path}")


def test_words_that_no_dictionary_has_are_spelled():
    assert spelled("shoppy") == ["SH", "AA", "P", "IY"]
    assert spelled("helstone") == ["HH", "EH", "L", "S", "T", "AA", "N"]
    assert spelled("queue")[:2] == ["K", "W"] and spelled("'") == []


TEXT = "Seven plus four is eleven, Helstone."


def corpus(folder):
    """Two channels: the text in the second from 1 s on; its words' times as espeak-ng has them."""
    said = synthesize(TEXT, "espeak:en-us+f3", rate=0.85)
    speech, times = said.resample(16000), [word.start + 1.0 for word in said.words]
    wave = np.zeros((2, 16000 + speech.samples.shape[1] + 8000), np.float32)
    wave[1, 16000 : 16000 + speech.samples.shape[1]] = speech.samples[0]
    write(folder / "talk.wav", Audio(wave, 16000))
    turn = Segment(1.0, 1.0 + speech.duration, TEXT, "ann", 1)
    talk = Clip("talk", "talk.wav", wave.shape[1] / 16000, "l", "s", channels=2, segments=(turn,), root=str(folder))
    return talk, times


def test_a_corpus_gets_the_times_of_its_words_and_goes_on_where_it_stopped(tmp_path):
    pytest.importorskip("pocketsphinx")
    talk, times = corpus(tmp_path)
    write(tmp_path / "noise.wav", Audio(np.full((1, 800), 0.01, np.float32), 16000))
    bad = Clip("noise", "noise.wav", 0.05, "l", "s", text=TEXT, root=str(tmp_path))
    silent = Clip("silent", "noise.wav", 0.05, "l", "s", root=str(tmp_path))
    made = align([talk, bad, silent], "pocketsphinx", tmp_path / "out.jsonl", quiet=True)
    assert (made.rows, made.fresh) == (1, 1)
    assert dict(made.skipped)["silent"] == "clip 'silent': it has no text; with --transcribe it is recognised"
    assert "clip 'noise', turn from 0 s" in dict(made.skipped)["noise"]
    (row,) = read_manifest(tmp_path / "out.jsonl")
    (turn,) = row.segments
    assert turn.channel == 1 and " ".join(word.text for word in turn.words) == TEXT
    apart = [abs(word.start - time) for word, time in zip(turn.words, times, strict=True)]
    assert len(times) == 6 and np.median(apart) < 0.05 and max(apart) < 0.2  # the last word is spelled
    assert all(a.end <= b.start + 1e-6 for a, b in itertools.pairwise(turn.words))
    again = align([talk], "pocketsphinx", tmp_path / "out.jsonl", quiet=True)
    assert (again.rows, again.fresh) == (1, 0)
    with pytest.raises(DataError, match="none of 1 clips could be aligned; first: silent"):
        align([silent], "pocketsphinx", tmp_path / "none.jsonl", quiet=True)


def test_what_has_no_text_is_recognised(tmp_path):
    pytest.importorskip("pocketsphinx")
    talk, times = corpus(tmp_path)
    align([replace(talk, segments=())], "pocketsphinx", tmp_path / "out.jsonl", transcribe=True, quiet=True)
    (row,) = read_manifest(tmp_path / "out.jsonl")
    assert {segment.channel for segment in row.segments} == {1} and len(row.words) >= 3
    assert abs(row.words[0].start - times[0]) < 0.2 and row.text == " ".join(word.text for word in row.words)


GRID = '''File type = "ooTextFile"
Object class = "TextGrid"
item []:
    item [1]:
        class = "IntervalTier"
        name = "ann - phones"
        xmin = 0
        xmax = 1
        intervals [1]:
            xmin = 0
            xmax = 1
            text = "HH"
    item [2]:
        class = "IntervalTier"
        name = "ann - words"
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.5
            text = "say ""hi"""
        intervals [3]:
            xmin = 0.5
            xmax = 1
            text = "sil"
'''


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_text_grids(tmp_path, encoding):
    (tmp_path / "clip.TextGrid").write_text(GRID, encoding=encoding)
    (word,) = read_textgrid(tmp_path / "clip.TextGrid")
    assert (word.text, word.start, word.end) == ('say "hi"', 0.25, 0.5)
    with pytest.raises(DataError, match=r"no tier of intervals 'letters'.*ann - phones"):
        read_textgrid(tmp_path / "clip.TextGrid", "letters")
    write(tmp_path / "clip.wav", Audio(np.zeros((1, 16000), np.float32), 16000))
    clip = Clip("a/clip", "clip.wav", 1.0, "l", "s", speaker="ann", root=str(tmp_path))
    made = align([clip], f"textgrid:{tmp_path}", tmp_path / "out.jsonl", quiet=True)
    assert made.rows == 1 and next(iter(read_manifest(tmp_path / "out.jsonl"))).words == (word,)


def test_rttm(tmp_path):
    (tmp_path / "a.rttm").write_text(
        "SPKR-INFO talk 1 <NA> <NA> <NA> unknown bob <NA>\n"
        "SPEAKER talk 1 2.5 1.0 <NA> <NA> bob <NA> <NA>\nSPEAKER talk 1 0.5 1.5 <NA> <NA> ann <NA> <NA>\n"
    )
    turns = read_rttm(tmp_path)["talk"]
    assert [(turn.speaker, turn.start, turn.end) for turn in turns] == [("ann", 0.5, 2.0), ("bob", 2.5, 3.5)]
    (tmp_path / "a.rttm").write_text("SPEAKER talk 1 later\n")
    with pytest.raises(DataError, match=r"a.rttm, line 1: .*SPEAKER FILE CHANNEL START"):
        read_rttm(tmp_path / "a.rttm")


@pytest.mark.parametrize(
    "alignments, message",
    [
        ([["hi", [0.5, 0.4], "A"]], "word 0, 'hi', from 0.5 to 0.4 s: it ends before it begins"),
        ([["hi", [0.5, 0.6], "A"], ["ho", [7.0, 7.2], "A"]], "word 1, 'ho', from 7 to 7.2 s: outside of the sound"),
        ([["hi", [1.5, 1.6], "A"], ["ho", [0.2, 0.4], "A"]], "word 1, 'ho'.*before the word ahead of it.* 1.5 s"),
        ([["hi", [float("nan"), 1], "A"]], "word 0, 'hi'"),
        ([["hi", 0.5, "A"]], r"alignments\[0\] is \['hi', 0.5, 'A'\]: \[word, \[from, to\], speaker\] is expected"),
        ({"hi": 1}, "a mapping with a list 'alignments' is expected"),
    ],
)
def test_a_json_that_does_not_fit_names_the_word(tmp_path, alignments, message):
    (tmp_path / "a.json").write_text(json.dumps({"alignments": alignments}))
    with pytest.raises(DataError, match=rf"a.json.*{message}"):
        read_alignments(tmp_path / "a.json", 3.0)


def test_words_that_last_no_time_are_left_out_and_speakers_may_overlap(tmp_path):
    said = [["hi", [0.5, 0.9], "A"], ["mm", [0.4, 0.6], "B"], ["uh", [1.0, 1.0], "A"]]
    (tmp_path / "a.json").write_text(json.dumps({"alignments": said, "text_conditions": None}))
    words = read_alignments(tmp_path / "a.json", 3.0)
    assert [(word.text, word.speaker) for word in words] == [("hi", "A"), ("mm", "B")]
    with pytest.raises(DataError, match=r"b.json is missing"):
        read_alignments(tmp_path / "b.json", 3.0)
