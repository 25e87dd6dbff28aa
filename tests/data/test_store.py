"""Token stores: rows come back as they went in; the wrong model is refused; kills lose nothing; damage is named."""

import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

import vivavoce
import warm_process
from vivavoce.codecs.build import build_codec
from vivavoce.data import store as store_module
from vivavoce.data.clips import Clip, Segment, Word
from vivavoce.data.corpora import open_corpus
from vivavoce.data.store import TokenStore, TokenWriter
from vivavoce.data.tokenize import spec_of, tokenize
from vivavoce.data.tokens import StreamSpec, TokenRow
from vivavoce.errors import DataError
from vivavoce.tokenizers.fingerprint import fingerprint

SPECS = {
    "voice": StreamSpec("mimi", "abc", (12.5, 12.5), 24_000, size=2048),
    "fine": StreamSpec("snac", "def", (12.0, 24.0, 48.0), 24_000, size=70_000),
    "hidden": StreamSpec("hubert", "ghi", (50.0,), 16_000, width=3),
}


def rows(count, seed=0):
    rng = np.random.default_rng(seed)
    for i in range(count):
        frames, channels = int(rng.integers(1, 30)), 1 + i % 2
        yield TokenRow(
            f"u{i}",
            frames / 12.5,
            "CC0-1.0",
            f"source {i % 3}",
            {
                "voice": [rng.integers(0, 2048, (2, frames)) for _ in range(channels)],
                "fine": [[rng.integers(0, 70_000, frames * 2**k) for k in range(3)] for _ in range(channels)],
                "hidden": [rng.standard_normal((frames * 4, 3)).astype(np.float16) for _ in range(channels)],
            },
            "en",
            ("hello",) * channels,
            ("anna", None)[:channels],
            ((Word("hello", 0.5, 0.75),), ())[:channels],
            {"split": "test"},
        )


def assert_same(one, other):
    assert replace(one, streams={}) == replace(other, streams={})
    for name in SPECS:
        assert len(one.streams[name]) == len(other.streams[name])
        for mine, theirs in zip(one.streams[name], other.streams[name], strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert np.array_equal(a, b)


@pytest.fixture
def store(tmp_path):
    writer = TokenWriter(tmp_path / "store", SPECS, rows_per_shard=70)
    data = list(rows(200))
    for start in range(0, 200, 9):
        writer.add(data[start : start + 9])
    writer.finish()
    return tmp_path / "store"


def test_rows_come_back_as_they_went_in(store):
    read = TokenStore(store)
    data = list(rows(200))
    assert len(read) == 200 and sorted(p.name for p in store.iterdir()) == [
        *("index", "shard-00000.parquet", "shard-00001.parquet", "shard-00002.parquet", "store.json")
    ]
    for one, other in zip(data, read, strict=True):
        assert_same(one, other)
    for index in (0, 69, 70, 139, 140, 199, -1, 31, 32):
        assert_same(data[index], read[index])
    assert read[3].streams["voice"][0].dtype == np.int64 and read[3].streams["hidden"][0].dtype == np.float16
    with pytest.raises(IndexError):
        read[200]


def test_lengths_and_columns_need_no_tokens(store):
    read, data = TokenStore(store), list(rows(200))
    assert read.lengths().tolist() == [row.streams["voice"][0].shape[1] for row in data]
    assert read.lengths("fine").tolist() == [len(row.streams["fine"][0][0]) for row in data]
    assert read.lengths("hidden").tolist() == [len(row.streams["hidden"][0]) for row in data]
    assert read.column("id").tolist() == [row.id for row in data] and set(read.column("license")) == {"CC0-1.0"}
    assert read.hours == pytest.approx(sum(row.duration for row in data) / 3600)
    with pytest.raises(DataError, match="no stream 'x'"):
        read.lengths("x")


def shards_read(monkeypatch):
    """The shards whose frames are read from here on."""
    seen, frames = [], store_module._frames
    monkeypatch.setattr(store_module, "_frames", lambda path, specs: seen.append(path.name) or frames(path, specs))
    return seen


def test_a_store_opens_by_its_index_and_reads_only_what_is_new(store, monkeypatch):
    seen, lengths = shards_read(monkeypatch), TokenStore(store).lengths("fine")
    assert not seen
    writer, more = TokenWriter(store, SPECS, rows_per_shard=70), list(rows(230))[200:]
    writer.add([replace(row, id=f"more-{row.id}") for row in more])
    writer.finish()
    assert seen == ["shard-00003.parquet"]
    assert TokenStore(store).lengths("fine").tolist() == [
        *lengths, *(len(row.streams["fine"][0][0]) for row in more)
    ] and len(seen) == 1  # fmt: skip


@pytest.mark.parametrize("damage", ["gone", "cut", "other", "json", "fewer"])
def test_an_index_that_does_not_fit_is_made_anew(store, monkeypatch, damage):
    lengths, seen = TokenStore(store).lengths("hidden").tolist(), shards_read(monkeypatch)
    frames, about = store / "index" / "frames.npy", store / "index" / "shards.json"
    if damage == "gone":
        frames.unlink()
    elif damage == "cut":
        frames.write_bytes(frames.read_bytes()[:200])
    elif damage == "other":  # a shard of another size than it was
        about.write_text(about.read_text().replace('"shard-00001.parquet", ', '"shard-00001.parquet", 1'))
    elif damage == "json":
        about.write_text("{")
    else:
        (store / "shard-00002.parquet").unlink()
        lengths = lengths[:140]
    assert TokenStore(store).lengths("hidden").tolist() == lengths
    assert len(seen) == len(list(store.glob("shard-*")))
    TokenStore(store)
    assert len(seen) == len(list(store.glob("shard-*")))  # and kept


def test_a_shard_that_changed_behind_the_index_is_named(store):
    import pyarrow.parquet

    TokenStore(store)
    path = store / "shard-00001.parquet"
    size, table = path.stat().st_size, pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.slice(0, 30), path)
    path.write_bytes(path.read_bytes())
    about = store / "index" / "shards.json"
    about.write_text(about.read_text().replace(str(size), str(path.stat().st_size)))
    with pytest.raises(DataError, match=r"shard-00001.parquet: 30 rows; the store's index says 70"):
        TokenStore(store)[80]


