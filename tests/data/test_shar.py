"""lhotse Shar: clips read where they lie in their archives; what an archive does not have is counted."""

import numpy as np
import pytest

import vivavoce
from vivavoce.audio.files import Inside, stream
from vivavoce.data.clips import from_row, to_row
from vivavoce.data.corpora import open_corpus
from vivavoce.data.cuts import write_cuts
from vivavoce.data.store import TokenStore
from vivavoce.data.tokenize import tokenize
from vivavoce.errors import AudioError, DataError


class Sums:
    """A tokenizer of one codebook: whether the samples of each 10 ms sum to more than 0."""

    channels, frame_rate, codebook_sizes, sample_rate, fingerprint = 1, 100.0, (2,), 8000, "sums"

    def frames(self, samples):
        return samples // 80

    def encode(self, wave, lengths=None):
        return (wave[..., : wave.shape[-1] // 80 * 80].unflatten(-1, (-1, 80)).sum(-1) > 0).long()


def sound(number, channels=1):
    rng = np.random.default_rng(number)
    return vivavoce.Audio((0.1 * rng.standard_normal((channels, 4000 + 800 * number))).astype(np.float32), 8000)


@pytest.fixture(params=["flac", "wav", "mp3"])
def shar(request, tmp_path):
    """Five cuts, one of them in two channels and one cut out of a longer file, in shards of two; and the waveforms."""
    from lhotse import CutSet, Recording, SupervisionSegment

    cuts = []
    for number in range(5):
        place = tmp_path / f"{number}.wav"
        vivavoce.write(place, sound(number, 2 if number == 3 and request.param != "mp3" else 1))
        cut = Recording.from_file(place).to_cut()
        if number == 2:
            cut = cut.truncate(offset=0.1, duration=0.5)
        about = SupervisionSegment(f"s{number}", cut.recording_id, 0.0, 0.4, text=f"words {number}", speaker="anna")
        cut.supervisions = [about]
        cut.custom = {"license": "CC0-1.0", "source": "noise"}
        cuts.append(cut.with_id(f"talk.{number}"))
    folder = tmp_path / "shar"
    folder.mkdir()
    CutSet.from_cuts(cuts).to_shar(folder, fields={"recording": request.param}, shard_size=2)
    return folder, {cut.id: cut.load_audio() for cut in CutSet.from_shar(in_dir=folder)}


def test_clips_are_lhotses(shar, tmp_path):
    folder, waves = shar
    corpus = open_corpus(folder, verify=True)
    assert [clip.id for clip in corpus.clips] == [f"talk.{n}" for n in range(5)] and not corpus.skipped
    for number, clip in enumerate(corpus.clips):
        assert (clip.text, clip.speaker, clip.license, clip.source) == (f"words {number}", "anna", "CC0-1.0", "noise")
        wave = clip.load().samples
        assert np.allclose(wave, waves[clip.id][:, : wave.shape[1]], atol=2e-4) and clip.channels == len(wave)
        assert wave.shape[1] >= waves[clip.id].shape[1]
        blocks = np.concatenate([block.samples for block in clip.blocks(0.07)], axis=1)
        assert np.allclose(blocks, wave, atol=1e-6)  # mp3 decodes to within rounding
        assert from_row(to_row(clip), root=clip.root) == clip
    tokenize(corpus.clips, {"voice": Sums()}, tmp_path / "store", quiet=True)
    store = TokenStore(tmp_path / "store")
    assert [row.id for row in store] == [clip.id for clip in corpus.clips] and store[0].text == ("words 0",)
    assert store.lengths().min() >= 50


def test_what_is_not_there(shar):
    folder, _ = shar
    second = folder / "recording.000001.tar"
    content = second.read_bytes()
    second.write_bytes(content[: len(content) // 2 - 1000])
    corpus = open_corpus(folder)
    assert len(corpus.clips) in (3, 4) and [name for name, _ in corpus.skipped][-1] == "talk.3"
    assert "recording.000001.tar" in corpus.skipped[0][1]
    second.write_bytes(b"no archive" * 200)
    assert "damaged" in dict(open_corpus(folder).skipped)["talk.2"]
    second.unlink()
    corpus = open_corpus(folder)
    assert [clip.id for clip in corpus.clips] == ["talk.0", "talk.1", "talk.4"]
    assert dict(corpus.skipped)["talk.2"].endswith("no such file")
    first = folder / "recording.000000.tar"
    first.write_bytes((folder / "recording.000002.tar").read_bytes())
    with pytest.raises(DataError, match=r"'talk\.4' where .* the cut 'talk\.0'"):
        open_corpus(folder)


def test_damage_within_an_archive(shar):
    folder, _ = shar
    clips = open_corpus(folder).clips
    start, size = clips[0].inside
    archive = folder / "recording.000000.tar"
    broken = bytearray(archive.read_bytes())
    broken[start : start + 64] = bytes(64)
    archive.write_bytes(bytes(broken))
    with pytest.raises(AudioError, match=rf"talk\.0.*recording\.000000\.tar, {size} bytes from {start}"):
        clips[0].load()
    assert len(clips[1].load())
    with pytest.raises(AudioError, match="empty"):
        list(stream(Inside(str(archive), 10**9, 10)))
    with pytest.raises(DataError, match="none of 1 clips"):
        write_cuts(clips[:1], folder / "again.jsonl")
