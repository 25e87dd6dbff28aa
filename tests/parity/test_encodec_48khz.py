"""EnCodec 48 kHz (stereo, overlapping chunks, normalised) against transformers and the encodec package."""

import json
import os

import pytest
import torch

from codec_parity import check_codes, check_variety, check_wave, speech_like, spread_residual
from peers import peer
from proves import proves
from vivavoce.codecs import ChunkedCodec, CodecConfig, build_codec, load_codec, save_codec
from vivavoce.codecs.published import PUBLISHED
from vivavoce.codecs.seanet_weights import fill
from vivavoce.errors import CheckpointError, RequestError
from vivavoce.tokenizers import load_tokenizer

transformers = peer("transformers")
encodec = peer("encodec")

LONG = os.environ.get("VIVAVOCE_LONG") == "1"
# huggingface.co/facebook/encodec_48khz, config.json
THEIRS = {
    "sampling_rate": 48000, "audio_channels": 2, "norm_type": "time_group_norm", "use_causal_conv": False,
    "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01, "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
}
# The same in small: chunks of a fiftieth of a second that overlap by a tenth of it.
SMALL = {"num_filters": 4, "hidden_size": 48, "codebook_dim": 48, "chunk_length_s": 0.02, "overlap": 0.1}


def stereo(seconds: float, seed: int = 0) -> torch.Tensor:
    """Two different channels [1, 2, samples], the second softer, both swelling so that chunks differ in loudness."""
    wave = speech_like(seconds, 48000, rows=2, seed=seed)[:, 0]
    swell = 0.3 + 0.7 * torch.linspace(0, 6, wave.shape[-1]).sin().abs()
    return (wave * swell * torch.tensor([[1.0], [0.6]]))[None]


@torch.no_grad()
def randomise(encoder, books, wave: torch.Tensor) -> None:
    """Gains and biases of the norms that count, and codebooks spread over the latents of `wave`, chunk by chunk."""
    latents = torch.cat([encoder(piece / piece.mean(1).pow(2).mean().sqrt()) for piece in wave.split(9600, -1)], -1)
    spread_residual(latents.transpose(1, 2).flatten(0, 1), books)