def test_codes_are_small_at_rest_and_readers_travel_to_workers(store):
    import pyarrow.parquet

    schema = pyarrow.parquet.ParquetFile(store / "shard-00000.parquet").schema_arrow
    kinds = {name: str(schema.field(f"stream.{name}").type) for name in SPECS}
    assert "uint16" in kinds["voice"] and "uint32" in kinds["fine"] and "halffloat" in kinds["hidden"]
    read = TokenStore(store, cache=2)
    assert_same(read[100], pickle.loads(pickle.dumps(read))[100])
    assert len(read._cache) <= 2


def test_a_store_of_another_model_is_refused_with_both_fingerprints(store):
    TokenStore(store, {"voice": "abc"})
    with pytest.raises(DataError, match=r"fingerprint is abc \(mimi\), the model's is xyz"):
        TokenStore(store, {"voice": "xyz"})
    with pytest.raises(DataError, match="needs a stream 'semantic'"):
        TokenStore(store, {"semantic": "abc"})
    changed = {**SPECS, "voice": replace(SPECS["voice"], fingerprint="xyz")}
    with pytest.raises(DataError, match=r"fingerprint abc .* now it is xyz"):
        TokenWriter(store, changed)
    with pytest.raises(DataError, match="the streams voice, fine, hidden; now it is voice"):
        TokenWriter(store, {"voice": SPECS["voice"]})


