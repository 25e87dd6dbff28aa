"""Lyra V2: loaded, whole, streamed and in batches, to the bit; its published files; files that do not go together."""

import shutil

import pytest
import torch

from codec_parity import speech_like
from lyra_models import encoder, quantizer, write_lyra
from vivavoce.codecs.lyra import LyraCodec
from vivavoce.errors import CheckpointError, RequestError
from vivavoce.tokenizers import load_tokenizer
from vivavoce.tokenizers.fingerprint import fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small one: 80 samples a frame, 20 codebooks."""
    path = tmp_path_factory.mktemp("lyra")
    write_lyra(path, 4 * speech_like(2, 16000))
    return path


@pytest.fixture
def codec(folder):
    return load_tokenizer(folder, codebooks=20)


def in_pieces(codec: LyraCodec, wave: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    state, found, start, number = codec.encoder_state(len(wave)), [], 0, 0
    while start < wave.shape[-1]:
        size = sizes[number % len(sizes)]
        codes, state = codec.encode_step(wave[..., start : start + size], state)
        found.append(codes[..., : int(state.emitted[0])])
        start, number = start + size, number + 1
    codes, state = codec.encode_flush(state)
    return torch.cat([*found, codes[..., : int(state.emitted[0])]], -1)


def spoken_in_pieces(codec: LyraCodec, codes: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    state, found, start, number = codec.decoder_state(len(codes)), [], 0, 0
    while start < codes.shape[-1]:
        size = sizes[number % len(sizes)]
        sound, state = codec.decode_step(codes[..., start : start + size], state)
        found.append(sound[..., : int(state.emitted[0])])
        start, number = start + size, number + 1
    sound, state = codec.decode_flush(state)
    return torch.cat([*found, sound[..., : int(state.emitted[0])]], -1)


def test_what_is_loaded(folder):
    codec = load_tokenizer(folder)
    assert isinstance(codec, LyraCodec) and not codec.training
    assert (codec.sample_rate, codec.hop, codec.codebooks, codec.codebook_size) == (16000, 80, 16, 16)
    assert codec.quantizer.codebooks == 20 and codec.bits_per_second == 200 * 16 * 4
    assert (codec.encoder.lookahead, codec.decoder.lookahead) == (0, 0)
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    with pytest.raises(RequestError, match="codebooks=21"):
        load_tokenizer(folder, codebooks=21)
    with pytest.raises(RequestError, match="is not trained"):
        codec(torch.zeros(1, 1, 80))


def test_whole_streamed_and_batched_are_the_same_to_the_bit(codec):
    wave = 4 * speech_like(1.3, 16000)[..., : 200 * 80 + 33]
    codes = codec.encode(wave)
    assert codes.shape == (1, 20, 201) == (1, 20, codec.frames(wave.shape[-1]))
    assert len({(level, entry) for level, row in enumerate(codes[0].tolist()) for entry in row}) > 100
    for sizes in ([80], [1000, 7, 0, 400], [wave.shape[-1] - 1, 1]):
        assert torch.equal(in_pieces(codec, wave, sizes), codes)
    sound = codec.decode(codes)
    assert sound.shape == (1, 1, 201 * 80) and sound.std() > 0.1
    for sizes in ([1], [3, 1, 17]):
        assert torch.equal(spoken_in_pieces(codec, codes, sizes), sound)

    lengths = torch.tensor([wave.shape[-1], 3333, 1, 0])
    batch = torch.full((4, 1, wave.shape[-1]), float("nan"))
    for row, length in zip(batch, lengths):
        row[:, :length] = wave[0, :, :length]
    together = codec.encode(batch, lengths)
    spoken = codec.decode(together, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = codec.encode(wave[..., :length])
        assert alone.shape[-1] == codec.frames(length) == -(-length // 80)
        own, rest = together[row].split([alone.shape[-1], together.shape[-1] - alone.shape[-1]], -1)
        assert torch.equal(own, alone[0]) and not rest.any()
        assert torch.equal(spoken[row, :, :length], codec.decode(alone)[0, :, :length] if length else wave[0, :, :0])
        assert not spoken[row, :, length:].any()


def test_a_long_signal_goes_in_tiles_and_is_the_same(codec):
    wave = 4 * speech_like(2.5, 16000)
    codec.tile = 1e9
    codes = codec.encode(wave)
    sound = codec.decode(codes)
    for tile in (0.05, 0.31):
        codec.tile = tile
        assert torch.equal(codec.encode(wave), codes) and torch.equal(codec.decode(codes), sound)


def test_fewer_codebooks_are_the_first_ones(folder, codec):
    wave = 4 * speech_like(0.5, 16000)
    codes = codec.encode(wave)
    fewer = load_tokenizer(folder, codebooks=7)
    assert torch.equal(fewer.encode(wave), codes[:, :7]) and fewer.decode(codes[:, :7]).shape == (1, 1, 8000)
    assert fingerprint(fewer) == fingerprint(codec)


def test_a_cast_changes_nothing(folder, codec):
    wave = 4 * speech_like(0.5, 16000)
    half = load_tokenizer(folder, codebooks=20, dtype=torch.bfloat16)
    assert torch.equal(half.encode(wave), codec.encode(wave))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.encode(wave), half.encode(wave))


def test_files_that_do_not_go_together(folder, tmp_path):
    entries = torch.randn(4, 8, 6).numpy()

    def broken(name: str, content: bytes | None) -> str:
        shutil.copytree(folder, tmp_path / "copy")
        path = tmp_path / "copy" / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            load_tokenizer(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")
        message = str(caught.value)
        assert str(tmp_path / "copy") in message and "\n" not in message
        return message

    assert "cannot be read: No such file" in broken("quantizer.tflite", None)
    assert "cannot be read: No such file" in broken("lyragan.tflite", None)
    assert "no TFLite model" in broken("lyragan.tflite", b"nothing")
    assert "is not undone by the decoder's" in broken("lyragan.tflite", encoder())
    assert "signatures encode and decode" in broken("quantizer.tflite", encoder())
    assert "6 features of the encoder, 5 of the quantizer" in broken("quantizer.tflite", quantizer(entries[..., :5]))
    whole = encoder()
    assert "encoder.tflite: the TFLite model is cut short" in broken("soundstream_encoder.tflite", whole[:-9000])
    entry = entries[2, 0].tobytes()
    other = quantizer(entries)
    assert other.count(entry) == 3  # where it is looked up twice, and where it is searched
    messages = set()
    for place in (other.index(entry), other.index(entry, other.index(entry) + 1), other.rindex(entry)):
        message = broken("quantizer.tflite", other[:place] + bytes(24) + other[place + 24 :])
        messages.add(message.split("quantizer.tflite: ")[1])
    assert messages == {
        "encoder and decoder of the quantizer do not have the same codebooks",
        "the quantizer's graph 'encode': what is searched for are not the entries that are taken",
    }


# The published files.


@pytest.fixture(scope="module")
def published(pack):
    path = pack / "lyra_v2"
    if not path.is_dir():
        pytest.skip("no lyra_v2 in the recorded-speech pack")
    return path


def test_published_sizes(published):
    codec = load_tokenizer(published)
    assert (codec.sample_rate, codec.hop, codec.frame_rate) == (16000, 320, 50)
    assert (codec.encoder.width, codec.quantizer.codebooks, codec.codebook_size) == (64, 46, 16)
    assert codec.codebooks == 16 and codec.bits_per_second == 3200
    for codebooks, rate in ((30, 6000), (46, 9200)):
        codec.codebooks = codebooks
        assert codec.bits_per_second == rate
    assert (codec.encoder.warmup, codec.encoder.lookahead, codec.encoder.receptive_field) == (320, 0, 7904)
    strides = [part.stride for part in codec.encoder if getattr(part, "stride", 1) > 1]
    assert strides == [16, 5, 2, 2]
    assert [part.stride for part in codec.decoder if getattr(part, "stride", 1) > 1] == [2, 2, 5, 16]
    assert [part.groups for part in codec.decoder if getattr(part, "stride", 1) > 1] == [4, 2, 1, 1]


def test_published_weights_on_speech(published, pack):
    """Each bitrate is nearer to the features than the one below; streamed frame by frame it is the same."""
    from vivavoce import read

    clip = sorted((pack / "audio" / "librispeech_other").glob("*.flac"))[0]
    wave = torch.from_numpy(read(clip).samples)[None, :1, :80000]
    codec = load_tokenizer(published, codebooks=46)
    codes = codec.encode(wave)
    assert torch.equal(in_pieces(codec, wave[..., :16000], [320]), codes[..., :50])
    assert torch.equal(spoken_in_pieces(codec, codes[..., :50], [1]), codec.decode(codes)[..., :16000])
    latents = codec.encode_latents(wave)
    errors = [(codec.quantizer.decode(codes[:, :count]) - latents).square().mean() for count in (16, 30, 46)]
    assert errors[0] > 1.5 * errors[1] > 1.5 * 1.5 * errors[2]
    sound = codec.decode(codes)
    assert torch.corrcoef(torch.stack([sound.flatten(), wave.flatten()]))[0, 1] > 0.5