@torch.no_grad()
def their_model(wave: torch.Tensor, **sizes):
    torch.manual_seed(0)
    model = transformers.EncodecModel(transformers.EncodecConfig(**{**THEIRS, **sizes})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.uniform_(0.6, 1.4)
        elif name.endswith("norm.bias"):
            parameter.normal_(0, 0.2)
    randomise(model.encoder, [layer.codebook.embed for layer in model.quantizer.layers[:8]], wave)
    return model


@torch.no_grad()
def compare(model, codec: ChunkedCodec, wave: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """Codes, chunk by chunk, but for ties; scales; and the waveform of the reference's codes and scales."""
    found = model.encode(wave, bandwidth=bandwidth)
    codec.codebooks = found.audio_codes.shape[2]
    ours, scales = codec.encode_scaled(wave)
    chunks = codec.chunks(wave.shape[-1])
    theirs = [
        codes[..., : -(-length // codec.hop)] for codes, (_, length) in zip(found.audio_codes, chunks, strict=True)
    ]
    assert ours.shape[-1] == codec.frames(wave.shape[-1]) == sum(codes.shape[-1] for codes in theirs)
    torch.testing.assert_close(scales, torch.cat(found.audio_scales, 1), rtol=1e-5, atol=0)
    ties = 0
    for (start, length), codes, scale in zip(chunks, theirs, found.audio_scales):
        ties += check_codes(_OneChunk(codec), wave[..., start : start + length] / scale[:, :, None], codes)
    whole = torch.cat(theirs, -1)
    assert (whole != ours).any(1).float().mean() <= 1e-3
    sound = model.decode(
        found.audio_codes, found.audio_scales, last_frame_pad_length=found.last_frame_pad_length
    ).audio_values[..., : wave.shape[-1]]
    lengths = torch.full((len(wave),), wave.shape[-1])
    error = check_wave(codec.decode(whole, lengths, torch.cat(found.audio_scales, 1)), sound)
    print(f"{len(chunks)} chunks, ties {ties} of {whole.numel()} codes, waveform within {error:.1e} of its deviation")
    return whole


class _OneChunk:
    """A chunk that is normalised already, through the stacks of a chunked codec."""

    def __init__(self, codec):
        self.quantizer, self.encode_latents, self.codec = codec.quantizer, codec.encode_latents, codec

    def encode(self, wave):
        return self.quantizer.encode(self.encode_latents(wave), None, self.codec.codebooks)


@proves("encodec", "weights")
def test_published_size_as_transformers(tmp_path):
    wave = stereo(1.3)
    model = their_model(wave)
    model.save_pretrained(tmp_path)
    codec = load_tokenizer(tmp_path)
    assert isinstance(codec, ChunkedCodec)
    assert (codec.sample_rate, codec.channels, codec.hop, codec.codebooks) == (48000, 2, 320, 2)
    assert codec.frame_rate == pytest.approx(150 / 0.99) and codec.quantizer.codebooks == 16
    published = CodecConfig.of(PUBLISHED["encodec-48khz"])
    assert {k: v for k, v in codec.config.options().items() if k != "quantizer"} == {
        k: v for k, v in published.options().items() if k != "quantizer"
    }
    theirs = compare(model, codec, wave, bandwidth=12.0)
    assert theirs.shape == (1, 8, 150 + 47)
    check_variety(theirs)
    check_padded_batch(codec, wave[..., 10000:20000], [10000, 3333])


# One sample, a frame, a chunk but for one, exactly, more; where two chunks end together; many chunks.
@proves("encodec", "weights")
@pytest.mark.parametrize("samples", [1, 320, 863, 865, 960, 961, 30000] + list(range(2, 3000, 41)) * LONG)
def test_any_length_as_transformers(tmp_path, samples):
    wave = stereo(0.8)
    model = their_model(wave, **SMALL)
    model.save_pretrained(tmp_path)
    codec = load_tokenizer(tmp_path)
    assert isinstance(codec, ChunkedCodec) and (codec.chunk, codec.stride) == (960, 864)
    theirs = compare(model, codec, wave[..., 6000 : 6000 + samples], bandwidth=12.0)
    if samples == 30000:
        check_variety(theirs)


@proves("encodec", "weights")
@torch.no_grad()
def test_the_package_itself():
    """The names and the arithmetic of facebookresearch/encodec, published size."""
    torch.manual_seed(0)
    model = encodec.EncodecModel.encodec_model_48khz(pretrained=False).eval()
    wave = stereo(1.2, seed=1)
    books = [layer._codebook for layer in model.quantizer.vq.layers]
    randomise(model.encoder, [book.embed for book in books[:4]], wave)
    for book in books:
        book.inited.fill_(1)
    model.set_target_bandwidth(6.0)
    codec = build_codec({**PUBLISHED["encodec-48khz"], "use_codebooks": 4}).eval()
    fill(codec, model.state_dict(), "original", "the package's model")
    frames = model.encode(wave)
    theirs, scales = torch.cat([codes for codes, _ in frames], -1), torch.cat([scale for _, scale in frames], 1)
    ours, found = codec.encode_scaled(wave)
    assert (ours != theirs).any(1).float().mean() <= 1e-3
    check_variety(theirs)
    torch.testing.assert_close(found, scales, rtol=1e-5, atol=0)
    sound = codec.decode(theirs, torch.tensor([wave.shape[-1]]), scales)
    check_wave(sound, model.decode(frames)[..., : wave.shape[-1]])


@pytest.fixture(scope="module")
def codec():
    """A small one of our own; its codebooks are spread."""
    torch.manual_seed(0)
    small = {"filters": 4, "dim": 16, "codebooks": 4, "codebook_size": 512, "chunk": 960, "stride": 864}
    codec = build_codec({**PUBLISHED["encodec-48khz"], **small, "quantizer": {}, "use_codebooks": 4}).eval()
    with torch.no_grad():
        wave = stereo(0.3)
        latents = codec.encode_latents(torch.cat(wave.split(960, -1)[:-1])).flatten(0, 1)
        sizes = [book.lookup(torch.arange(book.size)) for book in codec.quantizer.books()]
        spread_residual(latents, sizes)
        for book, entries in zip(codec.quantizer.books(), sizes):
            book.load(entries, torch.ones(book.size))
    return codec


def test_a_padded_batch_is_its_rows(codec):
    check_padded_batch(codec, stereo(0.3), [14400, 900, 5001])


@torch.no_grad()
def check_padded_batch(codec: ChunkedCodec, wave: torch.Tensor, sizes: list[int]) -> None:
    """The beginnings of `wave`, padded at the right with NaN: each row as it is alone."""
    lengths = torch.tensor(sizes)
    batch = torch.full((len(sizes), 2, wave.shape[-1]), float("nan"))
    for row, length in zip(batch, lengths):
        row[:, :length] = wave[0, :, :length]
    codes, scales = codec.encode_scaled(batch, lengths)
    sound = codec.decode(codes, lengths, scales)
    check_variety(codes)
    assert sound.shape == batch.shape
    for row, length in enumerate(lengths.tolist()):
        alone, own = codec.encode_scaled(wave[..., :length])
        frames = alone.shape[-1]
        assert frames == codec.frames(length) and not codes[row, :, frames:].any()
        assert (codes[row, :, :frames] != alone[0]).any(0).float().mean() <= 1e-3
        torch.testing.assert_close(scales[row, : own.shape[1]], own[0], rtol=1e-5, atol=0)
        expected = codec.decode(codes[row : row + 1, :, :frames], lengths[row : row + 1], scales[row : row + 1])
        torch.testing.assert_close(sound[row, :, :length], expected[0], rtol=0, atol=1e-4)
        assert not sound[row, :, length:].any()


def test_codes_alone_are_decoded_at_one_loudness(codec):
    wave = stereo(0.2)
    codes, scales = codec.encode_scaled(wave)
    assert torch.equal(codec.encode(wave), codes)
    sound = codec.decode(codes)
    assert sound.shape[-1] - wave.shape[-1] in range(-codec.hop, codec.hop + 1) and sound.abs().max() > 0
    lengths = torch.tensor([wave.shape[-1]])
    same = codec.decode(codes, lengths, torch.full_like(scales, 0.1))
    assert torch.equal(codec.decode(codes, lengths), same)
    with pytest.raises(RequestError, match="scales"):
        codec.decode(codes, lengths, scales[:, :-1])
    with pytest.raises(RequestError, match="samples need"):
        codec.decode(codes[..., :-1], lengths)


def test_every_count_of_frames_that_a_signal_has_is_decoded(codec):
    counts = {codec.frames(samples): samples for samples in range(0, 4000)}
    for frames, samples in counts.items():
        if samples < 3999:
            assert codec._samples(frames) == samples
    missing = set(range(max(counts))) - set(counts)
    for frames in missing:
        with pytest.raises(RequestError, match="no signal has"):
            codec._samples(frames)


def test_it_does_not_stream(codec):
    for state in (codec.encoder_state, codec.decoder_state):
        with pytest.raises(RequestError, match="whole chunks"):
            state(1)


def test_saved_and_loaded_it_is_the_same(codec, tmp_path):
    save_codec(codec, tmp_path)
    again = load_codec(tmp_path)
    wave = stereo(0.1)
    assert isinstance(again, ChunkedCodec) and torch.equal(again.encode(wave), codec.encode(wave))


def test_training_takes_a_row_as_a_chunk(codec):
    wave = stereo(0.018)
    heard = codec(wave)
    assert heard.audio.shape == wave.shape and heard.latents.requires_grad
    codes, scales = codec.encode_scaled(wave)
    assert torch.equal(heard.codes, codes)
    sound = codec.decode(codes, torch.tensor([wave.shape[-1]]), scales)
    torch.testing.assert_close(heard.audio, sound, rtol=0, atol=1e-5)


def test_what_does_not_go_together(tmp_path):
    their_model(stereo(0.2), **SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changes in ({"norm_type": "weight_norm"}, {"chunk_length_s": None}, {"overlap": None}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(CheckpointError, match="do not go together"):
            load_tokenizer(tmp_path)