@pytest.mark.parametrize(
    ("streams", "says"),
    [
        ({"voice": [[[1, 2], [1, 2048]]]}, "level 1: codes from 1 to 2048"),
        ({"voice": [[[-1], [0]]]}, "codes from -1"),
        ({"voice": [[[1, 2]]]}, "1 levels found, 2 expected"),
        ({"voice": [[[1, 2], [1]]]}, r"levels of \[2, 1\] codes"),
        ({"fine": [[[1], [1, 2], [1, 2, 3]]]}, r"levels of \[1, 2, 3\] codes are no frames of \(1, 2, 4\)"),
        ({"hidden": [np.zeros((4, 2))]}, r"\[4, 2\] found"),
        ({"hidden": [np.full((4, 3), np.nan)]}, "finite"),
        ({"more": []}, "streams"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, streams, says):
    writer = TokenWriter(tmp_path, SPECS)
    (row,) = rows(1)
    with pytest.raises(DataError, match=says):
        writer.add([replace(row, streams={**row.streams, **streams})])


def test_twice_the_same_utterance_is_refused(tmp_path):
    writer = TokenWriter(tmp_path, SPECS)
    writer.add(list(rows(2)))
    with pytest.raises(DataError, match="'u1' is in the store"):
        writer.add(list(rows(2))[1:])


def test_a_writer_goes_on_wherever_it_was_stopped(tmp_path):
    data = list(rows(60))
    whole = TokenWriter(tmp_path / "whole", SPECS, rows_per_shard=25)
    whole.add(data)
    whole.finish()
    for start in range(0, 60, 7):  # a new writer for every few rows, as after a kill each time
        writer = TokenWriter(tmp_path / "parts", SPECS, rows_per_shard=25)
        assert writer.done == {row.id for row in data[:start]}
        writer.add(data[start : start + 7])
    with pytest.raises(DataError, match="go on with the same") if start < 25 else pytest.raises(SystemExit):
        TokenStore(tmp_path / "parts")
        raise SystemExit
    # A kill between writing a shard and removing its parts leaves both: the parts go.
    shard = sorted((tmp_path / "parts").glob("shard-*"))[0]
    twin = tmp_path / "parts" / "pending-00000.parquet"
    keep = twin.read_bytes() if twin.exists() else None
    (tmp_path / "parts" / "pending-99999.parquet").write_bytes(shard.read_bytes())
    (tmp_path / "parts" / ".shard-00009.parquet.x.part").write_bytes(b"half")
    writer = TokenWriter(tmp_path / "parts", SPECS, rows_per_shard=25)
    assert len(writer.done) == 60 and (keep is None or twin.read_bytes() == keep)
    writer.finish()
    whole = tmp_path / "whole"
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "parts" / path.relative_to(whole)).read_bytes()
    assert len(list((tmp_path / "parts").iterdir())) == len(list((tmp_path / "whole").iterdir()))


def test_damage_is_named(store, tmp_path):
    with pytest.raises(DataError, match="not a token store"):
        TokenStore(tmp_path)
    shard = store / "shard-00001.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(DataError, match="shard-00001"):
        TokenStore(store)
    broken = bytearray(content)
    broken[200:5000] = bytes(4800)
    shard.write_bytes(bytes(broken))
    read = TokenStore(store)
    with pytest.raises(DataError, match="shard-00001"):
        list(read)
    shard.write_text("text")
    with pytest.raises(DataError, match="not a readable Parquet"):
        TokenStore(store)
    (store / "store.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        TokenStore(store)
    (store / "store.json").write_text('{"format": 9, "streams": {}}')
    with pytest.raises(DataError, match="format 9"):
        TokenStore(store)


# Tokenizing: a small codec over real speech.

CODEC = {
    "sample_rate": 8000,
    "filters": 4,
    "ratios": [8, 5, 4],
    "dim": 16,
    "codebooks": 3,
    "codebook_size": 64,
}


def codec(seed=0):
    torch.manual_seed(seed)
    model = build_codec(CODEC).eval()
    with torch.no_grad():  # every codebook holds latents that occur (or what is left of them), so that codes differ
        rest = model.encode_latents(torch.randn(1, 1, 160 * 64) * torch.linspace(0, 0.5, 160 * 64))[0]
        for tensor in model.quantizer.state_dict().values():
            if tensor.shape == (64, 16):
                tensor.copy_(rest)
                rest = rest - rest.roll(1, 0)
    return model


def assert_nearly_all(codes, expected):
    """Equal but for ties: this codec is untrained, its latents lie close together."""
    assert codes.shape == expected.shape
    assert (codes != expected).mean() < 0.002


class Loudness:
    """A tokenizer that costs nothing: the level of every 20 ms at 8 kHz in steps of 3 dB."""

    sample_rate, channels, frame_rate, codebook_sizes, fingerprint = 8000, 1, 50.0, (64,), "loudness"
    pause = 0.0  # seconds for each batch

    def frames(self, samples):
        return samples // 160

    def encode(self, wave, lengths=None):
        time.sleep(self.pause)
        frames = wave[..., : wave.shape[-1] // 160 * 160].unflatten(-1, (-1, 160))
        return (20 + 10 * frames.square().mean(-1).clamp(min=1e-6).log10() / 3).round().long() + 20


def test_tokens_are_the_tokenizers_whatever_the_batch(pack, tmp_path):
    corpus = open_corpus(pack)
    clips = [clip for clip in corpus.clips if clip.id.startswith("fsdd/3_")][:20]
    clips += [clip for clip in corpus.clips if clip.id in ("dialogue_sim/dlg00", "ljspeech/LJ001-0002")]
    model = codec()
    result = tokenize(clips, {"voice": model}, tmp_path / "a", batch_seconds=30, quiet=True)
    assert result.rows == result.fresh == len(clips) and not result.skipped
    assert result.hours * 3600 == pytest.approx(sum(clip.duration for clip in clips))
    tokenize(clips, {"voice": model}, tmp_path / "b", batch_seconds=0.1, quiet=True)
    seen = set()
    stores = (TokenStore(tmp_path / "a", {"voice": model}), TokenStore(tmp_path / "b"))
    for clip, one, other in zip(clips, *stores, strict=True):
        assert one.id == other.id == clip.id and one.license == clip.license and one.source == clip.source
        samples = clip.load(8000).samples
        assert len(one.streams["voice"]) == clip.channels
        for channel, codes in enumerate(one.streams["voice"]):
            alone = model.encode(torch.from_numpy(samples[channel : channel + 1])[None])[0].numpy()
            assert_nearly_all(codes, alone)
            assert_nearly_all(codes, other.streams["voice"][channel])
            seen |= set(codes[0].tolist())
    assert len(seen) > 20
    dialogue = next(row for row in TokenStore(tmp_path / "a") if row.id == "dialogue_sim/dlg00")
    assert dialogue.speaker == ("ls_2033", "ls_367") and all(dialogue.text) and len(dialogue.alignment[0]) == 3


def test_long_recordings_go_through_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("vivavoce.data.tokenize._LONG", 8.0)
    monkeypatch.setattr("vivavoce.data.tokenize._PIECE", 1.7)
    rng = np.random.default_rng(0)
    vivavoce.write(tmp_path / "long.wav", vivavoce.Audio(0.1 * rng.standard_normal((2, 10 * 8000)).astype("f4"), 8000))
    clip = Clip("long", "long.wav", 10.0, "CC0-1.0", "noise", channels=2, root=str(tmp_path))
    model = codec()
    tokenize([clip], {"voice": model}, tmp_path / "store", quiet=True)
    (row,) = TokenStore(tmp_path / "store")
    whole = model.encode(clip.load().tensor().transpose(0, 1))
    assert_nearly_all(np.stack(row.streams["voice"]), whole.numpy())
    # One that hears whole signals only gets them whole.
    tokenize([clip], {"voice": Loudness()}, tmp_path / "whole", quiet=True)
    assert TokenStore(tmp_path / "whole").lengths().tolist() == [500]


class Hierarchy(torch.nn.Module):
    """Levels at 12.5, 25 and 50 Hz (as SNAC's, -1 behind the slower ones): rounded loudness; whole signals or steps."""

    sample_rate, channels, frame_rate, codebook_sizes, ratios = 8000, 1, 12.5, (64, 64, 64), (1, 2, 4)
    fingerprint = "hierarchy"

    def frames(self, samples):
        return -(-samples // 640)

    def encode(self, wave, lengths=None):
        lengths = torch.tensor([wave.shape[-1]] * len(wave)) if lengths is None else lengths
        codes = torch.full((len(wave), 3, 4 * int(self.frames(lengths).max())), -1)
        for row, length in enumerate(lengths.tolist()):
            whole = torch.zeros(640 * self.frames(length))
            whole[:length] = wave[row, 0, :length]
            for level, ratio in enumerate(self.ratios):
                loud = whole.view(-1, 640 // ratio).square().mean(-1).clamp(min=1e-6).log10()
                codes[row, level, : len(loud)] = (40 + 20 * loud / 3).round().long()
        return codes

    def encoder_state(self, batch):
        from vivavoce.nn.streaming import State

        return State(kept=torch.zeros(batch, 1, 0), emitted=torch.zeros(batch, dtype=torch.int64))

    def encode_step(self, wave, state):
        from vivavoce.nn.streaming import State

        heard = torch.cat([state["kept"], wave], -1)
        frames = heard.shape[-1] // 640
        after = State(kept=heard[..., 640 * frames :], emitted=torch.tensor([frames]))
        return self.encode(heard[..., : 640 * frames]), after

    def encode_flush(self, state):
        from vivavoce.nn.streaming import State

        codes = self.encode(state["kept"])
        return codes, State(kept=state["kept"][..., :0], emitted=torch.tensor([codes.shape[-1] // 4]))


@pytest.mark.parametrize("long", [False, True])
def test_levels_of_different_rates(tmp_path, monkeypatch, long):
    if long:
        monkeypatch.setattr("vivavoce.data.tokenize._LONG", 0.1)
        monkeypatch.setattr("vivavoce.data.tokenize._PIECE", 0.35)
    rng, clips = np.random.default_rng(0), []
    for number, (samples, channels) in enumerate([(7000, 1), (640, 2), (1, 1), (16_001, 1)]):
        swell = np.sin(np.arange(samples) / 900) ** 2
        sound = (0.2 * swell * rng.standard_normal((channels, samples))).astype("f4")
        vivavoce.write(tmp_path / f"{number}.wav", vivavoce.Audio(sound, 8000))
        about = Clip(f"c{number}", f"{number}.wav", samples / 8000, "CC0-1.0", "noise", channels=channels)
        clips.append(replace(about, root=str(tmp_path)))
    model = Hierarchy()
    assert spec_of(model, "h").rates == (12.5, 25.0, 50.0) and spec_of(model, "h").ratios == (1, 2, 4)
    result = tokenize(clips, {"voice": model}, tmp_path / "store", quiet=True)
    assert result.rows == 4 and not result.skipped
    store, seen = TokenStore(tmp_path / "store", {"voice": model}), set()
    assert store.lengths().tolist() == [11, 1, 1, 26]
    for clip, row in zip(clips, store, strict=True):
        sound = torch.from_numpy(clip.load().samples)
        assert len(row.streams["voice"]) == clip.channels
        for channel, levels in enumerate(row.streams["voice"]):
            alone = model.encode(sound[None, channel : channel + 1])[0].numpy()
            frames = model.frames(sound.shape[1])
            assert [len(level) for level in levels] == [frames, 2 * frames, 4 * frames]
            for mine, theirs in zip(levels, alone, strict=True):
                assert np.array_equal(mine, theirs[: len(mine)]) and (theirs[len(mine) :] == -1).all()
                seen |= set(mine.tolist())
    assert len(seen) > 5 and min(seen) >= 0


@pytest.fixture
def good(speech_files):
    """One clip of real speech."""
    file = speech_files[0]
    return Clip("good", file.name, vivavoce.read(file).duration, "CC0-1.0", "speech", root=str(file.parent))


def test_unreadable_clips_are_skipped_and_counted(good, tmp_path):
    (tmp_path / "text.wav").write_text("hello")
    vivavoce.write(tmp_path / "short.wav", vivavoce.Audio(np.full((1, 1), 0.5, np.float32), 8000))
    bad = [
        replace(good, id="gone", audio="gone.flac", root=str(tmp_path)),
        replace(good, id="text", audio="text.wav", root=str(tmp_path)),
        replace(good, id="gone and long", audio="gone.flac", root=str(tmp_path), duration=100.0),
    ]
    result = tokenize([bad[0], good, *bad[1:]], {"voice": codec()}, tmp_path / "store", quiet=True)
    assert result.rows == 1 and sorted(name for name, _ in result.skipped) == ["gone", "gone and long", "text"]
    assert all("clip" in reason or "no such file" in reason for _, reason in result.skipped)
    with pytest.raises(DataError, match=r"stands for .*: ids must differ"):
        tokenize([good, good], {"voice": codec()}, tmp_path / "other", quiet=True)


def test_of_two_that_make_a_store_one_writes_and_the_other_finds_its_rows(good, tmp_path, capfd):
    """As all processes of a training do."""
    clips = [replace(good, id=f"c{number}") for number in range(6)]
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(tokenize, clips, {"voice": Loudness()}, tmp_path, batch_seconds=1, quiet=True)
                for _ in range(2)]  # fmt: skip
        found = [each.result() for each in both]
    assert sorted(each.fresh for each in found) == [0, 6] and [each.rows for each in found] == [6, 6]
    assert [row.id for row in TokenStore(tmp_path)] == [clip.id for clip in clips]
    assert "another process writes here" in capfd.readouterr().err


def test_fingerprints_follow_the_weights(good, tmp_path):
    one, other = codec(0), codec(1)
    assert fingerprint(one) == fingerprint(codec(0)) != fingerprint(other)
    tokenize([good], {"voice": one}, tmp_path / "store", quiet=True)
    assert len(TokenStore(tmp_path / "store", {"voice": one})) == 1
    with pytest.raises(DataError, match=f"{fingerprint(one)}.*{fingerprint(other)}"):
        TokenStore(tmp_path / "store", {"voice": other})
    with pytest.raises(DataError, match=f"{fingerprint(one)}.*{fingerprint(other)}"):
        tokenize([good], {"voice": other}, tmp_path / "store", quiet=True)
    one.codebooks = 2
    tokenize([good], {"voice": one}, tmp_path / "two", quiet=True)
    one.codebooks = 3
    with pytest.raises(DataError, match="2 levels and the model needs 3"):
        TokenStore(tmp_path / "two", {"voice": one})
    assert spec_of(one, "x").rates == (50.0,) * 3


def test_segments_without_words_give_turns():
    from vivavoce.data.tokens import row_of

    turns = (Segment(0.0, 1.0, "hi", "a", 0), Segment(0.5, 2.0, "yes", "b", 1, (Word("yes", 0.6, 0.9),)))
    row = row_of(Clip("x", "x.wav", 2.0, "l", "s", "hi yes", "a+b", channels=2, segments=turns), {})
    assert row.text == ("hi", "yes") and row.speaker == ("a", "b")
    assert row.alignment == ((Word("hi", 0.0, 1.0),), (Word("yes", 0.6, 0.9),))


def job(manifest, out, pause):
    """Tokenize the first clips of a manifest; each batch takes so many seconds."""
    torch.set_num_threads(1)
    Loudness.pause = pause
    clips = open_corpus(manifest).clips[:250]
    tokenize(clips, {"voice": Loudness()}, out, batch_seconds=4, rows_per_shard=60, quiet=True)


def test_kill_9_at_any_moment_loses_nothing_that_was_finished(pack, tmp_path):
    def begin(pause):
        return warm_process.start(__file__, "job", pack / "manifests" / "fsdd.jsonl", tmp_path / "killed", pause)

    rng = np.random.default_rng(int(time.time()) if os.environ.get("VIVAVOCE_LONG") == "1" else 0)
    finished, partly = 0, 0
    for _ in range(10 if os.environ.get("VIVAVOCE_LONG") == "1" else 1):
        process = begin(0.2)  # it has as much to do still when it is killed, however late that is
        deadline = time.monotonic() + 300
        while not any((tmp_path / "killed").glob("*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.4))
        process.kill()
        process.join()
        done = len(TokenWriter(tmp_path / "killed", {"voice": spec_of(Loudness(), "voice")}, 60).done)
        assert done >= finished
        partly += finished < done < 250
        finished = done
    assert partly and warm_process.finish(begin(0.0)) == 0
    clips = open_corpus(pack / "manifests" / "fsdd.jsonl").clips[:250]
    tokenize(clips, {"voice": Loudness()}, tmp_path / "whole", batch_seconds=4, rows_per_shard=60, quiet=True)
    killed, whole = TokenStore(tmp_path / "killed"), TokenStore(tmp_path / "whole")
    assert [row.id for row in killed] == [row.id for row in whole] == [clip.id for clip in clips]
    for one, other in zip(killed, whole, strict=True):
        assert np.array_equal(one.streams["voice"][0], other.streams["voice"][0])
    names = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("killed", "whole")]
    assert names[0] == names[1] and len(names[0]) == 7  # five shards, the index, store.json
